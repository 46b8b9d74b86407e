//! RMSNorm, alone, in place and after a residual. Oracle: engine/backend/cpu/norms.rs.

use engine::Result;
use engine::backend::cpu::norms::rms_norm;
use engine::backend::cuda::ops::Residual;
use engine::backend::cuda::ops::rmsnorm::RmsNorm;
use engine::tensor::DType;

use super::compare::Limits;
use super::harness::{Case, FLOATS, Gpu, Instance, Numbers, Op, Work, add_rounded};

pub const OP: Op = Op { name: "rmsnorm", cases, shapes };

const EPS: f32 = 1e-5;

/// How the norm is used.
#[derive(Clone, Copy, PartialEq)]
enum Use {
    Alone,
    InPlace,
    /// The sum goes where x was.
    AfterResidual,
}

/// `live` rows of the batch in a bucket of `rows`.
fn case(what: &str, how: Use, dtype: DType, (live, rows, hidden): (usize, usize, usize)) -> Case {
    let name = format!("{} {what}{live} of [{rows}, {hidden}]", dtype.name());
    Case::new(name, move |gpu| build(gpu, how, dtype, live, rows, hidden))
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        // Kernels of 1, 2 and 4 pieces a thread, of 4 in large blocks too, widths that fill no block, some that no piece
        // divides, one too wide for pieces, the widths of the small test models.
        for shape in [
            (3, 3, 64),
            (2, 2, 72),
            (5, 5, 2048),
            (2, 2, 3584),
            (1, 1, 4096),
            (2, 2, 8192),
            (1, 1, 9000),
            (2, 2, 16384),
            (1, 1, 17000),
            (3, 3, 77),
            (3, 3, 36),
            (1, 1, 1),
            (40, 40, 8),
            (4, 6, 128),
            (2, 5, 77),
            (0, 2, 64),
        ] {
            all.push(case("", Use::Alone, dtype, shape));
        }
        for shape in [(3, 3, 4096), (2, 4, 77)] {
            all.push(case("in place, ", Use::InPlace, dtype, shape));
        }
        for shape in [(3, 3, 64), (2, 3, 4096), (1, 1, 8192), (1, 1, 16384), (2, 2, 77), (1, 2, 17000)] {
            all.push(case("after a residual, ", Use::AfterResidual, dtype, shape));
        }
    }
    all
}

fn shapes() -> Vec<Case> {
    let mut all = Vec::new();
    for dtype in FLOATS {
        for (model, hidden) in [("Llama-3.1-8B, Mistral-7B", 4096), ("Qwen2-7B", 3584)] {
            for rows in [1, 4, 16, 64, 1024] {
                all.push(case(&format!("{model}: "), Use::Alone, dtype, (rows, rows, hidden)));
                all.push(case(
                    &format!("{model}, after a residual: "),
                    Use::AfterResidual,
                    dtype,
                    (rows, rows, hidden),
                ));
            }
        }
    }
    all
}

fn build(gpu: &Gpu, how: Use, dtype: DType, live: usize, rows: usize, hidden: usize) -> Result<Instance> {
    let mut numbers = Numbers::new(7 + hidden as u64);
    let x = numbers.normals(dtype, live * hidden, 1.0);
    let weight = numbers.normals(DType::F32, hidden, 1.0);
    let residual = numbers.normals(dtype, live * hidden, 2.0);
    let dx = gpu.in_place(dtype, &x, rows, hidden)?;
    let (dw, count) = (gpu.vector(&weight)?, gpu.count(live)?);
    let dr = gpu.in_place(dtype, &residual, rows, hidden)?;
    let dy = if how == Use::InPlace { dx.clone() } else { gpu.output(dtype, rows, live, hidden)? };
    let op = RmsNorm {
        dtype,
        x: dx.slice(),
        x_stride: dx.ld(),
        weight: dw.all(),
        y: dy.slice(),
        y_stride: dy.ld(),
        rows,
        hidden,
        eps: EPS,
        num_rows: Some(count.all()),
    };
    let after = how == Use::AfterResidual;
    let launch = if after {
        let sum = Residual { residual: dr.slice(), residual_stride: dr.ld(), sum: dx.slice(), sum_stride: dx.ld() };
        op.prepare_after(&gpu.cuda, sum)?
    } else {
        op.prepare(&gpu.cuda)?
    };
    let arrays = if after { 4 } else { 2 };
    let work =
        Work { bytes: (arrays * live * hidden * dtype.size() + 4 * hidden) as u64, flops: 4 * (live * hidden) as u64 };
    let normed = if after { add_rounded(dtype, &x, &residual) } else { x };
    let mut instance = Instance::new(vec![launch], work);
    if after {
        let sum = normed.clone();
        instance = instance.expect(&dx, Limits::EXACT, move || Ok(sum));
    }
    Ok(instance.expect(&dy, Limits::rounding(dtype), move || {
        let mut y = vec![0.0; normed.len()];
        rms_norm(&mut y, &normed, live, hidden, &weight, EPS)?;
        Ok(y)
    }))
}

#[test]
fn rmsnorm() {
    super::harness::check(&OP);
}
