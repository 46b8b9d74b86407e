//! One list of op cases for tests (`cargo test --test cuda_ops`) and benchmarks (`engine bench kernels`).
//!
//! In: an op's rows: shapes, inputs, the CPU operation as oracle. Out: launches, and whether their results agree.
//! Owns: device memory of a case; its layout is the backend's: rows `round_up(cols, 8)` elements apart, padding never
//! written, so that the software GPU reports whoever reads it (on a real GPU it is NaN). Rows of an output beyond the
//! batch hold a pattern that must still be there afterwards.
//! Not here: what is computed (one file an op), how far it may be off (`compare.rs`).
//!
//! To add an op: one file with `pub const OP: Op` and a test that calls [`check`], its `mod` line and its row in
//! `list.rs`.

use std::cell::RefCell;
use std::rc::Rc;

use engine::Result;
use engine::backend::cuda::{Cuda, DeviceBuffer, DeviceSlice, Launch, Stream};
use engine::tensor::DType;
use half::{bf16, f16};

use super::compare::{Limits, compare};
use super::device;

/// The activation types.
pub const FLOATS: [DType; 2] = [DType::Bf16, DType::F16];

/// An op and its rows.
#[derive(Clone, Copy)]
pub struct Op {
    pub name: &'static str,
    /// Sizes that hurt: one, odd, just over a tile, a page boundary, an empty segment.
    pub cases: fn() -> Vec<Case>,
    /// Sizes of real models, named by model and use, for benchmarks; never checked against the CPU.
    pub shapes: fn() -> Vec<Case>,
}

/// One row: its name and how to put it on a device.
pub struct Case {
    pub name: String,
    pub build: Build,
    /// Set where a row may be large: about what its instance will say, known before anything is allocated.
    pub work: Option<Work>,
}

type Build = Box<dyn Fn(&Gpu) -> Result<Instance>>;

impl Case {
    pub fn new(name: impl Into<String>, build: impl Fn(&Gpu) -> Result<Instance> + 'static) -> Case {
        Case { name: name.into(), build: Box::new(build), work: None }
    }

    /// A row whose work is known before it is built, so that whoever finds it too large need not build it.
    pub fn sized(self, work: Work) -> Case {
        Case { work: Some(work), ..self }
    }
}

/// A case on a device.
pub struct Instance {
    pub launches: Vec<Launch>,
    pub work: Work,
    expected: Vec<(Output, Limits, Oracle)>,
    verdicts: Vec<Verdict>,
}

/// A comparison of a kind of its own, after the launches.
type Verdict = Box<dyn FnOnce(&Gpu) -> std::result::Result<(), String>>;

/// The least that must be done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes read and written at least once.
    pub bytes: u64,
    /// Floating-point operations, a multiply-add counted as two.
    pub flops: u64,
}

/// Computes the wanted result, `[rows of the batch, cols]`. Run after the launches, and only by tests.
type Oracle = Box<dyn FnOnce() -> Result<Vec<f32>>>;

impl Instance {
    pub fn new(launches: Vec<Launch>, work: Work) -> Instance {
        Instance { launches, work, expected: Vec::new(), verdicts: Vec::new() }
    }

    /// Adds a wanted result: of the batch's rows of `output`.
    pub fn expect(
        mut self,
        output: &Output,
        limits: Limits,
        oracle: impl FnOnce() -> Result<Vec<f32>> + 'static,
    ) -> Instance {
        self.expected.push((output.clone(), limits, Box::new(oracle)));
        self
    }

    /// Adds a comparison that rows of numbers cannot express.
    pub fn expect_that(mut self, verdict: impl FnOnce(&Gpu) -> std::result::Result<(), String> + 'static) -> Instance {
        self.verdicts.push(Box::new(verdict));
        self
    }

    /// Runs the launches once and compares every result.
    pub fn check(self, gpu: &Gpu) -> std::result::Result<(), String> {
        let text = |e: engine::Error| e.to_string();
        if self.launches.is_empty() || self.work.bytes == 0 {
            return Err("a case without launches, or that does not say what it moves".to_string());
        }
        for launch in &self.launches {
            launch.enqueue(&gpu.stream).map_err(text)?;
        }
        gpu.stream.synchronize().map_err(text)?;
        for (n, (output, limits, oracle)) in self.expected.into_iter().enumerate() {
            output.untouched_beyond_the_batch(gpu)?;
            let got = output.read(gpu).map_err(text)?;
            let want = oracle().map_err(text)?;
            compare(&got, &want, output.matrix.cols, limits).map_err(|e| format!("result {n}: {e}"))?;
        }
        self.verdicts.into_iter().try_for_each(|verdict| verdict(gpu))
    }
}

/// Runs every case of an op; without a device, checks that its absence is explained.
pub fn check(op: &Op) {
    let Some(gpu) = Gpu::open() else { return };
    let mut failures = Vec::new();
    let cases = (op.cases)();
    assert!(!cases.is_empty(), "{}: no cases", op.name);
    for case in &cases {
        let outcome = (case.build)(&gpu).map_err(|e| e.to_string()).and_then(|instance| instance.check(&gpu));
        if let Err(e) = outcome {
            failures.push(format!("{} {}: {e}", op.name, case.name));
        }
        gpu.free();
    }
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

/// A device with the memory of the case at hand.
pub struct Gpu {
    pub cuda: Cuda,
    pub stream: Stream,
    /// Whether this is the software GPU.
    pub soft: bool,
    buffers: RefCell<Vec<Rc<DeviceBuffer>>>,
}

impl Gpu {
    /// None without a device, after a check that its absence is explained.
    pub fn open() -> Option<Gpu> {
        device::open().map(|cuda| Gpu::new(cuda).expect("a stream"))
    }

    pub fn new(cuda: Cuda) -> Result<Gpu> {
        let stream = Stream::new(cuda.device())?;
        let soft = cuda.device().name().contains("softgpu");
        Ok(Gpu { cuda, stream, soft, buffers: RefCell::default() })
    }

    /// Gives back the memory of all cases so far.
    pub fn free(&self) {
        self.buffers.borrow_mut().clear();
    }

    /// Device memory that nothing has written; kept until [`Gpu::free`], because launches hold addresses.
    pub fn memory(&self, bytes: usize) -> Result<Rc<DeviceBuffer>> {
        let buffer = Rc::new(self.cuda.device().alloc("a test's tensor", bytes)?);
        if !self.soft {
            buffer.all().fill(&self.stream, 0xFF)?;
        }
        self.buffers.borrow_mut().push(buffer.clone());
        Ok(buffer)
    }

    /// Bytes as they are.
    pub fn bytes(&self, bytes: &[u8]) -> Result<Rc<DeviceBuffer>> {
        let buffer = self.memory(bytes.len())?;
        if !bytes.is_empty() {
            buffer.slice(0, bytes.len())?.copy_from_host(&self.stream, bytes)?;
        }
        Ok(buffer)
    }

    /// An array of i32.
    pub fn ints(&self, values: &[i32]) -> Result<Rc<DeviceBuffer>> {
        self.ints_in(values, values.len())
    }

    /// An array of i32 in a bucket's room for `room` of them; the rest is not written.
    pub fn ints_in(&self, values: &[i32], room: usize) -> Result<Rc<DeviceBuffer>> {
        let buffer = self.memory(room * 4)?;
        if !values.is_empty() {
            buffer.slice(0, values.len() * 4)?.copy_from_host(&self.stream, bytemuck::cast_slice(values))?;
        }
        Ok(buffer)
    }

    /// A vector of f32: a norm's weight, a bias.
    pub fn vector(&self, values: &[f32]) -> Result<Rc<DeviceBuffer>> {
        self.bytes(bytemuck::cast_slice(values))
    }

    /// The number of live rows (tokens, sequences, ...).
    pub fn count(&self, n: usize) -> Result<Rc<DeviceBuffer>> {
        self.ints(&[n as i32])
    }

    /// `[rows, cols]` of activations in the backend's layout.
    pub fn matrix(&self, dtype: DType, values: &[f32], cols: usize) -> Result<Matrix> {
        let rows = values.len() / cols.max(1);
        let matrix = self.unwritten(dtype, rows, cols, cols.next_multiple_of(8))?;
        matrix.write(self, 0, &encode(dtype, values))?;
        Ok(matrix)
    }

    /// A result of which nothing is written yet: `rows` of the bucket, of which the batch has `live`.
    pub fn output(&self, dtype: DType, rows: usize, live: usize, cols: usize) -> Result<Output> {
        self.output_with_stride(dtype, rows, live, cols, cols.next_multiple_of(8))
    }

    /// As [`Gpu::output`] with rows `ld` elements apart (f32 logits: `ld = cols`).
    pub fn output_with_stride(&self, dtype: DType, rows: usize, live: usize, cols: usize, ld: usize) -> Result<Output> {
        let matrix = self.unwritten(dtype, rows, cols, ld)?;
        matrix.write(self, live, &vec![PATTERN; (rows - live) * cols * dtype.size()])?;
        Ok(Output { matrix, live })
    }

    /// A value that an op changes in place: the batch's rows are `values`, `rows - live` more are a pattern.
    pub fn in_place(&self, dtype: DType, values: &[f32], rows: usize, cols: usize) -> Result<Output> {
        let live = values.len() / cols.max(1);
        let output = self.output(dtype, rows, live, cols)?;
        output.matrix.write(self, 0, &encode(dtype, values))?;
        Ok(output)
    }

    fn unwritten(&self, dtype: DType, rows: usize, cols: usize, ld: usize) -> Result<Matrix> {
        let buffer = self.memory(rows * ld * dtype.size())?;
        Ok(Matrix { dtype, rows, cols, ld, buffer })
    }
}

/// What rows beyond the batch hold.
const PATTERN: u8 = 0xA5;

/// Activations on the device.
#[derive(Clone)]
pub struct Matrix {
    pub dtype: DType,
    pub rows: usize,
    pub cols: usize,
    /// Elements between the starts of rows.
    pub ld: usize,
    pub buffer: Rc<DeviceBuffer>,
}

impl Matrix {
    pub fn slice(&self) -> DeviceSlice<'_> {
        self.buffer.all()
    }

    /// Writes rows from `row` on, leaving the padding.
    fn write(&self, gpu: &Gpu, row: usize, bytes: &[u8]) -> Result<()> {
        for (offset, length, at) in self.runs(row, bytes.len()) {
            self.buffer.slice(offset, length)?.copy_from_host(&gpu.stream, &bytes[at..at + length])?;
        }
        Ok(())
    }

    fn read(&self, gpu: &Gpu, row: usize, bytes: &mut [u8]) -> Result<()> {
        for (offset, length, at) in self.runs(row, bytes.len()) {
            self.buffer.slice(offset, length)?.copy_to_host(&gpu.stream, &mut bytes[at..at + length])?;
        }
        Ok(())
    }

    /// Runs of `bytes` bytes of rows from `row` on: (offset on the device, length, offset on the host). One run where
    /// there is no padding.
    fn runs(&self, row: usize, bytes: usize) -> Vec<(usize, usize, usize)> {
        let size = self.dtype.size();
        let (width, stride) = (self.cols * size, self.ld * size);
        if bytes == 0 {
            return Vec::new();
        }
        if width == stride {
            return vec![(row * stride, bytes, 0)];
        }
        (0..bytes / width).map(|r| ((row + r) * stride, width, r * width)).collect()
    }
}

/// A result on the device.
#[derive(Clone)]
pub struct Output {
    pub matrix: Matrix,
    live: usize,
}

impl Output {
    pub fn slice(&self) -> DeviceSlice<'_> {
        self.matrix.slice()
    }

    pub fn ld(&self) -> usize {
        self.matrix.ld
    }

    /// The batch's rows, `[live, cols]`.
    pub fn read(&self, gpu: &Gpu) -> Result<Vec<f32>> {
        let mut bytes = vec![0; self.live * self.matrix.cols * self.matrix.dtype.size()];
        self.matrix.read(gpu, 0, &mut bytes)?;
        Ok(decode(self.matrix.dtype, &bytes))
    }

    fn untouched_beyond_the_batch(&self, gpu: &Gpu) -> std::result::Result<(), String> {
        let m = &self.matrix;
        let mut bytes = vec![0; (m.rows - self.live) * m.cols * m.dtype.size()];
        m.read(gpu, self.live, &mut bytes).map_err(|e| e.to_string())?;
        match bytes.iter().position(|b| *b != PATTERN) {
            Some(at) => Err(format!("row {} beyond the batch was written", self.live + at / (m.cols * m.dtype.size()))),
            None => Ok(()),
        }
    }
}

/// Bytes of values in a type, rounded to nearest even. Integers are for results of integer ops.
pub fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => bytemuck::cast_slice(values).to_vec(),
        DType::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        DType::I32 => values.iter().flat_map(|v| (*v as i32).to_le_bytes()).collect(),
        other => panic!("values of type {}", other.name()),
    }
}

/// The inverse of [`encode`].
pub fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        DType::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        DType::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        DType::Bf16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        DType::I32 => bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b) as f32).collect(),
        other => panic!("values of type {}", other.name()),
    }
}

/// Values as a type holds them.
pub fn rounded(dtype: DType, values: &[f32]) -> Vec<f32> {
    decode(dtype, &encode(dtype, values))
}

/// The sum as a kernel leaves it: computed in f32, held in `dtype`.
pub fn add_rounded(dtype: DType, a: &[f32], b: &[f32]) -> Vec<f32> {
    let sum: Vec<f32> = a.iter().zip(b).map(|(a, b)| a + b).collect();
    rounded(dtype, &sum)
}

/// A small generator: cases need spread and repeatability, nothing more.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next_u32(&mut self) -> u32 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as u32
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.next_u32() as usize % n
    }

    /// `n` numbers, roughly normal, of standard deviation `spread`, as `dtype` holds them.
    pub fn normals(&mut self, dtype: DType, n: usize, spread: f32) -> Vec<f32> {
        let values: Vec<f32> = (0..n)
            .map(|_| {
                let halves = [self.next_u32(), self.next_u32()].map(|w| [w & 0xFFFF, w >> 16]);
                let sum: f32 = halves.iter().flatten().map(|&h| h as f32 / 65536.0 - 0.5).sum();
                sum * 3f32.sqrt() * spread
            })
            .collect();
        rounded(dtype, &values)
    }
}
