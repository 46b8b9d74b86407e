//! The template engine, set up as transformers sets up Jinja2, inside limits that a hostile template cannot leave.
//!
//! In: template source, variables. Out: rendered text. Owns: limits on steps, recursion, output and time.
//! Not here: which variables a chat template gets.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use minijinja::value::{Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error as TemplateError, ErrorKind, Output, State};

use super::python;
use crate::{Error, Result};

/// Longest template source, in bytes. The longest in use are about 30 KB.
const MAX_SOURCE_BYTES: usize = 256 << 10;
/// Instructions that one rendering may execute; a conversation of 1000 turns takes some 100,000.
const FUEL: u64 = 2_000_000;
/// Nested macros, includes and recursive loops.
const RECURSION_LIMIT: usize = 100;
/// Longest rendered text, in bytes.
const MAX_OUTPUT_BYTES: usize = 64 << 20;
/// Wall clock for one rendering. Steps are bounded, but one step can be slow on a very long string.
const DEADLINE: Duration = Duration::from_secs(20);
/// Stack of the thread that compiles and renders. Expressions and values nest as deep as the source or the steps allow,
/// and are walked and dropped recursively. Only pages that are touched cost memory.
const STACK_BYTES: usize = 512 << 20;
const TEMPLATE_NAME: &str = "chat_template";

/// A compiled template.
#[derive(Clone)]
pub struct Template {
    environment: Arc<Environment<'static>>,
    /// The file it came from, for errors.
    origin: String,
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Template {
    /// Compiles `source`, which came from the file `origin`.
    ///
    /// # Errors
    /// `Error::Config` with file and line.
    pub fn compile(source: &str, origin: &str) -> Result<Self> {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(Error::Config(format!(
                "{origin}: expected a chat template of at most {MAX_SOURCE_BYTES} bytes, got {}",
                source.len()
            )));
        }
        let source = super::generation::without_generation_tags(source);
        let origin = origin.to_string();
        let thread_origin = origin.clone();
        let environment = on_own_thread(&origin, move || {
            let mut environment = environment();
            environment
                .add_template_owned(TEMPLATE_NAME, source)
                .map_err(|e| Error::Config(describe(&thread_origin, &e)))?;
            Ok(environment)
        })?;
        Ok(Template { environment: Arc::new(environment), origin })
    }

    /// Renders the template with these variables.
    ///
    /// # Errors
    /// `Error::Request` with the template's own words where it calls `raise_exception`; `Error::Config` for anything
    /// else that goes wrong in it.
    pub fn render(&self, variables: BTreeMap<String, Value>) -> Result<String> {
        let environment = self.environment.clone();
        let origin = self.origin.clone();
        on_own_thread(&self.origin, move || {
            let template = environment.get_template(TEMPLATE_NAME).map_err(|e| render_error(&origin, &e))?;
            let mut out = BoundedWriter { bytes: Vec::new() };
            template.render_captured_to(variables, &mut out).map_err(|e| render_error(&origin, &e))?;
            String::from_utf8(out.bytes).map_err(|e| Error::Internal(format!("{origin}: rendered text: {e}")))
        })
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION_LIMIT);
    environment.set_formatter(print);
    environment.set_unknown_method_callback(python::method);
    environment.add_filter("tojson", python::tojson);
    environment.add_filter("trim", |text: &Value, chars: Option<&str>| -> std::result::Result<String, TemplateError> {
        let text = python::str_of(text)?;
        Ok(match chars {
            None => python::strip(&text).to_string(),
            Some(chars) => text.trim_matches(|c| chars.contains(c)).to_string(),
        })
    });
    environment.add_filter("string", |value: &Value| python::str_of(value));
    // Python's notions: none is not iterable, strings and mappings have items and a length.
    environment.add_test("iterable", |value: &Value| {
        !matches!(value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number)
    });
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map)
    });
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", super::clock::strftime_now);
    environment
}

fn print(out: &mut Output, _: &State, value: &Value) -> std::result::Result<(), TemplateError> {
    match value.as_str() {
        Some(text) => out.write_str(text)?,
        None => out.write_str(&python::str_of(value)?)?,
    }
    Ok(())
}

/// What a template says through `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: &Value) -> std::result::Result<Value, TemplateError> {
    let message = python::str_of(message)?;
    Err(TemplateError::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
}

fn render_error(origin: &str, error: &TemplateError) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref::<Raised>() {
            return Error::Request(format!("the chat template refuses these messages: {message}"));
        }
        cause = current.source();
    }
    if error.kind() == ErrorKind::OutOfFuel {
        return Error::Config(format!("{origin}: the chat template did not end within {FUEL} steps"));
    }
    Error::Config(describe(origin, error))
}

fn describe(origin: &str, error: &TemplateError) -> String {
    let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    let detail = error.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
    let mut text: String = format!("{origin}: {line}{}{detail}", error.kind()).replace(['\n', '\r'], " ");
    if let Some((end, _)) = text.char_indices().nth(300) {
        text.truncate(end);
        text.push_str("...");
    }
    text
}

struct BoundedWriter {
    bytes: Vec<u8>,
}

impl std::io::Write for BoundedWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(std::io::Error::other(format!("the rendered text is longer than {MAX_OUTPUT_BYTES} bytes")));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs `work` on a thread with a large stack and waits until the deadline. Past it the thread is left to run into its
/// step limit.
fn on_own_thread<T: Send + 'static>(origin: &str, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("chat-template".into())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            // The receiver is gone when the deadline has passed; nobody wants the result then.
            let _ = sender.send(work());
        })
        .map_err(|e| Error::Internal(format!("{origin}: cannot start the template thread: {e}")))?;
    receiver.recv_timeout(DEADLINE).unwrap_or_else(|e| {
        Err(match e {
            mpsc::RecvTimeoutError::Timeout => {
                Error::Config(format!("{origin}: the chat template did not end within {} s", DEADLINE.as_secs()))
            }
            mpsc::RecvTimeoutError::Disconnected => {
                Error::Internal(format!("{origin}: the template engine failed on this template"))
            }
        })
    })
}
