//! What a run did, as JSON and as a table.
//! In: counts of launches, copies, faults. Out: the file `SOFTGPU_REPORT` names (JSON), and the table beside it (`.txt`).
//! Owns: sums over launches of one kernel and shape. Not here: counting (`counters`), the time model (`model`).

use crate::counters::LaunchCounts;
use crate::device::{PARTS, Part};
use crate::exec::fault::Fault;
use crate::ir::{Class, Kernel};
use crate::model::predict;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

type Key = (String, [u32; 3], [u32; 3], u32);

/// Everything counted since the library was loaded.
#[derive(Default)]
pub struct Report {
    kernels: BTreeMap<Key, (Arc<Kernel>, LaunchCounts)>,
    /// Launches in order: index of the sum they went into.
    order: Vec<Key>,
    /// Bytes copied host to device, device to host, device to device.
    pub h2d: u64,
    pub d2h: u64,
    pub d2d: u64,
    /// Most device memory in use.
    pub peak_bytes: u64,
    /// Faults.
    pub faults: Vec<Fault>,
}

/// Registers ptxas reports, by kernel: lines "name registers" in the file `SOFTGPU_PTXAS` names.
fn ptxas_registers() -> BTreeMap<String, u32> {
    let Some(path) = std::env::var_os("SOFTGPU_PTXAS") else { return BTreeMap::new() };
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut out = BTreeMap::new();
    let mut kernel = String::new();
    for line in text.lines() {
        // ptxas -v: "Compiling entry function 'name' for 'sm_80'", then "Used 40 registers, ...".
        if let Some((_, rest)) = line.split_once("entry function '") {
            kernel = rest.split('\'').next().unwrap_or("").to_string();
        } else if let Some((_, rest)) = line.split_once("Used ")
            && let Some(n) = rest.split(' ').next().and_then(|n| n.parse().ok())
        {
            out.insert(kernel.clone(), n);
        } else if let Some((k, n)) = line.split_once(' ')
            && let Ok(n) = n.trim().parse()
        {
            out.insert(k.to_string(), n);
        }
    }
    out
}

impl Report {
    /// A copy between host (false) and device (true).
    pub fn copied(&mut self, to: bool, from: bool, n: u64) {
        match (to, from) {
            (true, false) => self.h2d += n,
            (false, true) => self.d2h += n,
            (true, true) => self.d2d += n,
            _ => {}
        }
    }

    /// A finished launch.
    pub fn launched(&mut self, k: &Arc<Kernel>, c: LaunchCounts) {
        if c.instructions.is_empty() {
            return;
        }
        let key = (c.kernel.clone(), c.grid, c.block, c.shared_bytes);
        if self.order.len() < 1 << 16 {
            self.order.push(key.clone());
        }
        match self.kernels.get_mut(&key) {
            // Another module may hold a kernel of the same name and shape but other code.
            Some((_, sum)) if sum.instructions.len() == c.instructions.len() => {
                sum.launches += 1;
                sum.instructions.iter_mut().zip(&c.instructions).for_each(|(a, b)| a.add(b));
            }
            _ => {
                self.kernels.insert(key, (k.clone(), c));
            }
        }
    }

    /// The report as JSON.
    pub fn json(&self, part: &Part) -> Value {
        let registers = ptxas_registers();
        let kernels: Vec<Value> =
            self.kernels.values().map(|(k, c)| kernel_json(k, c, part, registers.get(&c.kernel).copied())).collect();
        let launches: Vec<Value> = self
            .order
            .iter()
            .map(|(n, g, b, s)| json!({"kernel": n, "grid": g, "block": b, "shared_bytes": s}))
            .collect();
        let faults: Vec<Value> = self
            .faults
            .iter()
            .map(|f| {
                json!({"kind": f.kind.name(), "kernel": f.kernel, "ptx_line": f.ptx_line, "op": f.op, "source": f.source,
                    "block": f.block, "thread": f.thread, "address": f.address, "detail": f.detail})
            })
            .collect();
        json!({"device": part.name, "arch": part.arch, "h2d_bytes": self.h2d, "d2h_bytes": self.d2h, "d2d_bytes": self.d2d,
            "peak_bytes": self.peak_bytes, "num_launches": self.kernels.values().map(|(_, c)| c.launches).sum::<u64>(),
            "kernels": kernels, "launches": launches, "faults": faults})
    }

    /// Writes the JSON to `path` and the table to `path` with the extension `txt`.
    pub fn write(&self, path: &Path, part: &Part) -> std::io::Result<()> {
        let json = serde_json::to_string_pretty(&self.json(part)).map_err(std::io::Error::other)?;
        std::fs::write(path, json)?;
        std::fs::write(path.with_extension("txt"), self.table(part))
    }

    /// The report as a table.
    pub fn table(&self, part: &Part) -> String {
        let mut out = format!(
            "{}\n{:<28} {:>8} {:>12} {:>10} {:>9} {:>9} {:>7} {:>11} {:>7} {:>6} {:>10}\n",
            part.name,
            "kernel",
            "launches",
            "warp instr",
            "mma",
            "ld sect",
            "st sect",
            "/min",
            "smem waves",
            "/min",
            "lanes",
            "model us"
        );
        for (_, c) in self.kernels.values() {
            let ratio = |a: u64, b: u64| if b == 0 { 1.0 } else { a as f64 / b as f64 };
            let loads = c.of(Class::GlobalLoad, |x| x.sectors) + c.of(Class::AsyncCopy, |x| x.sectors);
            out += &format!(
                "{:<28} {:>8} {:>12} {:>10} {:>9} {:>9} {:>7.3} {:>11} {:>7.3} {:>6.3} {:>10.2}\n",
                c.kernel,
                c.launches,
                c.issued(),
                c.of(Class::Mma, |x| x.issued),
                loads,
                c.of(Class::GlobalStore, |x| x.sectors),
                ratio(c.sum(|x| x.sectors), c.sum(|x| x.sectors_min)),
                c.sum(|x| x.wavefronts),
                ratio(c.sum(|x| x.wavefronts), c.sum(|x| x.wavefronts_min)),
                c.lane_ratio(),
                predict(c, part).total * 1e6
            );
        }
        out += &format!(
            "copies: {} B host to device, {} B device to host, {} B on the device\n",
            self.h2d, self.d2h, self.d2d
        );
        out += "model us is a roofline model, not a measurement.\n";
        out
    }
}

/// One kernel and shape.
pub fn kernel_json(k: &Kernel, c: &LaunchCounts, part: &Part, ptxas: Option<u32>) -> Value {
    let classes: Map<String, Value> = Class::ALL
        .iter()
        .map(|class| (class.name().to_string(), json!(c.of(*class, |x| x.issued))))
        .filter(|(_, v)| *v != json!(0))
        .collect();
    let lines: Vec<Value> = c
        .instructions
        .iter()
        .enumerate()
        .filter(|(_, x)| x.issued > 0)
        .map(|(n, x)| {
            let loc = k.locs[n];
            let mut v = json!({"ptx_line": loc.ptx_line, "op": k.ops[n], "issued": x.issued, "lanes": x.lanes});
            if let Some(f) = k.files.get(&loc.file) {
                v["source"] = json!(format!("{f}:{}", loc.line));
            }
            if x.requests > 0 {
                v["requests"] = json!(x.requests);
                v["sectors"] = json!(x.sectors);
                v["sectors_min"] = json!(x.sectors_min);
            }
            if x.wavefronts > 0 {
                v["wavefronts"] = json!(x.wavefronts);
                v["wavefronts_min"] = json!(x.wavefronts_min);
            }
            v
        })
        .collect();
    let threads = c.block.iter().product::<u32>();
    let registers = ptxas.unwrap_or(c.registers);
    let (blocks, limit) = part.occupancy(threads, registers, c.shared_bytes);
    let models: Map<String, Value> = PARTS
        .iter()
        .filter(|p| matches!(p.arch, 80 | 89 | 90))
        .map(|p| {
            let t = predict(c, p);
            let v = json!({"seconds": t.total, "bound": t.bound, "memory_s": t.memory, "tensor_s": t.tensor, "issue_s": t.issue});
            (p.name.replace(" (softgpu)", ""), v)
        })
        .collect();
    json!({
        "kernel": c.kernel, "grid": c.grid, "block": c.block, "shared_bytes": c.shared_bytes, "launches": c.launches,
        "warp_instructions": c.issued(), "by_class": classes, "active_lane_ratio": c.lane_ratio(),
        "mma": c.of(Class::Mma, |x| x.issued), "mma_flops": c.mma_flops(),
        "global": {
            "load_requests": c.of(Class::GlobalLoad, |x| x.requests) + c.of(Class::AsyncCopy, |x| x.requests),
            "load_sectors": c.of(Class::GlobalLoad, |x| x.sectors) + c.of(Class::AsyncCopy, |x| x.sectors),
            "load_sectors_min": c.of(Class::GlobalLoad, |x| x.sectors_min) + c.of(Class::AsyncCopy, |x| x.sectors_min),
            "store_requests": c.of(Class::GlobalStore, |x| x.requests),
            "store_sectors": c.of(Class::GlobalStore, |x| x.sectors),
            "store_sectors_min": c.of(Class::GlobalStore, |x| x.sectors_min),
            "unique_read_bytes": 32 * c.sum(|x| x.unique_read),
            "unique_written_bytes": 32 * c.sum(|x| x.unique_written),
        },
        "shared": {"wavefronts": c.sum(|x| x.wavefronts), "wavefronts_min": c.sum(|x| x.wavefronts_min)},
        "barriers": c.of(Class::Barrier, |x| x.issued), "atomic_lanes": c.sum(|x| x.atomics),
        "occupancy": {"registers": registers, "registers_from": if ptxas.is_some() { "ptxas" } else { "estimate" },
            "blocks_per_sm": blocks, "warps_per_sm": blocks * threads.div_ceil(32), "limited_by": limit},
        "time_model": {"note": "roofline model, not a measurement", "parts": models},
        "lines": lines,
    })
}
