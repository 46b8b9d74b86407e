//! The CUDA backend as the engine sees it: takes weights, compiles plans.
//!
//! In: plans and weights. Out: programs. Owns: the stream in which all runs are, the states that programs share, weights
//! on the host until a program needs them. Not here: running (`program.rs`), which kernel an operation takes (`lower.rs`).

use std::collections::HashMap;
use std::sync::Arc;

use super::program::CudaProgram;
use super::scratch::ScratchBytes;
use super::staging::StagingLayout;
use super::{Cuda, DeviceBuffer, ROW_ALIGN, Stream, chooser, lower, upload};
use crate::backend::{Backend, Bucket, DeviceInfo, Needs, Program, WeightHandle};
use crate::graph::fuse::Fusion;
use crate::graph::{Graph, Layout, Node, Plan};
use crate::tensor::{DType, HostTensor};
use crate::{Error, Result};

/// How a GPU is used.
#[derive(Debug, Clone, Copy)]
pub struct CudaOptions {
    /// Of activations and matrices: f16 or bf16.
    pub dtype: DType,
    /// Records launches of decode buckets and starts them as one.
    pub capture: bool,
    /// Takes, whatever the number of rows, kernels that sum in one order: what a sequence gets does not depend on what
    /// runs beside it. Small batches are slower: weights are not streamed, contexts not split, norms launched alone.
    pub batch_invariant: bool,
}

/// What all programs of a backend use.
pub struct Shared {
    pub cuda: Arc<Cuda>,
    pub stream: Stream,
    /// Of activations: f16 or bf16.
    pub dtype: DType,
    pub capture: bool,
    pub batch_invariant: bool,
}

/// A GPU.
pub struct CudaBackend {
    shared: Arc<Shared>,
    /// (free, total) bytes when it was opened.
    memory: (u64, u64),
    tensors: Vec<HostTensor>,
    states: HashMap<String, Arc<DeviceBuffer>>,
}

impl CudaBackend {
    /// 16-bit floats, rows of whole 16-byte vectors.
    pub const LAYOUT: Layout = Layout { float_bytes: 2, row_align: ROW_ALIGN, value_align: 256 };
    pub const FUSION: Fusion = Fusion::Launches;

    /// Errors: a type of activations that no kernel takes, the driver's.
    pub fn new(cuda: Arc<Cuda>, options: CudaOptions) -> Result<CudaBackend> {
        let CudaOptions { dtype, capture, batch_invariant } = options;
        if !matches!(dtype, DType::F16 | DType::Bf16) {
            return Err(Error::Unsupported(format!(
                "activations of {} on cuda: expected BF16 or F16; use --dtype bf16",
                dtype.name()
            )));
        }
        let memory = cuda.device().memory()?;
        let stream = Stream::new(cuda.device())?;
        Ok(CudaBackend {
            memory,
            shared: Arc::new(Shared { cuda, stream, dtype, capture, batch_invariant }),
            tensors: Vec::new(),
            states: HashMap::new(),
        })
    }

    fn state(&mut self, name: &str, bytes: usize) -> Result<Arc<DeviceBuffer>> {
        if let Some(state) = self.states.get(name) {
            if state.bytes() != bytes {
                return Err(Error::Internal(format!("state {name}: {} bytes, asked for with {bytes}", state.bytes())));
            }
            return Ok(state.clone());
        }
        let buffer = Arc::new(self.shared.cuda.device().alloc(&format!("state {name}"), bytes)?);
        buffer.all().fill(&self.shared.stream, 0)?;
        self.states.insert(name.to_string(), buffer.clone());
        Ok(buffer)
    }
}

impl Backend for CudaBackend {
    fn info(&self) -> DeviceInfo {
        let device = self.shared.cuda.device();
        let (major, minor) = device.compute_capability();
        let (free, total) = self.memory;
        DeviceInfo {
            name: format!("cuda:{}", device.ordinal()),
            description: format!(
                "{}, compute capability {major}.{minor}, {} multiprocessors",
                device.name(),
                device.multiprocessors()
            ),
            memory_bytes: total,
            free_bytes: free,
            activations: self.shared.dtype,
        }
    }

    fn supports(&self, graph: &Graph, node: &Node) -> std::result::Result<(), String> {
        lower::supports(graph, node)
    }

    fn upload(&mut self, name: &str, tensor: &HostTensor, matrix: bool) -> Result<WeightHandle> {
        if matrix && !matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::Bf16) {
            return Err(Error::Unsupported(format!(
                "{name}: a matrix of {}; expected F32, F16 or BF16",
                tensor.dtype().name()
            )));
        }
        // In which form it goes to the GPU is for the operations to say.
        self.tensors.push(tensor.clone());
        Ok(WeightHandle(self.tensors.len() as u32 - 1))
    }

    fn layout(&self) -> Layout {
        CudaBackend::LAYOUT
    }

    fn fusion(&self) -> Fusion {
        CudaBackend::FUSION
    }

    fn needs(&self, plan: &Plan, buckets: &[Bucket]) -> Option<Needs> {
        let arrays = buckets.iter().map(|b| StagingLayout::new(&plan.graph, &b.sizes, &plan.layout).bytes()).max();
        let multiprocessors = self.shared.cuda.device().multiprocessors() as usize;
        let scratch = ScratchBytes::of(plan, buckets, multiprocessors).total();
        let choices = chooser::block_bytes(&plan.graph, buckets);
        Some(Needs {
            weights: upload::bytes(&plan.graph) as u64,
            workspace: (plan.arena_bytes + arrays.unwrap_or(0) + scratch + choices) as u64,
        })
    }

    fn compile(&mut self, plan: Plan, buckets: &[Bucket], weights: &[WeightHandle]) -> Result<Box<dyn Program>> {
        if plan.layout != self.layout() {
            return Err(Error::Internal(format!("{}: planned for another device", plan.graph.name)));
        }
        let states = plan
            .graph
            .states
            .iter()
            .map(|s| self.state(&s.name, plan.layout.state_bytes(&s.shape, &plan.bucket)))
            .collect::<Result<Vec<_>>>()?;
        let tensors: Vec<HostTensor> = weights
            .iter()
            .map(|w| self.tensors.get(w.0 as usize).cloned())
            .collect::<Option<_>>()
            .ok_or_else(|| Error::Internal(format!("{}: a weight of another backend", plan.graph.name)))?;
        Ok(Box::new(CudaProgram::new(self.shared.clone(), plan, buckets, &tensors, states)?))
    }
}
