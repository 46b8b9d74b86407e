//! Every kernel of guest/bugs.cu is caught, with the kind and the source line its comment states.

mod common;
use common::bytes;
use softgpu::exec::fault::FaultKind;
use softgpu::gpu::{Gpu, Shape};
use softgpu::memory::Use;

const SOURCE: &str = include_str!("../guest/bugs.cu");
const PTX: &str = include_str!("../guest/bugs.ptx");

/// Kernel name, line, allowed kinds, in file order.
fn planted() -> Vec<(String, u32, Vec<String>)> {
    let mut out = Vec::new();
    let mut kernel = String::new();
    for (n, line) in SOURCE.lines().enumerate() {
        if let Some(rest) = line.strip_prefix("KERNEL ") {
            kernel = rest.split('(').next().unwrap().to_string();
        }
        if let Some((_, kinds)) = line.split_once("// BUG: ") {
            out.push((kernel.clone(), n as u32 + 1, kinds.split(", ").map(str::to_string).collect()));
        }
    }
    out
}

#[test]
fn all_planted_bugs_are_found() {
    let bugs = planted();
    assert!(bugs.len() >= 20, "{} bugs", bugs.len());
    let mut missed = Vec::new();
    for (kernel, line, kinds) in &bugs {
        // Any order of blocks and any first warp must find it.
        for (threads, shuffle, first_warp) in [(1, None, 0), (2, Some(7), 3)] {
            let mut gpu = Gpu::new(1 << 24).unwrap();
            gpu.options.threads = threads;
            gpu.options.shuffle = shuffle;
            gpu.options.first_warp = first_warp;
            let m = gpu.load(PTX).unwrap();
            let n = 512u32;
            let data: Vec<f32> = (0..n).map(|i| if i % 3 == 0 { -1.0 } else { i as f32 }).collect();
            let a = gpu.upload(&bytes(&data)).unwrap();
            let o = gpu.memory.alloc(u64::from(n) * 4, Use::Device).unwrap();
            if kernel == "use_after_free" {
                gpu.memory.free(a).unwrap();
            }
            let p: [&[u8]; 3] = [&a.to_le_bytes(), &o.to_le_bytes(), &n.to_le_bytes()];
            let shape = Shape { grid: [4, 1, 1], block: [128, 1, 1], shared: 0 };
            match gpu.launch(&m.kernels[kernel], shape, &p) {
                Ok(_) => missed.push(format!("{kernel}: nothing was reported")),
                Err(f) => {
                    let at = f.source.as_ref().map_or(0, |s| s.1);
                    // A race has two sides; which one comes second depends on the order. The report names both.
                    let other = f.kind == FaultKind::SharedRace && f.detail.contains(&format!("bugs.cu:{line} "));
                    if at != *line && !other || !kinds.iter().any(|k| k == f.kind.name()) {
                        missed.push(format!("{kernel}: expected {kinds:?} at line {line}, got: {f}"));
                    }
                }
            }
        }
    }
    assert!(missed.is_empty(), "{} of {}:\n{}", missed.len(), bugs.len(), missed.join("\n"));
}

#[test]
fn host_side_bugs_are_found() {
    let mut gpu = Gpu::new(1 << 20).unwrap();
    let a = gpu.upload(&[0; 64]).unwrap();
    assert!(gpu.memory.write(a, &[0; 65]).is_none(), "a copy past the end");
    gpu.memory.free(a).unwrap();
    assert_eq!(gpu.memory.free(a), Err(softgpu::memory::MemoryError::DoubleFree));
    assert_eq!(gpu.memory.free(a + 4), Err(softgpu::memory::MemoryError::NotAllocated));
    assert!(gpu.download(a, 4).is_empty(), "a copy from freed memory");
}
