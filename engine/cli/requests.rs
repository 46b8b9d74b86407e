//! `engine run --requests FILE.jsonl`: many requests in one continuously batched run.
//!
//! In: one JSON object a line. Out: one JSON object a line, in input order; a request that failed has `error`
//! instead of an answer. Memory is bounded: only a window of requests is open at a time.

use std::collections::VecDeque;
use std::io::BufRead;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Map, Value};

use super::output;
use super::run::{Context, RunArgs};
use crate::input::image::DecodeOptions;
use crate::input::message::{ImageSource, Message, Part, Role, messages_from_value};
use crate::run::engine::Handle;
use crate::run::request::{ImageInput, Prompt, Request};
use crate::run::sampling_params::SamplingFlags;
use crate::{Error, Result};

/// Requests open at once: enough to keep every seat of the scheduler taken.
const WINDOW: usize = 256;

/// Runs all requests of a file; exit code 3 when one of them failed.
pub fn run(context: &Context, path: &Path, args: &RunArgs) -> Result<ExitCode> {
    let (sampling, decode) = (args.sampling.options(), args.images.options()?);
    let mut open: VecDeque<(Option<Value>, Result<Handle>)> = VecDeque::new();
    let mut failed = 0usize;
    let mut finish = |(id, handle): (Option<Value>, Result<Handle>)| {
        let value = match handle.and_then(Handle::answer) {
            Ok(a) => {
                output::answer_json(&a, id.as_ref(), context.load_s, &context.engine.device().name, &context.model)
            }
            Err(e) => {
                failed += 1;
                output::error_json(&e, id.as_ref())
            }
        };
        output::write(&format!("{value}\n"))
    };
    let from_stdin = path.as_os_str() == "-";
    let reader: Box<dyn BufRead> = if from_stdin {
        Box::new(std::io::stdin().lock())
    } else {
        let file =
            std::fs::File::open(path).map_err(|e| Error::Request(format!("--requests {}: {e}", path.display())))?;
        Box::new(std::io::BufReader::new(file))
    };
    for (i, line) in reader.lines().enumerate() {
        let place = format!("{}:{}", path.display(), i + 1);
        let line = match line {
            Ok(l) => l,
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
                open.push_back((None, Err(Error::Request(format!("{place}: not UTF-8")))));
                continue;
            }
            Err(e) => return Err(Error::Request(format!("{place}: {e}"))),
        };
        if line.trim().is_empty() {
            continue;
        }
        let (id, request) = parse(&line, &place, &sampling, &decode);
        let request = if from_stdin { request.and_then(|r| without_stdin(r, &place)) } else { request };
        let handle = request.and_then(|r| context.engine.submit(&r)).map_err(|e| named(e, &place));
        open.push_back((id, handle));
        if open.len() >= WINDOW
            && let Some(oldest) = open.pop_front()
        {
            finish(oldest)?;
        }
    }
    open.into_iter().try_for_each(&mut finish)?;
    if failed > 0 {
        output::message(format_args!("{failed} requests failed"));
        return Ok(ExitCode::from(3));
    }
    Ok(ExitCode::SUCCESS)
}

/// Standard input holds the requests, so it cannot hold a picture.
fn without_stdin(request: Request, place: &str) -> Result<Request> {
    let given = request.images.iter().any(|i| matches!(i, ImageInput::Source(s) if s == "-"));
    let inline = match &request.prompt {
        Prompt::Raw(_) => false,
        Prompt::Messages(turns) => turns.iter().flat_map(|t| &t.content).any(|part| match part {
            Part::Image(ImageSource::Path(s) | ImageSource::Url(s)) => s == "-",
            _ => false,
        }),
    };
    match given || inline {
        true => Err(Error::Request(format!(
            "{place}: image -: expected a path, a URL or a data: URI, standard input holds the requests"
        ))),
        false => Ok(request),
    }
}

fn named(e: Error, place: &str) -> Error {
    match e {
        Error::Request(m) if !m.starts_with(place) => Error::Request(format!("{place}: {m}")),
        other => other,
    }
}

/// One line; the id is kept even where the rest is at fault.
fn parse(
    line: &str,
    place: &str,
    sampling: &SamplingFlags,
    decode: &DecodeOptions,
) -> (Option<Value>, Result<Request>) {
    match serde_json::from_str::<Value>(line) {
        Ok(Value::Object(mut o)) => {
            let id = o.remove("id");
            let request = request(o, sampling, decode);
            (id, request.map_err(|e| named(e, place)))
        }
        Ok(_) => (None, Err(Error::Request(format!("{place}: expected a JSON object")))),
        Err(e) => (None, Err(Error::Request(format!("{place}: {e}")))),
    }
}

fn request(mut o: Map<String, Value>, sampling: &SamplingFlags, decode: &DecodeOptions) -> Result<Request> {
    let raw = match o.remove("raw") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(b)) => b,
        Some(v) => return Err(Error::Request(format!("raw: expected true or false, got {v}"))),
    };
    let text = |key: &str, v: Option<Value>| match v {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s)),
        Some(v) => Err(Error::Request(format!("{key}: expected a string, got {v}"))),
    };
    let images: Vec<String> = match o.remove("images").or_else(|| o.remove("image")) {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(s)) => vec![s],
        Some(Value::Array(list)) => list
            .into_iter()
            .enumerate()
            .map(|(i, v)| match v {
                Value::String(s) => Ok(s),
                v => Err(Error::Request(format!("images[{i}]: expected a string, got {v}"))),
            })
            .collect::<Result<_>>()?,
        Some(v) => return Err(Error::Request(format!("images: expected a list of strings, got {v}"))),
    };
    let system = text("system", o.remove("system"))?;
    let prompt = match (text("prompt", o.remove("prompt"))?, o.remove("messages")) {
        (Some(_), Some(_)) => return Err(Error::Request("expected one of prompt and messages, got both".to_string())),
        (Some(p), None) if raw => Prompt::Raw(p),
        (Some(p), None) => Prompt::Messages(vec![Message::user(images.len(), p)]),
        (None, Some(_)) if raw => return Err(Error::Request("raw: expected with a prompt, got messages".to_string())),
        (None, Some(m)) => Prompt::Messages(messages_from_value(m, "messages")?),
        (None, None) => return Err(Error::Request("expected prompt or messages, got neither".to_string())),
    };
    let prompt = match (prompt, system) {
        (Prompt::Messages(mut turns), Some(system)) => {
            turns.insert(0, Message::text(Role::System, system));
            Prompt::Messages(turns)
        }
        (Prompt::Raw(_), Some(_)) => return Err(Error::Request("system: expected without raw".to_string())),
        (prompt, None) => prompt,
    };
    let sampling = sampling_fields(sampling, &mut o)?;
    if let Some(key) = o.keys().next() {
        return Err(Error::Request(format!("{key}: not a field of a request")));
    }
    Ok(Request {
        prompt,
        images: images.into_iter().map(ImageInput::Source).collect(),
        sampling,
        decode: decode.clone(),
    })
}

/// Takes the sampling fields out of `o`; they win over the flags of the command.
fn sampling_fields(flags: &SamplingFlags, o: &mut Map<String, Value>) -> Result<SamplingFlags> {
    fn take<T>(
        o: &mut Map<String, Value>,
        keys: &[&str],
        expected: &str,
        convert: impl Fn(&Value) -> Option<T>,
        to: &mut T,
    ) -> Result<()> {
        for key in keys {
            match o.remove(*key) {
                None | Some(Value::Null) => {}
                Some(v) => {
                    *to = convert(&v).ok_or_else(|| Error::Request(format!("{key}: expected {expected}, got {v}")))?;
                }
            }
        }
        Ok(())
    }
    let number = |v: &Value| v.as_f64().map(|x| Some(x as f32));
    let count = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).map(Some);
    let mut s = flags.clone();
    take(o, &["temperature", "temp"], "a number", number, &mut s.temperature)?;
    take(o, &["top_p"], "a number", number, &mut s.top_p)?;
    take(o, &["min_p"], "a number", number, &mut s.min_p)?;
    take(o, &["repetition_penalty", "repeat_penalty"], "a number", number, &mut s.repetition_penalty)?;
    let top_k = |v: &Value| if v.as_i64() == Some(-1) { Some(Some(0)) } else { count(v) };
    take(o, &["top_k"], "a whole number of -1 or more", top_k, &mut s.top_k)?;
    let whole = "a whole number of 0 or more";
    take(o, &["no_repeat_ngram_size"], whole, count, &mut s.no_repeat_ngram_size)?;
    take(o, &["num_beams"], whole, count, &mut s.num_beams)?;
    take(o, &["min_tokens", "min_new_tokens"], whole, count, &mut s.min_new_tokens)?;
    take(o, &["max_tokens", "max_new_tokens"], whole, count, &mut s.max_tokens)?;
    take(o, &["logprobs"], whole, count, &mut s.logprobs)?;
    take(o, &["seed"], whole, |v| v.as_u64().map(Some), &mut s.seed)?;
    take(o, &["ignore_eos"], "true or false", Value::as_bool, &mut s.ignore_eos)?;
    take(o, &["sample"], "true or false", Value::as_bool, &mut s.sample)?;
    let strings = |v: &Value| match v {
        Value::String(s) => Some(vec![s.clone()]),
        Value::Array(list) => list.iter().map(|s| s.as_str().map(str::to_string)).collect(),
        _ => None,
    };
    take(o, &["stop"], "a string or a list of strings", strings, &mut s.stop)?;
    Ok(s)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(line: &str) -> String {
        let (_, r) = parse(line, "f:1", &SamplingFlags::default(), &DecodeOptions::default());
        r.map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn faults_are_named() {
        assert!(error("{").contains("f:1: "));
        assert!(error("[]").contains("expected a JSON object"));
        assert!(error("{}").contains("expected prompt or messages"));
        assert!(error(r#"{"prompt":"a","messages":[]}"#).contains("got both"));
        assert!(error(r#"{"prompt":"a","images":[1]}"#).contains("images[0]: expected a string, got 1"));
        assert!(error(r#"{"prompt":"a","tempreature":1}"#).contains("tempreature: not a field"));
        assert!(error(r#"{"prompt":"a","raw":1}"#).contains("raw: expected true or false"));
    }

    #[test]
    fn a_line_overrides_the_flags() {
        let flags = SamplingFlags { max_tokens: Some(5), seed: Some(1), ..Default::default() };
        let line = r#"{"id": 7, "prompt": "a", "images": ["x.png"], "max_tokens": 9}"#;
        let (id, r) = parse(line, "f:1", &flags, &DecodeOptions::default());
        let r = r.unwrap();
        assert_eq!(id, Some(Value::from(7)));
        assert_eq!((r.sampling.max_tokens, r.sampling.seed, r.images.len()), (Some(9), Some(1), 1));
    }
}
