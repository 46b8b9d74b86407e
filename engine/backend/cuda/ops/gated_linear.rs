//! Gated linear layers: gate, up and their product in one launch (kernels/gemm*.cu, gemv*.cu).
//!
//! In: activations, gate and up packed together, sizes. Out: the launch. Not here: what it has in common with other linear
//! layers (`linear.rs`).

use super::linear::{GATED, Linear, Quantized, Work};
use crate::Result;
use crate::backend::cuda::{Cuda, DeviceSlice, Launch};
use crate::graph::Activation;
use crate::tensor::DType;

/// One launch: `y = act(x gate^T) * (x up^T)`.
pub struct GatedLinear<'a> {
    /// Of x, w and y: f16 or bf16.
    pub dtype: DType,
    /// `[rows, k]`, rows `x_stride` elements apart, a multiple of 8; columns from k on are not read.
    pub x: DeviceSlice<'a>,
    pub x_stride: usize,
    /// gate and up, each `[n, k]`, packed together (`pack::pack_gated_panel`).
    pub weight: DeviceSlice<'a>,
    pub activation: Activation,
    /// `[rows, n]`, rows `y_stride` elements apart, a multiple of 4.
    pub y: DeviceSlice<'a>,
    pub y_stride: usize,
    /// Rows of the launch; those of the batch where `num_rows` is none.
    pub rows: usize,
    pub n: usize,
    pub k: usize,
    /// One i32 on the device: rows of the batch, at most `rows`.
    pub num_rows: Option<DeviceSlice<'a>>,
    /// At least `work_bytes` of `2 n` columns; without it k is not split.
    pub work: Option<Work<'a>>,
}

impl GatedLinear<'_> {
    /// Errors: slices too small or not aligned, no such type, the driver's.
    pub fn prepare(&self, cuda: &Cuda) -> Result<Launch> {
        self.linear().prepare_flags("gated_linear", cuda, GATED, 2 * self.n, None, false)
    }

    /// As [`Linear::prepare_alike`].
    pub fn prepare_alike(&self, cuda: &Cuda) -> Result<Launch> {
        self.linear().prepare_flags("gated_linear", cuda, GATED, 2 * self.n, None, true)
    }

    /// As [`GatedLinear::prepare`] where `weight` holds packed integers, rows of gate and up in turn.
    pub fn prepare_quantized(&self, cuda: &Cuda, quantized: &Quantized) -> Result<Launch> {
        self.linear().prepare_flags("gated_linear", cuda, GATED, 2 * self.n, Some(quantized), false)
    }

    pub(super) fn linear(&self) -> Linear<'_> {
        Linear {
            dtype: self.dtype,
            x: self.x,
            x_stride: self.x_stride,
            weight: self.weight,
            bias: None,
            activation: Some(self.activation),
            residual: None,
            y: self.y,
            y_stride: self.y_stride,
            output: self.dtype,
            rows: self.rows,
            n: self.n,
            k: self.k,
            num_rows: self.num_rows,
            work: self.work,
        }
    }
}
