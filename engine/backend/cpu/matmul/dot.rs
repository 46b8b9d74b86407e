//! The register tile of few rows: rows of `x` against rows of `w`, sixteen partial sums for each pair.
//!
//! In: `x` packed by `pack.rs`, rows of `w` in stored form. Out: partial sums in memory, and their sums.
//! Owns: the innermost loop of memory-bound products. Not here: threads; products of many rows (`blocked.rs`).
//!
//! Lane l sums k = l, l+16, ...: loads along k need no transposition, so weights go from memory to FMA directly.

use super::super::simd::{Element, LANES, Part, Vector};

/// Rows of `x` in a panel.
pub(super) const TILE_M: usize = 6;

/// Adds `steps` vectors along k to the partial sums `acc[rows][N][16]`, or starts them when `start`.
/// Row r of step s of `x` is at `x + (s * rows + r) * 16`, that of column c of `w` at `w[c] + s * w_step`.
///
/// # Safety
/// Those addresses must be readable, `acc` writable, `1 <= rows <= R <= TILE_M`.
#[inline(always)]
pub(super) unsafe fn accumulate<V: Vector, E: Element, const R: usize, const N: usize>(
    rows: usize,
    x: *const f32,
    w: [*const E; N],
    w_step: usize,
    steps: usize,
    acc: *mut f32,
    start: bool,
) {
    let part = V::Part::LANES;
    let mut row = 0;
    while row < rows {
        let count = V::DOT_ROWS.min(rows - row);
        let mut lane = 0;
        while lane < LANES {
            // SAFETY: sub-tiles of what the caller promised.
            unsafe {
                let operands = Operands {
                    x: x.add(row * LANES + lane),
                    x_step: rows * LANES,
                    w: {
                        let mut w = w;
                        for w in &mut w {
                            *w = w.add(lane);
                        }
                        w
                    },
                    w_step,
                    steps,
                    acc: acc.add(row * N * LANES + lane),
                    start,
                };
                // The guards are constants: a register file or a caller too small for a tile compiles none.
                match count {
                    2 if const { R >= 2 && V::DOT_ROWS >= 2 } => registers::<V::Part, E, 2, N>(operands),
                    3 if const { R >= 3 && V::DOT_ROWS >= 3 } => registers::<V::Part, E, 3, N>(operands),
                    4 if const { R >= 4 && V::DOT_ROWS >= 4 } => registers::<V::Part, E, 4, N>(operands),
                    5 if const { R >= 5 && V::DOT_ROWS >= 5 } => registers::<V::Part, E, 5, N>(operands),
                    6 if const { R >= 6 && V::DOT_ROWS >= 6 } => registers::<V::Part, E, 6, N>(operands),
                    _ => registers::<V::Part, E, 1, N>(operands),
                }
            }
            lane += part;
        }
        row += count;
    }
}

/// Where a tile's operands lie; strides in elements.
struct Operands<E, const N: usize> {
    x: *const f32,
    x_step: usize,
    w: [*const E; N],
    w_step: usize,
    steps: usize,
    acc: *mut f32,
    start: bool,
}

/// R x N pairs held in registers.
///
/// # Safety
/// As [`accumulate`].
#[inline(always)]
unsafe fn registers<P: Part, E: Element, const R: usize, const N: usize>(op: Operands<E, N>) {
    // SAFETY: all addresses are inside what the caller of `accumulate` promised.
    unsafe {
        let mut sum = [[P::splat(0.0); N]; R];
        if !op.start {
            for r in 0..R {
                for c in 0..N {
                    sum[r][c] = P::load(op.acc.add((r * N + c) * LANES));
                }
            }
        }
        let (mut x, mut w) = (op.x, op.w);
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
            x = x.wrapping_add(op.x_step);
            for c in 0..N {
                w[c] = w[c].wrapping_add(op.w_step);
            }
        }
        for r in 0..R {
            for c in 0..N {
                sum[r][c].store(op.acc.add((r * N + c) * LANES));
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
