//! How much of everything: pages, rows, tokens of a step, so that a model fits the memory of its device.
//!
//! In: options, a family's limits, what a backend says it needs. Out: sizes for executor and scheduler. Errors say what
//! does not fit and what would. Not here: allocating, which is the backend's.

use super::engine::EngineOptions;
use super::executor::{ExecutorOptions, Plans, Probing};
use crate::backend::{Backend, Needs};
use crate::checkpoint::Checkpoint;
use crate::graph::builder::PAGE_SIZE;
use crate::graph::{Shape, Sizes, Sym};
use crate::models::{Family, TextLimits};
use crate::schedule::SchedulerConfig;
use crate::tensor::DType;
use crate::{Error, Result};

const DEFAULT_MAX_NUM_SEQS: usize = 32;
const DEFAULT_MAX_NUM_BATCHED_TOKENS: usize = 512;
const DEFAULT_MEMORY_UTILIZATION: f64 = 0.9;
/// Encoder patches of a run, where the largest tile has fewer.
const MIN_ENCODER_PATCHES: usize = 4096;

/// Sizes of everything that is allocated at load.
pub struct Capacity {
    pub executor: ExecutorOptions,
    pub scheduler: SchedulerConfig,
    /// Where the memory goes, on a device that has its own.
    pub table: Option<MemoryTable>,
}

/// Bytes of device memory by use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryTable {
    /// Of the decoder.
    pub weights: u64,
    /// Weights of the encoder and its rows.
    pub vision: u64,
    pub kv_cache: u64,
    pub workspace: u64,
    /// Before anything was allocated.
    pub free: u64,
}

impl std::fmt::Display for MemoryTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |n: u64| n as f64 / (1u64 << 20) as f64;
        let used = self.weights + self.vision + self.kv_cache + self.workspace;
        write!(
            f,
            "MiB: weights {:.1}, vision {:.1}, KV cache {:.1}, workspace {:.1}, free {:.1}",
            mib(self.weights),
            mib(self.vision),
            mib(self.kv_cache),
            mib(self.workspace),
            mib(self.free.saturating_sub(used))
        )
    }
}

/// What the device's memory is divided by.
struct Fixed {
    needs: [Needs; 2],
    slab: u64,
}

impl Fixed {
    fn bytes(&self) -> u64 {
        self.slab + self.needs.iter().map(|n| n.weights + n.workspace).sum::<u64>()
    }
}

impl Capacity {
    /// `most_pages` limits the KV cache beyond what options and memory do.
    pub fn choose(
        options: &EngineOptions,
        family: &dyn Family,
        checkpoint: &Checkpoint,
        backend: &dyn Backend,
        most_pages: usize,
    ) -> Result<Capacity> {
        let limits = family.limits();
        let max_num_seqs = options.max_num_seqs.unwrap_or(DEFAULT_MAX_NUM_SEQS).max(1);
        let max_num_batched_tokens = options.max_num_batched_tokens.unwrap_or(DEFAULT_MAX_NUM_BATCHED_TOKENS).max(1);
        if let Some(n) = options.max_model_len.filter(|n| *n > limits.max_positions) {
            return Err(Error::Request(format!(
                "--max-model-len {n}: expected at most the model's {} positions",
                limits.max_positions
            )));
        }
        let (tile_patches, tile_rows) = family.largest_tile();
        let max_patches = tile_patches.max(MIN_ENCODER_PATCHES);
        // Tiles of all seats, and some that are remembered.
        let slab_rows = tile_rows * (8 * max_num_seqs).max(64);
        let longest = options.max_model_len.unwrap_or(limits.max_positions);
        let page_bytes = page_bytes(&limits, backend);
        // More pages than all seats at full length cannot be used.
        let useful = longest.div_ceil(PAGE_SIZE).saturating_mul(max_num_seqs).min(most_pages);
        let mut executor = ExecutorOptions {
            max_num_seqs,
            max_num_batched_tokens,
            max_blocks: longest.div_ceil(PAGE_SIZE),
            num_pages: 1,
            slab_rows,
            max_patches,
            probing: match (&options.wrap, &options.probe) {
                (Some(_), _) => Some(Probing::Fused),
                (None, Some(_)) => Some(Probing::Primitives),
                (None, None) => None,
            },
            // A device with a type of its own rounds matrices itself and keeps vectors as they are.
            dtype: options.dtype.filter(|_| backend.info().activations == DType::F32),
        };
        let slab = Shape::matrix(Sym::SlabRows, limits.hidden_size);
        let slab = backend.layout().state_bytes(&slab, &Sizes::default().with(Sym::SlabRows, slab_rows)) as u64;
        let plans = Plans::new(family, &executor, backend)?;
        let fixed = plans.needs(backend).map(|needs| Fixed { needs, slab });

        let free = backend.info().free_bytes;
        let part = options.memory_utilization.unwrap_or(DEFAULT_MEMORY_UTILIZATION);
        let budget = match &fixed {
            // Mapped weights can be dropped and read again, so a part of the memory is always left for pages.
            None => {
                let weights: u64 = checkpoint.tensors().map(|t| t.bytes as u64).sum();
                let free = free as f64 * part;
                (free - weights as f64).max(free / 8.0) as u64
            }
            Some(fixed) => {
                let budget = (free as f64 * part) as u64;
                budget.checked_sub(fixed.bytes()).filter(|left| *left >= page_bytes).ok_or_else(|| Error::OutOfMemory {
                    what: format!(
                        "weights ({} bytes), workspace ({}) and encoder rows ({slab}) on {}, of which {part} of the free \
                         memory may be used; lower --max-num-batched-tokens or --max-num-seqs, raise \
                         --gpu-memory-utilization, or use --device cpu",
                        fixed.needs.iter().map(|n| n.weights).sum::<u64>(),
                        fixed.needs.iter().map(|n| n.workspace).sum::<u64>(),
                        backend.info().name
                    ),
                    need: fixed.bytes() + page_bytes,
                    free,
                })?
            }
        };
        let affordable = usize::try_from(budget / page_bytes.max(1)).unwrap_or(usize::MAX);
        let num_pages = match options.num_pages {
            Some(n) => n.max(1),
            None => {
                if let Some(n) = options.max_model_len.filter(|n| n.div_ceil(PAGE_SIZE) > affordable.min(most_pages)) {
                    let token_bytes = page_bytes / PAGE_SIZE as u64;
                    return Err(Error::OutOfMemory {
                        what: format!(
                            "KV cache of --max-model-len {n} ({token_bytes} bytes a token); at most {} tokens fit",
                            affordable.min(most_pages) * PAGE_SIZE
                        ),
                        need: n as u64 * token_bytes,
                        free: budget,
                    });
                }
                affordable.min(useful).max(1)
            }
        };
        let max_model_len = longest.min(num_pages.saturating_mul(PAGE_SIZE));
        executor.num_pages = num_pages;
        executor.max_blocks = max_model_len.div_ceil(PAGE_SIZE);
        let table = fixed.map(|Fixed { needs: [encoder, decoder], slab }| MemoryTable {
            weights: decoder.weights,
            vision: encoder.weights + slab,
            kv_cache: num_pages as u64 * page_bytes,
            workspace: encoder.workspace + decoder.workspace,
            free,
        });
        Ok(Capacity {
            executor,
            scheduler: SchedulerConfig {
                page_size: PAGE_SIZE,
                num_pages,
                page_bytes,
                max_num_seqs,
                max_num_batched_tokens,
                max_model_len,
                encoder_rows: slab_rows,
                max_encode_work: max_patches,
                prefix_caching: !options.no_prefix_caching,
                position_components: limits.position_components,
                block_table_stride: executor.max_blocks,
            },
            table,
        })
    }
}

/// Bytes of one page in all layers.
fn page_bytes(limits: &TextLimits, backend: &dyn Backend) -> u64 {
    (limits.kv_elements * limits.num_layers * backend.layout().float_bytes * PAGE_SIZE) as u64
}
