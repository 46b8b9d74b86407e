//! Many rows: blocks of `y` whose operands stay in cache. Bound by arithmetic.
//!
//! In: a [`Job`]. Out: its `y`. Owns: block sizes, the packed panels. Not here: the tile.
//!
//! The sixteen partial sums of an element are sixteen chains of the outer-product tile, one after another instead
//! of side by side in a register: the same FMAs in the same order as in `dot.rs`, but a tile's operands are then a
//! vector of columns and a scalar, which cost far less cache traffic than two vectors along k.
//!
//! `x` is packed once, a stretch of rows at a time. A task packs its columns of `w` once, then makes blocks of `y`:
//! slice of k after slice, chain after chain, it runs all tiles of the block over a piece of `w` that lies in L1.

use std::cell::RefCell;

use rayon::prelude::*;

use super::super::buffer::Buffer;
use super::super::parallel::for_tasks;
use super::super::tile::{Operands, ROWS};
use super::pack::{STAGE_LEN, pack_w, pack_x, w_stride, x_stride};
use super::{BLOCK_N, Element, Finished, Job, Kernel, LANES, Vector, simd};

/// Rows of a block of `y`.
const BLOCK_M: usize = 32 * ROWS;
/// Steps of a chain in a slice: 16 KiB of `w`, k advances by 1024.
const SLICE: usize = 64;
/// Bytes of packed `x` at a time.
const STRETCH_BYTES: usize = 16 << 20;

/// What a thread needs for its block.
struct Work {
    w: Buffer,
    stage: Buffer,
    partial: Buffer,
    block: Buffer,
}

thread_local! {
    static PANELS: RefCell<Buffer> = const { RefCell::new(Buffer::new()) };
    static WORK: RefCell<Work> =
        const { RefCell::new(Work { w: Buffer::new(), stage: Buffer::new(), partial: Buffer::new(), block: Buffer::new() }) };
}

/// How k is cut.
#[derive(Clone, Copy)]
struct Cut {
    /// Vectors along k, and in a slice (the last one may be shorter).
    steps: usize,
    slice: usize,
}

impl Cut {
    fn new(steps: usize) -> Cut {
        Cut { steps, slice: steps.div_ceil(steps.div_ceil(SLICE).max(1)).max(1) }
    }

    /// `(first step, steps)` of each slice.
    fn slices(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.steps).step_by(self.slice).map(move |at| (at, self.slice.min(self.steps - at)))
    }

    /// Elements of a packed slice of `rows` rows of `x`; the last slice may need fewer.
    fn packed_x(self, rows: usize) -> usize {
        LANES * x_stride(rows, self.slice)
    }

    /// Elements of a packed slice of `w`.
    fn packed_w(self) -> usize {
        LANES * w_stride(self.slice)
    }

    /// Elements of `rows` rows of packed `x`.
    fn packed_block(self, rows: usize) -> usize {
        self.packed_x(rows) * self.steps.div_ceil(self.slice)
    }
}

pub(super) fn drive<E: Element>(job: &Job<E>) {
    let cut = Cut::new(job.padded_k() / LANES);
    let most = (STRETCH_BYTES / (job.padded_k() * 4).max(1)).max(BLOCK_M);
    let stretch = job.m.div_ceil(job.m.div_ceil(most));
    let tall = stretch.div_ceil(stretch.div_ceil(BLOCK_M)).next_multiple_of(ROWS);
    let block_len = cut.packed_block(tall).max(1);
    let mut buffer = PANELS.take();
    let packed = buffer.slice(block_len * stretch.div_ceil(tall));
    for row in (0..job.m).step_by(stretch) {
        let rows = stretch.min(job.m - row);
        let (blocks_m, blocks_n) = (rows.div_ceil(tall), job.n.div_ceil(BLOCK_N));
        let x = &job.x[row * job.k..(row + rows) * job.k];
        if cut.steps > 0 {
            packed.par_chunks_mut(block_len).zip(x.par_chunks(tall * job.k)).for_each(|(to, x)| {
                let slices: Vec<_> = cut.slices().collect();
                to.par_chunks_mut(cut.packed_x(x.len() / job.k)).zip(slices).for_each(|(to, (at, steps))| {
                    simd::run(PackX { to, x, k: job.k, at, steps });
                });
            });
        }
        let packed = &*packed;
        // A task does some blocks of the same columns; fewer of them when there are many threads.
        let groups = (4 * rayon::current_num_threads()).div_ceil(blocks_n).min(blocks_m);
        for_tasks(groups * blocks_n, |t| {
            let (group, col) = (t % groups, (t / groups) * BLOCK_N);
            let blocks = group * blocks_m / groups..(group + 1) * blocks_m / groups;
            let columns = Columns { job, cut, col, cols: BLOCK_N.min(job.n - col) };
            WORK.with_borrow_mut(|work| {
                columns.pack(&mut work.w, work.stage.slice(STAGE_LEN));
                for block in blocks {
                    let top = block * tall;
                    let rows = tall.min(rows - top);
                    columns.block(&packed[block * block_len..][..cut.packed_block(rows)], row + top, rows, work);
                }
            });
        });
    }
    PANELS.set(buffer);
}

/// Some columns of `y`.
struct Columns<'a, E> {
    job: &'a Job<'a, E>,
    cut: Cut,
    col: usize,
    cols: usize,
}

impl<E: Element> Columns<'_, E> {
    /// Elements of a packed matrix.
    fn packed(&self) -> usize {
        self.cut.packed_w() * self.cut.slices().count()
    }

    /// Packs these columns of every matrix.
    fn pack(&self, to: &mut Buffer, stage: &mut [f32]) {
        let (job, cut) = (self.job, self.cut);
        let to = to.slice(job.count * self.packed());
        for (w, to) in job.w.iter().zip(to.chunks_mut(self.packed().max(1))) {
            let w = &w[self.col * job.k..(self.col + self.cols) * job.k];
            for ((at, steps), to) in cut.slices().zip(to.chunks_mut(cut.packed_w())) {
                simd::run(PackW { to, stage, w, k: job.k, at, steps });
            }
        }
    }

    /// Rows `row..row + rows` of `y`, from their packed `x` and the packed matrices.
    fn block(&self, x: &[f32], row: usize, rows: usize, work: &mut Work) {
        let Columns { job, cut, col, cols } = *self;
        let w = &*work.w.slice(job.count * self.packed());
        let (first, second) = work.block.slice(job.count * rows * BLOCK_N).split_at_mut(rows * BLOCK_N);
        let mut products = [first, second];
        // [16][rows][BLOCK_N]
        let partial = work.partial.slice(LANES * rows * BLOCK_N);
        for (i, product) in products.iter_mut().enumerate().take(job.count) {
            if cut.steps == 0 {
                partial.fill(0.0);
            }
            let w = &w[i * self.packed()..];
            let slices = cut.slices().zip(x.chunks(cut.packed_x(rows))).zip(w.chunks(cut.packed_w()));
            for (((at, steps), x), w) in slices {
                simd::run(Chains { x, w, partial, rows, cols, steps, start: at == 0 });
            }
            simd::run(Reduce { partial, product });
        }
        simd::run(Finished { output: &job.output, row, rows, col, cols, products, stride: BLOCK_N });
    }
}

struct PackX<'a> {
    to: &'a mut [f32],
    x: &'a [f32],
    k: usize,
    at: usize,
    steps: usize,
}

impl Kernel for PackX<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        pack_x::<V>(self.to, self.x, self.k, self.at, self.steps);
    }
}

struct PackW<'a, E> {
    to: &'a mut [f32],
    stage: &'a mut [f32],
    w: &'a [E],
    k: usize,
    at: usize,
    steps: usize,
}

impl<E: Element> Kernel for PackW<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        pack_w::<V, E>(self.to, self.stage, self.w, self.k, self.at, self.steps);
    }
}

/// Adds a slice of k to all sixteen chains of a block.
struct Chains<'a> {
    x: &'a [f32],
    w: &'a [f32],
    partial: &'a mut [f32],
    rows: usize,
    cols: usize,
    steps: usize,
    start: bool,
}

impl Kernel for Chains<'_> {
    type Out = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let Chains { x, w, partial, rows, cols, steps, start } = self;
        for l in 0..LANES {
            let x = &x[l * x_stride(rows, steps)..][..rows * steps];
            let w = &w[l * w_stride(steps)..][..steps * BLOCK_N];
            let partial = &mut partial[l * rows * BLOCK_N..][..rows * BLOCK_N];
            for top in (0..rows).step_by(ROWS) {
                let tall = ROWS.min(rows - top);
                let op = Operands {
                    a: x[top * steps..(top + tall) * steps].as_ptr(),
                    a_row: 1,
                    a_step: tall,
                    a_ahead: 2 * ROWS * steps,
                    b: w.as_ptr(),
                    b_step: BLOCK_N,
                    steps,
                    out: partial[top * BLOCK_N..(top + tall) * BLOCK_N].as_mut_ptr(),
                    out_row: BLOCK_N,
                    start,
                };
                // SAFETY: `a` is [steps][tall], `b` [steps][BLOCK_N], `out` [tall][BLOCK_N].
                unsafe { V::outer(tall, cols.div_ceil(LANES), op) };
            }
        }
    }
}

/// Sums the sixteen chains by halving: l + (l+8), then +4, +2, +1.
struct Reduce<'a> {
    partial: &'a [f32],
    product: &'a mut [f32],
}

impl Kernel for Reduce<'_> {
    type Out = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let stride = self.partial.len() / LANES;
        for at in (0..stride).step_by(LANES) {
            let mut v = [V::splat(0.0); LANES];
            for l in 0..LANES {
                v[l] = V::from_slice(&self.partial[l * stride + at..]);
            }
            for l in 0..8 {
                v[l] = v[l].add(v[l + 8]);
            }
            for l in 0..4 {
                v[l] = v[l].add(v[l + 4]);
            }
            v[0].add(v[2]).add(v[1].add(v[3])).to_slice(&mut self.product[at..]);
        }
    }
}
