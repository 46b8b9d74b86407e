//! Attention: softmax(scale q k^T) v, over contiguous segments or over KV pages.
//!
//! In: q, k, v rows or a cache. Out: rows. Owns: [`Problem`], the cut into tasks. Not here: the arithmetic of a
//! task (`block.rs`), the register tile (`../tile.rs`).
//!
//! Keys are taken in blocks that start at multiples of [`KEYS`] from position 0 of their sequence, with an
//! online softmax from block to block, so a query's bits do not depend on how its prompt was cut into chunks or
//! on what shares the batch.

mod block;
mod paged;
mod segments;

pub use paged::{PagedKv, paged_attention};
pub use segments::attention;

use std::cell::RefCell;

use crate::graph::Heads;
use crate::{Error, Result};

use super::parallel::{SharedRows, for_tasks};
use super::simd::{self, Element, Kernel, LANES, Vector};
use super::tile::ROWS;

/// Keys of a block.
const KEYS: usize = 64;
/// Rows (queries times heads that share keys) of a task: what a block's packing is shared by.
const TASK_ROWS: usize = 252;

/// Rows of one KV head against its keys.
#[derive(Clone, Copy)]
struct Task {
    /// Segment or sequence.
    segment: usize,
    kv_head: usize,
    /// Rows of the segment, counted query by query, heads of a group within.
    first: usize,
    rows: usize,
}

/// A segment's queries and keys.
#[derive(Clone, Copy)]
struct Segment {
    /// First query, in tokens of the batch.
    query: usize,
    queries: usize,
    keys: usize,
    /// Causal: position of the first query; query i sees keys up to `position + i`. Otherwise all keys.
    position: Option<usize>,
}

/// Gives keys and values, a block at a time.
trait Keys: Sync {
    /// Writes keys `at..at+count` of a segment as columns of `[head_dim][KEYS]` and their values as rows of
    /// `value_stride`, both from the start of the slices on. What lies beside them stays as it is.
    fn fetch(&self, task: &Task, at: usize, count: usize, keys: &mut [f32], values: &mut [f32], value_stride: usize);
}

/// What all tasks of a call share.
struct Problem<'a> {
    out: SharedRows<'a>,
    q: &'a [f32],
    heads: Heads,
    window: Option<usize>,
    segments: Vec<Segment>,
    keys: &'a dyn Keys,
}

thread_local! {
    static WORK: RefCell<block::Work> = const { RefCell::new(block::Work::new()) };
}

/// Runs every task of a problem.
fn solve(problem: &Problem) {
    let group = problem.heads.num_heads / problem.heads.num_kv_heads;
    let mut tasks = Vec::new();
    for (segment, s) in problem.segments.iter().enumerate() {
        let rows = s.queries * group;
        // Equal pieces, in whole tiles.
        let pieces = rows.div_ceil(TASK_ROWS).max(1);
        let piece = rows.div_ceil(pieces).next_multiple_of(ROWS).max(1);
        for kv_head in 0..problem.heads.num_kv_heads {
            for first in (0..rows).step_by(piece) {
                tasks.push(Task { segment, kv_head, first, rows: piece.min(rows - first) });
            }
        }
    }
    for_tasks(tasks.len(), |t| {
        WORK.with_borrow_mut(|work| simd::run(block::Solve { problem, task: tasks[t], work }));
    });
}

fn check_heads(op: &str, heads: &Heads) -> Result<()> {
    if heads.num_kv_heads == 0 || !heads.num_heads.is_multiple_of(heads.num_kv_heads) || heads.head_dim == 0 {
        return Err(Error::Internal(format!(
            "{op}: {} heads of {} over {} KV heads",
            heads.num_heads, heads.head_dim, heads.num_kv_heads
        )));
    }
    Ok(())
}

/// `keys[d * KEYS + i] = k[i * row + d]` and `values[i * value_stride + d] = v[i * row + d]` for `count` rows of
/// `dim`, widened.
struct Rows<'a, E> {
    k: &'a [E],
    v: &'a [E],
    row: usize,
    count: usize,
    dim: usize,
    keys: &'a mut [f32],
    values: &'a mut [f32],
    value_stride: usize,
}

impl<E: Element> Kernel for Rows<'_, E> {
    type Out = ();

    /// Keys sixteen rows and columns at a time, in registers; what is left one by one.
    #[inline(always)]
    fn run<V: Vector>(self) {
        let Rows { k, v, row, count, dim, keys, values, value_stride } = self;
        let (tall, wide) = (count / LANES * LANES, dim / LANES * LANES);
        for d in (0..wide).step_by(LANES) {
            for i in (0..tall).step_by(LANES) {
                let mut t = [V::splat(0.0); LANES];
                for l in 0..LANES {
                    t[l] = load(&k[(i + l) * row + d..]);
                }
                let t = V::transpose(t);
                for l in 0..LANES {
                    t[l].to_slice(&mut keys[(d + l) * KEYS + i..]);
                }
            }
        }
        for i in 0..count {
            for d in if i < tall { wide } else { 0 }..dim {
                keys[d * KEYS + i] = k[i * row + d].to_f32();
            }
            let to = &mut values[i * value_stride..];
            for d in (0..wide).step_by(LANES) {
                load::<V, E>(&v[i * row + d..]).to_slice(&mut to[d..]);
            }
            for d in wide..dim {
                to[d] = v[i * row + d].to_f32();
            }
        }
    }
}

/// The first sixteen elements.
#[inline(always)]
fn load<V: Vector, E: Element>(from: &[E]) -> V {
    assert!(from.len() >= LANES);
    // SAFETY: length checked.
    unsafe { E::load(from.as_ptr()) }
}
