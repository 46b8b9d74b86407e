//! The end of a step that gives logits: a token is chosen from every row, and the choices are all that is copied back.
//!
//! In: a graph whose output is rows of logits; a step's settings, which travel with its arrays (`staging.rs`). Out: two
//! launches a bucket, choices on the host. Owns: the block that choices lie in. Not here: how a token is chosen
//! (`ops/sampling.rs`), what becomes of rows that are left to the host (`run/`).

use super::backend::Shared;
use super::driver::{DeviceBuffer, DeviceSlice, PinnedBuffer};
use super::ops::sampling::{MAX_ROWS, MAX_VOCAB, Sampling};
use super::staging::{Staging, StagingLayout};
use super::{Cuda, Launch};
use crate::backend::Bucket;
use crate::backend::sampling::{Choices, SamplingBatch, SamplingChoice, SamplingLimits, SamplingTop};
use crate::graph::{Dim, Graph, NodeId, Sizes, Sym};
use crate::{Error, Result};

/// 16 KiB of token ids a row, more different tokens than a prompt of usual length has; as many likely tokens as clients
/// of the common interfaces may ask for.
pub const LIMITS: SamplingLimits = SamplingLimits { ids: 4096, top: 20 };

const ALIGN: usize = 256;

/// An output that tokens are chosen from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logits {
    pub node: NodeId,
    /// Under the bucket's sizes.
    pub rows: usize,
    pub vocab: usize,
}

/// The logits of a graph: its only output, a row of them for each of [`Sym::LogitRows`]. None too where there are more of
/// either than the kernels take.
pub fn logits_of(graph: &Graph, bucket: &Sizes) -> Option<Logits> {
    let [node] = graph.outputs[..] else { return None };
    let shape = &graph.node(node).ty.shape;
    let (rows, vocab) = (shape.rows().eval(bucket), shape.cols()?);
    let fits = (1..=MAX_ROWS).contains(&rows) && (1..=MAX_VOCAB).contains(&vocab);
    (fits && shape.rows() == Dim::from(Sym::LogitRows)).then_some(Logits { node, rows, vocab })
}

/// Where things lie in the block, in bytes from its start: choices first, as a step copies a beginning of the block.
struct BlockLayout {
    top: usize,
    tokens: usize,
    partials: usize,
    bytes: usize,
}

impl BlockLayout {
    fn new(rows: usize) -> BlockLayout {
        let top = rows * size_of::<SamplingChoice>();
        let tokens = (top + rows * LIMITS.top * size_of::<SamplingTop>()).next_multiple_of(ALIGN);
        let partials = (tokens + rows * 4).next_multiple_of(ALIGN);
        BlockLayout { top, tokens, partials, bytes: partials + Sampling::partials_bytes(rows) }
    }
}

/// Bytes of the block; 0 for a graph without logits.
pub fn block_bytes(graph: &Graph, buckets: &[Bucket]) -> usize {
    let logits = buckets.iter().filter_map(|b| logits_of(graph, &b.sizes));
    logits.map(|l| BlockLayout::new(l.rows).bytes).max().unwrap_or(0)
}

/// Most bytes that a step copies back.
pub fn result_bytes(graph: &Graph, buckets: &[Bucket]) -> usize {
    let logits = buckets.iter().filter_map(|b| logits_of(graph, &b.sizes));
    logits.map(|l| BlockLayout::new(l.rows).tokens).max().unwrap_or(0)
}

/// The block.
pub struct Chooser {
    block: DeviceBuffer,
}

impl Chooser {
    /// None for a graph whose tokens the host chooses in some bucket. Errors: out of memory.
    pub fn new(shared: &Shared, graph: &Graph, buckets: &[Bucket]) -> Result<Option<Chooser>> {
        if buckets.iter().any(|b| logits_of(graph, &b.sizes).is_none()) {
            return Ok(None);
        }
        let block = shared.cuda.device().alloc("choices of a step", block_bytes(graph, buckets))?;
        block.all().fill(&shared.stream, 0)?;
        Ok(Some(Chooser { block }))
    }

    /// The launches that choose from `values`, `[rows, vocab]` f32.
    pub fn launches(
        &self,
        cuda: &Cuda,
        logits: Logits,
        values: DeviceSlice,
        staging: &Staging,
        place: &StagingLayout,
    ) -> Result<Vec<Launch>> {
        let Logits { rows, vocab, .. } = logits;
        let lacks = |what: &str| Error::Internal(format!("sampling: {what} are not sent"));
        let sent = place.sampling().ok_or_else(|| lacks("settings"))?;
        let count = place.size_offset(Sym::LogitRows.into()).ok_or_else(|| lacks("rows"))?;
        let at = BlockLayout::new(rows);
        let op = Sampling {
            logits: values,
            settings: staging.slice(sent.settings.0, sent.settings.1)?,
            ids: staging.slice(sent.ids.0, sent.ids.1)?,
            partials: self.block.slice(at.partials, at.bytes - at.partials)?,
            chosen: self.block.slice(0, at.top)?,
            top: self.block.slice(at.top, at.tokens - at.top)?,
            tokens: self.block.slice(at.tokens, at.partials - at.tokens)?,
            rows,
            vocab,
            max_top: LIMITS.top,
            num_rows: Some(staging.slice(count, 4)?),
        };
        op.prepare(cuda)
    }

    /// Copies the choices of a bucket of `bucket_rows` back, waits for them and hands them over.
    pub fn read(
        &self,
        shared: &Shared,
        through: &mut PinnedBuffer,
        bucket_rows: usize,
        rows: &SamplingBatch,
        into: &mut Choices,
    ) -> Result<()> {
        let count = rows.settings().len();
        let top_stride = if rows.settings().iter().any(|s| s.num_top > 0) { LIMITS.top } else { 0 };
        into.top_stride = top_stride;
        into.rows.clear();
        into.top.clear();
        if count == 0 {
            return Ok(());
        }
        let chosen = count * size_of::<SamplingChoice>();
        let first = BlockLayout::new(bucket_rows).top;
        let top = count * top_stride * size_of::<SamplingTop>();
        let bytes = if top > 0 { first + top } else { chosen };
        // SAFETY: the stream is waited for before the bytes are read.
        unsafe { through.copy_from_device(&self.block.slice(0, bytes)?, &shared.stream)? };
        shared.stream.synchronize()?;
        let host = &through.as_slice()[..bytes];
        // Page-locked memory starts on a page.
        into.rows.extend_from_slice(bytemuck::cast_slice(&host[..chosen]));
        if top > 0 {
            into.top.extend_from_slice(bytemuck::cast_slice(&host[first..]));
        }
        Ok(())
    }
}
