//! Weights on their way to the GPU: from the mapped file through page-locked memory, packed on the CPU while the piece
//! before is being copied.
//!
//! In: which weights a graph reads, and how. Out: device memory with each in the form that its kernels read. Owns: the
//! forms, the ring of page-locked pieces. Not here: the order of bytes in a packed matrix (`pack.rs`).

use std::collections::HashMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::driver::{Device, DeviceBuffer, DeviceSlice, Event, PinnedBuffer, Stream};
use super::pack_patches::{self, PatchFold};
use super::{pack, staging};
use crate::graph::{Graph, Norm, Op, WeightId};
use crate::tensor::{DType, HostTensor};
use crate::{Error, Result};

/// How kernels read weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// f32, one after another.
    Vector,
    /// Rows of activations: a table.
    Rows,
    /// Tiles of a matrix of a linear layer.
    Packed,
    /// Tiles of two matrices of one shape, mixed: gate and up.
    PackedPair,
    /// Tiles of q, k and v, the pairs that rotary embedding turns side by side, and a vector in that order.
    PackedQkv {
        head_dim: usize,
    },
    VectorQkv {
        head_dim: usize,
    },
    /// A norm's weight for a linear layer that applies it.
    Norm,
    /// Tiles of a patch embedding's weight, and its bias, with the normalisation of pixels in them.
    PackedPatches(PatchFold),
    PatchBias(PatchFold),
}

/// Weights that an operation reads as one: several vectors or matrices lie one below the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Use {
    pub form: Form,
    weights: [Option<WeightId>; 3],
}

impl Use {
    pub fn of(form: Form, weight: WeightId) -> Use {
        Use { form, weights: [Some(weight), None, None] }
    }

    pub fn pair(gate: WeightId, up: WeightId) -> Use {
        Use { form: Form::PackedPair, weights: [Some(gate), Some(up), None] }
    }

    pub fn patches(fold: PatchFold, weight: WeightId) -> Use {
        Use::of(Form::PackedPatches(fold), weight)
    }

    pub fn patch_bias(fold: PatchFold, weight: WeightId, bias: Option<WeightId>) -> Use {
        Use { form: Form::PatchBias(fold), weights: [Some(weight), bias, None] }
    }

    pub fn joined(form: Form, weights: [WeightId; 3]) -> Use {
        Use { form, weights: weights.map(Some) }
    }

    fn weights(&self) -> impl Iterator<Item = WeightId> + Clone {
        self.weights.into_iter().flatten()
    }

    /// Pieces of equal size that it is made of, each contiguous.
    fn pieces(&self, graph: &Graph) -> Pieces {
        let shapes = self.weights().map(|w| graph.weight(w).shape.as_slice());
        let n: usize = shapes.clone().map(|s| s.first().copied().unwrap_or(1)).sum();
        let k: usize = shapes.clone().next().map_or(1, |s| s.iter().skip(1).product());
        match self.form {
            Form::Vector => Pieces { count: n * k, bytes: 4 },
            Form::Rows => Pieces { count: n, bytes: k.next_multiple_of(super::ROW_ALIGN) * 2 },
            Form::VectorQkv { .. } => Pieces { count: 1, bytes: n * 4 },
            Form::Norm => Pieces { count: 1, bytes: pack::norm_bytes(n) },
            Form::PackedPatches(fold) => {
                Pieces { count: n.div_ceil(pack::PANEL_ROWS), bytes: pack::panel_bytes(fold.columns()) }
            }
            // Of the weight's rows; the bias is as long.
            Form::PatchBias(_) => Pieces { count: 1, bytes: shapes.clone().next().map_or(1, |s| s[0]) * 4 },
            Form::Packed | Form::PackedPair | Form::PackedQkv { .. } => {
                Pieces { count: n.div_ceil(pack::PANEL_ROWS), bytes: pack::panel_bytes(k) }
            }
        }
    }

    fn bytes(&self, graph: &Graph) -> usize {
        let p = self.pieces(graph);
        p.count * p.bytes
    }
}

/// What an operation reads, in which form.
pub fn uses_of(graph: &Graph, op: &Op) -> Vec<Use> {
    let vector = |w: &WeightId| Use::of(Form::Vector, *w);
    match op {
        Op::Linear { weight, bias } | Op::LinearAdd { weight, bias } | Op::LinearActivation { weight, bias, .. } => {
            std::iter::once(Use::of(Form::Packed, *weight)).chain(bias.as_ref().map(vector)).collect()
        }
        Op::PatchEmbed { weight, bias, normalization } => {
            let fold = PatchFold::new(graph.weight(*weight).shape.last().copied().unwrap_or(0), normalization);
            vec![Use::patches(fold, *weight), Use::patch_bias(fold, *weight, *bias)]
        }
        Op::NormLinear { norm, weight, bias, .. } => {
            let layer = std::iter::once(Use::of(Form::Packed, *weight)).chain(bias.as_ref().map(vector));
            norm_uses(Some(norm)).chain(layer).collect()
        }
        Op::GatedLinear { gate, up, norm, .. } => norm_uses(norm.as_ref()).chain([Use::pair(*gate, *up)]).collect(),
        Op::QkvRope { norm, qkv, heads, .. } => {
            let head_dim = heads.head_dim;
            let weights = Use::joined(Form::PackedQkv { head_dim }, qkv.weights);
            let biases = qkv.biases.map(|b| Use::joined(Form::VectorQkv { head_dim }, b));
            norm_uses(norm.as_ref()).chain([weights]).chain(biases).collect()
        }
        Op::SelfAttention { qkv, .. } => {
            let weights = Use::joined(Form::Packed, qkv.weights);
            std::iter::once(weights).chain(qkv.biases.map(|b| Use::joined(Form::Vector, b))).collect()
        }
        Op::Embedding { weight } | Op::EmbedMerge { weight, .. } | Op::BroadcastRows { weight } => {
            vec![Use::of(Form::Rows, *weight)]
        }
        other => other.weights().iter().map(vector).collect(),
    }
}

/// As few rows and as many rows take it.
fn norm_uses(norm: Option<&Norm>) -> impl Iterator<Item = Use> {
    norm.into_iter().flat_map(|n| [Use::of(Form::Norm, n.weight), Use::of(Form::Vector, n.weight)])
}

/// Every use of a graph once, in the order of its nodes.
pub fn uses(graph: &Graph) -> Vec<Use> {
    let mut all = Vec::new();
    for found in graph.nodes.iter().flat_map(|n| uses_of(graph, &n.op)) {
        if !all.contains(&found) {
            all.push(found);
        }
    }
    all
}

/// Alignment of a weight in device memory.
const ALIGN: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pieces {
    count: usize,
    bytes: usize,
}

/// Bytes on the device of what `graph` reads.
pub fn bytes(graph: &Graph) -> usize {
    uses(graph).iter().map(|u| u.bytes(graph).next_multiple_of(ALIGN)).sum()
}

/// Weights of one graph in device memory.
pub struct Weights {
    buffer: Arc<DeviceBuffer>,
    /// Bytes from the start, bytes.
    places: HashMap<Use, (usize, usize)>,
}

impl Weights {
    /// Room for what `graph` reads. Errors: out of memory.
    pub fn alloc(device: &Arc<Device>, graph: &Graph) -> Result<Weights> {
        let mut places = HashMap::new();
        let mut at = 0;
        for used in uses(graph) {
            let bytes = used.bytes(graph);
            places.insert(used, (at, bytes));
            at += bytes.next_multiple_of(ALIGN);
        }
        let buffer = Arc::new(device.alloc(&format!("weights of the {}", graph.name), at)?);
        Ok(Weights { buffer, places })
    }

    pub fn slice(&self, used: Use) -> Result<DeviceSlice<'_>> {
        let (offset, bytes) =
            self.places.get(&used).ok_or_else(|| Error::Internal(format!("{used:?} was not uploaded")))?;
        self.buffer.slice(*offset, *bytes)
    }

    /// Fills all of it from the graph's weights, in the order of its table, and waits until that is done.
    pub fn fill(&self, graph: &Graph, tensors: &[HostTensor], dtype: DType) -> Result<()> {
        let device = self.buffer.device();
        let piece_bytes = self.buffer.bytes().min(RING_BYTES).max(self.largest_piece(graph));
        let mut ring = Ring::new(device, piece_bytes)?;
        let mut uses: Vec<&Use> = self.places.keys().collect();
        uses.sort_by_key(|u| self.places[u].0);
        for used in uses {
            let tensor = |w: WeightId| -> Result<&HostTensor> {
                tensors.get(w.0 as usize).ok_or_else(|| Error::Internal(format!("{}: not given", graph.weight(w).name)))
            };
            let source = Source {
                name: used.weights().next().map_or("", |w| graph.weight(w).name.as_str()),
                form: used.form,
                dtype,
                tensors: used.weights().map(tensor).collect::<Result<_>>()?,
            };
            let pieces = used.pieces(graph);
            let step = (piece_bytes / pieces.bytes).max(1);
            for start in (0..pieces.count).step_by(step) {
                let count = step.min(pieces.count - start);
                let to = self.buffer.slice(self.places[used].0 + start * pieces.bytes, count * pieces.bytes)?;
                ring.send(to, |out| source.write(start, pieces.bytes, out))?;
            }
        }
        ring.finish()
    }

    fn largest_piece(&self, graph: &Graph) -> usize {
        self.places.keys().map(|u| u.pieces(graph).bytes).max().unwrap_or(1)
    }
}

/// Weights as they are stored, and what they shall become.
struct Source<'a> {
    /// Of the first one.
    name: &'a str,
    form: Form,
    dtype: DType,
    tensors: Vec<&'a HostTensor>,
}

impl Source<'_> {
    /// Writes pieces from `start` on until `out` is full, on all cores.
    fn write(&self, start: usize, piece_bytes: usize, out: &mut [u8]) -> Result<()> {
        let pieces = out.par_chunks_mut(piece_bytes).enumerate();
        match self.form {
            Form::Vector => {
                let mut values = Vec::new();
                for tensor in &self.tensors {
                    values.extend_from_slice(&tensor.to_f32()?);
                }
                let count = out.len() / 4;
                out.copy_from_slice(bytemuck::cast_slice(&values[start..start + count]));
                Ok(())
            }
            Form::VectorQkv { head_dim } => {
                let lengths: Vec<usize> = self.tensors.iter().map(|t| t.shape().iter().product()).collect();
                let mut values = Vec::new();
                for tensor in &self.tensors {
                    values.extend_from_slice(&tensor.to_f32()?);
                }
                let turned = lengths.iter().take(2).sum();
                for (row, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    *out = values[pack::qkv_row(row, head_dim, turned)].to_ne_bytes();
                }
                Ok(())
            }
            Form::PackedPatches(fold) => {
                let weight = self.tensors[0];
                let pack =
                    |(i, out)| pack_patches::pack_patch_panel(self.name, weight, &fold, self.dtype, start + i, out);
                pieces.try_for_each(pack)
            }
            Form::PatchBias(fold) => {
                let bias = self.tensors.get(1).map(|b| b.to_f32()).transpose()?;
                let all = pack_patches::patch_biases(self.name, self.tensors[0], bias.as_deref(), &fold)?;
                out.copy_from_slice(bytemuck::cast_slice(&all));
                Ok(())
            }
            Form::Norm => pack::pack_norm(&self.tensors[0].to_f32()?, self.dtype, out),
            Form::PackedQkv { head_dim } => {
                let [q, k, v] = *self.tensors.as_slice() else {
                    return Err(Error::Internal(format!("{}: not q, k and v", self.name)));
                };
                let pack = |(i, out)| pack::pack_qkv_panel(self.name, [q, k, v], head_dim, self.dtype, start + i, out);
                pieces.try_for_each(pack)
            }
            Form::Rows => pieces.try_for_each(|(i, out)| {
                let row = self.row(start + i)?;
                out.fill(0);
                staging::round(self.dtype, &row, out);
                Ok(())
            }),
            Form::Packed => {
                pieces.try_for_each(|(i, out)| pack::pack_panel(self.name, &self.tensors, self.dtype, start + i, out))
            }
            Form::PackedPair => {
                let [gate, up] = *self.tensors.as_slice() else {
                    return Err(Error::Internal(format!("{}: half a pair", self.name)));
                };
                pieces.try_for_each(|(i, out)| pack::pack_gated_panel(self.name, gate, up, self.dtype, start + i, out))
            }
        }
    }

    /// A row of a table.
    fn row(&self, row: usize) -> Result<Vec<f32>> {
        let table = self.tensors[0];
        let (size, k) = (table.dtype().size(), table.shape().iter().skip(1).product::<usize>());
        let bytes = &table.bytes()[row * k * size..][..k * size];
        let values: Vec<f32> = match table.dtype() {
            DType::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            DType::F16 => bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
            DType::Bf16 => bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
            other => {
                return Err(Error::Unsupported(format!(
                    "{}: a table of {}; expected F32, F16 or BF16",
                    self.name,
                    other.name()
                )));
            }
        };
        let overflow = |v: &&f32| v.is_finite() && !half::f16::from_f32(**v).is_finite();
        match values.iter().find(overflow) {
            Some(v) if self.dtype == DType::F16 => Err(Error::Checkpoint(format!(
                "{}: expected values that f16 can hold, got {v}; use --dtype bf16",
                self.name
            ))),
            _ => Ok(values),
        }
    }
}

/// Bytes of a piece of the ring: a few milliseconds of copying.
const RING_BYTES: usize = 16 << 20;
/// One is packed, one is copied, one is in line.
const RING_LEN: usize = 3;

/// Page-locked pieces in turn, copied by a stream of their own.
struct Ring {
    stream: Stream,
    pieces: Vec<(PinnedBuffer, Event)>,
    next: usize,
}

impl Ring {
    fn new(device: &Arc<Device>, piece_bytes: usize) -> Result<Ring> {
        let piece = || Ok((PinnedBuffer::new(device, "weights in transit", piece_bytes)?, Event::new(device)?));
        Ok(Ring {
            stream: Stream::new(device)?,
            pieces: (0..RING_LEN).map(|_| piece()).collect::<Result<_>>()?,
            next: 0,
        })
    }

    /// Has `write` fill a piece and starts its copy.
    fn send(&mut self, to: DeviceSlice, write: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        let (buffer, copied) = &mut self.pieces[self.next];
        copied.wait()?;
        write(&mut buffer.as_mut_slice()[..to.bytes()])?;
        // SAFETY: the piece is not written before `copied` has passed, which is recorded right after the copy.
        unsafe { buffer.copy_to_device(0..to.bytes(), &to, &self.stream)? };
        copied.record(&self.stream)?;
        self.next = (self.next + 1) % RING_LEN;
        Ok(())
    }

    fn finish(self) -> Result<()> {
        self.stream.synchronize()
    }
}

impl Drop for Ring {
    /// Pieces must outlive their copies, also after an error.
    fn drop(&mut self) {
        let _ = self.stream.synchronize();
    }
}
