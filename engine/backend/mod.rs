//! What a device must offer: hold weights, compile a plan, run it, read results.
//!
//! In: graphs and plans, bytes of weights, arrays of a step. Out: rows of results. Adding an operation adds no
//! method. Not here: families, scheduling.

pub mod cpu;
pub mod cuda;

use crate::Result;
use crate::graph::{Graph, Node, Plan, Sizes};
use crate::tensor::HostTensor;

/// What a device is and has.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// `cpu`, `cuda:0`.
    pub name: String,
    /// In words, as the vendor says.
    pub description: String,
    /// Bytes of memory; on the CPU that of the machine.
    pub memory_bytes: u64,
    /// Bytes not in use now.
    pub free_bytes: u64,
}

/// A weight on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WeightHandle(pub u32);

/// An array that the host gives to a run.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    Float(&'a [f32]),
    Int(&'a [i32]),
}

/// Sees every value of a run, in order: the node and its rows as f32.
pub type Probe<'a> = dyn FnMut(&Node, &[usize], &[f32]) -> Result<()> + 'a;

/// A device.
pub trait Backend: Send {
    fn info(&self) -> DeviceInfo;

    /// `Err` says why the node cannot run here; it becomes an error that names the node, never a silent fallback.
    fn supports(&self, graph: &Graph, node: &Node) -> std::result::Result<(), String>;

    /// Takes a weight. Matrices stay in their stored form; a mapped one is not copied on the CPU. Small vectors become f32.
    fn upload(&mut self, name: &str, tensor: &HostTensor, matrix: bool) -> Result<WeightHandle>;

    /// Compiles a plan. `weights` are those of the graph's table, in order. State buffers are made here, filled with
    /// zeros, and shared by name with earlier programs.
    fn compile(&mut self, plan: Plan, weights: &[WeightHandle]) -> Result<Box<dyn Program>>;
}

/// A plan on a device.
pub trait Program: Send {
    /// Runs under `sizes`, none above the bucket's. `inputs` are the graph's, in order, with the lengths that `sizes` give.
    fn run(&mut self, sizes: &Sizes, inputs: &[Input], probe: Option<&mut Probe>) -> Result<()>;

    /// Copies output `index` of the last run to `into`, row-major f32.
    fn read(&mut self, index: usize, into: &mut Vec<f32>) -> Result<()>;
}
