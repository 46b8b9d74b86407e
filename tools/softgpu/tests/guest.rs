//! Guest kernels through the Rust API against references in f64.

use half::bf16;
use softgpu::gpu::{Gpu, Shape};

const BASIC: &str = include_str!("../guest/basic.ptx");
const GEMM: &str = include_str!("../guest/gemm.ptx");

fn bytes<T: Copy>(v: &[T]) -> Vec<u8> {
    // SAFETY: plain numbers have no padding.
    unsafe { std::slice::from_raw_parts(v.as_ptr().cast(), size_of_val(v)) }.to_vec()
}

fn floats(b: &[u8]) -> Vec<f32> {
    b.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect()
}

/// Numbers in [-1, 1), the same on every run.
fn noise(n: usize, mut seed: u64) -> Vec<f32> {
    (0..n)
        .map(|_| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((seed >> 40) as f32 / (1u64 << 23) as f32) - 1.0
        })
        .collect()
}

fn shape(grid: [u32; 3], block: u32, shared: u32) -> Shape {
    Shape { grid, block: [block, 1, 1], shared }
}

#[test]
fn vector_add() {
    let mut gpu = Gpu::new(1 << 26).unwrap();
    let m = gpu.load(BASIC).unwrap();
    let (a, b) = (noise(1000, 1), noise(1000, 2));
    let (pa, pb) = (gpu.upload(&bytes(&a)).unwrap(), gpu.upload(&bytes(&b)).unwrap());
    let pc = gpu.memory.alloc(4000, softgpu::memory::Use::Device).unwrap();
    let n = 1000u32;
    let p: [&[u8]; 4] = [&pa.to_le_bytes(), &pb.to_le_bytes(), &pc.to_le_bytes(), &n.to_le_bytes()];
    gpu.launch(&m.kernels["vector_add"], shape([4, 1, 1], 256, 0), &p).unwrap();
    let c = floats(&gpu.download(pc, 4000));
    for i in 0..1000 {
        assert_eq!(c[i], a[i] + b[i]);
    }
}

#[test]
fn gemm_matches_f64() {
    let (m, n, k) = (256usize, 128, 96);
    let mut gpu = Gpu::new(1 << 26).unwrap();
    let module = gpu.load(GEMM).unwrap();
    let a: Vec<bf16> = noise(m * k, 3).into_iter().map(bf16::from_f32).collect();
    let b: Vec<bf16> = noise(n * k, 4).into_iter().map(bf16::from_f32).collect();
    let (pa, pb) = (gpu.upload(&bytes(&a)).unwrap(), gpu.upload(&bytes(&b)).unwrap());
    let py = gpu.memory.alloc((m * n * 4) as u64, softgpu::memory::Use::Device).unwrap();
    let p: [&[u8]; 6] = [
        &pa.to_le_bytes(),
        &pb.to_le_bytes(),
        &py.to_le_bytes(),
        &(m as u32).to_le_bytes(),
        &(n as u32).to_le_bytes(),
        &(k as u32).to_le_bytes(),
    ];
    let grid = [(n / 128) as u32, (m / 128) as u32, 1];
    let t = std::time::Instant::now();
    if let Err(f) = gpu.launch(&module.kernels["gemm_bf16"], shape(grid, 128, 49152), &p) {
        panic!("{f}");
    }
    eprintln!("gemm {:?}", t.elapsed());
    let y = floats(&gpu.download(py, m * n * 4));
    for r in 0..m {
        for c in 0..n {
            let want: f64 = (0..k).map(|i| a[r * k + i].to_f64() * b[c * k + i].to_f64()).sum();
            assert!((f64::from(y[r * n + c]) - want).abs() < 1e-4, "row {r} column {c}: {} and {want}", y[r * n + c]);
        }
    }
}
