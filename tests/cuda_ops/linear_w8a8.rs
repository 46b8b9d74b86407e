//! Linear layers with int8 weights and int8 activations: the quantising of rows, then the product. Oracle: the same
//! roundings on the host and exact sums of integers.

use engine::Result;
use engine::backend::cuda::ops::linear::{Linear, Quantized, Storage, Work as SplitMemory, work_bytes_of};
use engine::backend::cuda::ops::quantize_rows::QuantizeRows;
use engine::backend::cuda::pack_quantized as pack;
use engine::tensor::DType;

use super::compare::Limits;
use super::harness::{Case, FLOATS, Gpu, Instance, Numbers, Op, Work};
use super::linear::COUNTED;

pub const OP: Op = Op { name: "linear_w8a8", cases, shapes };

/// Rows of the batch, rows of the bucket, features, columns.
type Sizes = (usize, usize, usize, usize);

fn case(model: &str, dtype: DType, sizes: Sizes) -> Case {
    let (live, rows, n, k) = sizes;
    let name = format!("{} {model}{live} of [{rows}, {k}] x [{n}, {k}]", dtype.name());
    Case::new(name, move |gpu| build(gpu, dtype, sizes))
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in FLOATS {
        // Every tile, odd sizes, one group of 64 columns, k split, dead rows.
        for sizes in [
            (1, 1, 1, 1),
            (5, 8, 130, 36),
            (20, 24, 65, 1100),
            (33, 64, 129, 64),
            (70, 70, 100, 200),
            (0, 4, 8, 8),
            (767, 767, 1700, 72),
            (1270, 1270, 2490, 40),
        ] {
            all.push(case("", dtype, sizes));
        }
    }
    all
}

fn shapes() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in FLOATS {
        for (what, rows, n, k) in COUNTED {
            all.push(case(&format!("{what} "), dtype, (rows, rows, n, k)));
        }
    }
    for (model, n, k) in [("Llama-3.1-8B o_proj ", 4096, 4096), ("Llama-3.1-8B down_proj ", 4096, 14336)] {
        for rows in [64, 1024] {
            all.push(case(&format!("{model}M={rows} "), DType::Bf16, (rows, rows, n, k)));
        }
    }
    all
}

fn build(gpu: &Gpu, dtype: DType, (live, rows, n, k): Sizes) -> Result<Instance> {
    let mut numbers = Numbers::new((rows * 31 + n * 7 + k) as u64);
    let x = numbers.normals(dtype, live * k, 1.0);
    let w: Vec<i8> = (0..n * k).map(|_| numbers.next_u32() as i8).collect();
    let scales: Vec<f32> = (0..n).map(|_| (0.5 + numbers.below(1000) as f32 / 1000.0) / 74.0).collect();
    let bias = numbers.normals(DType::F32, n, 1.0);

    let stride = QuantizeRows::stride(k);
    let dx = gpu.in_place(dtype, &x, rows, k)?;
    let (dq, dxs) = (gpu.memory(rows * stride)?, gpu.memory(rows * 4)?);
    let (dw, dws) = (gpu.bytes(&pack::pack_int8(&w, n, k)?)?, gpu.vector(&pack::pack_row_scales(&scales))?);
    let db = gpu.vector(&bias)?;
    let dy = gpu.output_with_stride(DType::F32, rows, live, n, n)?;
    let count = gpu.count(live)?;
    let need = work_bytes_of(Storage::Int8Both, rows, n, k, gpu.cuda.device().multiprocessors() as usize);
    let memory = (gpu.memory(need.partial_bytes.max(4))?, gpu.bytes(&vec![0; need.arrived_bytes.max(4)])?);
    let quantize = QuantizeRows {
        dtype,
        x: dx.slice(),
        x_stride: dx.ld(),
        q: dq.all(),
        scales: dxs.all(),
        rows,
        k,
        num_rows: Some(count.all()),
    };
    let linear = Linear {
        dtype,
        x: dq.all(),
        x_stride: stride,
        weight: dw.all(),
        bias: Some(db.all()),
        activation: None,
        residual: None,
        y: dy.slice(),
        y_stride: dy.ld(),
        output: DType::F32,
        rows,
        n,
        k,
        num_rows: Some(count.all()),
        work: Some(SplitMemory { partial: memory.0.all(), arrived: memory.1.all() }),
    };
    let quantized = Quantized::Int8Both { scales: dws.all(), x_scales: dxs.all() };
    let launches = vec![quantize.prepare(&gpu.cuda)?, linear.prepare_quantized(&gpu.cuda, &quantized)?];
    let moved = live * k * (dtype.size() + 2) + n * k + live * n * 4;
    let work = Work { bytes: moved.max(1) as u64, flops: 2 * (live * n * k) as u64 };
    // The integers are the same and their sums exact; what is left are a few roundings of f32.
    let limits = Limits { frobenius: 1e-6, relative: 1e-6, of_rms: 1e-6, absolute: 1e-7 };
    Ok(Instance::new(launches, work).expect(&dy, limits, move || {
        let mut y = Vec::with_capacity(live * n);
        for row in x.chunks_exact(k) {
            let largest = row.iter().fold(0f32, |m, v| m.max(v.abs()));
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let q: Vec<i32> = row.iter().map(|v| (v * inverse).round_ties_even() as i32).collect();
            for (feature, w) in w.chunks_exact(k).enumerate() {
                let sum: i32 = q.iter().zip(w).map(|(q, w)| q * i32::from(*w)).sum();
                y.push(sum as f32 * scales[feature] * (largest / 127.0) + bias[feature]);
            }
        }
        Ok(y)
    }))
}

#[test]
fn linear_w8a8() {
    super::harness::check(&OP);
}
