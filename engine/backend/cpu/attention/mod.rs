//! Attention: softmax(scale q k^T) v, over contiguous segments or over KV pages.
//!
//! In: q, k, v rows or a cache. Out: rows. Owns: [`Problem`], the cut into tasks. Not here: the arithmetic of a
//! task (`block.rs`), the register tile (`tile.rs`).
//!
//! Keys are taken in blocks that start at multiples of [`KEYS`] from position 0 of their sequence, with an
//! online softmax from block to block, so a query's bits do not depend on how its prompt was cut into chunks or
//! on what shares the batch.

mod block;
mod paged;
mod segments;
mod tile;

pub use paged::{PagedKv, paged_attention};
pub use segments::attention;

use std::cell::RefCell;

use crate::graph::Heads;
use crate::{Error, Result};

use super::parallel::{SharedRows, for_tasks};
use super::simd;

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
struct Problem<'a, K> {
    out: SharedRows<'a>,
    q: &'a [f32],
    heads: Heads,
    window: Option<usize>,
    segments: Vec<Segment>,
    keys: K,
}

thread_local! {
    static WORK: RefCell<block::Work> = const { RefCell::new(block::Work::new()) };
}

/// Runs every task of a problem.
fn solve<K: Keys>(problem: &Problem<K>) {
    let group = problem.heads.num_heads / problem.heads.num_kv_heads;
    let mut tasks = Vec::new();
    for (segment, s) in problem.segments.iter().enumerate() {
        let rows = s.queries * group;
        // Equal pieces, in whole tiles.
        let pieces = rows.div_ceil(TASK_ROWS).max(1);
        let piece = rows.div_ceil(pieces).next_multiple_of(tile::ROWS).max(1);
        for kv_head in 0..problem.heads.num_kv_heads {
            for first in (0..rows).step_by(piece) {
                tasks.push(Task { segment, kv_head, first, rows: piece.min(rows - first) });
            }
        }
    }
    for_tasks(tasks.len(), |t| {
        WORK.with_borrow_mut(|work| simd::run(block::Rows { problem, task: tasks[t], work }));
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
