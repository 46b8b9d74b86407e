//! Rows from one place to another (kernels/rows.cu): embeddings, gathers, scatters, segments.
//!
//! In: matrices and row numbers on the device. Out: the launch. Not here: where row numbers come from; they are
//! trusted.

use super::row_grid::{Rows, piece_width, row_grid};
use crate::backend::cuda::{Cuda, DeviceSlice, Launch, ops};
use crate::tensor::DType;
use crate::{Error, Result};

/// Mirrors `RowsArgs` in kernels/rows.cu.
#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct RowsArgs {
    x: u64,
    other: u64,
    y: u64,
    index: u64,
    other_index: u64,
    num_rows: u64,
    num_segments: u64,
    x_stride: i64,
    other_stride: i64,
    y_stride: i64,
    rows: i32,
    width: i32,
    segments: i32,
    period: i32,
}
const _: () = assert!(size_of::<RowsArgs>() == 96);

/// Which rows go to y. Index arrays are i32, one number a row.
#[derive(Debug, Clone, Copy)]
pub enum RowMove<'a> {
    /// `y[t] = table[ids[t]]`
    Embedding { table: Rows<'a>, ids: DeviceSlice<'a> },
    /// `y[t] = image_rows[t] < 0 ? table[ids[t]] : slab[image_rows[t]]`
    EmbedMerge { table: Rows<'a>, ids: DeviceSlice<'a>, image_rows: DeviceSlice<'a>, slab: Rows<'a> },
    /// `y[i] = x[index[i]]`
    Gather { x: Rows<'a>, index: DeviceSlice<'a> },
    /// `y[index[i]] = x[i]`, skipped where the index is negative; no row of y may occur twice.
    Scatter { x: Rows<'a>, index: DeviceSlice<'a> },
    /// `y[i] = x[i % period]`; x has `period` rows.
    Broadcast { x: Rows<'a>, period: usize },
    /// For each segment s: rows `cu_a[s]..cu_a[s + 1]` of a, then rows `cu_b[s]..cu_b[s + 1]` of b. `segments` of the
    /// launch, those of the batch in `num_segments` (one i32) where that is given.
    Concat {
        a: Rows<'a>,
        cu_a: DeviceSlice<'a>,
        b: Rows<'a>,
        cu_b: DeviceSlice<'a>,
        segments: usize,
        num_segments: Option<DeviceSlice<'a>>,
    },
}

/// One launch over `[rows, width]`.
pub struct MoveRows<'a> {
    pub kind: RowMove<'a>,
    /// A type of two bytes.
    pub dtype: DType,
    /// `[rows, width]`; of a scatter the slab, `[.., width]`.
    pub y: Rows<'a>,
    /// Rows of the launch; those of the batch where `num_rows` is none.
    pub rows: usize,
    pub width: usize,
    /// One i32 on the device: rows of the batch, at most `rows`.
    pub num_rows: Option<DeviceSlice<'a>>,
}

impl MoveRows<'_> {
    /// Errors: slices too small, no such type, the driver's.
    pub fn prepare(&self, cuda: &Cuda) -> Result<Launch> {
        let rows = self.rows;
        let mut args = RowsArgs::default();
        // Matrices with the rows that they are known to have, index arrays with their length.
        let (op, matrices, indices) = match self.kind {
            RowMove::Embedding { table, ids } => ("embedding", vec![(table, 1)], vec![(ids, rows)]),
            RowMove::Gather { x, index } => ("embedding", vec![(x, 1)], vec![(index, rows)]),
            RowMove::EmbedMerge { table, ids, image_rows, slab } => {
                ("embed_merge", vec![(table, 1), (slab, 1)], vec![(ids, rows), (image_rows, rows)])
            }
            RowMove::Scatter { x, index } => ("scatter_rows", vec![(x, rows)], vec![(index, rows)]),
            RowMove::Broadcast { x, period } => {
                args.period = i32::try_from(period)
                    .ok()
                    .filter(|p| *p > 0)
                    .ok_or_else(|| Error::Internal(format!("broadcast_rows: copies of {period} rows")))?;
                ("broadcast_rows", vec![(x, period)], vec![])
            }
            RowMove::Concat { a, cu_a, b, cu_b, segments, num_segments } => {
                args.segments = i32::try_from(segments)
                    .ok()
                    .filter(|s| *s > 0)
                    .ok_or_else(|| Error::Internal(format!("concat_segments: {segments} segments")))?;
                args.num_segments = num_segments.map_or(0, |n| n.address());
                ("concat_segments", vec![(a, 0), (b, 0)], vec![(cu_a, segments + 1), (cu_b, segments + 1)])
            }
        };
        if self.dtype.size() != 2 {
            return Err(Error::Unsupported(format!("{op}: rows of type {} on cuda", self.dtype.name())));
        }
        let y_rows = if matches!(self.kind, RowMove::Scatter { .. }) { 1 } else { rows };
        ops::check_rows(op, "y", &self.y.slice, y_rows, self.width, self.y.stride, self.dtype)?;
        for (m, known) in &matrices {
            if *known > 0 {
                ops::check_rows(op, "x", &m.slice, *known, self.width, m.stride, self.dtype)?;
            }
        }
        for (index, length) in &indices {
            ops::check_bytes(op, "row numbers", index.bytes(), length * 4)?;
        }
        if let Some(num_rows) = &self.num_rows {
            ops::check_bytes(op, "num_rows", num_rows.bytes(), 4)?;
        }
        let all: Vec<Rows> = matrices.iter().map(|m| m.0).chain([self.y]).collect();
        let piece = piece_width(self.width, &all);
        let config = row_grid(op, rows, self.width, piece)?;
        let function = cuda.kernel("rows", &format!("{op}_b16_v{piece}"))?;
        let matrix = |n: usize| matrices.get(n).map_or((0, 0), |(m, _)| (m.slice.address(), m.stride as i64));
        let index = |n: usize| indices.get(n).map_or(0, |(i, _)| i.address());
        let args = RowsArgs {
            x: matrix(0).0,
            other: matrix(1).0,
            y: self.y.slice.address(),
            index: index(0),
            other_index: index(1),
            num_rows: self.num_rows.map_or(0, |n| n.address()),
            x_stride: matrix(0).1,
            other_stride: matrix(1).1,
            y_stride: self.y.stride as i64,
            // Both fit, or the grid would not have been made.
            rows: rows as i32,
            width: self.width as i32,
            ..args
        };
        // SAFETY: the struct is the kernel's; the slices hold all that it touches as far as sizes say, and row numbers
        // are the scheduler's.
        unsafe { Launch::new(function, config, &args) }
    }
}
