//! run

pub mod logits;
pub mod philox;
pub mod sampler;
pub mod sampling_params;
pub mod stop;
