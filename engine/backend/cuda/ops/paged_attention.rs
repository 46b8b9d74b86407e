//! Causal attention over KV pages (kernels/paged_prefill.cu, kernels/paged_decode.cu).
//!
//! In: q rows, a layer's cache, block tables on the device. Out: the launches. Owns: which of the two kernels takes
//! which sequences, into how many pieces a context is cut. Not here: the formula, writing pages.

use super::attention::{PAGE_VARIANTS, Variant, any, check_heads, exact};
use super::linear::{Work, WorkBytes};
use crate::backend::cuda::{Cuda, DeviceSlice, Launch, LaunchConfig, ops};
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

/// Mirrors `PagedDecodeArgs` in kernels/paged_decode.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct PagedDecodeArgs {
    q: u64,
    cache: u64,
    out: u64,
    block_table: u64,
    cu_q: u64,
    context_lens: u64,
    num_seqs: u64,
    table_stride: u64,
    partials: u64,
    counters: u64,
    max_table_stride: i32,
    q_stride: i32,
    out_stride: i32,
    group: i32,
    num_kv_heads: i32,
    head_dim: i32,
    window: i32,
    scale_log2: f32,
}
const _: () = assert!(size_of::<PagedDecodeArgs>() == 112);

/// `out[t] = softmax(scale q[t] k^T) v` over the keys of t's sequence up to its own.
///
/// The prefill kernel takes every batch. Given work memory, sequences of one query go to the decode kernel, which cuts
/// their context into pieces; where every sequence of the launch has one query that is the only launch, and rows of no
/// sequence are left alone.
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
    /// The prefill kernel for all. Errors: sizes that do not belong together, slices too small, f32 or a head_dim above
    /// 256, the driver's.
    pub fn prepare(&self, cuda: &Cuda) -> Result<Vec<Launch>> {
        self.check()?;
        Ok(vec![self.prefill(cuda, 1)?])
    }

    /// Decode as well, with at least [`work_bytes`] of work memory. Errors: as [`PagedAttention::prepare`].
    pub fn prepare_with(&self, cuda: &Cuda, work: Work) -> Result<Vec<Launch>> {
        self.check()?;
        let mut launches = Vec::with_capacity(2);
        if self.rows != self.seqs {
            launches.push(self.prefill(cuda, 2)?);
        }
        launches.push(self.decode(cuda, &work)?);
        Ok(launches)
    }

    fn check(&self) -> Result<()> {
        let Heads { num_heads, num_kv_heads, head_dim, .. } = self.heads;
        check_heads(OP, &self.heads)?;
        if self.window == Some(0) {
            return Err(Error::Internal(format!("{OP}: a window of no keys")));
        }
        let (width, kv_width) = (num_heads * head_dim, num_kv_heads * head_dim);
        ops::check_rows(OP, "q", &self.q, self.rows, width, self.q_stride, self.dtype)?;
        ops::check_rows(OP, "out", &self.out, self.rows, width, self.out_stride, self.dtype)?;
        ops::check_bytes(OP, "cache", self.cache.bytes(), 2 * kv_width * PAGE_SIZE * self.dtype.size())?;
        ops::check_bytes(OP, "block_table", self.block_table.bytes(), self.seqs * self.blocks * 4)?;
        ops::check_bytes(OP, "cu_seqlens_q", self.cu_seqlens_q.bytes(), (self.seqs + 1) * 4)?;
        ops::check_bytes(OP, "context_lens", self.context_lens.bytes(), self.seqs * 4)?;
        let counts = [("num_rows", &self.num_rows), ("num_seqs", &self.num_seqs), ("num_blocks", &self.num_blocks)];
        for (name, n) in counts {
            if let Some(n) = n {
                ops::check_bytes(OP, name, n.bytes(), 4)?;
            }
        }
        Ok(())
    }

    fn variant(&self, variants: &[Variant]) -> Result<Variant> {
        let aligned = [&self.q, &self.out, &self.cache].iter().all(|s| s.address() % 16 == 0)
            && [self.q_stride, self.out_stride].iter().all(|n| n.is_multiple_of(8));
        Variant::choose(OP, variants, self.heads.head_dim, aligned)
    }

    /// As kernels take it: no context is longer than the largest number.
    fn window(&self) -> i32 {
        self.window.and_then(|w| i32::try_from(w).ok()).unwrap_or(i32::MAX)
    }

    fn prefill(&self, cuda: &Cuda, min_queries: i32) -> Result<Launch> {
        let Heads { num_heads, num_kv_heads, head_dim, scale } = self.heads;
        let (suffix, variant) = (ops::half_suffix(OP, self.dtype)?, self.variant(PAGE_VARIANTS)?);
        let group = num_heads / num_kv_heads;
        let int = |n: usize| ops::int(OP, n);
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
            window: self.window(),
            min_queries,
            scale_log2: scale * std::f32::consts::LOG2_E,
            reserved: 0,
        };
        let config = variant.config(OP, self.rows, group, self.seqs, num_kv_heads)?;
        let function = cuda.kernel("paged_prefill", &variant.entry("paged_prefill", suffix))?;
        // SAFETY: the struct is the kernel's, and the slices hold all that it touches, as checked before; pages and
        // rows lie within cache and q by the contract of the batch.
        unsafe { Launch::new(function, config, &args) }
    }

    fn decode(&self, cuda: &Cuda, work: &Work) -> Result<Launch> {
        let Heads { num_heads, num_kv_heads, head_dim, scale } = self.heads;
        let (suffix, variant) = (ops::half_suffix(OP, self.dtype)?, self.variant(DECODE_VARIANTS)?);
        let multiprocessors = cuda.device().multiprocessors() as usize;
        let need = work_bytes(&self.heads, self.seqs, self.blocks, multiprocessors);
        ops::check_bytes(OP, "work.partial", work.partial.bytes(), need.partial_bytes)?;
        ops::check_bytes(OP, "work.arrived", work.arrived.bytes(), need.arrived_bytes)?;
        let tiles = head_tiles(&self.heads);
        let int = |n: usize| ops::int(OP, n);
        let args = PagedDecodeArgs {
            q: self.q.address(),
            cache: self.cache.address(),
            out: self.out.address(),
            block_table: self.block_table.address(),
            cu_q: self.cu_seqlens_q.address(),
            context_lens: self.context_lens.address(),
            num_seqs: address(&self.num_seqs),
            table_stride: address(&self.num_blocks),
            partials: work.partial.address(),
            counters: work.arrived.address(),
            max_table_stride: int(self.blocks)?,
            q_stride: int(self.q_stride)?,
            out_stride: int(self.out_stride)?,
            group: int(num_heads / num_kv_heads)?,
            num_kv_heads: int(num_kv_heads)?,
            head_dim: int(head_dim)?,
            window: self.window(),
            scale_log2: scale * std::f32::consts::LOG2_E,
        };
        let splits = splits(&self.heads, self.seqs, self.blocks, multiprocessors);
        let config = LaunchConfig {
            grid: (splits as u32, int(tiles)? as u32, int(self.seqs)? as u32),
            block: (WARPS as u32 * 32, 1, 1),
            shared_bytes: decode_shared_bytes(&variant) as u32,
        };
        let function = cuda.kernel("paged_decode", &variant.entry("paged_decode", suffix))?;
        // SAFETY: as in prefill; counters are zero by the contract of the work memory.
        unsafe { Launch::new(function, config, &args) }
    }
}

const OP: &str = "paged_attention";

fn address(slice: &Option<DeviceSlice>) -> u64 {
    slice.as_ref().map_or(0, DeviceSlice::address)
}

/// Entries of kernels/paged_decode.cu, and its constants.
const DECODE_VARIANTS: &[Variant] = &[
    exact(64, HEADS, PAGE_SIZE),
    exact(80, HEADS, PAGE_SIZE),
    exact(96, HEADS, PAGE_SIZE),
    exact(128, HEADS, PAGE_SIZE),
    any(32, HEADS, PAGE_SIZE),
    any(128, HEADS, PAGE_SIZE),
    any(256, HEADS, PAGE_SIZE),
];
const WARPS: usize = 4;
const HEADS: usize = 8;
const MAX_SPLITS: usize = 64;

/// `DecodeTile::kSharedBytes`: each warp's slots for pages, or the place where warps and pieces meet.
fn decode_shared_bytes(variant: &Variant) -> usize {
    let slots = if variant.dim > 128 { 1 } else { 2 };
    let slots = WARPS * slots * 2 * PAGE_SIZE * variant.row_bytes();
    let merge = (WARPS * HEADS * (variant.dim + 4 + 2) + MAX_SPLITS * HEADS + HEADS + 1) * 4;
    slots.max(merge)
}

/// Blocks side by side that one (sequence, piece) takes.
fn head_tiles(heads: &Heads) -> usize {
    heads.num_kv_heads * (heads.num_heads / heads.num_kv_heads).div_ceil(HEADS)
}

/// Pieces of the longest context: enough blocks for every multiprocessor to have two, a page for every warp; and some
/// more for long contexts, so that sequences of unequal length even out.
fn splits(heads: &Heads, seqs: usize, blocks: usize, multiprocessors: usize) -> usize {
    const PAGES: usize = 32;
    let fill = (2 * multiprocessors).div_ceil((head_tiles(heads) * seqs).max(1));
    let even = blocks.div_ceil(PAGES).min(16);
    fill.max(even).min(blocks.div_ceil(WARPS)).clamp(1, MAX_SPLITS)
}

/// Work memory of a launch for `seqs` sequences of up to `blocks` pages.
pub fn work_bytes(heads: &Heads, seqs: usize, blocks: usize, multiprocessors: usize) -> WorkBytes {
    let tiles = head_tiles(heads) * seqs;
    // What rows that are not aligned would take, which is no less than the exact one.
    let dim = Variant::choose(OP, DECODE_VARIANTS, heads.head_dim, false).map_or(heads.head_dim, |v| v.dim);
    WorkBytes {
        partial_bytes: tiles * splits(heads, seqs, blocks, multiprocessors) * HEADS * (dim + 2) * 4,
        arrived_bytes: tiles * 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA: Heads = Heads { num_heads: 32, num_kv_heads: 8, head_dim: 128, scale: 0.1 };

    #[test]
    fn contexts_are_cut_until_the_device_is_full() {
        // One sequence on 132 multiprocessors: 33 pieces for each of 8 KV heads, as far as there are pages.
        assert_eq!(splits(&LLAMA, 1, 512, 132), 33);
        assert_eq!(splits(&LLAMA, 1, 54, 132), 14);
        assert_eq!(splits(&LLAMA, 1, 1, 132), 1);
        // Many short sequences fill it alone; long ones are cut in pieces of 512 keys.
        assert_eq!(splits(&LLAMA, 64, 32, 132), 1);
        assert_eq!(splits(&LLAMA, 64, 256, 132), 8);
        assert_eq!(splits(&LLAMA, 64, 1 << 20, 132), 16);
        let wide = Heads { num_heads: 71, num_kv_heads: 1, ..LLAMA };
        assert_eq!(head_tiles(&wide), 9);
        assert_eq!(splits(&wide, 1, 1 << 20, 4096), MAX_SPLITS);
    }

    #[test]
    fn work_memory_holds_a_partial_result_a_piece() {
        let need = work_bytes(&LLAMA, 4, 54, 132);
        assert_eq!(need.arrived_bytes, 4 * 8 * 4);
        assert_eq!(need.partial_bytes, 4 * 8 * splits(&LLAMA, 4, 54, 132) * 8 * 130 * 4);
        // A head without a kernel of its own is padded.
        let odd = Heads { head_dim: 36, ..LLAMA };
        assert_eq!(work_bytes(&odd, 4, 54, 132).partial_bytes, need.partial_bytes);
    }

    #[test]
    fn every_decode_kernel_fits_the_smallest_shared_memory_of_its_parts() {
        for v in DECODE_VARIANTS {
            // sm_86 and sm_89 give a block 99 KiB.
            assert!(decode_shared_bytes(v) <= 99 << 10, "{v:?}: {}", decode_shared_bytes(v));
        }
    }
}
