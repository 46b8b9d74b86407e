//! The CPU backend: the specification of every operation, and a fast backend of its own.
//!
//! In: f32 rows, weights in stored form. Out: f32 rows. Owns: the arithmetic, as plain functions on slices.
//! Not here: which operations a model runs (`program.rs` walks the plan).
//!
//! Layers, from the bottom: `isa` and `simd` (sixteen lanes on any instruction set), `math`, then one file or
//! folder an operation. Every function gives the same bits for a row whatever the batch, the thread count and the
//! instruction set. Lengths are checked; a mismatch is `Error::Internal` that names operation and array.

pub mod activations;
pub mod attention;
mod buffer;
pub mod elementwise;
pub mod gather;
pub mod isa;
pub mod kv_cache;
pub mod logits;
mod math;
pub mod matmul;
pub mod matrix;
mod memory;
pub mod norms;
mod parallel;
pub mod patch_embed;
mod program;
pub mod rope;
mod simd;
mod tile;

pub use matrix::{Matrix, WeightData};
pub use program::CpuBackend;
