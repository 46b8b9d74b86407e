//! Gated linear layers. Oracle: engine/backend/cpu/matmul.

use engine::Result;
use engine::backend::cpu::matmul;
use engine::backend::cpu::matrix::{Matrix, WeightData};
use engine::backend::cuda::ops::linear::{GatedLinear, Work as SplitMemory};
use engine::backend::cuda::pack;
use engine::graph::Activation;
use engine::tensor::DType;

use super::harness::{Case, FLOATS, Gpu, Instance, Numbers, Op, Work};
use super::linear::{limits, split_memory, weights};

pub const OP: Op = Op { name: "gated_linear", cases, shapes };

/// Rows of the batch, rows of the bucket, features, columns of x.
type Sizes = (usize, usize, usize, usize);

fn case(name: &str, dtype: DType, activation: Activation, sizes: Sizes) -> Case {
    let (live, rows, n, k) = sizes;
    let name = format!("{} {name}{activation:?} {live} of [{rows}, {k}] x 2 [{n}, {k}]", dtype.name());
    Case::new(name, move |gpu| build(gpu, dtype, activation, sizes)).sized(work(dtype, sizes))
}

fn work(dtype: DType, (live, _, n, k): Sizes) -> Work {
    Work { bytes: ((live * k + 2 * n * k + live * n) * dtype.size()) as u64, flops: 4 * (live * n * k) as u64 }
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in FLOATS {
        let sizes = [
            (1, 1, 1, 1),
            (1, 1, 100, 36),
            (3, 8, 68, 48),
            (16, 16, 33, 1100),
            (20, 24, 31, 600),
            (0, 4, 10, 8),
            (40, 64, 100, 65),
            (70, 128, 33, 1100),
        ];
        for sizes in sizes {
            all.push(case("", dtype, Activation::Silu, sizes));
        }
        all.push(case("", dtype, Activation::GeluTanh, (5, 5, 50, 40)));
        all.push(case("", dtype, Activation::GeluErf, (33, 33, 50, 40)));
    }
    all
}

fn shapes() -> Vec<Case> {
    let mut all = Vec::new();
    for (model, n, k) in
        [("Llama-3.1-8B, Mistral-7B ", 14336, 4096), ("Qwen2-VL-7B ", 18944, 3584), ("SmolVLM-256M ", 1536, 576)]
    {
        for rows in [1, 4, 16, 64, 1024] {
            all.push(case(model, DType::Bf16, Activation::Silu, (rows, rows, n, k)));
        }
    }
    all
}

fn build(gpu: &Gpu, dtype: DType, activation: Activation, (live, rows, n, k): Sizes) -> Result<Instance> {
    let mut numbers = Numbers::new((rows * 31 + n * 7 + k) as u64);
    let x = numbers.normals(dtype, live * k, 1.0);
    let (gate, gate_tensor) = weights(&mut numbers, dtype, n, k);
    let (up, up_tensor) = weights(&mut numbers, dtype, n, k);
    let dx = gpu.in_place(dtype, &x, rows, k)?;
    let dw = gpu.bytes(&pack::pack_gated_matrix("w", &gate_tensor, &up_tensor, dtype)?)?;
    let dy = gpu.output(dtype, rows, live, n)?;
    let count = gpu.count(live)?;
    let memory = split_memory(gpu, rows, 2 * n, k)?;
    let op = GatedLinear {
        dtype,
        x: dx.slice(),
        x_stride: dx.ld(),
        weight: dw.all(),
        activation,
        y: dy.slice(),
        y_stride: dy.ld(),
        rows,
        n,
        k,
        num_rows: Some(count.all()),
        work: memory.as_ref().map(|(partial, arrived)| SplitMemory { partial: partial.all(), arrived: arrived.all() }),
    };
    Ok(Instance::new(vec![op.prepare(&gpu.cuda)?], work(dtype, (live, rows, n, k))).expect(
        &dy,
        limits(dtype, live * n),
        move || {
            let matrix = |values| Matrix { n, k, data: WeightData::F32(values) };
            let mut y = vec![0.0; live * n];
            if live > 0 {
                matmul::gated_linear(&mut y, &x, live, &matrix(&gate), &matrix(&up), activation)?;
            }
            Ok(y)
        },
    ))
}

#[test]
fn gated_linear() {
    super::harness::check(&OP);
}
