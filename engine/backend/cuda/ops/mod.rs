//! One file an operation: its arguments, which entry runs, with how many blocks.
//!
//! In: device slices and sizes. Out: prepared launches. Not here: which operations a graph has.

pub mod attention;
pub mod elementwise;
pub mod fused;
pub mod gated_linear;
pub mod kv_write;
pub mod layernorm;
pub mod linear;
mod linear_choice;
mod norm;
pub mod paged_attention;
pub mod patch_embed;
pub mod pool;
pub mod quantize_rows;
pub mod rmsnorm;
pub mod rope;
mod row_grid;
pub mod rows;
pub mod sampling;

pub use norm::Residual;
pub use row_grid::Rows;

use super::DeviceSlice;
use crate::tensor::DType;
use crate::{Error, Result};

/// The suffix of kernels for an activation type.
fn suffix(op: &str, dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::F16 => Ok("f16"),
        DType::Bf16 => Ok("bf16"),
        other => Err(Error::Unsupported(format!("{op}: activations of type {} on cuda", other.name()))),
    }
}

/// The suffix of kernels that know 16-bit activations only.
fn half_suffix(op: &str, dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => {
            Err(Error::Unsupported(format!("{op}: activations of type f32 on cuda; use --dtype bf16 or f16")))
        }
        other => suffix(op, other),
    }
}

/// A size as kernels take it.
fn int(op: &str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::Unsupported(format!("{op}: a size of {n} on cuda")))
}

/// Refuses a slice that is smaller than what a kernel will touch.
fn check_bytes(op: &str, name: &str, got: usize, need: usize) -> Result<()> {
    if got < need {
        return Err(Error::Internal(format!("{op}: {name}: needs {need} bytes, got {got}")));
    }
    Ok(())
}

/// Refuses rows of `width` elements, `stride` apart, that do not lie within a slice.
fn check_rows(
    op: &str,
    name: &str,
    slice: &DeviceSlice,
    rows: usize,
    width: usize,
    stride: usize,
    dtype: DType,
) -> Result<()> {
    if stride < width {
        return Err(Error::Internal(format!("{op}: {name}: rows of {width} elements, {stride} apart")));
    }
    let need = rows.saturating_sub(1).saturating_mul(stride).saturating_add(width).saturating_mul(dtype.size());
    check_bytes(op, name, slice.bytes(), need)
}
