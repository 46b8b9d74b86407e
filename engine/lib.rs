//! From-scratch inference engine for vision-language models.
//!
//! Two rivers, one meeting place. Offline: checkpoint -> models -> graph -> backend gives a `Program`,
//! compiled once. Online: input -> schedule -> run gives a `Batch` every step. They meet in
//! `run/executor.rs` only.

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
