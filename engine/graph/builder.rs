//! The only way in which a family makes a graph: scopes that equal checkpoint paths, operations, weight requests.
//!
//! In: calls in the order of the computation. Out: a verified [`Graph`]. The first mistake is kept and
//! returned by [`Builder::finish`], so that a family reads as the model does.

use std::cell::RefCell;
use std::rc::Rc;

use super::normalization::Normalization;
use super::op::{Activation, Heads, Kind, Op, Type};
use super::rotary::{self, Rotary};
use super::shape::{Dim, Shape, Sym};
use super::{Graph, Node, NodeId, State, StateId, Weight, WeightId, verify};
use crate::{Error, Result};

struct Inner {
    graph: Graph,
    error: Option<String>,
}

/// A place in the graph under construction. Clones and scopes share one graph.
#[derive(Clone)]
pub struct Builder {
    inner: Rc<RefCell<Inner>>,
    prefix: String,
}

impl Builder {
    /// An empty graph.
    pub fn new(name: &str) -> Builder {
        let graph = Graph { name: name.to_string(), ..Graph::default() };
        Builder { inner: Rc::new(RefCell::new(Inner { graph, error: None })), prefix: String::new() }
    }

    /// The same graph under `prefix.path`; an empty path stays here.
    pub fn scope(&self, path: &str) -> Builder {
        Builder { inner: self.inner.clone(), prefix: self.path(path) }
    }

    fn path(&self, name: &str) -> String {
        match (self.prefix.is_empty(), name.is_empty()) {
            (true, _) => name.to_string(),
            (_, true) => self.prefix.clone(),
            _ => format!("{}.{name}", self.prefix),
        }
    }

    fn weight(&self, name: &str, shape: Vec<usize>, matrix: bool) -> WeightId {
        let name = self.path(name);
        let mut inner = self.inner.borrow_mut();
        if let Some(i) = inner.graph.weights.iter().position(|w| w.name == name) {
            if inner.graph.weights[i].shape != shape {
                let old = inner.graph.weights[i].shape.clone();
                inner.error.get_or_insert(format!("weight {name}: asked for as {shape:?} and as {old:?}"));
            }
            return WeightId(i as u32);
        }
        inner.graph.weights.push(Weight { name, shape, matrix });
        WeightId(inner.graph.weights.len() as u32 - 1)
    }

    /// Adds a node named `name` in this scope.
    pub fn push(&self, name: &str, op: Op, inputs: &[NodeId]) -> NodeId {
        let name = self.path(name);
        let mut inner = self.inner.borrow_mut();
        let types: Vec<&Type> = inner.graph.nodes_of(inputs).map(|n| &n.ty).collect();
        let ty = match op.infer(&inner.graph, &types) {
            Ok(ty) => ty,
            Err(e) => {
                inner.error.get_or_insert(format!("{name}: {}: {e}", op.name()));
                Type { kind: Kind::Float, shape: Shape::matrix(1, 1) }
            }
        };
        inner.graph.nodes.push(Node { name, op, inputs: inputs.to_vec(), ty });
        NodeId(inner.graph.nodes.len() as u32 - 1)
    }

    fn input(&self, name: &str, kind: Kind, shape: Shape) -> NodeId {
        let mut inner = self.inner.borrow_mut();
        let node = Node { name: name.to_string(), op: Op::Input, inputs: vec![], ty: Type { kind, shape } };
        inner.graph.nodes.push(node);
        NodeId(inner.graph.nodes.len() as u32 - 1)
    }

    /// A float array given every step.
    pub fn float_input(&self, name: &str, shape: Shape) -> NodeId {
        self.input(name, Kind::Float, shape)
    }

    /// An integer array given every step.
    pub fn int_input(&self, name: &str, dims: impl IntoIterator<Item = Dim>) -> NodeId {
        self.input(name, Kind::Int, Shape::new(dims))
    }

    /// An array of bytes given every step.
    pub fn byte_input(&self, name: &str, len: Dim) -> NodeId {
        self.input(name, Kind::Byte, Shape::new([len]))
    }

    /// A buffer that outlives the step; the same name gives the same buffer.
    pub fn state(&self, name: &str, shape: Shape) -> StateId {
        let mut inner = self.inner.borrow_mut();
        if let Some(i) = inner.graph.states.iter().position(|s| s.name == name) {
            return StateId(i as u32);
        }
        inner.graph.states.push(State { name: name.to_string(), shape });
        StateId(inner.graph.states.len() as u32 - 1)
    }

    /// Width of a row of `x`; 0 where it is not constant, which the next operation reports.
    pub fn width(&self, x: NodeId) -> usize {
        self.inner.borrow().graph.node(x).ty.shape.cols().unwrap_or(0)
    }

    /// `x * name.weight^T`, `[rows, n]`.
    pub fn linear(&self, name: &str, x: NodeId, n: usize) -> NodeId {
        let weight = self.scope(name).weight("weight", vec![n, self.width(x)], true);
        self.push(name, Op::Linear { weight, bias: None }, &[x])
    }

    /// `x * name.weight^T + name.bias`, `[rows, n]`.
    pub fn linear_bias(&self, name: &str, x: NodeId, n: usize) -> NodeId {
        let s = self.scope(name);
        let weight = s.weight("weight", vec![n, self.width(x)], true);
        let bias = Some(s.weight("bias", vec![n], false));
        self.push(name, Op::Linear { weight, bias }, &[x])
    }

    /// The convolution `name` of patches of `side` pixels with a bias, `[patches, n]`. `pixels` and `origins` as
    /// [`Op::PatchEmbed`] takes them.
    pub fn patch_embed(
        &self,
        name: &str,
        [pixels, origins]: [NodeId; 2],
        n: usize,
        side: usize,
        normalization: &Normalization,
    ) -> NodeId {
        let s = self.scope(name);
        let weight = s.weight("weight", vec![n, 3, side, side], true);
        let bias = Some(s.weight("bias", vec![n], false));
        self.push(name, Op::PatchEmbed { weight, bias, normalization: *normalization }, &[pixels, origins])
    }

    /// A linear whose weight is that of another path, written in full, as a tied head's is.
    pub fn linear_tied(&self, name: &str, x: NodeId, weight_path: &str, n: usize) -> NodeId {
        let root = Builder { inner: self.inner.clone(), prefix: String::new() };
        let weight = root.weight(weight_path, vec![n, self.width(x)], true);
        self.push(name, Op::Linear { weight, bias: None }, &[x])
    }

    pub fn layer_norm(&self, name: &str, x: NodeId, eps: f32) -> NodeId {
        let (s, d) = (self.scope(name), self.width(x));
        let weight = s.weight("weight", vec![d], false);
        let bias = s.weight("bias", vec![d], false);
        self.push(name, Op::LayerNorm { weight, bias, eps }, &[x])
    }

    pub fn rms_norm(&self, name: &str, x: NodeId, eps: f32) -> NodeId {
        let weight = self.scope(name).weight("weight", vec![self.width(x)], false);
        self.push(name, Op::RmsNorm { weight, eps }, &[x])
    }

    pub fn activation(&self, name: &str, x: NodeId, activation: Activation) -> NodeId {
        self.push(name, Op::Activation(activation), &[x])
    }

    pub fn add(&self, name: &str, a: NodeId, b: NodeId) -> NodeId {
        self.push(name, Op::Add, &[a, b])
    }

    pub fn mul(&self, name: &str, a: NodeId, b: NodeId) -> NodeId {
        self.push(name, Op::Mul, &[a, b])
    }

    /// Rows of the table `name.weight [rows, width]`.
    pub fn embedding(&self, name: &str, ids: NodeId, rows: usize, width: usize) -> NodeId {
        let weight = self.scope(name).weight("weight", vec![rows, width], true);
        self.push(name, Op::Embedding { weight }, &[ids])
    }

    /// Token embeddings joined with encoder rows.
    pub fn embed_merge(
        &self,
        name: &str,
        ids: NodeId,
        image_rows: NodeId,
        slab: StateId,
        rows: usize,
        width: usize,
    ) -> NodeId {
        let weight = self.scope(name).weight("weight", vec![rows, width], true);
        self.push(name, Op::EmbedMerge { weight, slab }, &[ids, image_rows])
    }

    /// The parameter `name [rows, width]`, once an image.
    pub fn broadcast_rows(&self, name: &str, rows: usize, width: usize) -> NodeId {
        let weight = self.weight(name, vec![rows, width], true);
        self.push(name, Op::BroadcastRows { weight }, &[])
    }

    /// Rotary embedding by half-rotation; `positions` are those of every row, see [`Rotary::positions`].
    pub fn rope(&self, name: &str, x: NodeId, positions: NodeId, head_dim: usize, rotary: &Rotary) -> NodeId {
        let num_heads = self.width(x) / head_dim.max(1);
        self.push(name, Op::Rope { num_heads, head_dim, rotary: rotary.clone() }, &[x, positions])
    }

    /// Bidirectional attention within segments.
    pub fn attention(&self, name: &str, qkv: [NodeId; 3], cu: [NodeId; 2], heads: Heads) -> NodeId {
        self.push(name, Op::Attention(heads), &[qkv[0], qkv[1], qkv[2], cu[0], cu[1]])
    }

    /// Writes this step's keys and values to the pages of `layer`, then attends causally over them.
    pub fn cached_attention(
        &self,
        name: &str,
        qkv: [NodeId; 3],
        layer: usize,
        step: &DecoderInputs,
        heads: Heads,
        window: Option<usize>,
    ) -> NodeId {
        let [q, k, v] = qkv;
        let (num_kv_heads, head_dim) = (heads.num_kv_heads, heads.head_dim);
        let per_page = [2, num_kv_heads, PAGE_SIZE, head_dim].map(Dim::from);
        let cache = self.state(&format!("kv.{layer}"), Shape::new(std::iter::once(Sym::Pages.into()).chain(per_page)));
        self.push(
            &format!("{name}.kv_write"),
            Op::KvWrite { cache, num_kv_heads, head_dim },
            &[k, v, step.slot_mapping],
        );
        let inputs = [q, step.block_table, step.cu_seqlens_q, step.context_lens];
        self.push(name, Op::PagedAttention { cache, heads, window }, &inputs)
    }

    /// The arrays that every decoder step has, in the order in which the executor gives them. Positions have
    /// `components` components: `[Tokens]`, or `[components, Tokens]`.
    pub fn decoder_inputs(&self, components: usize) -> DecoderInputs {
        let positions = rotary::positions(components, Sym::Tokens.into());
        let int = |name: &str, dims: &[Dim]| self.int_input(name, dims.iter().copied());
        DecoderInputs {
            token_ids: int("token_ids", &[Sym::Tokens.into()]),
            image_rows: int("image_rows", &[Sym::Tokens.into()]),
            positions: int("positions", &positions),
            cu_seqlens_q: int("cu_seqlens_q", &[Dim::from(Sym::Seqs).plus(1)]),
            context_lens: int("context_lens", &[Sym::Seqs.into()]),
            block_table: int("block_table", &[Sym::Seqs.into(), Sym::Blocks.into()]),
            slot_mapping: int("slot_mapping", &[Sym::Tokens.into()]),
            logit_rows: int("logit_rows", &[Sym::LogitRows.into()]),
        }
    }

    /// The slab of encoder rows, `[SlabRows, width]`.
    pub fn slab(&self, width: usize) -> StateId {
        self.state("encoder_slab", Shape::matrix(Sym::SlabRows, width))
    }

    /// Names the values read back and returns the verified graph, or the first mistake.
    pub fn finish(self, outputs: &[NodeId]) -> Result<Graph> {
        let mut inner = self.inner.borrow_mut();
        if let Some(e) = inner.error.take() {
            return Err(Error::Model(format!("graph {}: {e}", inner.graph.name)));
        }
        let mut graph = std::mem::take(&mut inner.graph);
        graph.outputs = outputs.to_vec();
        verify::verify(&graph)?;
        Ok(graph)
    }
}

/// Tokens of a KV page. A constant: page runs of one head are then whole sectors on every device.
pub const PAGE_SIZE: usize = 16;

/// Inputs of a decoder graph.
#[derive(Debug, Clone, Copy)]
pub struct DecoderInputs {
    pub token_ids: NodeId,
    pub image_rows: NodeId,
    pub positions: NodeId,
    pub cu_seqlens_q: NodeId,
    pub context_lens: NodeId,
    pub block_table: NodeId,
    pub slot_mapping: NodeId,
    pub logit_rows: NodeId,
}

impl Graph {
    fn nodes_of<'a>(&'a self, ids: &'a [NodeId]) -> impl Iterator<Item = &'a Node> {
        ids.iter().map(|i| self.node(*i))
    }
}
