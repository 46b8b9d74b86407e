//! The register tile: a few rows of `x` against a few rows of `w`, sixteen partial sums for each pair.
//!
//! In: `x` packed by `pack.rs`, `w` packed or in stored form. Out: partial sums in memory, and their sums.
//! Owns: the innermost loop. Not here: blocking, threads.
//!
//! 6 x 4 pairs of AVX-512 registers: 10 loads for 24 FMAs, 29 registers. AVX2 does the same pairs as 3 x 4
//! half vectors, four times.

use super::super::simd::{Element, LANES, Part, Vector};

/// Rows of `x` in a panel.
pub(super) const TILE_M: usize = 6;
/// Rows of `w` in a packed panel.
pub(super) const TILE_N: usize = 4;

/// Where a tile's operands lie. Strides are in elements.
pub(super) struct Operands<E> {
    /// Row r of step s is at `x + s * rows * 16 + r * 16`.
    pub x: *const f32,
    /// Row c of step s is at `w + c * w_row + s * w_step`.
    pub w: *const E,
    pub w_row: usize,
    pub w_step: usize,
    /// Vectors along k.
    pub steps: usize,
}

/// Adds `steps` vectors along k to the partial sums `acc[rows][N][16]`, or starts them when `start`.
///
/// # Safety
/// `op` must describe readable memory and `acc` must be writable; `rows <= TILE_M`.
#[inline(always)]
pub(super) unsafe fn accumulate<V: Vector, E: Element, const N: usize>(
    rows: usize,
    op: &Operands<E>,
    acc: *mut f32,
    start: bool,
) {
    let part = V::Part::LANES;
    let mut row = 0;
    while row < rows {
        let count = V::TILE_ROWS.min(rows - row);
        let mut lane = 0;
        while lane < LANES {
            // SAFETY: sub-tiles of what the caller promised.
            unsafe {
                let x = op.x.add(row * LANES + lane);
                let w = op.w.add(lane);
                let acc = acc.add(row * N * LANES + lane);
                let step = rows * LANES;
                match count {
                    1 => registers::<V::Part, E, 1, N>(x, step, w, op, acc, start),
                    2 => registers::<V::Part, E, 2, N>(x, step, w, op, acc, start),
                    3 => registers::<V::Part, E, 3, N>(x, step, w, op, acc, start),
                    4 => registers::<V::Part, E, 4, N>(x, step, w, op, acc, start),
                    5 => registers::<V::Part, E, 5, N>(x, step, w, op, acc, start),
                    _ => registers::<V::Part, E, 6, N>(x, step, w, op, acc, start),
                }
            }
            lane += part;
        }
        row += count;
    }
}

/// R x N pairs held in registers.
///
/// # Safety
/// As [`accumulate`].
#[inline(always)]
unsafe fn registers<P: Part, E: Element, const R: usize, const N: usize>(
    x: *const f32,
    x_step: usize,
    w: *const E,
    op: &Operands<E>,
    acc: *mut f32,
    start: bool,
) {
    // SAFETY: all addresses are inside what the caller of `accumulate` promised; prefetches may be anywhere.
    unsafe {
        let mut sum = [[P::splat(0.0); N]; R];
        if !start {
            for r in 0..R {
                for c in 0..N {
                    sum[r][c] = P::load(acc.add((r * N + c) * LANES));
                }
            }
        }
        let mut x = x;
        let mut w = [w; N];
        for c in 0..N {
            w[c] = w[c].add(c * op.w_row);
        }
        for _ in 0..op.steps {
            let mut wv = [P::splat(0.0); N];
            for c in 0..N {
                wv[c] = E::load::<P>(w[c]);
            }
            for r in 0..R {
                let xv = P::load(x.add(r * LANES));
                for c in 0..N {
                    sum[r][c] = xv.fma(wv[c], sum[r][c]);
                }
            }
            x = x.wrapping_add(x_step);
            for w in &mut w {
                *w = w.wrapping_add(op.w_step);
            }
        }
        for r in 0..R {
            for c in 0..N {
                sum[r][c].store(acc.add((r * N + c) * LANES));
            }
        }
    }
}

/// Sums of the sixteen lanes of four neighbouring pairs.
///
/// # Safety
/// `acc` must be readable for 64 values.
#[inline(always)]
pub(super) unsafe fn reduce4<V: Vector>(acc: *const f32) -> [f32; 4] {
    // SAFETY: as the caller promised.
    unsafe {
        V::reduce_add4([
            V::load(acc),
            V::load(acc.add(LANES)),
            V::load(acc.add(2 * LANES)),
            V::load(acc.add(3 * LANES)),
        ])
    }
}
