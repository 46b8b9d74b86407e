//! Causal attention over KV pages (kernels/paged_prefill.cu).
//!
//! In: q rows, a layer's cache, block tables on the device. Out: the launches. Not here: the formula, writing pages.

use super::attention::{PAGE_VARIANTS, Variant, check_heads};
use crate::backend::cuda::{Cuda, DeviceSlice, Launch, ops};
use crate::graph::Heads;
use crate::graph::builder::PAGE_SIZE;
use crate::tensor::DType;
use crate::{Error, Result};

/// Mirrors `PagedPrefillArgs` in kernels/paged_prefill.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct PagedPrefillArgs {
    q: u64,
    cache: u64,
    out: u64,
    block_table: u64,
    cu_q: u64,
    context_lens: u64,
    num_seqs: u64,
    num_rows: u64,
    table_stride: u64,
    max_seqs: i32,
    max_rows: i32,
    max_table_stride: i32,
    q_stride: i32,
    out_stride: i32,
    group: i32,
    num_kv_heads: i32,
    head_dim: i32,
    window: i32,
    min_queries: i32,
    scale_log2: f32,
    reserved: i32,
}
const _: () = assert!(size_of::<PagedPrefillArgs>() == 120);

/// `out[t] = softmax(scale q[t] k^T) v` over the keys of t's sequence up to its own.
pub struct PagedAttention<'a> {
    /// Of q, out and the cache: f16 or bf16.
    pub dtype: DType,
    pub heads: Heads,
    /// Latest keys that a query sees, its own included.
    pub window: Option<usize>,
    /// `[rows, num_heads * head_dim]`, rows `q_stride` elements apart.
    pub q: DeviceSlice<'a>,
    pub q_stride: usize,
    /// As q; not q itself.
    pub out: DeviceSlice<'a>,
    pub out_stride: usize,
    /// `[pages][K|V][num_kv_heads][PAGE_SIZE][head_dim]`.
    pub cache: DeviceSlice<'a>,
    /// `[seqs, blocks]` i32, contiguous. Entries past a sequence's context are not read.
    pub block_table: DeviceSlice<'a>,
    /// `[seqs + 1]` i32: sequence s has queries `cu_seqlens_q[s]..cu_seqlens_q[s + 1]`, the last ones of its context.
    pub cu_seqlens_q: DeviceSlice<'a>,
    /// `[seqs]` i32: keys of each sequence in the cache, this step's included.
    pub context_lens: DeviceSlice<'a>,
    /// Queries, sequences and columns of the table of the launch; those of the batch where the device holds no
    /// smaller number.
    pub rows: usize,
    pub seqs: usize,
    pub blocks: usize,
    /// One i32 each on the device: of the batch.
    pub num_rows: Option<DeviceSlice<'a>>,
    pub num_seqs: Option<DeviceSlice<'a>>,
    pub num_blocks: Option<DeviceSlice<'a>>,
}

impl PagedAttention<'_> {
    /// Errors: sizes that do not belong together, slices too small, f32 or a head_dim above 256, the driver's.
    pub fn prepare(&self, cuda: &Cuda) -> Result<Vec<Launch>> {
        let op = "paged_attention";
        let suffix = ops::half_suffix(op, self.dtype)?;
        let Heads { num_heads, num_kv_heads, head_dim, scale } = self.heads;
        check_heads(op, &self.heads)?;
        if self.window == Some(0) {
            return Err(Error::Internal(format!("{op}: a window of no keys")));
        }
        let (width, kv_width) = (num_heads * head_dim, num_kv_heads * head_dim);
        ops::check_rows(op, "q", &self.q, self.rows, width, self.q_stride, self.dtype)?;
        ops::check_rows(op, "out", &self.out, self.rows, width, self.out_stride, self.dtype)?;
        ops::check_bytes(op, "cache", self.cache.bytes(), 2 * kv_width * PAGE_SIZE * self.dtype.size())?;
        ops::check_bytes(op, "block_table", self.block_table.bytes(), self.seqs * self.blocks * 4)?;
        ops::check_bytes(op, "cu_seqlens_q", self.cu_seqlens_q.bytes(), (self.seqs + 1) * 4)?;
        ops::check_bytes(op, "context_lens", self.context_lens.bytes(), self.seqs * 4)?;
        let counts = [("num_rows", &self.num_rows), ("num_seqs", &self.num_seqs), ("num_blocks", &self.num_blocks)];
        for (name, n) in counts {
            if let Some(n) = n {
                ops::check_bytes(op, name, n.bytes(), 4)?;
            }
        }
        let aligned = [&self.q, &self.out, &self.cache].iter().all(|s| s.address() % 16 == 0)
            && [self.q_stride, self.out_stride].iter().all(|n| n.is_multiple_of(8));
        let variant = Variant::choose(op, PAGE_VARIANTS, head_dim, aligned)?;
        let group = num_heads / num_kv_heads;
        let int = |n: usize| ops::int(op, n);
        let address = |s: &Option<DeviceSlice>| s.as_ref().map_or(0, DeviceSlice::address);
        let args = PagedPrefillArgs {
            q: self.q.address(),
            cache: self.cache.address(),
            out: self.out.address(),
            block_table: self.block_table.address(),
            cu_q: self.cu_seqlens_q.address(),
            context_lens: self.context_lens.address(),
            num_seqs: address(&self.num_seqs),
            num_rows: address(&self.num_rows),
            table_stride: address(&self.num_blocks),
            max_seqs: int(self.seqs)?,
            max_rows: int(self.rows)?,
            max_table_stride: int(self.blocks)?,
            q_stride: int(self.q_stride)?,
            out_stride: int(self.out_stride)?,
            group: int(group)?,
            num_kv_heads: int(num_kv_heads)?,
            head_dim: int(head_dim)?,
            // No context is longer than the largest number.
            window: self.window.and_then(|w| i32::try_from(w).ok()).unwrap_or(i32::MAX),
            min_queries: 1,
            scale_log2: scale * std::f32::consts::LOG2_E,
            reserved: 0,
        };
        let config = variant.config(op, self.rows, group, self.seqs, num_kv_heads)?;
        let function = cuda.kernel("paged_prefill", &variant.entry("paged_prefill", suffix))?;
        // SAFETY: the struct is the kernel's, and the slices hold all that it touches, as checked above; pages and
        // rows lie within cache and q by the contract of the batch.
        Ok(vec![unsafe { Launch::new(function, config, &args) }?])
    }
}
