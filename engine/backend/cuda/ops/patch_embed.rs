//! Patch embedding from 8-bit pixels (kernels/patch_embed.cu).
//!
//! In: pixels and origins of patches on the device, a weight and a bias with the normalisation in them
//! (`pack_patches.rs`). Out: the launch. Not here: the formula, the folding.

use crate::backend::cuda::pack_patches::{columns, row_words};
use crate::backend::cuda::{Cuda, DeviceSlice, Launch, LaunchConfig, ops, pack};
use crate::tensor::DType;
use crate::{Error, Result};

/// Mirrors `PatchEmbedArgs` in kernels/patch_embed.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct PatchEmbedArgs {
    pixels: u64,
    origins: u64,
    w: u64,
    bias: u64,
    y: u64,
    num_rows: u64,
    rows: i32,
    n: i32,
    n_tiles: i32,
    k_tiles: i32,
    y_stride: i32,
    row_bytes: i32,
    row_words: i32,
    patch_rows: i32,
    scale: f32,
    padding: i32,
}
const _: () = assert!(size_of::<PatchEmbedArgs>() == 88);

/// A block's part of y.
const TILE_ROWS: usize = 64;
const TILE_COLUMNS: usize = 128;
const THREADS: u32 = 128;

/// `y[r] = scale * (pixels of patch r - 128) * w^T + bias`.
pub struct PatchEmbed<'a> {
    /// Of y and w: f16 or bf16.
    pub dtype: DType,
    /// Images `[height, width, 3]` one after another, in whole words.
    pub pixels: DeviceSlice<'a>,
    /// `[rows, 2]` i32: the byte of a patch's first pixel, bytes from one of its rows to the next.
    pub origins: DeviceSlice<'a>,
    /// Pixels a side of a patch.
    pub side: usize,
    /// `[n, columns(side)]` as `pack_patches` makes it, and `[n]` f32 with it.
    pub weight: DeviceSlice<'a>,
    pub bias: DeviceSlice<'a>,
    pub scale: f32,
    /// `[rows, n]`, rows `y_stride` elements apart, a multiple of 4.
    pub y: DeviceSlice<'a>,
    pub y_stride: usize,
    /// Patches of the launch; those of the batch where `num_rows` is none.
    pub rows: usize,
    pub n: usize,
    /// One i32 on the device: patches of the batch, at most `rows`.
    pub num_rows: Option<DeviceSlice<'a>>,
}

impl PatchEmbed<'_> {
    /// Errors: slices too small or not aligned, no such type, the driver's. Origins must lie within the pixels.
    pub fn prepare(&self, cuda: &Cuda) -> Result<Launch> {
        let op = "patch_embed";
        let suffix = ops::half_suffix(op, self.dtype)?;
        let (rows, n, k) = (self.rows, self.n, columns(self.side));
        if rows == 0 || n == 0 || k == 0 {
            return Err(Error::Internal(format!("{op}: {rows} patches of {} pixels a side to {n}", self.side)));
        }
        let packed_rows = n.next_multiple_of(pack::PANEL_ROWS);
        ops::check_bytes(op, "pixels", self.pixels.bytes(), 4)?;
        ops::check_bytes(op, "origins", self.origins.bytes(), rows * 8)?;
        ops::check_bytes(op, "weight", self.weight.bytes(), packed_rows / pack::PANEL_ROWS * pack::panel_bytes(k))?;
        ops::check_bytes(op, "bias", self.bias.bytes(), n * 4)?;
        ops::check_rows(op, "y", &self.y, rows, n, self.y_stride, self.dtype)?;
        if let Some(n) = &self.num_rows {
            ops::check_bytes(op, "num_rows", n.bytes(), 4)?;
        }
        let aligned = [(&self.pixels, 4), (&self.origins, 8), (&self.weight, 16), (&self.bias, 16), (&self.y, 8)];
        if aligned.iter().any(|(slice, bytes)| !slice.address().is_multiple_of(*bytes))
            || !self.y_stride.is_multiple_of(4)
            || !self.pixels.bytes().is_multiple_of(4)
        {
            return Err(Error::Internal(format!("{op}: expected aligned slices, a stride of y of a multiple of 4")));
        }
        let int = |n: usize| ops::int(op, n);
        int(self.pixels.bytes())?;
        let args = PatchEmbedArgs {
            pixels: self.pixels.address(),
            origins: self.origins.address(),
            w: self.weight.address(),
            bias: self.bias.address(),
            y: self.y.address(),
            num_rows: self.num_rows.as_ref().map_or(0, DeviceSlice::address),
            rows: int(rows)?,
            n: int(n)?,
            n_tiles: int(packed_rows / pack::TILE)?,
            k_tiles: int(k.next_multiple_of(pack::K_ALIGN) / pack::TILE)?,
            y_stride: int(self.y_stride)?,
            row_bytes: int(3 * self.side)?,
            row_words: int(row_words(self.side))?,
            patch_rows: int(self.side)?,
            scale: self.scale,
            padding: 0,
        };
        let blocks = rows.div_ceil(TILE_ROWS) * packed_rows.div_ceil(TILE_COLUMNS);
        let config = LaunchConfig { grid: (int(blocks)? as u32, 1, 1), block: (THREADS, 1, 1), shared_bytes: 0 };
        let function = cuda.kernel("patch_embed", &format!("patch_embed_{suffix}"))?;
        // SAFETY: the struct is the kernel's, and the slices hold all that it touches, as checked above; patches lie
        // within the pixels by the contract of the batch.
        unsafe { Launch::new(function, config, &args) }
    }
}
