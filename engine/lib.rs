//! From-scratch inference engine for vision-language models.
//!
//! Two rivers, one meeting place. Offline: checkpoint -> models -> graph -> backend gives a `Program`,
//! compiled once. Online: input -> schedule -> run gives a `Batch` every step. They meet in
//! `run/executor.rs` only.
//!
//! ```no_run
//! use engine::{Engine, EngineOptions, Event, ImageInput, Message, Prompt, Request};
//!
//! # fn main() -> engine::Result<()> {
//! let engine = Engine::open(EngineOptions { model: "path/or/hub-id".to_string(), ..EngineOptions::default() })?;
//! let turn = Message::user(1, "What is in this picture?");
//! let request = Request::new(Prompt::Messages(vec![turn]), vec![ImageInput::Source("photo.jpg".to_string())]);
//! for event in engine.submit(&request)? {
//!     if let Event::Token { text, .. } = event? {
//!         print!("{text}");
//!     }
//! }
//! # Ok(())
//! # }
//! ```

pub mod backend;
pub mod checkpoint;
pub mod cli;
pub mod error;
pub mod graph;
pub mod input;
pub mod inspect;
pub mod models;
pub mod run;
pub mod schedule;
pub mod tensor;

pub use error::{Error, Result};
pub use input::message::{ImageSource, Message, Part, Role};
pub use run::engine::{Device, Engine, EngineOptions, Handle};
pub use run::request::{Answer, Event, FinishReason, ImageInput, Prompt, Request, Timings, TokenLogprobs};
pub use run::sampling_params::SamplingFlags;
