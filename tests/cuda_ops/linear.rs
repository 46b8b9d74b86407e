//! Linear layers with every epilogue. Oracle: engine/backend/cpu/matmul, activations.

use std::rc::Rc;

use engine::Result;
use engine::backend::cpu::activations::activation;
use engine::backend::cpu::matmul;
use engine::backend::cpu::matrix::{Matrix, WeightData};
use engine::backend::cuda::ops::linear::{Linear, Work as SplitMemory, work_bytes};
use engine::backend::cuda::{DeviceBuffer, pack};
use engine::graph::Activation;
use engine::tensor::{DType, HostTensor};

use super::compare::Limits;
use super::harness::{Case, FLOATS, Gpu, Instance, Numbers, Op, Work, encode};

pub const OP: Op = Op { name: "linear", cases, shapes };

/// What one launch does.
#[derive(Clone, Copy)]
struct Layer {
    dtype: DType,
    output: DType,
    /// Of the batch and of the bucket.
    live: usize,
    rows: usize,
    n: usize,
    k: usize,
    bias: bool,
    residual: bool,
    activation: Option<Activation>,
    /// The result is `[n / head_dim][rows, padded to even][head_dim]`.
    head_dim: Option<usize>,
}

impl Layer {
    fn plain(dtype: DType, rows: usize, n: usize, k: usize) -> Layer {
        let (bias, residual, activation) = (false, false, None);
        Layer { dtype, output: dtype, live: rows, rows, n, k, bias, residual, activation, head_dim: None }
    }

    fn case(self, name: &str) -> Case {
        let Layer { live, rows, n, k, .. } = self;
        let of = if live == rows { String::new() } else { format!("{live} of ") };
        let name = format!("{} {name} {of}[{rows}, {k}] x [{n}, {k}]", self.dtype.name());
        Case::new(name, move |gpu| build(gpu, self)).sized(self.work())
    }

    fn work(&self) -> Work {
        let Layer { dtype, output, live, n, k, .. } = *self;
        Work {
            bytes: (live * k * dtype.size() + n * k * dtype.size() + live * n * output.size()) as u64,
            flops: 2 * (live * n * k) as u64,
        }
    }
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in FLOATS {
        // Every kernel (1..16 rows, ..32, ..64, more), widths that are no multiple of anything, one element of all.
        let sizes = [
            (1, 1, 1),
            (1, 64, 4096),
            (5, 48, 36),
            (16, 100, 588),
            (17, 129, 65),
            (33, 65, 68),
            (64, 128, 64),
            (65, 70, 100),
            (130, 36, 48),
        ];
        for (rows, n, k) in sizes {
            all.push(Layer::plain(dtype, rows, n, k).case("plain"));
        }
        // About as many whole tiles as multiprocessors, of each of the two large kinds.
        all.push(Layer { bias: true, ..Layer::plain(dtype, 767, 1700, 72) }.case("large tiles"));
        all.push(Layer { bias: true, ..Layer::plain(dtype, 1270, 2490, 40) }.case("larger tiles"));
        // Few rows of so many features that a block takes two tiles of them.
        let wide = Layer { live: 5, bias: true, residual: true, ..Layer::plain(dtype, 7, 22001, 72) };
        all.push(wide.case("wide stream"));
        // k split among blocks.
        for (rows, n, k) in [(3, 70, 3100), (20, 70, 1100), (70, 70, 1100)] {
            let layer = Layer { bias: true, residual: true, ..Layer::plain(dtype, rows, n, k) };
            all.push(layer.case("split"));
            all.push(Layer { live: rows / 2, ..layer }.case("split"));
        }
        // Heads one after another: rows of each kind of kernel, heads that end within a tile and within a warp's part of one.
        for (rows, n, head_dim, k) in [(1, 48, 8, 40), (7, 216, 72, 36), (33, 264, 88, 68), (130, 432, 72, 40)] {
            let layer = Layer { bias: true, head_dim: Some(head_dim), ..Layer::plain(dtype, rows, n, k) };
            all.push(layer.case("head-major"));
            all.push(Layer { live: rows / 2, ..layer }.case("head-major"));
        }
        all.push(Layer { head_dim: Some(20), ..Layer::plain(dtype, 20, 60, 1100) }.case("head-major, split"));
        for rows in [7, 40] {
            let layer = Layer::plain(dtype, rows, 51, 37);
            all.push(Layer { output: DType::F32, bias: true, ..layer }.case("f32 result"));
            all.push(Layer { output: DType::F32, n: 52, ..layer }.case("f32 result"));
            all.push(Layer { residual: true, ..layer }.case("residual in place"));
            let both = Layer { residual: true, activation: Some(Activation::Silu), ..layer };
            all.push(both.case("residual after activation"));
            all.push(Layer { live: 0, ..layer }.case("no rows"));
            all.push(Layer { live: rows - 2, bias: true, ..layer }.case("bias"));
            let activations =
                [Activation::Silu, Activation::GeluErf, Activation::GeluTanh, Activation::QuickGelu, Activation::Relu];
            for kind in activations {
                let layer = Layer { activation: Some(kind), bias: true, ..layer };
                all.push(layer.case(&format!("{kind:?}")));
            }
        }
    }
    all
}

/// (what, rows, features, columns), of any storage: the choice of a kernel (`linear_choice.rs`) falls on each in turn.
pub const COUNTED: [(&str, usize, usize, usize); 7] = [
    ("8 rows", 8, 1024, 4096),
    ("wide stream", 8, 14336, 768),
    ("32 rows", 32, 1024, 4096),
    ("64 rows", 64, 1024, 4096),
    ("256 rows", 256, 1024, 4096),
    ("tiles of 128x128", 1024, 1664, 256),
    ("tiles of 128x256", 1024, 3328, 256),
];

/// Of the models in bench/, at decode and prefill sizes.
fn shapes() -> Vec<Case> {
    let mut all = Vec::new();
    let layers = [
        ("Llama-3.1-8B o_proj", 4096, 4096),
        ("Llama-3.1-8B down_proj", 4096, 14336),
        ("Llama-3.1-8B kv", 1024, 4096),
        ("Llama-3.1-8B lm_head", 128256, 4096),
        ("Qwen2-VL-7B o_proj", 3584, 3584),
        ("Qwen2-VL-7B down_proj", 3584, 18944),
        ("SigLIP fc1", 4304, 1152),
        ("SigLIP fc2", 1152, 4304),
    ];
    // Every kernel at a size that the software GPU counts: each tile on about as many multiprocessors as there are.
    for dtype in FLOATS {
        for (what, rows, n, k) in COUNTED {
            all.push(Layer::plain(dtype, rows, n, k).case(what));
        }
    }
    for (model, n, k) in layers {
        for rows in [1, 4, 16, 64, 1024] {
            all.push(Layer::plain(DType::Bf16, rows, n, k).case(&format!("{model} M={rows}")));
        }
    }
    all
}

/// Of products of matrices. A few elements may all be rounded far the same way, so of them each alone is judged.
pub fn limits(output: DType, elements: usize) -> Limits {
    let limits = Limits::gemm(output);
    if elements < 512 { Limits { frobenius: f64::INFINITY, ..limits } } else { limits }
}

/// Memory for split k, if the layer wants any; the counters are zero, the rest unwritten.
pub fn split_memory(
    gpu: &Gpu,
    rows: usize,
    columns: usize,
    k: usize,
) -> Result<Option<(Rc<DeviceBuffer>, Rc<DeviceBuffer>)>> {
    let need = work_bytes(rows, columns, k, gpu.cuda.device().multiprocessors() as usize);
    if need.arrived_bytes == 0 {
        return Ok(None);
    }
    Ok(Some((gpu.memory(need.partial_bytes)?, gpu.bytes(&vec![0; need.arrived_bytes])?)))
}

/// Weights whose products with normal activations have about the spread of the activations.
pub fn weights(numbers: &mut Numbers, dtype: DType, n: usize, k: usize) -> (Vec<f32>, HostTensor) {
    let values = numbers.normals(dtype, n * k, (k as f32).sqrt().recip());
    let bytes = engine::tensor::HostBytes::copy_from(&encode(dtype, &values));
    let tensor = HostTensor::new(dtype, vec![n, k], bytes).expect("as many bytes as the shape has");
    (values, tensor)
}

fn build(gpu: &Gpu, layer: Layer) -> Result<Instance> {
    let Layer { dtype, output, live, rows, n, k, .. } = layer;
    let mut numbers = Numbers::new((rows * 31 + n * 7 + k) as u64);
    let x = numbers.normals(dtype, live * k, 1.0);
    let (w, tensor) = weights(&mut numbers, dtype, n, k);
    let bias = layer.bias.then(|| numbers.normals(DType::F32, n, 1.0));
    let residual = layer.residual.then(|| numbers.normals(dtype, live * n, 1.0));

    let dx = gpu.in_place(dtype, &x, rows, k)?;
    let dw = gpu.bytes(&pack::pack_matrix("w", &tensor, dtype)?)?;
    let db = bias.as_ref().map(|b| gpu.vector(b)).transpose()?;
    let dy = match &residual {
        Some(r) => gpu.in_place(dtype, r, rows, n)?,
        None if output == DType::F32 => gpu.output_with_stride(output, rows, live, n, n)?,
        None => gpu.output(output, rows, live, n)?,
    };
    let count = gpu.count(live)?;
    let memory = split_memory(gpu, rows, n, k)?;
    let op = Linear {
        dtype,
        x: dx.slice(),
        x_stride: dx.ld(),
        weight: dw.all(),
        bias: db.as_ref().map(|b| b.all()),
        activation: layer.activation,
        residual: residual.as_ref().map(|_| (dy.slice(), dy.ld())),
        y: dy.slice(),
        y_stride: dy.ld(),
        output,
        rows,
        n,
        k,
        num_rows: Some(count.all()),
        work: memory.as_ref().map(|(partial, arrived)| SplitMemory { partial: partial.all(), arrived: arrived.all() }),
    };
    let wanted = move || {
        let w = Matrix { n, k, data: WeightData::F32(&w) };
        let mut y = vec![0.0; live * n];
        if live > 0 {
            matmul::linear(&mut y, &x, live, &w, bias.as_deref())?;
        }
        if let Some(kind) = layer.activation {
            activation(&mut y, kind);
        }
        for (y, r) in y.iter_mut().zip(residual.iter().flatten()) {
            *y += r;
        }
        Ok(y)
    };
    let Some(head_dim) = layer.head_dim else {
        let launch = op.prepare(&gpu.cuda)?;
        return Ok(Instance::new(vec![launch], layer.work()).expect(&dy, limits(output, live * n), wanted));
    };
    // All of the result is numbers before, of which those of rows beyond the batch must stay.
    let padded = rows.next_multiple_of(2);
    let before = numbers.normals(dtype, padded * n, 1.0);
    let dy = gpu.output_with_stride(dtype, 1, 1, before.len(), before.len())?;
    dy.slice().copy_from_host(&gpu.stream, &encode(dtype, &before))?;
    let op = Linear { y: dy.slice(), y_stride: head_dim, ..op };
    let launch = op.prepare_head_major(&gpu.cuda, padded * head_dim, false)?;
    Ok(Instance::new(vec![launch], layer.work()).expect(&dy, limits(output, padded * n), move || {
        let (y, mut all) = (wanted()?, before);
        for (i, y) in y.chunks_exact(head_dim).enumerate() {
            let (row, head) = (i / (n / head_dim), i % (n / head_dim));
            all[(head * padded + row) * head_dim..][..head_dim].copy_from_slice(y);
        }
        Ok(all)
    }))
}

#[test]
fn linear() {
    super::harness::check(&OP);
}

/// The same launch gives the same bits, and leaves its counters as it found them.
#[test]
fn splits_are_deterministic() {
    let Some(gpu) = Gpu::open() else { return };
    let layer = Layer { bias: true, ..Layer::plain(DType::Bf16, 9, 130, 3000) };
    let built: Vec<Instance> = (0..2).map(|_| build(&gpu, layer).unwrap()).collect();
    for instance in built {
        // A second run over the same counters must still be right.
        instance.launches[0].enqueue(&gpu.stream).unwrap();
        instance.check(&gpu).unwrap();
    }
}

/// Where rows shall be alike, a row has the same bits whether it is alone or one of many, whichever tile the rows ask for.
#[test]
fn a_row_has_the_same_bits_among_any_number() {
    let Some(gpu) = Gpu::open() else { return };
    // With as many columns, these numbers of rows take each tile in turn on 108 multiprocessors.
    let (n, k, dtype) = (6912, 300, DType::Bf16);
    let mut numbers = Numbers::new(11);
    let x = numbers.normals(dtype, 512 * k, 1.0);
    let (_, w) = weights(&mut numbers, dtype, n, k);
    let weight = gpu.bytes(&pack::pack_matrix("w", &w, dtype).unwrap()).unwrap();
    let run = |rows: usize, alike: bool| -> Vec<u32> {
        let (dx, dy) = (
            gpu.matrix(dtype, &x[..rows * k], k).unwrap(),
            gpu.output_with_stride(DType::F32, rows, rows, n, n).unwrap(),
        );
        let op = Linear {
            dtype,
            x: dx.slice(),
            x_stride: dx.ld,
            weight: weight.all(),
            bias: None,
            activation: None,
            residual: None,
            y: dy.slice(),
            y_stride: dy.ld(),
            output: DType::F32,
            rows,
            n,
            k,
            num_rows: None,
            work: None,
        };
        let launch = if alike { op.prepare_alike(&gpu.cuda) } else { op.prepare(&gpu.cuda) }.unwrap();
        launch.enqueue(&gpu.stream).unwrap();
        gpu.stream.synchronize().unwrap();
        dy.read(&gpu).unwrap().iter().map(|v| v.to_bits()).collect()
    };
    let alone = run(1, true);
    for rows in [2, 17, 32, 33, 64, 65, 130, 300, 512] {
        assert!(run(rows, true)[..n] == alone[..], "{rows} rows");
    }
    assert!(run(1, false) != alone, "the kernel for one row sums in another order, or this test sees nothing");
}
