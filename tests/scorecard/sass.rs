//! Machine instructions of the loops that multiply matrices.
//!
//! In: a cubin and cuobjdump (CUOBJDUMP, or where tools/scorecard.sh puts it). Out: instructions a tensor-core
//! multiply, by entry. Not here: a disassembler; without cuobjdump there is nothing.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

/// The disassembler, where there is one that runs.
pub fn cuobjdump() -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let places = [std::env::var_os("CUOBJDUMP").map(PathBuf::from), Some(target.join("scorecard/bin/cuobjdump"))];
    places.into_iter().flatten().find(|p| Command::new(p).arg("--version").output().is_ok_and(|o| o.status.success()))
}

/// Instructions a multiply in the innermost loop that has the most multiplies, by entry; entries without any are left
/// out. Of several with as many it is the shortest: a kernel that has its loop twice, with masks and without, is in the
/// one without for all but the edges. Errors: cuobjdump's words.
pub fn instructions_per_mma(cuobjdump: &std::path::Path, cubin: &[u8]) -> Result<BTreeMap<String, f64>, String> {
    let file = std::env::temp_dir().join(format!("scorecard.{}.cubin", std::process::id()));
    std::fs::write(&file, cubin).map_err(|e| e.to_string())?;
    let mut command = Command::new(cuobjdump);
    // It looks for nvdisasm on the path.
    if let Some(folder) = cuobjdump.parent() {
        let old = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{old}", folder.display()));
    }
    let done = command.arg("-sass").arg(&file).output().map_err(|e| e.to_string());
    // A file that stays does no harm.
    let _ = std::fs::remove_file(&file);
    let done = done?;
    if !done.status.success() {
        return Err(String::from_utf8_lossy(&done.stderr).trim().to_string());
    }
    let text = String::from_utf8_lossy(&done.stdout);
    let mut all = BTreeMap::new();
    for function in text.split("Function : ").skip(1) {
        let name = function.lines().next().unwrap_or_default().trim();
        if let Some(ratio) = busiest_loop(&instructions(function)) {
            all.insert(name.to_string(), ratio);
        }
    }
    Ok(all)
}

/// One machine instruction.
struct Instruction {
    address: u64,
    opcode: String,
    /// Of a branch.
    target: Option<u64>,
}

/// Lines such as `/*0150*/  @P0 BRA 0x1a0 ;  /* 0x... */`.
fn instructions(function: &str) -> Vec<Instruction> {
    let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let mut all = Vec::new();
    for line in function.lines() {
        let Some((address, rest)) = line.trim_start().strip_prefix("/*").and_then(|l| l.split_once("*/")) else {
            continue;
        };
        let (Some(address), Some((code, _))) = (hex(address), rest.split_once(';')) else { continue };
        let mut words = code.split_whitespace().skip_while(|w| w.starts_with('@'));
        let Some(opcode) = words.next() else { continue };
        let target = opcode.starts_with("BRA").then(|| words.filter_map(|w| w.strip_prefix("0x").and_then(hex)).last());
        all.push(Instruction { address, opcode: opcode.to_string(), target: target.flatten() });
    }
    all
}

fn busiest_loop(code: &[Instruction]) -> Option<f64> {
    let is_mma = |i: &&Instruction| i.opcode.starts_with("HMMA") || i.opcode.starts_with("IMMA");
    let count = |range: (u64, u64)| {
        let body = || code.iter().filter(|i| (range.0..=range.1).contains(&i.address) && i.opcode != "NOP");
        (body().filter(is_mma).count(), body().count())
    };
    let loops: Vec<(u64, u64)> = code
        .iter()
        .filter_map(|i| i.target.filter(|t| *t < i.address).map(|t| (t, i.address)))
        .filter(|range| count(*range).0 > 0)
        .collect();
    let inner = |l: &&(u64, u64)| !loops.iter().any(|o| o != *l && l.0 <= o.0 && o.1 <= l.1);
    let whole = (0, code.last()?.address);
    let busiest =
        loops.iter().filter(inner).max_by_key(|l| (count(**l).0, Reverse(count(**l).1))).copied().unwrap_or(whole);
    let (mma, all) = count(busiest);
    (mma > 0).then(|| all as f64 / mma as f64)
}

#[test]
fn loops_are_found() {
    let line = |address: u64, code: &str| format!("        /*{address:04x}*/    {code} ;    /* 0x00 */\n");
    let mut text = String::new();
    let code = [
        "MOV R1, R2",
        "HMMA.16816.F32.BF16 R4, R4, R8, R4",
        "LDSM.16.M88.4 R4, [R1]",
        "HMMA.16816.F32.BF16 R4, R4, R8, R4",
        "IADD3 R1, R1, 0x10, RZ",
        "NOP",
        "@P0 BRA 0x20",
        "@P1 BRA `(.L_1) 0x0",
        "EXIT",
    ];
    for (n, code) in code.iter().enumerate() {
        text += &line(16 * n as u64, code);
    }
    // From 0x20 to 0x60 without the NOP: four instructions, one multiply.
    assert_eq!(busiest_loop(&instructions(&text)), Some(4.0));
    assert_eq!(busiest_loop(&instructions(&line(0, "HMMA.16816.F32 R4, R4, R8, R4"))), Some(1.0));
    assert_eq!(busiest_loop(&instructions(&line(0, "MOV R1, R2"))), None);
}
