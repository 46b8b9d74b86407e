//! Work memory of operations, and constants that they read.
//!
//! In: a plan, its buckets. Out: device memory for the most demanding launch; launches run one after another, so one
//! block serves them all. Owns: that memory. Not here: how much a launch needs (`ops/`).

use std::sync::Arc;

use super::backend::Shared;
use super::driver::{DeviceBuffer, DeviceSlice};
use super::ops::fused::NORM_ROWS;
use super::ops::linear::{self, Work, WorkBytes};
use super::ops::paged_attention;
use crate::backend::Bucket;
use crate::graph::{Graph, Op, Plan, Qkv, WeightId};
use crate::{Error, Result};

const ALIGN: usize = 256;

/// Bytes by use.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScratchBytes {
    /// Of launches that split their sums over blocks.
    work: WorkBytes,
    /// q, k and v of a layer, side by side.
    qkv: usize,
    /// The norm of a layer's input, where it takes a launch of its own.
    normed: usize,
    /// Rows of a layer's input that are chosen from more.
    gathered: usize,
    constants: usize,
}

impl ScratchBytes {
    /// For all launches of a plan.
    pub fn of(plan: &Plan, buckets: &[Bucket], multiprocessors: usize) -> ScratchBytes {
        let graph = &plan.graph;
        let matrix = |w: &WeightId| (graph.weight(*w).shape[0], graph.weight(*w).shape[1..].iter().product::<usize>());
        let qkv = |q: &Qkv| (q.weights.iter().map(|w| matrix(w).0).sum::<usize>(), matrix(&q.weights[0]).1);
        let mut all = ScratchBytes { constants: tables(graph).map(|t| table_bytes(t)).sum(), ..Default::default() };
        for node in &graph.nodes {
            if let Op::PagedAttention { heads, .. } = &node.op {
                let table = &graph.node(node.inputs[1]).ty.shape.0;
                for bucket in buckets {
                    let [seqs, blocks] = [0, 1].map(|i| table[i].eval(&bucket.sizes));
                    all.add(paged_attention::work_bytes(heads, seqs, blocks, multiprocessors));
                }
            }
            if let Op::QkvRope { norm: Some(norm), .. }
            | Op::GatedLinear { norm: Some(norm), .. }
            | Op::NormLinear { norm, .. } = &node.op
            {
                let rows = node.ty.shape.rows().eval(&plan.bucket);
                let bytes = rows * plan.layout.stride(matrix(&norm.weight).0) * plan.layout.float_bytes;
                if rows > NORM_ROWS {
                    all.normed = all.normed.max(bytes.next_multiple_of(ALIGN));
                }
                if let Op::NormLinear { gathered: true, .. } = &node.op {
                    all.gathered = all.gathered.max(bytes.next_multiple_of(ALIGN));
                }
            }
            let (columns, k) = match &node.op {
                Op::NormLinear { weight, .. } => matrix(weight),
                Op::Linear { weight, .. } | Op::LinearAdd { weight, .. } | Op::LinearActivation { weight, .. } => {
                    matrix(weight)
                }
                Op::SelfAttention { qkv: q, .. } | Op::QkvRope { qkv: q, .. } => {
                    let rows = node.ty.shape.rows().eval(&plan.bucket);
                    let bytes = rows * plan.layout.stride(qkv(q).0) * plan.layout.float_bytes;
                    all.qkv = all.qkv.max(bytes.next_multiple_of(ALIGN));
                    qkv(q)
                }
                Op::GatedLinear { gate, .. } => (2 * matrix(gate).0, matrix(gate).1),
                _ => continue,
            };
            for bucket in buckets {
                let rows = node.ty.shape.rows().eval(&bucket.sizes);
                all.add(linear::work_bytes(rows, columns, k, multiprocessors));
            }
        }
        all
    }

    fn add(&mut self, need: WorkBytes) {
        self.work.partial_bytes = self.work.partial_bytes.max(need.partial_bytes);
        self.work.arrived_bytes = self.work.arrived_bytes.max(need.arrived_bytes);
    }

    pub fn total(&self) -> usize {
        self.work.partial_bytes + self.work.arrived_bytes + self.qkv + self.normed + self.gathered + self.constants
    }
}

/// Tables of frequencies, those of equal nodes again and again.
fn tables(graph: &Graph) -> impl Iterator<Item = &Arc<[f32]>> {
    let table = |op| match op {
        &Op::Rope { ref inv_freq, .. } | &Op::QkvRope { ref inv_freq, .. } => Some(inv_freq),
        _ => None,
    };
    let mut seen: Vec<&Arc<[f32]>> = Vec::new();
    graph.nodes.iter().filter_map(move |n| table(&n.op)).filter(move |t| {
        let new = !seen.contains(t);
        if new {
            seen.push(t);
        }
        new
    })
}

fn table_bytes(table: &[f32]) -> usize {
    (table.len() * 4).next_multiple_of(ALIGN)
}

/// The memory.
pub struct Scratch {
    partial: DeviceBuffer,
    arrived: DeviceBuffer,
    qkv: DeviceBuffer,
    normed: DeviceBuffer,
    gathered: DeviceBuffer,
    constants: DeviceBuffer,
    /// Bytes from the start of `constants`.
    tables: Vec<(Arc<[f32]>, usize)>,
}

impl Scratch {
    /// Errors: out of memory.
    pub fn new(shared: &Shared, plan: &Plan, buckets: &[Bucket]) -> Result<Scratch> {
        let device = shared.cuda.device();
        let bytes = ScratchBytes::of(plan, buckets, device.multiprocessors() as usize);
        let what = format!("work memory of the {}", plan.graph.name);
        let scratch = Scratch {
            partial: device.alloc(&what, bytes.work.partial_bytes)?,
            arrived: device.alloc(&what, bytes.work.arrived_bytes)?,
            qkv: device.alloc(&what, bytes.qkv)?,
            normed: device.alloc(&what, bytes.normed)?,
            gathered: device.alloc(&what, bytes.gathered)?,
            constants: device.alloc(&what, bytes.constants)?,
            tables: tables(&plan.graph)
                .scan(0, |at, table| {
                    let start = *at;
                    *at += table_bytes(table);
                    Some((table.clone(), start))
                })
                .collect(),
        };
        // Every launch leaves its counters at zero.
        scratch.arrived.all().fill(&shared.stream, 0)?;
        for (table, start) in &scratch.tables {
            let bytes = bytemuck::cast_slice::<f32, u8>(table);
            scratch.constants.slice(*start, bytes.len())?.copy_from_host(&shared.stream, bytes)?;
        }
        Ok(scratch)
    }

    pub fn work(&self) -> Work<'_> {
        Work { partial: self.partial.all(), arrived: self.arrived.all() }
    }

    /// Room for q, k and v of a layer.
    pub fn qkv(&self) -> &DeviceBuffer {
        &self.qkv
    }

    /// Room for the norm of a layer's input.
    pub fn normed(&self) -> &DeviceBuffer {
        &self.normed
    }

    /// Room for the rows of a layer's input that are chosen from more.
    pub fn gathered(&self) -> &DeviceBuffer {
        &self.gathered
    }

    /// A table of frequencies.
    pub fn table(&self, table: &Arc<[f32]>) -> Result<DeviceSlice<'_>> {
        let start = self.tables.iter().find(|(t, _)| t == table).map(|(_, start)| *start);
        let start = start.ok_or_else(|| Error::Internal("a table that was not uploaded".into()))?;
        self.constants.slice(start, table.len() * 4)
    }
}
