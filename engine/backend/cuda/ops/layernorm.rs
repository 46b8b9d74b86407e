//! LayerNorm (kernels/layernorm.cu).
//!
//! In: rows of activations, weight and bias on the device. Out: the launch. Not here: the formula.

use super::norm::{Norm, Residual};
use crate::Result;
use crate::backend::cuda::{Cuda, DeviceSlice, Launch};
use crate::tensor::DType;

/// One launch: `y[r] = (x[r] - mean) / sqrt(var + eps) * weight + bias`, biased variance.
pub struct LayerNorm<'a> {
    /// Of x and y: f32, f16 or bf16.
    pub dtype: DType,
    /// `[rows, hidden]`, rows `x_stride` elements apart.
    pub x: DeviceSlice<'a>,
    pub x_stride: usize,
    /// `[hidden]` f32.
    pub weight: DeviceSlice<'a>,
    /// `[hidden]` f32.
    pub bias: DeviceSlice<'a>,
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

impl<'a> LayerNorm<'a> {
    /// Errors: slices too small, no such type, the driver's.
    pub fn prepare(&self, cuda: &Cuda) -> Result<Launch> {
        self.norm(None).prepare(cuda)
    }

    /// The norm of `x + residual`, which goes to `residual.sum`. Errors as [`LayerNorm::prepare`].
    pub fn prepare_after(&self, cuda: &Cuda, residual: Residual<'a>) -> Result<Launch> {
        self.norm(Some(residual)).prepare(cuda)
    }

    fn norm(&self, residual: Option<Residual<'a>>) -> Norm<'a> {
        Norm {
            op: "layer_norm",
            file: "layernorm",
            dtype: self.dtype,
            x: self.x,
            x_stride: self.x_stride,
            residual,
            weight: self.weight,
            bias: Some(self.bias),
            y: self.y,
            y_stride: self.y_stride,
            rows: self.rows,
            hidden: self.hidden,
            eps: self.eps,
            num_rows: self.num_rows,
        }
    }
}
