//! Linear layers (kernels/gemm*.cu, gemv*.cu).
//!
//! In: activations, a packed weight (`pack.rs`, `pack_quantized.rs`), sizes. Out: the launch. Owns: which kernel runs for how many rows,
//! and the work memory of launches that split k. Not here: the formula, gated layers (`gated_linear.rs`).

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
const GATED: i32 = 2;
const FLOAT_OUTPUT: i32 = 4;

/// Mirrors `LinearArgs` in kernels/epilogue.cuh.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct LinearArgs {
    x: u64,
    w: u64,
    scales: u64,
    offsets: u64,
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
}
const _: () = assert!(size_of::<LinearArgs>() == 152);

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
    /// `scales` `[ceil(k / group), packed rows]` f16; `zeros` of the same shape, or 8 everywhere.
    Int4 { group: usize, scales: DeviceSlice<'a>, zeros: Option<DeviceSlice<'a>> },
}

/// A storage of weights, as far as the choice of a kernel goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// f16 or bf16.
    Dense,
    Int8,
    Int4,
}

impl Quantized<'_> {
    fn storage(&self) -> Storage {
        match self {
            Quantized::Int8 { .. } => Storage::Int8,
            Quantized::Int4 { .. } => Storage::Int4,
        }
    }
}

impl Linear<'_> {
    /// Errors: slices too small or not aligned, no such type, the driver's.
    pub fn prepare(&self, cuda: &Cuda) -> Result<Launch> {
        self.prepare_flags("linear", cuda, self.flags(), self.n, None)
    }

    /// As [`Linear::prepare`] where `weight` holds packed integers.
    pub fn prepare_quantized(&self, cuda: &Cuda, quantized: &Quantized) -> Result<Launch> {
        self.prepare_flags("linear", cuda, self.flags(), self.n, Some(quantized))
    }

    fn flags(&self) -> i32 {
        (if self.activation.is_some() { ACTIVATE } else { 0 })
            | (if self.output == DType::F32 { FLOAT_OUTPUT } else { 0 })
    }

    /// `columns` are those of w.
    fn prepare_flags(
        &self,
        op: &str,
        cuda: &Cuda,
        flags: i32,
        columns: usize,
        quantized: Option<&Quantized>,
    ) -> Result<Launch> {
        let suffix = match self.dtype {
            DType::F16 | DType::Bf16 => ops::suffix(op, self.dtype)?,
            other => {
                return Err(Error::Unsupported(format!(
                    "{op}: activations of type {} on cuda; use --dtype bf16 or f16",
                    other.name()
                )));
            }
        };
        self.check(op, columns, quantized)?;
        let columns = columns.next_multiple_of(pack::PANEL_ROWS);
        let multiprocessors = cuda.device().multiprocessors() as usize;
        let storage = quantized.map_or(Storage::Dense, Quantized::storage);
        let mut choice = choose(storage, self.rows, columns, self.k, multiprocessors);
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
        let (scales, offsets, group) = match quantized {
            None => (0, 0, 0),
            Some(Quantized::Int8 { scales }) => (scales.address(), 0, 0),
            Some(Quantized::Int4 { group, scales, zeros }) => (scales.address(), address(zeros), *group),
        };
        let args = LinearArgs {
            x: self.x.address(),
            w: self.weight.address(),
            scales,
            offsets,
            bias: address(&self.bias),
            residual: self.residual.as_ref().map_or(0, |(r, _)| r.address()),
            y: self.y.address(),
            partial,
            arrived,
            num_rows: address(&self.num_rows),
            rows: size(op, self.rows)?,
            n: size(op, self.n)?,
            k: size(op, self.k)?,
            n_tiles: size(op, columns / pack::TILE)?,
            k_tiles: size(op, self.k.next_multiple_of(pack::K_ALIGN) / pack::TILE)?,
            x_stride: size(op, self.x_stride)?,
            residual_stride: size(op, self.residual.as_ref().map_or(0, |(_, stride)| *stride))?,
            y_stride: size(op, self.y_stride)?,
            splits: size(op, choice.splits)?,
            flags,
            activation: SigmoidForm::new(self.activation),
            group: size(op, group)?,
        };
        let (file, entry) = choice.kernel.entry(storage, suffix);
        let function = cuda.kernel(file, &entry)?;
        let config = LaunchConfig {
            grid: (size(op, choice.kernel.blocks(self.rows, columns))? as u32, choice.splits as u32, 1),
            block: (choice.kernel.threads(), 1, 1),
            shared_bytes: choice.kernel.shared_bytes(storage, self.rows) as u32,
        };
        // SAFETY: the struct is the kernel's, and the slices hold all that it touches, as checked above.
        unsafe { Launch::new(function, config, &args) }
    }

    fn check(&self, op: &str, columns: usize, quantized: Option<&Quantized>) -> Result<()> {
        let (rows, n, k) = (self.rows, self.n, self.k);
        if rows == 0 || n == 0 || k == 0 || [DType::F32, self.dtype].iter().all(|t| *t != self.output) {
            return Err(Error::Internal(format!("{op}: [{rows}, {k}] x [{n}, {k}], to {}", self.output.name())));
        }
        let packed_rows = columns.next_multiple_of(pack::PANEL_ROWS);
        let weight_bytes = match quantized {
            None => packed_rows / pack::PANEL_ROWS * pack::panel_bytes(k),
            Some(Quantized::Int8 { scales }) => {
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
        ops::check_rows(op, "x", &self.x, rows, k, self.x_stride, self.dtype)?;
        ops::check_rows(op, "y", &self.y, rows, n, self.y_stride, self.output)?;
        let vectors = if self.output == DType::F32 { 1 } else { 4 };
        check_vectors(op, "x", &self.x, self.x_stride, 8, 16)?;
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
        self.linear().prepare_flags("gated_linear", cuda, GATED, 2 * self.n, None)
    }

    /// As [`GatedLinear::prepare`] where `weight` holds packed integers, rows of gate and up in turn.
    pub fn prepare_quantized(&self, cuda: &Cuda, quantized: &Quantized) -> Result<Launch> {
        self.linear().prepare_flags("gated_linear", cuda, GATED, 2 * self.n, Some(quantized))
    }

    fn linear(&self) -> Linear<'_> {
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

/// Memory for launches that split k. Launches of one stream may share it.
#[derive(Clone, Copy)]
pub struct Work<'a> {
    /// Sums of the parts, of any content.
    pub partial: DeviceSlice<'a>,
    /// u32 counters, zero before the first launch; every launch leaves them zero.
    pub arrived: DeviceSlice<'a>,
}

/// What [`Work`] must hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkBytes {
    pub partial_bytes: usize,
    pub arrived_bytes: usize,
}

/// Work memory of a layer of `columns` (of a gated one: gate's and up's) in a launch of `rows`; none where k is not split.
pub fn work_bytes(rows: usize, columns: usize, k: usize, multiprocessors: usize) -> WorkBytes {
    work_bytes_of(Storage::Dense, rows, columns, k, multiprocessors)
}

/// As [`work_bytes`], of weights in any storage.
pub fn work_bytes_of(storage: Storage, rows: usize, columns: usize, k: usize, multiprocessors: usize) -> WorkBytes {
    let columns = columns.next_multiple_of(pack::PANEL_ROWS);
    choose(storage, rows, columns, k, multiprocessors).work(rows, columns)
}

/// A kernel, by what one block computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    /// gemm.cuh: a part `[rows, columns]` of y, with stages of `k` columns of x and w in shared memory.
    Tile { rows: usize, columns: usize, k: usize },
    /// gemv.cuh: all rows, and `16 tiles` columns of y; a warp's unit is `16 unit` columns of x.
    Stream { tiles: usize, unit: usize },
}

const NARROW: Kernel = Kernel::Stream { tiles: 1, unit: 8 };
const WIDE: Kernel = Kernel::Stream { tiles: 2, unit: 4 };
const INT8: Kernel = Kernel::Stream { tiles: 2, unit: 8 };
const INT4: Kernel = Kernel::Stream { tiles: 4, unit: 8 };
const SMALL: Kernel = Kernel::Tile { rows: 32, columns: 128, k: 64 };
const MIDDLE: Kernel = Kernel::Tile { rows: 64, columns: 128, k: 64 };
const LARGE: Kernel = Kernel::Tile { rows: 128, columns: 128, k: 32 };
const STAGES: usize = 4;
const STREAM_WARPS: usize = 8;

impl Kernel {
    /// File and entry.
    fn entry(self, storage: Storage, suffix: &str) -> (&'static str, String) {
        let (file, size) = match (self, storage) {
            (Kernel::Tile { rows, columns, .. }, Storage::Dense) => ("gemm", format!("{rows}x{columns}")),
            (Kernel::Tile { rows, columns, .. }, Storage::Int8) => ("gemm_int8", format!("{rows}x{columns}")),
            (Kernel::Tile { rows, columns, .. }, Storage::Int4) => ("gemm_int4", format!("{rows}x{columns}")),
            (Kernel::Stream { tiles, .. }, Storage::Dense) => ("gemv", format!("r{tiles}")),
            (Kernel::Stream { tiles, .. }, Storage::Int8) => ("gemv_int8", format!("r{tiles}")),
            (Kernel::Stream { tiles, .. }, Storage::Int4) => ("gemv_int4", format!("r{tiles}")),
        };
        (file, format!("{file}_{suffix}_{size}"))
    }

    /// Without splits of k.
    fn blocks(self, rows: usize, columns: usize) -> usize {
        match self {
            Kernel::Tile { rows: r, columns: c, .. } => rows.div_ceil(r) * columns.div_ceil(c),
            Kernel::Stream { tiles, .. } => columns.div_ceil(tiles * pack::TILE),
        }
    }

    fn threads(self) -> u32 {
        match self {
            Kernel::Tile { .. } => 128,
            Kernel::Stream { .. } => 32 * STREAM_WARPS as u32,
        }
    }

    fn shared_bytes(self, storage: Storage, rows: usize) -> usize {
        match self {
            Kernel::Tile { rows, columns, k } => {
                let weights = match storage {
                    Storage::Dense => columns * k * 2,
                    Storage::Int8 => columns * k,
                    // With scales and zeros of two groups.
                    Storage::Int4 => columns * k / 2 + columns * 8,
                };
                // The sums lie where the stages were.
                (STAGES * (rows * k * 2 + weights)).max(rows * columns * 4)
            }
            Kernel::Stream { tiles, unit } => {
                // Two units of x a warp, and of int4's scales and zeros; then the warps' sums.
                let scales = if storage == Storage::Int4 { 2 * 4 * tiles * pack::TILE * 2 } else { 0 };
                STREAM_WARPS * (2 * (rows * unit * 32 + scales)).max(rows * tiles * 64)
            }
        }
    }

    /// Elements of y that one block sums.
    fn sums(self, rows: usize) -> usize {
        match self {
            Kernel::Tile { rows, columns, .. } => rows * columns,
            Kernel::Stream { tiles, .. } => rows * tiles * pack::TILE,
        }
    }
}

/// How a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Choice {
    kernel: Kernel,
    /// Parts of k, each a block's.
    splits: usize,
}

impl Choice {
    fn work(self, rows: usize, columns: usize) -> WorkBytes {
        if self.splits == 1 {
            return WorkBytes::default();
        }
        let blocks = self.kernel.blocks(rows, columns);
        WorkBytes { partial_bytes: self.splits * blocks * self.kernel.sums(rows) * 4, arrived_bytes: blocks * 4 }
    }
}

/// The kernel for `rows` of `[columns, k]`, columns a multiple of 64. The only place that knows which is best for what.
fn choose(storage: Storage, rows: usize, columns: usize, k: usize, multiprocessors: usize) -> Choice {
    // Rows that the kernels with streams of weights take.
    let stream_rows = if storage == Storage::Int4 { 8 } else { 16 };
    if rows <= stream_rows {
        let kernel = match storage {
            Storage::Int8 => INT8,
            Storage::Int4 => INT4,
            // Every block reads all of x: wide ones where there are enough to fill the GPU in several rounds.
            Storage::Dense if WIDE.blocks(rows, columns) >= 4 * multiprocessors => WIDE,
            Storage::Dense => NARROW,
        };
        // Fewer blocks than multiprocessors: two each, while every warp still has a unit.
        let blocks = kernel.blocks(rows, columns);
        let most = if blocks < multiprocessors { 2 * multiprocessors / blocks.max(1) } else { 1 };
        return Choice { kernel, splits: most.min(k / 1024).max(1) };
    }
    let kernel = match rows {
        0..=32 => SMALL,
        33..=64 => MIDDLE,
        // Sums of groups and totals of them leave no registers for larger tiles.
        _ if storage == Storage::Int4 => MIDDLE,
        // Half tiles where whole ones would leave multiprocessors idle.
        _ if LARGE.blocks(rows, columns) < multiprocessors => MIDDLE,
        _ => LARGE,
    };
    // Up to one block a multiprocessor (two of the small tile, which takes half the shared memory), each with enough
    // k to be worth the sum over parts: that costs 8 bytes an element of y and part, against 2 of w an element and k.
    let slots = if kernel == SMALL { 2 * multiprocessors } else { multiprocessors };
    let splits = (slots / kernel.blocks(rows, columns).max(1)).min(k / 512).max(1);
    Choice { kernel, splits }
}

fn size(op: &str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::Unsupported(format!("{op}: a size of {n} on cuda, at most {}", i32::MAX)))
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

    #[test]
    fn k_is_split_only_where_multiprocessors_would_be_idle() {
        // Llama's o_proj, gate_up and kv projections on 132 multiprocessors.
        assert_eq!(choose(Storage::Dense, 1, 4096, 4096, 132), Choice { kernel: NARROW, splits: 1 });
        assert_eq!(choose(Storage::Dense, 16, 28672, 4096, 132), Choice { kernel: WIDE, splits: 1 });
        let choice = choose(Storage::Dense, 1, 1024, 4096, 132);
        assert_eq!(choice, Choice { kernel: NARROW, splits: 4 });
        assert_eq!(choice.work(1, 1024), WorkBytes { partial_bytes: 4 * 1024 * 4, arrived_bytes: 64 * 4 });
        let choice = choose(Storage::Dense, 17, 4096, 4096, 132);
        assert_eq!(choice, Choice { kernel: SMALL, splits: 8 });
        assert_eq!(choice.work(17, 4096), WorkBytes { partial_bytes: 8 * 32 * 32 * 128 * 4, arrived_bytes: 32 * 4 });
        assert_eq!(choose(Storage::Dense, 1024, 4096, 4096, 132), Choice { kernel: LARGE, splits: 1 });
        assert_eq!(choose(Storage::Dense, 32, 28672, 4096, 132).splits, 1);
        // Few columns, little k: nothing to split; and one multiprocessor never does.
        assert_eq!(choose(Storage::Dense, 1, 64, 100, 132).splits, 1);
        assert_eq!(choose(Storage::Dense, 4096, 14336, 4096, 1).splits, 1);
        // 729 patches of SigLIP: 54 whole tiles would leave 78 of 132 idle.
        assert_eq!(choose(Storage::Dense, 729, 1152, 1152, 132).kernel, MIDDLE);
        assert_eq!(choose(Storage::Int4, 9, 4096, 4096, 132).kernel, SMALL);
        assert_eq!(choose(Storage::Int4, 4096, 4096, 4096, 132).kernel, MIDDLE);
        let choice = choose(Storage::Int8, 1, 4096, 4096, 132);
        assert_eq!(choice, Choice { kernel: INT8, splits: 2 });
        let choice = choose(Storage::Dense, 16, 1024, 4096, 132);
        assert_eq!(work_bytes(16, 1000, 4096, 132), choice.work(16, 1024));
    }
}
