//! Linear layers of few rows against this machine's memory: they should read weights as fast as memory gives them.
//!
//! In: `cargo bench --bench bandwidth`. Out: a table on stdout; best of several. Owns: the measured bandwidth (a
//! sum over the same buffer, all threads). Not here: many rows (`matmul.rs`).

use std::time::Instant;

use engine::backend::cpu::matmul::{gated_linear, linear};
use engine::backend::cpu::{Matrix, WeightData};
use engine::graph::Activation;
use half::bf16;
use rayon::prelude::*;

/// Least wall time and least processor time a thread of `n` runs, in seconds. The second hardly depends on other
/// programs that share the cores.
fn best(n: usize, mut f: impl FnMut()) -> (f64, f64) {
    f();
    let mut least = (f64::INFINITY, f64::INFINITY);
    for _ in 0..n {
        let (t, c) = (Instant::now(), processor_seconds());
        f();
        let cpu = (processor_seconds() - c) / rayon::current_num_threads() as f64;
        least = (least.0.min(t.elapsed().as_secs_f64()), least.1.min(cpu));
    }
    least
}

/// Processor time of all threads of this process.
fn processor_seconds() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

/// Sum of all words, each thread a contiguous part: bytes a second of wall time, and of processor time.
fn read_bandwidth(words: &[u64]) -> (f64, f64) {
    let part = words.len().div_ceil(rayon::current_num_threads());
    let t = best(5, || {
        let sum: u64 = words.par_chunks(part).map(|p| p.iter().fold(0u64, |a, w| a.wrapping_add(*w))).sum();
        std::hint::black_box(sum);
    });
    (size_of_val(words) as f64 / t.0, size_of_val(words) as f64 / t.1)
}

fn main() {
    let (n, k, layers) = (14336, 4096, 10);
    // Anonymous memory, as large as ten such matrices in bf16 (1.17 GB).
    let elements = n * k * layers;
    let mut words = vec![0u64; elements / 4];
    words.par_iter_mut().enumerate().for_each(|(i, w)| {
        let b = (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        // bf16 values of magnitude 0.0078 to 1, signs mixed.
        *w = (b & 0x83ff_83ff_83ff_83ff) | 0x3c00_3c00_3c00_3c00;
    });
    let data: &[bf16] = bytemuck::cast_slice(&words);
    println!("threads {}; {:.2} GB of weights", rayon::current_num_threads(), size_of_val(data) as f64 / 1e9);
    println!("| rows | what | wall ms | GB/s | of read bandwidth | GB/s by processor time | of read bandwidth |");
    println!("|---|---|---|---|---|---|---|");
    for m in [1, 2, 3, 4, 6, 8, 12, 16] {
        let x: Vec<f32> = (0..m * k).map(|i| (i % 17) as f32 / 17.0 - 0.5).collect();
        let mut y = vec![0.0; m * n];
        let matrix = |i: usize| Matrix { n, k, data: WeightData::Bf16(&data[i * n * k..(i + 1) * n * k]) };
        let show = |what: &str, f: &mut dyn FnMut()| {
            let before = read_bandwidth(&words);
            let t = best(4, f);
            let after = read_bandwidth(&words);
            let read = (before.0.max(after.0), before.1.max(after.1));
            let (wall, cpu) = (size_of_val(data) as f64 / t.0, size_of_val(data) as f64 / t.1);
            println!(
                "| {m} | {what} | {:.1} | {:.2} | {:.0} % | {:.2} | {:.0} % |",
                t.0 * 1e3,
                wall / 1e9,
                100.0 * wall / read.0,
                cpu / 1e9,
                100.0 * cpu / read.1
            );
        };
        show("linear bf16 [14336,4096]", &mut || {
            for i in 0..layers {
                linear(&mut y, &x, m, &matrix(i), None).expect("shapes fit");
            }
        });
        if m == 1 {
            show("gated bf16 [14336,4096]", &mut || {
                for i in 0..layers / 2 {
                    gated_linear(&mut y, &x, m, &matrix(2 * i), &matrix(2 * i + 1), Activation::Silu).expect("fit");
                }
            });
        }
    }
}
