//! All ops, in the order that benchmarks print them.

pub mod compare;
pub mod device;
pub mod harness;

mod elementwise;
mod layernorm;
mod rmsnorm;
mod rows;

pub const OPS: &[harness::Op] = &[rmsnorm::OP, layernorm::OP, elementwise::OP, rows::OP];
