//! Fills the card: ptxas' reports, machine code, the software GPU's counters.
//!
//! In: the kernels in this program, the op case list. Out: a card. Not here: what is good.

use std::collections::BTreeMap;

use engine::backend::cuda::kernels::{KERNELS, TOOLCHAIN};

use super::card::{Card, Ratios, Resources, Row};
use super::sass;
use crate::counted::{self, Counts};

/// What ptxas says of every entry, and instructions a multiply where there is a disassembler.
pub fn static_card() -> Result<Card, String> {
    let mut card = Card { toolchain: TOOLCHAIN.unwrap_or("none").to_string(), ..Card::default() };
    let disassembler = sass::cuobjdump();
    for kernel in KERNELS {
        for cubin in kernel.cubins {
            let ratios = match &disassembler {
                Some(d) => sass::instructions_per_mma(d, cubin.image).map_err(|e| format!("{}: {e}", kernel.name))?,
                None => BTreeMap::new(),
            };
            for entry in cubin.resources() {
                let row = card.rows.entry(entry.entry.clone()).or_default();
                row.file = kernel.name.to_string();
                let resources = Resources {
                    registers: entry.registers,
                    spill_bytes: entry.spill_bytes,
                    shared_bytes: entry.shared_bytes,
                    // Two digits say enough, and are the same on every machine.
                    instructions_per_mma: ratios.get(&entry.entry).map(|r| (r * 100.0).round() / 100.0),
                };
                row.archs.insert(cubin.arch.to_string(), resources);
            }
        }
    }
    Ok(card)
}

/// Adds what the software GPU counts; `arguments` make this program run every small shape.
pub fn count(card: &mut Card, arguments: &[&str]) -> Result<(), String> {
    let mut by_entry: BTreeMap<String, Vec<Counts>> = BTreeMap::new();
    for counts in counted::everything(arguments)? {
        by_entry.entry(counts.kernel.clone()).or_default().push(counts);
    }
    for (entry, all) in by_entry {
        let Row { counts, .. } = card.rows.entry(entry).or_default();
        let sum = |f: fn(&Counts) -> u64| all.iter().map(f).sum::<u64>();
        let most = |f: fn(&Counts) -> u64| all.iter().map(f).max().unwrap_or(0);
        let ratio = |a: u64, b: u64| if b == 0 { 1.0 } else { (a as f64 / b as f64 * 1e4).round() / 1e4 };
        *counts = Some(Ratios {
            threads: most(|c| c.threads),
            shared_bytes: most(|c| c.shared_bytes),
            sectors: ratio(sum(|c| c.sectors), sum(|c| c.sectors_least)),
            passes: ratio(sum(|c| c.passes), sum(|c| c.passes_least)),
        });
    }
    Ok(())
}
