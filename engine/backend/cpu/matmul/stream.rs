//! Few rows: weights are read once, straight from their stored form. Bound by memory.
//!
//! In: a [`Job`] of at most `STREAM_ROWS` rows. Out: its `y`. Owns: the split of `w`'s rows over threads.
//! Not here: the tile.

use std::cell::RefCell;

use super::super::buffer::Buffer;
use super::super::parallel::for_tasks;
use super::pack::{pack_x, tail};
use super::tile::{Operands, TILE_M, accumulate, reduce4};
use super::{Element, Job, Kernel, LANES, STREAM_ROWS, Vector, simd};

/// Bytes of weights in a task: enough to outweigh its start, few enough to balance threads.
const TASK_BYTES: usize = 256 * 1024;
/// Rows of `w` read side by side: separate address streams for the prefetchers.
const GROUP: usize = 4;
/// The same for one row of `x`, where more chains hide the FMA's latency.
const GROUP_ONE: usize = 8;

thread_local! {
    static PANELS: RefCell<Buffer> = const { RefCell::new(Buffer::new()) };
    static BLOCK: RefCell<Buffer> = const { RefCell::new(Buffer::new()) };
}

pub(super) fn drive<E: Element>(job: &Job<E>) {
    let kp = job.padded_k();
    let mut buffer = PANELS.take();
    let panels = buffer.slice(job.m * kp);
    for (p, x) in job.x.chunks(TILE_M * job.k.max(1)).enumerate() {
        let rows = x.len() / job.k;
        pack_x(&mut panels[p * TILE_M * kp..][..rows * kp], x, job.k, rows);
    }
    let row_bytes = (job.k * size_of::<E>() * job.count).max(1);
    let cols = (TASK_BYTES / row_bytes).max(1).next_multiple_of(GROUP_ONE).min(256);
    let tasks = job.n.div_ceil(cols);
    let panels = &*panels;
    for_tasks(tasks, |t| {
        let col = t * cols;
        BLOCK.with_borrow_mut(|block| {
            let block = block.slice(job.count * job.m * cols);
            simd::run(Columns { job, panels, col, cols: cols.min(job.n - col), stride: cols, block });
        });
    });
    PANELS.set(buffer);
}

/// A task: columns `col..col+cols` of `y`.
struct Columns<'a, E> {
    job: &'a Job<'a, E>,
    panels: &'a [f32],
    col: usize,
    cols: usize,
    stride: usize,
    block: &'a mut [f32],
}

impl<E: Element> Kernel for Columns<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let job = self.job;
        let (first, second) = self.block.split_at_mut(job.m * self.stride);
        let mut at = 0;
        while at < self.cols {
            let group = if job.m == 1 { GROUP_ONE } else { GROUP }.min(self.cols - at);
            for i in 0..job.count {
                let out: &mut [f32] = if i == 0 { &mut first[at..] } else { &mut second[at..] };
                let w = &job.w[i][(self.col + at) * job.k..(self.col + at + group) * job.k];
                match (job.m, group) {
                    (1, GROUP_ONE) => rows::<V, E, GROUP_ONE>(job, self.panels, w, out, self.stride),
                    (_, GROUP) => rows::<V, E, GROUP>(job, self.panels, w, out, self.stride),
                    _ => {
                        for c in 0..group {
                            let w = &w[c * job.k..(c + 1) * job.k];
                            rows::<V, E, 1>(job, self.panels, w, &mut out[c..], self.stride);
                        }
                    }
                }
            }
            at += group;
        }
        job.finish::<V>(0, job.m, self.col, self.cols, [first, second], self.stride);
    }
}

/// All rows of `x` against `N` rows of `w`; sums go to `out[row * stride + 0..N]`.
#[inline(always)]
fn rows<V: Vector, E: Element, const N: usize>(job: &Job<E>, panels: &[f32], w: &[E], out: &mut [f32], stride: usize) {
    let (k, kp) = (job.k, job.padded_k());
    let whole = k / LANES;
    let mut acc = [0.0f32; TILE_M * GROUP_ONE * LANES];
    let mut last = [0.0f32; GROUP_ONE * LANES];
    if whole * LANES < k {
        for c in 0..N {
            tail(&mut last[c * LANES..(c + 1) * LANES], &w[c * k + whole * LANES..(c + 1) * k]);
        }
    }
    assert!(w.len() == N * k && panels.len() >= job.m * kp && job.m <= STREAM_ROWS);
    for row in (0..job.m).step_by(TILE_M) {
        let rows = TILE_M.min(job.m - row);
        let x = panels[row * kp..(row + rows) * kp].as_ptr();
        // SAFETY: lengths asserted; the panel holds `rows` rows of `kp`, `w` N rows of `k`.
        unsafe {
            let op = Operands { x, w: w.as_ptr(), w_row: k, w_step: LANES, steps: whole };
            accumulate::<V, E, N>(rows, &op, acc.as_mut_ptr(), true);
            if whole * LANES < k {
                let x = x.add(whole * rows * LANES);
                let op = Operands { x, w: last.as_ptr(), w_row: LANES, w_step: 0, steps: 1 };
                accumulate::<V, f32, N>(rows, &op, acc.as_mut_ptr(), false);
            }
            for r in 0..rows {
                let out = &mut out[(row + r) * stride..][..N];
                let acc = acc.as_ptr().add(r * N * LANES);
                if N == 1 {
                    out[0] = V::load(acc).reduce_add();
                } else {
                    for c in (0..N).step_by(4) {
                        out[c..c + 4].copy_from_slice(&reduce4::<V>(acc.add(c * LANES)));
                    }
                }
            }
        }
    }
}
