//! What a device must offer: hold weights, compile a plan, run it, read results.
//!
//! In: graphs and plans, bytes of weights, arrays of a step. Out: rows of results. Adding an operation adds no
//! method. Not here: families, scheduling.

pub mod cpu;
pub mod cuda;
pub mod sampling;

use self::sampling::{Choices, SamplingBatch, SamplingLimits};
use crate::graph::fuse::Fusion;
use crate::graph::{Graph, Layout, Node, Plan, Sizes};
use crate::tensor::{DType, HostTensor};
use crate::{Error, Result};

/// What a device is and has.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// `cpu`, `cuda:0`.
    pub name: String,
    /// In words, as the vendor says.
    pub description: String,
    /// Bytes of memory; on the CPU that of the machine.
    pub memory_bytes: u64,
    /// Bytes not in use: now on the CPU, when it was opened on a device.
    pub free_bytes: u64,
    /// Type that it computes activations in.
    pub activations: DType,
}

/// A weight on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WeightHandle(pub u32);

/// An array that the host gives to a run.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    Float(&'a [f32]),
    Int(&'a [i32]),
    Byte(&'a [u8]),
}

/// Sees every value of a run, in order: the node and its rows as f32. On the CPU later nodes read what it leaves there.
pub type Probe<'a> = dyn FnMut(&Node, &[usize], &mut [f32]) -> Result<()> + 'a;

/// Sizes that runs may have, for which a device may prepare its launches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// The largest sizes.
    pub sizes: Sizes,
    /// Every sequence has one token: such steps come again and again and are short, so they are worth recording.
    pub decode: bool,
}

/// Memory that a compiled plan takes, in bytes, states aside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    pub weights: u64,
    /// Values of a run, arrays of a step, work memory of operations.
    pub workspace: u64,
}

/// A device.
pub trait Backend: Send {
    fn info(&self) -> DeviceInfo;

    /// `Err` says why the node cannot run here; it becomes an error that names the node, never a silent fallback.
    fn supports(&self, graph: &Graph, node: &Node) -> std::result::Result<(), String>;

    /// Takes a weight. Matrices stay in their stored form; a mapped one is not copied on the CPU. Small vectors become f32.
    fn upload(&mut self, name: &str, tensor: &HostTensor, matrix: bool) -> Result<WeightHandle>;

    /// How plans for this device lay out values.
    fn layout(&self) -> Layout;

    /// How far operations are fused for this device.
    fn fusion(&self) -> Fusion;

    /// What compiling `plan` for `buckets` will allocate on the device. `None` where weights stay in their files and
    /// memory is the machine's.
    fn needs(&self, plan: &Plan, buckets: &[Bucket]) -> Option<Needs>;

    /// Compiles a plan. `weights` are those of the graph's table, in order; `buckets` ascend and end with one of the
    /// plan's sizes, and runs fit into one of them. State buffers are made here, filled with zeros, and shared by name
    /// with earlier programs.
    fn compile(&mut self, plan: Plan, buckets: &[Bucket], weights: &[WeightHandle]) -> Result<Box<dyn Program>>;
}

/// A plan on a device.
pub trait Program: Send {
    /// Runs under `sizes`, none above the bucket's. `inputs` are the graph's, in order, with the lengths that `sizes` give.
    fn run(&mut self, sizes: &Sizes, inputs: &[Input], probe: Option<&mut Probe>) -> Result<()>;

    /// Copies output `index` of the last run to `into`, row-major f32.
    fn read(&mut self, index: usize, into: &mut Vec<f32>) -> Result<()>;

    /// What rows may ask of [`Program::sample`]. `None` where this program does not choose tokens: `run` it, `read` its
    /// logits and choose on the host.
    fn sampling(&self) -> Option<SamplingLimits> {
        None
    }

    /// Runs as `run` does without a probe, then chooses a token from every row of output 0, which is all that is copied
    /// back. Afterwards `read` has the logits of the rows that `rows` leaves to the host; those of others are changed by
    /// their settings. The tokens are those of the host's sampler, and a row's choice depends on that row alone.
    fn sample(&mut self, _: &Sizes, _: &[Input], _rows: &SamplingBatch, _into: &mut Choices) -> Result<()> {
        Err(Error::Internal("asked to choose tokens, which this program does not do".to_string()))
    }

    /// Kernels that a step under `sizes` launches, with those that choose tokens; `None` on a device without launches.
    fn launches(&self, _sizes: &Sizes) -> Result<Option<usize>> {
        Ok(None)
    }
}
