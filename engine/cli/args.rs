//! Flags that several commands share. Every flag is also `ENGINE_<FLAG>` in the environment; the flag wins.
//!
//! In: the command line. Out: engine options, sampling options. Not here: what a command does with them.

use std::path::PathBuf;

use clap::Args;

use super::output;
use crate::checkpoint::built_in;
use crate::checkpoint::hub::HubOptions;
use crate::input::image::DecodeOptions;
use crate::input::image::color::parse_color;
use crate::run::engine::{Device, EngineOptions};
use crate::run::sampling_params::SamplingFlags;
use crate::tensor::DType;
use crate::{Error, Result};

/// Which model, and where and how large it runs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A directory, a hub id (org/name[@revision]) or an alias such as the names that `engine inspect --list` prints;
    /// without it, and as `demo`, the small built-in model
    #[arg(short, long, env = "ENGINE_MODEL", value_name = "M")]
    pub model: Option<String>,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, env = "ENGINE_DEVICE", default_value = "auto", value_parser = parse_device)]
    pub device: Device,
    /// Type of weights and, on a GPU, of activations; the CPU computes in f32 in any case
    #[arg(long, env = "ENGINE_DTYPE", default_value = "auto", value_parser = ["auto", "bf16", "f16", "f32"])]
    pub dtype: String,
    /// On a GPU: launch every operation by itself instead of recorded steps
    #[arg(long, env = "ENGINE_ENFORCE_EAGER", value_parser = parse_switch)]
    pub enforce_eager: bool,
    /// On a GPU: give a request the same bits whatever runs beside it, slower; on the CPU that is always so
    #[arg(long, env = "ENGINE_BATCH_INVARIANT", value_parser = parse_switch)]
    pub batch_invariant: bool,
    /// Storage of the weights
    #[arg(long, alias = "quantization", env = "ENGINE_QUANT", default_value = "none", value_parser = ["none", "int8", "int4", "nf4"])]
    pub quant: String,
    /// Longest sequence in tokens, prompt and answer
    #[arg(short = 'c', long, alias = "ctx-size", env = "ENGINE_MAX_MODEL_LEN", value_name = "TOKENS", value_parser = parse_count)]
    pub max_model_len: Option<usize>,
    /// Sequences that run at once
    #[arg(long, alias = "parallel", env = "ENGINE_MAX_NUM_SEQS", value_name = "N", value_parser = parse_count)]
    pub max_num_seqs: Option<usize>,
    /// Tokens of one step; longer prompts are prefilled in chunks
    #[arg(long, env = "ENGINE_MAX_NUM_BATCHED_TOKENS", value_name = "TOKENS", value_parser = parse_count)]
    pub max_num_batched_tokens: Option<usize>,
    /// Part of the free memory for weights and KV cache
    #[arg(long, env = "ENGINE_GPU_MEMORY_UTILIZATION", value_name = "0..1", value_parser = parse_part)]
    pub gpu_memory_utilization: Option<f64>,
    /// KV cache pages of 16 tokens, instead of what the memory allows
    #[arg(long, alias = "num-gpu-blocks-override", env = "ENGINE_NUM_PAGES", value_name = "N", value_parser = parse_count)]
    pub num_pages: Option<usize>,
    /// Compute equal prompt beginnings anew
    #[arg(long, env = "ENGINE_NO_ENABLE_PREFIX_CACHING", value_parser = parse_switch)]
    pub no_enable_prefix_caching: bool,
    /// Branch, tag or commit on the hub
    #[arg(long, env = "ENGINE_REVISION")]
    pub revision: Option<String>,
    /// Use only what is in the hub cache
    #[arg(long, env = "ENGINE_OFFLINE", value_parser = parse_switch)]
    pub offline: bool,
    /// Threads of the CPU backend [default: all]
    #[arg(long, env = "ENGINE_THREADS", value_name = "N", value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// Say what is done, on stderr; twice for more
    #[arg(short, long, env = "ENGINE_VERBOSE", action = clap::ArgAction::Count)]
    pub verbose: u8,
}

impl ModelArgs {
    /// Options for [`crate::run::engine::Engine::open`]. Also sets the size of the thread pool and starts logging.
    pub fn options(&self) -> Result<EngineOptions> {
        super::logging::start(self.verbose);
        if let Some(n) = self.threads {
            // An error means that the pool is running already, in a size chosen by someone else.
            rayon::ThreadPoolBuilder::new()
                .num_threads(n)
                .build_global()
                .map_err(|e| Error::Internal(format!("--threads {n}: {e}")))?;
        }
        if self.quant != "none" {
            return Err(Error::Unsupported(format!(
                "--quant {}: expected none; quantised storage is not built in",
                self.quant
            )));
        }
        let model = self.model.clone().filter(|m| !m.is_empty()).unwrap_or(built_in::NAME.to_string());
        Ok(EngineOptions {
            model,
            hub: self.hub(),
            device: self.device,
            dtype: match self.dtype.as_str() {
                "bf16" => Some(DType::Bf16),
                "f16" => Some(DType::F16),
                "f32" => Some(DType::F32),
                _ => None,
            },
            enforce_eager: self.enforce_eager,
            batch_invariant: self.batch_invariant,
            max_model_len: self.max_model_len,
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            memory_utilization: self.gpu_memory_utilization,
            num_pages: self.num_pages,
            no_prefix_caching: self.no_enable_prefix_caching,
            probe: None,
            wrap: None,
        })
    }

    /// Says, where nobody named a model, which one answers and what may be asked of it.
    pub fn introduce(&self) {
        self.introduce_to(|text| output::message(text));
    }

    /// As [`ModelArgs::introduce`], to whoever speaks for the command.
    pub fn introduce_to(&self, say: impl FnOnce(&str)) {
        if self.model.as_deref().is_none_or(str::is_empty) && built_in::check().is_ok() {
            say(&format!(
                "no --model: the small built-in one answers; it knows {}, and is wrong about anything else",
                built_in::KNOWS
            ));
        }
    }

    /// Settings of the hub client: the environment's, and the flags.
    pub fn hub(&self) -> HubOptions {
        let env = HubOptions::from_env();
        HubOptions {
            revision: self.revision.clone().or(env.revision.clone()),
            offline: self.offline || env.offline,
            ..env
        }
    }
}

pub fn parse_device(s: &str) -> std::result::Result<Device, String> {
    match s {
        "auto" => Ok(Device::Auto),
        "cpu" => Ok(Device::Cpu),
        "cuda" => Ok(Device::Cuda(0)),
        _ => match s.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
            Some(n) => Ok(Device::Cuda(n)),
            None => Err("expected auto, cpu, cuda or cuda:N".to_string()),
        },
    }
}

/// A switch in the environment: 1, true, yes, on; 0, false, no, off and nothing at all switch off.
pub fn parse_switch(s: &str) -> std::result::Result<bool, String> {
    match s.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "" | "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("expected 1, true, 0 or false".to_string()),
    }
}

/// Most of anything that is counted here: sizes are products of a few of these and shall not overflow.
const MAX_COUNT: usize = i32::MAX as usize;

fn parse_count(s: &str) -> std::result::Result<usize, String> {
    match s.parse() {
        Ok(n) if (1..=MAX_COUNT).contains(&n) => Ok(n),
        _ => Err(format!("expected a whole number from 1 to {MAX_COUNT}")),
    }
}

fn parse_threads(s: &str) -> std::result::Result<usize, String> {
    match s.parse() {
        Ok(n) if (1..=1024).contains(&n) => Ok(n),
        _ => Err("expected a whole number from 1 to 1024".to_string()),
    }
}

/// vLLM writes -1 for all tokens, transformers 0.
fn parse_top_k(s: &str) -> std::result::Result<usize, String> {
    match s.parse::<i64>() {
        Ok(-1) => Ok(0),
        Ok(n) => usize::try_from(n).map_err(|_| "expected -1, 0 or more".to_string()),
        Err(e) => Err(e.to_string()),
    }
}

fn parse_part(s: &str) -> std::result::Result<f64, String> {
    match s.parse::<f64>() {
        Ok(x) if x > 0.0 && x <= 1.0 => Ok(x),
        _ => Err("expected a number above 0 and at most 1".to_string()),
    }
}

/// How tokens are chosen.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// New tokens at most
    #[arg(short = 'n', long, aliases = ["max-new-tokens"], env = "ENGINE_MAX_TOKENS", value_name = "N")]
    pub max_tokens: Option<usize>,
    /// 0 takes the most probable token
    #[arg(long, alias = "temp", env = "ENGINE_TEMPERATURE", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Sample as the checkpoint's generation_config.json says
    #[arg(long, env = "ENGINE_SAMPLE", value_parser = parse_switch)]
    pub sample: bool,
    #[arg(long, env = "ENGINE_TOP_P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// 0 or -1: all tokens
    #[arg(long, env = "ENGINE_TOP_K", allow_negative_numbers = true, value_parser = parse_top_k)]
    pub top_k: Option<usize>,
    #[arg(long, env = "ENGINE_MIN_P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    #[arg(long, alias = "repeat-penalty", env = "ENGINE_REPETITION_PENALTY", allow_negative_numbers = true)]
    pub repetition_penalty: Option<f32>,
    #[arg(long, env = "ENGINE_NO_REPEAT_NGRAM_SIZE")]
    pub no_repeat_ngram_size: Option<usize>,
    #[arg(long, env = "ENGINE_NUM_BEAMS")]
    pub num_beams: Option<usize>,
    #[arg(short, long, env = "ENGINE_SEED")]
    pub seed: Option<u64>,
    /// Ends the answer before this text; may repeat
    #[arg(long, env = "ENGINE_STOP", value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Go on after end tokens
    #[arg(long, env = "ENGINE_IGNORE_EOS", value_parser = parse_switch)]
    pub ignore_eos: bool,
    /// With --json: log-probabilities of the chosen token and the K most probable ones
    #[arg(long, env = "ENGINE_LOGPROBS", value_name = "K")]
    pub logprobs: Option<usize>,
}

impl SamplingArgs {
    /// The written settings; the rest is left to the checkpoint.
    pub fn options(&self) -> SamplingFlags {
        SamplingFlags {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            sample: self.sample,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            no_repeat_ngram_size: self.no_repeat_ngram_size,
            num_beams: self.num_beams,
            min_new_tokens: None,
            seed: self.seed,
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            logprobs: self.logprobs,
        }
    }
}

/// How images are brought in.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Images")]
pub struct ImageArgs {
    /// Blend transparent pixels over this colour (#rrggbb or a name) instead of dropping alpha
    #[arg(long, env = "ENGINE_BACKGROUND", value_name = "COLOR")]
    pub background: Option<String>,
    /// Leave EXIF orientation unapplied
    #[arg(long, env = "ENGINE_NO_EXIF_ROTATE", value_parser = parse_switch)]
    pub no_exif_rotate: bool,
    /// Take what can be decoded of a truncated file
    #[arg(long, env = "ENGINE_ALLOW_TRUNCATED", value_parser = parse_switch)]
    pub allow_truncated: bool,
}

impl ImageArgs {
    pub fn options(&self) -> Result<DecodeOptions> {
        Ok(DecodeOptions {
            background: self.background.as_deref().map(parse_color).transpose()?,
            exif_rotate: !self.no_exif_rotate,
            allow_truncated: self.allow_truncated,
            ..DecodeOptions::default()
        })
    }
}

/// A file to read, or `-`.
pub fn read_text(path: &PathBuf, what: &str) -> Result<Vec<u8>> {
    let read = if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::io::stdin(), &mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    read.map_err(|e| Error::Request(format!("{what} {}: {e}", path.display())))
}
