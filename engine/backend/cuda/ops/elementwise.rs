//! Sums, products and activations (kernels/elementwise.cu).
//!
//! In: activations on the device. Out: the launch, which overwrites them. Not here: the formulas.

use super::row_grid::{Rows, piece_width, row_grid};
use crate::backend::cuda::{Cuda, DeviceSlice, Launch, ops};
use crate::graph::Activation;
use crate::tensor::DType;
use crate::{Error, Result};

/// Mirrors `ElementwiseArgs` in kernels/elementwise.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ElementwiseArgs {
    x: u64,
    y: u64,
    num_rows: u64,
    x_stride: i64,
    y_stride: i64,
    rows: i32,
    width: i32,
}
const _: () = assert!(size_of::<ElementwiseArgs>() == 48);

/// What happens to an element of y.
#[derive(Debug, Clone, Copy)]
pub enum Elementwise<'a> {
    /// `y += x`
    Add(Rows<'a>),
    /// `y *= x`
    Mul(Rows<'a>),
    /// `y = act(y)`
    Activation(Activation),
    /// `y = act(y) * x`
    ActivationMul(Activation, Rows<'a>),
}

/// One launch over `[rows, width]`.
pub struct ElementwiseOp<'a> {
    pub kind: Elementwise<'a>,
    /// f16 or bf16.
    pub dtype: DType,
    /// Read and overwritten.
    pub y: Rows<'a>,
    /// Rows of the launch; those of the batch where `num_rows` is none.
    pub rows: usize,
    pub width: usize,
    /// One i32 on the device: rows of the batch, at most `rows`.
    pub num_rows: Option<DeviceSlice<'a>>,
}

impl ElementwiseOp<'_> {
    /// Errors: slices too small, no such type, the driver's.
    pub fn prepare(&self, cuda: &Cuda) -> Result<Launch> {
        let (name, x) = match self.kind {
            Elementwise::Add(x) => ("add".to_string(), Some(x)),
            Elementwise::Mul(x) => ("mul".to_string(), Some(x)),
            Elementwise::Activation(a) => (name(a).to_string(), None),
            Elementwise::ActivationMul(a, x) => (format!("{}_mul", name(a)), Some(x)),
        };
        let op = name.as_str();
        let suffix = ops::suffix(op, self.dtype)?;
        if self.dtype == DType::F32 {
            return Err(Error::Unsupported(format!("{op}: activations of type F32 on cuda; use --dtype bf16 or f16")));
        }
        let mut matrices = vec![self.y];
        matrices.extend(x);
        for (name, m) in ["y", "x"].iter().zip(&matrices) {
            ops::check_rows(op, name, &m.slice, self.rows, self.width, m.stride, self.dtype)?;
        }
        if let Some(num_rows) = &self.num_rows {
            ops::check_bytes(op, "num_rows", num_rows.bytes(), 4)?;
        }
        let piece = piece_width(self.width, &matrices);
        let config = row_grid(op, self.rows, self.width, piece)?;
        let function = cuda.kernel("elementwise", &format!("{op}_{suffix}_v{piece}"))?;
        let args = ElementwiseArgs {
            x: x.map_or(0, |x| x.slice.address()),
            y: self.y.slice.address(),
            num_rows: self.num_rows.map_or(0, |n| n.address()),
            x_stride: x.map_or(0, |x| x.stride as i64),
            y_stride: self.y.stride as i64,
            // Both fit, or the grid would not have been made.
            rows: self.rows as i32,
            width: self.width as i32,
        };
        // SAFETY: the struct is the kernel's, and the slices hold all that it touches, as checked above.
        unsafe { Launch::new(function, config, &args) }
    }
}

/// The first word of the kernels of an activation.
fn name(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu => "silu",
        Activation::GeluErf => "gelu",
        Activation::GeluTanh => "gelu_tanh",
        Activation::QuickGelu => "quick_gelu",
        Activation::Relu => "relu",
    }
}
