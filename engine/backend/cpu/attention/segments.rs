//! Bidirectional attention within segments of a flat batch: vision towers, resamplers.
//!
//! In: q, k, v with cumulative lengths. Out: rows. Owns: reading contiguous keys. Not here: the arithmetic.

use crate::Result;
use crate::graph::Heads;

use super::super::gather::check_cu;
use super::super::matrix::check_len;
use super::super::parallel::SharedRows;
use super::super::simd;
use super::{Keys, Problem, Rows, Segment, Task, check_heads, solve};

/// `out[t] = softmax(scale q[t] k^T) v` over the keys of t's segment. `q` and `out` are `[tokens, heads, head_dim]`,
/// `k` and `v` `[keys, kv_heads, head_dim]`; segment s has queries `cu_q[s]..cu_q[s+1]` and keys `cu_k[s]..cu_k[s+1]`.
/// Queries outside every segment, or of one without keys, give zeros.
pub fn attention(
    out: &mut [f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    cu_q: &[i32],
    cu_k: &[i32],
    heads: &Heads,
) -> Result<()> {
    let op = "attention";
    check_heads(op, heads)?;
    let (q_width, kv_width) = (heads.num_heads * heads.head_dim, heads.num_kv_heads * heads.head_dim);
    check_len(op, "q", q.len(), Some(q.len() / q_width * q_width))?;
    check_len(op, "out", out.len(), Some(q.len()))?;
    check_len(op, "k", k.len(), Some(k.len() / kv_width * kv_width))?;
    check_len(op, "v", v.len(), Some(k.len()))?;
    check_len(op, "cu_k", cu_k.len(), Some(cu_q.len()))?;
    check_cu(op, "cu_q", cu_q, q.len() / q_width)?;
    check_cu(op, "cu_k", cu_k, k.len() / kv_width)?;
    let segments: Vec<Segment> = cu_q
        .windows(2)
        .zip(cu_k.windows(2))
        .map(|(q, k)| Segment {
            query: q[0] as usize,
            queries: (q[1] - q[0]) as usize,
            keys: (k[1] - k[0]) as usize,
            position: None,
        })
        .collect();
    if segments.iter().any(|s| s.keys == 0) || segments.iter().map(|s| s.queries).sum::<usize>() * q_width < out.len() {
        out.fill(0.0);
    }
    let keys = Contiguous { k, v, cu_k, kv_heads: heads.num_kv_heads, head_dim: heads.head_dim };
    let out = SharedRows::new(out, q_width);
    solve(&Problem { out, q, heads: *heads, window: None, segments, keys: &keys });
    Ok(())
}

/// Keys of a segment, one after another.
struct Contiguous<'a> {
    k: &'a [f32],
    v: &'a [f32],
    cu_k: &'a [i32],
    kv_heads: usize,
    head_dim: usize,
}

impl Keys for Contiguous<'_> {
    fn fetch(&self, task: &Task, at: usize, count: usize, keys: &mut [f32], values: &mut [f32], value_stride: usize) {
        let dim = self.head_dim;
        let stride = self.kv_heads * dim;
        let start = (self.cu_k[task.segment] as usize + at) * stride + task.kv_head * dim;
        let (k, v) = (&self.k[start..], &self.v[start..]);
        simd::run(Rows { k, v, row: stride, count, dim, keys, values, value_stride });
    }
}
