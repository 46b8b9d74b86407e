//! Attention within segments of a flat batch (kernels/attention.cu, attention_short.cu).
//!
//! In: q, k, v rows and cumulative lengths on the device. Out: the launch. Owns: which tile sizes serve which head_dim
//! ([`Variant`]), when segments count as short, into how many pieces their keys are cut. Not here: the formula, attention
//! over pages (`paged_attention.rs`).

use super::linear::{Work, WorkBytes};
use crate::backend::cuda::{Cuda, DeviceSlice, Launch, LaunchConfig, ops};
use crate::graph::Heads;
use crate::tensor::DType;
use crate::{Error, Result};

/// Mirrors `AttentionArgs` in kernels/attention_rows.cuh.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct AttentionArgs {
    q: u64,
    k: u64,
    v: u64,
    out: u64,
    cu_q: u64,
    cu_k: u64,
    num_segments: u64,
    num_rows: u64,
    max_segments: i32,
    max_rows: i32,
    q_stride: i32,
    k_stride: i32,
    v_stride: i32,
    out_stride: i32,
    head_stride: i32,
    group: i32,
    head_dim: i32,
    scale_log2: f32,
    partial: u64,
    arrived: u64,
}
const _: () = assert!(size_of::<AttentionArgs>() == 120);

/// `out[t] = softmax(scale q[t] k^T) v` over the keys of t's segment; zeros for a query without keys.
pub struct Attention<'a> {
    /// Of q, k, v and out: f16 or bf16.
    pub dtype: DType,
    pub heads: Heads,
    /// `[rows, num_heads * head_dim]`, rows `q_stride` elements apart.
    pub q: DeviceSlice<'a>,
    pub q_stride: usize,
    /// `[keys, num_kv_heads * head_dim]`.
    pub k: DeviceSlice<'a>,
    pub k_stride: usize,
    pub v: DeviceSlice<'a>,
    pub v_stride: usize,
    /// Elements from head to head of q, k and v where each head has its rows for itself, `*_stride` apart. None: the heads
    /// of a row lie side by side.
    pub head_stride: Option<usize>,
    /// As q; not q itself.
    pub out: DeviceSlice<'a>,
    pub out_stride: usize,
    /// `[segments + 1]` i32: segment s has queries `cu_q[s]..cu_q[s + 1]` and keys `cu_k[s]..cu_k[s + 1]`.
    pub cu_q: DeviceSlice<'a>,
    pub cu_k: DeviceSlice<'a>,
    /// Queries, keys and segments of the launch; those of the batch where the device holds no smaller number.
    pub rows: usize,
    pub keys: usize,
    pub segments: usize,
    /// One i32 each on the device: of the batch.
    pub num_rows: Option<DeviceSlice<'a>>,
    pub num_segments: Option<DeviceSlice<'a>>,
    /// At least [`work_bytes`]. Without it a row's sums have one order whatever the sizes of the launch: no kernel of its own
    /// for short segments, no pieces.
    pub work: Option<Work<'a>>,
}

impl Attention<'_> {
    /// Errors: sizes that do not belong together, slices too small, f32 or a head_dim above 256, the driver's.
    pub fn prepare(&self, cuda: &Cuda) -> Result<Launch> {
        let op = "attention";
        let suffix = ops::half_suffix(op, self.dtype)?;
        let Heads { num_heads, num_kv_heads, head_dim, scale } = self.heads;
        check_heads(op, &self.heads)?;
        self.check_operand("q", &self.q, self.rows, self.q_stride, num_heads)?;
        self.check_operand("k", &self.k, self.keys, self.k_stride, num_kv_heads)?;
        self.check_operand("v", &self.v, self.keys, self.v_stride, num_kv_heads)?;
        ops::check_rows(op, "out", &self.out, self.rows, num_heads * head_dim, self.out_stride, self.dtype)?;
        ops::check_bytes(op, "cu_q", self.cu_q.bytes(), (self.segments + 1) * 4)?;
        ops::check_bytes(op, "cu_k", self.cu_k.bytes(), (self.segments + 1) * 4)?;
        for (name, n) in [("num_rows", &self.num_rows), ("num_segments", &self.num_segments)] {
            if let Some(n) = n {
                ops::check_bytes(op, name, n.bytes(), 4)?;
            }
        }
        let aligned = [&self.q, &self.k, &self.v, &self.out].iter().all(|s| s.address() % 16 == 0)
            && [self.q_stride, self.k_stride, self.v_stride, self.out_stride].iter().all(|n| n.is_multiple_of(8))
            && self.head_stride.is_none_or(|n| n.is_multiple_of(8));
        let group = num_heads / num_kv_heads;
        let multiprocessors = cuda.device().multiprocessors() as usize;
        let short = self.work.filter(|_| aligned).and_then(|work| {
            Short::choose(&self.heads, self.rows, self.keys, self.segments, multiprocessors).map(|s| (s, work))
        });
        let (kernel, variant, pieces, work) = match short {
            Some((short, work)) => {
                let need = short.work(num_kv_heads, self.rows * group, self.segments);
                ops::check_bytes(op, "work: partial", work.partial.bytes(), need.partial_bytes)?;
                ops::check_bytes(op, "work: arrived", work.arrived.bytes(), need.arrived_bytes)?;
                ("attention_short", short.variant, short.pieces, Some(work))
            }
            None => ("attention", Variant::choose(op, ROW_VARIANTS, head_dim, aligned)?, 1, None),
        };
        let mut config = variant.config(op, self.rows, group, self.segments, num_kv_heads)?;
        config.grid.2 = pieces as u32;
        let int = |n: usize| ops::int(op, n);
        let args = AttentionArgs {
            q: self.q.address(),
            k: self.k.address(),
            v: self.v.address(),
            out: self.out.address(),
            cu_q: self.cu_q.address(),
            cu_k: self.cu_k.address(),
            num_segments: self.num_segments.as_ref().map_or(0, DeviceSlice::address),
            num_rows: self.num_rows.as_ref().map_or(0, DeviceSlice::address),
            max_segments: int(self.segments)?,
            max_rows: int(self.rows)?,
            q_stride: int(self.q_stride)?,
            k_stride: int(self.k_stride)?,
            v_stride: int(self.v_stride)?,
            out_stride: int(self.out_stride)?,
            head_stride: int(self.head_stride.unwrap_or(head_dim))?,
            group: int(group)?,
            head_dim: int(head_dim)?,
            scale_log2: scale * std::f32::consts::LOG2_E,
            partial: work.as_ref().map_or(0, |w| w.partial.address()),
            arrived: work.as_ref().map_or(0, |w| w.arrived.address()),
        };
        let function = cuda.kernel(kernel, &variant.entry(kernel, suffix))?;
        // SAFETY: the struct is the kernel's, and the slices hold all that it touches, as checked above; segments lie
        // within rows and keys by the contract of the batch.
        unsafe { Launch::new(function, config, &args) }
    }

    fn check_operand(&self, name: &str, slice: &DeviceSlice, rows: usize, stride: usize, heads: usize) -> Result<()> {
        let head_dim = self.heads.head_dim;
        let Some(head_stride) = self.head_stride else {
            return ops::check_rows("attention", name, slice, rows, heads * head_dim, stride, self.dtype);
        };
        // Rows of the last head.
        let before = (heads - 1) * head_stride * self.dtype.size();
        ops::check_bytes("attention", name, slice.bytes(), before)?;
        let need = rows.saturating_sub(1) * stride + head_dim;
        ops::check_bytes("attention", name, slice.bytes() - before, need * self.dtype.size())
    }
}

/// A launch of kernels/attention_short.cu.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Short {
    variant: Variant,
    /// That the keys of a segment are cut into.
    pieces: usize,
}

impl Short {
    /// None where larger tiles serve better, for lack of a kernel too. Segments are taken to be equal.
    fn choose(heads: &Heads, rows: usize, keys: usize, segments: usize, multiprocessors: usize) -> Option<Short> {
        // Keys of a piece at least, pieces at most.
        const KEYS: usize = 256;
        const MOST: usize = 16;
        let variant = *SHORT_VARIANTS.iter().find(|v| v.dim == heads.head_dim)?;
        let segments = segments.max(1);
        let segment_rows = (rows * heads.num_heads / heads.num_kv_heads).div_ceil(segments);
        let blocks = segments * segment_rows.div_ceil(variant.rows) * heads.num_kv_heads;
        // Two blocks a multiprocessor.
        let pieces = (2 * multiprocessors / blocks.max(1)).min(keys / segments / KEYS).clamp(1, MOST);
        (pieces > 1 || segment_rows <= variant.rows).then_some(Short { variant, pieces })
    }

    fn work(&self, kv_heads: usize, rows: usize, segments: usize) -> WorkBytes {
        if self.pieces == 1 {
            return WorkBytes::default();
        }
        let tiles = self.variant.slots(rows, segments) * kv_heads;
        WorkBytes {
            // `kPartialFloats` of kernels/attention_pieces.cuh.
            partial_bytes: tiles * self.pieces * self.variant.rows * (self.variant.dim + 2) * 4,
            arrived_bytes: tiles * 4,
        }
    }
}

/// Work memory of a launch for so many queries, keys and segments.
pub fn work_bytes(heads: &Heads, rows: usize, keys: usize, segments: usize, multiprocessors: usize) -> WorkBytes {
    let group = heads.num_heads / heads.num_kv_heads.max(1);
    Short::choose(heads, rows, keys, segments, multiprocessors)
        .map_or(WorkBytes::default(), |short| short.work(heads.num_kv_heads, rows * group, segments))
}

/// Refuses heads that no kernel takes.
pub(super) fn check_heads(op: &str, heads: &Heads) -> Result<()> {
    let Heads { num_heads, num_kv_heads, head_dim, scale } = *heads;
    if num_kv_heads == 0 || num_heads == 0 || !num_heads.is_multiple_of(num_kv_heads) || head_dim == 0 {
        let text = format!("{op}: {num_heads} heads of {head_dim} over {num_kv_heads} KV heads");
        return Err(Error::Internal(text));
    }
    if !(scale.is_finite() && scale > 0.0) {
        return Err(Error::Unsupported(format!("{op}: scale {scale} on cuda; it must be positive")));
    }
    Ok(())
}

/// An instance of the tile loop of kernels/attention.cuh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Variant {
    /// Elements of a head in shared memory.
    pub(super) dim: usize,
    /// head_dim is `dim` and rows are aligned to 16 bytes; otherwise any head_dim up to `dim`.
    exact: bool,
    /// Query rows of a block, at most.
    rows: usize,
    /// Keys of a step.
    keys: usize,
}

pub(super) const fn exact(dim: usize, rows: usize, keys: usize) -> Variant {
    Variant { dim, exact: true, rows, keys }
}
pub(super) const fn any(dim: usize, rows: usize, keys: usize) -> Variant {
    Variant { dim, exact: false, rows, keys }
}

/// Entries of kernels/attention.cu.
const ROW_VARIANTS: &[Variant] = &[
    exact(64, 128, 64),
    exact(72, 128, 64),
    exact(80, 128, 64),
    exact(88, 128, 64),
    exact(96, 128, 64),
    exact(128, 128, 48),
    any(32, 128, 64),
    any(128, 64, 64),
    any(256, 64, 32),
];

/// Entries of kernels/attention_short.cu.
const SHORT_VARIANTS: &[Variant] = &[exact(64, 64, 64), exact(80, 64, 64), exact(96, 64, 64), exact(128, 64, 64)];

/// Entries of kernels/paged_prefill.cu.
pub(super) const PAGE_VARIANTS: &[Variant] = &[
    exact(64, 128, 64),
    exact(80, 128, 64),
    exact(96, 128, 48),
    exact(128, 128, 32),
    any(32, 128, 64),
    any(128, 64, 64),
    any(256, 64, 32),
];

const THREADS: u32 = 128;

impl Variant {
    /// The exact one, or the smallest that the head fits in.
    pub(super) fn choose(op: &str, variants: &[Variant], head_dim: usize, aligned: bool) -> Result<Variant> {
        let fits = |v: &&Variant| if v.exact { aligned && v.dim == head_dim } else { head_dim <= v.dim };
        variants
            .iter()
            .find(fits)
            .copied()
            .ok_or_else(|| Error::Unsupported(format!("{op}: head_dim {head_dim} on cuda; up to 256 are known")))
    }

    pub(super) fn entry(&self, kernel: &str, suffix: &str) -> String {
        format!("{kernel}_{suffix}_{}{}", if self.exact { "d" } else { "any" }, self.dim)
    }

    /// A segment has its first tile at slot `rows before it / tile + segments before it`, which leaves it enough slots; the
    /// rows after the last segment count as one more.
    fn slots(&self, rows: usize, segments: usize) -> usize {
        rows / self.rows + segments + 1
    }

    /// One block a tile of rows and KV head.
    pub(super) fn config(
        &self,
        op: &str,
        queries: usize,
        group: usize,
        segments: usize,
        kv_heads: usize,
    ) -> Result<LaunchConfig> {
        let slots = self.slots(queries * group, segments);
        Ok(LaunchConfig {
            grid: (ops::int(op, slots)? as u32, kv_heads as u32, 1),
            block: (THREADS, 1, 1),
            shared_bytes: self.shared_bytes() as u32,
        })
    }

    /// `AttentionTile::kSharedBytes`: Q rows, two buffers of keys and values, three numbers.
    fn shared_bytes(&self) -> usize {
        (self.rows + 4 * self.keys) * self.row_bytes() + 16
    }

    /// `RowLayout::kRowBytes`.
    pub(super) fn row_bytes(&self) -> usize {
        self.dim * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_gets_its_own_kernel_or_the_smallest_that_holds_it() {
        let entry = |variants, dim, aligned| {
            Variant::choose("attention", variants, dim, aligned).map(|v| v.entry("a", "bf16")).ok()
        };
        assert_eq!(entry(ROW_VARIANTS, 72, true).as_deref(), Some("a_bf16_d72"));
        assert_eq!(entry(ROW_VARIANTS, 72, false).as_deref(), Some("a_bf16_any128"));
        assert_eq!(entry(ROW_VARIANTS, 12, true).as_deref(), Some("a_bf16_any32"));
        assert_eq!(entry(PAGE_VARIANTS, 72, true).as_deref(), Some("a_bf16_any128"));
        assert_eq!(entry(PAGE_VARIANTS, 256, true).as_deref(), Some("a_bf16_any256"));
        assert_eq!(entry(PAGE_VARIANTS, 264, true), None);
    }

    #[test]
    fn few_queries_share_many_keys() {
        let pieces = |heads: &Heads, rows, keys, segments| {
            Short::choose(heads, rows, keys, segments, 108).map(|short| short.pieces)
        };
        let perceiver = &Heads { num_heads: 16, num_kv_heads: 4, head_dim: 96, scale: 0.1 };
        assert_eq!(pieces(perceiver, 64, 1289, 1), Some(5));
        assert_eq!(pieces(perceiver, 64, 100_000, 1), Some(13));
        assert_eq!(pieces(perceiver, 1, 100_000, 1), Some(16));
        let resampler = &Heads { num_heads: 28, num_kv_heads: 28, head_dim: 128, scale: 0.1 };
        assert_eq!(pieces(resampler, 64, 4096, 1), Some(7));
        // Enough segments fill the device, and few keys are not cut.
        assert_eq!(pieces(perceiver, 64 * 32, 1289 * 32, 32), None);
        assert_eq!(pieces(resampler, 64, 300, 1), Some(1));
        assert_eq!(work_bytes(resampler, 64, 300, 1, 108), WorkBytes::default());
        // Windows of 64 patches; the same patches at once.
        let patches = &Heads { num_heads: 16, num_kv_heads: 16, head_dim: 80, scale: 0.1 };
        assert_eq!(pieces(patches, 1024, 1024, 16), Some(1));
        assert_eq!(pieces(patches, 1024, 1024, 1), None);
        // No kernel of its own.
        assert_eq!(pieces(&Heads { head_dim: 72, ..*patches }, 1024, 1024, 16), None);
        // A tile for the segment, and two slots that no other batch needs either.
        let need = work_bytes(resampler, 64, 4096, 1, 108);
        assert_eq!((need.partial_bytes, need.arrived_bytes), (3 * 28 * 7 * 64 * 130 * 4, 3 * 28 * 4));
    }

    #[test]
    fn every_variant_fits_the_smallest_shared_memory_of_its_parts() {
        for v in [ROW_VARIANTS, SHORT_VARIANTS, PAGE_VARIANTS].concat() {
            // sm_86 and sm_89 give a block 99 KiB.
            assert!(v.shared_bytes() <= 99 << 10, "{v:?}: {}", v.shared_bytes());
        }
    }
}
