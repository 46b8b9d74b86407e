//! Fewer, wider or averaged rows from grids of rows (kernels/pool.cu).
//!
//! In: rows of image features on the device. Out: the launch. Not here: which families shuffle or pool.

use super::row_grid::{Rows, piece_width, row_grid};
use crate::backend::cuda::{Cuda, DeviceSlice, Launch, ops};
use crate::tensor::DType;
use crate::{Error, Result};

/// Mirrors `PoolArgs` in kernels/pool.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct PoolArgs {
    x: u64,
    y: u64,
    num_rows: u64,
    x_stride: i64,
    y_stride: i64,
    rows: i32,
    channels: i32,
    height: i32,
    width: i32,
    scale: i32,
    skip: i32,
    transposed: i32,
    unused: i32,
}
const _: () = assert!(size_of::<PoolArgs>() == 72);

/// What becomes of the `scale * scale` rows of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolKind {
    /// They lie side by side in one row, window row by window row.
    PixelShuffle,
    /// Their mean.
    Average,
}

/// One launch: every window of `scale * scale` rows of each image's grid becomes one row.
pub struct Pool<'a> {
    pub kind: PoolKind,
    /// f16 or bf16.
    pub dtype: DType,
    /// `[images, skip + height * width, channels]`
    pub x: Rows<'a>,
    /// `[images, height / scale * width / scale, channels]`, or `channels * scale * scale` wide for the shuffle.
    pub y: Rows<'a>,
    /// Images of the launch; those of the batch follow from `num_rows` where it is given.
    pub images: usize,
    pub channels: usize,
    pub height: usize,
    pub width: usize,
    pub scale: usize,
    /// Rows at the start of each image that belong to no pixel.
    pub skip: usize,
    /// Rows of y go column by column of the image (the first version of the shuffle).
    pub transposed: bool,
    /// One i32 on the device: rows of y in the batch.
    pub num_rows: Option<DeviceSlice<'a>>,
}

impl Pool<'_> {
    /// Errors: windows that do not tile the grid, slices too small, no such type, the driver's.
    pub fn prepare(&self, cuda: &Cuda) -> Result<Launch> {
        let op = match self.kind {
            PoolKind::PixelShuffle => "pixel_shuffle",
            PoolKind::Average => "average_pool",
        };
        let (height, width, scale, channels) = (self.height, self.width, self.scale, self.channels);
        if scale == 0 || !height.is_multiple_of(scale) || !width.is_multiple_of(scale) {
            return Err(Error::Unsupported(format!(
                "{op}: windows of {scale} do not tile a grid of {height} x {width}"
            )));
        }
        let entry = match (self.kind, self.dtype) {
            (PoolKind::PixelShuffle, d) if d.size() == 2 => "pixel_shuffle_b16",
            (PoolKind::Average, DType::Bf16) => "average_pool_bf16",
            (PoolKind::Average, DType::F16) => "average_pool_f16",
            (_, d) => return Err(Error::Unsupported(format!("{op}: activations of type {} on cuda", d.name()))),
        };
        let parts = if self.kind == PoolKind::PixelShuffle { scale * scale } else { 1 };
        let rows = self.images * (height / scale) * (width / scale);
        let x_rows = self.images * (self.skip + height * width);
        ops::check_rows(op, "x", &self.x.slice, x_rows, channels, self.x.stride, self.dtype)?;
        ops::check_rows(op, "y", &self.y.slice, rows, channels * parts, self.y.stride, self.dtype)?;
        if let Some(num_rows) = &self.num_rows {
            ops::check_bytes(op, "num_rows", num_rows.bytes(), 4)?;
        }
        let piece = piece_width(channels, &[self.x, self.y]);
        let config = row_grid(op, rows, channels * parts, piece)?;
        let function = cuda.kernel("pool", &format!("{entry}_v{piece}"))?;
        let int = |n: usize| {
            i32::try_from(n).map_err(|_| Error::Internal(format!("{op} of a grid of {height} x {width} x {channels}")))
        };
        let args = PoolArgs {
            x: self.x.slice.address(),
            y: self.y.slice.address(),
            num_rows: self.num_rows.map_or(0, |n| n.address()),
            x_stride: self.x.stride as i64,
            y_stride: self.y.stride as i64,
            rows: int(rows)?,
            channels: int(channels)?,
            height: int(height)?,
            width: int(width)?,
            scale: int(scale)?,
            skip: int(self.skip)?,
            transposed: i32::from(self.transposed),
            unused: 0,
        };
        // SAFETY: the struct is the kernel's, and the slices hold all that it touches, as checked above.
        unsafe { Launch::new(function, config, &args) }
    }
}
