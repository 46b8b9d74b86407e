//! Rows of logits: the largest, and log-probabilities.
//!
//! In: `[rows, vocab]`. Out: token ids, log-probabilities. Owns: tie-breaking. Not here: sampling.

use crate::Result;

use super::math::exp;
use super::matrix::check_len;
use super::simd::{self, Kernel, LANES, Vector};

/// Index of the largest element, the first of equals. NaN never wins; 0 for an empty row or one of NaNs only.
pub fn argmax(row: &[f32]) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    let mut any = false;
    for (i, &v) in row.iter().enumerate() {
        if v > best.1 || (!any && !v.is_nan()) {
            best = (i, v);
            any = true;
        }
    }
    best.0
}

/// `y = x - ln(sum(e^x))` for each row of `vocab`.
pub fn log_softmax(y: &mut [f32], x: &[f32], vocab: usize) -> Result<()> {
    check_len("log_softmax", "y", y.len(), Some(x.len()))?;
    super::parallel::for_row_blocks(y, vocab, |row, y| {
        for (y, x) in y.chunks_exact_mut(vocab).zip(x[row * vocab..].chunks_exact(vocab)) {
            let z = log_sum_exp(x);
            for (y, x) in y.iter_mut().zip(x) {
                *y = x - z;
            }
        }
    });
    Ok(())
}

/// `ln(sum(e^x))`, without overflow.
pub fn log_sum_exp(x: &[f32]) -> f32 {
    let max = x.iter().fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m });
    if max == f32::NEG_INFINITY {
        return max;
    }
    // Blocks in f32, their sums in f64: a vocabulary of any size keeps f32's accuracy.
    let sum: f64 = x.chunks(1024).map(|x| simd::run(SumExp { x, max }) as f64).sum();
    (max as f64 + sum.ln()) as f32
}

struct SumExp<'a> {
    x: &'a [f32],
    max: f32,
}

impl Kernel for SumExp<'_> {
    type Out = f32;
    #[inline(always)]
    fn run<V: Vector>(self) -> f32 {
        let max = V::splat(self.max);
        let mut acc = V::splat(0.0);
        let chunks = self.x.chunks_exact(LANES);
        let rest = chunks.remainder();
        for c in chunks {
            acc = acc.add(exp(V::from_slice(c).sub(max)));
        }
        let mut last = [f32::NEG_INFINITY; LANES];
        last[..rest.len()].copy_from_slice(rest);
        acc.add(exp(V::from_slice(&last).sub(max))).reduce_add()
    }
}
