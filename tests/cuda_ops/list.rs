//! All ops, in the order that benchmarks print them.

pub mod compare;
pub mod device;
pub mod harness;

mod attention;
mod elementwise;
mod gated_linear;
mod kv_write;
mod layernorm;
mod linear;
mod linear_quantized;
mod linear_w8a8;
mod norm_linear;
mod paged_attention;
mod patch_embed;
mod pool;
mod qkv;
mod rmsnorm;
mod rope;
mod rows;
mod sampling;

pub const OPS: &[harness::Op] = &[
    rmsnorm::OP,
    layernorm::OP,
    elementwise::OP,
    rows::OP,
    linear::OP,
    gated_linear::OP,
    norm_linear::OP,
    qkv::OP,
    linear_quantized::OP,
    linear_w8a8::OP,
    patch_embed::OP,
    pool::OP,
    sampling::OP,
    rope::OP,
    kv_write::OP,
    attention::OP,
    paged_attention::OP,
];
