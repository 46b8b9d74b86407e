//! A plain CUDA program with cudarc; nothing in it knows softgpu. Runs on a GPU as it is, or under tools/softgpu/run.sh.
//! Vector add, rmsnorm, a tiled mma GEMM with cp.async and ldmatrix, a softmax with shuffles, a histogram with atomics, a
//! graph-captured chain; each against an f64 reference. Argument: the guest directory. `gemm SIZE` runs only that GEMM.

use cudarc::driver::{CudaContext, CudaModule, CudaStream, LaunchConfig, PushKernelArg, sys};
use cudarc::nvrtc::Ptx;
use half::bf16;
use std::sync::Arc;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Numbers in [-1, 1), the same on every run.
fn noise(n: usize, mut seed: u64) -> Vec<f32> {
    let mut next = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((seed >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn rounded(n: usize, seed: u64) -> Vec<bf16> {
    noise(n, seed).into_iter().map(bf16::from_f32).collect()
}

fn config(grid: (u32, u32), block: u32, shared: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (grid.0, grid.1, 1), block_dim: (block, 1, 1), shared_mem_bytes: shared }
}

fn close(what: &str, got: &[f32], want: impl Fn(usize) -> f64, tolerance: f64) -> Result<()> {
    for (i, g) in got.iter().enumerate() {
        let w = want(i);
        if !((f64::from(*g) - w).abs() <= tolerance * (1.0 + w.abs())) {
            return Err(format!("{what}: element {i} is {g}, expected {w}").into());
        }
    }
    println!("ok {what}");
    Ok(())
}

fn gemm(stream: &Arc<CudaStream>, module: &Arc<CudaModule>, m: usize, n: usize, k: usize) -> Result<()> {
    let f = module.load_function("gemm_bf16")?;
    f.set_attribute(sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 49152)?;
    let (a, b) = (rounded(m * k, 3), rounded(n * k, 4));
    let (da, db) = (stream.clone_htod(&a)?, stream.clone_htod(&b)?);
    let mut y = unsafe { stream.alloc::<f32>(m * n)? };
    let (mi, ni, ki) = (m as i32, n as i32, k as i32);
    let start = std::time::Instant::now();
    let mut l = stream.launch_builder(&f);
    l.arg(&da).arg(&db).arg(&mut y).arg(&mi).arg(&ni).arg(&ki);
    unsafe { l.launch(config(((n / 128) as u32, (m / 128) as u32), 128, 49152))? };
    let got = stream.clone_dtoh(&y)?;
    println!("gemm {m}x{n}x{k}: {:.2} s", start.elapsed().as_secs_f64());
    // A sample of the elements; each is a whole dot product.
    let picks: Vec<usize> = (0..2000).map(|i| i * 7919 % (m * n)).collect();
    let sample: Vec<f32> = picks.iter().map(|i| got[*i]).collect();
    close(
        "gemm",
        &sample,
        |s| {
            let (r, c) = (picks[s] / n, picks[s] % n);
            (0..k).map(|i| a[r * k + i].to_f64() * b[c * k + i].to_f64()).sum()
        },
        1e-4,
    )
}

fn run(guest: &str, only_gemm: Option<usize>) -> Result<()> {
    let ctx = CudaContext::new(0)?;
    println!("device: {}, sm_{:?}", ctx.name()?, ctx.compute_capability()?);
    let stream = ctx.new_stream()?;
    let tiles = ctx.load_module(Ptx::from_file(format!("{guest}/gemm.ptx")))?;
    if let Some(size) = only_gemm {
        return gemm(&stream, &tiles, size, size, size);
    }
    let module = ctx.load_module(Ptx::from_file(format!("{guest}/basic.ptx")))?;

    let n = 1000usize;
    let (a, b) = (noise(n, 1), noise(n, 2));
    let (da, db) = (stream.clone_htod(&a)?, stream.clone_htod(&b)?);
    let mut c = unsafe { stream.alloc::<f32>(n)? };
    let f = module.load_function("vector_add")?;
    let ni = n as i32;
    let mut l = stream.launch_builder(&f);
    l.arg(&da).arg(&db).arg(&mut c).arg(&ni);
    unsafe { l.launch(config((4, 1), 256, 0))? };
    close("vector_add", &stream.clone_dtoh(&c)?, |i| f64::from(a[i]) + f64::from(b[i]), 1e-7)?;

    let (rows, hidden) = (5usize, 1032usize);
    let (x, w) = (rounded(rows * hidden, 5), rounded(hidden, 6));
    let (dx, dw) = (stream.clone_htod(&x)?, stream.clone_htod(&w)?);
    let mut y = unsafe { stream.alloc::<bf16>(rows * hidden)? };
    let f = module.load_function("rmsnorm")?;
    let (hi, eps) = (hidden as i32, 1e-5f32);
    let mut l = stream.launch_builder(&f);
    l.arg(&dx).arg(&dw).arg(&mut y).arg(&hi).arg(&eps);
    unsafe { l.launch(config((rows as u32, 1), 256, 0))? };
    let got: Vec<f32> = stream.clone_dtoh(&y)?.iter().map(|v| v.to_f32()).collect();
    let scale: Vec<f64> = (0..rows)
        .map(|r| {
            let s: f64 = x[r * hidden..(r + 1) * hidden].iter().map(|v| v.to_f64().powi(2)).sum();
            1.0 / (s / hidden as f64 + f64::from(eps)).sqrt()
        })
        .collect();
    close("rmsnorm", &got, |i| x[i].to_f64() * scale[i / hidden] * w[i % hidden].to_f64(), 4e-3)?;

    gemm(&stream, &tiles, 256, 128, 160)?;

    let (rows, cols) = (9usize, 77usize);
    let x: Vec<f32> = noise(rows * cols, 7).iter().map(|v| v * 5.0).collect();
    let dx = stream.clone_htod(&x)?;
    let mut y = unsafe { stream.alloc::<f32>(rows * cols)? };
    let f = module.load_function("softmax_rows")?;
    let (ri, ci) = (rows as i32, cols as i32);
    let mut l = stream.launch_builder(&f);
    l.arg(&dx).arg(&mut y).arg(&ri).arg(&ci);
    unsafe { l.launch(config((3, 1), 128, 0))? };
    let sums: Vec<f64> = x.chunks(cols).map(|r| r.iter().map(|v| f64::from(*v).exp()).sum()).collect();
    close("softmax", &stream.clone_dtoh(&y)?, |i| f64::from(x[i]).exp() / sums[i / cols], 1e-5)?;

    let x: Vec<u8> = noise(5000, 8).iter().map(|v| ((v + 1.0) * 127.9) as u8).collect();
    let dx = stream.clone_htod(&x)?;
    let mut bins = stream.alloc_zeros::<u32>(256)?;
    let f = module.load_function("histogram")?;
    let ni = x.len() as i32;
    let mut l = stream.launch_builder(&f);
    l.arg(&dx).arg(&mut bins).arg(&ni);
    unsafe { l.launch(config((4, 1), 256, 0))? };
    let got: Vec<f32> = stream.clone_dtoh(&bins)?.iter().map(|v| *v as f32).collect();
    close("histogram", &got, |i| x.iter().filter(|v| **v as usize == i).count() as f64, 0.0)?;

    // A chain of three kernels, captured once, launched four times.
    let x = noise(n, 9);
    let mut d = stream.clone_htod(&x)?;
    let f = module.load_function("scale_shift")?;
    let (ni, shift) = (n as i32, 0.25f32);
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    for scale in [0.5f32, 2.0, -1.0] {
        let mut l = stream.launch_builder(&f);
        l.arg(&mut d).arg(&scale).arg(&shift).arg(&ni);
        unsafe { l.launch(config((4, 1), 256, 0))? };
    }
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags)?.ok_or("nothing was captured")?;
    for _ in 0..4 {
        graph.launch()?;
    }
    let once = |v: f64| -((v * 0.5 + 0.25) * 2.0 + 0.25) + 0.25;
    close("graph", &stream.clone_dtoh(&d)?, |i| once(once(once(once(f64::from(x[i]))))), 1e-6)?;
    println!("all right");
    Ok(())
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let guest = args.first().map_or("tools/softgpu/guest", String::as_str);
    let size = args.get(2).and_then(|s| s.parse().ok());
    if let Err(e) = run(guest, size) {
        eprintln!("{e}");
        std::process::exit(1);
    }
}
