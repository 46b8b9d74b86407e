//! Sums, products and activations in place. Oracles: engine/backend/cpu/elementwise.rs, activations.rs.

use engine::Result;
use engine::backend::cpu::activations::activation;
use engine::backend::cpu::elementwise::{add, mul};
use engine::backend::cuda::ops::Rows;
use engine::backend::cuda::ops::elementwise::{Elementwise, ElementwiseOp};
use engine::graph::Activation;
use engine::tensor::DType;

use super::compare::Limits;
use super::harness::{Case, FLOATS, Gpu, Instance, Numbers, Op, Work};

pub const OP: Op = Op { name: "elementwise", cases, shapes };

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Add,
    Mul,
    Act(Activation),
    ActMul(Activation),
}

const ACTIVATIONS: [Activation; 5] =
    [Activation::Silu, Activation::GeluErf, Activation::GeluTanh, Activation::QuickGelu, Activation::Relu];

/// `live` rows of the batch in a bucket of `rows`.
fn case(what: &str, kind: Kind, dtype: DType, (live, rows, width): (usize, usize, usize)) -> Case {
    let name = format!("{} {what}{kind:?} {live} of [{rows}, {width}]", dtype.name());
    Case::new(name, move |gpu| build(gpu, kind, dtype, live, rows, width))
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in FLOATS {
        // One element, less than a vector, the small test models' widths, a block and a little more, idle rows.
        for shape in
            [(1, 1, 1), (3, 3, 7), (5, 8, 36), (7, 7, 68), (300, 300, 8), (2, 3, 2056), (3, 5, 4304), (0, 4, 64)]
        {
            all.push(case("", Kind::Add, dtype, shape));
            all.push(case("", Kind::Mul, dtype, shape));
        }
        for kind in ACTIVATIONS {
            for shape in [(2, 3, 100), (33, 40, 1152)] {
                all.push(case("", Kind::Act(kind), dtype, shape));
                all.push(case("", Kind::ActMul(kind), dtype, shape));
            }
        }
    }
    all
}

fn shapes() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in FLOATS {
        for rows in [1, 4, 16, 64, 1024] {
            all.push(case("Llama-3.1-8B: ", Kind::Add, dtype, (rows, rows, 4096)));
            all.push(case("Llama-3.1-8B: ", Kind::ActMul(Activation::Silu), dtype, (rows, rows, 14336)));
        }
        all.push(case("SigLIP so400m: ", Kind::Act(Activation::GeluTanh), dtype, (729, 729, 4304)));
        all.push(case("Qwen2-VL ViT: ", Kind::Act(Activation::QuickGelu), dtype, (4096, 4096, 5120)));
        all.push(case("CLIP-L: ", Kind::Act(Activation::QuickGelu), dtype, (577, 577, 4096)));
        all.push(case("OPT-2.7B: ", Kind::Act(Activation::Relu), dtype, (64, 64, 10240)));
        all.push(case("ViT-g: ", Kind::Act(Activation::GeluErf), dtype, (257, 257, 6144)));
    }
    all
}

fn build(gpu: &Gpu, kind: Kind, dtype: DType, live: usize, rows: usize, width: usize) -> Result<Instance> {
    let mut numbers = Numbers::new(width as u64);
    // Both tails of every activation.
    let y = numbers.normals(dtype, live * width, 4.0);
    let x = numbers.normals(dtype, live * width, 1.0);
    let dy = gpu.in_place(dtype, &y, rows, width)?;
    let dx = gpu.in_place(dtype, &x, rows, width)?;
    let count = gpu.count(live)?;
    let other = Rows { slice: dx.slice(), stride: dx.ld() };
    let op = ElementwiseOp {
        kind: match kind {
            Kind::Add => Elementwise::Add(other),
            Kind::Mul => Elementwise::Mul(other),
            Kind::Act(a) => Elementwise::Activation(a),
            Kind::ActMul(a) => Elementwise::ActivationMul(a, other),
        },
        dtype,
        y: Rows { slice: dy.slice(), stride: dy.ld() },
        rows,
        width,
        num_rows: Some(count.all()),
    };
    let arrays = if matches!(kind, Kind::Act(_)) { 2 } else { 3 };
    let work = Work { bytes: (arrays * live * width * dtype.size() + 4) as u64, flops: (live * width) as u64 };
    let limits = match kind {
        // One operation, one rounding: nothing is left to choice.
        Kind::Add | Kind::Mul => Limits { relative: f64::from(f32::EPSILON), ..Limits::EXACT },
        _ => Limits::function(dtype),
    };
    Ok(Instance::new(vec![op.prepare(&gpu.cuda)?], work).expect(&dy, limits, move || {
        let mut want = y;
        match kind {
            Kind::Add => add(&mut want, &x)?,
            Kind::Mul => mul(&mut want, &x)?,
            Kind::Act(a) => activation(&mut want, a),
            Kind::ActMul(a) => {
                activation(&mut want, a);
                mul(&mut want, &x)?;
            }
        }
        Ok(if matches!(kind, Kind::Add | Kind::Mul) { super::harness::rounded(dtype, &want) } else { want })
    }))
}

#[test]
fn elementwise() {
    super::harness::check(&OP);
}
