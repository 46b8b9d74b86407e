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
use crate::{Error, Result};

const BANNED: f32 = f32::NEG_INFINITY;
/// Candidates that top-p sorts at first; doubled until their mass suffices.
const TOP_P_CHUNK: usize = 256;

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
    /// Values, or token ids, that are being selected from.
    values: Vec<f32>,
    order: Vec<u32>,
}

impl Sampler {
    /// A sampler whose scratch memory suffices for rows of `vocab` logits.
    pub fn new(vocab: usize) -> Self {
        Sampler { values: Vec::with_capacity(vocab), order: Vec::with_capacity(vocab) }
    }

    /// Chooses the token at `position` of the answer (0 is the first). The row is changed by the settings.
    ///
    /// # Errors
    /// `Error::Model` when a logit is not a number, `Error::Request` when the processors have left no token.
    pub fn sample(&mut self, row: &mut [f32], params: &SamplingParams, position: u64) -> Result<Sampled> {
        let (best, max) = argmax(row, position)?;
        let token = if params.is_greedy() {
            best
        } else {
            self.warp(row, params, max);
            self.draw(row, params.seed, position)
        };
        let Some(num_top) = params.logprobs else {
            return Ok(Sampled { token, logprob: None, top: Vec::new() });
        };
        let max = row.iter().copied().fold(BANNED, f32::max);
        let sum: f64 = row.iter().map(|&logit| f64::from((logit - max).exp())).sum();
        let log_sum = sum.ln();
        let logprob = |logit: f32| (f64::from(logit - max) - log_sum) as f32;
        let top = self.top(row, num_top).into_iter().map(|token| (token, logprob(row[token as usize]))).collect();
        Ok(Sampled { token, logprob: Some(logprob(row[token as usize])), top })
    }

    /// Temperature, top-k, top-p and min-p. `max` is the row's greatest logit.
    fn warp(&mut self, row: &mut [f32], params: &SamplingParams, max: f32) {
        let temperature = params.temperature;
        if temperature != 1.0 {
            // A tiny temperature would carry the logits themselves beyond f32; their differences to the greatest one
            // may go to minus infinity.
            let shift = if (max / temperature).is_finite() { 0.0 } else { max };
            for logit in row.iter_mut() {
                *logit = (*logit - shift) / temperature;
            }
        }
        if params.top_k > 0 && params.top_k < row.len() {
            self.top_k(row, params.top_k);
        }
        if params.top_p < 1.0 {
            self.top_p(row, params.top_p);
        }
        if params.min_p > 0.0 {
            let max = row.iter().copied().fold(BANNED, f32::max);
            ban_where(row, |logit| (logit - max).exp() < params.min_p);
        }
    }

    /// Keeps the `k` greatest logits and what equals the last of them.
    fn top_k(&mut self, row: &mut [f32], k: usize) {
        self.values.clear();
        self.values.extend_from_slice(row);
        let (_, &mut least, _) = self.values.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        ban_where(row, |logit| logit < least);
    }

    /// Keeps the shortest list of the most likely tokens whose mass reaches `p`, at least one.
    fn top_p(&mut self, row: &mut [f32], p: f32) {
        let max = row.iter().copied().fold(BANNED, f32::max);
        let weight = |logit: f32| f64::from((logit - max).exp());
        let total: f64 = row.iter().map(|&logit| weight(logit)).sum();
        self.order.clear();
        self.order.extend((0..row.len() as u32).filter(|&i| row[i as usize] > BANNED));
        // transformers sorts upwards and cuts from below, so of equal logits the lower ids go first.
        let descending = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(b.cmp(a));
        let enough = f64::from(p) * total;
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
            chunk *= 2;
            while kept < sorted && (kept == 0 || above < enough) {
                above += weight(row[self.order[kept] as usize]);
                kept += 1;
            }
        }
        for &token in &self.order[kept..] {
            row[token as usize] = BANNED;
        }
    }

    /// Draws a token in proportion to the exponentials of the row.
    fn draw(&mut self, row: &[f32], seed: u64, position: u64) -> u32 {
        let max = row.iter().copied().fold(BANNED, f32::max);
        self.values.clear();
        self.values.extend(row.iter().map(|&logit| (logit - max).exp()));
        let total: f64 = self.values.iter().copied().map(f64::from).sum();
        let threshold = philox::uniform(seed, position) * total;
        let mut below = 0.0;
        let mut last = 0;
        for (token, &weight) in self.values.iter().enumerate() {
            if weight > 0.0 {
                below += f64::from(weight);
                last = token;
                if below > threshold {
                    break;
                }
            }
        }
        last as u32
    }

    /// The `k` most likely tokens that are not banned.
    fn top(&mut self, row: &[f32], k: usize) -> Vec<u32> {
        if k == 0 {
            return Vec::new();
        }
        self.order.clear();
        self.order.extend((0..row.len() as u32).filter(|&i| row[i as usize] > BANNED));
        let descending = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
        let k = k.min(self.order.len());
        if k < self.order.len() {
            self.order.select_nth_unstable_by(k, descending);
        }
        let top = &mut self.order[..k];
        top.sort_unstable_by(descending);
        top.to_vec()
    }
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
