//! Every CUDA kernel at the shapes of real models: Idefics2-8b, LLaVA-8B and JoyCaption, Qwen2-VL-7B; prefill and decode.
//!
//! In: `cargo bench --bench kernels [-- FILTER...]`; on a machine without a GPU `tools/softgpu/run.sh cargo bench --bench
//! kernels`. Out: a table on stdout. On a GPU: microseconds (median), GB/s, TFLOP/s, percent of the roofline, inputs
//! rotated through more memory than the second cache has. On the software GPU: its counters, for the shapes that it
//! finishes in seconds. Then what the whole should reach, marked as predicted (`predict.rs`).
//! Not here: what the shapes are (tests/cuda_ops, which tests read too), whether results are right.

// The list is shared with tests, which use all of it.
#[allow(dead_code)]
#[path = "../tests/cuda_ops/counted.rs"]
mod counted;
#[allow(dead_code)]
#[path = "../tests/cuda_ops/list.rs"]
mod list;
#[path = "predict.rs"]
mod predict;

use std::time::Instant;

use engine::Result;
use engine::backend::cuda::driver::CapturedGraph;
use list::harness::{Gpu, Instance, Op, Work};

/// Memory that inputs rotate through, so that nothing is found in the second cache: twice the largest (H200, 60 MB).
const ROTATION_BYTES: u64 = 120 << 20;
const ROUNDS: usize = 9;
/// Seconds a round should take at least, for the clock's sake.
const ROUND_SECONDS: f64 = 2e-3;

/// (part of the name, bytes a second of memory, FLOPs a second of dense 16-bit tensor operations).
const PARTS: [(&str, f64, f64); 9] = [
    ("H200", 4.8e12, 989e12),
    ("H100 PCIe", 2.0e12, 756e12),
    ("H100 NVL", 3.9e12, 835e12),
    ("H100", 3.35e12, 989e12),
    ("A100-SXM4-80GB", 2.039e12, 312e12),
    ("A100", 1.555e12, 312e12),
    ("RTX 4090", 1.008e12, 165e12),
    ("RTX 3090", 0.936e12, 71e12),
    ("L40S", 0.864e12, 362e12),
];

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if counted::run_as_child(&arguments) {
        return;
    }
    arguments.retain(|a| !a.starts_with("--"));
    let wanted = |op: &Op, name: &str| {
        arguments.is_empty() || arguments.iter().any(|a| op.name.contains(a.as_str()) || name.contains(a.as_str()))
    };
    match Gpu::open() {
        None => println!("no GPU: nothing measured; tools/softgpu/run.sh cargo bench --bench kernels shows counters"),
        Some(gpu) if gpu.soft => show_counters(&wanted),
        Some(gpu) => {
            if let Err(e) = measure(&gpu, &wanted) {
                eprintln!("kernels: {e}");
                std::process::exit(1);
            }
        }
    }
    if arguments.is_empty() {
        predict::print();
    }
}

/// Times every wanted shape.
fn measure(gpu: &Gpu, wanted: &dyn Fn(&Op, &str) -> bool) -> Result<()> {
    let device = gpu.cuda.device();
    let part = PARTS.iter().find(|(name, ..)| device.name().contains(name));
    println!("{}", device.name());
    if part.is_none() {
        println!("this GPU's figures are not in bench/kernels.rs: no percent of the roofline");
    }
    println!("{:<72} {:>9} {:>8} {:>8} {:>9}", "shape", "us", "GB/s", "TFLOP/s", "roofline");
    for op in list::OPS {
        for case in (op.shapes)() {
            if !wanted(op, &case.name) {
                continue;
            }
            let first = (case.build)(gpu)?;
            let copies = (ROTATION_BYTES / first.work.bytes.max(1)).clamp(1, 64);
            let mut instances = vec![first];
            for _ in 0..copies {
                instances.push((case.build)(gpu)?);
            }
            let seconds = time(gpu, &instances)?;
            let Work { bytes, flops } = instances[0].work;
            let roofline = part.map_or("-".to_string(), |(_, bandwidth, peak)| {
                let least = (bytes as f64 / bandwidth).max(flops as f64 / peak);
                format!("{:.1} %", 100.0 * least / seconds)
            });
            println!(
                "{:<72} {:>9.2} {:>8.0} {:>8.2} {:>9}",
                format!("{} {}", op.name, case.name),
                seconds * 1e6,
                bytes as f64 / seconds / 1e9,
                flops as f64 / seconds / 1e12,
                roofline
            );
            gpu.free();
        }
    }
    Ok(())
}

/// Seconds of one instance: the median of rounds over all of them in turn. They are recorded as a graph, so that the
/// host's time for a launch does not show.
fn time(gpu: &Gpu, instances: &[Instance]) -> Result<f64> {
    let once = || instances.iter().flat_map(|i| &i.launches).try_for_each(|launch| launch.enqueue(&gpu.stream));
    // Before recording: a driver may load a kernel at its first launch.
    once()?;
    gpu.stream.synchronize()?;
    let mut graph = CapturedGraph::capture(&gpu.stream, once)?;
    let mut round = |times: usize| -> Result<f64> {
        gpu.stream.synchronize()?;
        let start = Instant::now();
        for _ in 0..times {
            graph.launch(&gpu.stream)?;
        }
        gpu.stream.synchronize()?;
        Ok(start.elapsed().as_secs_f64() / times as f64)
    };
    round(1)?;
    let times = (ROUND_SECONDS / round(2)?).ceil().clamp(1.0, 1000.0) as usize;
    let mut rounds = (0..ROUNDS).map(|_| round(times)).collect::<Result<Vec<f64>>>()?;
    rounds.sort_by(f64::total_cmp);
    Ok(rounds[ROUNDS / 2] / instances.len() as f64)
}

/// Prints the software GPU's counters of every wanted shape that is small enough.
fn show_counters(wanted: &dyn Fn(&Op, &str) -> bool) {
    println!("software GPU: counts of one run each; microseconds are a roofline model's, not measured");
    println!(
        "{:<72} {:>6} {:>11} {:>9} {:>7} {:>7} {:>7} {:>8} {:>8} {:>8}",
        "shape", "launch", "warp instr", "mma", "bytes/", "sect/", "passes/", "A100 us", "4090 us", "H100 us"
    );
    let mut left_out = 0;
    for op in list::OPS {
        for (index, case) in (op.shapes)().iter().enumerate() {
            if !wanted(op, &case.name) {
                continue;
            }
            match counted::shape(op, index) {
                Ok(None) => left_out += 1,
                Ok(Some((counts, work))) => {
                    let sum = |f: &dyn Fn(&counted::Counts) -> f64| counts.iter().map(f).sum::<f64>();
                    let ratio = |a: f64, b: f64| if b == 0.0 { 1.0 } else { a / b };
                    println!(
                        "{:<72} {:>6} {:>11} {:>9} {:>7.3} {:>7.3} {:>7.3} {:>8.2} {:>8.2} {:>8.2}",
                        format!("{} {}", op.name, case.name),
                        sum(&|c| c.launches as f64),
                        sum(&|c| c.warp_instructions as f64),
                        sum(&|c| c.mma as f64),
                        ratio(sum(&|c| c.unique_bytes as f64), work.bytes as f64),
                        ratio(sum(&|c| c.sectors as f64), sum(&|c| c.sectors_least as f64)),
                        ratio(sum(&|c| c.passes as f64), sum(&|c| c.passes_least as f64)),
                        sum(&|c| c.model_seconds[0] * 1e6),
                        sum(&|c| c.model_seconds[1] * 1e6),
                        sum(&|c| c.model_seconds[2] * 1e6),
                    );
                }
                Err(e) => println!("{} {}: {e}", op.name, case.name),
            }
        }
    }
    println!("bytes/: first touched over the least. sect/, passes/: sectors and shared-memory passes over the least.");
    if left_out > 0 {
        println!("{left_out} larger shapes take a GPU");
    }
}
