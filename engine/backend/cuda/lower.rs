//! Nodes of a plan to launches: one arm an operation.
//!
//! In: a plan, a bucket, where values, weights and states lie. Out: prepared launches. Owns: nothing. Not here: which
//! entry of a kernel runs and with how many blocks (`ops/`).

mod linear;

use std::sync::Arc;

use super::backend::Shared;
use super::ops::Rows;
use super::ops::attention::Attention;
use super::ops::elementwise::{Elementwise, ElementwiseOp};
use super::ops::kv_write::KvWrite;
use super::ops::layernorm::LayerNorm;
use super::ops::linear::GatedLinear;
use super::ops::paged_attention::PagedAttention;
use super::ops::patch_embed::PatchEmbed;
use super::ops::rope::{Angles, Rope, RopeKeys};
use super::ops::rows::{MoveRows, RowMove};
use super::pack_patches::PatchFold;
use super::scratch::Scratch;
use super::staging::{Staging, StagingLayout};
use super::upload::{Form, Use, Weights};
use super::{DeviceBuffer, DeviceSlice, Launch};
use crate::backend::Bucket;
use crate::graph::{Dim, Graph, Heads, Kind, Node, NodeId, Norm, Normalization, Op, Plan, Rotary, StateId, WeightId};
use crate::{Error, Result};

/// Whether kernels are there for a node; sizes are looked at when it is lowered.
pub fn supports(graph: &Graph, node: &Node) -> std::result::Result<(), String> {
    let is_output = graph.outputs.iter().any(|o| std::ptr::eq(graph.node(*o), node));
    match node.op {
        Op::Linear { .. } | Op::NormLinear { .. } => Ok(()),
        _ if is_output => Err("expected results of a linear layer, which are f32".to_string()),
        _ => Ok(()),
    }
}

/// Adds the node's name to an error.
pub fn at(node: &Node, error: Error) -> Error {
    match error {
        Error::Internal(e) => Error::Internal(format!("{}: {e}", node.name)),
        Error::Unsupported(e) => Error::Unsupported(format!("{} on cuda: {e}", node.name)),
        Error::Device(e) => Error::Device(format!("{}: {e}", node.name)),
        other => other,
    }
}

/// A value in device memory.
#[derive(Clone, Copy)]
struct Value<'a> {
    slice: DeviceSlice<'a>,
    /// Elements from row to row.
    stride: usize,
    /// Of the bucket.
    rows: usize,
    cols: usize,
    /// One i32: rows of the batch; none where the bucket's number is exact.
    num_rows: Option<DeviceSlice<'a>>,
}

impl<'a> Value<'a> {
    fn matrix(&self) -> Rows<'a> {
        Rows { slice: self.slice, stride: self.stride }
    }
}

/// What lowering a bucket needs.
pub struct Lowering<'a> {
    pub shared: &'a Shared,
    pub plan: &'a Plan,
    pub bucket: &'a Bucket,
    pub place: &'a StagingLayout,
    pub arena: &'a DeviceBuffer,
    pub staging: &'a Staging,
    pub scratch: &'a Scratch,
    pub weights: &'a Weights,
    pub states: &'a [Arc<DeviceBuffer>],
}

impl<'a> Lowering<'a> {
    /// The launches of all nodes, in order.
    pub fn launches(&self) -> Result<Vec<(NodeId, Launch)>> {
        let mut all = Vec::new();
        for (i, node) in self.plan.graph.nodes.iter().enumerate() {
            let id = NodeId(i as u32);
            let launches = self.node(node, id).map_err(|e| at(node, e))?;
            all.extend(launches.into_iter().map(|launch| (id, launch)));
        }
        Ok(all)
    }

    /// The device's copy of a size.
    fn size(&self, dim: Dim) -> Result<Option<DeviceSlice<'a>>> {
        if dim.constant().is_some() {
            return Ok(None);
        }
        let offset = self.place.size_offset(dim).ok_or_else(|| Error::Internal(format!("size {dim} is not sent")))?;
        self.staging.slice(offset, 4).map(Some)
    }

    /// The value of a node, or a float input.
    fn value(&self, id: NodeId) -> Result<Value<'a>> {
        let Plan { graph, layout, .. } = self.plan;
        let node = graph.node(id);
        let shape = &node.ty.shape;
        let cols = shape.cols().ok_or_else(|| Error::Internal(format!("{}: rows of no constant width", node.name)))?;
        let rows = shape.rows().eval(&self.bucket.sizes);
        let is_output = graph.outputs.contains(&id);
        let stride = if is_output { cols } else { layout.stride(cols) };
        let slice = match (self.place.array(id), self.plan.place(id)) {
            (Some((offset, bytes)), _) => self.staging.slice(offset, bytes)?,
            (None, Some(place)) => {
                let element = if is_output { 4 } else { layout.float_bytes };
                self.arena.slice(place.offset, rows * stride * element)?
            }
            (None, None) => return Err(Error::Internal(format!("{} has no value", node.name))),
        };
        Ok(Value { slice, stride, rows, cols, num_rows: self.size(shape.rows())? })
    }

    fn ints(&self, id: NodeId) -> Result<DeviceSlice<'a>> {
        self.array(id, Kind::Int)
    }

    /// An input as the host gave it.
    fn array(&self, id: NodeId, kind: Kind) -> Result<DeviceSlice<'a>> {
        let node = self.plan.graph.node(id);
        match self.place.array(id) {
            Some((offset, bytes)) if node.ty.kind == kind => self.staging.slice(offset, bytes),
            _ => Err(Error::Internal(format!("{} is no input of {kind:?}", node.name))),
        }
    }

    fn vector(&self, id: WeightId) -> Result<DeviceSlice<'a>> {
        self.weights.slice(Use::of(Form::Vector, id))
    }

    /// A table of rows.
    fn table(&self, id: WeightId) -> Result<Rows<'a>> {
        let width = self.plan.graph.weight(id).shape.iter().skip(1).product();
        Ok(Rows { slice: self.weights.slice(Use::of(Form::Rows, id))?, stride: self.plan.layout.stride(width) })
    }

    fn state(&self, id: StateId) -> DeviceSlice<'a> {
        self.states[id.0 as usize].all()
    }

    /// A state of rows.
    fn slab(&self, id: StateId) -> Rows<'a> {
        let width = self.plan.graph.state(id).shape.cols().unwrap_or(0);
        Rows { slice: self.state(id), stride: self.plan.layout.stride(width) }
    }

    /// Columns of a matrix in its stored shape.
    fn k(&self, id: WeightId) -> usize {
        self.plan.graph.weight(id).shape.iter().skip(1).product()
    }

    /// `input` are pixels and the origins of patches.
    fn patch_embed(
        &self,
        id: NodeId,
        input: [NodeId; 2],
        (weight, bias): (WeightId, Option<WeightId>),
        normalization: &Normalization,
    ) -> Result<Launch> {
        let y = self.value(id)?;
        let side = self.plan.graph.weight(weight).shape.last().copied().unwrap_or(0);
        let fold = PatchFold::new(side, normalization);
        let op = PatchEmbed {
            dtype: self.shared.dtype,
            pixels: self.array(input[0], Kind::Byte)?,
            origins: self.ints(input[1])?,
            side,
            weight: self.weights.slice(Use::patches(fold, weight))?,
            bias: self.weights.slice(Use::patch_bias(fold, weight, bias))?,
            scale: PatchFold::scale(normalization),
            y: y.slice,
            y_stride: y.stride,
            rows: y.rows,
            n: y.cols,
            num_rows: y.num_rows,
        };
        op.prepare(&self.shared.cuda)
    }

    /// `cu` are the cumulative lengths of queries and of keys; `head_stride` is set where each head's rows lie together.
    fn attention(
        &self,
        id: NodeId,
        [q, k, v]: [Value<'a>; 3],
        head_stride: Option<usize>,
        cu: [NodeId; 2],
        heads: &Heads,
    ) -> Result<Launch> {
        let out = self.value(id)?;
        let segments = self.plan.graph.node(cu[0]).ty.shape.rows().without_plus();
        let op = Attention {
            dtype: self.shared.dtype,
            heads: *heads,
            q: q.slice,
            q_stride: q.stride,
            k: k.slice,
            k_stride: k.stride,
            v: v.slice,
            v_stride: v.stride,
            head_stride,
            out: out.slice,
            out_stride: out.stride,
            cu_q: self.ints(cu[0])?,
            cu_k: self.ints(cu[1])?,
            rows: out.rows,
            keys: k.rows,
            segments: segments.eval(&self.bucket.sizes),
            num_rows: out.num_rows,
            num_segments: self.size(segments)?,
            work: (!self.shared.batch_invariant).then(|| self.scratch.work()),
        };
        op.prepare(&self.shared.cuda)
    }

    #[allow(clippy::too_many_arguments, reason = "what the operation has")]
    fn rope(
        &self,
        id: NodeId,
        x: Value<'a>,
        positions: NodeId,
        heads: usize,
        head_dim: usize,
        rotary: &Rotary,
        keys: Option<RopeKeys<'a>>,
    ) -> Result<Launch> {
        let (y, table) = (self.value(id)?, self.scratch.table(rotary)?);
        let op = Rope {
            dtype: self.shared.dtype,
            x: x.slice,
            x_stride: x.stride,
            y: y.slice,
            y_stride: y.stride,
            heads,
            head_dim,
            angles: Angles {
                positions: self.ints(positions)?,
                inv_freq: table.inv_freq,
                frequencies: rotary.inv_freq().len(),
                axes: rotary.components(),
                axis: table.component,
                scaling: 1.0,
            },
            tokens: y.rows,
            num_tokens: y.num_rows,
            keys,
        };
        op.prepare(&self.shared.cuda)
    }

    fn move_rows(&self, id: NodeId, kind: RowMove) -> Result<Vec<Launch>> {
        Ok(vec![self.move_rows_to(self.value(id)?, kind)?])
    }

    fn move_rows_to(&self, y: Value, kind: RowMove) -> Result<Launch> {
        let op = MoveRows {
            kind,
            dtype: self.shared.dtype,
            y: y.matrix(),
            rows: y.rows,
            width: y.cols,
            num_rows: y.num_rows,
        };
        op.prepare(&self.shared.cuda)
    }

    /// An operation that overwrites its first input: copied before where that is read again later.
    fn elementwise(&self, id: NodeId, first: NodeId, kind: Elementwise) -> Result<Vec<Launch>> {
        let (x, y) = (self.value(first)?, self.value(id)?);
        let mut launches = Vec::new();
        if x.slice.address() != y.slice.address() {
            launches = self.move_rows(id, RowMove::Broadcast { x: x.matrix(), period: x.rows })?;
        }
        let op = ElementwiseOp {
            kind,
            dtype: self.shared.dtype,
            y: y.matrix(),
            rows: y.rows,
            width: y.cols,
            num_rows: y.num_rows,
        };
        launches.push(op.prepare(&self.shared.cuda)?);
        Ok(launches)
    }

    fn node(&self, node: &Node, id: NodeId) -> Result<Vec<Launch>> {
        let Shared { cuda, dtype, .. } = self.shared;
        let dtype = *dtype;
        let x = node.inputs.as_slice();
        match &node.op {
            Op::Input => Ok(Vec::new()),
            Op::Linear { weight, bias } => {
                Ok(vec![self.linear_layer(id, self.value(x[0])?, None, (*weight, *bias), None, None)?])
            }
            Op::PatchEmbed { weight, bias, normalization } => {
                Ok(vec![self.patch_embed(id, [x[0], x[1]], (*weight, *bias), normalization)?])
            }
            Op::LinearAdd { weight, bias } => {
                Ok(vec![self.linear_layer(id, self.value(x[1])?, None, (*weight, *bias), Some(x[0]), None)?])
            }
            Op::LinearActivation { weight, bias, activation } => {
                Ok(vec![self.linear_layer(id, self.value(x[0])?, None, (*weight, *bias), None, Some(*activation))?])
            }
            Op::NormLinear { norm, weight, bias, gathered } => {
                let mut launches = Vec::new();
                let mut input = self.value(x[0])?;
                // A step of one token a sequence has all its rows in order (`Program`), so there is none to choose.
                if *gathered && !self.bucket.decode {
                    input = self.gathered(input, x[1], &mut launches)?;
                }
                let (input, norm) = self.normed(input, Some(norm), true, &mut launches)?;
                launches.push(self.linear_layer(id, input, norm, (*weight, *bias), None, None)?);
                Ok(launches)
            }
            Op::SelfAttention { qkv, heads } => {
                let input = self.value(x[0])?;
                let head_stride = linear::head_stride(input.rows, heads);
                let (project, qkv) = self.qkv(input, qkv, heads, [Form::Packed, Form::Vector], head_stride)?;
                Ok(vec![project, self.attention(id, qkv, head_stride, [x[1], x[1]], heads)?])
            }
            Op::QkvRope { .. } => self.qkv_rope(node, id),
            Op::GatedLinear { gate, up, activation, norm } => {
                let mut launches = Vec::new();
                let (input, norm) = self.normed(self.value(x[0])?, norm.as_ref(), true, &mut launches)?;
                let y = self.value(id)?;
                let op = GatedLinear {
                    dtype,
                    x: input.slice,
                    x_stride: input.stride,
                    weight: self.weights.slice(Use::pair(*gate, *up))?,
                    activation: *activation,
                    y: y.slice,
                    y_stride: y.stride,
                    rows: y.rows,
                    n: y.cols,
                    k: self.k(*gate),
                    num_rows: y.num_rows,
                    work: Some(self.scratch.work()),
                };
                launches.push(match norm {
                    Some(norm) => op.prepare_normed(cuda, &norm)?,
                    None if self.shared.batch_invariant => op.prepare_alike(cuda)?,
                    None => op.prepare(cuda)?,
                });
                Ok(launches)
            }
            Op::LayerNorm { weight, bias, eps } => {
                let (x, y) = (self.value(x[0])?, self.value(id)?);
                let op = LayerNorm {
                    dtype,
                    x: x.slice,
                    x_stride: x.stride,
                    weight: self.vector(*weight)?,
                    bias: self.vector(*bias)?,
                    y: y.slice,
                    y_stride: y.stride,
                    rows: y.rows,
                    hidden: y.cols,
                    eps: *eps,
                    num_rows: y.num_rows,
                };
                Ok(vec![op.prepare(cuda)?])
            }
            Op::RmsNorm { weight, eps } => {
                let norm = Norm { weight: *weight, eps: *eps };
                Ok(vec![self.rms_norm(self.value(x[0])?, &norm, self.value(id)?)?])
            }
            Op::Activation(activation) => self.elementwise(id, x[0], Elementwise::Activation(*activation)),
            Op::Add => self.elementwise(id, x[0], Elementwise::Add(self.value(x[1])?.matrix())),
            Op::Mul => self.elementwise(id, x[0], Elementwise::Mul(self.value(x[1])?.matrix())),
            Op::Embedding { weight } => {
                self.move_rows(id, RowMove::Embedding { table: self.table(*weight)?, ids: self.ints(x[0])? })
            }
            Op::EmbedMerge { weight, slab } => {
                let (ids, image_rows) = (self.ints(x[0])?, self.ints(x[1])?);
                let table = self.table(*weight)?;
                self.move_rows(id, RowMove::EmbedMerge { table, ids, image_rows, slab: self.slab(*slab) })
            }
            Op::GatherRows => {
                self.move_rows(id, RowMove::Gather { x: self.value(x[0])?.matrix(), index: self.ints(x[1])? })
            }
            Op::BroadcastRows { weight } => {
                let period = self.plan.graph.weight(*weight).shape.first().copied().unwrap_or(0);
                self.move_rows(id, RowMove::Broadcast { x: self.table(*weight)?, period })
            }
            Op::ConcatSegments => {
                let cu = self.plan.graph.node(x[1]).ty.shape.rows().without_plus();
                let kind = RowMove::Concat {
                    a: self.value(x[0])?.matrix(),
                    cu_a: self.ints(x[1])?,
                    b: self.value(x[2])?.matrix(),
                    cu_b: self.ints(x[3])?,
                    segments: cu.eval(&self.bucket.sizes),
                    num_segments: self.size(cu)?,
                };
                self.move_rows(id, kind)
            }
            Op::ScatterRows { slab } => {
                let (x, index) = (self.value(x[0])?, self.ints(x[1])?);
                let Rows { slice, stride } = self.slab(*slab);
                Ok(vec![self.move_rows_to(Value { slice, stride, ..x }, RowMove::Scatter { x: x.matrix(), index })?])
            }
            Op::Rope { num_heads, head_dim, rotary } => {
                Ok(vec![self.rope(id, self.value(x[0])?, x[1], *num_heads, *head_dim, rotary, None)?])
            }
            Op::Attention(heads) => {
                let qkv = [self.value(x[0])?, self.value(x[1])?, self.value(x[2])?];
                Ok(vec![self.attention(id, qkv, None, [x[3], x[4]], heads)?])
            }
            Op::KvWrite { cache, num_kv_heads, head_dim } => {
                let (k, v) = (self.value(x[0])?, self.value(x[1])?);
                let op = KvWrite {
                    dtype,
                    k: k.slice,
                    k_stride: k.stride,
                    v: v.slice,
                    v_stride: v.stride,
                    kv_heads: *num_kv_heads,
                    head_dim: *head_dim,
                    cache: self.state(*cache),
                    slot_mapping: self.ints(x[2])?,
                    tokens: k.rows,
                    num_tokens: k.num_rows,
                };
                Ok(vec![op.prepare(cuda)?])
            }
            Op::PagedAttention { cache, heads, window } => {
                let (q, out) = (self.value(x[0])?, self.value(id)?);
                let table = &self.plan.graph.node(x[1]).ty.shape.0;
                let (seqs, blocks) = (table[0], table[1]);
                let (rows, seqs_most) = (out.rows, seqs.eval(&self.bucket.sizes));
                let op = PagedAttention {
                    dtype,
                    heads: *heads,
                    window: *window,
                    q: q.slice,
                    q_stride: q.stride,
                    out: out.slice,
                    out_stride: out.stride,
                    cache: self.state(*cache),
                    block_table: self.ints(x[1])?,
                    cu_seqlens_q: self.ints(x[2])?,
                    context_lens: self.ints(x[3])?,
                    rows,
                    seqs: seqs_most,
                    blocks: blocks.eval(&self.bucket.sizes),
                    num_rows: out.num_rows,
                    num_seqs: self.size(seqs)?,
                    num_blocks: self.size(blocks)?,
                };
                // As many sequences as tokens means one token each only where the bucket says so.
                let decode = self.bucket.decode || rows != seqs_most;
                match decode && !self.shared.batch_invariant {
                    true => op.prepare_with(cuda, self.scratch.work()),
                    false => op.prepare(cuda),
                }
            }
        }
    }
}
