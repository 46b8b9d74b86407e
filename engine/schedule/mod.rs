//! Continuous batching as a pure host state machine.
//!
//! In: sequences of token ids with image spans; sampled tokens. Out: a [`Batch`] every step.
//! Owns: which sequence runs, KV pages, prefix cache, encoder rows. Not here: devices, families,
//! pixels, sampling, text, threads. Everything is deterministic: the same calls give the same batches.
//!
//! A step is `schedule` -> run on the device -> `commit`. Nothing counts as computed before `commit`; a
//! batch that is never committed (the device failed) is void, and the next `schedule` plans it again.

mod batch;
mod encoder_cache;
mod pages;
mod scheduler;
mod sequence;

pub use batch::{Batch, BatchInputs, BatchSeq, EncodeItem};
pub use encoder_cache::{EncoderCache, EncoderRef};
pub use pages::{BlockTable, Hash, PageId, PagePool};
pub use scheduler::{Scheduler, SchedulerConfig, Stats};
pub use sequence::{ImageSpan, Positions, SeqId, Sequence, SequenceSpec, SequenceState};
