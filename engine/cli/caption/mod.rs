//! `engine caption`: a folder of pictures, a caption for each; stopped and started again without loss.
//!
//! In: folders, files, lists. Out: a caption file (JSON lines), sidecars, a file of failures. Every file ends as ok, skipped
//! or failed with a reason. The stages: `discover` finds files, `decide` and `pipeline` prepare them on threads,
//! the engine batches them continuously, `writer` writes what comes, `ledger` keeps what a killed run has done.

mod args;
mod decide;
mod discover;
mod job;
mod ledger;
mod paths;
mod pipeline;
mod progress;
mod prompt;
mod record;
mod sidecar;
mod styles;
mod writer;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::channel;
use std::time::Instant;

pub use self::args::CaptionArgs;
use self::decide::Decider;
use self::ledger::{Index, Ledger, output_error};
use self::pipeline::{Asking, Event, Pipeline};
use self::progress::{LogFormat, Reporter};
use self::sidecar::Pending;
use self::styles::Styles;
use self::writer::{Out, Style, Writer};
use super::{Outcome, logging, output, signals};
use crate::Result;
use crate::input::image::RgbImage;
use crate::run::engine::{Engine, resolve_model};
use crate::run::request::ImageInput;

/// Runs the command.
pub fn caption(args: CaptionArgs) -> Outcome {
    if args.list_styles {
        output::write(&Styles::read()?.listing())?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.log_format == LogFormat::Json {
        logging::start_json(args.model.verbose);
    }
    let out = args.out();
    let failed = args.failed(&out, is_stream(&out));
    let mut reporter = Reporter::new(args.log_format, args.log_interval, failed.as_deref());
    match run(&args, &out, failed.as_deref(), &mut reporter) {
        Ok(code) => Ok(code),
        Err(e) => {
            reporter.error(&e);
            Ok(ExitCode::from(e.exit_code()))
        }
    }
}

/// Whether a caption file is one that cannot be read again: standard output, a pipe, a device.
fn is_stream(out: &Path) -> bool {
    out.as_os_str() == "-" || std::fs::metadata(out).is_ok_and(|m| !m.is_file() && !m.is_dir())
}

fn run(args: &CaptionArgs, out_path: &Path, failed: Option<&Path>, reporter: &mut Reporter) -> Outcome {
    ignore_file_size_signal();
    let discovery = args.discovery();
    discovery.check()?;
    let question = args.question()?;
    let options = args.model.options()?;
    let model = options.model.clone();
    args.model.introduce_to(|text| reporter.note(text));

    let dir = resolve_model(&model, &options.hub)?;
    let (sampling, decode) = (args.sampling.options(), args.images.options()?);
    let settings = [
        ("model", job::model_fingerprint(&dir)?),
        ("storage", format!("{} {}", args.model.dtype, args.model.quant)),
        ("prompt", question.text.clone()),
        ("system", args.system.clone().unwrap_or_default()),
        ("raw", args.raw.to_string()),
        ("sampling", format!("{sampling:?}")),
        ("decode", format!("{decode:?}")),
        ("prepend", args.prepend.clone()),
        ("append", args.append.clone()),
    ];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let key = job::key(&settings);
    let inputs = format!("{:?} {:?} {}", args.paths, args.filelist, args.recursive);
    let glob = format!("{:?} {:?}", args.glob, args.shard);
    let modes = format!("{:?} {:?}", args.existing, args.sidecar);
    let job = job::key(&[("key", &record::hex(&key)), ("inputs", &inputs), ("glob", &glob), ("modes", &modes)]);

    // Before the model is loaded: where nothing can be written nothing is worth loading.
    let (out, index) = open_out(out_path, &job)?;
    let load = Instant::now();
    let engine = Engine::open(options)?;
    let asking = Asking { template: question.template, system: args.system.clone(), raw: args.raw, sampling, decode };
    preflight(&engine, &asking)?;
    reporter.start(&model, &engine.device().name, out_path, load.elapsed().as_secs_f64());

    let (sender, events) = channel();
    let signal = Arc::new(AtomicI32::new(0));
    let (caught, on_signal) = (signal.clone(), sender.clone());
    signals::stop_at_first_signal(move |number| {
        caught.store(number, Ordering::SeqCst);
        // Nobody to tell: the run is over.
        let _ = on_signal.send(Event::Signal);
    });

    let max_bytes = asking.decode.max_bytes;
    let reserved = [Some(out_path), failed, args.filelist.as_deref(), args.prompt_file.as_deref()];
    let reserved = reserved.into_iter().flatten().map(paths::normal).collect();
    let decider = Decider { index, key, sidecar: args.sidecar, existing: args.existing, reserved, max_bytes };
    let style = Style {
        model,
        key,
        sidecar: args.sidecar,
        existing: args.existing,
        separator: question.separator,
        prepend: args.prepend.clone(),
        append: args.append.clone(),
        json: args.json,
    };
    let mut writer = Writer::new(out, style, engine.clone(), reporter);
    let pipeline = Pipeline::start(discovery, decider, asking, engine, args.model.threads, &sender)?;
    let result = writer.run(&pipeline, &events, &sender);
    let ended = end(&mut writer, &pipeline, out_path, failed, result.as_ref().is_ok_and(|complete| *complete));
    let complete = result?;
    ended?;
    let number = signal.load(Ordering::SeqCst);
    Ok(match (complete, writer.counts.failed) {
        (false, _) => ExitCode::from(128 + u8::try_from(number).unwrap_or(2)),
        (true, 0) => ExitCode::SUCCESS,
        (true, _) => ExitCode::from(3),
    })
}

/// Opens the caption file and what is known of it.
fn open_out(out: &Path, job: &record::Key) -> Result<(Out, Index)> {
    if out.as_os_str() == "-" {
        return Ok((Out::Stdout, Index::default()));
    }
    if is_stream(out) {
        let file = std::fs::OpenOptions::new().write(true).open(out).map_err(|e| output_error(out, &e))?;
        return Ok((Out::Stream(out.to_path_buf(), file), Index::default()));
    }
    let (ledger, index) = Ledger::open(out, job)?;
    Ok((Out::Kept(Box::new(ledger)), index))
}

/// Errors that every picture would have, known before the first.
fn preflight(engine: &Engine, asking: &Asking) -> Result<()> {
    const SIDE: usize = 64;
    let grey = RgbImage { width: SIDE, height: SIDE, pixels: vec![128; SIDE * SIDE * 3] };
    engine.prepare(&asking.request(Path::new("picture.png"), ImageInput::Pixels(Arc::new(grey)))).map(drop)
}

/// Ends a run in good order, whatever ended it, and sums it up.
fn end(writer: &mut Writer, pipeline: &Pipeline, out: &Path, failed: Option<&Path>, complete: bool) -> Result<()> {
    let kept = match &mut writer.out {
        Out::Kept(ledger) => ledger.end(complete),
        Out::Stdout | Out::Stream(..) => Ok(()),
    };
    let listed = match failed {
        // An old list would speak of files that are well now.
        Some(path) if !writer.failures.is_empty() || path.is_file() => {
            Pending::write(path, &writer.failures, b"failures")
                .and_then(Pending::commit)
                .map_err(|e| output_error(path, &e))
        }
        _ => Ok(()),
    };
    use Ordering::Relaxed;
    let t = &pipeline.tally;
    let more = [
        ("restored", "sidecars written from captions that were known", writer.counts.restored),
        (
            "full_names",
            "sidecars named in full (a.png.txt), as another picture has the short name",
            writer.num_full_names,
        ),
        ("empty", "empty captions (--existing redo-empty makes them anew)", writer.counts.empty),
        ("repeated", "files named twice", t.repeated.load(Relaxed)),
        ("ignored", "other files in the folders", t.ignored.load(Relaxed)),
        ("folders_left_out", "folders not entered, for want of --recursive", t.folders_left_out.load(Relaxed)),
    ];
    let moment = writer.moment(pipeline);
    let out = match &writer.out {
        Out::Kept(_) => paths::shown(out),
        Out::Stdout => "standard output".to_string(),
        Out::Stream(path, _) => paths::shown(path),
    };
    let failures = match failed {
        Some(path) if writer.counts.failed > 0 => format!("; failures: {}", paths::shown(path)),
        _ => String::new(),
    };
    writer.reporter.summary(&moment, writer.first_caption, &more, &format!("captions: {out}{failures}"));
    kept.and(listed)
}

/// A file that may not grow is an error to be told, not the end of the process.
fn ignore_file_size_signal() {
    #[cfg(unix)]
    // SAFETY: no handler is installed, and nothing else in the process changes this signal.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}
