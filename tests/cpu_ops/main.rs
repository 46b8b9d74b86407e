//! The CPU backend's operations against definitions in f64, written here from the formulas; bit equality over
//! instruction sets, thread counts, batch sizes and chunkings.

mod attention;
mod common;
mod elementwise;
mod matmul;
mod patch_embed;
mod rotary;
