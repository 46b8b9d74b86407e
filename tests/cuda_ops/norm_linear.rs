//! Linear and gated layers that apply the norm of their input. Oracle: engine/backend/cpu/norms.rs, matmul.

use std::rc::Rc;

use engine::Result;
use engine::backend::cpu::matmul;
use engine::backend::cpu::matrix::{Matrix, WeightData};
use engine::backend::cpu::norms::rms_norm;
use engine::backend::cuda::ops::fused::InputNorm;
use engine::backend::cuda::ops::linear::{GatedLinear, Linear, Work as SplitMemory};
use engine::backend::cuda::{DeviceBuffer, pack};
use engine::graph::Activation;
use engine::tensor::DType;

use super::compare::Limits;
use super::harness::{Case, FLOATS, Gpu, Instance, Numbers, Op, Work, rounded};
use super::linear::{split_memory, weights};

pub const OP: Op = Op { name: "norm_linear", cases, shapes };

pub const EPS: f32 = 1e-5;

#[derive(Clone, Copy)]
struct Layer {
    dtype: DType,
    /// Of the result: `dtype` or f32.
    output: DType,
    /// Of the batch and of the bucket.
    rows: (usize, usize),
    n: usize,
    k: usize,
    /// A gated layer, of `2 n` features.
    gated: bool,
    bias: bool,
    /// Standard deviation of x, and of the norm's weight around the same.
    spread: (f32, f32),
}

impl Layer {
    fn case(self, name: &str) -> Case {
        let Layer { rows: (live, rows), n, k, gated, output, .. } = self;
        let kind = if gated { "gated " } else { "" };
        let bias = if self.bias { " with bias" } else { "" };
        let name = format!(
            "{} {name}{kind}{live} of [{rows}, {k}] x [{n}, {k}]{bias} to {}, spread {:?}",
            self.dtype.name(),
            output.name(),
            self.spread
        );
        Case::new(name, move |gpu| build(gpu, self)).sized(self.work())
    }

    fn columns(&self) -> usize {
        if self.gated { 2 * self.n } else { self.n }
    }

    fn work(&self) -> Work {
        let Layer { dtype, output, rows: (live, _), n, k, .. } = *self;
        let columns = self.columns();
        Work {
            bytes: ((live * k + columns * k + k) * dtype.size() + live * n * output.size()) as u64,
            flops: 2 * (live * columns * k) as u64,
        }
    }
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in FLOATS {
        let plain = |rows, n, k| {
            let (gated, bias, spread) = (false, false, (1.0, 0.5));
            Layer { dtype, output: dtype, rows, n, k, gated, bias, spread }
        };
        // Widths that are no multiple of anything, k split among blocks, wide enough for the wide kernel.
        let sizes = [
            ((1, 1), 1, 1),
            ((1, 1), 64, 4096),
            ((2, 2), 100, 587),
            ((5, 8), 48, 36),
            ((8, 8), 33, 65),
            ((3, 4), 70, 3100),
            ((0, 4), 10, 8),
            ((2, 2), 13900, 40),
        ];
        for (rows, n, k) in sizes {
            all.push(plain(rows, n, k).case(""));
            all.push(Layer { gated: true, ..plain(rows, n.div_ceil(2), k) }.case(""));
        }
        all.push(Layer { bias: true, ..plain((5, 5), 51, 300) }.case(""));
        all.push(Layer { output: DType::F32, ..plain((7, 8), 51, 300) }.case(""));
        // Products of x and the weight that f16 could not hold, and small ones.
        all.push(Layer { spread: (15000.0, 4.0), ..plain((3, 3), 64, 1000) }.case(""));
        all.push(Layer { spread: (15000.0, 4.0), gated: true, ..plain((8, 8), 40, 1000) }.case(""));
        all.push(Layer { spread: (0.01, 0.02), ..plain((3, 3), 64, 1000) }.case(""));
    }
    all
}

fn shapes() -> Vec<Case> {
    let mut all = Vec::new();
    for (model, n, k, gated) in [
        ("Llama-3.1-8B, Mistral-7B gate_up ", 14336, 4096, true),
        ("Llama-3.1-8B lm_head ", 128256, 4096, false),
        ("Qwen2-VL-7B gate_up ", 18944, 3584, true),
        ("SmolVLM-256M gate_up ", 1536, 576, true),
    ] {
        for rows in [1, 4, 8] {
            let (dtype, output) = (DType::Bf16, if gated { DType::Bf16 } else { DType::F32 });
            let layer = Layer { dtype, output, rows: (rows, rows), n, k, gated, bias: false, spread: (1.0, 0.5) };
            all.push(layer.case(model));
        }
    }
    all
}

/// As products have, and x times the norm's weight is rounded too.
pub fn limits(dtype: DType, output: DType, elements: usize) -> Limits {
    let gemm = Limits::gemm(output);
    let both = Limits { frobenius: 1.5 * Limits::gemm(dtype).frobenius, of_rms: 1.2e-2, ..gemm };
    if elements < 512 { Limits { frobenius: f64::INFINITY, ..both } } else { both }
}

/// A norm's weight around `spread`, as `dtype` holds it, and on the device.
pub fn norm_weight(
    gpu: &Gpu,
    numbers: &mut Numbers,
    dtype: DType,
    k: usize,
    spread: f32,
) -> Result<(Vec<f32>, Rc<DeviceBuffer>)> {
    let values: Vec<f32> = numbers.normals(dtype, k, spread).iter().map(|w| w + spread).collect();
    let values = rounded(dtype, &values);
    let mut packed = vec![0; pack::norm_bytes(k)];
    pack::pack_norm(&values, dtype, &mut packed)?;
    Ok((values, gpu.bytes(&packed)?))
}

fn build(gpu: &Gpu, layer: Layer) -> Result<Instance> {
    let Layer { dtype, output, rows: (live, rows), n, k, gated, spread, .. } = layer;
    let mut numbers = Numbers::new((rows * 31 + n * 7 + k) as u64);
    let x = numbers.normals(dtype, live * k, spread.0);
    let (g, dg) = norm_weight(gpu, &mut numbers, dtype, k, spread.1)?;
    let (w, tensor) = weights(&mut numbers, dtype, n, k);
    let (up, up_tensor) = weights(&mut numbers, dtype, n, k);
    let bias = layer.bias.then(|| numbers.normals(DType::F32, n, 1.0));

    let dx = gpu.in_place(dtype, &x, rows, k)?;
    let packed = match gated {
        true => pack::pack_gated_matrix("w", &tensor, &up_tensor, dtype)?,
        false => pack::pack_matrix("w", &tensor, dtype)?,
    };
    let dw = gpu.bytes(&packed)?;
    let db = bias.as_ref().map(|b| gpu.vector(b)).transpose()?;
    let dy = match output {
        DType::F32 => gpu.output_with_stride(output, rows, live, n, n)?,
        _ => gpu.output(output, rows, live, n)?,
    };
    let count = gpu.count(live)?;
    let memory = split_memory(gpu, rows, layer.columns(), k)?;
    let work = memory.as_ref().map(|(partial, arrived)| SplitMemory { partial: partial.all(), arrived: arrived.all() });
    let norm = InputNorm { weight: dg.all(), eps: EPS };
    let activation = Activation::Silu;
    let launch = if gated {
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
            work,
        };
        op.prepare_normed(&gpu.cuda, &norm)?
    } else {
        let op = Linear {
            dtype,
            x: dx.slice(),
            x_stride: dx.ld(),
            weight: dw.all(),
            bias: db.as_ref().map(|b| b.all()),
            activation: None,
            residual: None,
            y: dy.slice(),
            y_stride: dy.ld(),
            output,
            rows,
            n,
            k,
            num_rows: Some(count.all()),
            work,
        };
        op.prepare_normed(&gpu.cuda, &norm)?
    };
    let mut limits = limits(dtype, output, live * n);
    if gated {
        // Both factors of a product carry the error of a layer.
        limits = Limits { frobenius: 1.7 * limits.frobenius, of_rms: 3e-2, relative: 4.0 * limits.relative, ..limits };
    }
    Ok(Instance::new(vec![launch], layer.work()).expect(&dy, limits, move || {
        let mut y = vec![0.0; live * n];
        if live == 0 {
            return Ok(y);
        }
        let mut normed = vec![0.0; live * k];
        rms_norm(&mut normed, &x, live, k, &g, EPS)?;
        let matrix = |values| Matrix { n, k, data: WeightData::F32(values) };
        match gated {
            true => matmul::gated_linear(&mut y, &normed, live, &matrix(&w), &matrix(&up), activation)?,
            false => matmul::linear(&mut y, &normed, live, &matrix(&w), bias.as_deref())?,
        }
        Ok(y)
    }))
}

#[test]
fn norm_linear() {
    super::harness::check(&OP);
}

/// The same launch gives the same bits, where squares are summed over splits of k too, and leaves its counters zero.
#[test]
fn squares_of_splits_are_deterministic() {
    let Some(gpu) = Gpu::open() else { return };
    let (dtype, spread) = (DType::Bf16, (1.0, 0.5));
    let layer = Layer { dtype, output: dtype, rows: (7, 8), n: 130, k: 3000, gated: false, bias: true, spread };
    let built: Vec<Instance> = (0..2).map(|_| build(&gpu, layer).unwrap()).collect();
    for instance in built {
        instance.launches[0].enqueue(&gpu.stream).unwrap();
        instance.check(&gpu).unwrap();
    }
}
