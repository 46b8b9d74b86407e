//! Arrays of a step on their way to the GPU: one block of page-locked memory, copied as one.
//!
//! In: sizes and input arrays of a run. Out: the same on the device, where prepared launches look for them. Owns: both
//! blocks and where each array lies, which depends on the bucket alone. Not here: what the arrays mean.

use std::collections::HashMap;

use rayon::prelude::*;

use super::driver::{DeviceBuffer, DeviceSlice, Event, PinnedBuffer, Stream};
use crate::backend::Input;
use crate::graph::{Dim, Graph, Kind, Layout, NodeId, Plan, Sizes};
use crate::tensor::DType;
use crate::{Error, Result};

/// Elements behind an array that are overwritten with [`POISON`].
const POISONED: usize = 64;
/// No row, token or length: a kernel that reads beyond its batch shall be seen.
const POISON: i32 = i32::MIN;

/// Where things lie in the block for one bucket.
#[derive(Debug, Clone)]
pub struct StagingLayout {
    /// Every size that launches read, an i32 each, from the start of the block.
    dims: Vec<Dim>,
    /// By input node: bytes from the start of the block, bytes under the bucket's sizes.
    arrays: HashMap<NodeId, (usize, usize)>,
    bytes: usize,
}

impl StagingLayout {
    pub fn new(graph: &Graph, bucket: &Sizes, layout: &Layout) -> StagingLayout {
        let mut dims: Vec<Dim> = Vec::new();
        for node in &graph.nodes {
            for dim in node.ty.shape.0.iter().flat_map(|d| [*d, d.without_plus()]) {
                if dim.constant().is_none() && !dims.contains(&dim) {
                    dims.push(dim);
                }
            }
        }
        let mut arrays = HashMap::new();
        let mut at = (dims.len() * 4).next_multiple_of(layout.value_align);
        for (id, node) in graph.inputs() {
            let bytes = layout.value_bytes(&node.ty, bucket);
            arrays.insert(id, (at, bytes));
            at = (at + bytes).next_multiple_of(layout.value_align);
        }
        StagingLayout { dims, arrays, bytes: at }
    }

    /// Bytes of the block.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes from the start of the block to the i32 that holds a size.
    pub fn size_offset(&self, dim: Dim) -> Option<usize> {
        self.dims.iter().position(|d| *d == dim).map(|i| i * 4)
    }

    /// (bytes from the start of the block, bytes) of an input.
    pub fn array(&self, id: NodeId) -> Option<(usize, usize)> {
        self.arrays.get(&id).copied()
    }
}

/// The blocks of a program.
pub struct Staging {
    host: PinnedBuffer,
    device: DeviceBuffer,
    /// Passed when the last copy has left the host's block.
    copied: Event,
}

impl Staging {
    /// Blocks for layouts of at most `bytes`.
    pub fn new(stream: &Stream, what: &str, bytes: usize) -> Result<Staging> {
        let device = stream.device();
        let what = format!("arrays of a step of the {what}");
        Ok(Staging {
            device: device.alloc(&what, bytes)?,
            host: PinnedBuffer::new(device, &what, bytes)?,
            copied: Event::new(device)?,
        })
    }

    /// A part of the block on the device.
    pub fn slice(&self, offset: usize, bytes: usize) -> Result<DeviceSlice<'_>> {
        self.device.slice(offset, bytes)
    }

    /// Writes the arrays of a run and puts one copy into the stream. Floats become `dtype`, in rows of the backend's
    /// stride.
    pub fn send(
        &mut self,
        plan: &Plan,
        place: &StagingLayout,
        dtype: DType,
        sizes: &Sizes,
        inputs: &[Input],
        stream: &Stream,
    ) -> Result<()> {
        let Plan { graph, layout, .. } = plan;
        // The GPU may still be reading what the last run left here.
        self.copied.wait()?;
        let host = self.host.as_mut_slice();
        for (i, dim) in place.dims.iter().enumerate() {
            let value = i32::try_from(dim.eval(sizes))
                .map_err(|_| Error::Internal(format!("{}: size {dim} beyond 32 bits", graph.name)))?;
            host[i * 4..][..4].copy_from_slice(&value.to_ne_bytes());
        }
        let mut given = inputs.iter();
        for (id, node) in graph.inputs() {
            let fault = |what: String| Error::Internal(format!("{}: input {} {what}", graph.name, node.name));
            let input = given.next().ok_or_else(|| fault("not given".into()))?;
            let (offset, bytes) = place.array(id).ok_or_else(|| fault("has no place".into()))?;
            let to = &mut host[offset..][..bytes];
            let want = node.ty.shape.elements(sizes);
            let got = match input {
                Input::Int(x) => x.len(),
                Input::Float(x) => x.len(),
            };
            if got != want {
                return Err(fault(format!("of {got} elements, expected {want}")));
            }
            match input {
                Input::Int(x) if node.ty.kind == Kind::Int => {
                    let Some((values, rest)) = to.split_at_mut_checked(x.len() * 4) else {
                        return Err(fault("larger than the bucket".into()));
                    };
                    values.copy_from_slice(bytemuck::cast_slice(x));
                    rest.chunks_exact_mut(4).take(POISONED).for_each(|b| b.copy_from_slice(&POISON.to_ne_bytes()));
                }
                Input::Float(x) if node.ty.kind == Kind::Float => {
                    let cols = node.ty.shape.cols().ok_or_else(|| fault("without a constant width".into()))?;
                    let row_bytes = layout.stride(cols) * dtype.size();
                    if x.len() / cols.max(1) * row_bytes > to.len() {
                        return Err(fault("larger than the bucket".into()));
                    }
                    to.par_chunks_mut(row_bytes).zip(x.par_chunks(cols)).for_each(|(to, row)| round(dtype, row, to));
                }
                _ => return Err(fault("of the wrong kind".into())),
            }
        }
        // SAFETY: the block is not written before `copied` has passed, which is recorded right after the copy.
        unsafe { self.host.copy_to_device(0..place.bytes, &self.device.slice(0, place.bytes)?, stream)? };
        self.copied.record(stream)
    }
}

/// Rounds floats to the start of `to`.
pub fn round(dtype: DType, from: &[f32], to: &mut [u8]) {
    let to = to.as_chunks_mut::<2>().0;
    match dtype {
        DType::F16 => to.iter_mut().zip(from).for_each(|(t, x)| *t = half::f16::from_f32(*x).to_ne_bytes()),
        _ => to.iter_mut().zip(from).for_each(|(t, x)| *t = half::bf16::from_f32(*x).to_ne_bytes()),
    }
}

/// Rows of `cols` values, `stride` apart, as f32 without gaps.
pub fn widen(dtype: DType, from: &[u8], cols: usize, stride: usize, to: &mut Vec<f32>) {
    for row in from.chunks(stride * dtype.size()) {
        let row = row.as_chunks::<2>().0.iter().take(cols);
        match dtype {
            DType::F16 => to.extend(row.map(|b| half::f16::from_ne_bytes(*b).to_f32())),
            _ => to.extend(row.map(|b| half::bf16::from_ne_bytes(*b).to_f32())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Builder, Shape, Sym};

    #[test]
    fn sizes_come_first_and_arrays_do_not_overlap() {
        let b = Builder::new("g");
        let x = b.float_input("x", Shape::matrix(Sym::Patches, 12));
        let cu = b.int_input("cu", [Dim::from(Sym::Images).plus(1)]);
        let y = b.linear("y", x, 4);
        let graph = b.finish(&[y]).unwrap();
        let layout = Layout { float_bytes: 2, row_align: 8, value_align: 256 };
        let place = StagingLayout::new(&graph, &Sizes::default().with(Sym::Patches, 33).with(Sym::Images, 2), &layout);
        let offsets = [Sym::Patches, Sym::Images].map(|s| place.size_offset(s.into()));
        assert!(offsets.iter().all(|o| o.is_some_and(|o| o < 12)) && offsets[0] != offsets[1], "{offsets:?}");
        assert!(place.size_offset(Dim::from(Sym::Images).plus(1)).is_some());
        assert_eq!(place.size_offset(Sym::Tokens.into()), None);
        assert_eq!((place.array(x), place.array(cu)), (Some((256, 33 * 16 * 2)), Some((1536, 12))));
        assert_eq!(place.bytes(), 1792);
    }

    #[test]
    fn rows_are_rounded_and_widened() {
        for dtype in [DType::F16, DType::Bf16] {
            let mut bytes = vec![0xff; 2 * 8 * 2];
            round(dtype, &[1.0, -2.5, 3.0], &mut bytes);
            round(dtype, &[0.5, 8.0, 0.0], &mut bytes[16..]);
            let mut back = Vec::new();
            widen(dtype, &bytes, 3, 8, &mut back);
            assert_eq!(back, [1.0, -2.5, 3.0, 0.5, 8.0, 0.0]);
        }
    }
}
