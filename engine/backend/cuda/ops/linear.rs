//! Linear layers (kernels/gemm*.cu, gemv*.cu).
//!
//! In: activations, a packed weight (`pack.rs`, `pack_quantized.rs`), sizes. Out: the launch. Owns: the arguments that
//! all linear kernels share. Not here: the formula, which kernel runs for how many rows (`linear_choice.rs`), gated
//! layers (`gated_linear.rs`).

pub use super::gated_linear::GatedLinear;
use super::linear_choice::{Choice, Groups, choose, choose_alike};
pub use super::linear_choice::{Storage, WorkBytes, work_bytes, work_bytes_of};
use crate::backend::cuda::{Cuda, DeviceSlice, Launch, LaunchConfig, ops, pack, pack_quantized};
use crate::graph::Activation;
use crate::tensor::DType;
use crate::{Error, Result};

/// Mirrors `SigmoidForm` in kernels/epilogue.cuh: every activation as `v * sigmoid(v * P(min(v^2, limit)))`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct SigmoidForm {
    limit: f32,
    /// Of P, times -log2(e), from the constant one on.
    c: [f32; 6],
}

impl SigmoidForm {
    fn new(activation: Option<Activation>) -> SigmoidForm {
        const NO_LIMIT: f32 = 1e30;
        let (limit, p): (f32, &[f64]) = match activation {
            None => (0.0, &[]),
            Some(Activation::Silu) => (NO_LIMIT, &[1.0]),
            Some(Activation::QuickGelu) => (NO_LIMIT, &[1.702]),
            // A step: 0 below zero, 1 above.
            Some(Activation::Relu) => (NO_LIMIT, &[1e30]),
            // 0.5 (1 + tanh(u)) = sigmoid(2 u), u = sqrt(2 / pi) (v + 0.044715 v^3).
            Some(Activation::GeluTanh) => (NO_LIMIT, &[1.595_769_121_605_730_8, 0.071_354_816_272_600_25]),
            // ln(cdf(v) / cdf(-v)) / v of the normal distribution, fitted on |v| <= 5; the result is within 7e-6 of
            // gelu, within 2e-5 of its value where v > 0.
            Some(Activation::GeluErf) => (
                25.0,
                &[1.595_561_94, 7.308_994_86e-2, -3.048_619_47e-4, -5.776_574_38e-5, 2.792_356_85e-6, -4.176_639_34e-8],
            ),
        };
        let mut c = [0.0; 6];
        for (c, p) in c.iter_mut().zip(p) {
            *c = (-std::f64::consts::LOG2_E * p) as f32;
        }
        SigmoidForm { limit, c }
    }
}

const ACTIVATE: i32 = 1;
pub(super) const GATED: i32 = 2;
const FLOAT_OUTPUT: i32 = 4;
const HEAD_MAJOR: i32 = 8;

/// Mirrors `LinearArgs` in kernels/epilogue.cuh.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct LinearArgs {
    x: u64,
    w: u64,
    scales: u64,
    offsets: u64,
    x_scales: u64,
    bias: u64,
    residual: u64,
    y: u64,
    partial: u64,
    arrived: u64,
    num_rows: u64,
    rows: i32,
    n: i32,
    k: i32,
    n_tiles: i32,
    k_tiles: i32,
    x_stride: i32,
    residual_stride: i32,
    y_stride: i32,
    splits: i32,
    flags: i32,
    activation: SigmoidForm,
    group: i32,
    head_dim: i32,
    head_stride: i32,
}
const _: () = assert!(size_of::<LinearArgs>() == 168);

/// One launch: `y = residual + act(x w^T + bias)`, of which all but the product is optional.
pub struct Linear<'a> {
    /// Of x, w and residual: f16 or bf16.
    pub dtype: DType,
    /// `[rows, k]`, rows `x_stride` elements apart, a multiple of 8; columns from k on are not read.
    pub x: DeviceSlice<'a>,
    pub x_stride: usize,
    /// `[n, k]` packed (`pack.rs`).
    pub weight: DeviceSlice<'a>,
    /// `[n]` f32.
    pub bias: Option<DeviceSlice<'a>>,
    pub activation: Option<Activation>,
    /// `[rows, n]` and its stride, a multiple of 4; may be y.
    pub residual: Option<(DeviceSlice<'a>, usize)>,
    /// `[rows, n]`, rows `y_stride` elements apart, a multiple of 4 unless y is f32.
    pub y: DeviceSlice<'a>,
    pub y_stride: usize,
    /// Of y: `dtype` or f32.
    pub output: DType,
    /// Rows of the launch; those of the batch where `num_rows` is none.
    pub rows: usize,
    pub n: usize,
    pub k: usize,
    /// One i32 on the device: rows of the batch, at most `rows`.
    pub num_rows: Option<DeviceSlice<'a>>,
    /// At least `work_bytes`; without it k is not split.
    pub work: Option<Work<'a>>,
}

/// How quantised weights are stored, and what belongs to them (`pack_quantized.rs`).
#[derive(Clone, Copy)]
pub enum Quantized<'a> {
    /// `scales` `[packed rows]` f32.
    Int8 { scales: DeviceSlice<'a> },
    /// As `Int8`, and x is int8 too (`quantize_rows.rs`): `x_stride` counts bytes, `x_scales` is `[rows]` f32.
    Int8Both { scales: DeviceSlice<'a>, x_scales: DeviceSlice<'a> },
    /// `scales` `[ceil(k / group), packed rows]` f16; `zeros` of the same shape, or 8 everywhere.
    Int4 { group: usize, scales: DeviceSlice<'a>, zeros: Option<DeviceSlice<'a>> },
}

impl Quantized<'_> {
    fn storage(&self) -> Storage {
        match self {
            Quantized::Int8 { .. } => Storage::Int8,
            Quantized::Int8Both { .. } => Storage::Int8Both,
            Quantized::Int4 { .. } => Storage::Int4,
        }
    }

    fn groups(&self) -> Option<Groups> {
        match self {
            Quantized::Int4 { group, zeros, .. } => Some(Groups { columns: *group, zeros: zeros.is_some() }),
            _ => None,
        }
    }
}

impl Linear<'_> {
    /// Errors: slices too small or not aligned, no such type, the driver's.
    pub fn prepare(&self, cuda: &Cuda) -> Result<Launch> {
        self.prepare_flags("linear", cuda, self.flags(), self.n, None, false)
    }

    /// As [`Linear::prepare`], by kernels that all sum in one order: a row's bits do not depend on how many rows there are.
    pub fn prepare_alike(&self, cuda: &Cuda) -> Result<Launch> {
        self.prepare_flags("linear", cuda, self.flags(), self.n, None, true)
    }

    /// As [`Linear::prepare`] where `weight` holds packed integers.
    pub fn prepare_quantized(&self, cuda: &Cuda, quantized: &Quantized) -> Result<Launch> {
        self.prepare_flags("linear", cuda, self.flags(), self.n, Some(quantized), false)
    }

    /// As [`Linear::prepare`], or [`Linear::prepare_alike`], with y `[n / head_dim][rows][head_dim]`: heads `head_stride`
    /// elements apart, and `y_stride`, a multiple of 4, is head_dim.
    pub fn prepare_head_major(&self, cuda: &Cuda, head_stride: usize, alike: bool) -> Result<Launch> {
        let (op, head_dim) = ("linear", self.y_stride);
        if head_dim == 0 || !self.n.is_multiple_of(head_dim) || self.output != self.dtype || self.residual.is_some() {
            return Err(Error::Internal(format!("{op}: {} columns as heads of {head_dim}", self.n)));
        }
        let elements = (self.n / head_dim - 1) * head_stride + self.rows * head_dim;
        ops::check_bytes(op, "y", self.y.bytes(), elements * self.dtype.size())?;
        check_vectors(op, "y: heads", &self.y, head_stride, 4, 16)?;
        let choice = self.choose(cuda, self.n, Storage::Dense, alike);
        let (choice, mut args) = self.arguments(op, choice, self.flags() | HEAD_MAJOR, self.n, head_dim, None)?;
        ops::int(op, elements)?;
        (args.head_dim, args.head_stride) = (ops::int(op, head_dim)?, ops::int(op, head_stride)?);
        self.launch(op, cuda, choice, &args, self.n, None)
    }

    pub(super) fn flags(&self) -> i32 {
        (if self.activation.is_some() { ACTIVATE } else { 0 })
            | (if self.output == DType::F32 { FLOAT_OUTPUT } else { 0 })
    }

    /// `columns` are those of w; `alike`: as [`Linear::prepare_alike`].
    pub(super) fn prepare_flags(
        &self,
        op: &str,
        cuda: &Cuda,
        flags: i32,
        columns: usize,
        quantized: Option<&Quantized>,
        alike: bool,
    ) -> Result<Launch> {
        let storage = quantized.map_or(Storage::Dense, Quantized::storage);
        let choice = self.choose(cuda, columns, storage, alike);
        let (choice, args) = self.arguments(op, choice, flags, columns, self.n, quantized)?;
        self.launch(op, cuda, choice, &args, columns, quantized)
    }

    fn launch(
        &self,
        op: &str,
        cuda: &Cuda,
        choice: Choice,
        args: &LinearArgs,
        columns: usize,
        quantized: Option<&Quantized>,
    ) -> Result<Launch> {
        let suffix = ops::half_suffix(op, self.dtype)?;
        let storage = quantized.map_or(Storage::Dense, Quantized::storage);
        let columns = columns.next_multiple_of(pack::PANEL_ROWS);
        let groups = quantized.and_then(Quantized::groups);
        let (file, entry) = choice.kernel.entry(storage, groups, suffix);
        let function = cuda.kernel(file, &entry)?;
        let config = LaunchConfig {
            grid: (ops::int(op, choice.kernel.blocks(self.rows, columns))? as u32, choice.splits as u32, 1),
            block: (choice.kernel.threads(), 1, 1),
            shared_bytes: choice.kernel.shared_bytes(storage, groups) as u32,
        };
        // SAFETY: the struct is the kernel's, and the slices hold all that it touches, as checked with its making.
        unsafe { Launch::new(function, config, args) }
    }

    pub(super) fn choose(&self, cuda: &Cuda, columns: usize, storage: Storage, alike: bool) -> Choice {
        let columns = columns.next_multiple_of(pack::PANEL_ROWS);
        let multiprocessors = cuda.device().multiprocessors() as usize;
        match alike {
            true => choose_alike(storage, self.rows, columns, multiprocessors),
            false => choose(storage, self.rows, columns, self.k, multiprocessors),
        }
    }

    /// The arguments of a kernel, and that kernel, without splits where there is no memory for them; y is as wide as
    /// `y_width`.
    pub(super) fn arguments(
        &self,
        op: &str,
        mut choice: Choice,
        flags: i32,
        columns: usize,
        y_width: usize,
        quantized: Option<&Quantized>,
    ) -> Result<(Choice, LinearArgs)> {
        self.check(op, columns, y_width, quantized)?;
        let columns = columns.next_multiple_of(pack::PANEL_ROWS);
        let (mut partial, mut arrived) = (0, 0);
        match &self.work {
            Some(work) if choice.splits > 1 => {
                let need = choice.work(self.rows, columns);
                ops::check_bytes(op, "work: partial", work.partial.bytes(), need.partial_bytes)?;
                ops::check_bytes(op, "work: arrived", work.arrived.bytes(), need.arrived_bytes)?;
                (partial, arrived) = (work.partial.address(), work.arrived.address());
            }
            _ => choice.splits = 1,
        }
        let address = |slice: &Option<DeviceSlice>| slice.as_ref().map_or(0, DeviceSlice::address);
        let (mut scales, mut offsets, mut x_scales, mut group) = (0, 0, 0, 0);
        // Of x in memory, as many columns as the kernel shall take for two bytes.
        let (mut k, mut x_stride, mut k_tiles) =
            (self.k, self.x_stride, self.k.next_multiple_of(pack::K_ALIGN) / pack::TILE);
        match quantized {
            None => {}
            Some(Quantized::Int8 { scales: s }) => scales = s.address(),
            Some(Quantized::Int8Both { scales: s, x_scales: x }) => {
                (scales, x_scales) = (s.address(), x.address());
                (k, x_stride, k_tiles) = (k.next_multiple_of(pack::K_ALIGN) / 2, x_stride / 2, k_tiles / 2);
            }
            Some(Quantized::Int4 { group: g, scales: s, zeros }) => {
                (scales, offsets, group) = (s.address(), address(zeros), *g);
            }
        }
        let args = LinearArgs {
            x: self.x.address(),
            w: self.weight.address(),
            scales,
            offsets,
            x_scales,
            bias: address(&self.bias),
            residual: self.residual.as_ref().map_or(0, |(r, _)| r.address()),
            y: self.y.address(),
            partial,
            arrived,
            num_rows: address(&self.num_rows),
            rows: ops::int(op, self.rows)?,
            n: ops::int(op, self.n)?,
            k: ops::int(op, k)?,
            n_tiles: ops::int(op, columns / pack::TILE)?,
            k_tiles: ops::int(op, k_tiles)?,
            x_stride: ops::int(op, x_stride)?,
            residual_stride: ops::int(op, self.residual.as_ref().map_or(0, |(_, stride)| *stride))?,
            y_stride: ops::int(op, self.y_stride)?,
            splits: ops::int(op, choice.splits)?,
            flags,
            activation: SigmoidForm::new(self.activation),
            group: ops::int(op, group)?,
            head_dim: 0,
            head_stride: 0,
        };
        Ok((choice, args))
    }

    fn check(&self, op: &str, columns: usize, y_width: usize, quantized: Option<&Quantized>) -> Result<()> {
        let (rows, n, k) = (self.rows, self.n, self.k);
        if rows == 0 || n == 0 || k == 0 || [DType::F32, self.dtype].iter().all(|t| *t != self.output) {
            return Err(Error::Internal(format!("{op}: [{rows}, {k}] x [{n}, {k}], to {}", self.output.name())));
        }
        let packed_rows = columns.next_multiple_of(pack::PANEL_ROWS);
        let weight_bytes = match quantized {
            None => packed_rows / pack::PANEL_ROWS * pack::panel_bytes(k),
            Some(Quantized::Int8 { scales } | Quantized::Int8Both { scales, .. }) => {
                ops::check_bytes(op, "scales", scales.bytes(), packed_rows * 4)?;
                check_vectors(op, "scales", scales, 0, 1, 16)?;
                pack_quantized::int8_bytes(columns, k)
            }
            Some(Quantized::Int4 { group, scales, zeros }) => {
                pack_quantized::check_group(*group)?;
                for (name, slice) in [("scales", Some(scales)), ("zeros", zeros.as_ref())] {
                    let Some(slice) = slice else { continue };
                    // The kernels read what belongs to the padding of k, up to a multiple of 64, too.
                    let groups = k.next_multiple_of(pack::K_ALIGN).div_ceil(*group);
                    ops::check_bytes(op, name, slice.bytes(), groups * packed_rows * 2)?;
                    check_vectors(op, name, slice, 0, 1, 16)?;
                }
                pack_quantized::int4_bytes(columns, k)
            }
        };
        ops::check_bytes(op, "weight", self.weight.bytes(), weight_bytes)?;
        if let Some(Quantized::Int8Both { x_scales, .. }) = quantized {
            let width = k.next_multiple_of(pack::K_ALIGN);
            ops::check_rows(op, "x", &self.x, rows, width, self.x_stride, DType::I8)?;
            ops::check_bytes(op, "x_scales", x_scales.bytes(), rows * 4)?;
            check_vectors(op, "x", &self.x, self.x_stride, 16, 16)?;
        } else {
            ops::check_rows(op, "x", &self.x, rows, k, self.x_stride, self.dtype)?;
            check_vectors(op, "x", &self.x, self.x_stride, 8, 16)?;
        }
        ops::check_rows(op, "y", &self.y, rows, y_width, self.y_stride, self.output)?;
        let vectors = if self.output == DType::F32 { 1 } else { 4 };
        check_vectors(op, "y", &self.y, self.y_stride, vectors, 16)?;
        check_vectors(op, "weight", &self.weight, 0, 1, 16)?;
        if let Some(bias) = &self.bias {
            ops::check_bytes(op, "bias", bias.bytes(), n * 4)?;
            check_vectors(op, "bias", bias, 0, 1, 16)?;
        }
        if let Some((residual, stride)) = &self.residual {
            ops::check_rows(op, "residual", residual, rows, n, *stride, self.dtype)?;
            check_vectors(op, "residual", residual, *stride, 4, 8)?;
        }
        if let Some(num_rows) = &self.num_rows {
            ops::check_bytes(op, "num_rows", num_rows.bytes(), 4)?;
        }
        Ok(())
    }
}

/// Memory for launches that split k. Launches of one stream may share it.
#[derive(Clone, Copy)]
pub struct Work<'a> {
    /// Sums of the parts, of any content.
    pub partial: DeviceSlice<'a>,
    /// u32 counters, zero before the first launch; every launch leaves them zero.
    pub arrived: DeviceSlice<'a>,
}

/// Refuses a slice that the kernel's vectors do not fit.
fn check_vectors(
    op: &str,
    name: &str,
    slice: &DeviceSlice,
    stride: usize,
    elements: usize,
    alignment: u64,
) -> Result<()> {
    if !slice.address().is_multiple_of(alignment) || !stride.is_multiple_of(elements) {
        return Err(Error::Internal(format!(
            "{op}: {name}: expected {alignment}-byte alignment and a stride of a multiple of {elements}, got address \
             {:#x}, stride {stride}",
            slice.address()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a [`SigmoidForm`] says, in float64.
    fn evaluate(form: &SigmoidForm, v: f64) -> f64 {
        let s = (v * v).min(f64::from(form.limit));
        let p = form.c.iter().rev().fold(0.0, |p, c| p * s + f64::from(*c));
        v / (1.0 + (v * p).exp2())
    }

    /// The error function, by its series; enough for |x| < 5.
    fn erf(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for i in 1..200 {
            term *= -x * x / f64::from(i);
            sum += term / f64::from(2 * i + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn every_activation_is_of_the_sigmoid_form() {
        let tanh = |v: f64| 0.5 * v * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3))).tanh());
        let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
        for i in -480..=480 {
            let v = f64::from(i) / 100.0;
            let cases = [
                (Activation::Silu, v * sigmoid(v), 1e-6),
                (Activation::QuickGelu, v * sigmoid(1.702 * v), 1e-6),
                (Activation::Relu, v.max(0.0), 0.0),
                (Activation::GeluTanh, tanh(v), 1e-6),
                (Activation::GeluErf, 0.5 * v * (1.0 + erf(v * std::f64::consts::FRAC_1_SQRT_2)), 7e-6),
            ];
            for (activation, want, bound) in cases {
                let got = evaluate(&SigmoidForm::new(Some(activation)), v);
                let bound = if v > 0.0 { f64::min(bound, 2.1e-5 * v) } else { bound };
                assert!((got - want).abs() <= bound, "{activation:?}({v}): {got} for {want}");
            }
        }
    }
}
