//! Runs a plan on the CPU, node by node.
//!
//! In: a plan, weights in stored form, arrays of a step. Out: rows of results. Owns: the arena, the states
//! (KV pages, encoder slab), references to weights. Not here: arithmetic, which is in the neighbouring files.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use memmap2::MmapMut;

use super::attention::PagedKv;
use super::kv_cache::{KvData, KvDataMut, KvShape};
use super::rope::Angles;
use super::{
    Matrix, WeightData, activations, attention, elementwise, gather, kv_cache, matmul, norms, patch_embed, rope,
};
use crate::backend::{Backend, Bucket, DeviceInfo, Input, Needs, Probe, Program, WeightHandle};
use crate::graph::builder::PAGE_SIZE;
use crate::graph::fuse::Fusion;
use crate::graph::plan::Place;
use crate::graph::{Graph, Kind, Layout, Node, NodeId, Op, Plan, Sizes, WeightId};
use crate::tensor::{DType, HostTensor};
use crate::{Error, Result};

/// The CPU.
#[derive(Default)]
pub struct CpuBackend {
    weights: Vec<Weight>,
    states: HashMap<String, Arc<Mutex<Buffer>>>,
}

/// A weight as the operations read it.
#[derive(Clone)]
enum Weight {
    /// In stored form, mapped or on the heap; `[n, k]`.
    Matrix {
        tensor: HostTensor,
        n: usize,
        k: usize,
    },
    Vector(Arc<Vec<f32>>),
}

impl CpuBackend {
    pub fn new() -> CpuBackend {
        CpuBackend::default()
    }

    fn state(&mut self, name: &str, elements: usize) -> Result<Arc<Mutex<Buffer>>> {
        if let Some(s) = self.states.get(name) {
            let have = lock(s)?.len;
            if have != elements {
                return Err(Error::Internal(format!("state {name}: {have} elements, asked for with {elements}")));
            }
            return Ok(s.clone());
        }
        let s = Arc::new(Mutex::new(Buffer::new(elements, name)?));
        self.states.insert(name.to_string(), s.clone());
        Ok(s)
    }
}

impl Backend for CpuBackend {
    fn info(&self) -> DeviceInfo {
        let memory = super::memory::read();
        DeviceInfo {
            name: "cpu".to_string(),
            description: format!("{} threads, {}", rayon::current_num_threads(), super::isa::Isa::current().name()),
            memory_bytes: memory.total,
            free_bytes: memory.available,
            activations: DType::F32,
        }
    }

    fn supports(&self, _: &Graph, node: &Node) -> std::result::Result<(), String> {
        match node.op {
            Op::LinearActivation { .. }
            | Op::NormLinear { .. }
            | Op::GatedLinear { norm: Some(_), .. }
            | Op::SelfAttention { .. }
            | Op::QkvRope { .. } => Err("fused for another device; expand the graph".to_string()),
            _ => Ok(()), // The specification: every primitive operation of the list.
        }
    }

    fn upload(&mut self, name: &str, tensor: &HostTensor, matrix: bool) -> Result<WeightHandle> {
        let shape = tensor.shape();
        let weight = if matrix {
            if !matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::Bf16) {
                return Err(Error::Unsupported(format!(
                    "{name}: a matrix of {}; expected F32, F16 or BF16",
                    tensor.dtype().name()
                )));
            }
            let n = shape.first().copied().unwrap_or(0);
            Weight::Matrix { tensor: tensor.aligned(), n, k: shape.iter().skip(1).product() }
        } else {
            Weight::Vector(Arc::new(tensor.to_f32()?.into_owned()))
        };
        self.weights.push(weight);
        Ok(WeightHandle(self.weights.len() as u32 - 1))
    }

    fn layout(&self) -> Layout {
        Layout::HOST
    }

    fn fusion(&self) -> Fusion {
        Fusion::Passes
    }

    fn needs(&self, _: &Plan, _: &[Bucket]) -> Option<Needs> {
        None
    }

    fn compile(&mut self, plan: Plan, _: &[Bucket], weights: &[WeightHandle]) -> Result<Box<dyn Program>> {
        if plan.layout != Layout::HOST {
            return Err(Error::Internal(format!("{}: planned for another device", plan.graph.name)));
        }
        let states = plan
            .graph
            .states
            .iter()
            .map(|s| self.state(&s.name, s.shape.elements(&plan.bucket)))
            .collect::<Result<Vec<_>>>()?;
        let arena = Buffer::new(plan.arena_bytes / 4, &plan.graph.name)?;
        let weights = weights.iter().map(|w| self.weights[w.0 as usize].clone()).collect();
        Ok(Box::new(CpuProgram { plan, weights, states, arena, sizes: Sizes::default() }))
    }
}

/// Zeroed floats in pages of their own: memory that is never touched is never taken.
struct Buffer {
    map: MmapMut,
    len: usize,
}

impl Buffer {
    fn new(elements: usize, what: &str) -> Result<Buffer> {
        let bytes = elements.saturating_mul(4).max(4);
        let map = MmapMut::map_anon(bytes).map_err(|_| Error::OutOfMemory {
            what: what.to_string(),
            need: bytes as u64,
            free: super::memory::read().available,
        })?;
        Ok(Buffer { map, len: elements })
    }

    fn as_slice(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.map)[..self.len]
    }

    fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.map)[..self.len]
    }
}

fn lock(state: &Mutex<Buffer>) -> Result<MutexGuard<'_, Buffer>> {
    state.lock().map_err(|_| Error::Internal("a state was left locked by a failed run".to_string()))
}

struct CpuProgram {
    plan: Plan,
    weights: Vec<Weight>,
    states: Vec<Arc<Mutex<Buffer>>>,
    arena: Buffer,
    /// Sizes of the last run.
    sizes: Sizes,
}

impl Program for CpuProgram {
    fn run(&mut self, sizes: &Sizes, inputs: &[Input], mut probe: Option<&mut Probe>) -> Result<()> {
        self.sizes = *sizes;
        let plan = &self.plan;
        let graph = &plan.graph;
        let mut given: Vec<Option<Input>> = vec![None; graph.nodes.len()];
        let mut arrays = inputs.iter();
        for (id, node) in graph.inputs() {
            let array = arrays
                .next()
                .ok_or_else(|| Error::Internal(format!("{}: input {} not given", graph.name, node.name)))?;
            let len = match array {
                Input::Float(x) if node.ty.kind == Kind::Float => x.len(),
                Input::Int(x) if node.ty.kind == Kind::Int => x.len(),
                Input::Byte(x) if node.ty.kind == Kind::Byte => x.len(),
                _ => return Err(Error::Internal(format!("{}: input {} of the wrong kind", graph.name, node.name))),
            };
            let want = node.ty.shape.elements(sizes);
            if len != want {
                return Err(Error::Internal(format!(
                    "{}: input {}: {len} elements, expected {want}",
                    graph.name, node.name
                )));
            }
            given[id.0 as usize] = Some(*array);
        }
        let base = self.arena.as_mut_slice().as_mut_ptr();
        let run = Run { plan, sizes, given: &given, weights: &self.weights, states: &self.states, base };
        for (i, node) in graph.nodes.iter().enumerate() {
            if node.ty.shape.elements(sizes) > node.ty.shape.elements(&plan.bucket) {
                return Err(Error::Internal(format!("{}: {} is larger than the bucket", graph.name, node.name)));
            }
            run.node(node, NodeId(i as u32))?;
            if let Some(probe) = probe.as_mut()
                && plan.places[i].is_some()
            {
                probe(node, &node.ty.shape.eval(sizes), run.out(NodeId(i as u32))?)?;
            }
        }
        Ok(())
    }

    fn read(&mut self, index: usize, into: &mut Vec<f32>) -> Result<()> {
        let id = self.plan.graph.outputs[index];
        let place = self.plan.place(id).ok_or_else(|| Error::Internal("an output without a value".to_string()))?;
        let len = self.plan.graph.node(id).ty.shape.elements(&self.sizes);
        into.clear();
        into.extend_from_slice(&self.arena.as_slice()[place.offset / 4..][..len]);
        Ok(())
    }
}

/// One run: the plan, its sizes and the memory.
struct Run<'a> {
    plan: &'a Plan,
    sizes: &'a Sizes,
    given: &'a [Option<Input<'a>>],
    weights: &'a [Weight],
    states: &'a [Arc<Mutex<Buffer>>],
    /// Start of the arena, `plan.arena_bytes` long.
    base: *mut f32,
}

impl<'a> Run<'a> {
    fn len(&self, id: NodeId) -> usize {
        self.plan.graph.node(id).ty.shape.elements(self.sizes)
    }

    fn rows(&self, id: NodeId) -> usize {
        self.plan.graph.node(id).ty.shape.rows().eval(self.sizes)
    }

    fn cols(&self, id: NodeId) -> usize {
        self.plan.graph.node(id).ty.shape.cols().unwrap_or(0)
    }

    fn float(&self, id: NodeId) -> Result<&'a [f32]> {
        if let Some(Input::Float(x)) = self.given[id.0 as usize] {
            return Ok(x);
        }
        let Place { offset, .. } = self.place(id)?;
        // SAFETY: the plan gives every value a place inside the arena that no other live value overlaps, and a node's
        // output is only written while its inputs are read, which live at the same time.
        Ok(unsafe { std::slice::from_raw_parts(self.base.add(offset / 4), self.len(id)) })
    }

    /// The output of a node. Operations that work in place must not hold their first input meanwhile.
    #[allow(clippy::mut_from_ref)]
    fn out(&self, id: NodeId) -> Result<&'a mut [f32]> {
        let Place { offset, .. } = self.place(id)?;
        // SAFETY: as in `float`; one output is handed out at a time.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.base.add(offset / 4), self.len(id)) })
    }

    /// The output of an element-wise node, holding its first input's values.
    fn out_from_first(&self, node: &Node, id: NodeId) -> Result<&'a mut [f32]> {
        let x = node.inputs[0];
        let overwrites = self.given[x.0 as usize].is_none() && self.place(x)?.offset == self.place(id)?.offset;
        let out = self.out(id)?;
        if !overwrites {
            out.copy_from_slice(self.float(x)?);
        }
        Ok(out)
    }

    fn place(&self, id: NodeId) -> Result<Place> {
        self.plan.place(id).ok_or_else(|| Error::Internal(format!("{} has no value", self.plan.graph.node(id).name)))
    }

    fn int(&self, id: NodeId) -> Result<&'a [i32]> {
        match self.given[id.0 as usize] {
            Some(Input::Int(x)) => Ok(x),
            _ => Err(Error::Internal(format!("{} is not an integer input", self.plan.graph.node(id).name))),
        }
    }

    fn bytes(&self, id: NodeId) -> Result<&'a [u8]> {
        match self.given[id.0 as usize] {
            Some(Input::Byte(x)) => Ok(x),
            _ => Err(Error::Internal(format!("{} is no input of bytes", self.plan.graph.node(id).name))),
        }
    }

    fn matrix(&self, id: WeightId) -> Result<Matrix<'a>> {
        let Weight::Matrix { tensor, n, k } = &self.weights[id.0 as usize] else {
            return Err(Error::Internal(format!("{} is no matrix", self.plan.graph.weight(id).name)));
        };
        let data = match tensor.dtype() {
            DType::F32 => WeightData::F32(tensor.as_slice()?),
            DType::F16 => WeightData::F16(tensor.as_slice()?),
            _ => WeightData::Bf16(tensor.as_slice()?),
        };
        Ok(Matrix { n: *n, k: *k, data })
    }

    fn vector(&self, id: WeightId) -> Result<&'a [f32]> {
        match &self.weights[id.0 as usize] {
            Weight::Vector(v) => Ok(v),
            Weight::Matrix { .. } => Err(Error::Internal(format!("{} is a matrix", self.plan.graph.weight(id).name))),
        }
    }

    fn state(&self, id: crate::graph::StateId) -> Result<MutexGuard<'a, Buffer>> {
        lock(&self.states[id.0 as usize])
    }

    fn node(&self, node: &Node, id: NodeId) -> Result<()> {
        let x = node.inputs.as_slice();
        match &node.op {
            Op::Input => Ok(()),
            Op::Linear { weight, bias } => {
                let bias = bias.map(|b| self.vector(b)).transpose()?;
                matmul::linear(self.out(id)?, self.float(x[0])?, self.rows(x[0]), &self.matrix(*weight)?, bias)
            }
            Op::PatchEmbed { weight, bias, normalization } => {
                let bias = bias.map(|b| self.vector(b)).transpose()?;
                let side = self.plan.graph.weight(*weight).shape.last().copied().unwrap_or(0);
                let input = (self.bytes(x[0])?, self.int(x[1])?);
                patch_embed::patch_embed(self.out(id)?, input, side, normalization, &self.matrix(*weight)?, bias)
            }
            Op::LinearAdd { weight, bias } => {
                let bias = bias.map(|b| self.vector(b)).transpose()?;
                let (w, out) = (self.matrix(*weight)?, self.out_from_first(node, id)?);
                matmul::linear_add(out, self.float(x[1])?, self.rows(x[1]), &w, bias)
            }
            Op::GatedLinear { gate, up, activation, norm: None } => {
                let (gate, up) = (self.matrix(*gate)?, self.matrix(*up)?);
                matmul::gated_linear(self.out(id)?, self.float(x[0])?, self.rows(x[0]), &gate, &up, *activation)
            }
            Op::LayerNorm { weight, bias, eps } => {
                let (w, b) = (self.vector(*weight)?, self.vector(*bias)?);
                norms::layer_norm(self.out(id)?, self.float(x[0])?, self.rows(id), w.len(), w, b, *eps)
            }
            Op::RmsNorm { weight, eps } => {
                let w = self.vector(*weight)?;
                norms::rms_norm(self.out(id)?, self.float(x[0])?, self.rows(id), w.len(), w, *eps)
            }
            Op::Activation(a) => {
                activations::activation(self.out_from_first(node, id)?, *a);
                Ok(())
            }
            Op::Add => elementwise::add(self.out_from_first(node, id)?, self.float(x[1])?),
            Op::Mul => elementwise::mul(self.out_from_first(node, id)?, self.float(x[1])?),
            Op::Embedding { weight } => gather::embedding(self.out(id)?, &self.matrix(*weight)?, self.int(x[0])?),
            Op::EmbedMerge { weight, slab } => {
                let (table, slab) = (self.matrix(*weight)?, self.state(*slab)?);
                gather::embed_merge(self.out(id)?, &table, self.int(x[0])?, self.int(x[1])?, slab.as_slice())
            }
            Op::GatherRows => gather::gather_rows(self.out(id)?, self.float(x[0])?, self.int(x[1])?, self.cols(id)),
            Op::BroadcastRows { weight } => gather::broadcast_rows(self.out(id)?, &self.matrix(*weight)?),
            Op::ConcatSegments => {
                let (a, cu_a, b, cu_b) = (self.float(x[0])?, self.int(x[1])?, self.float(x[2])?, self.int(x[3])?);
                gather::concat_segments(self.out(id)?, a, cu_a, b, cu_b, self.cols(id))
            }
            Op::Rope { num_heads, head_dim, rotary } => {
                let angles = Angles {
                    positions: self.int(x[1])?,
                    components: rotary.components(),
                    inv_freq: rotary.inv_freq(),
                    component: rotary.component(),
                    scaling: 1.0,
                };
                rope::rope(self.out_from_first(node, id)?, &angles, *num_heads, *head_dim)
            }
            Op::Attention(heads) => {
                let (q, k, v) = (self.float(x[0])?, self.float(x[1])?, self.float(x[2])?);
                attention::attention(self.out(id)?, q, k, v, self.int(x[3])?, self.int(x[4])?, heads)
            }
            Op::KvWrite { cache, num_kv_heads, head_dim } => {
                let mut cache = self.state(*cache)?;
                let shape = KvShape { kv_heads: *num_kv_heads, head_dim: *head_dim, page_size: PAGE_SIZE };
                let data = KvDataMut::F32(cache.as_mut_slice());
                kv_cache::kv_write(data, self.float(x[0])?, self.float(x[1])?, self.int(x[2])?, shape)
            }
            Op::PagedAttention { cache, heads, window } => {
                let cache = self.state(*cache)?;
                let kv = PagedKv {
                    cache: KvData::F32(cache.as_slice()),
                    page_size: PAGE_SIZE,
                    block_table: self.int(x[1])?,
                    context_lens: self.int(x[3])?,
                };
                attention::paged_attention(self.out(id)?, self.float(x[0])?, &kv, self.int(x[2])?, heads, *window)
            }
            Op::LinearActivation { .. }
            | Op::NormLinear { .. }
            | Op::GatedLinear { .. }
            | Op::SelfAttention { .. }
            | Op::QkvRope { .. } => Err(Error::Internal(format!("{} was not expanded for the CPU", node.op.name()))),
            Op::ScatterRows { slab } => {
                let width = self.plan.graph.state(*slab).shape.cols().unwrap_or(0);
                gather::scatter_rows(self.state(*slab)?.as_mut_slice(), self.float(x[0])?, self.int(x[1])?, width)
            }
        }
        .map_err(|e| at(node, e))
    }
}

/// Adds the node's name to a fault of the arithmetic.
fn at(node: &Node, error: Error) -> Error {
    match error {
        Error::Internal(e) => Error::Internal(format!("{}: {e}", node.name)),
        other => other,
    }
}
