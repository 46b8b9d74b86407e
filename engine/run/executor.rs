//! Where the two rivers meet: a scheduler's batch goes through the programs that models and backend made.
//!
//! In: a backend, a family, a checkpoint; batches and tiles. Out: rows of logits. Owns: the compiled programs.
//! Not here: which sequence runs, what is sampled.

use crate::backend::{Backend, Input, Probe, Program, WeightHandle};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::storage::convert;
use crate::graph::{Graph, Plan, Sizes, Sym, Weight, fuse, plan};
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
    /// Keeps every primitive's value in memory of its own, so that all can be looked at.
    pub probing: bool,
    /// Type that matrices are rounded to; `None` keeps the stored one.
    pub dtype: Option<DType>,
}

/// The programs of one model on one backend.
pub struct Executor {
    encoder: Box<dyn Program>,
    decoder: Box<dyn Program>,
    max_patches: usize,
    max_images: usize,
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
        let [(encoder, encoder_bucket), (decoder, decoder_bucket)] = buckets(family, options)?;
        let max_images = encoder_bucket.get(Sym::Images);
        let mut compile = |graph: Graph, bucket: Sizes| {
            let plan = compiled_plan(graph, bucket, options.probing)?;
            for node in &plan.graph.nodes {
                backend.supports(&plan.graph, node).map_err(|e| {
                    Error::Unsupported(format!("{} ({}) on {}: {e}", node.name, node.op.name(), backend.info().name))
                })?;
            }
            let weights = load_weights(backend, checkpoint, &plan.graph, options.dtype)?;
            backend.compile(plan, &weights)
        };
        let encoder = compile(encoder, encoder_bucket)?;
        let decoder = compile(decoder, decoder_bucket)?;
        Ok(Executor { encoder, decoder, max_patches: options.max_patches, max_images, logits: Vec::new() })
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

    /// Runs one step and returns its logits, `[logit_rows, vocab_size]`.
    pub fn step(&mut self, b: &BatchInputs, probe: Option<&mut Probe>) -> Result<&mut [f32]> {
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
        self.decoder.run(&sizes, &inputs, probe)?;
        self.decoder.read(0, &mut self.logits)?;
        Ok(&mut self.logits)
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

/// Fused, unless every value shall be seen, and planned.
pub fn compiled_plan(graph: Graph, bucket: Sizes, probing: bool) -> Result<Plan> {
    let graph = if probing { graph } else { fuse::fuse(&graph)? };
    Ok(plan::plan(graph, bucket, probing))
}

fn load_weights(
    backend: &mut dyn Backend,
    checkpoint: &Checkpoint,
    graph: &Graph,
    dtype: Option<DType>,
) -> Result<Vec<WeightHandle>> {
    let upload = |w: &Weight| {
        let stored = checkpoint.get(&w.name, &w.shape)?;
        backend.upload(&w.name, &convert(&w.name, stored, dtype)?, w.matrix)
    };
    graph.weights.iter().map(upload).collect()
}
