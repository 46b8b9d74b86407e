//! Linear layers that do what comes before and after them too: for few rows the norm of their input, and for q, k and v of
//! a decoder's attention rotary embedding and the write to the pages (kernels/gemv_norm.cu, gemv_qkv.cu, gemm_qkv.cu).
//!
//! In: a linear layer, what else it shall do. Out: the launch. Not here: for how many rows that pays
//! (`linear_choice.rs`), the layers alone (`linear.rs`, `gated_linear.rs`), norms and rotation alone (`rmsnorm.rs`,
//! `rope.rs`).

use super::linear::{GATED, GatedLinear, Linear, LinearArgs, Storage};
pub use super::linear_choice::NORM_ROWS;
use crate::backend::cuda::{Cuda, DeviceSlice, Launch, LaunchConfig, ops, pack};
use crate::graph::Rotary;
use crate::graph::builder::PAGE_SIZE;
use crate::{Error, Result};

/// Mirrors `FusedArgs` in kernels/qkv.cuh.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct FusedArgs {
    linear: LinearArgs,
    norm: u64,
    positions: u64,
    inv_freq: u64,
    cache: u64,
    slots: u64,
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
    eps: f32,
    ends: [i32; 2],
}
const _: () = assert!(size_of::<FusedArgs>() == 232);

/// The RMSNorm of a layer's input.
#[derive(Clone, Copy)]
pub struct InputNorm<'a> {
    /// As [`pack::pack_norm`] makes it.
    pub weight: DeviceSlice<'a>,
    pub eps: f32,
}

/// What becomes of q, k and v: a layer's y is q, its n the features of all three, in the order of [`pack::qkv_row`].
#[derive(Clone, Copy)]
pub struct QkvOutput<'a> {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// `[components, tokens of the batch]` i32.
    pub positions: DeviceSlice<'a>,
    /// `[head_dim / 2]` f32.
    pub inv_freq: DeviceSlice<'a>,
    /// Of a position, up to three.
    pub components: usize,
    /// As [`section_ends`] gives them.
    pub ends: [usize; 2],
    /// `[pages][K|V][kv_heads][PAGE_SIZE][head_dim]`.
    pub cache: DeviceSlice<'a>,
    /// `[tokens]` i32: page * PAGE_SIZE + offset; of a negative one k and v are not written.
    pub slot_mapping: DeviceSlice<'a>,
}

/// Where the sections of frequencies end that take components 0 and 1 of a position. `None` where the one launch does not
/// take them: it turns two neighbouring pairs by the same component, of three at most.
pub fn section_ends(rotary: &Rotary) -> Option<[usize; 2]> {
    let even = |n: &usize| n.is_multiple_of(2);
    let ends = rotary.ends()?;
    let pairs = rotary.inv_freq().len();
    (rotary.components() == 1 || even(&pairs) && ends.iter().all(even)).then_some(ends)
}

impl Linear<'_> {
    /// As [`Linear::prepare`] of the norm of x, for at most [`NORM_ROWS`] rows.
    pub fn prepare_normed(&self, cuda: &Cuda, norm: &InputNorm) -> Result<Launch> {
        self.prepare_fused("norm_linear", cuda, self.flags(), Some(norm), None, false)
    }

    /// q, k and v, with a norm for at most [`NORM_ROWS`] rows.
    pub fn prepare_qkv(&self, cuda: &Cuda, norm: Option<&InputNorm>, output: &QkvOutput) -> Result<Launch> {
        self.prepare_fused("qkv_rope", cuda, self.flags(), norm, Some(output), false)
    }

    /// As [`Linear::prepare_qkv`], by kernels that all sum in one order ([`Linear::prepare_alike`]).
    pub fn prepare_qkv_alike(&self, cuda: &Cuda, output: &QkvOutput) -> Result<Launch> {
        self.prepare_fused("qkv_rope", cuda, self.flags(), None, Some(output), true)
    }

    fn prepare_fused(
        &self,
        op: &str,
        cuda: &Cuda,
        flags: i32,
        norm: Option<&InputNorm>,
        qkv: Option<&QkvOutput>,
        alike: bool,
    ) -> Result<Launch> {
        let suffix = ops::half_suffix(op, self.dtype)?;
        let y_width = match qkv {
            Some(qkv) => self.check_qkv(op, qkv)?,
            None => self.n,
        };
        if let Some(norm) = norm {
            ops::check_bytes(op, "norm", norm.weight.bytes(), pack::norm_bytes(self.k))?;
        }
        if norm.is_some() && self.rows > NORM_ROWS {
            return Err(Error::Internal(format!("{op}: a norm of {} rows in one launch", self.rows)));
        }
        // Of w: a gated layer's has gate and up.
        let columns = if flags == GATED { 2 * self.n } else { self.n };
        let choice = self.choose(cuda, columns, Storage::Dense, alike);
        let (choice, linear) = self.arguments(op, choice, flags, columns, y_width, None)?;
        let args = FusedArgs {
            linear,
            norm: norm.map_or(0, |n| n.weight.address()),
            positions: qkv.map_or(0, |q| q.positions.address()),
            inv_freq: qkv.map_or(0, |q| q.inv_freq.address()),
            cache: qkv.map_or(0, |q| q.cache.address()),
            slots: qkv.map_or(0, |q| q.slot_mapping.address()),
            heads: ops::int(op, qkv.map_or(0, |q| q.heads))?,
            kv_heads: ops::int(op, qkv.map_or(0, |q| q.kv_heads))?,
            head_dim: ops::int(op, qkv.map_or(0, |q| q.head_dim))?,
            eps: norm.map_or(0.0, |n| n.eps),
            ends: qkv.map_or([0; 2], |q| q.ends).map(|end| end as i32),
        };
        let columns = columns.next_multiple_of(pack::PANEL_ROWS);
        let (file, entry, shared) = choice.kernel.fused(suffix, self.rows, norm.is_some(), qkv.is_some())?;
        let config = LaunchConfig {
            grid: (ops::int(op, choice.kernel.blocks(self.rows, columns))? as u32, choice.splits as u32, 1),
            block: (choice.kernel.threads(), 1, 1),
            shared_bytes: shared as u32,
        };
        // SAFETY: the struct is the kernel's, and the slices hold all that it touches, as checked above; slots lie
        // within the cache by the contract of the batch.
        unsafe { Launch::new(cuda.kernel(file, &entry)?, config, &args) }
    }

    /// Columns of q.
    fn check_qkv(&self, op: &str, qkv: &QkvOutput) -> Result<usize> {
        let QkvOutput { heads, kv_heads, head_dim, .. } = *qkv;
        if head_dim == 0 || !head_dim.is_multiple_of(2) || self.n != (heads + 2 * kv_heads) * head_dim {
            return Err(Error::Internal(format!("{op}: {heads} and {kv_heads} heads of {head_dim} in {}", self.n)));
        }
        if self.output != self.dtype || self.activation.is_some() || self.residual.is_some() {
            return Err(Error::Internal(format!("{op}: more than a product")));
        }
        let [first, second] = qkv.ends;
        if first > second || second > head_dim / 2 || !(1..=3).contains(&qkv.components) {
            return Err(Error::Internal(format!("{op}: {} components, sections to {:?}", qkv.components, qkv.ends)));
        }
        ops::check_bytes(op, "positions", qkv.positions.bytes(), qkv.components * self.rows * 4)?;
        ops::check_bytes(op, "inv_freq", qkv.inv_freq.bytes(), head_dim / 2 * 4)?;
        let page_bytes = 2 * kv_heads * head_dim * PAGE_SIZE * self.dtype.size();
        ops::check_bytes(op, "cache", qkv.cache.bytes(), page_bytes)?;
        ops::check_bytes(op, "slot_mapping", qkv.slot_mapping.bytes(), self.rows * 4)?;
        if !qkv.cache.address().is_multiple_of(8) {
            return Err(Error::Internal(format!("{op}: cache: expected 8-byte alignment")));
        }
        Ok(heads * head_dim)
    }
}

impl GatedLinear<'_> {
    /// As [`GatedLinear::prepare`] of the norm of x, for at most [`NORM_ROWS`] rows.
    pub fn prepare_normed(&self, cuda: &Cuda, norm: &InputNorm) -> Result<Launch> {
        self.linear().prepare_fused("gated_linear", cuda, GATED, Some(norm), None, false)
    }
}
