//! Where the two rivers meet: a scheduler's batch goes through the programs that models and backend made.
//!
//! In: a backend, a family, a checkpoint; batches and tiles. Out: rows of logits, or tokens where the device chooses them.
//! Owns: the compiled programs. Not here: which sequence runs, how it is sampled.

use super::choose::Row;
use crate::backend::sampling::{Choices, SamplingBatch, SamplingLimits};
use crate::backend::{Backend, Bucket, Input, Needs, Probe, Program, WeightHandle};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::storage::convert;
use crate::graph::fuse::Fusion;
use crate::graph::{Graph, Layout, Plan, Sizes, Sym, Weight, fuse, plan};
use crate::models::{Array, Family, Tile};
use crate::schedule::BatchInputs;
use crate::tensor::DType;
use crate::{Error, Result};

/// Sizes that programs are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecutorOptions {
    pub max_num_seqs: usize,
    pub max_num_batched_tokens: usize,
    /// Entries of a block table row.
    pub max_blocks: usize,
    pub num_pages: usize,
    pub slab_rows: usize,
    /// Patches of one encoder run.
    pub max_patches: usize,
    /// Keeps values in memory of their own, so that all can be looked at.
    pub probing: Option<Probing>,
    /// Type that matrices are rounded to; `None` keeps the stored one.
    pub dtype: Option<DType>,
}

/// Which values can be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probing {
    /// Those of every primitive.
    Primitives,
    /// Those of the operations that run without a probe, fused ones among them.
    Fused,
}

/// The programs of one model on one backend.
pub struct Executor {
    encoder: Box<dyn Program>,
    decoder: Box<dyn Program>,
    max_patches: usize,
    max_images: usize,
    /// What the decoder takes where it chooses tokens itself.
    sampling: Option<SamplingLimits>,
    choices: Choices,
    logits: Vec<f32>,
}

impl Executor {
    /// Loads the weights that the graphs ask for and compiles the programs. Tensors that no graph asks for are left alone.
    pub fn load(
        backend: &mut dyn Backend,
        family: &dyn Family,
        checkpoint: &Checkpoint,
        options: &ExecutorOptions,
    ) -> Result<Executor> {
        let plans = Plans::new(family, options, backend)?;
        let max_images = plans.encoder.bucket.get(Sym::Images);
        let mut compile = |plan: Plan, buckets: &[Bucket]| {
            for node in &plan.graph.nodes {
                backend.supports(&plan.graph, node).map_err(|e| {
                    Error::Unsupported(format!("{} ({}) on {}: {e}", node.name, node.op.name(), backend.info().name))
                })?;
            }
            let weights = load_weights(backend, checkpoint, &plan.graph, options.dtype)?;
            backend.compile(plan, buckets, &weights)
        };
        let encoder = compile(plans.encoder, &plans.encoder_buckets)?;
        let decoder = compile(plans.decoder, &plans.decoder_buckets)?;
        Ok(Executor {
            sampling: decoder.sampling(),
            encoder,
            decoder,
            max_patches: options.max_patches,
            max_images,
            choices: Choices::default(),
            logits: Vec::new(),
        })
    }

    /// What rows may ask of the device; `None` where it gives logits only.
    pub fn sampling(&self) -> Option<SamplingLimits> {
        self.sampling
    }

    /// Encodes tiles into the slab, each to the rows that start at its number.
    pub fn encode(
        &mut self,
        family: &dyn Family,
        tiles: &[(&Tile, usize)],
        mut probe: Option<&mut Probe>,
    ) -> Result<()> {
        let mut rest = tiles;
        while !rest.is_empty() {
            let mut patches = 0;
            let fits = |(tile, _): &&(&Tile, usize)| {
                patches += tile.patches;
                patches <= self.max_patches
            };
            let n = rest.iter().take(self.max_images).take_while(fits).count().max(1);
            let batch = family.encoder_batch(&rest[..n]);
            let inputs: Vec<Input> = batch
                .arrays
                .iter()
                .map(|a| match a {
                    Array::Float(x) => Input::Float(x),
                    Array::Int(x) => Input::Int(x),
                    Array::Byte(x) => Input::Byte(x),
                })
                .collect();
            let probe: Option<&mut Probe> = match probe.as_mut() {
                Some(p) => Some(&mut **p),
                None => None,
            };
            self.encoder.run(&batch.sizes, &inputs, probe)?;
            rest = &rest[n..];
        }
        Ok(())
    }

    /// Runs one step and gives what came of its rows, in their order. The device chooses tokens as `rows` says; without
    /// it, all rows are logits. A probe sees a step without choices, so it takes no `rows`.
    pub fn step(
        &mut self,
        b: &BatchInputs,
        rows: Option<&SamplingBatch>,
        probe: Option<&mut Probe>,
    ) -> Result<impl Iterator<Item = Row<'_>>> {
        let sizes = Sizes::default()
            .with(Sym::Tokens, b.token_ids.len())
            .with(Sym::Seqs, b.context_lens.len())
            .with(Sym::Blocks, b.block_table_stride)
            .with(Sym::LogitRows, b.logit_rows.len());
        // The order of `Builder::decoder_inputs`.
        let inputs = [
            &b.token_ids,
            &b.image_rows,
            &b.positions,
            &b.cu_seqlens_q,
            &b.context_lens,
            &b.block_table,
            &b.slot_mapping,
            &b.logit_rows,
        ]
        .map(|x| Input::Int(x));
        let count = b.logit_rows.len();
        match rows {
            Some(rows) => self.decoder.sample(&sizes, &inputs, rows, &mut self.choices)?,
            None => self.decoder.run(&sizes, &inputs, probe)?,
        }
        let on_host = rows.map(SamplingBatch::on_host);
        self.logits.clear();
        if on_host.is_none_or(|rows| rows.contains(&true)) {
            self.decoder.read(0, &mut self.logits)?;
        }
        let (logits, choices) = (&mut self.logits, &self.choices);
        let vocab = (logits.len() / count.max(1)).max(1);
        let mut logits = logits.chunks_exact_mut(vocab);
        Ok((0..count).map(move |row| {
            let logits = logits.next();
            match on_host.is_none_or(|rows| rows[row]) {
                true => Row::Logits(logits.unwrap_or_default()),
                false => {
                    let (choice, top) = choices.row(row);
                    Row::Choice(choice, top)
                }
            }
        }))
    }
}

/// The encoder and decoder graphs, and the largest sizes of their runs.
pub fn buckets(family: &dyn Family, o: &ExecutorOptions) -> Result<[(Graph, Sizes); 2]> {
    let (tile_patches, tile_rows) = family.largest_tile();
    // Small tiles are batched until their patches fill the bucket; a tile has at least as many patches as rows only
    // by habit, so the number of images is bounded on its own.
    let max_images = (o.max_patches / tile_patches.max(1)).max(1) * 16;
    let state = Sizes::default().with(Sym::Pages, o.num_pages).with(Sym::SlabRows, o.slab_rows);
    let encoder = state
        .with(Sym::Patches, o.max_patches)
        .with(Sym::Images, max_images)
        .with(Sym::ContextRows, o.max_patches + max_images * tile_rows);
    let decoder = state
        .with(Sym::Tokens, o.max_num_batched_tokens)
        .with(Sym::Seqs, o.max_num_seqs)
        .with(Sym::Blocks, o.max_blocks)
        .with(Sym::LogitRows, o.max_num_seqs);
    Ok([(family.encoder()?, encoder), (family.decoder()?, decoder)])
}

/// Fused, unless every primitive's value shall be seen, and planned.
pub fn compiled_plan(
    graph: Graph,
    bucket: Sizes,
    layout: Layout,
    fusion: Fusion,
    probing: Option<Probing>,
) -> Result<Plan> {
    let graph = if probing == Some(Probing::Primitives) { graph } else { fuse::fuse(&graph, fusion)? };
    Ok(plan::plan(graph, bucket, layout, probing.is_some()))
}

/// The plans of a model and what they are compiled for.
pub struct Plans {
    pub encoder: Plan,
    pub encoder_buckets: Vec<Bucket>,
    pub decoder: Plan,
    pub decoder_buckets: Vec<Bucket>,
}

impl Plans {
    pub fn new(family: &dyn Family, options: &ExecutorOptions, backend: &dyn Backend) -> Result<Plans> {
        let (layout, fusion) = (backend.layout(), backend.fusion());
        let [(encoder, encoder_bucket), (decoder, decoder_bucket)] = buckets(family, options)?;
        Ok(Plans {
            encoder: compiled_plan(encoder, encoder_bucket, layout, fusion, options.probing)?,
            encoder_buckets: encoder_buckets(&encoder_bucket, family.largest_tile().1),
            decoder: compiled_plan(decoder, decoder_bucket, layout, fusion, options.probing)?,
            decoder_buckets: decoder_buckets(&decoder_bucket),
        })
    }

    /// What encoder and decoder take on the device; `None` where that is the machine's memory.
    pub fn needs(&self, backend: &dyn Backend) -> Option<[Needs; 2]> {
        let encoder = backend.needs(&self.encoder, &self.encoder_buckets)?;
        Some([encoder, backend.needs(&self.decoder, &self.decoder_buckets)?])
    }
}

/// Smallest buckets: below them a run costs as much as one of this size.
const MIN_PREFILL_TOKENS: usize = 16;
const MIN_PATCHES: usize = 256;

/// 16, 32, 64, ... below `largest`, then `largest`.
fn doubling(first: usize, largest: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(first), |n| n.checked_mul(2)).take_while(move |n| *n < largest).chain([largest])
}

/// By patches, doubling.
fn encoder_buckets(largest: &Sizes, tile_rows: usize) -> Vec<Bucket> {
    let sizes = |patches: usize| {
        let images = patches.min(largest.get(Sym::Images));
        let context = (patches + images * tile_rows).min(largest.get(Sym::ContextRows));
        largest.with(Sym::Patches, patches).with(Sym::Images, images).with(Sym::ContextRows, context)
    };
    let largest = largest.get(Sym::Patches);
    doubling(MIN_PATCHES, largest).map(|n| Bucket { sizes: sizes(n), decode: false }).collect()
}

/// Steps of one token a sequence: 1, 2, 4, 8, 16, 24, 32, ... sequences. Other steps: by tokens, doubling.
fn decoder_buckets(largest: &Sizes) -> Vec<Bucket> {
    let (tokens, seqs) = (largest.get(Sym::Tokens), largest.get(Sym::Seqs));
    let bucket = |n: usize, decode: bool| {
        let rows = n.min(seqs);
        Bucket { sizes: largest.with(Sym::Tokens, n).with(Sym::Seqs, rows).with(Sym::LogitRows, rows), decode }
    };
    let most = seqs.min(tokens);
    let decode = [1, 2, 4].into_iter().chain((8..).step_by(8));
    let decode = decode.take_while(|n| *n < most).chain([most]).map(|n| bucket(n, true));
    decode.chain(doubling(MIN_PREFILL_TOKENS, tokens).map(|n| bucket(n, false))).collect()
}

fn load_weights(
    backend: &mut dyn Backend,
    checkpoint: &Checkpoint,
    graph: &Graph,
    dtype: Option<DType>,
) -> Result<Vec<WeightHandle>> {
    let upload = |w: &Weight| {
        let stored = checkpoint.get(&w.name, &w.shape)?;
        backend.upload(&w.name, &convert(&w.name, stored, dtype.filter(|_| w.matrix))?, w.matrix)
    };
    graph.weights.iter().map(upload).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(seqs: usize, tokens: usize) -> (Vec<usize>, Vec<usize>) {
        let largest = Sizes::default().with(Sym::Tokens, tokens).with(Sym::Seqs, seqs).with(Sym::LogitRows, seqs);
        let all = decoder_buckets(&largest);
        let (decode, other): (Vec<_>, Vec<_>) = all.iter().partition(|b| b.decode);
        let sizes = |b: Vec<&Bucket>| b.iter().map(|b| b.sizes.get(Sym::Tokens)).collect();
        assert!(all.iter().all(|b| b.sizes.get(Sym::Seqs) <= seqs && b.sizes.get(Sym::Tokens) <= tokens));
        // A sequence in a step has a token at least.
        let rows = seqs.min(tokens);
        assert_eq!(all.last().unwrap().sizes, largest.with(Sym::Seqs, rows).with(Sym::LogitRows, rows));
        (sizes(decode), sizes(other))
    }

    #[test]
    fn buckets_ascend_to_the_largest_sizes() {
        assert_eq!(tokens(32, 512), (vec![1, 2, 4, 8, 16, 24, 32], vec![16, 32, 64, 128, 256, 512]));
        assert_eq!(tokens(3, 17), (vec![1, 2, 3], vec![16, 17]));
        assert_eq!(tokens(1, 1), (vec![1], vec![1]));
        assert_eq!(tokens(20, 5), (vec![1, 2, 4, 5], vec![5]));
        let largest = Sizes::default().with(Sym::Patches, 600).with(Sym::Images, 3).with(Sym::ContextRows, 621);
        let sizes: Vec<[usize; 3]> = encoder_buckets(&largest, 7)
            .iter()
            .map(|b| [Sym::Patches, Sym::Images, Sym::ContextRows].map(|s| b.sizes.get(s)))
            .collect();
        assert_eq!(sizes, [[256, 3, 277], [512, 3, 533], [600, 3, 621]]);
    }
}
