//! The card: what is known of each kernel without a GPU, as it is committed and as it is now.
//!
//! In: rows. Out: JSON, a table for readers, what has become worse. Owns: how much worse is too much.
//! Not here: where the numbers come from (`measure.rs`).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// All kernels, by entry.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// nvcc's words on itself.
    pub toolchain: String,
    pub rows: BTreeMap<String, Row>,
    /// Of a decode step of one sequence, on the software GPU.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub token: Option<Token>,
}

/// What a token of a decoder costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Token {
    pub launches_a_layer: u64,
    pub launches_beside: u64,
    /// Of device memory that launches touch first, over those of the weights.
    pub bytes: f64,
}

impl Token {
    /// Of a decoder of 32 layers.
    fn launches(&self) -> u64 {
        32 * self.launches_a_layer + self.launches_beside
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The file in kernels/.
    pub file: String,
    /// By architecture: `80`.
    pub archs: BTreeMap<String, Resources>,
    /// From shapes of real models on the software GPU; none for an entry that no shape runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<Ratios>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    pub registers: u32,
    pub spill_bytes: u32,
    /// Static.
    pub shared_bytes: u32,
    /// Machine instructions a tensor-core multiply in the inner loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instructions_per_mma: Option<f64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Ratios {
    /// Most threads of a block, most shared memory of a block, dynamic included.
    pub threads: u64,
    pub shared_bytes: u64,
    /// 32-byte sectors of all requests, and passes through shared memory, over the least possible.
    pub sectors: f64,
    pub passes: f64,
}

/// More registers than committed by this many is too many.
const MORE_REGISTERS: u32 = 8;
const MORE_INSTRUCTIONS: f64 = 1.05;
const MORE_SECTORS: f64 = 1.01;

/// Everything in which `now` falls behind `committed`; each with what to do.
pub fn worse(committed: &Card, now: &Card) -> Vec<String> {
    let mut all = Vec::new();
    if let (Some(new), Some(old)) = (&now.token, &committed.token) {
        if new.launches() > old.launches() {
            all.push(format!("a token: {} launches, {} were committed", new.launches(), old.launches()));
        }
        if new.bytes > old.bytes * MORE_SECTORS {
            all.push(format!(
                "a token: {:.3} times the bytes of the weights, {:.3} were committed",
                new.bytes, old.bytes
            ));
        }
    }
    let hint = "make it as good as it was, or say why in the commit and run tools/scorecard.sh";
    for (entry, row) in &now.rows {
        // A new entry has no row before tools/scorecard.sh has run; it may not spill all the same.
        let none = Row::default();
        let old = committed.rows.get(entry).unwrap_or(&none);
        let mut fell = |what: String| all.push(format!("{entry} (kernels/{}.cu): {what}; {hint}", row.file));
        for (arch, new) in &row.archs {
            if new.spill_bytes > 0 {
                fell(format!("sm_{arch}: {} bytes of registers spill", new.spill_bytes));
            }
            let Some(old) = old.archs.get(arch) else { continue };
            if new.registers > old.registers + MORE_REGISTERS {
                fell(format!("sm_{arch}: {} registers, {} were committed", new.registers, old.registers));
            }
            if let (Some(new), Some(old)) = (new.instructions_per_mma, old.instructions_per_mma)
                && new > old * MORE_INSTRUCTIONS
            {
                fell(format!("sm_{arch}: {new:.2} instructions a multiply, {old:.2} were committed"));
            }
        }
        if let (Some(new), Some(old)) = (&row.counts, &old.counts) {
            for (what, new, old) in [("sectors", new.sectors, old.sectors), ("shared passes", new.passes, old.passes)] {
                if new > old * MORE_SECTORS {
                    fell(format!("{new:.3} times the least {what}, {old:.3} were committed"));
                }
            }
        }
    }
    all
}

/// Warps that fit on a multiprocessor of an architecture: (registers and limits of its occupancy).
fn warps(arch: &str, resources: &Resources, ratios: &Ratios) -> u64 {
    let (most_warps, most_blocks, shared) = match arch {
        "80" => (64, 32, 164),
        "86" => (48, 16, 100),
        "89" => (48, 24, 100),
        "90" => (64, 32, 228),
        _ => (48, 24, 100),
    };
    let warps = ratios.threads.div_ceil(32).max(1);
    // A warp gets registers in units of 256, 8 a thread; a block a kilobyte of shared memory for the system.
    let by_registers = 65536 / (u64::from(resources.registers).next_multiple_of(8).max(8) * 32) / warps;
    let by_shared = (shared << 10) / (ratios.shared_bytes.max(u64::from(resources.shared_bytes)) + 1024);
    by_registers.min(by_shared).min(most_warps / warps).min(most_blocks) * warps
}

/// The card for readers.
pub fn table(card: &Card) -> String {
    let archs: Vec<&String> = {
        let mut all: Vec<&String> = card.rows.values().flat_map(|r| r.archs.keys()).collect();
        all.sort();
        all.dedup();
        all
    };
    let each = |f: &dyn Fn(&str) -> String| archs.iter().map(|a| f(a)).collect::<Vec<_>>().join(" / ");
    let names = each(&|a| a.to_string());
    let mut out = format!(
        "# Scorecard of the CUDA kernels\n\n\
         What is known without a GPU, made by `tools/scorecard.sh`; `tests/cuda_scorecard.rs` fails when a kernel falls behind\n\
         its row. Compiler: {}.\n\n\
         - registers, spilled bytes: ptxas, for sm_{names}.\n\
         - warps: on a multiprocessor at once, of 64 (sm_80, sm_90) or 48; from registers, threads and shared memory.\n\
         - instr/mma: machine instructions a tensor-core multiply in the inner loop.\n\
         - sectors, passes: 32-byte sectors and shared-memory passes over the least that the same requests could take, on\n\
           the software GPU at shapes of real models (bench/kernels); `-`: no shape small enough runs this entry.\n\n\
         `_v1` entries (of norms `_v0`) serve widths that are no multiple of a vector.\n\n",
        card.toolchain
    );
    if let Some(token) = &card.token {
        let _ = write!(
            out,
            "A token of one sequence: {} launches for 32 layers, {} a layer and {} beside; {:.4} times the bytes of the weights (hidden\n\
             size 1024, three layers).\n\n",
            token.launches(),
            token.launches_a_layer,
            token.launches_beside,
            token.bytes
        );
    }
    let mut file = "";
    for (entry, row) in sorted(card) {
        if row.file != file {
            let gap = if file.is_empty() { "" } else { "\n" };
            file = &row.file;
            let _ = write!(
                out,
                "{gap}## {file}.cu\n\n| entry | registers {names} | spills | warps | shared bytes | instr/mma | sectors | passes |\n\
                 |---|---|---|---|---|---|---|---|\n"
            );
        }
        let part = |a: &str| row.archs.get(a);
        let registers = each(&|a| part(a).map_or("-".into(), |p| p.registers.to_string()));
        let spills: u32 = row.archs.values().map(|p| p.spill_bytes).sum();
        let mma = if row.archs.values().any(|p| p.instructions_per_mma.is_some()) {
            each(&|a| part(a).and_then(|p| p.instructions_per_mma).map_or("-".into(), |i| format!("{i:.2}")))
        } else {
            "-".into()
        };
        let (occupancy, shared, sectors, passes) = match &row.counts {
            Some(c) => (
                each(&|a| part(a).map_or("-".into(), |p| warps(a, p, c).to_string())),
                c.shared_bytes.to_string(),
                format!("{:.3}", c.sectors),
                format!("{:.3}", c.passes),
            ),
            None => {
                let fixed = row.archs.values().map(|p| p.shared_bytes).max().unwrap_or(0);
                ("-".into(), fixed.to_string(), "-".into(), "-".into())
            }
        };
        let _ = writeln!(
            out,
            "| {entry} | {registers} | {spills} | {occupancy} | {shared} | {mma} | {sectors} | {passes} |"
        );
    }
    out
}

/// By file, then entry.
fn sorted(card: &Card) -> Vec<(&String, &Row)> {
    let mut rows: Vec<_> = card.rows.iter().collect();
    rows.sort_by(|a, b| (&a.1.file, a.0).cmp(&(&b.1.file, b.0)));
    rows
}
