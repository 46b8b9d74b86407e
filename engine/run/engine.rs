//! The crate's face: open a model, submit requests, read events.
//!
//! In: options, requests. Out: handles. Owns: the worker thread, by its command channel.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use super::capacity::Capacity;
use super::executor::Executor;
use super::mailbox::Mailbox;
use super::prepare::{Frontend, Prepared};
use super::request::{Answer, Event, EventResult, Request};
use super::sampler::Sampler;
use super::worker::{Command, OwnedProbe, Worker};
use crate::backend::cpu::CpuBackend;
use crate::backend::cuda::{Cuda, CudaBackend, CudaOptions};
use crate::backend::{Backend, DeviceInfo};
use crate::checkpoint::hub::{self, HubOptions};
use crate::checkpoint::{Checkpoint, GenerationConfig};
use crate::graph::builder::PAGE_SIZE;
use crate::input::chat_template::ChatTemplate;
use crate::input::tokenizer::Tokenizer;
use crate::models::{self, Configs, Family};
use crate::schedule::{Scheduler, Stats};
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
    /// Type that weights are rounded to at load; `None` keeps the stored one. The CPU computes in f32 in any case. On a
    /// GPU it also is the type of activations; `None` is bf16 there, or f16 for a checkpoint that is stored so.
    pub dtype: Option<DType>,
    /// On a GPU: launches every operation by itself, instead of recorded steps.
    pub enforce_eager: bool,
    /// On a GPU: what a request gets does not depend on what runs beside it, at some cost in speed. The CPU is so always.
    pub batch_invariant: bool,
    /// Longest sequence, prompt and answer; `None`: what the model and the memory allow.
    pub max_model_len: Option<usize>,
    pub max_num_seqs: Option<usize>,
    pub max_num_batched_tokens: Option<usize>,
    /// Part of the free memory that weights, KV cache and workspace may take.
    pub memory_utilization: Option<f64>,
    /// KV pages; `None`: as many as the memory allows and the sequences can use.
    pub num_pages: Option<usize>,
    /// Switches sharing of equal prompt beginnings off.
    pub no_prefix_caching: bool,
    /// Sees every value of every run. Programs are then compiled without fusion.
    pub probe: Option<OwnedProbe>,
    /// Puts something between the engine and its device, such as a comparison with another one. Every value of a run is
    /// then kept.
    pub wrap: Option<BackendWrapper>,
}

/// Makes one backend of another.
pub type BackendWrapper = Box<dyn Fn(Box<dyn Backend>) -> Box<dyn Backend> + Send>;

impl Default for EngineOptions {
    /// No model; everything else as the environment and the model say.
    fn default() -> EngineOptions {
        EngineOptions {
            model: String::new(),
            hub: HubOptions::from_env(),
            device: Device::Auto,
            dtype: None,
            enforce_eager: false,
            batch_invariant: false,
            max_model_len: None,
            max_num_seqs: None,
            max_num_batched_tokens: None,
            memory_utilization: None,
            num_pages: None,
            no_prefix_caching: false,
            probe: None,
            wrap: None,
        }
    }
}

/// A model that answers requests. Clones share it; the last one ends the worker.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    /// `None` once the engine ends.
    commands: Mutex<Option<Sender<Command>>>,
    worker: Mutex<Option<JoinHandle<()>>>,
    frontend: Arc<Frontend>,
    stats: Arc<Mutex<Stats>>,
    busy: Arc<AtomicU64>,
    device: DeviceInfo,
    max_num_seqs: usize,
    max_model_len: usize,
}

impl Drop for Inner {
    /// Waits until the worker has given everything back, a device's memory above all.
    fn drop(&mut self) {
        drop(self.commands.get_mut().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(worker) = self.worker.get_mut().unwrap_or_else(PoisonError::into_inner).take()
            && worker.thread().id() != std::thread::current().id()
        {
            // A panic of the worker was told to whoever waited for it.
            let _ = worker.join();
        }
    }
}

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
        // What is missing on this machine is said first; it is what the user can mend.
        let opened = Opened::new(options.device, options.dtype)?;
        let dir = resolve_model(&options.model, &options.hub)?;
        let configs = Configs::read(&dir)?;
        let family = models::open(&configs)?;
        let checkpoint = Checkpoint::open(&dir, |name| family.rename(name))?;
        let tokenizer = Arc::new(Tokenizer::load(&dir)?);
        let template = ChatTemplate::load(&dir, tokenizer.special_tokens())?;
        let guard = tokenizer.text_guard(template.as_ref().map(ChatTemplate::source), family.placeholders())?;
        let generation = GenerationConfig::read(&dir, &configs.config)?;
        let limits = family.limits();

        let Loaded { executor, sizes, device } = load(&opened, &options, &*family, &checkpoint)?;
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
            rows: Default::default(),
            live: Default::default(),
            next_id: 0,
        };
        let worker = std::thread::Builder::new()
            .name("engine-worker".to_string())
            .spawn(move || worker.run())
            .map_err(|e| Error::Internal(format!("worker thread: {e}")))?;
        let (max_model_len, max_num_seqs) = (sizes.scheduler.max_model_len, sizes.scheduler.max_num_seqs);
        let (commands, worker) = (Mutex::new(Some(sender)), Mutex::new(Some(worker)));
        let inner = Inner { commands, worker, frontend, stats, busy, device, max_num_seqs, max_model_len };
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
        let sent = sender.as_ref().is_some_and(|s| s.send(command).is_ok());
        if sent { Ok(()) } else { Err(Error::Internal("the engine's worker ended".to_string())) }
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

/// A device that is there, before the model is known.
enum Opened {
    Cpu,
    Cuda(Arc<Cuda>),
}

impl Opened {
    fn new(device: Device, dtype: Option<DType>) -> Result<Opened> {
        let opened = match device {
            Device::Cpu => return Ok(Opened::Cpu),
            Device::Cuda(index) => Cuda::open(index)?,
            // f32 is a wish that only the CPU grants.
            Device::Auto if dtype == Some(DType::F32) => return Ok(Opened::Cpu),
            Device::Auto => match Cuda::open(0) {
                Ok(cuda) => cuda,
                Err(e) => {
                    tracing::info!("on the CPU: {e}");
                    return Ok(Opened::Cpu);
                }
            },
        };
        match dtype {
            Some(DType::F32) => Err(Error::Unsupported(
                "--dtype f32 on a GPU: expected auto, bf16 or f16; use --device cpu for arithmetic in f32".to_string(),
            )),
            _ => Ok(Opened::Cuda(Arc::new(opened))),
        }
    }

    fn backend(&self, options: &EngineOptions, checkpoint: &Checkpoint) -> Result<Box<dyn Backend>> {
        let backend: Box<dyn Backend> = match self {
            Opened::Cpu => Box::new(CpuBackend::new()),
            Opened::Cuda(cuda) => {
                let dtype = options.dtype.unwrap_or_else(|| stored_type(checkpoint));
                let EngineOptions { enforce_eager, batch_invariant, .. } = *options;
                let options = CudaOptions { dtype, capture: !enforce_eager, batch_invariant };
                Box::new(CudaBackend::new(cuda.clone(), options)?)
            }
        };
        Ok(match &options.wrap {
            Some(wrap) => wrap(backend),
            None => backend,
        })
    }
}

/// f16 where most of the checkpoint is stored so, otherwise bf16.
fn stored_type(checkpoint: &Checkpoint) -> DType {
    let bytes = |f16: bool| {
        checkpoint.tensors().filter(|t| (t.dtype == DType::F16) == f16).map(|t| t.bytes as u64).sum::<u64>()
    };
    if bytes(true) > bytes(false) { DType::F16 } else { DType::Bf16 }
}

struct Loaded {
    executor: Executor,
    sizes: Capacity,
    device: DeviceInfo,
}

/// Loads the model in sizes that fit. What was free when sizes were chosen may be gone when it is asked for; then fewer
/// pages are tried, down to an eighth.
fn load(opened: &Opened, options: &EngineOptions, family: &dyn Family, checkpoint: &Checkpoint) -> Result<Loaded> {
    let mut most_pages = usize::MAX;
    for attempt in 0.. {
        let mut backend = opened.backend(options, checkpoint)?;
        let device = backend.info();
        let sizes = Capacity::choose(options, family, checkpoint, &*backend, most_pages)?;
        let pages = sizes.executor.num_pages;
        match Executor::load(&mut *backend, family, checkpoint, &sizes.executor) {
            Ok(executor) => {
                if let Some(table) = &sizes.table {
                    tracing::info!("{}: {table}; {pages} KV pages of {PAGE_SIZE} tokens", device.name);
                }
                return Ok(Loaded { executor, sizes, device });
            }
            Err(Error::OutOfMemory { what, .. })
                if attempt < 3 && pages > 1 && options.num_pages.is_none() && sizes.table.is_some() =>
            {
                tracing::warn!("{what} does not fit beside {pages} KV pages, trying {}", pages / 2);
                most_pages = pages / 2;
            }
            Err(e) => return Err(name_sizes(e)),
        }
    }
    Err(Error::Internal("loading ended without a result".to_string()))
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
