//! What goes to stdout: text as it comes, JSON a line a request. A reader that went away ends the program quietly.
//!
//! In: answers. Out: bytes on stdout. Not here: messages, which go to stderr.

use std::io::{ErrorKind, Write};

use serde_json::{Map, Value, json};

use crate::run::request::{Answer, TokenLogprobs};
use crate::{Error, Result};

/// Writes to stdout and flushes.
pub fn write(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        // The reader has what it wanted.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => Err(Error::Output(format!("stdout: {e}"))),
    }
}

/// Says something on stderr. A stderr that is closed or full is no reason to end.
pub fn message(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The object of design: one a request.
pub fn answer_json(answer: &Answer, id: Option<&Value>, load_s: f64, device: &str, model: &str) -> Value {
    let mut o = Map::new();
    if let Some(id) = id {
        o.insert("id".to_string(), id.clone());
    }
    let t = &answer.timings;
    // The first token comes with the prefill.
    let decoded = answer.token_ids.len().saturating_sub(1) as f64;
    let tokens_per_s = if t.decode_s > 0.0 { decoded / t.decode_s } else { 0.0 };
    let fields = json!({
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason.name(),
        "prompt_tokens": answer.prompt_token_ids.len(),
        "image_tokens": answer.image_tokens,
        "prompt_token_ids": answer.prompt_token_ids,
    });
    o.extend(fields.as_object().cloned().unwrap_or_default());
    if !answer.logprobs.is_empty() {
        o.insert("logprobs".to_string(), answer.logprobs.iter().map(logprobs_json).collect());
    }
    o.insert(
        "timings".to_string(),
        json!({"load_s": load_s, "image_s": t.image_s, "prefill_s": t.prefill_s, "decode_s": t.decode_s, "tokens_per_s": tokens_per_s}),
    );
    o.insert("device".to_string(), json!(device));
    o.insert("model".to_string(), json!(model));
    Value::Object(o)
}

fn logprobs_json(l: &TokenLogprobs) -> Value {
    let entry = |id: u32, p: f32| json!({"token_id": id, "logprob": finite(p)});
    let mut o = entry(l.token_id, l.logprob);
    o["top"] = l.top.iter().map(|(id, p)| entry(*id, *p)).collect();
    o
}

/// JSON has no infinity; a token that a processor forbade has the lowest number instead.
fn finite(p: f32) -> f64 {
    f64::from(p.max(f32::MIN))
}

/// An error as the object of a failed request.
pub fn error_json(error: &Error, id: Option<&Value>) -> Value {
    let mut o = Map::new();
    if let Some(id) = id {
        o.insert("id".to_string(), id.clone());
    }
    o.insert("error".to_string(), json!({"message": error.to_string(), "code": error.exit_code()}));
    Value::Object(o)
}
