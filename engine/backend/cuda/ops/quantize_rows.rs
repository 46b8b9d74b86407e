//! Activations to int8 with a scale a row (kernels/quantize_rows.cu), for linear layers of `Quantized::Int8Both`.
//!
//! In: rows of activations. Out: the launch. Not here: the formula.

use crate::backend::cuda::{Cuda, DeviceSlice, Launch, LaunchConfig, ops, pack};
use crate::tensor::DType;
use crate::{Error, Result};

/// Mirrors `QuantizeRowsArgs` in kernels/quantize_rows.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct QuantizeRowsArgs {
    x: u64,
    q: u64,
    scales: u64,
    num_rows: u64,
    x_stride: i64,
    k: i32,
    q_stride: i32,
    vectors: i32,
    unused: i32,
}
const _: () = assert!(size_of::<QuantizeRowsArgs>() == 56);

/// One launch: `scales[r] = max |x[r]| / 127`, `q[r] = round(x[r] / scales[r])`.
pub struct QuantizeRows<'a> {
    /// Of x: f16 or bf16.
    pub dtype: DType,
    /// `[rows, k]`, rows `x_stride` elements apart.
    pub x: DeviceSlice<'a>,
    pub x_stride: usize,
    /// `[rows, stride(k)]` int8, in the order of the multiplies' operands.
    pub q: DeviceSlice<'a>,
    /// `[rows]` f32.
    pub scales: DeviceSlice<'a>,
    /// Rows of the launch; those of the batch where `num_rows` is none.
    pub rows: usize,
    pub k: usize,
    /// One i32 on the device: rows of the batch, at most `rows`.
    pub num_rows: Option<DeviceSlice<'a>>,
}

impl QuantizeRows<'_> {
    /// Bytes from row to row of q.
    pub fn stride(k: usize) -> usize {
        k.next_multiple_of(pack::K_ALIGN)
    }

    /// Errors: slices too small or not aligned, no such type, the driver's.
    pub fn prepare(&self, cuda: &Cuda) -> Result<Launch> {
        let op = "quantize_rows";
        let suffix = ops::half_suffix(op, self.dtype)?;
        let stride = QuantizeRows::stride(self.k);
        if self.rows == 0 || self.k == 0 || !self.q.address().is_multiple_of(16) {
            return Err(Error::Internal(format!("{op}: [{}, {}] to {:#x}", self.rows, self.k, self.q.address())));
        }
        ops::check_rows(op, "x", &self.x, self.rows, self.k, self.x_stride, self.dtype)?;
        ops::check_rows(op, "q", &self.q, self.rows, stride, stride, DType::I8)?;
        ops::check_bytes(op, "scales", self.scales.bytes(), self.rows * 4)?;
        if let Some(num_rows) = &self.num_rows {
            ops::check_bytes(op, "num_rows", num_rows.bytes(), 4)?;
        }
        let function = cuda.kernel("quantize_rows", &format!("quantize_rows_{suffix}"))?;
        let args = QuantizeRowsArgs {
            x: self.x.address(),
            q: self.q.address(),
            scales: self.scales.address(),
            num_rows: self.num_rows.as_ref().map_or(0, DeviceSlice::address),
            x_stride: self.x_stride as i64,
            k: ops::int(op, self.k)?,
            q_stride: ops::int(op, stride)?,
            vectors: (self.x_stride.is_multiple_of(8) && self.x.address().is_multiple_of(16)).into(),
            unused: 0,
        };
        let grid = (ops::int(op, self.rows)? as u32, 1, 1);
        let config = LaunchConfig { grid, block: (128, 1, 1), shared_bytes: 0 };
        // SAFETY: the struct is the kernel's, and the slices hold all that it touches, as checked above.
        unsafe { Launch::new(function, config, &args) }
    }
}
