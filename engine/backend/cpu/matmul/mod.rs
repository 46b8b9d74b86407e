//! Linear layers: `y[m,n] = x[m,k] * w[n,k]^T`, with bias, residual add or gated activation.
//!
//! In: f32 rows, a [`Matrix`] in stored form. Out: f32 rows. Owns: the choice between the two drivers and what
//! happens to a finished block. Not here: the drivers (`blocked.rs`, `stream.rs`) and their register tiles
//! (`../tile.rs`, `dot.rs`).
//!
//! The value of an output element is defined once, for every number of rows, thread count and instruction set:
//! sixteen partial sums, lane l taking k = l, l+16, ... in ascending order by FMA (k padded with zeros to a
//! multiple of sixteen), then the lanes summed by halving. So a token's bits do not depend on its batch.

mod blocked;
mod dot;
mod pack;
mod stream;

use crate::Result;
use crate::graph::Activation;

use super::activations::activate;
use super::matrix::{Matrix, WeightData, check_len};
use super::parallel::SharedRows;
use super::simd::{self, Element, Kernel, LANES, Vector};

/// Up to this many rows the weights are streamed once straight from their stored form; above, they are
/// widened into a cached panel that all rows share.
const STREAM_ROWS: usize = 16;
/// Columns of a block of `y` when rows are many.
const BLOCK_N: usize = 64;

/// What becomes of the finished product `t`.
#[derive(Clone, Copy)]
enum Finish<'a> {
    /// `y = t (+ bias)`
    Store { bias: Option<&'a [f32]> },
    /// `y = y + (t (+ bias))`
    Add { bias: Option<&'a [f32]> },
    /// `y = act(t (+ bias))`
    Activate { bias: Option<&'a [f32]>, activation: Activation },
    /// `y = act(t) * t2`, `t2` the product with the second matrix.
    Gate { activation: Activation },
}

/// `y[m,n] = x[m,k] * w[n,k]^T (+ bias[n])`.
pub fn linear(y: &mut [f32], x: &[f32], m: usize, w: &Matrix, bias: Option<&[f32]>) -> Result<()> {
    check("linear", y, x, m, w, bias)?;
    product(y, x, m, [w, w], 1, Finish::Store { bias });
    Ok(())
}

/// `y[m,n] += x[m,k] * w[n,k]^T (+ bias[n])`: bits equal to [`linear`] into a scratch array, then an add.
pub fn linear_add(y: &mut [f32], x: &[f32], m: usize, w: &Matrix, bias: Option<&[f32]>) -> Result<()> {
    check("linear_add", y, x, m, w, bias)?;
    product(y, x, m, [w, w], 1, Finish::Add { bias });
    Ok(())
}

/// `y[m,n] = act(x[m,k] * w[n,k]^T (+ bias[n]))`: bits equal to [`linear`], then
/// [`activation`](super::activations::activation).
pub fn linear_activation(
    y: &mut [f32],
    x: &[f32],
    m: usize,
    w: &Matrix,
    bias: Option<&[f32]>,
    activation: Activation,
) -> Result<()> {
    check("linear_activation", y, x, m, w, bias)?;
    product(y, x, m, [w, w], 1, Finish::Activate { bias, activation });
    Ok(())
}

/// `y[m,n] = act(x * gate[n,k]^T) * (x * up[n,k]^T)` without either half in memory: bits equal to two
/// [`linear`], the activation and a multiplication. With SiLU this is SwiGLU.
pub fn gated_linear(
    y: &mut [f32],
    x: &[f32],
    m: usize,
    gate: &Matrix,
    up: &Matrix,
    activation: Activation,
) -> Result<()> {
    check("gated_linear", y, x, m, gate, None)?;
    check("gated_linear", y, x, m, up, None)?;
    product(y, x, m, [gate, up], 2, Finish::Gate { activation });
    Ok(())
}

fn check(op: &str, y: &[f32], x: &[f32], m: usize, w: &Matrix, bias: Option<&[f32]>) -> Result<()> {
    w.check(op)?;
    check_len(op, "x", x.len(), m.checked_mul(w.k))?;
    check_len(op, "y", y.len(), m.checked_mul(w.n))?;
    bias.map_or(Ok(()), |b| check_len(op, "bias", b.len(), Some(w.n)))
}

/// The product with the first `count` matrices, then `finish`.
fn product(y: &mut [f32], x: &[f32], m: usize, w: [&Matrix; 2], count: usize, finish: Finish) {
    match (w[0].data, w[1].data) {
        (WeightData::F32(a), WeightData::F32(b)) => drive(y, x, m, w[0], [a, b], count, finish),
        (WeightData::F16(a), WeightData::F16(b)) => drive(y, x, m, w[0], [a, b], count, finish),
        (WeightData::Bf16(a), WeightData::Bf16(b)) => drive(y, x, m, w[0], [a, b], count, finish),
        // A gated pair in two storages: one half after the other, joined element by element.
        _ => {
            let Finish::Gate { activation } = finish else { return };
            let mut up = vec![0.0; y.len()];
            product(&mut up, x, m, [w[1], w[1]], 1, Finish::Store { bias: None });
            product(y, x, m, [w[0], w[0]], 1, Finish::Activate { bias: None, activation });
            super::elementwise::mul_unchecked(y, &up);
        }
    }
}

fn drive<E: Element>(y: &mut [f32], x: &[f32], m: usize, w: &Matrix, data: [&[E]; 2], count: usize, finish: Finish) {
    let (n, k) = (w.n, w.k);
    if m == 0 || n == 0 {
        return;
    }
    let job = Job { x, m, n, k, w: data, count, output: Output { y: SharedRows::new(y, n), finish } };
    if m <= STREAM_ROWS {
        stream::drive(&job);
    } else {
        blocked::drive(&job);
    }
}

/// One call: `count` matrices of the same shape and storage.
struct Job<'a, E> {
    x: &'a [f32],
    m: usize,
    n: usize,
    k: usize,
    w: [&'a [E]; 2],
    count: usize,
    output: Output<'a>,
}

impl<E: Element> Job<'_, E> {
    /// k padded to whole vectors.
    fn padded_k(&self) -> usize {
        self.k.next_multiple_of(LANES)
    }
}

/// Where finished blocks go, and how.
struct Output<'a> {
    y: SharedRows<'a>,
    finish: Finish<'a>,
}

/// A finished block of the products: rows `row..row+rows`, columns `col..col+cols`.
struct Finished<'a> {
    output: &'a Output<'a>,
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
    /// Rows of both products, `stride` apart; the second is empty unless gated.
    products: [&'a mut [f32]; 2],
    stride: usize,
}

impl Kernel for Finished<'_> {
    type Out = ();

    /// Each block of `y` is finished by one task only.
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Finished { output, row, rows, col, cols, products, stride } = self;
        let [first, second] = products;
        let bias = match output.finish {
            Finish::Store { bias } | Finish::Add { bias } | Finish::Activate { bias, .. } => bias,
            Finish::Gate { .. } => None,
        };
        for r in 0..rows {
            // SAFETY: blocks are disjoint, and each is finished once.
            let y = unsafe { output.y.piece(row + r, col, cols) };
            let a = &mut first[r * stride..r * stride + cols];
            if let Some(b) = bias {
                for (a, b) in a.iter_mut().zip(&b[col..col + cols]) {
                    *a += b;
                }
            }
            if let Finish::Activate { activation, .. } | Finish::Gate { activation } = output.finish {
                activate::<V>(a, activation);
            }
            match output.finish {
                Finish::Store { .. } | Finish::Activate { .. } => y.copy_from_slice(a),
                Finish::Add { .. } => {
                    for (y, a) in y.iter_mut().zip(a.iter()) {
                        *y += a;
                    }
                }
                Finish::Gate { .. } => {
                    for ((y, a), b) in y.iter_mut().zip(a.iter()).zip(&second[r * stride..]) {
                        *y = a * b;
                    }
                }
            }
        }
    }
}
