//! `engine run`: one prompt with its images, streamed; or a file of requests in one batched run.
//!
//! In: flags. Out: the answer on stdout. Not here: reading a file of requests (`requests.rs`).

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;

use super::Outcome;
use super::args::{ImageArgs, ModelArgs, SamplingArgs, read_text};
use super::output;
use crate::input::message::{Message, Role, parse_messages};
use crate::inspect::backends::BackendComparison;
use crate::inspect::compare::Comparison;
use crate::inspect::dump::Dump;
use crate::inspect::summary;
use crate::run::engine::{Device, Engine, resolve_model};
use crate::run::request::{Event, ImageInput, Prompt, Request};
use crate::{Error, Result};

/// Flags of `engine run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub images: ImageArgs,
    /// A path, `-`, an http(s) URL or a data: URI; may repeat
    #[arg(long, env = "ENGINE_IMAGE", value_name = "F")]
    pub image: Vec<String>,
    /// One user turn: the images, then this text
    #[arg(short, long, env = "ENGINE_PROMPT", value_name = "T", conflicts_with_all = ["messages", "requests", "prompt_file"])]
    pub prompt: Option<String>,
    /// As --prompt, read from a file
    #[arg(long, env = "ENGINE_PROMPT_FILE", value_name = "FILE", conflicts_with_all = ["messages", "requests"])]
    pub prompt_file: Option<PathBuf>,
    /// Turns as JSON: [{"role", "content"}]
    #[arg(long, env = "ENGINE_MESSAGES", value_name = "FILE.json", conflicts_with_all = ["requests", "raw"])]
    pub messages: Option<PathBuf>,
    /// A first turn
    #[arg(long, env = "ENGINE_SYSTEM", value_name = "T", conflicts_with = "raw")]
    pub system: Option<String>,
    /// Give the prompt to the model's processor as it is, without a chat template
    #[arg(long, env = "ENGINE_RAW", value_parser = super::args::parse_switch)]
    pub raw: bool,
    /// One request a line; results as JSON lines in the same order
    #[arg(long, env = "ENGINE_REQUESTS", value_name = "FILE.jsonl", requires = "json", conflicts_with = "image")]
    pub requests: Option<PathBuf>,
    /// One JSON object a request on stdout
    #[arg(long, env = "ENGINE_JSON", value_parser = super::args::parse_switch)]
    pub json: bool,
    /// Write the values of matching nodes (`*` matches any text) to --probe-out
    #[arg(long, env = "ENGINE_PROBE", value_name = "PATTERN", requires = "probe_out")]
    pub probe: Option<String>,
    /// Where --probe writes
    #[arg(long, env = "ENGINE_PROBE_OUT", value_name = "FILE.safetensors", requires = "probe")]
    pub probe_out: Option<PathBuf>,
    /// Compare every node with the CPU (`cpu`), or with expected values by node name, and name the first that differs
    #[arg(long, env = "ENGINE_COMPARE_TO", value_name = "cpu|FILE.safetensors", conflicts_with = "probe")]
    pub compare_to: Option<PathBuf>,
    /// Print the graphs as built, fused or planned, and end
    #[arg(long, env = "ENGINE_DUMP", value_parser = ["build", "fuse", "plan"])]
    pub dump: Option<String>,
}

/// Runs the command.
pub fn run(args: RunArgs) -> Outcome {
    let mut options = args.model.options()?;
    if let Some(stage) = &args.dump {
        let dir = resolve_model(&options.model, &options.hub)?;
        let gpu = matches!(options.device, Device::Cuda(_));
        output::write(&summary::dump_graphs(&dir, stage, gpu)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let dump = Dump::default();
    if let (Some(pattern), Some(path)) = (&args.probe, &args.probe_out) {
        check_writable(path)?;
        options.probe = Some(dump.probe(pattern.clone()));
    }
    let with_cpu = args.compare_to.as_ref().filter(|p| p.as_os_str() == "cpu").map(|_| BackendComparison::default());
    let file = args.compare_to.as_deref().filter(|_| with_cpu.is_none());
    let comparison = file.map(Comparison::open).transpose()?;
    options.wrap = with_cpu.as_ref().map(BackendComparison::wrapper);
    if let Some(c) = &comparison {
        options.probe = Some(c.probe());
    }
    // A prompt at fault shall be known before a model is loaded.
    let request = match args.requests {
        None => Some(args.request()?),
        Some(_) => None,
    };

    args.model.introduce();
    let start = Instant::now();
    let model_name = options.model.clone();
    let engine = Engine::open(options)?;
    let load_s = start.elapsed().as_secs_f64();
    let context = Context { engine, load_s, model: model_name };
    let code = match (&request, &args.requests) {
        (Some(request), _) => context.single(request, args.json)?,
        (None, Some(path)) => super::requests::run(&context, path, &args)?,
        (None, None) => ExitCode::SUCCESS,
    };
    if let Some(path) = &args.probe_out {
        let n = dump.write(path)?;
        output::message(format_args!("{n} tensors written to {}", path.display()));
        if n == 0 {
            return Err(Error::Request(format!("--probe {}: no node matches", args.probe.unwrap_or_default())));
        }
    }
    if let Some(c) = comparison {
        let report = c.report();
        output::message(&report);
        if report.first_difference().is_some() || report.rows.is_empty() {
            return Ok(ExitCode::FAILURE);
        }
    }
    if let Some(c) = with_cpu {
        let report = c.report();
        output::message(&report);
        if report.first.is_some() || report.rows.is_empty() {
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(code)
}

impl RunArgs {
    fn request(&self) -> Result<Request> {
        let text = match (&self.prompt, &self.prompt_file) {
            (Some(text), _) => Some(text.clone()),
            (None, Some(path)) => Some(
                String::from_utf8(read_text(path, "--prompt-file")?)
                    .map_err(|_| Error::Request(format!("--prompt-file {}: not UTF-8", path.display())))?,
            ),
            (None, None) => None,
        };
        let prompt = match (text, &self.messages) {
            (Some(text), _) if self.raw => Prompt::Raw(text),
            (Some(text), _) => Prompt::Messages(vec![Message::user(self.image.len(), text)]),
            (None, Some(path)) => Prompt::Messages(parse_messages(&read_text(path, "--messages")?)?),
            (None, None) => {
                return Err(Error::Request(
                    "expected one of --prompt, --messages and --requests, got none".to_string(),
                ));
            }
        };
        let prompt = match (prompt, &self.system) {
            (Prompt::Messages(mut turns), Some(system)) => {
                turns.insert(0, Message::text(Role::System, system.clone()));
                Prompt::Messages(turns)
            }
            (prompt, _) => prompt,
        };
        let images = self.image.iter().cloned().map(ImageInput::Source).collect();
        Ok(Request { prompt, images, sampling: self.sampling.options(), decode: self.images.options()? })
    }
}

/// An open model and what is said of it in results.
pub struct Context {
    pub engine: Engine,
    pub load_s: f64,
    pub model: String,
}

impl Context {
    fn single(&self, request: &Request, json: bool) -> Result<ExitCode> {
        for event in self.engine.submit(request)? {
            match event? {
                Event::Token { text, .. } if !json => output::write(&text)?,
                Event::Done(answer) if json => {
                    let value =
                        output::answer_json(&answer, None, self.load_s, &self.engine.device().name, &self.model);
                    output::write(&format!("{value}\n"))?;
                }
                Event::Done(_) => output::write("\n")?,
                _ => {}
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Fails early where an output cannot be made: hours of work shall not end with that.
fn check_writable(path: &std::path::Path) -> Result<()> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    let probe = dir.join(format!(".engine-write-{}", std::process::id()));
    let made = std::fs::File::create(&probe).map(|_| ());
    made.map_err(|e| Error::Output(format!("{}: {e}", path.display())))?;
    // Leaving an empty file behind is the worst that can happen here.
    let _ = std::fs::remove_file(&probe);
    if path.is_dir() { Err(Error::Output(format!("{}: is a directory", path.display()))) } else { Ok(()) }
}
