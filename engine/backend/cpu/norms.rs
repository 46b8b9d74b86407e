//! Normalisation over the last dimension.
//!
//! In: rows. Out: rows. Owns: the order of the sums: sixteen partial sums (lane l takes elements l, l+16, ...),
//! then the lanes by halving. Not here: fused residuals.

use crate::Result;

use super::matrix::check_len;
use super::parallel::for_row_blocks;
use super::simd::{self, Kernel, LANES, Vector};

/// `y = (x - mean) / sqrt(var + eps) * w + b` for each of `rows` rows of `dim`; biased variance, two passes.
pub fn layer_norm(y: &mut [f32], x: &[f32], rows: usize, dim: usize, w: &[f32], b: &[f32], eps: f32) -> Result<()> {
    let op = "layer_norm";
    check(op, y, x, rows, dim, w)?;
    check_len(op, "bias", b.len(), Some(dim))?;
    for_row_blocks(y, dim, |row, y| simd::run(LayerNorm { y, x: &x[row * dim..], dim, w, b, eps }));
    Ok(())
}

/// `y = x / sqrt(mean(x^2) + eps) * w` for each of `rows` rows of `dim`.
pub fn rms_norm(y: &mut [f32], x: &[f32], rows: usize, dim: usize, w: &[f32], eps: f32) -> Result<()> {
    check("rms_norm", y, x, rows, dim, w)?;
    for_row_blocks(y, dim, |row, y| simd::run(RmsNorm { y, x: &x[row * dim..], dim, w, eps }));
    Ok(())
}

fn check(op: &str, y: &[f32], x: &[f32], rows: usize, dim: usize, w: &[f32]) -> Result<()> {
    check_len(op, "x", x.len(), rows.checked_mul(dim))?;
    check_len(op, "y", y.len(), Some(x.len()))?;
    check_len(op, "weight", w.len(), Some(dim))
}

struct LayerNorm<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
    dim: usize,
    w: &'a [f32],
    b: &'a [f32],
    eps: f32,
}

impl Kernel for LayerNorm<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        for (y, x) in self.y.chunks_exact_mut(self.dim).zip(self.x.chunks_exact(self.dim)) {
            let mean = sum::<V>(x) / self.dim as f32;
            let var = sum_of_squares::<V>(x, mean) / self.dim as f32;
            let scale = 1.0 / (var + self.eps).sqrt();
            for (((y, x), w), b) in y.iter_mut().zip(x).zip(self.w).zip(self.b) {
                *y = (x - mean) * scale * w + b;
            }
        }
    }
}

struct RmsNorm<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
    dim: usize,
    w: &'a [f32],
    eps: f32,
}

impl Kernel for RmsNorm<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        for (y, x) in self.y.chunks_exact_mut(self.dim).zip(self.x.chunks_exact(self.dim)) {
            let mean = sum_of_squares::<V>(x, 0.0) / self.dim as f32;
            let scale = 1.0 / (mean + self.eps).sqrt();
            for ((y, x), w) in y.iter_mut().zip(x).zip(self.w) {
                *y = x * scale * w;
            }
        }
    }
}

#[inline(always)]
fn sum<V: Vector>(x: &[f32]) -> f32 {
    let mut acc = V::splat(0.0);
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for c in chunks {
        acc = acc.add(V::from_slice(c));
    }
    acc.add(padded(rest, 0.0)).reduce_add()
}

/// Sum of (x - mean)^2.
#[inline(always)]
fn sum_of_squares<V: Vector>(x: &[f32], mean: f32) -> f32 {
    let m = V::splat(mean);
    let mut acc = V::splat(0.0);
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for c in chunks {
        let d = V::from_slice(c).sub(m);
        acc = d.fma(d, acc);
    }
    let d = padded::<V>(rest, mean).sub(m);
    d.fma(d, acc).reduce_add()
}

/// A partial vector, filled up with `fill`.
#[inline(always)]
fn padded<V: Vector>(rest: &[f32], fill: f32) -> V {
    let mut last = [fill; LANES];
    last[..rest.len()].copy_from_slice(rest);
    V::from_slice(&last)
}
