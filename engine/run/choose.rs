//! A sequence's next token, chosen on the device or, from its row of logits, on the host.
//!
//! In: a request's settings and processors; its row of a step's results. Out: what the device is asked; the token. The
//! host chooses where the device has no sampler, where a probe looks at values, and for a row that asks for more than the
//! device takes ([`SamplingLimits`]): which side it is depends on that row and not on its neighbours. Not here: what the
//! settings mean (`sampler.rs`, `logits.rs`).

use super::logits::LogitsProcessors;
use super::sampler::{Sampled, Sampler};
use super::sampling_params::SamplingParams;
use crate::Result;
use crate::backend::sampling::{SamplingBatch, SamplingChoice, SamplingLimits, SamplingSettings, SamplingTop};

/// What a step gives a sequence that samples.
pub enum Row<'a> {
    /// Logits, `[vocab_size]`, unprocessed.
    Logits(&'a mut [f32]),
    /// The device's choice, and its list of likely tokens.
    Choice(&'a SamplingChoice, &'a [SamplingTop]),
}

/// Asks for the token at `position` of the answer.
pub fn ask(
    rows: &mut SamplingBatch,
    limits: &SamplingLimits,
    params: &SamplingParams,
    processors: &LogitsProcessors,
    position: u64,
) {
    let int = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let settings = SamplingSettings {
        temperature: params.temperature,
        top_p: params.top_p,
        min_p: params.min_p,
        repetition_penalty: params.repetition_penalty,
        top_k: int(params.top_k),
        num_top: params.logprobs.map_or(-1, int),
        seed: params.seed,
        position,
        ..SamplingSettings::default()
    };
    let lists = [processors.penalized(), processors.forced()];
    rows.push(limits, settings, lists, |ban| processors.each_banned(ban));
}

/// The token at `position` of the answer.
///
/// # Errors
/// Those of [`Sampler::sample`], from either side.
pub fn take(
    row: Row,
    sampler: &mut Sampler,
    params: &SamplingParams,
    processors: &LogitsProcessors,
    position: u64,
) -> Result<Sampled> {
    match row {
        Row::Logits(row) => {
            processors.apply(row);
            sampler.sample(row, params, position)
        }
        Row::Choice(choice, top) => {
            choice.check(position)?;
            let logprob = params.logprobs.map(|_| choice.logprob(choice.value));
            Ok(Sampled { token: choice.token as u32, logprob, top: choice.top(top) })
        }
    }
}
