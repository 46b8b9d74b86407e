//! Many rows: blocks of `y` whose operands stay in cache. Bound by arithmetic.
//!
//! In: a [`Job`]. Out: its `y`. Owns: block sizes, the packed panels. Not here: the tile.
//!
//! `x` is packed once, a stretch of rows at a time. A task is a block of `y`; it goes through k in slices whose
//! `x` panel (6 rows) fits L1 and whose `w` panels fit L2, and keeps the sixteen partial sums of every element
//! of the block from slice to slice, so that slicing does not change the order of summation.

use std::cell::RefCell;

use rayon::prelude::*;

use super::super::buffer::Buffer;
use super::super::parallel::for_tasks;
use super::pack::{pack_w, pack_x};
use super::tile::{Operands, TILE_M, TILE_N, accumulate, reduce4};
use super::{Element, Job, Kernel, LANES, Vector, simd};

/// Rows and columns of a block of `y`.
const BLOCK_M: usize = 32 * TILE_M;
const BLOCK_N: usize = 16 * TILE_N;
/// Vectors along k in a slice: 1024 elements, 24 KiB of `x` panel.
const SLICE: usize = 64;
/// Bytes of packed `x` at a time.
const STRETCH_BYTES: usize = 16 << 20;

/// What a thread needs for its block.
struct Work {
    w: Buffer,
    partial: Buffer,
    block: Buffer,
}

thread_local! {
    static PANELS: RefCell<Buffer> = const { RefCell::new(Buffer::new()) };
    static WORK: RefCell<Work> =
        const { RefCell::new(Work { w: Buffer::new(), partial: Buffer::new(), block: Buffer::new() }) };
}

pub(super) fn drive<E: Element>(job: &Job<E>) {
    let kp = job.padded_k();
    let most = (STRETCH_BYTES / (kp * 4).max(1)).max(BLOCK_M);
    let stretches = job.m.div_ceil(most);
    let stretch = job.m.div_ceil(stretches).next_multiple_of(TILE_M);
    let mut buffer = PANELS.take();
    let panels = buffer.slice(stretch * kp);
    for row in (0..job.m).step_by(stretch) {
        let rows = stretch.min(job.m - row);
        let x = &job.x[row * job.k..(row + rows) * job.k];
        if job.k > 0 {
            panels[..rows * kp].par_chunks_mut(TILE_M * kp).zip(x.par_chunks(TILE_M * job.k)).for_each(|(p, x)| {
                pack_x(p, x, job.k, x.len() / job.k);
            });
        }
        let (blocks_m, blocks_n) = (rows.div_ceil(BLOCK_M), job.n.div_ceil(BLOCK_N));
        let tall = rows.div_ceil(blocks_m).next_multiple_of(TILE_M);
        let panels = &panels[..rows * kp];
        // Neighbouring tasks share columns: their weights are then in an outer cache.
        for_tasks(blocks_m * blocks_n, |t| {
            let (top, col) = ((t % blocks_m) * tall, (t / blocks_m) * BLOCK_N);
            if top >= rows {
                return;
            }
            let block = Block {
                job,
                panels: &panels[top * kp..(top + tall).min(rows) * kp],
                row: row + top,
                rows: tall.min(rows - top),
                col,
                cols: BLOCK_N.min(job.n - col),
            };
            WORK.with_borrow_mut(|work| simd::run(InBlock { block, work }));
        });
    }
    PANELS.set(buffer);
}

/// A block of `y` and the packed rows of `x` it needs.
struct Block<'a, E> {
    job: &'a Job<'a, E>,
    panels: &'a [f32],
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
}

struct InBlock<'a, E> {
    block: Block<'a, E>,
    work: &'a mut Work,
}

impl<E: Element> Kernel for InBlock<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Block { job, panels, row, rows, col, cols } = self.block;
        let (first, second) = self.work.block.slice(job.count * rows * BLOCK_N).split_at_mut(rows * BLOCK_N);
        for i in 0..job.count {
            let out: &mut [f32] = if i == 0 { first } else { second };
            let wide = cols.div_ceil(TILE_N);
            let partial = self.work.partial.slice(rows.next_multiple_of(TILE_M) * wide * TILE_N * LANES);
            let kp = job.padded_k();
            if kp == 0 {
                out.fill(0.0);
                continue;
            }
            let slices = (kp / LANES).div_ceil(SLICE);
            let slice = (kp / LANES).div_ceil(slices);
            let mut at = 0;
            while at < kp / LANES {
                let steps = slice.min(kp / LANES - at);
                let w = self.work.w.slice(wide * TILE_N * steps * LANES);
                pack_w::<V, E>(w, job.w[i], job.k, col, cols, at * LANES, steps);
                let (start, end) = (at == 0, at + steps == kp / LANES);
                slice_of_block::<V>(panels, kp, rows, w, wide, at, steps, partial, start);
                if end {
                    reduce::<V>(partial, rows, wide, cols, out);
                }
                at += steps;
            }
        }
        job.finish::<V>(row, rows, col, cols, [first, second], BLOCK_N);
    }
}

/// Every tile of a block over one slice of k.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // One call site; a struct would only rename them.
fn slice_of_block<V: Vector>(
    panels: &[f32],
    kp: usize,
    rows: usize,
    w: &[f32],
    wide: usize,
    at: usize,
    steps: usize,
    partial: &mut [f32],
    start: bool,
) {
    for top in (0..rows).step_by(TILE_M) {
        let tall = TILE_M.min(rows - top);
        let x = &panels[top * kp + at * tall * LANES..][..steps * tall * LANES];
        for c in 0..wide {
            let w = &w[c * steps * TILE_N * LANES..][..steps * TILE_N * LANES];
            let acc = &mut partial[(top * wide + c * tall) * TILE_N * LANES..][..tall * TILE_N * LANES];
            let op = Operands { x: x.as_ptr(), w: w.as_ptr(), w_row: LANES, w_step: TILE_N * LANES, steps };
            // SAFETY: the three slices have the lengths that the tile reads and writes.
            unsafe { accumulate::<V, f32, TILE_N>(tall, &op, acc.as_mut_ptr(), start) };
        }
    }
}

/// Sums the partial sums of a whole block into `out`, of row stride `BLOCK_N`.
#[inline(always)]
fn reduce<V: Vector>(partial: &[f32], rows: usize, wide: usize, cols: usize, out: &mut [f32]) {
    for top in (0..rows).step_by(TILE_M) {
        let tall = TILE_M.min(rows - top);
        for c in 0..wide {
            let acc = &partial[(top * wide + c * tall) * TILE_N * LANES..][..tall * TILE_N * LANES];
            for r in 0..tall {
                // SAFETY: `acc` holds four vectors for each row.
                let sums = unsafe { reduce4::<V>(acc.as_ptr().add(r * TILE_N * LANES)) };
                let have = TILE_N.min(cols - c * TILE_N);
                out[(top + r) * BLOCK_N + c * TILE_N..][..have].copy_from_slice(&sums[..have]);
            }
        }
    }
}
