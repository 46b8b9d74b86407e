//! Rotary position embedding, alone or with the write of keys and values to their pages (kernels/rope.cu).
//!
//! In: rows of activations, positions and frequencies on the device. Out: the launch. Not here: the formula, how a
//! family makes its frequencies.

use crate::backend::cuda::{Cuda, DeviceSlice, Launch, LaunchConfig, ops};
use crate::graph::builder::PAGE_SIZE;
use crate::tensor::DType;
use crate::{Error, Result};

/// Mirrors `RopeArgs` in kernels/rope.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct RopeArgs {
    x: u64,
    y: u64,
    positions: u64,
    inv_freq: u64,
    axis: u64,
    num_tokens: u64,
    k: u64,
    v: u64,
    cache: u64,
    slots: u64,
    x_stride: i32,
    y_stride: i32,
    k_stride: i32,
    v_stride: i32,
    position_stride: i32,
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
    half: i32,
    scaling: f32,
}
const _: () = assert!(size_of::<RopeArgs>() == 120);

const MAX_THREADS: usize = 256;
/// Elements of a head: the table of a token lies in 48 KiB of shared memory.
const MAX_HEAD_DIM: usize = 8192;

/// `y = x` with the pairs `(x[i], x[i + r])`, `r` frequencies, of every head turned by `position * inv_freq[i]`.
pub struct Rope<'a> {
    /// Of x and y: f16 or bf16.
    pub dtype: DType,
    /// `[tokens, heads * head_dim]`, rows `x_stride` elements apart.
    pub x: DeviceSlice<'a>,
    pub x_stride: usize,
    /// As x, rows `y_stride` elements apart; may be x.
    pub y: DeviceSlice<'a>,
    pub y_stride: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub angles: Angles<'a>,
    /// Tokens of the launch; those of the batch where `num_tokens` is none.
    pub tokens: usize,
    /// One i32 on the device: tokens of the batch, at most `tokens`.
    pub num_tokens: Option<DeviceSlice<'a>>,
    /// Keys to turn likewise and to write to their pages with their values, in the same launch. Then elements i and
    /// i + r of a head of x and k lie side by side, at 2 i and 2 i + 1 (`pack::qkv_row`), and y is not x.
    pub keys: Option<RopeKeys<'a>>,
}

/// Where a token's angles come from.
pub struct Angles<'a> {
    /// `[axes, tokens of the batch]` i32.
    pub positions: DeviceSlice<'a>,
    /// `[frequencies]` f32.
    pub inv_freq: DeviceSlice<'a>,
    pub frequencies: usize,
    /// Position components: 1, or 3 for M-RoPE, or 2 for a grid.
    pub axes: usize,
    /// `[frequencies]` i32, below `axes`: the component that each frequency takes. Needed where there are several.
    pub axis: Option<DeviceSlice<'a>>,
    /// Factor on cos and sin.
    pub scaling: f32,
}

/// A layer's keys and values of a step, and their pages.
pub struct RopeKeys<'a> {
    /// `[tokens, kv_heads * head_dim]`, rows `k_stride` elements apart.
    pub k: DeviceSlice<'a>,
    pub k_stride: usize,
    pub v: DeviceSlice<'a>,
    pub v_stride: usize,
    pub kv_heads: usize,
    /// `[pages][K|V][kv_heads][PAGE_SIZE][head_dim]`.
    pub cache: DeviceSlice<'a>,
    /// `[tokens]` i32: page * PAGE_SIZE + offset; a negative one is not written.
    pub slot_mapping: DeviceSlice<'a>,
}

impl Rope<'_> {
    /// Errors: sizes that do not belong together, slices too small, f32, the driver's.
    pub fn prepare(&self, cuda: &Cuda) -> Result<Launch> {
        let op = "rope";
        let suffix = ops::half_suffix(op, self.dtype)?;
        let (width, half) = (self.heads * self.head_dim, self.angles.frequencies);
        if half == 0 || half * 2 > self.head_dim || self.head_dim > MAX_HEAD_DIM {
            return Err(Error::Unsupported(format!("{op}: {half} frequencies for head_dim {}", self.head_dim)));
        }
        ops::check_rows(op, "x", &self.x, self.tokens, width, self.x_stride, self.dtype)?;
        ops::check_rows(op, "y", &self.y, self.tokens, width, self.y_stride, self.dtype)?;
        let a = &self.angles;
        ops::check_bytes(op, "positions", a.positions.bytes(), a.axes * self.tokens * 4)?;
        ops::check_bytes(op, "inv_freq", a.inv_freq.bytes(), half * 4)?;
        match &a.axis {
            Some(axis) => ops::check_bytes(op, "axis", axis.bytes(), half * 4)?,
            None if a.axes != 1 => return Err(Error::Internal(format!("{op}: {} axes and no choice of them", a.axes))),
            None => (),
        }
        if let Some(n) = &self.num_tokens {
            ops::check_bytes(op, "num_tokens", n.bytes(), 4)?;
        }
        let mut addresses = vec![self.x.address(), self.y.address()];
        let mut lengths = vec![self.head_dim, self.x_stride, self.y_stride];
        let mut heads = self.heads;
        if let Some(keys) = &self.keys {
            let width = keys.kv_heads * self.head_dim;
            ops::check_rows(op, "k", &keys.k, self.tokens, width, keys.k_stride, self.dtype)?;
            ops::check_rows(op, "v", &keys.v, self.tokens, width, keys.v_stride, self.dtype)?;
            ops::check_bytes(op, "cache", keys.cache.bytes(), 2 * width * PAGE_SIZE * self.dtype.size())?;
            ops::check_bytes(op, "slot_mapping", keys.slot_mapping.bytes(), self.tokens * 4)?;
            if self.x.address() == self.y.address() {
                return Err(Error::Internal(format!("{op}: pairs cannot be put in order in place")));
            }
            addresses.extend([keys.k.address(), keys.v.address(), keys.cache.address()]);
            lengths.extend([keys.k_stride, keys.v_stride]);
            heads += 2 * keys.kv_heads;
        }
        // Four pairs a thread where nothing forbids it: from two places, or from one of twice the size.
        let size = if self.keys.is_some() { 16 } else { 8 };
        let vector = addresses.iter().all(|a| a % size == 0)
            && half.is_multiple_of(4)
            && lengths.iter().all(|n| (n * self.dtype.size()).is_multiple_of(size as usize));
        let entry = match (&self.keys, vector) {
            (None, true) => format!("rope_{suffix}"),
            (None, false) => format!("rope_{suffix}_scalar"),
            (Some(_), true) => format!("rope_kv_{suffix}"),
            (Some(_), false) => format!("rope_kv_{suffix}_scalar"),
        };
        let int = |n: usize| ops::int(op, n);
        let address = |s: Option<&DeviceSlice>| s.map_or(0, DeviceSlice::address);
        let keys = self.keys.as_ref();
        let args = RopeArgs {
            x: self.x.address(),
            y: self.y.address(),
            positions: a.positions.address(),
            inv_freq: a.inv_freq.address(),
            axis: address(a.axis.as_ref()),
            num_tokens: address(self.num_tokens.as_ref()),
            k: address(keys.map(|k| &k.k)),
            v: address(keys.map(|k| &k.v)),
            cache: address(keys.map(|k| &k.cache)),
            slots: address(keys.map(|k| &k.slot_mapping)),
            x_stride: int(self.x_stride)?,
            y_stride: int(self.y_stride)?,
            k_stride: int(keys.map_or(0, |k| k.k_stride))?,
            v_stride: int(keys.map_or(0, |k| k.v_stride))?,
            // The positions of a batch are contiguous, so its tokens part the components.
            position_stride: if self.num_tokens.is_some() { 0 } else { int(self.tokens)? },
            heads: int(self.heads)?,
            kv_heads: int(keys.map_or(0, |k| k.kv_heads))?,
            head_dim: int(self.head_dim)?,
            half: int(half)?,
            scaling: a.scaling,
        };
        let config = LaunchConfig {
            grid: (int(self.tokens)? as u32, 1, 1),
            block: (threads(heads * half / if vector { 4 } else { 1 }), 1, 1),
            shared_bytes: (half.next_multiple_of(4) + half) as u32 * 4,
        };
        // SAFETY: the struct is the kernel's, and the slices hold all that it touches, as checked above; slots lie
        // within the cache by the contract of the batch.
        unsafe { Launch::new(cuda.kernel("rope", &entry)?, config, &args) }
    }
}

/// Threads of a block that has `work` pieces for them.
pub(super) fn threads(work: usize) -> u32 {
    work.next_multiple_of(32).clamp(32, MAX_THREADS) as u32
}
