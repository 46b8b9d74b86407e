//! A time model: what a launch would take on a real part. A model, not a measurement.
//! In: counts, a part. Out: seconds and what bounds them. Owns: the formula. Not here: the parts (`device`).
//!
//! t = max(bytes / (reached bandwidth), mma FLOPs / (0.7 of the mma.sync ceiling), warp instructions / (4 schedulers x SMs x clock
//! x 0.7)) + gap. Bytes are first touches of 32-byte sectors, as if L2 kept everything a launch reads twice. Warp instructions
//! are PTX instructions; ptxas drops moves and fuses addresses, so the issue bound is an upper one.

use crate::counters::LaunchCounts;
use crate::device::Part;

/// The parts of a prediction, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Prediction {
    /// Time for device memory.
    pub memory: f64,
    /// Time for the tensor cores.
    pub tensor: f64,
    /// Time to issue the instructions.
    pub issue: f64,
    /// All of it: the largest plus the gap, for each launch.
    pub total: f64,
    /// Which of them is the largest.
    pub bound: &'static str,
}

/// Predicts summed launches of one shape.
pub fn predict(c: &LaunchCounts, p: &Part) -> Prediction {
    let bytes = 32.0 * (c.sum(|x| x.unique_read) + c.sum(|x| x.unique_written)) as f64;
    let memory = bytes / (p.bandwidth * p.reached_bandwidth);
    let tensor = c.mma_flops() as f64 / (p.mma_flops * 0.7);
    let issue = c.issued() as f64 / (4.0 * f64::from(p.num_sms) * f64::from(p.clock_khz) * 1e3 * 0.7);
    let top = memory.max(tensor).max(issue);
    let bound = if top == memory {
        "memory"
    } else if top == tensor {
        "tensor"
    } else {
        "issue"
    };
    Prediction { memory, tensor, issue, total: top + p.gap * c.launches as f64, bound }
}
