//! Every CUDA kernel at the shapes of real models: Idefics2-8b, LLaVA-8B and JoyCaption, Qwen2-VL-7B; prefill and decode.
//!
//! In: `engine bench kernels [FILTER]...` or `cargo bench --bench kernels [-- FILTER...]`; on a machine without a GPU
//! behind `tools/softgpu/run.sh`. Out: a table on stdout. On a GPU: microseconds (median), GB/s, TFLOP/s, percent of the
//! roofline, inputs rotated through more memory than the second cache has. On the software GPU: its counters, for the
//! shapes that it finishes in seconds. Then what the whole should reach, marked as predicted (`predict.rs`).
//! Not here: what the shapes are (tests/cuda_ops, which tests read too), whether results are right.

// The list is shared with tests, which use all of it.
#[allow(dead_code)]
#[path = "../../tests/cuda_ops/counted.rs"]
mod counted;
#[allow(dead_code)]
#[path = "../../tests/cuda_ops/list.rs"]
mod list;
mod predict;

use std::time::Instant;

use engine::backend::cuda::Cuda;
use engine::backend::cuda::driver::CapturedGraph;
use engine::cli::bench::KernelArgs;
use engine::cli::output::write;
use engine::{Device, Error, Result};
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

/// Prints the table. `again` are the arguments by which this program comes here, for runs of single shapes.
/// Errors: no usable GPU.
pub fn run(args: &KernelArgs, again: &[&str]) -> Result<()> {
    if let [op, index] = &args.count[..] {
        return counted::run_shape(op, index).map_err(Error::Internal);
    }
    let wanted = |op: &Op, name: &str| {
        args.filter.is_empty() || args.filter.iter().any(|f| op.name.contains(f.as_str()) || name.contains(f.as_str()))
    };
    let matches = |op: &Op| wanted(op, "") || (op.shapes)().iter().any(|case| wanted(op, &case.name));
    if !list::OPS.iter().any(matches) {
        let names: Vec<&str> = list::OPS.iter().map(|op| op.name).collect();
        return Err(Error::Request(format!(
            "no kernel or shape is named {}: expected a part of one of {}, or of a model's name",
            args.filter.join(" or "),
            names.join(", ")
        )));
    }
    let index = match args.device {
        Device::Auto => 0,
        Device::Cuda(index) => index,
        Device::Cpu => {
            return Err(Error::Request("--device cpu: expected auto, cuda or cuda:N; kernels run on a GPU".into()));
        }
    };
    let opened = Cuda::open(index).map_err(|e| match e {
        Error::Device(text) => {
            Error::Device(format!("{text}; tools/softgpu/run.sh in front of this command counts on the CPU"))
        }
        other => other,
    });
    let outcome = opened.and_then(|cuda| {
        let gpu = Gpu::new(cuda)?;
        if gpu.soft { show_counters(&wanted, again) } else { measure(&gpu, &wanted) }
    });
    if args.filter.is_empty() {
        write(&predict::text())?;
    }
    outcome
}

fn line(text: impl std::fmt::Display) -> Result<()> {
    write(&format!("{text}\n"))
}

/// Times every wanted shape.
fn measure(gpu: &Gpu, wanted: &dyn Fn(&Op, &str) -> bool) -> Result<()> {
    let device = gpu.cuda.device();
    let part = PARTS.iter().find(|(name, ..)| device.name().contains(name));
    line(device.name())?;
    if part.is_none() {
        line("this GPU's figures are not in bench/kernels/mod.rs: no percent of the roofline")?;
    }
    line(format_args!("{:<72} {:>9} {:>8} {:>8} {:>9}", "shape", "us", "GB/s", "TFLOP/s", "roofline"))?;
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
            line(format_args!(
                "{:<72} {:>9.2} {:>8.0} {:>8.2} {:>9}",
                format!("{} {}", op.name, case.name),
                seconds * 1e6,
                bytes as f64 / seconds / 1e9,
                flops as f64 / seconds / 1e12,
                roofline
            ))?;
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
fn show_counters(wanted: &dyn Fn(&Op, &str) -> bool, again: &[&str]) -> Result<()> {
    line(format_args!("software GPU: counts of one run each; microseconds are a roofline model's, not measured"))?;
    line(format_args!(
        "{:<72} {:>6} {:>11} {:>9} {:>7} {:>7} {:>7} {:>8} {:>8} {:>8}",
        "shape", "launch", "warp instr", "mma", "bytes/", "sect/", "passes/", "A100 us", "4090 us", "H100 us"
    ))?;
    let (mut left_out, mut failed) = (0, Vec::new());
    for op in list::OPS {
        for (index, case) in (op.shapes)().iter().enumerate() {
            if !wanted(op, &case.name) {
                continue;
            }
            match counted::shape(op, index, again) {
                Ok(None) => left_out += 1,
                Ok(Some((counts, work))) => {
                    let sum = |f: &dyn Fn(&counted::Counts) -> f64| counts.iter().map(f).sum::<f64>();
                    let ratio = |a: f64, b: f64| if b == 0.0 { 1.0 } else { a / b };
                    line(format_args!(
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
                    ))?;
                }
                Err(e) => failed.push(format!("{} {}: {e}", op.name, case.name)),
            }
        }
    }
    line(format_args!(
        "bytes/: first touched over the least. sect/, passes/: sectors and shared-memory passes over the least."
    ))?;
    if left_out > 0 {
        line(format_args!("{left_out} larger shapes take a GPU"))?;
    }
    if failed.is_empty() { Ok(()) } else { Err(Error::Internal(failed.join("; "))) }
}
