//! Operands copied so that a tile reads them front to back.
//!
//! In: rows. Out: panels, zero-padded along k to whole vectors. Owns: the panel layouts. Not here: arithmetic.

use super::super::simd::{Element, LANES, Vector};
use super::super::tile::ROWS;
use super::BLOCK_N;

/// Rows of `x` (`[rows, k]`) for dot products: `[padded_k / 16][rows][16]`.
#[inline(always)]
pub(super) fn pack_dot<V: Vector>(panel: &mut [f32], x: &[f32], k: usize, rows: usize) {
    for r in 0..rows {
        let from = &x[r * k..(r + 1) * k];
        for s in 0..k.div_ceil(LANES) {
            vector::<V, f32>(from, s).to_slice(&mut panel[(s * rows + r) * LANES..]);
        }
    }
}

/// Vectors `at..at + steps` along k of the rows of `x` (`[rows, k]`) for outer products:
/// `[16][panels of 6 rows][steps][6]`, chain l holding k = l, l+16, ...; the last panel may be narrower. Chains are
/// [`x_stride`] apart. Panel by panel is the order in which a block reads them.
#[inline(always)]
pub(super) fn pack_x<V: Vector>(to: &mut [f32], x: &[f32], k: usize, at: usize, steps: usize) {
    let rows = x.len() / k;
    for top in (0..rows).step_by(ROWS) {
        let tall = ROWS.min(rows - top);
        for s in 0..steps {
            let mut v = [V::splat(0.0); LANES];
            for r in 0..tall {
                v[r] = vector(&x[(top + r) * k..(top + r + 1) * k], at + s);
            }
            let v = V::transpose(v);
            for l in 0..LANES {
                // Lanes past `tall` are overwritten by what follows; after the last panel they are padding.
                v[l].to_slice(&mut to[l * x_stride(rows, steps) + top * steps + s * tall..]);
            }
        }
    }
}

/// Distance of two chains of packed `x`.
pub(super) fn x_stride(rows: usize, steps: usize) -> usize {
    rows * steps + LANES
}

/// Distance of two chains of a packed slice of `w`. One line more than their length: the sixteen chains are
/// written side by side and would otherwise fall into one cache set.
pub(super) fn w_stride(steps: usize) -> usize {
    steps * BLOCK_N + LANES
}

/// Vectors of a row that are widened before the next row's turn: whole cache lines, one row after another, because
/// the rows of a matrix often lie a power of two apart and then share a cache set.
const STAGE: usize = 8;
const STAGE_ROW: usize = STAGE * LANES + LANES;
/// Elements of `stage`.
pub(super) const STAGE_LEN: usize = LANES * STAGE_ROW;

/// Vectors `at..at + steps` along k of rows of `w` (`[rows, k]`), widened and transposed: `[16][steps][BLOCK_N]`,
/// chain l holding k = l, l+16, ...; chains are [`w_stride`] apart. Columns are written in whole vectors, those
/// beyond the rows as zeros. `stage` is work memory of [`STAGE_LEN`].
#[inline(always)]
pub(super) fn pack_w<V: Vector, E: Element>(
    to: &mut [f32],
    stage: &mut [f32],
    w: &[E],
    k: usize,
    at: usize,
    steps: usize,
) {
    let rows = w.len() / k;
    for col in (0..rows).step_by(LANES) {
        let have = LANES.min(rows - col);
        stage[have * STAGE_ROW..].fill(0.0);
        for first in (0..steps).step_by(STAGE) {
            let count = STAGE.min(steps - first);
            for c in 0..have {
                let row = &w[(col + c) * k..(col + c + 1) * k];
                for s in 0..count {
                    vector::<V, E>(row, at + first + s).to_slice(&mut stage[c * STAGE_ROW + s * LANES..]);
                }
            }
            for s in 0..count {
                let mut v = [V::splat(0.0); LANES];
                for c in 0..LANES {
                    v[c] = V::from_slice(&stage[c * STAGE_ROW + s * LANES..]);
                }
                let v = V::transpose(v);
                for l in 0..LANES {
                    v[l].to_slice(&mut to[l * w_stride(steps) + (first + s) * BLOCK_N + col..]);
                }
            }
        }
    }
}

/// Vector `s` of a row, zero-padded past its end.
#[inline(always)]
fn vector<V: Vector, E: Element>(row: &[E], s: usize) -> V {
    let at = s * LANES;
    if at + LANES <= row.len() {
        // SAFETY: in bounds.
        return unsafe { E::load(row.as_ptr().add(at)) };
    }
    let mut last = [0.0; LANES];
    for (l, r) in last.iter_mut().zip(&row[at..]) {
        *l = r.to_f32();
    }
    V::from_slice(&last)
}
