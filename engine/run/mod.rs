//! Runs requests: preparing, scheduling, executing, sampling.
//!
//! In: requests. Out: events. `executor.rs` is where models and backends meet; `worker.rs` is the loop.

mod capacity;
pub mod choose;
pub mod engine;
pub mod executor;
pub mod logits;
pub mod mailbox;
pub mod philox;
pub mod prepare;
pub mod request;
pub mod sampler;
pub mod sampling_params;
pub mod stop;
mod weights;
pub mod worker;
