//! Arrays of a step on their way to the GPU: one block of page-locked memory, copied as one.
//!
//! In: sizes and input arrays of a run. Out: the same on the device, where prepared launches look for them. Owns: both
//! blocks and where each array lies, which depends on the bucket alone. Not here: what the arrays mean.

use std::collections::HashMap;

use rayon::prelude::*;

use super::chooser;
use super::driver::{DeviceBuffer, DeviceSlice, Event, PinnedBuffer, Stream};
use crate::backend::Input;
use crate::backend::sampling::{SamplingBatch, SamplingSettings};
use crate::graph::{Dim, Graph, Kind, Layout, NodeId, Plan, Sizes, Sym};
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
    sampling: Option<SamplingPlace>,
    bytes: usize,
}

/// Where the settings of sampled rows lie, and after them their lists of token ids, of which a step sends as much as it
/// has. Bytes from the start of the block, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SamplingPlace {
    pub settings: (usize, usize),
    pub ids: (usize, usize),
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
        let sampling = chooser::logits_of(graph, bucket).map(|logits| {
            let settings = (at, logits.rows * size_of::<SamplingSettings>());
            let start = (at + settings.1).next_multiple_of(layout.value_align);
            let ids = (start, logits.rows * chooser::LIMITS.ids * 4);
            at = start + ids.1;
            SamplingPlace { settings, ids }
        });
        StagingLayout { dims, arrays, sampling, bytes: at }
    }

    /// Bytes of the block.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes from the start of the block to the i32 that holds a size.
    pub fn size_offset(&self, dim: Dim) -> Option<usize> {
        self.dims.iter().position(|d| *d == dim).map(|i| i * 4)
    }

    /// Of a graph whose logits tokens are chosen from.
    pub fn sampling(&self) -> Option<SamplingPlace> {
        self.sampling
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
    /// stride. `rows` says how tokens are chosen; without it the logits stay as they are.
    pub fn send(
        &mut self,
        plan: &Plan,
        place: &StagingLayout,
        dtype: DType,
        (sizes, inputs, rows): (&Sizes, &[Input], Option<&SamplingBatch>),
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
                Input::Byte(x) => x.len(),
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
                Input::Byte(x) if node.ty.kind == Kind::Byte => match to.get_mut(..x.len()) {
                    Some(to) => to.copy_from_slice(x),
                    None => return Err(fault("larger than the bucket".into())),
                },
                _ => return Err(fault("of the wrong kind".into())),
            }
        }
        let end = match place.sampling {
            Some(place) => write_sampling(host, place, sizes.get(Sym::LogitRows), rows)?,
            None => place.bytes,
        };
        // SAFETY: the block is not written before `copied` has passed, which is recorded right after the copy.
        unsafe { self.host.copy_to_device(0..end, &self.device.slice(0, end)?, stream)? };
        self.copied.record(stream)
    }
}

/// Writes the settings of `count` rows and their lists; says where the last of it ends.
fn write_sampling(
    host: &mut [u8],
    SamplingPlace { settings, ids }: SamplingPlace,
    count: usize,
    rows: Option<&SamplingBatch>,
) -> Result<usize> {
    let bytes = count * size_of::<SamplingSettings>();
    let fault = |what: String| Error::Internal(format!("sampling {count} rows, {what}"));
    if bytes > settings.1 {
        return Err(fault("more than the bucket has".into()));
    }
    let to = &mut host[settings.0..][..bytes];
    let Some(rows) = rows else {
        let none = SamplingSettings::default();
        to.chunks_exact_mut(size_of_val(&none)).for_each(|row| row.copy_from_slice(bytemuck::bytes_of(&none)));
        return Ok(settings.0 + bytes);
    };
    if rows.settings().len() != count {
        return Err(fault(format!("given {}", rows.settings().len())));
    }
    to.copy_from_slice(bytemuck::cast_slice(rows.settings()));
    if rows.ids().is_empty() {
        return Ok(settings.0 + bytes);
    }
    let list: &[u8] = bytemuck::cast_slice(rows.ids());
    let to = host[ids.0..][..ids.1].get_mut(..list.len()).ok_or_else(|| fault(format!("{} ids", rows.ids().len())))?;
    to.copy_from_slice(list);
    Ok(ids.0 + list.len())
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
    use crate::graph::{Builder, Shape};

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
    fn settings_follow_the_arrays_and_lists_are_sent_as_far_as_they_go() {
        let b = Builder::new("g");
        let x = b.float_input("x", Shape::matrix(Sym::LogitRows, 12));
        let y = b.linear("y", x, 40);
        let graph = b.finish(&[y]).unwrap();
        let layout = Layout { float_bytes: 2, row_align: 8, value_align: 256 };
        let place = StagingLayout::new(&graph, &Sizes::default().with(Sym::LogitRows, 3), &layout);
        let sampling = place.sampling().unwrap();
        let ids = 3 * chooser::LIMITS.ids * 4;
        assert_eq!(sampling, SamplingPlace { settings: (512, 192), ids: (768, ids) });
        assert_eq!(place.bytes(), 768 + ids);

        let mut host = vec![0xff; place.bytes()];
        let none = bytemuck::bytes_of(&SamplingSettings::default()).repeat(2);
        assert_eq!(write_sampling(&mut host, sampling, 2, None).unwrap(), 512 + 128);
        assert_eq!((&host[512..640], host[640]), (none.as_slice(), 0xff));
        let mut rows = SamplingBatch::default();
        rows.push_for_host();
        rows.push(&chooser::LIMITS, SamplingSettings::default(), [&[], &[]], |_| {});
        assert_eq!(write_sampling(&mut host, sampling, 2, Some(&rows)).unwrap(), 512 + 128);
        rows.push(&chooser::LIMITS, SamplingSettings::default(), [&[7, 5], &[]], |ban| ban(6));
        assert_eq!(write_sampling(&mut host, sampling, 3, Some(&rows)).unwrap(), 768 + 12);
        assert_eq!(host[768..780], [7, 5, 6].map(i32::to_ne_bytes).concat());
        // Rows that the step does not have, or the bucket.
        assert!(write_sampling(&mut host, sampling, 2, Some(&rows)).is_err());
        assert!(write_sampling(&mut host, sampling, 4, None).is_err());
        let place = SamplingPlace { ids: (768, 8), ..sampling };
        assert!(write_sampling(&mut host, place, 3, Some(&rows)).is_err());
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
