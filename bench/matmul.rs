//! How fast the CPU backend multiplies: f32 FMA peak of this machine, then linear layers and attention against it.
//!
//! In: `cargo bench --bench matmul [-- FILTER]`. Out: a table on stdout; times are the best of several, because
//! other programs may run. Owns: the measured peak. Not here: layers of one row, bound by memory (`bandwidth.rs`).

use std::hint::black_box;
use std::time::Instant;

use engine::backend::cpu::activations::activation;
use engine::backend::cpu::attention::attention;
use engine::backend::cpu::isa::Isa;
use engine::backend::cpu::matmul::{gated_linear, linear};
use engine::backend::cpu::{Matrix, WeightData};
use engine::graph::{Activation, Heads};
use half::{bf16, f16};
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

/// FMAs on registers only, every thread at once: operations a second of wall time, and of processor time.
fn peak(isa: Isa) -> (f64, f64) {
    const STEPS: usize = 4_000_000;
    let threads = rayon::current_num_threads();
    let lanes = match isa {
        Isa::Avx512 => 16,
        Isa::Avx2 => 8,
        Isa::Scalar => return (f64::NAN, f64::NAN),
    };
    let t = best(5, || {
        (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `isa` is one that the CPU has.
            unsafe {
                if isa == Isa::Avx512 { fma_512(STEPS) } else { fma_256(STEPS) }
            }
        });
    });
    let flops = (threads * STEPS * CHAINS * lanes * 2) as f64;
    (flops / t.0, flops / t.1)
}

/// Independent chains: latency 4 times 2 units, and half again.
const CHAINS: usize = 12;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn fma_512(steps: usize) {
    use std::arch::x86_64::*;
    let (a, b) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
    let mut v = std::array::from_fn::<_, CHAINS, _>(|_| _mm512_set1_ps(black_box(1.0)));
    for _ in 0..steps {
        for x in &mut v {
            *x = _mm512_fmadd_ps(*x, a, b);
        }
    }
    black_box(v.map(|x| _mm512_reduce_add_ps(x)));
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fma_256(steps: usize) {
    use std::arch::x86_64::*;
    let (a, b) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
    let mut v = std::array::from_fn::<_, CHAINS, _>(|_| _mm256_set1_ps(black_box(1.0)));
    for _ in 0..steps {
        for x in &mut v {
            *x = _mm256_fmadd_ps(*x, a, b);
        }
    }
    black_box(v.map(|x| _mm256_cvtss_f32(x)));
}

fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i.wrapping_mul(2_654_435_761) >> 7) & 0xffff) as f32 / 65536.0 - 0.5).collect()
}

fn main() {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    let isas: Vec<Isa> = Isa::available().into_iter().filter(|i| *i != Isa::Scalar).collect();
    let wanted = |name: &str| name.contains(&filter);
    println!("threads {}", rayon::current_num_threads());
    for isa in isas.iter().rev() {
        Isa::force(*isa);
        let p = peak(*isa);
        println!(
            "\n{}: f32 FMA peak {:.0} GFLOP/s by wall time, {:.0} by processor time",
            isa.name(),
            p.0 / 1e9,
            p.1 / 1e9
        );
        println!("| what | shape | wall ms | GFLOP/s | of peak | GFLOP/s by processor time | of peak |");
        println!("|---|---|---|---|---|---|---|");
        for (m, n, k) in
            [(1024, 4096, 4096), (1024, 1152, 4304), (729, 4304, 1152), (256, 4096, 14336), (37, 4096, 4096)]
        {
            linears(*isa, m, n, k, &wanted);
        }
        fused(*isa, &wanted);
        towers(*isa, &wanted);
    }
}

/// One line: the peak is measured beside the run, for it moves with what else the machine does.
fn line(isa: Isa, what: &str, shape: &str, flops: f64, runs: usize, f: impl FnMut()) {
    let before = peak(isa);
    let t = best(runs, f);
    let after = peak(isa);
    let peak = (before.0.max(after.0), before.1.max(after.1));
    let (wall, cpu) = (flops / t.0, flops / t.1);
    println!(
        "| {what} | {shape} | {:.2} | {:.1} | {:.0} % | {:.1} | {:.0} % |",
        t.0 * 1e3,
        wall / 1e9,
        100.0 * wall / peak.0,
        cpu / 1e9,
        100.0 * cpu / peak.1
    );
}

fn linears(isa: Isa, m: usize, n: usize, k: usize, wanted: &impl Fn(&str) -> bool) {
    let shape = format!("[{m},{k}]x[{n},{k}]");
    let x = numbers(m * k);
    let w = numbers(n * k);
    let half: Vec<f16> = w.iter().map(|v| f16::from_f32(*v)).collect();
    let brain: Vec<bf16> = w.iter().map(|v| bf16::from_f32(*v)).collect();
    let mut y = vec![0.0; m * n];
    let flops = 2.0 * m as f64 * n as f64 * k as f64;
    for (name, data) in [
        ("linear f32", WeightData::F32(&w)),
        ("linear bf16", WeightData::Bf16(&brain)),
        ("linear f16", WeightData::F16(&half)),
    ] {
        if wanted(name) {
            let w = Matrix { n, k, data };
            line(isa, name, &shape, flops, 5, || linear(&mut y, &x, m, &w, None).expect("shapes fit"));
        }
    }
}

fn fused(isa: Isa, wanted: &impl Fn(&str) -> bool) {
    if wanted("gated bf16") {
        let (m, n, k) = (512, 8192, 2048);
        let x = numbers(m * k);
        let w: Vec<bf16> = numbers(n * k).iter().map(|v| bf16::from_f32(*v)).collect();
        let w = Matrix { n, k, data: WeightData::Bf16(&w) };
        let mut y = vec![0.0; m * n];
        let flops = 4.0 * m as f64 * n as f64 * k as f64;
        line(isa, "gated bf16 silu", &format!("[{m},{k}]x2x[{n},{k}]"), flops, 3, || {
            gated_linear(&mut y, &x, m, &w, &w, Activation::Silu).expect("shapes fit");
        });
    }
    for kind in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf, Activation::QuickGelu] {
        let name = format!("activation {kind:?}");
        if wanted(&name) {
            let source = numbers(4900 * 4304 / 4);
            let mut x = source.clone();
            let t = best(3, || {
                x.copy_from_slice(&source);
                activation(&mut x, kind);
            });
            let ns = t.1 * 1e9 * rayon::current_num_threads() as f64 / x.len() as f64;
            println!("| {name} | 4900x4304 / 4 | {:.2} | | | {ns:.2} ns an element | |", t.0 * 1e3);
        }
    }
}

fn towers(isa: Isa, wanted: &impl Fn(&str) -> bool) {
    for (segments, queries, keys, heads, kv_heads, dim) in
        [(1, 3200, 3200, 4, 4, 72), (2, 1024, 1024, 16, 16, 64), (1, 1024, 1024, 32, 8, 128), (5, 64, 3200, 16, 4, 96)]
    {
        if !wanted("attention") {
            continue;
        }
        let h = Heads { num_heads: heads, num_kv_heads: kv_heads, head_dim: dim, scale: 0.1 };
        let q = numbers(segments * queries * heads * dim);
        let k = numbers(segments * keys * kv_heads * dim);
        let cu = |n: usize| (0..=segments).map(|s| (s * n) as i32).collect::<Vec<_>>();
        let mut y = vec![0.0; q.len()];
        let flops = 4.0 * (segments * queries * keys * heads * dim) as f64;
        let shape = format!("{segments} x ({queries} x {keys}), {heads}/{kv_heads} heads of {dim}");
        line(isa, "attention", &shape, flops, 3, || {
            attention(&mut y, &q, &k, &k, &cu(queries), &cu(keys), &h).expect("shapes fit");
        });
    }
}
