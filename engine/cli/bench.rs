//! `engine bench kernels|model`: how fast kernels are against the hardware's limits; how fast a model answers, by stage.
//!
//! In: flags. Out: a table on stdout. Not here: the kernels' shapes and clocks (bench/kernels), comparisons with other
//! programs (`tools/golden/torch_baseline.py`).

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use rayon::prelude::*;

use super::args::ModelArgs;
use super::{Outcome, output};
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::input::message::Message;
use crate::inspect::summary;
use crate::models::{self, Configs};
use crate::run::engine::{Device, Engine, resolve_model};
use crate::run::executor::{ExecutorOptions, buckets};
use crate::run::request::{Answer, ImageInput, Prompt, Request};

/// What is measured.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Every CUDA kernel at shapes of real models, against the GPU's roofline; then what whole models should reach
    Kernels(KernelArgs),
    /// One request: stages, tokens a second, memory, and how much of the memory's speed decoding reaches
    Model(Box<ModelBenchArgs>),
}

/// Flags of `engine bench kernels`.
#[derive(Debug, Clone, Args)]
pub struct KernelArgs {
    /// Only kernels and shapes whose name has one of these words
    #[arg(value_name = "FILTER")]
    pub filter: Vec<String>,
    /// auto, cuda or cuda:N
    #[arg(long, env = "ENGINE_DEVICE", default_value = "auto", value_parser = super::args::parse_device)]
    pub device: Device,
    /// Runs one shape once: a process of its own for each, as counters are written when it ends
    #[arg(long, hide = true, num_args = 2, value_names = ["OP", "INDEX"])]
    pub count: Vec<String>,
}

impl Default for KernelArgs {
    fn default() -> KernelArgs {
        KernelArgs { filter: Vec::new(), device: Device::Auto, count: Vec::new() }
    }
}

/// Prints the table of kernels. Errors: no usable GPU.
pub type MeasureKernels = fn(&KernelArgs) -> Result<()>;

/// Flags of `engine bench model`.
#[derive(Debug, Clone, Args)]
pub struct ModelBenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// A picture to ask about; may repeat
    #[arg(long, env = "ENGINE_IMAGE", value_name = "F")]
    pub image: Vec<String>,
    /// The question
    #[arg(short, long, env = "ENGINE_PROMPT", value_name = "T", default_value = "What is in this picture?")]
    pub prompt: String,
    /// New tokens; end tokens do not end the answer
    #[arg(short = 'n', long, alias = "max-new-tokens", env = "ENGINE_MAX_TOKENS", value_name = "N", default_value_t = 16,
          value_parser = clap::value_parser!(u32).range(2..))]
    pub max_tokens: u32,
}

/// Runs the command.
pub fn bench(command: BenchCommand, kernels: MeasureKernels) -> Outcome {
    match command {
        BenchCommand::Kernels(args) => {
            super::logging::start(0);
            kernels(&args)?;
        }
        BenchCommand::Model(args) => output::write(&measure_model(&args)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Answers one request and says how long each stage took, as a table.
fn measure_model(args: &ModelBenchArgs) -> Result<String> {
    let options = args.model.options()?;
    let dir = resolve_model(&options.model, &options.hub)?;
    let bytes = token_bytes(&dir)? as f64;
    args.model.introduce();
    // The host's memory says nothing about what a GPU's reaches.
    let before = if matches!(options.device, Device::Cuda(_)) { 0.0 } else { read_bandwidth() };
    let peak = PeakMemory::watch();
    let start = Instant::now();
    let engine = Engine::open(options)?;
    let load_s = start.elapsed().as_secs_f64();
    let on_cpu = engine.device().name == "cpu";
    let images: Vec<ImageInput> = args.image.iter().cloned().map(ImageInput::Source).collect();
    let prompt = Prompt::Messages(vec![Message::user(images.len(), args.prompt.clone())]);
    let mut request = Request::new(prompt, images);
    request.sampling.max_tokens = Some(args.max_tokens as usize);
    request.sampling.ignore_eos = true;
    let start = Instant::now();
    let answer = engine.submit(&request)?.answer()?;
    let total_s = start.elapsed().as_secs_f64();
    let peak = peak.end();
    let bandwidth = if on_cpu { before.max(read_bandwidth()) } else { 0.0 };
    let mut rows = stages(&answer, load_s, total_s, bytes);
    rows.insert(0, ("device".to_string(), engine.device().name.clone()));
    if on_cpu {
        let steps = (answer.token_ids.len() - 1) as f64;
        let share = 100.0 * bytes * steps / answer.timings.decode_s / bandwidth;
        rows.push(("read bandwidth, best of before and after".to_string(), format!("{:.2} GB/s", bandwidth / 1e9)));
        rows.push(("decode over that bandwidth".to_string(), format!("{share:.0} %")));
    }
    rows.push(("peak anonymous host memory".to_string(), format!("{:.0} MiB", peak as f64 / 1024.0)));
    let lines = rows.iter().map(|(what, value)| format!("| {what} | {value} |\n"));
    Ok(["| what | value |\n|---|---|\n".to_string()].into_iter().chain(lines).collect())
}

/// Rows that every device has. `bytes` are those of the weights that a decode step reads.
fn stages(answer: &Answer, load_s: f64, total_s: f64, bytes: f64) -> Vec<(String, String)> {
    let t = &answer.timings;
    let steps = (answer.token_ids.len() - 1) as f64;
    let row = |what: &str, value: String| (what.to_string(), value);
    vec![
        row("prompt tokens, of them image", format!("{}, {}", answer.prompt_token_ids.len(), answer.image_tokens)),
        row("new tokens", answer.token_ids.len().to_string()),
        row("open", format!("{load_s:.2} s")),
        row("image decode and preprocess", format!("{:.3} s", t.image_s)),
        row("encode and prefill, to the first token", format!("{:.2} s", t.prefill_s)),
        row("decode", format!("{:.3} s a token, {:.2} tokens/s", t.decode_s / steps, steps / t.decode_s)),
        row("whole request", format!("{total_s:.2} s")),
        row("weights read a token", summary::bytes(bytes as u64)),
        row("decode reads", format!("{:.2} GB/s", bytes * steps / t.decode_s / 1e9)),
    ]
}

/// Bytes of weights, as the checkpoint stores them, that one decode step reads: those of the decoder graph less the
/// embedding table.
fn token_bytes(dir: &std::path::Path) -> Result<u64> {
    let family = models::open(&Configs::read(dir)?)?;
    let checkpoint = Checkpoint::open(dir, |n| family.rename(n))?;
    let sizes = ExecutorOptions {
        max_num_seqs: 1,
        max_num_batched_tokens: 1,
        max_blocks: 1,
        num_pages: 1,
        slab_rows: 1,
        max_patches: 1,
        probing: None,
        dtype: None,
    };
    let [_, (decoder, _)] = buckets(&*family, &sizes)?;
    let read = decoder.weights.iter().filter(|w| !w.name.contains("embed_tokens"));
    Ok(read.map(|w| checkpoint.tensors().find(|t| t.name == w.name).map_or(0, |t| t.bytes as u64)).sum())
}

/// Bytes a second that all threads read together from 1 GiB of memory; the best of five.
fn read_bandwidth() -> f64 {
    let words = vec![1u64; 1 << 27];
    let part = words.len().div_ceil(rayon::current_num_threads());
    let pass = || {
        let start = Instant::now();
        let sum: u64 = words.par_chunks(part).map(|p| p.iter().fold(0u64, |a, w| a.wrapping_add(*w))).sum();
        std::hint::black_box(sum);
        size_of_val(&words[..]) as f64 / start.elapsed().as_secs_f64()
    };
    (0..5).map(|_| pass()).fold(0.0, f64::max)
}

/// Watches this process's anonymous memory, of which the kernel keeps no peak.
struct PeakMemory {
    done: Arc<AtomicBool>,
    kib: Arc<AtomicU64>,
}

impl PeakMemory {
    fn watch() -> PeakMemory {
        let peak = PeakMemory { done: Arc::default(), kib: Arc::default() };
        let (done, kib) = (peak.done.clone(), peak.kib.clone());
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                kib.fetch_max(anonymous_kib(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        peak
    }

    /// KiB.
    fn end(self) -> u64 {
        self.done.store(true, Ordering::Relaxed);
        self.kib.load(Ordering::Relaxed)
    }
}

/// Anonymous memory of this process now, in KiB; 0 where the system does not tell.
fn anonymous_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
