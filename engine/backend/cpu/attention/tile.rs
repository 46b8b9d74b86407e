//! The register tile of attention: a few rows, an outer product a step.
//!
//! In: rows of scalars, a packed matrix. Out: rows. Owns: the innermost loop. Not here: softmax, blocking.
//!
//! Serves both products: scores (scalars = q, matrix = keys transposed) and the weighted sum (scalars =
//! probabilities, matrix = values). Each output element is one FMA chain over the steps in ascending order.

use super::super::simd::{Element, LANES, Part, Vector};

/// Rows of a tile.
pub(super) const ROWS: usize = 6;

/// Where a tile's operands lie; strides in elements.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    /// Scalar of row r and step s at `a + r * a_row + s`.
    pub a: *const f32,
    pub a_row: usize,
    /// Vectors of step s at `b + s * b_step`.
    pub b: *const f32,
    pub b_step: usize,
    pub steps: usize,
    /// Row r at `out + r * out_row`.
    pub out: *mut f32,
    pub out_row: usize,
    /// Whether to start from zero instead of what `out` holds.
    pub start: bool,
}

/// `out[r] (+)= sum over s of a[r][s] * b[s]`, for `rows` rows of `N` vectors.
///
/// # Safety
/// `op` must describe readable and, for `out`, exclusively writable memory; `rows <= ROWS`.
#[inline(always)]
pub(super) unsafe fn outer<V: Vector, const N: usize>(rows: usize, op: Operands) {
    let mut row = 0;
    while row < rows {
        let count = V::TILE_ROWS.min(rows - row);
        let mut lane = 0;
        while lane < LANES {
            // SAFETY: a sub-tile of what the caller promised.
            unsafe {
                let op = Operands {
                    a: op.a.add(row * op.a_row),
                    b: op.b.add(lane),
                    out: op.out.add(row * op.out_row + lane),
                    ..op
                };
                match count {
                    1 => registers::<V::Part, 1, N>(op),
                    2 => registers::<V::Part, 2, N>(op),
                    3 => registers::<V::Part, 3, N>(op),
                    4 => registers::<V::Part, 4, N>(op),
                    5 => registers::<V::Part, 5, N>(op),
                    _ => registers::<V::Part, 6, N>(op),
                }
            }
            lane += V::Part::LANES;
        }
        row += count;
    }
}

/// R rows of N registers.
///
/// # Safety
/// As [`outer`].
#[inline(always)]
unsafe fn registers<P: Part, const R: usize, const N: usize>(op: Operands) {
    // SAFETY: all addresses are inside what the caller of `outer` promised.
    unsafe {
        let mut sum = [[P::splat(0.0); N]; R];
        if !op.start {
            for r in 0..R {
                for c in 0..N {
                    sum[r][c] = P::load(op.out.add(r * op.out_row + c * LANES));
                }
            }
        }
        let mut b = op.b;
        for s in 0..op.steps {
            let mut bv = [P::splat(0.0); N];
            for c in 0..N {
                bv[c] = P::load(b.add(c * LANES));
            }
            for r in 0..R {
                let av = P::splat(*op.a.add(r * op.a_row + s));
                for c in 0..N {
                    sum[r][c] = av.fma(bv[c], sum[r][c]);
                }
            }
            b = b.wrapping_add(op.b_step);
        }
        for r in 0..R {
            for c in 0..N {
                sum[r][c].store(op.out.add(r * op.out_row + c * LANES));
            }
        }
    }
}

/// `to[d * to_row + i] = from[i * from_row + d]` for `count` rows of `dim`, widened.
#[inline(always)]
pub(super) fn transpose<E: Element>(
    to: &mut [f32],
    to_row: usize,
    from: &[E],
    from_row: usize,
    count: usize,
    dim: usize,
) {
    for i in 0..count {
        for (d, x) in from[i * from_row..][..dim].iter().enumerate() {
            to[d * to_row + i] = x.to_f32();
        }
    }
}
