//! Choosing a token.
//!
//! In: one row of processed logits `[vocab]`, the request's settings, the token's position. Out: a token, and
//! log-probabilities when wanted. Owns: scratch memory that all sequences share. Not here: processors that need the
//! sequence's history (`logits.rs`).
//!
//! With temperature 0 the first of the greatest logits is taken. Otherwise, in the order and with the meaning of
//! transformers 5: temperature, top-k, top-p, min-p; then a draw that depends on the seed and the position only.
//! Log-probabilities are those of the row after all of this.

use super::philox;
use super::sampling_params::SamplingParams;
use super::weights::{sum, sum_of_exp, weights_of};
use crate::{Error, Result};

const BANNED: f32 = f32::NEG_INFINITY;
/// Candidates that top-p sorts at first; four times as many in every further round until their mass suffices.
const TOP_P_CHUNK: usize = 256;
/// Weights that are summed before they are looked at one by one.
const DRAW_BLOCK: usize = 512;

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    pub token: u32,
    /// Its natural log-probability; `None` unless asked for.
    pub logprob: Option<f32>,
    /// The most likely tokens, most likely first, of equal ones the lower id first. Banned tokens are left out, so
    /// there may be fewer than asked for.
    pub top: Vec<(u32, f32)>,
}

/// Chooses tokens; one for all sequences of a worker.
#[derive(Debug, Default)]
pub struct Sampler {
    /// Logits that are being selected from.
    values: Vec<f32>,
    /// Exponentials of the row.
    weights: Vec<f32>,
    /// Token ids.
    order: Vec<u32>,
}

impl Sampler {
    /// A sampler whose scratch memory suffices for rows of `vocab` logits.
    pub fn new(vocab: usize) -> Self {
        Sampler {
            values: Vec::with_capacity(vocab),
            weights: Vec::with_capacity(vocab),
            order: Vec::with_capacity(vocab),
        }
    }

    /// Chooses the token at `position` of the answer (0 is the first). The row is changed by the settings.
    ///
    /// # Errors
    /// `Error::Model` when a logit is not a number, `Error::Request` when the processors have left no token.
    pub fn sample(&mut self, row: &mut [f32], params: &SamplingParams, position: u64) -> Result<Sampled> {
        let (best, mut max) = argmax(row, position)?;
        let token = if params.is_greedy() {
            best
        } else {
            max = divide_by_temperature(row, params.temperature, max);
            if params.top_k > 0 && params.top_k < row.len() {
                let least = self.nth_greatest(row, params.top_k);
                ban_where(row, |logit| logit < least);
            }
            weights_of(row, max, &mut self.weights);
            if params.top_p < 1.0 {
                self.top_p(row, params.top_p);
            }
            if params.min_p > 0.0 {
                self.ban_and_forget(row, |_, _, weight| weight < params.min_p);
            }
            draw(&self.weights, params.seed, position).unwrap_or(best)
        };
        let Some(num_top) = params.logprobs else {
            return Ok(Sampled { token, logprob: None, top: Vec::new() });
        };
        let log_sum = sum_of_exp(row, max).ln();
        let logprob = |token: u32| (f64::from(row[token as usize] - max) - log_sum) as f32;
        let top = self.top(row, num_top).into_iter().map(|token| (token, logprob(token))).collect();
        Ok(Sampled { token, logprob: Some(logprob(token)), top })
    }

    /// The `n`-th greatest logit, counted from 1; `n` is at most the row's length.
    fn nth_greatest(&mut self, row: &[f32], n: usize) -> f32 {
        // The greatest ones of what has been passed, and perhaps some more. What is not above the n-th of them cannot
        // move it.
        let room = n.saturating_mul(4).max(1024).min(row.len());
        let mut least = None;
        self.values.clear();
        for &logit in row {
            if least.is_none_or(|least| logit > least) {
                self.values.push(logit);
                if self.values.len() == room {
                    let (_, &mut nth, _) = self.values.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a));
                    self.values.truncate(n);
                    least = Some(nth);
                }
            }
        }
        let (_, &mut nth, _) = self.values.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a));
        nth
    }

    /// Keeps the shortest list of the most likely tokens whose mass reaches `p`, at least one.
    fn top_p(&mut self, row: &mut [f32], p: f32) {
        let total = sum(&self.weights);
        let enough = f64::from(p) * total;
        // All tokens below this weight together have less mass than the part that is cut off.
        let floor = ((total - enough) / row.len() as f64) as f32;
        let weights = &self.weights;
        self.order.clear();
        self.order.extend((0..row.len() as u32).filter(|&i| weights[i as usize] > 0.0 && weights[i as usize] >= floor));
        // transformers sorts upwards and cuts from below, so of equal logits the lower ids go first.
        let descending = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(b.cmp(a));
        let mut sorted = 0;
        let mut above = 0.0;
        let mut kept = 0;
        let mut chunk = TOP_P_CHUNK;
        while kept == sorted && sorted < self.order.len() && (kept == 0 || above < enough) {
            let rest = &mut self.order[sorted..];
            let take = chunk.min(rest.len());
            if take < rest.len() {
                rest.select_nth_unstable_by(take - 1, descending);
            }
            rest[..take].sort_unstable_by(descending);
            sorted += take;
            chunk *= 4;
            while kept < sorted && (kept == 0 || above < enough) {
                above += f64::from(weights[self.order[kept] as usize]);
                kept += 1;
            }
        }
        if let Some(&last) = kept.checked_sub(1).and_then(|last| self.order.get(last)) {
            let least = row[last as usize];
            self.ban_and_forget(row, |token, logit, _| logit < least || (logit == least && token < last));
        }
    }

    /// Bans tokens by id, logit and weight.
    fn ban_and_forget(&mut self, row: &mut [f32], banned: impl Fn(u32, f32, f32) -> bool) {
        for (token, (logit, weight)) in row.iter_mut().zip(&mut self.weights).enumerate() {
            if banned(token as u32, *logit, *weight) {
                *logit = BANNED;
                *weight = 0.0;
            }
        }
    }

    /// The `k` most likely tokens that are not banned.
    fn top(&mut self, row: &[f32], k: usize) -> Vec<u32> {
        let k = k.min(row.len());
        if k == 0 {
            return Vec::new();
        }
        let least = self.nth_greatest(row, k);
        self.order.clear();
        self.order.extend((0..row.len() as u32).filter(|&i| row[i as usize] >= least && row[i as usize] > BANNED));
        self.order.sort_unstable_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b)));
        self.order.truncate(k);
        self.order.clone()
    }
}

/// Divides the row and gives its new greatest value. A tiny temperature would carry the logits themselves beyond f32;
/// then their differences to the greatest one are divided, which may go to minus infinity.
fn divide_by_temperature(row: &mut [f32], temperature: f32, max: f32) -> f32 {
    if temperature == 1.0 {
        return max;
    }
    let shift = if (max / temperature).is_finite() { 0.0 } else { max };
    for logit in row.iter_mut() {
        *logit = (*logit - shift) / temperature;
    }
    (max - shift) / temperature
}

/// Draws a token in proportion to its weight; `None` when all weights are 0.
fn draw(weights: &[f32], seed: u64, position: u64) -> Option<u32> {
    let threshold = philox::uniform(seed, position) * sum(weights);
    let mut below = 0.0;
    let mut last = None;
    for (block, chunk) in weights.chunks(DRAW_BLOCK).enumerate() {
        let block_sum = sum(chunk);
        if block_sum == 0.0 {
            continue;
        }
        let mut within = chunk.iter().enumerate().filter(|(_, weight)| **weight > 0.0);
        if below + block_sum <= threshold {
            // Rounding can leave the threshold beyond the last block.
            last = within.next_back().map(|(i, _)| (block * DRAW_BLOCK + i) as u32);
            below += block_sum;
            continue;
        }
        for (i, &weight) in within {
            below += f64::from(weight);
            last = Some((block * DRAW_BLOCK + i) as u32);
            if below > threshold {
                break;
            }
        }
        return last;
    }
    last
}

/// The first of the greatest logits, and its value.
fn argmax(row: &[f32], position: u64) -> Result<(u32, f32)> {
    // Independent lanes, so that the compiler can use vector instructions.
    const LANES: usize = 16;
    let mut lanes = [BANNED; LANES];
    let mut all_numbers = true;
    let chunks = row.chunks_exact(LANES);
    for (lane, &logit) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = logit;
    }
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            all_numbers &= !logit.is_nan();
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    let max = lanes.iter().copied().fold(BANNED, f32::max);
    let wrong = |logit: &f32| logit.is_nan() || *logit == f32::INFINITY;
    if !all_numbers || lanes.iter().any(wrong) {
        let token = row.iter().position(wrong).unwrap_or(0);
        return Err(Error::Model(format!(
            "token {position} of the answer: logit {token} is {}: the model overflows; try --dtype f32 or bf16",
            row.get(token).copied().unwrap_or(f32::NAN)
        )));
    }
    match row.iter().position(|&logit| logit == max) {
        Some(token) if max > BANNED => Ok((token as u32, max)),
        _ => Err(Error::Request(format!(
            "token {position} of the answer: bad words, suppressed tokens and minimum length leave no token to choose"
        ))),
    }
}

fn ban_where(row: &mut [f32], banned: impl Fn(f32) -> bool) {
    for logit in row {
        if banned(*logit) {
            *logit = BANNED;
        }
    }
}
