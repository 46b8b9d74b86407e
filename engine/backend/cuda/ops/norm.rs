//! What both norms share: their argument struct, checks, which entry runs (kernels/norm.cuh).
//!
//! In: rows of activations, vectors. Out: the launch. Not here: the formulas.

use crate::backend::cuda::{Cuda, DeviceSlice, Launch, LaunchConfig, ops};
use crate::tensor::DType;
use crate::{Error, Result};

/// Mirrors `NormArgs` in kernels/norm.cuh.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct NormArgs {
    x: u64,
    residual: u64,
    sum: u64,
    weight: u64,
    bias: u64,
    y: u64,
    num_rows: u64,
    x_stride: i64,
    residual_stride: i64,
    sum_stride: i64,
    y_stride: i64,
    hidden: i32,
    eps: f32,
}
const _: () = assert!(size_of::<NormArgs>() == 96);

const THREADS: usize = 512;
/// Of the widest rows, with [`MOST_PIECES`] a thread.
const MOST_THREADS: usize = 1024;
/// Elements that a thread loads at once.
const PIECE: usize = 4;
const MOST_PIECES: usize = 4;

/// A residual that is added before the norm, and where the sum goes.
#[derive(Debug, Clone, Copy)]
pub struct Residual<'a> {
    /// `[rows, hidden]`, rows `residual_stride` elements apart.
    pub residual: DeviceSlice<'a>,
    pub residual_stride: usize,
    /// `[rows, hidden]`, `x + residual` in the activations' type; may be x or the residual.
    pub sum: DeviceSlice<'a>,
    pub sum_stride: usize,
}

/// A norm of either kind.
pub(super) struct Norm<'a> {
    pub op: &'static str,
    /// The kernel file, which is the entries' first word too.
    pub file: &'static str,
    pub dtype: DType,
    pub x: DeviceSlice<'a>,
    pub x_stride: usize,
    pub residual: Option<Residual<'a>>,
    pub weight: DeviceSlice<'a>,
    pub bias: Option<DeviceSlice<'a>>,
    pub y: DeviceSlice<'a>,
    pub y_stride: usize,
    pub rows: usize,
    pub hidden: usize,
    pub eps: f32,
    pub num_rows: Option<DeviceSlice<'a>>,
}

impl Norm<'_> {
    pub fn prepare(&self, cuda: &Cuda) -> Result<Launch> {
        let op = self.op;
        let suffix = ops::suffix(op, self.dtype)?;
        let hidden = i32::try_from(self.hidden).ok().filter(|&h| h > 0);
        let (Some(hidden), Ok(grid)) = (hidden, u32::try_from(self.rows)) else {
            return Err(Error::Internal(format!("{op} of [{}, {}]", self.rows, self.hidden)));
        };
        let mut matrices = vec![("x", self.x, self.x_stride), ("y", self.y, self.y_stride)];
        if let Some(r) = &self.residual {
            matrices.extend([("residual", r.residual, r.residual_stride), ("sum", r.sum, r.sum_stride)]);
        }
        for (name, slice, stride) in &matrices {
            ops::check_rows(op, name, slice, self.rows, self.hidden, *stride, self.dtype)?;
        }
        let vectors: Vec<_> = std::iter::once(("weight", self.weight)).chain(self.bias.map(|b| ("bias", b))).collect();
        for (name, slice) in &vectors {
            ops::check_bytes(op, name, slice.bytes(), self.hidden * 4)?;
        }
        if let Some(num_rows) = &self.num_rows {
            ops::check_bytes(op, "num_rows", num_rows.bytes(), 4)?;
        }
        let aligned = matrices.iter().map(|m| m.1).chain(vectors.iter().map(|v| v.1)).all(|s| s.address() % 16 == 0);
        let whole = matrices.iter().all(|m| m.2.is_multiple_of(PIECE));
        let (width, threads) = self.shape_of_block(aligned && whole);
        let add = if self.residual.is_some() { "add_" } else { "" };
        let function = cuda.kernel(self.file, &format!("{}_{add}{suffix}_v{width}", self.file))?;
        let residual = self.residual.as_ref();
        let args = NormArgs {
            x: self.x.address(),
            residual: residual.map_or(0, |r| r.residual.address()),
            sum: residual.map_or(0, |r| r.sum.address()),
            weight: self.weight.address(),
            bias: self.bias.map_or(0, |b| b.address()),
            y: self.y.address(),
            num_rows: self.num_rows.map_or(0, |n| n.address()),
            x_stride: self.x_stride as i64,
            residual_stride: residual.map_or(0, |r| r.residual_stride as i64),
            sum_stride: residual.map_or(0, |r| r.sum_stride as i64),
            y_stride: self.y_stride as i64,
            hidden,
            eps: self.eps,
        };
        let config = LaunchConfig { grid: (grid, 1, 1), block: (threads, 1, 1), shared_bytes: 0 };
        // SAFETY: the struct is the kernel's, and the slices hold all that it touches, as checked above.
        unsafe { Launch::new(function, config, &args) }
    }

    /// (pieces a thread, threads): the fewest pieces that fit; none where size or alignment forbid them.
    fn shape_of_block(&self, aligned: bool) -> (usize, u32) {
        let count = self.hidden / PIECE;
        if !aligned || !self.hidden.is_multiple_of(PIECE) || count > MOST_PIECES * MOST_THREADS {
            return (0, self.hidden.next_multiple_of(32).min(THREADS) as u32);
        }
        let pieces = [1, 2].into_iter().find(|p| count <= p * THREADS).unwrap_or(MOST_PIECES);
        (pieces, count.div_ceil(pieces).next_multiple_of(32) as u32)
    }
}
