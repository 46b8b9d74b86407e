//! RMSNorm (kernels/rmsnorm.cu).
//!
//! In: rows of activations and a weight on the device. Out: the launch. Not here: the formula.

use crate::backend::cuda::{Cuda, DeviceSlice, Launch, LaunchConfig, ops};
use crate::tensor::DType;
use crate::{Error, Result};

/// Mirrors `RmsNormArgs` in kernels/rmsnorm.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct RmsNormArgs {
    x: u64,
    weight: u64,
    y: u64,
    num_rows: u64,
    x_stride: i64,
    y_stride: i64,
    hidden: i32,
    eps: f32,
}
const _: () = assert!(size_of::<RmsNormArgs>() == 56);

const MAX_THREADS: usize = 256;

/// One launch: `y[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight`.
pub struct RmsNorm<'a> {
    /// Of x and y: f32, f16 or bf16.
    pub dtype: DType,
    /// `[rows, hidden]`, rows `x_stride` elements apart.
    pub x: DeviceSlice<'a>,
    pub x_stride: usize,
    /// `[hidden]` f32.
    pub weight: DeviceSlice<'a>,
    /// `[rows, hidden]`, rows `y_stride` elements apart; may be x.
    pub y: DeviceSlice<'a>,
    pub y_stride: usize,
    /// Rows of the launch; those of the batch where `num_rows` is none.
    pub rows: usize,
    pub hidden: usize,
    pub eps: f32,
    /// One i32 on the device: rows of the batch, at most `rows`.
    pub num_rows: Option<DeviceSlice<'a>>,
}

impl RmsNorm<'_> {
    /// Errors: slices too small, no such type, the driver's.
    pub fn prepare(&self, cuda: &Cuda) -> Result<Launch> {
        let suffix = ops::suffix("rms_norm", self.dtype)?;
        let hidden = i32::try_from(self.hidden).ok().filter(|&h| h > 0);
        let (Some(hidden), Ok(grid)) = (hidden, u32::try_from(self.rows)) else {
            return Err(Error::Internal(format!("rms_norm of [{}, {}]", self.rows, self.hidden)));
        };
        ops::check_rows("rms_norm", "x", &self.x, self.rows, self.hidden, self.x_stride, self.dtype)?;
        ops::check_rows("rms_norm", "y", &self.y, self.rows, self.hidden, self.y_stride, self.dtype)?;
        ops::check_bytes("rms_norm", "weight", self.weight.bytes(), self.hidden * 4)?;
        if let Some(num_rows) = &self.num_rows {
            ops::check_bytes("rms_norm", "num_rows", num_rows.bytes(), 4)?;
        }
        let (vectors, threads) = self.shape_of_block();
        let function = cuda.kernel("rmsnorm", &format!("rmsnorm_{suffix}_v{vectors}"))?;
        let args = RmsNormArgs {
            x: self.x.address(),
            weight: self.weight.address(),
            y: self.y.address(),
            num_rows: self.num_rows.as_ref().map_or(0, |n| n.address()),
            x_stride: self.x_stride as i64,
            y_stride: self.y_stride as i64,
            hidden,
            eps: self.eps,
        };
        let config = LaunchConfig { grid: (grid, 1, 1), block: (threads, 1, 1), shared_bytes: 0 };
        // SAFETY: the struct is the kernel's, and the slices hold all that it touches, as checked above.
        unsafe { Launch::new(function, config, &args) }
    }

    /// (vectors a thread, threads): the fewest vectors that fit; none where size or alignment forbid them.
    fn shape_of_block(&self) -> (usize, u32) {
        let per_vector = 16 / self.dtype.size();
        let aligned = [self.x.address(), self.y.address(), self.weight.address()].iter().all(|a| a % 16 == 0);
        let count = self.hidden / per_vector;
        let whole = [self.hidden, self.x_stride, self.y_stride].iter().all(|n| n.is_multiple_of(per_vector));
        if !aligned || !whole || count > 4 * MAX_THREADS {
            return (0, self.hidden.next_multiple_of(32).min(MAX_THREADS) as u32);
        }
        let vectors = [1, 2, 4].into_iter().find(|v| count <= v * MAX_THREADS).unwrap_or(4);
        (vectors, count.div_ceil(vectors).next_multiple_of(32) as u32)
    }
}
