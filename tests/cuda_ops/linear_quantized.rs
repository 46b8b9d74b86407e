//! Linear layers with weights of int8 and int4. Oracle: engine/backend/cpu/matmul on dequantised weights.

use engine::Result;
use engine::backend::cpu::matmul;
use engine::backend::cpu::matrix::{Matrix, WeightData};
use engine::backend::cuda::ops::linear::{GatedLinear, Linear, Quantized, Storage, Work as SplitMemory, work_bytes_of};
use engine::backend::cuda::pack_quantized as pack;
use engine::graph::Activation;
use engine::tensor::DType;
use half::f16;

use super::harness::{Case, FLOATS, Gpu, Instance, Numbers, Op, Work};
use super::linear::{COUNTED, limits};

pub const OP: Op = Op { name: "linear_quantized", cases, shapes };

/// How the weights of a case are stored.
#[derive(Clone, Copy)]
enum Kind {
    Int8,
    /// Columns of a scale; whether zero points differ from 8.
    Int4(usize, bool),
}

#[derive(Clone, Copy)]
struct Layer {
    dtype: DType,
    kind: Kind,
    /// Of the batch and of the bucket.
    live: usize,
    rows: usize,
    n: usize,
    k: usize,
    /// `y = silu(gate) * up`; otherwise `y = residual + (x w^T + bias)`.
    gated: bool,
}

impl Layer {
    fn case(self, model: &str) -> Case {
        let Layer { dtype, kind, live, rows, n, k, gated } = self;
        let kind = match kind {
            Kind::Int8 => "int8".to_string(),
            Kind::Int4(group, zeros) => format!("int4 g{group}{}", if zeros { " zeros" } else { "" }),
        };
        let twice = if gated { " gated" } else { "" };
        let name = format!("{} {kind} {model}{live} of [{rows}, {k}] x [{n}, {k}]{twice}", dtype.name());
        Case::new(name, move |gpu| build(gpu, self)).sized(self.work())
    }

    /// Without scales, whose padding only their packing knows.
    fn work(&self) -> Work {
        let Layer { dtype, kind, live, n, k, gated, .. } = *self;
        let columns = if gated { 2 * n } else { n };
        let weights = if matches!(kind, Kind::Int8) { columns * k } else { columns * k / 2 };
        let bytes = live * k * dtype.size() + weights + 2 * live * n * dtype.size();
        Work { bytes: bytes as u64, flops: 2 * (live * columns * k) as u64 }
    }
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in FLOATS {
        let mut add = |kind, live, rows, n, k, gated| {
            all.push(Layer { dtype, kind, live, rows, n, k, gated }.case(""));
        };
        let kinds = [Kind::Int8, Kind::Int4(128, false)];
        for kind in kinds {
            // Few rows and many, odd sizes, k split, dead rows.
            for (live, rows, n, k) in [
                (1, 1, 1, 1),
                (1, 1, 70, 3100),
                (5, 8, 130, 36),
                (16, 16, 33, 588),
                (20, 24, 65, 1100),
                (40, 64, 129, 65),
                (70, 70, 100, 200),
                (0, 4, 8, 8),
            ] {
                add(kind, live, rows, n, k, false);
            }
            for (live, rows) in [(3, 4), (40, 40)] {
                add(kind, live, rows, 51, 100, true);
            }
        }
        for (group, zeros) in [(32, false), (32, true), (64, false), (64, true), (256, true)] {
            let kind = Kind::Int4(group, zeros);
            add(kind, 3, 3, 70, 300, false);
            add(kind, 33, 33, 70, 300, false);
        }
        // About as many whole tiles as multiprocessors.
        add(Kind::Int8, 767, 767, 1700, 72, false);
    }
    all
}

fn shapes() -> Vec<Case> {
    let mut all = Vec::new();
    for (dtype, kind) in FLOATS.into_iter().flat_map(|d| [(d, Kind::Int8), (d, Kind::Int4(128, false))]) {
        for (what, rows, n, k) in COUNTED {
            all.push(Layer { dtype, kind, live: rows, rows, n, k, gated: false }.case(&format!("{what} ")));
        }
    }
    for kind in [Kind::Int8, Kind::Int4(128, false)] {
        for (model, n, k, gated) in [
            ("Llama-3.1-8B o_proj ", 4096, 4096, false),
            ("Llama-3.1-8B gate_up ", 14336, 4096, true),
            ("Llama-3.1-8B down_proj ", 4096, 14336, false),
        ] {
            for rows in [1, 4, 16, 64, 1024] {
                all.push(
                    Layer { dtype: DType::Bf16, kind, live: rows, rows, n, k, gated }
                        .case(&format!("{model}M={rows} ")),
                );
            }
        }
    }
    all
}

/// Weights as the kernels take them and as numbers.
struct Weights {
    packed: Vec<u8>,
    scales: Vec<u8>,
    zeros: Option<Vec<u8>>,
    values: Vec<f32>,
}

fn weights(numbers: &mut Numbers, layer: &Layer, n: usize) -> Result<Weights> {
    let (k, kind) = (layer.k, layer.kind);
    let mut spread = |of: f32| (0.5 + numbers.below(1000) as f32 / 1000.0) / of / (k as f32).sqrt();
    match kind {
        Kind::Int8 => {
            let scales: Vec<f32> = (0..n).map(|_| spread(74.0)).collect();
            let q: Vec<i8> = (0..n * k).map(|_| numbers.next_u32() as i8).collect();
            let values = q.iter().enumerate().map(|(i, q)| f32::from(*q) * scales[i / k]).collect();
            let scales = bytemuck::cast_slice(&pack::pack_row_scales(&scales)).to_vec();
            Ok(Weights { packed: pack::pack_int8(&q, n, k)?, scales, zeros: None, values })
        }
        Kind::Int4(group, has_zeros) => {
            let groups = k.next_multiple_of(64).div_ceil(group);
            let scale = |i| if i % 29 == 7 { f16::ZERO } else { f16::from_f32(spread(4.6)) };
            let scales: Vec<f16> = (0..n * groups).map(scale).collect();
            let zeros: Vec<u8> = (0..n * groups).map(|_| if has_zeros { numbers.below(17) as u8 } else { 8 }).collect();
            let q: Vec<u8> = (0..n * k).map(|_| numbers.below(16) as u8).collect();
            let value = |(i, q): (usize, &u8)| {
                let at = i / k * groups + i % k / group;
                (f32::from(*q) - f32::from(zeros[at])) * scales[at].to_f32()
            };
            let values = q.iter().enumerate().map(value).collect();
            let scales = bytemuck::cast_slice(&pack::pack_group_scales(&scales, n)?).to_vec();
            let zeros = has_zeros.then(|| pack::pack_group_zeros(&zeros, n, layer.dtype)).transpose()?;
            let zeros = zeros.map(|z| bytemuck::cast_slice(&z).to_vec());
            Ok(Weights { packed: pack::pack_int4(&q, n, k)?, scales, zeros, values })
        }
    }
}

fn build(gpu: &Gpu, layer: Layer) -> Result<Instance> {
    let Layer { dtype, kind, live, rows, n, k, gated } = layer;
    let mut numbers = Numbers::new((rows * 31 + n * 7 + k) as u64);
    let columns = if gated { 2 * n } else { n };
    let x = numbers.normals(dtype, live * k, 1.0);
    let w = weights(&mut numbers, &layer, columns)?;
    let bias = numbers.normals(DType::F32, n, 1.0);
    let residual = numbers.normals(dtype, live * n, 1.0);

    let dx = gpu.in_place(dtype, &x, rows, k)?;
    let (dw, scales, db) = (gpu.bytes(&w.packed)?, gpu.bytes(&w.scales)?, gpu.vector(&bias)?);
    let zeros = w.zeros.as_ref().map(|z| gpu.bytes(z)).transpose()?;
    let dy = if gated { gpu.output(dtype, rows, live, n)? } else { gpu.in_place(dtype, &residual, rows, n)? };
    let count = gpu.count(live)?;
    let (storage, quantized) = match kind {
        Kind::Int8 => (Storage::Int8, Quantized::Int8 { scales: scales.all() }),
        Kind::Int4(group, _) => {
            let zeros = zeros.as_ref().map(|z| z.all());
            (Storage::Int4, Quantized::Int4 { group, scales: scales.all(), zeros })
        }
    };
    let need = work_bytes_of(storage, rows, columns, k, gpu.cuda.device().multiprocessors() as usize);
    let memory = (gpu.memory(need.partial_bytes.max(4))?, gpu.bytes(&vec![0; need.arrived_bytes.max(4)])?);
    let work = Some(SplitMemory { partial: memory.0.all(), arrived: memory.1.all() });
    let (x_slice, x_stride, y, y_stride, num_rows) = (dx.slice(), dx.ld(), dy.slice(), dy.ld(), Some(count.all()));
    let launch = if gated {
        let activation = Activation::Silu;
        let weight = dw.all();
        GatedLinear { dtype, x: x_slice, x_stride, weight, activation, y, y_stride, rows, n, k, num_rows, work }
            .prepare_quantized(&gpu.cuda, &quantized)?
    } else {
        Linear {
            dtype,
            x: x_slice,
            x_stride,
            weight: dw.all(),
            bias: Some(db.all()),
            activation: None,
            residual: Some((y, y_stride)),
            y,
            y_stride,
            output: dtype,
            rows,
            n,
            k,
            num_rows,
            work,
        }
        .prepare_quantized(&gpu.cuda, &quantized)?
    };
    let moved = live * k * dtype.size() + w.packed.len() + w.scales.len() + 2 * live * n * dtype.size();
    let work = Work { bytes: moved as u64, flops: 2 * (live * columns * k) as u64 };
    let values = w.values;
    Ok(Instance::new(vec![launch], work).expect(&dy, limits(dtype, live * n), move || {
        let mut y = if gated { vec![0.0; live * n] } else { residual };
        if live == 0 {
            return Ok(y);
        }
        if gated {
            let half = |odd: usize| -> Vec<f32> { values.chunks(k).skip(odd).step_by(2).flatten().copied().collect() };
            let (gate, up) = (half(0), half(1));
            let matrix = |values| Matrix { n, k, data: WeightData::F32(values) };
            matmul::gated_linear(&mut y, &x, live, &matrix(&gate), &matrix(&up), Activation::Silu)?;
        } else {
            let w = Matrix { n, k, data: WeightData::F32(&values) };
            matmul::linear_add(&mut y, &x, live, &w, Some(&bias))?;
        }
        Ok(y)
    }))
}

#[test]
fn linear_quantized() {
    super::harness::check(&OP);
}
