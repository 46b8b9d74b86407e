//! Linear layers of a plan to launches, with the norms, rotary embeddings and choices of rows that go with them.
//!
//! In: nodes, values, weights. Out: prepared launches. Owns: nothing; whether a norm or a rotation is part of a product's
//! launch is decided here, by the rows of the bucket. Not here: which kernel computes a product (`ops/linear_choice.rs`).

use super::super::backend::Shared;
use super::super::ops::fused::{self, InputNorm, NORM_ROWS, QkvOutput};
use super::super::ops::linear::Linear;
use super::super::ops::rmsnorm::RmsNorm;
use super::super::ops::rope::RopeKeys;
use super::super::ops::rows::RowMove;
use super::super::scratch::HEAD_ROWS;
use super::super::upload::{Form, Use};
use super::super::{DeviceSlice, Launch};
use super::{Lowering, Value};
use crate::graph::{Activation, Heads, Node, NodeId, Norm, Op, Qkv, WeightId};
use crate::tensor::DType;
use crate::{Error, Result};

/// Elements from head to head of q, k and v that attention within segments reads from work memory. Each head's rows lie
/// together, so that a tile of keys is one run of whole 32-byte sectors, as rows of 144 bytes among others are not. None
/// where rows are not whole 16-byte vectors: then heads lie side by side.
pub(super) fn head_stride(rows: usize, heads: &Heads) -> Option<usize> {
    heads.head_dim.is_multiple_of(8).then(|| rows.next_multiple_of(HEAD_ROWS) * heads.head_dim)
}

impl<'a> Lowering<'a> {
    /// What a layer reads of its input where it applies a norm first: with few rows the input and the norm, if its kernel
    /// `takes` one; otherwise the norm's result, which a launch in `before` leaves in work memory.
    pub(super) fn normed(
        &self,
        input: Value<'a>,
        norm: Option<&Norm>,
        takes: bool,
        before: &mut Vec<Launch>,
    ) -> Result<(Value<'a>, Option<InputNorm<'a>>)> {
        let Some(norm) = norm else { return Ok((input, None)) };
        if takes && input.rows <= NORM_ROWS && !self.shared.batch_invariant {
            let weight = self.weights.slice(Use::of(Form::Norm, norm.weight))?;
            return Ok((input, Some(InputNorm { weight, eps: norm.eps })));
        }
        let stride = self.plan.layout.stride(input.cols);
        let slice = self.scratch.normed().slice(0, input.rows * stride * self.shared.dtype.size())?;
        let y = Value { slice, stride, ..input };
        before.push(self.rms_norm(input, norm, y)?);
        Ok((y, None))
    }

    /// Rows of a value, in work memory.
    pub(super) fn gathered(&self, x: Value<'a>, index: NodeId, before: &mut Vec<Launch>) -> Result<Value<'a>> {
        let rows = self.plan.graph.node(index).ty.shape.rows();
        let (num_rows, rows) = (self.size(rows)?, rows.eval(&self.bucket.sizes));
        let slice = self.scratch.gathered().slice(0, rows * x.stride * self.shared.dtype.size())?;
        let y = Value { slice, rows, num_rows, ..x };
        before.push(self.move_rows_to(y, RowMove::Gather { x: x.matrix(), index: self.ints(index)? })?);
        Ok(y)
    }

    pub(super) fn rms_norm(&self, x: Value<'a>, norm: &Norm, y: Value<'a>) -> Result<Launch> {
        let op = RmsNorm {
            dtype: self.shared.dtype,
            x: x.slice,
            x_stride: x.stride,
            weight: self.vector(norm.weight)?,
            y: y.slice,
            y_stride: y.stride,
            rows: y.rows,
            hidden: y.cols,
            eps: norm.eps,
            num_rows: y.num_rows,
        };
        op.prepare(&self.shared.cuda)
    }

    pub(super) fn linear_layer(
        &self,
        id: NodeId,
        input: Value<'a>,
        norm: Option<InputNorm>,
        (weight, bias): (WeightId, Option<WeightId>),
        residual: Option<NodeId>,
        activation: Option<Activation>,
    ) -> Result<Launch> {
        let y = self.value(id)?;
        let residual = residual.map(|r| self.value(r)).transpose()?;
        let is_output = self.plan.graph.outputs.contains(&id);
        let op = Linear {
            dtype: self.shared.dtype,
            x: input.slice,
            x_stride: input.stride,
            weight: self.weights.slice(Use::of(Form::Packed, weight))?,
            bias: bias.map(|b| self.vector(b)).transpose()?,
            activation,
            residual: residual.map(|r| (r.slice, r.stride)),
            y: y.slice,
            y_stride: y.stride,
            output: if is_output { DType::F32 } else { self.shared.dtype },
            rows: y.rows,
            n: y.cols,
            k: self.k(weight),
            num_rows: y.num_rows,
            work: Some(self.scratch.work()),
        };
        match norm {
            Some(norm) => op.prepare_normed(&self.shared.cuda, &norm),
            None => self.linear(&op),
        }
    }

    pub(super) fn linear(&self, op: &Linear) -> Result<Launch> {
        match self.shared.batch_invariant {
            true => op.prepare_alike(&self.shared.cuda),
            false => op.prepare(&self.shared.cuda),
        }
    }

    /// The product that makes q, k and v of a layer, to `y` and its stride. `forms` are those of the weights and of the
    /// biases.
    fn qkv_product(
        &self,
        input: Value<'a>,
        qkv: &Qkv,
        heads: &Heads,
        forms: [Form; 2],
        (y, y_stride): (DeviceSlice<'a>, usize),
    ) -> Result<Linear<'a>> {
        Ok(Linear {
            dtype: self.shared.dtype,
            x: input.slice,
            x_stride: input.stride,
            weight: self.weights.slice(Use::joined(forms[0], qkv.weights))?,
            bias: qkv.biases.map(|b| self.weights.slice(Use::joined(forms[1], b))).transpose()?,
            activation: None,
            residual: None,
            y,
            y_stride,
            output: self.shared.dtype,
            rows: input.rows,
            n: (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim,
            k: self.k(qkv.weights[0]),
            num_rows: input.num_rows,
            work: Some(self.scratch.work()),
        })
    }

    /// q, k and v of a layer by one product, in work memory: what reads them follows at once. They lie side by side, or
    /// head by head, `head_stride` apart. `forms` are those of the weights and of the biases.
    pub(super) fn qkv(
        &self,
        input: Value<'a>,
        qkv: &Qkv,
        heads: &Heads,
        forms: [Form; 2],
        head_stride: Option<usize>,
    ) -> Result<(Launch, [Value<'a>; 3])> {
        let Shared { cuda, dtype, batch_invariant, .. } = self.shared;
        let size = dtype.size();
        let Heads { num_heads, num_kv_heads, head_dim, .. } = *heads;
        let all = num_heads + 2 * num_kv_heads;
        let stride = if head_stride.is_some() { head_dim } else { self.plan.layout.stride(all * head_dim) };
        let elements = head_stride.map_or(input.rows * stride, |apart| all * apart);
        let room = self.scratch.qkv();
        let y = room.slice(0, elements * size)?;
        let op = self.qkv_product(input, qkv, heads, forms, (y, stride))?;
        let part = |before: usize, count: usize| {
            let cols = count * head_dim;
            let start = before * head_stride.unwrap_or(head_dim);
            let length = head_stride.map_or((input.rows - 1) * stride + cols, |apart| count * apart);
            let slice = room.slice(start * size, length * size)?;
            Ok(Value { slice, stride, rows: input.rows, cols, num_rows: input.num_rows })
        };
        let parts =
            [part(0, num_heads)?, part(num_heads, num_kv_heads)?, part(num_heads + num_kv_heads, num_kv_heads)?];
        let launch = match head_stride {
            Some(apart) => op.prepare_head_major(cuda, apart, *batch_invariant)?,
            None => self.linear(&op)?,
        };
        Ok((launch, parts))
    }

    /// q, k and v of a decoder's attention, turned, k and v in their pages: in one launch where the rotation allows, behind
    /// one for the norm where there are too many rows for it.
    pub(super) fn qkv_rope(&self, node: &Node, id: NodeId) -> Result<Vec<Launch>> {
        let Op::QkvRope { norm, qkv, heads, rotary, cache } = &node.op else {
            return Err(Error::Internal("not q, k and v".into()));
        };
        let Heads { num_heads, num_kv_heads, head_dim, .. } = *heads;
        let forms = [Form::PackedQkv { head_dim }, Form::VectorQkv { head_dim }];
        let (positions, slot_mapping) = (node.inputs[1], self.ints(node.inputs[2])?);
        let mut launches = Vec::new();
        let input = self.value(node.inputs[0])?;
        let ends = fused::section_ends(rotary);
        let (input, norm) = self.normed(input, norm.as_ref(), ends.is_some(), &mut launches)?;
        let Some(ends) = ends else {
            let (project, [q, k, v]) = self.qkv(input, qkv, heads, forms, None)?;
            let keys = RopeKeys {
                k: k.slice,
                k_stride: k.stride,
                v: v.slice,
                v_stride: v.stride,
                kv_heads: num_kv_heads,
                cache: self.state(*cache),
                slot_mapping,
            };
            let rope = self.rope(id, q, positions, num_heads, head_dim, rotary, Some(keys))?;
            launches.extend([project, rope]);
            return Ok(launches);
        };
        let q = self.value(id)?;
        let op = self.qkv_product(input, qkv, heads, forms, (q.slice, q.stride))?;
        let output = QkvOutput {
            heads: num_heads,
            kv_heads: num_kv_heads,
            head_dim,
            positions: self.ints(positions)?,
            inv_freq: self.scratch.table(rotary)?.inv_freq,
            components: rotary.components(),
            ends,
            cache: self.state(*cache),
            slot_mapping,
        };
        launches.push(match self.shared.batch_invariant {
            true => op.prepare_qkv_alike(&self.shared.cuda, &output)?,
            false => op.prepare_qkv(&self.shared.cuda, norm.as_ref(), &output)?,
        });
        Ok(launches)
    }
}
