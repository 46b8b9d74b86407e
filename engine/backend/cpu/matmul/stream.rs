//! Few rows: weights are read once, straight from their stored form. Bound by memory.
//!
//! In: a [`Job`] of at most `STREAM_ROWS` rows. Out: its `y`. Owns: the split of `w`'s rows over threads.
//! Not here: the tile.

use std::cell::RefCell;

use super::super::buffer::Buffer;
use super::super::parallel::for_tasks;
use super::dot::{TILE_M, accumulate, reduce4};
use super::pack::pack_dot;
use super::{Element, Finished, Job, Kernel, LANES, STREAM_ROWS, Vector, simd};

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
    simd::run(PackX { panels, x: job.x, k: job.k, kp });
    let row_bytes = (job.k * size_of::<E>() * job.count).max(1);
    let cols = (TASK_BYTES / row_bytes).max(1).next_multiple_of(GROUP_ONE).min(256);
    let tasks = job.n.div_ceil(cols);
    let panels = &*panels;
    for_tasks(tasks, |t| {
        let col = t * cols;
        BLOCK.with_borrow_mut(|block| {
            let block = block.slice(job.count * job.m * cols);
            let (cols, stride) = (cols.min(job.n - col), cols);
            let (first, second) = block.split_at_mut(job.m * stride);
            let mut products = [first, second];
            for (w, product) in job.w.iter().zip(&mut products).take(job.count) {
                let w = &w[col * job.k..(col + cols) * job.k];
                simd::run(Columns { m: job.m, k: job.k, panels, w, cols, product, stride });
            }
            simd::run(Finished { output: &job.output, row: 0, rows: job.m, col, cols, products, stride });
        });
    });
    PANELS.set(buffer);
}

struct PackX<'a> {
    panels: &'a mut [f32],
    x: &'a [f32],
    k: usize,
    kp: usize,
}

impl Kernel for PackX<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        for (p, x) in self.x.chunks(TILE_M * self.k.max(1)).enumerate() {
            pack_dot::<V>(&mut self.panels[p * TILE_M * self.kp..], x, self.k, x.len() / self.k);
        }
    }
}

/// All rows of `x` against `cols` rows of `w`.
struct Columns<'a, E> {
    m: usize,
    k: usize,
    panels: &'a [f32],
    w: &'a [E],
    cols: usize,
    product: &'a mut [f32],
    stride: usize,
}

impl<E: Element> Kernel for Columns<'_, E> {
    type Out = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let mut at = 0;
        while at < self.cols {
            if self.m == 1 {
                rows::<V, E, 1, GROUP_ONE>(&mut self, at);
                at += GROUP_ONE;
            } else {
                rows::<V, E, TILE_M, GROUP>(&mut self, at);
                at += GROUP;
            }
        }
    }
}

/// All rows of `x`, at most `R` at a time, against rows `at..at + N` of `w`. Those from `cols` on repeat the last one
/// and are dropped.
#[inline(always)]
fn rows<V: Vector, E: Element, const R: usize, const N: usize>(task: &mut Columns<E>, at: usize) {
    let (m, k) = (task.m, task.k);
    let cols = N.min(task.cols - at);
    let w = &task.w[at * k..(at + cols) * k];
    let kp = k.next_multiple_of(LANES);
    let whole = k / LANES;
    assert!(cols > 0 && task.panels.len() >= m * kp && m <= STREAM_ROWS);
    // The last, partial vector of each row, zero-padded.
    let mut last = [E::default(); GROUP_ONE * LANES];
    for c in 0..cols {
        last[c * LANES..][..k - whole * LANES].copy_from_slice(&w[c * k + whole * LANES..(c + 1) * k]);
    }
    let passes = [(w.as_ptr(), k, whole), (last.as_ptr(), LANES, kp / LANES - whole)];
    let mut acc = [0.0f32; TILE_M * GROUP_ONE * LANES];
    for row in (0..m).step_by(R) {
        let rows = R.min(m - row);
        let mut x = task.panels[row * kp..(row + rows) * kp].as_ptr();
        for (w, w_row, steps) in passes {
            let start = w == passes[0].0;
            // SAFETY: lengths asserted; `x` has `rows` rows of `kp`, `w` `cols` rows of `k`, `last` as many of 16.
            unsafe {
                let mut columns = [w; N];
                for c in 0..N {
                    columns[c] = w.add(c.min(cols - 1) * w_row);
                }
                accumulate::<V, E, R, N>(rows, x, columns, LANES, steps, acc.as_mut_ptr(), start);
                x = x.add(steps * rows * LANES);
            }
        }
        for r in 0..rows {
            let out = &mut task.product[(row + r) * task.stride + at..][..cols];
            for (c, out) in out.chunks_mut(4).enumerate() {
                // SAFETY: `acc` holds N vectors for each row, N a multiple of four.
                let sums = unsafe { reduce4::<V>(acc.as_ptr().add((r * N + c * 4) * LANES)) };
                out.copy_from_slice(&sums[..out.len()]);
            }
        }
    }
}
