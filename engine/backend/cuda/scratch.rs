//! Work memory of operations, and constants that they read.
//!
//! In: a plan, its buckets. Out: device memory for the most demanding launch; launches run one after another, so one
//! block serves them all. Owns: that memory. Not here: how much a launch needs (`ops/`).

use super::backend::Shared;
use super::driver::{DeviceBuffer, DeviceSlice};
use super::ops::linear::{self, Work, WorkBytes};
use super::ops::{attention, fused, paged_attention};
use crate::backend::Bucket;
use crate::graph::{Graph, Op, Plan, Qkv, Rotary, WeightId};
use crate::{Error, Result};

const ALIGN: usize = 256;
/// Rows of a head of q, k or v are padded to a multiple of this: heads then start on 32-byte sectors.
pub const HEAD_ROWS: usize = 2;

/// Bytes by use.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScratchBytes {
    /// Of launches that split their sums over blocks.
    work: WorkBytes,
    /// q, k and v of a layer, side by side or head by head.
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
        let mut all = ScratchBytes { constants: tables(graph).map(table_bytes).sum(), ..Default::default() };
        for node in &graph.nodes {
            if let Op::PagedAttention { heads, .. } = &node.op {
                let table = &graph.node(node.inputs[1]).ty.shape.0;
                for bucket in buckets {
                    let [seqs, blocks] = [0, 1].map(|i| table[i].eval(&bucket.sizes));
                    all.add(paged_attention::work_bytes(heads, seqs, blocks, multiprocessors));
                }
            }
            // The input that has a row a key.
            let attention = match &node.op {
                Op::Attention(heads) => Some((heads, 1)),
                Op::SelfAttention { heads, .. } => Some((heads, 0)),
                _ => None,
            };
            if let Some((heads, keys)) = attention {
                let rows_of = |i: usize| graph.node(node.inputs[i]).ty.shape.rows();
                // Cumulative lengths come last.
                let dims = [rows_of(0), rows_of(keys), rows_of(node.inputs.len() - 1).without_plus()];
                for bucket in buckets {
                    let [rows, keys, segments] = dims.map(|dim| dim.eval(&bucket.sizes));
                    all.add(attention::work_bytes(heads, rows, keys, segments, multiprocessors));
                }
            }
            if let Op::QkvRope { norm: Some(norm), .. }
            | Op::GatedLinear { norm: Some(norm), .. }
            | Op::NormLinear { norm, .. } = &node.op
            {
                let rows = node.ty.shape.rows().eval(&plan.bucket);
                let bytes = rows * plan.layout.stride(matrix(&norm.weight).0) * plan.layout.float_bytes;
                all.normed = all.normed.max(bytes.next_multiple_of(ALIGN));
                if let Op::NormLinear { gathered: true, .. } = &node.op {
                    all.gathered = all.gathered.max(bytes.next_multiple_of(ALIGN));
                }
            }
            let (columns, k) = match &node.op {
                Op::NormLinear { weight, .. } => matrix(weight),
                Op::Linear { weight, .. } | Op::LinearAdd { weight, .. } | Op::LinearActivation { weight, .. } => {
                    matrix(weight)
                }
                // One launch leaves nothing between the product and the pages.
                Op::QkvRope { qkv: q, rotary, .. } if fused::section_ends(rotary).is_some() => qkv(q),
                Op::SelfAttention { qkv: q, .. } | Op::QkvRope { qkv: q, .. } => {
                    let rows = node.ty.shape.rows().eval(&plan.bucket);
                    let rows = rows.next_multiple_of(HEAD_ROWS);
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

/// Tables of rotary embeddings, one of each.
fn tables(graph: &Graph) -> impl Iterator<Item = &Rotary> {
    let table = |op| match op {
        &Op::Rope { ref rotary, .. } | &Op::QkvRope { ref rotary, .. } => Some(rotary),
        _ => None,
    };
    let mut seen: Vec<&Rotary> = Vec::new();
    graph.nodes.iter().filter_map(move |n| table(&n.op)).filter(move |t| {
        let new = !seen.contains(t);
        if new {
            seen.push(t);
        }
        new
    })
}

/// Frequencies, then the component of each where there are several.
fn table_bytes(table: &Rotary) -> usize {
    [table.inv_freq().len(), table.component().len()].map(|n| (n * 4).next_multiple_of(ALIGN)).iter().sum()
}

/// A rotary embedding in device memory.
pub struct RotaryTable<'a> {
    /// `[frequencies]` f32.
    pub inv_freq: DeviceSlice<'a>,
    /// `[frequencies]` i32; none where there is one component.
    pub component: Option<DeviceSlice<'a>>,
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
    tables: Vec<(Rotary, usize)>,
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
            let RotaryTable { inv_freq, component } = scratch.table_at(table, *start)?;
            inv_freq.copy_from_host(&shared.stream, bytemuck::cast_slice(table.inv_freq()))?;
            if let Some(component) = component {
                component.copy_from_host(&shared.stream, bytemuck::cast_slice(table.component()))?;
            }
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

    /// The tables of a rotary embedding.
    pub fn table(&self, table: &Rotary) -> Result<RotaryTable<'_>> {
        let start = self.tables.iter().find(|(t, _)| t == table).map(|(_, start)| *start);
        self.table_at(table, start.ok_or_else(|| Error::Internal("a table that was not uploaded".into()))?)
    }

    fn table_at(&self, table: &Rotary, start: usize) -> Result<RotaryTable<'_>> {
        let bytes = table.inv_freq().len() * 4;
        let inv_freq = self.constants.slice(start, bytes)?;
        let component = match table.component() {
            [] => None,
            _ => Some(self.constants.slice(start + bytes.next_multiple_of(ALIGN), bytes)?),
        };
        Ok(RotaryTable { inv_freq, component })
    }
}
