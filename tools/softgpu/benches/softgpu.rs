//! Speed of the executor: an arithmetic loop and the bf16 mma GEMM, with checks off and on; the cost of a launch, and of loading
//! a module. `cargo bench -p softgpu` prints one line a case; `--check` fails when a case misses its target.
//!
//! Times are processor time of this process, so that other programs on the computer do not show: on an idle computer the time
//! that passes is this, divided by the cores in use.
//!
//! Targets: 20 million warp instructions a second a core on the loop unchecked, 10 million checked; a 1024^3 GEMM under 10 s
//! checked on two cores.

use softgpu::gpu::{Gpu, Shape};
use softgpu::memory::Use;

/// Processor seconds this process has used on all its threads.
fn processor_seconds() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the value.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

const BASIC: &str = include_str!("../guest/basic.ptx");
const GEMM: &str = include_str!("../guest/gemm.ptx");

/// Warp instructions of a launch, and the processor seconds of an uncounted one.
fn timed(gpu: &mut Gpu, kernel: &softgpu::ir::Kernel, shape: Shape, params: &[&[u8]]) -> (u64, f64) {
    gpu.options.count = true;
    let issued = gpu.launch(kernel, shape, params).unwrap_or_else(|f| panic!("{f}")).issued();
    gpu.options.count = false;
    let mut best = f64::MAX;
    for _ in 0..3 {
        let start = processor_seconds();
        gpu.launch(kernel, shape, params).unwrap_or_else(|f| panic!("{f}"));
        best = best.min(processor_seconds() - start);
    }
    (issued, best)
}

fn main() {
    let strict = std::env::args().any(|a| a == "--check");
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut missed = 0;
    let mut say = |what: &str, value: f64, unit: &str, target: f64, good: bool| {
        println!("{what:<44} {value:>9.2} {unit:<36} target {target:>5} {}", if good { "ok" } else { "MISSED" });
        missed += i32::from(!good);
    };
    println!("{:?}, {cores} cores", softgpu::exec::lanes::isa());
    for (check, target) in [(false, 20.0), (true, 10.0)] {
        let mut gpu = Gpu::new(1 << 28).expect("address space and AVX2");
        (gpu.options.check, gpu.options.threads) = (check, 1);
        let m = gpu.load(BASIC).expect("the committed PTX loads");
        let out = gpu.memory.alloc(8 * 256 * 4, Use::Device).expect("room");
        let shape = Shape { grid: [8, 1, 1], block: [256, 1, 1], shared: 0 };
        let (n, s) =
            timed(&mut gpu, &m.kernels["arithmetic_loop"], shape, &[&out.to_le_bytes(), &4000u32.to_le_bytes()]);
        let rate = n as f64 / s / 1e6;
        let what = if check { "arithmetic loop, checks on" } else { "arithmetic loop, checks off" };
        say(what, rate, "M warp instructions / s / core", target, rate >= target);
    }
    for (check, target) in [(false, 10.0), (true, 10.0)] {
        let mut gpu = Gpu::new(1 << 28).expect("address space and AVX2");
        (gpu.options.check, gpu.options.threads) = (check, cores.min(2));
        let m = gpu.load(GEMM).expect("the committed PTX loads");
        let n = 1024u32;
        let operand: Vec<u8> = (0..n * n).flat_map(|i| ((i * 37 % 256) as u16 | 0x3c00).to_le_bytes()).collect();
        let (a, b) = (gpu.upload(&operand).expect("room"), gpu.upload(&operand).expect("room"));
        let y = gpu.memory.alloc(u64::from(n * n) * 4, Use::Device).expect("room");
        let size = n.to_le_bytes();
        let shape = Shape { grid: [8, 8, 1], block: [128, 1, 1], shared: 49152 };
        let p: [&[u8]; 6] = [&a.to_le_bytes(), &b.to_le_bytes(), &y.to_le_bytes(), &size, &size, &size];
        let (_, s) = timed(&mut gpu, &m.kernels["gemm_bf16"], shape, &p);
        let s = s / cores.min(2) as f64;
        let what = if check { "bf16 mma GEMM 1024^3, checks on" } else { "bf16 mma GEMM 1024^3, checks off" };
        say(what, s, "s on at most 2 cores", target, s < target);
    }
    for (blocks, target) in [(1, 10.0), (8, 40.0)] {
        let mut gpu = Gpu::new(1 << 28).expect("address space and AVX2");
        let m = gpu.load(BASIC).expect("the committed PTX loads");
        // As many allocations as a small model has.
        let buffers: Vec<u64> = (0..300).map(|_| gpu.upload(&[0; 4096]).expect("room")).collect();
        let p = buffers[0].to_le_bytes();
        // No elements: every thread leaves at once.
        let n = 0u32.to_le_bytes();
        let shape = Shape { grid: [blocks, 1, 1], block: [128, 1, 1], shared: 0 };
        let start = processor_seconds();
        for _ in 0..2000 {
            gpu.launch(&m.kernels["vector_add"], shape, &[&p, &p, &p, &n]).unwrap_or_else(|f| panic!("{f}"));
        }
        let us = (processor_seconds() - start) / 2000.0 * 1e6;
        say(&format!("empty launch of {blocks} blocks"), us, "us", target, us < target);
    }
    // Kernels of a GEMM until there are 300 KB of them.
    let at = GEMM.find(".visible .entry").expect("a kernel");
    let end = at + GEMM[at..].find("\n}").expect("its end") + 3;
    let copies = 300_000usize.div_ceil(end - at);
    let body: String = (0..copies).map(|n| GEMM[at..end].replace("gemm_bf16", &format!("gemm_{n}"))).collect();
    let text = format!("{}{body}{}", &GEMM[..at], &GEMM[end..]);
    let start = processor_seconds();
    let mut gpu = Gpu::new(1 << 28).expect("address space and AVX2");
    gpu.load(&text).unwrap_or_else(|e| panic!("{e}"));
    let ms = (processor_seconds() - start) * 1e3;
    say(&format!("loading {} KB of PTX", text.len() / 1000), ms, "ms", 100.0, ms < 100.0);
    if strict && missed > 0 {
        std::process::exit(1);
    }
}
