//! Running kernels: `grid` (blocks over cores), `team` (their threads), `block` (warps, barriers), `warp` (the instruction loop), `lanes` and `float`
//! (arithmetic), `memory` (addresses), `shared` (races), `asynchronous` (cp.async, mbarriers), `tensor` (mma, ldmatrix),
//! `collective` (shuffles, votes), `atomics`, `text` (printf).
//!
//! Here raw pointers into register files and device memory are the working material; each module says what keeps them valid.
#![allow(unsafe_op_in_unsafe_fn)]

pub mod asynchronous;
pub mod atomics;
pub mod block;
pub mod carry;
pub mod collective;
pub mod exact;
pub mod fault;
pub mod float;
pub mod grid;
pub mod lanes;
pub mod memory;
pub mod shared;
pub mod team;
pub mod tensor;
pub mod text;
pub mod warp;

/// What an `OpFn` returns.
pub mod status {
    /// Go on.
    pub const OK: u32 = 0;
    /// The block's fault is set; the launch ends.
    pub const FAULT: u32 = 1;
    /// Go on, but let other warps run first (a wait that did not succeed).
    pub const YIELD: u32 = 2;
}
