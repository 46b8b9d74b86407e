//! A task of attention: some rows against all their keys, block by block.
//!
//! In: a [`Problem`] and a [`Task`]. Out: the task's rows of `out`. Owns: masks, the online softmax, its order
//! of summation. Not here: where keys come from, the register tile.
//!
//! For each row and block: s = scale (q k), m' = max(m, s), p = e^(s - m'), l = l e^(m - m') + p, o = o e^(m - m') + p v;
//! at the end o / l. l is kept as sixteen lanes and summed by halving.

use super::super::buffer::Buffer;
use super::super::math::exp;
use super::super::simd::{Kernel, LANES, Vector};
use super::super::tile::{Operands, ROWS, VECTORS};
use super::{KEYS, Problem, Segment, Task};

/// Memory of a thread.
pub(super) struct Work {
    q: Buffer,
    keys: Buffer,
    values: Buffer,
    scores: Buffer,
    /// Running o, l and m of each row.
    out: Buffer,
    sum: Buffer,
    max: Buffer,
}

impl Work {
    pub const fn new() -> Work {
        Work {
            q: Buffer::new(),
            keys: Buffer::new(),
            values: Buffer::new(),
            scores: Buffer::new(),
            out: Buffer::new(),
            sum: Buffer::new(),
            max: Buffer::new(),
        }
    }
}

/// The kernel that does a task.
pub(super) struct Solve<'a, 'p> {
    pub problem: &'a Problem<'p>,
    pub task: Task,
    pub work: &'a mut Work,
}

/// Which keys a row sees.
#[derive(Clone, Copy)]
struct Sight {
    segment: Segment,
    group: usize,
    window: Option<usize>,
}

impl Sight {
    /// Positions `from..to` that `row` of the segment sees; both ascend with the row.
    #[inline(always)]
    fn of(&self, row: usize) -> (usize, usize) {
        match self.segment.position {
            None => (0, self.segment.keys),
            Some(p) => {
                let to = p + row / self.group + 1;
                (self.window.map_or(0, |w| to.saturating_sub(w)), to)
            }
        }
    }
}

impl Kernel for Solve<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        let (problem, task) = (self.problem, self.task);
        let heads = problem.heads;
        let dim = heads.head_dim;
        let padded = dim.next_multiple_of(LANES);
        let group = heads.num_heads / heads.num_kv_heads;
        let segment = problem.segments[task.segment];
        let sight = Sight { segment, group, window: problem.window };
        let rows = task.rows;
        // Where row r of the task lies in q and out.
        let place = |r: usize| {
            let row = task.first + r;
            (segment.query + row / group, (task.kv_head * group + row % group) * dim)
        };

        let q = self.work.q.slice(rows * dim);
        let width = heads.num_heads * dim;
        for (r, q) in q.chunks_exact_mut(dim).enumerate() {
            let (token, col) = place(r);
            q.copy_from_slice(&problem.q[token * width + col..][..dim]);
        }
        let out = self.work.out.slice(rows * padded);
        out.fill(0.0);
        let sum = self.work.sum.slice(rows * LANES);
        sum.fill(0.0);
        let max = self.work.max.slice(rows);
        max.fill(f32::NEG_INFINITY);
        let keys = self.work.keys.slice(dim * KEYS);
        let values = self.work.values.slice(KEYS * padded);
        let scores = self.work.scores.slice(ROWS * KEYS);
        if padded > dim {
            for v in values.chunks_exact_mut(padded) {
                v[dim..].fill(0.0);
            }
        }

        let (low, _) = sight.of(task.first);
        let (_, high) = sight.of(task.first + rows - 1);
        let mut at = low / KEYS * KEYS;
        while at < high {
            let (from, to) = (low.max(at), high.min(at + KEYS));
            // Scores outside are masked, but zero times a leftover NaN would not be zero.
            values[..(from - at) * padded].fill(0.0);
            values[(to - at) * padded..].fill(0.0);
            problem.keys.fetch(
                &task,
                from,
                to - from,
                &mut keys[from - at..],
                &mut values[(from - at) * padded..],
                padded,
            );
            for top in (0..rows).step_by(ROWS) {
                let tall = ROWS.min(rows - top);
                let (first, _) = sight.of(task.first + top);
                let (_, last) = sight.of(task.first + top + tall - 1);
                if last <= at || first >= at + KEYS {
                    continue;
                }
                let op = Operands {
                    a: q[top * dim..(top + tall) * dim].as_ptr(),
                    a_row: dim,
                    a_step: 1,
                    a_ahead: 0,
                    b: keys.as_ptr(),
                    b_step: KEYS,
                    steps: dim,
                    out: scores.as_mut_ptr(),
                    out_row: KEYS,
                    start: true,
                };
                // SAFETY: `q` has `tall` rows of `dim`, `keys` is [dim][KEYS], `scores` [ROWS][KEYS].
                unsafe { V::outer(tall, KEYS / LANES, op) };
                for r in 0..tall {
                    let (first, last) = sight.of(task.first + top + r);
                    let seen = (first.clamp(at, at + KEYS) - at, last.clamp(at, at + KEYS) - at);
                    let row = top + r;
                    softmax::<V>(
                        &mut scores[r * KEYS..(r + 1) * KEYS],
                        seen,
                        heads.scale,
                        &mut max[row],
                        &mut sum[row * LANES..(row + 1) * LANES],
                        &mut out[row * padded..(row + 1) * padded],
                    );
                }
                let op = Operands {
                    a: scores.as_ptr(),
                    a_row: KEYS,
                    a_step: 1,
                    a_ahead: 0,
                    b: values.as_ptr(),
                    b_step: padded,
                    steps: last.min(at + KEYS) - at,
                    out: out[top * padded..(top + tall) * padded].as_mut_ptr(),
                    out_row: padded,
                    start: false,
                };
                weighted_sum::<V>(tall, padded, op);
            }
            at += KEYS;
        }

        for r in 0..rows {
            let (token, col) = place(r);
            // SAFETY: each (token, head) belongs to one task.
            let to = unsafe { problem.out.piece(token, col, dim) };
            let l = V::from_slice(&sum[r * LANES..]).reduce_add();
            for (to, o) in to.iter_mut().zip(&out[r * padded..]) {
                // Adding zero makes one zero of two: which one would depend on how many masked keys were added.
                *to = if l == 0.0 { 0.0 } else { o / l + 0.0 };
            }
        }
    }
}

/// Turns a row of scores into probabilities relative to the running maximum, and brings the running sums to it.
#[inline(always)]
fn softmax<V: Vector>(
    s: &mut [f32],
    (from, to): (usize, usize),
    scale: f32,
    max: &mut f32,
    sum: &mut [f32],
    out: &mut [f32],
) {
    let scale = V::splat(scale);
    let mut v = [scale; KEYS / LANES];
    for (i, v) in v.iter_mut().enumerate() {
        *v = V::from_slice(&s[i * LANES..]).mul(scale);
    }
    if from > 0 || to < KEYS {
        for (i, v) in v.iter_mut().enumerate() {
            let mut lanes = v.to_array();
            for (l, x) in lanes.iter_mut().enumerate() {
                if !(from..to).contains(&(i * LANES + l)) {
                    *x = f32::NEG_INFINITY;
                }
            }
            *v = V::from_slice(&lanes);
        }
    }
    let top = v[0].max(v[1]).max(v[2].max(v[3])).reduce_max();
    let new = if *max > top { *max } else { top };
    // Nothing seen yet: e^(-inf - 0) = 0 instead of NaN.
    let base = if new == f32::NEG_INFINITY { 0.0 } else { new };
    for (i, v) in v.iter_mut().enumerate() {
        *v = exp(v.sub(V::splat(base)));
        v.to_slice(&mut s[i * LANES..]);
    }
    let block = v[0].add(v[1]).add(v[2].add(v[3]));
    let correction = exp(V::splat(*max).sub(V::splat(base)));
    V::from_slice(sum).fma(correction, block).to_slice(sum);
    if *max != new {
        for o in out.chunks_exact_mut(LANES) {
            V::from_slice(o).mul(correction).to_slice(o);
        }
    }
    *max = new;
}

/// `out += p v`, a few vectors of columns at a time.
#[inline(always)]
fn weighted_sum<V: Vector>(rows: usize, padded: usize, op: Operands) {
    let vectors = padded / LANES;
    let pieces = vectors.div_ceil(VECTORS);
    let mut at = 0;
    for piece in 0..pieces {
        let count = (vectors - at).div_ceil(pieces - piece);
        // SAFETY: columns `at..at + count` of the arrays described by `op`, which the caller sized in whole vectors.
        unsafe {
            let op = Operands { b: op.b.add(at * LANES), out: op.out.add(at * LANES), ..op };
            V::outer(rows, count, op);
        }
        at += count;
    }
}
