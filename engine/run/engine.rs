//! The crate's face: open a model, submit requests, read events.
//!
//! In: options, requests. Out: handles. Owns: the worker thread, by its command channel.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use super::executor::{Executor, ExecutorOptions};
use super::mailbox::Mailbox;
use super::prepare::{Frontend, Prepared};
use super::request::{Answer, Event, EventResult, Request};
use super::sampler::Sampler;
use super::worker::{Command, OwnedProbe, Worker};
use crate::backend::{Backend, DeviceInfo, cpu::CpuBackend};
use crate::checkpoint::hub::{self, HubOptions};
use crate::checkpoint::{Checkpoint, GenerationConfig};
use crate::graph::builder::PAGE_SIZE;
use crate::input::chat_template::ChatTemplate;
use crate::input::tokenizer::Tokenizer;
use crate::models::{self, Configs, Family, TextLimits};
use crate::schedule::{Scheduler, SchedulerConfig, Stats};
use crate::tensor::DType;
use crate::{Error, Result};

/// Where a model runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Device {
    /// The first usable GPU, otherwise the CPU.
    #[default]
    Auto,
    Cpu,
    /// A GPU by index.
    Cuda(usize),
}

/// How a model is opened.
pub struct EngineOptions {
    /// A directory, a hub id (`org/name[@revision]`) or an alias.
    pub model: String,
    pub hub: HubOptions,
    pub device: Device,
    /// Type that weights are rounded to at load; `None` keeps the stored one. The CPU computes in f32 in any case.
    pub dtype: Option<DType>,
    /// Longest sequence, prompt and answer; `None`: what the model and the memory allow.
    pub max_model_len: Option<usize>,
    pub max_num_seqs: Option<usize>,
    pub max_num_batched_tokens: Option<usize>,
    /// Part of the free memory that weights and KV cache may take.
    pub memory_utilization: Option<f64>,
    /// KV pages; `None`: as many as the memory allows and the sequences can use.
    pub num_pages: Option<usize>,
    /// Switches sharing of equal prompt beginnings off.
    pub no_prefix_caching: bool,
    /// Sees every value of every run. Programs are then compiled without fusion.
    pub probe: Option<OwnedProbe>,
}

impl Default for EngineOptions {
    /// No model; everything else as the environment and the model say.
    fn default() -> EngineOptions {
        EngineOptions {
            model: String::new(),
            hub: HubOptions::from_env(),
            device: Device::Auto,
            dtype: None,
            max_model_len: None,
            max_num_seqs: None,
            max_num_batched_tokens: None,
            memory_utilization: None,
            num_pages: None,
            no_prefix_caching: false,
            probe: None,
        }
    }
}

/// A model that answers requests. Clones share it; the last one ends the worker.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    commands: Mutex<Sender<Command>>,
    frontend: Arc<Frontend>,
    stats: Arc<Mutex<Stats>>,
    busy: Arc<AtomicU64>,
    device: DeviceInfo,
    max_num_seqs: usize,
    max_model_len: usize,
}

const DEFAULT_MAX_NUM_SEQS: usize = 32;
const DEFAULT_MAX_NUM_BATCHED_TOKENS: usize = 512;
const DEFAULT_MEMORY_UTILIZATION: f64 = 0.9;
/// Encoder patches of a run, where the largest tile has fewer.
const MIN_ENCODER_PATCHES: usize = 4096;

/// Resolves `model` to a directory, by download where it is a hub id.
pub fn resolve_model(model: &str, options: &HubOptions) -> Result<PathBuf> {
    let progress = Mutex::new(0u64);
    hub::resolve(model, models::ALIASES, options, &|p| {
        // A line for every hundred megabytes and for every file's end.
        let mut last = progress.lock().unwrap_or_else(PoisonError::into_inner);
        if p.total_bytes == Some(p.done_bytes) || p.done_bytes.abs_diff(*last) >= 100_000_000 {
            *last = p.done_bytes;
            tracing::info!("{}: {} of {} bytes", p.file, p.done_bytes, p.total_bytes.unwrap_or(0));
        }
    })
}

impl Engine {
    /// Opens a model. Weights stay in the mapped files until they are read.
    pub fn open(options: EngineOptions) -> Result<Engine> {
        let mut backend = open_backend(options.device)?;
        let dir = resolve_model(&options.model, &options.hub)?;
        let configs = Configs::read(&dir)?;
        let family = models::open(&configs)?;
        let checkpoint = Checkpoint::open(&dir, |name| family.rename(name))?;
        let tokenizer = Arc::new(Tokenizer::load(&dir)?);
        let template = ChatTemplate::load(&dir, tokenizer.special_tokens())?;
        let guard = tokenizer.text_guard(template.as_ref().map(ChatTemplate::source), family.placeholders())?;
        let generation = GenerationConfig::read(&dir, &configs.config)?;
        let limits = family.limits();

        let device = backend.info();
        let sizes = Capacity::choose(&options, &limits, &*family, &checkpoint, &device)?;
        let executor = Executor::load(&mut *backend, &*family, &checkpoint, &sizes.executor).map_err(name_sizes)?;
        let scheduler = Scheduler::new(sizes.scheduler.clone())?;

        let (sender, receiver) = channel();
        let frontend =
            Arc::new(Frontend { family, tokenizer, template, guard, generation, vocab_size: limits.vocab_size });
        let stats = Arc::new(Mutex::new(scheduler.stats()));
        let busy = Arc::new(AtomicU64::new(0));
        let worker = Worker {
            frontend: frontend.clone(),
            executor,
            scheduler,
            commands: receiver,
            stats: stats.clone(),
            busy: busy.clone(),
            probe: options.probe,
            sampler: Sampler::new(limits.vocab_size),
            live: Default::default(),
            next_id: 0,
        };
        std::thread::Builder::new()
            .name("engine-worker".to_string())
            .spawn(move || worker.run())
            .map_err(|e| Error::Internal(format!("worker thread: {e}")))?;
        let (max_model_len, max_num_seqs) = (sizes.scheduler.max_model_len, sizes.scheduler.max_num_seqs);
        let commands = Mutex::new(sender);
        let inner = Inner { commands, frontend, stats, busy, device, max_num_seqs, max_model_len };
        Ok(Engine { inner: Arc::new(inner) })
    }

    /// Prepares a request on this thread and queues it. Errors are the request's own.
    pub fn submit(&self, request: &Request) -> Result<Handle> {
        self.submit_prepared(self.prepare(request)?)
    }

    /// Reads images and tokenises: the part that needs no device, to be done ahead on other threads.
    pub fn prepare(&self, request: &Request) -> Result<Prepared> {
        self.inner.frontend.prepare(request)
    }

    /// Queues a prepared request.
    pub fn submit_prepared(&self, prepared: Prepared) -> Result<Handle> {
        let mailbox = Mailbox::default();
        self.send(Command::Submit(Box::new(prepared), mailbox.clone()))?;
        Ok(Handle { mailbox, engine: self.clone() })
    }

    fn send(&self, command: Command) -> Result<()> {
        let sender = self.inner.commands.lock().unwrap_or_else(PoisonError::into_inner);
        sender.send(command).map_err(|_| Error::Internal("the engine's worker ended".to_string()))
    }

    /// Counters of the scheduler after its latest step.
    pub fn stats(&self) -> Stats {
        *self.inner.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time that the worker has spent in steps: encoding, decoding, sampling.
    pub fn busy(&self) -> Duration {
        Duration::from_nanos(self.inner.busy.load(Ordering::Relaxed))
    }

    /// Sequences that run at once.
    pub fn max_num_seqs(&self) -> usize {
        self.inner.max_num_seqs
    }

    pub fn device(&self) -> &DeviceInfo {
        &self.inner.device
    }

    /// Longest sequence, prompt and answer.
    pub fn max_model_len(&self) -> usize {
        self.inner.max_model_len
    }

    /// Settings that the checkpoint asks for.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.inner.frontend.generation
    }
}

/// Says what to do where what is allocated at load does not fit.
fn name_sizes(error: Error) -> Error {
    match error {
        Error::OutOfMemory { what, need, free } => Error::OutOfMemory {
            what: format!("{what} (lower --max-model-len, --max-num-seqs, --max-num-batched-tokens or --num-pages)"),
            need,
            free,
        },
        other => other,
    }
}

fn open_backend(device: Device) -> Result<Box<dyn Backend>> {
    match device {
        Device::Auto | Device::Cpu => Ok(Box::new(CpuBackend::new())),
        Device::Cuda(index) => {
            // What is missing on this machine is said first; it is what the user can mend.
            let cuda = crate::backend::cuda::Cuda::open(index)?;
            Err(Error::Device(format!(
                "cuda:{index} ({}): expected kernels for every operation of a model, this build has those of single operations; use --device cpu",
                cuda.device().name()
            )))
        }
    }
}

/// Sizes of everything that is allocated at load.
struct Capacity {
    executor: ExecutorOptions,
    scheduler: SchedulerConfig,
}

impl Capacity {
    fn choose(
        options: &EngineOptions,
        limits: &TextLimits,
        family: &dyn Family,
        checkpoint: &Checkpoint,
        device: &DeviceInfo,
    ) -> Result<Capacity> {
        let max_num_seqs = options.max_num_seqs.unwrap_or(DEFAULT_MAX_NUM_SEQS).max(1);
        let max_num_batched_tokens = options.max_num_batched_tokens.unwrap_or(DEFAULT_MAX_NUM_BATCHED_TOKENS).max(1);
        if let Some(n) = options.max_model_len.filter(|n| *n > limits.max_positions) {
            return Err(Error::Request(format!(
                "--max-model-len {n}: expected at most the model's {} positions",
                limits.max_positions
            )));
        }
        let token_bytes = (limits.kv_elements * limits.num_layers * 4) as u64;
        let page_bytes = token_bytes * PAGE_SIZE as u64;
        let longest = options.max_model_len.unwrap_or(limits.max_positions);
        // More pages than all seats at full length cannot be used.
        let useful = longest.div_ceil(PAGE_SIZE).saturating_mul(max_num_seqs);
        let num_pages = match options.num_pages {
            Some(n) => n.max(1),
            None => {
                let weights: u64 = checkpoint.tensors().map(|t| t.bytes as u64).sum();
                let part = options.memory_utilization.unwrap_or(DEFAULT_MEMORY_UTILIZATION);
                let free = device.free_bytes as f64 * part;
                // Mapped weights can be dropped and read again, so a part of the memory is always left for pages.
                let budget = (free - weights as f64).max(free / 8.0) as u64;
                let affordable = usize::try_from(budget / page_bytes.max(1)).unwrap_or(usize::MAX);
                if let Some(n) = options.max_model_len.filter(|n| n.div_ceil(PAGE_SIZE) > affordable) {
                    return Err(Error::OutOfMemory {
                        what: format!(
                            "KV cache of --max-model-len {n} ({token_bytes} bytes a token); at most {} tokens fit",
                            affordable * PAGE_SIZE
                        ),
                        need: n as u64 * token_bytes,
                        free: budget,
                    });
                }
                affordable.min(useful).max(1)
            }
        };
        let max_model_len = longest.min(num_pages.saturating_mul(PAGE_SIZE));
        let (tile_patches, tile_rows) = family.largest_tile();
        let max_patches = tile_patches.max(MIN_ENCODER_PATCHES);
        // Tiles of all seats, and some that are remembered.
        let slab_rows = tile_rows * (8 * max_num_seqs).max(64);
        let max_blocks = max_model_len.div_ceil(PAGE_SIZE);
        Ok(Capacity {
            executor: ExecutorOptions {
                max_num_seqs,
                max_num_batched_tokens,
                max_blocks,
                num_pages,
                slab_rows,
                max_patches,
                probing: options.probe.is_some(),
                dtype: options.dtype,
            },
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
                position_components: 1,
                block_table_stride: max_blocks,
            },
        })
    }
}

/// One request's events. Dropping it cancels the request.
pub struct Handle {
    mailbox: Mailbox,
    engine: Engine,
}

impl Handle {
    /// The next event if it comes within `timeout`.
    pub fn next_within(&self, timeout: Duration) -> Poll<Option<EventResult>> {
        self.mailbox.next_within(timeout)
    }

    /// The next event without waiting; `waker` is woken when there is one.
    pub fn poll(&self, waker: &Waker) -> Poll<Option<EventResult>> {
        self.mailbox.poll(waker)
    }

    /// Gives the request up; its memory is free within a step.
    pub fn cancel(&self) {
        self.mailbox.cancel();
        // A worker that is gone has nothing left to cancel.
        let _ = self.engine.send(Command::Wake);
    }

    /// Waits for the whole answer.
    pub fn answer(self) -> Result<Answer> {
        loop {
            match self.mailbox.next() {
                Some(Ok(Event::Done(answer))) => return Ok(*answer),
                Some(Ok(_)) => {}
                Some(Err(e)) => return Err(e),
                None => return Err(Error::Internal("the request was cancelled".to_string())),
            }
        }
    }
}

impl Iterator for Handle {
    type Item = EventResult;

    /// Waits for the next event; `None` after the last.
    fn next(&mut self) -> Option<EventResult> {
        self.mailbox.next()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.cancel();
    }
}
