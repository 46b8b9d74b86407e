//! Causal attention of a step's tokens over the KV pages of their sequences.
//!
//! In: q, a layer's cache, block tables. Out: rows. Owns: reading pages. Not here: the arithmetic, writing pages.

use half::bf16;

use crate::graph::Heads;
use crate::{Error, Result};

use super::super::gather::check_cu;
use super::super::kv_cache::{KvData, KvShape};
use super::super::matrix::{bad_index, check_len};
use super::super::parallel::SharedRows;
use super::super::simd::{self, Element};
use super::{Keys, Problem, Rows, Segment, Task, check_heads, solve};

/// A layer's cache and who holds which page.
#[derive(Debug, Clone, Copy)]
pub struct PagedKv<'a> {
    pub cache: KvData<'a>,
    /// Tokens of a page.
    pub page_size: usize,
    /// `[seqs, max_blocks]`: pages of each sequence, in order. Entries past its context are not read.
    pub block_table: &'a [i32],
    /// `[seqs]`: keys of each sequence in the cache, this step's included.
    pub context_lens: &'a [i32],
}

/// `out[t] = softmax(scale q[t] k^T) v` over the sequence's keys up to t's own. `q` and `out` are
/// `[tokens, heads, head_dim]`; sequence s has queries `cu_q[s]..cu_q[s+1]`, the last ones of its context.
/// `window` limits a query to that many latest keys, its own included.
pub fn paged_attention(
    out: &mut [f32],
    q: &[f32],
    kv: &PagedKv,
    cu_q: &[i32],
    heads: &Heads,
    window: Option<usize>,
) -> Result<()> {
    let op = "paged_attention";
    check_heads(op, heads)?;
    let width = heads.num_heads * heads.head_dim;
    let shape = KvShape { kv_heads: heads.num_kv_heads, head_dim: heads.head_dim, page_size: kv.page_size };
    if kv.page_size == 0 || window == Some(0) {
        return Err(Error::Internal(format!("{op}: page_size {}, window {window:?}", kv.page_size)));
    }
    check_len(op, "q", q.len(), Some(q.len() / width * width))?;
    check_len(op, "out", out.len(), Some(q.len()))?;
    check_cu(op, "cu_seqlens_q", cu_q, q.len() / width)?;
    let seqs = kv.context_lens.len();
    check_len(op, "cu_seqlens_q", cu_q.len(), Some(seqs + 1))?;
    let max_blocks = kv.block_table.len() / seqs.max(1);
    check_len(op, "block_table", kv.block_table.len(), Some(seqs * max_blocks))?;
    let elements = match kv.cache {
        KvData::F32(c) => c.len(),
        KvData::Bf16(c) => c.len(),
    };
    let pages = elements / shape.page_elements();
    let mut segments = Vec::with_capacity(seqs);
    for (s, (w, &context)) in cu_q.windows(2).zip(kv.context_lens).enumerate() {
        let queries = (w[1] - w[0]) as usize;
        let keys = usize::try_from(context).unwrap_or(0);
        let blocks = keys.div_ceil(kv.page_size);
        if keys < queries || blocks > max_blocks {
            return Err(Error::Internal(format!(
                "{op}: sequence {s}: {queries} queries, context_len {context}, {max_blocks} pages of {}",
                kv.page_size
            )));
        }
        let table = &kv.block_table[s * max_blocks..][..blocks];
        // Pages that slid out of every query's window may have been given away.
        let first = window.map_or(0, |w| (keys - queries + 1).saturating_sub(w) / kv.page_size);
        if let Some(&p) = table[first.min(blocks)..].iter().find(|&&p| p < 0 || p as usize >= pages) {
            return Err(bad_index(op, "page", p.into(), pages));
        }
        segments.push(Segment { query: w[0] as usize, queries, keys, position: Some(keys - queries) });
    }
    if segments.iter().map(|s| s.queries).sum::<usize>() * width < out.len() {
        out.fill(0.0);
    }
    let out = SharedRows::new(out, width);
    let (heads, table) = (*heads, kv.block_table);
    match kv.cache {
        KvData::F32(cache) => {
            let keys = Pages::<f32> { cache, shape, table, max_blocks };
            solve(&Problem { out, q, heads, window, segments, keys: &keys });
        }
        KvData::Bf16(cache) => {
            let keys = Pages::<bf16> { cache, shape, table, max_blocks };
            solve(&Problem { out, q, heads, window, segments, keys: &keys });
        }
    }
    Ok(())
}

/// Keys of a sequence, page by page.
struct Pages<'a, E> {
    cache: &'a [E],
    shape: KvShape,
    table: &'a [i32],
    max_blocks: usize,
}

impl<E: Element> Keys for Pages<'_, E> {
    fn fetch(&self, task: &Task, at: usize, count: usize, keys: &mut [f32], values: &mut [f32], value_stride: usize) {
        let (dim, size) = (self.shape.head_dim, self.shape.page_size);
        let table = &self.table[task.segment * self.max_blocks..][..self.max_blocks];
        let mut done = 0;
        while done < count {
            let (block, inside) = ((at + done) / size, (at + done) % size);
            let have = (size - inside).min(count - done);
            let page = table[block] as usize;
            let k = &self.cache[self.shape.offset(page, false, task.kv_head) + inside * dim..][..have * dim];
            let v = &self.cache[self.shape.offset(page, true, task.kv_head) + inside * dim..][..have * dim];
            let (keys, values) = (&mut keys[done..], &mut values[done * value_stride..]);
            simd::run(Rows { k, v, row: dim, count: have, dim, keys, values, value_stride });
            done += have;
        }
    }
}
