//! Keys and values of a step to their pages (kernels/kv_write.cu).
//!
//! In: rows of keys and values, a layer's cache. Out: the launch. Not here: which page a token has.

use crate::Result;
use crate::backend::cuda::{Cuda, DeviceSlice, Launch, LaunchConfig, ops};
use crate::graph::builder::PAGE_SIZE;
use crate::tensor::DType;

/// Mirrors `KvWriteArgs` in kernels/kv_write.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct KvWriteArgs {
    k: u64,
    v: u64,
    cache: u64,
    slots: u64,
    num_tokens: u64,
    k_stride: i32,
    v_stride: i32,
    kv_heads: i32,
    head_dim: i32,
}
const _: () = assert!(size_of::<KvWriteArgs>() == 56);

/// Writes `k` and `v` to the slots of their tokens.
pub struct KvWrite<'a> {
    /// Of k, v and the cache: f16 or bf16.
    pub dtype: DType,
    /// `[tokens, kv_heads * head_dim]`, rows `k_stride` elements apart.
    pub k: DeviceSlice<'a>,
    pub k_stride: usize,
    pub v: DeviceSlice<'a>,
    pub v_stride: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// `[pages][K|V][kv_heads][PAGE_SIZE][head_dim]`.
    pub cache: DeviceSlice<'a>,
    /// `[tokens]` i32: page * PAGE_SIZE + offset; a negative one is not written.
    pub slot_mapping: DeviceSlice<'a>,
    /// Tokens of the launch; those of the batch where `num_tokens` is none.
    pub tokens: usize,
    /// One i32 on the device: tokens of the batch, at most `tokens`.
    pub num_tokens: Option<DeviceSlice<'a>>,
}

impl KvWrite<'_> {
    /// Errors: slices too small, f32, the driver's.
    pub fn prepare(&self, cuda: &Cuda) -> Result<Launch> {
        let op = "kv_write";
        ops::half_suffix(op, self.dtype)?;
        let width = self.kv_heads * self.head_dim;
        ops::check_rows(op, "k", &self.k, self.tokens, width, self.k_stride, self.dtype)?;
        ops::check_rows(op, "v", &self.v, self.tokens, width, self.v_stride, self.dtype)?;
        ops::check_bytes(op, "cache", self.cache.bytes(), 2 * width * PAGE_SIZE * self.dtype.size())?;
        ops::check_bytes(op, "slot_mapping", self.slot_mapping.bytes(), self.tokens * 4)?;
        if let Some(n) = &self.num_tokens {
            ops::check_bytes(op, "num_tokens", n.bytes(), 4)?;
        }
        let aligned = [&self.k, &self.v, &self.cache].iter().all(|s| s.address() % 16 == 0);
        let whole = [self.head_dim, self.k_stride, self.v_stride].iter().all(|n| n.is_multiple_of(8));
        let (entry, per_thread) = if aligned && whole { ("kv_write", 8) } else { ("kv_write_scalar", 1) };
        let int = |n: usize| ops::int(op, n);
        let args = KvWriteArgs {
            k: self.k.address(),
            v: self.v.address(),
            cache: self.cache.address(),
            slots: self.slot_mapping.address(),
            num_tokens: self.num_tokens.as_ref().map_or(0, DeviceSlice::address),
            k_stride: int(self.k_stride)?,
            v_stride: int(self.v_stride)?,
            kv_heads: int(self.kv_heads)?,
            head_dim: int(self.head_dim)?,
        };
        let config = LaunchConfig {
            grid: (int(self.tokens)? as u32, 1, 1),
            block: (super::rope::threads(width / per_thread), 1, 1),
            shared_bytes: 0,
        };
        // SAFETY: the struct is the kernel's, and the slices hold all that it touches, as checked above; slots lie
        // within the cache by the contract of the batch.
        unsafe { Launch::new(cuda.kernel("kv_write", entry)?, config, &args) }
    }
}
