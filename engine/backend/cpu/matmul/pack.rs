//! Panels: operands copied so that a tile reads them front to back.
//!
//! In: rows. Out: panels, zero-padded along k to whole vectors. Owns: the panel layouts. Not here: arithmetic.

use super::super::simd::{Element, LANES, Vector};
use super::tile::TILE_N;

/// Rows of `x` (`[rows, k]`) as `[padded_k / 16][rows][16]`.
pub(super) fn pack_x(panel: &mut [f32], x: &[f32], k: usize, rows: usize) {
    for (s, step) in panel.chunks_exact_mut(rows * LANES).enumerate() {
        let at = s * LANES;
        let have = (k - at).min(LANES);
        for (r, lanes) in step.chunks_exact_mut(LANES).enumerate() {
            lanes[..have].copy_from_slice(&x[r * k + at..r * k + at + have]);
            lanes[have..].fill(0.0);
        }
    }
}

/// Columns `at..at + steps * 16` of rows `row..` of `w` (`[n, k]`), widened, as
/// `[panels of 4 rows][steps][4][16]`; rows from `rows` on and columns from `k` on are zero.
#[inline(always)]
pub(super) fn pack_w<V: Vector, E: Element>(
    panels: &mut [f32],
    w: &[E],
    k: usize,
    row: usize,
    rows: usize,
    at: usize,
    steps: usize,
) {
    let whole = ((k - at) / LANES).min(steps);
    for (p, panel) in panels.chunks_exact_mut(steps * TILE_N * LANES).enumerate() {
        for c in 0..TILE_N {
            let r = p * TILE_N + c;
            if r >= rows {
                for step in panel.chunks_exact_mut(TILE_N * LANES) {
                    step[c * LANES..(c + 1) * LANES].fill(0.0);
                }
                continue;
            }
            let from = &w[(row + r) * k + at..(row + r + 1) * k];
            for s in 0..whole {
                let to = &mut panel[s * TILE_N * LANES + c * LANES..][..LANES];
                // SAFETY: sixteen elements from s * 16 on lie within the row.
                let v: V = unsafe { E::load(from[s * LANES..(s + 1) * LANES].as_ptr()) };
                v.to_slice(to);
            }
            if whole < steps {
                let to = &mut panel[whole * TILE_N * LANES + c * LANES..][..LANES];
                tail(to, &from[whole * LANES..]);
            }
        }
    }
}

/// A last, partial vector, zero-padded.
#[inline(always)]
pub(super) fn tail<E: Element>(to: &mut [f32], from: &[E]) {
    for (t, f) in to.iter_mut().zip(from) {
        *t = f.to_f32();
    }
    to[from.len()..].fill(0.0);
}
