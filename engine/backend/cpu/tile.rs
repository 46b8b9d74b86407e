//! The register tile: a few rows, an outer product a step.
//!
//! In: scalars of the rows, a packed matrix. Out: rows. Owns: the innermost loop of large products. Not here:
//! packing, blocking, softmax.
//!
//! Each output element is one FMA chain over the steps in ascending order. Three users: linear layers of many rows
//! (scalars = x, matrix = weights transposed), attention scores (q, keys transposed) and weighted sums
//! (probabilities, values). AVX-512 keeps 6 x 4 registers of sums: 10 loads for 24 FMAs; AVX2 6 x 2.

use super::simd::{LANES, Part, Vector};

/// Rows of a tile.
pub(super) const ROWS: usize = 6;
/// Vectors of columns of a tile.
pub(super) const VECTORS: usize = 4;

/// Where a tile's operands lie; strides in elements.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    /// Scalar of row r and step s at `a + r * a_row + s * a_step`.
    pub a: *const f32,
    pub a_row: usize,
    pub a_step: usize,
    /// How far ahead of its use `a` is asked for; it is the operand that comes from an outer cache.
    pub a_ahead: usize,
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

/// `out[r] (+)= sum over s of a[r][s] * b[s]`, for `1 <= rows <= ROWS` rows of `1 <= vectors <= VECTORS` vectors.
///
/// # Safety
/// `op` must describe readable and, for `out`, exclusively writable memory.
#[inline(always)]
pub(super) unsafe fn outer<V: Vector>(rows: usize, vectors: usize, op: Operands) {
    // SAFETY: rows and vectors of what the caller promised.
    unsafe {
        if const { V::WIDE } {
            match vectors {
                1 => tall::<V::Part, 1>(rows, op),
                2 => tall::<V::Part, 2>(rows, op),
                3 => tall::<V::Part, 3>(rows, op),
                _ => tall::<V::Part, VECTORS>(rows, op),
            }
        } else {
            for v in 0..vectors {
                let op = Operands { b: op.b.add(v * LANES), out: op.out.add(v * LANES), ..op };
                if const { V::Part::LANES == LANES } {
                    tall::<V::Part, 1>(rows, op);
                } else {
                    tall::<V::Part, 2>(rows, op);
                }
            }
        }
    }
}

/// `rows` rows of N registers.
///
/// # Safety
/// As [`outer`].
#[inline(always)]
unsafe fn tall<P: Part, const N: usize>(rows: usize, op: Operands) {
    // SAFETY: as the caller promised.
    unsafe {
        match rows {
            1 => registers::<P, 1, N>(op),
            2 => registers::<P, 2, N>(op),
            3 => registers::<P, 3, N>(op),
            4 => registers::<P, 4, N>(op),
            5 => registers::<P, 5, N>(op),
            _ => registers::<P, ROWS, N>(op),
        }
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
                    sum[r][c] = P::load(op.out.add(r * op.out_row + c * P::LANES));
                }
            }
        }
        let (mut a, mut b) = (op.a, op.b);
        for _ in 0..op.steps {
            P::prefetch(a.wrapping_add(op.a_ahead));
            let mut bv = [P::splat(0.0); N];
            for c in 0..N {
                bv[c] = P::load(b.add(c * P::LANES));
            }
            for r in 0..R {
                let av = P::splat(*a.add(r * op.a_row));
                for c in 0..N {
                    sum[r][c] = av.fma(bv[c], sum[r][c]);
                }
            }
            a = a.wrapping_add(op.a_step);
            b = b.wrapping_add(op.b_step);
        }
        for r in 0..R {
            for c in 0..N {
                sum[r][c].store(op.out.add(r * op.out_row + c * P::LANES));
            }
        }
    }
}
