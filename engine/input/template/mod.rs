//! The template engine behind chat templates: Jinja2 as transformers sets it up, on minijinja.
//!
//! In: template source and variables. Out: text. Not here: messages, files, special tokens (`chat_template.rs`).

mod clock;
mod environment;
mod generation;
mod python;

pub use environment::Template;
