//! What a run says while it works: a bar in a terminal, plain lines elsewhere, JSON where programs read.
//!
//! In: counts and clocks. Out: stderr. Owns: the bar, the rates, which stage is the bottleneck. Not here: captions.
//!
//! Outside of a terminal nothing but printable characters and line ends is written, whatever files are called.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value, json};

use super::decide::Skip;
use super::paths;
use super::record::failure_json;
use crate::cli::output;

/// Form of what is said on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// How files have ended so far.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    pub ok: usize,
    pub skipped: BTreeMap<Skip, usize>,
    /// Sidecars written from captions that were known; among the skipped.
    pub restored: usize,
    pub failed: usize,
    /// By their first words.
    pub reasons: BTreeMap<String, usize>,
    /// Captions without a word; among the good ones.
    pub empty: usize,
    pub tokens: usize,
}

impl Counts {
    pub fn num_skipped(&self) -> usize {
        self.skipped.values().sum()
    }

    /// All files that have ended.
    pub fn ended(&self) -> usize {
        self.ok + self.num_skipped() + self.failed
    }
}

/// The state of a run at one moment.
#[derive(Debug, Clone)]
pub struct Moment {
    pub counts: Counts,
    /// Files found so far.
    pub total: usize,
    /// All have been found.
    pub is_complete: bool,
    /// Since the model was loaded.
    pub elapsed: Duration,
    pub stages: Stages,
}

/// Time of each stage, as a part of what it could have had.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stages {
    /// In the model's steps.
    pub model: Duration,
    /// Of the picture threads, by thread.
    pub listing: Duration,
    pub reading: Duration,
    pub decoding: Duration,
    pub writing: Duration,
}

/// A stage that takes this part of the time is what a faster run would need.
const BUSY: f64 = 0.8;

impl Stages {
    /// The busiest stage in the time since an earlier moment. The model counts first: it is what a run is for.
    fn bottleneck(&self, before: &Stages, seconds: f64) -> &'static str {
        let part = |now: Duration, then: Duration| now.saturating_sub(then).as_secs_f64() / seconds.max(1e-9);
        if part(self.model, before.model) >= BUSY {
            return "model";
        }
        // The last of equals counts, so the model does where nothing has happened yet.
        let all = [
            ("decoding", part(self.decoding, before.decoding)),
            ("reading", part(self.reading, before.reading)),
            ("listing", part(self.listing, before.listing)),
            ("writing", part(self.writing, before.writing)),
            ("model", part(self.model, before.model)),
        ];
        all.iter().max_by(|a, b| a.1.total_cmp(&b.1)).map_or("model", |(name, _)| name)
    }
}

/// What has been said about the last seconds.
struct Rates {
    images_per_s: f64,
    tokens_per_s: f64,
    eta_s: Option<f64>,
    bottleneck: &'static str,
}

/// Seconds that rates look back over.
const WINDOW_S: f64 = 30.0;
/// Failures that are told one by one.
const MAX_TOLD: usize = 20;

/// The voice of a run.
pub struct Reporter {
    format: LogFormat,
    interval: Duration,
    bar: Option<ProgressBar>,
    last_line: Instant,
    /// At most one a second.
    history: VecDeque<Moment>,
    num_told: usize,
    failed_file: Option<String>,
}

impl Reporter {
    /// `interval` is that of plain lines; `failed_file` is where all failures can be read.
    pub fn new(format: LogFormat, interval: Duration, failed_file: Option<&Path>) -> Reporter {
        let in_terminal = format == LogFormat::Text && std::io::stderr().is_terminal();
        let bar = in_terminal.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            // A template of our own that does not parse would be a mistake here; the default bar does then.
            match ProgressStyle::with_template("{bar:24} {pos}/{len} {wide_msg}") {
                Ok(style) => bar.with_style(style.progress_chars("=> ")),
                Err(_) => bar,
            }
        });
        let failed_file = failed_file.map(paths::shown);
        Reporter {
            format,
            interval,
            bar,
            last_line: Instant::now(),
            history: VecDeque::new(),
            num_told: 0,
            failed_file,
        }
    }

    fn say(&self, event: &str, text: &str, fields: Map<String, Value>) {
        match (self.format, &self.bar) {
            (LogFormat::Json, _) => {
                let mut o = Map::new();
                o.insert("event".to_string(), event.into());
                o.extend(fields);
                output::message(Value::Object(o));
            }
            (LogFormat::Text, Some(bar)) => bar.suspend(|| output::message(text)),
            (LogFormat::Text, None) => output::message(text),
        }
    }

    /// Something to know.
    pub fn note(&self, text: &str) {
        self.say("note", &paths::printable(text), object(json!({"message": text})));
    }

    /// The run begins.
    pub fn start(&self, model: &str, device: &str, out: &Path, load_s: f64) {
        let text = format!("model {model} on {device}, loaded in {load_s:.1} s; captions go to {}", paths::shown(out));
        let out = out.to_string_lossy();
        let fields = json!({"model": model, "device": device, "out": out, "load_s": round(load_s)});
        self.say("start", &text, object(fields));
    }

    /// A file failed. The first ones are told by name.
    pub fn failed(&mut self, path: &Path, reason: &str) {
        self.num_told += 1;
        let more = self.failed_file.as_deref().map(|f| format!(", all are in {f}")).unwrap_or_default();
        let text = match self.num_told {
            n if n < MAX_TOLD => format!("failed: {}: {}", paths::shown(path), paths::printable(reason)),
            MAX_TOLD => format!(
                "failed: {}: {}; further failures are not told one by one{more}",
                paths::shown(path),
                paths::printable(reason)
            ),
            _ if self.format == LogFormat::Text => return,
            _ => String::new(),
        };
        // The same object as in the file of failures.
        let fields = serde_json::from_str(&failure_json(path, reason)).unwrap_or_default();
        self.say("failed", &text, fields);
    }

    /// Moves the bar, or says a line when it is time for one. To be called several times a second.
    pub fn tick(&mut self, now: Moment) {
        let rates = self.rates(&now);
        if let Some(bar) = &self.bar {
            bar.set_length(now.total as u64);
            bar.set_position(now.counts.ended() as u64);
            bar.set_message(rates_text(&now, &rates));
        } else if self.last_line.elapsed() >= self.interval {
            self.last_line = Instant::now();
            self.progress(&now, &rates);
        }
        let last = self.history.back().map_or(Duration::ZERO, |m| m.elapsed);
        if (now.elapsed - last).as_secs_f64() >= 1.0 {
            while self.history.front().is_some_and(|m| (now.elapsed - m.elapsed).as_secs_f64() > WINDOW_S) {
                self.history.pop_front();
            }
            self.history.push_back(now);
        }
    }

    fn progress(&self, now: &Moment, rates: &Rates) {
        let c = &now.counts;
        let total = if now.is_complete { now.total.to_string() } else { format!("{} or more", now.total) };
        let text = format!("{} of {total} files, {}", c.ended(), rates_text(now, rates));
        let fields = json!({
            "ended": c.ended(), "total": now.total, "total_is_final": now.is_complete, "ok": c.ok,
            "skipped": c.num_skipped(), "failed": c.failed, "elapsed_s": round(now.elapsed.as_secs_f64()),
            "images_per_s": round(rates.images_per_s), "tokens_per_s": round(rates.tokens_per_s),
            "eta_s": rates.eta_s.map(round), "bottleneck": rates.bottleneck,
        });
        self.say("progress", &text, object(fields));
    }

    fn rates(&self, now: &Moment) -> Rates {
        let start = Moment {
            counts: Counts::default(),
            total: 0,
            is_complete: false,
            elapsed: Duration::ZERO,
            stages: Stages::default(),
        };
        let before = self.history.front().unwrap_or(&start);
        let seconds = (now.elapsed - before.elapsed).as_secs_f64().max(1e-3);
        let per_s = |now: usize, before: usize| now.saturating_sub(before) as f64 / seconds;
        let ended_per_s = per_s(now.counts.ended(), before.counts.ended());
        let left = now.total.saturating_sub(now.counts.ended()) as f64;
        Rates {
            images_per_s: per_s(now.counts.ok, before.counts.ok),
            tokens_per_s: per_s(now.counts.tokens, before.counts.tokens),
            eta_s: (now.is_complete && ended_per_s > 0.0).then(|| left / ended_per_s),
            bottleneck: now.stages.bottleneck(&before.stages, seconds),
        }
    }

    /// The end of a run.
    pub fn summary(&self, end: &Moment, first_caption: Option<Duration>, more: &[(&str, &str, usize)], files: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let (c, seconds) = (&end.counts, end.elapsed.as_secs_f64());
        let per_s = |n: usize| if seconds > 0.0 { n as f64 / seconds } else { 0.0 };
        let model_part = if seconds > 0.0 { end.stages.model.as_secs_f64() / seconds } else { 0.0 };
        let mut text = format!(
            "{}{} files in {}: {} ok, {} skipped, {} failed",
            c.ended(),
            if c.ended() < end.total { format!(" of {}", end.total) } else { String::new() },
            time(seconds),
            c.ok,
            c.num_skipped(),
            c.failed
        );
        for (skip, n) in &c.skipped {
            let _ = write!(text, "\n  skipped, {}: {n}", skip.name());
        }
        for (reason, n) in by_number(&c.reasons) {
            let _ = write!(text, "\n  failed, {}: {n}", paths::printable(reason));
        }
        for (_, what, n) in more.iter().filter(|(.., n)| *n > 0) {
            let _ = write!(text, "\n  {what}: {n}");
        }
        if c.ok > 0 {
            let first = first_caption.map(|f| format!(", first caption after {}", time(f.as_secs_f64())));
            let _ = write!(
                text,
                "\n  {:.1} images/s, {:.0} tokens/s, model at work {:.0} % of the time{}",
                per_s(c.ok),
                per_s(c.tokens),
                100.0 * model_part,
                first.unwrap_or_default()
            );
        }
        let _ = write!(text, "\n  {files}");
        if c.ended() < end.total {
            text.push_str("\n  the same command goes on with the rest");
        }
        let skipped: Map<String, Value> = c.skipped.iter().map(|(s, n)| (s.name().to_string(), (*n).into())).collect();
        let s = &end.stages;
        let stage = |d: Duration| round(d.as_secs_f64());
        let mut fields = object(json!({
            "ended": c.ended(), "total": end.total, "ok": c.ok, "skipped": c.num_skipped(), "failed": c.failed,
            "elapsed_s": round(seconds), "images_per_s": round(per_s(c.ok)), "tokens_per_s": round(per_s(c.tokens)),
            "model_part": round(model_part), "first_caption_s": first_caption.map(|f| round(f.as_secs_f64())),
            "skipped_by_reason": skipped, "failed_by_reason": c.reasons,
            "stages_s": {"model": stage(s.model), "listing": stage(s.listing), "reading": stage(s.reading),
                "decoding": stage(s.decoding), "writing": stage(s.writing)},
        }));
        fields.extend(more.iter().map(|(name, _, n)| (name.to_string(), (*n).into())));
        self.say("summary", &text, fields);
    }

    /// What ended the run early.
    pub fn error(&self, error: &crate::Error) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let fields = json!({"message": error.to_string(), "code": error.exit_code()});
        self.say("error", &format!("error: {error}"), object(fields));
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(o) => o,
        _ => Map::new(),
    }
}

fn rates_text(now: &Moment, rates: &Rates) -> String {
    let c = &now.counts;
    let mut text = format!("{} ok", c.ok);
    for (n, what) in [(c.num_skipped(), "skipped"), (c.failed, "failed")] {
        if n > 0 {
            let _ = write!(text, ", {n} {what}");
        }
    }
    let _ = write!(text, ", {:.1} images/s, {:.0} tokens/s", rates.images_per_s, rates.tokens_per_s);
    if let Some(eta) = rates.eta_s {
        let _ = write!(text, ", {} left", time(eta));
    }
    let _ = write!(text, ", bottleneck: {}", rates.bottleneck);
    text
}

/// The most frequent first, ten at most.
fn by_number(reasons: &BTreeMap<String, usize>) -> Vec<(&String, &usize)> {
    let mut all: Vec<_> = reasons.iter().collect();
    all.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    all.truncate(10);
    all
}

fn round(x: f64) -> f64 {
    (x * 1e3).round() / 1e3
}

/// Seconds for people.
fn time(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bottleneck_is_the_busiest_stage() {
        let s = Duration::from_secs;
        let before = Stages { model: s(100), ..Stages::default() };
        let busy = Stages { model: s(109), decoding: s(10), ..before };
        assert_eq!(busy.bottleneck(&before, 10.0), "model");
        let starved = Stages { model: s(104), decoding: s(9), reading: s(1), ..before };
        assert_eq!(starved.bottleneck(&before, 10.0), "decoding");
        assert_eq!(before.bottleneck(&before, 10.0), "model");
        let slow_disk = Stages { reading: s(9), writing: s(1), ..before };
        assert_eq!(slow_disk.bottleneck(&before, 10.0), "reading");
    }

    #[test]
    fn times_are_readable() {
        assert_eq!([time(0.25), time(75.4), time(7384.0)], ["0.2 s", "1 min 15 s", "2 h 03 min"]);
    }
}
