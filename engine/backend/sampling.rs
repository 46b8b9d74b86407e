//! Choosing tokens on a device: what it is told about the rows of a step, and what it says.
//!
//! In: settings and token lists, row by row. Out: flat arrays for the device; the meaning of what it writes. Owns: both
//! layouts, which kernels mirror. Not here: what a setting means (`run/sampler.rs`), which tokens are penalised, forced
//! or banned (`run/logits.rs`).

use bytemuck::{Pod, Zeroable};

use crate::{Error, Result};

/// How a row's token is chosen. Mirrors `SamplingSettings` in kernels/sampling.cu.
///
/// Ranges are those of the list of token ids. A forced list that is not empty leaves its tokens alone, all with logit 0;
/// banned tokens are out even then. So a host whose processors ban, then force, then suppress hands over the last two.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct SamplingSettings {
    /// 0 is greedy.
    pub temperature: f32,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub min_p: f32,
    pub repetition_penalty: f32,
    /// 0 is off.
    pub top_k: i32,
    /// Most likely tokens that are wanted with their logits; -1 when no log-probabilities are wanted at all.
    pub num_top: i32,
    /// Tokens under the repetition penalty, each once.
    pub penalized: [i32; 2],
    pub forced: [i32; 2],
    pub banned: [i32; 2],
    pub seed: u64,
    /// Of the token in the answer, from 0.
    pub position: u64,
}
const _: () = assert!(size_of::<SamplingSettings>() == 64);

impl Default for SamplingSettings {
    /// Greedy, without any processing: the logits stay as they are.
    fn default() -> SamplingSettings {
        SamplingSettings { top_p: 1.0, repetition_penalty: 1.0, num_top: -1, ..Zeroable::zeroed() }
    }
}

/// The most that a row may ask of a device. A row that asks for more is left to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SamplingLimits {
    /// Token ids in the row's lists together.
    pub ids: usize,
    /// Likely tokens with log-probabilities.
    pub top: usize,
}

/// What the rows of a step ask for, in the order of the rows.
#[derive(Debug, Clone, Default)]
pub struct SamplingBatch {
    settings: Vec<SamplingSettings>,
    ids: Vec<i32>,
    on_host: Vec<bool>,
}

impl SamplingBatch {
    /// Forgets all rows and keeps the memory.
    pub fn clear(&mut self) {
        self.settings.clear();
        self.ids.clear();
        self.on_host.clear();
    }

    /// Adds a row; the ranges of `settings` become those of its lists. Where it asks for more than `limits`, the host
    /// chooses its token. That depends on nothing but the row.
    pub fn push(
        &mut self,
        limits: &SamplingLimits,
        settings: SamplingSettings,
        [penalized, forced]: [&[u32]; 2],
        each_banned: impl FnOnce(&mut dyn FnMut(u32)),
    ) {
        let begin = self.ids.len();
        let most = begin + limits.ids;
        let ids = &mut self.ids;
        // What no vocabulary has stays outside of it: such a token is passed over, and forcing it leaves none.
        let mut add = |token: u32| ids.push(i32::try_from(token).unwrap_or(i32::MAX));
        penalized.iter().copied().for_each(&mut add);
        forced.iter().copied().for_each(&mut add);
        each_banned(&mut add);
        if self.ids.len() > most || settings.num_top > limits.top as i32 {
            self.ids.truncate(begin);
            return self.push_for_host();
        }
        let (second, third) = (begin + penalized.len(), begin + penalized.len() + forced.len());
        let range = |from: usize, to: usize| [from as i32, to as i32];
        self.on_host.push(false);
        self.settings.push(SamplingSettings {
            penalized: range(begin, second),
            forced: range(second, third),
            banned: range(third, self.ids.len()),
            ..settings
        });
    }

    /// Adds a row whose logits the host wants as they are.
    pub fn push_for_host(&mut self) {
        self.on_host.push(true);
        self.settings.push(SamplingSettings::default());
    }

    /// One a row.
    pub fn settings(&self) -> &[SamplingSettings] {
        &self.settings
    }

    /// The lists of all rows; all ranges lie within.
    pub fn ids(&self) -> &[i32] {
        &self.ids
    }

    /// Which rows the host chooses for.
    pub fn on_host(&self) -> &[bool] {
        &self.on_host
    }
}

/// What was chosen for a row. Mirrors `SamplingChoice` in kernels/sampling.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct SamplingChoice {
    pub token: i32,
    /// 0; 1 for a logit that is no number or infinite; 2 where processing left no token.
    pub status: i32,
    /// The token's logit after temperature.
    pub value: f32,
    /// The greatest logit after temperature.
    pub max: f32,
    /// Of `exp(logit - max)` over the tokens that stay; where log-probabilities are wanted or a token was drawn.
    pub sum: f64,
    /// Entries of the row's list of likely tokens, in no order.
    pub num_top: i32,
    unused: i32,
}
const _: () = assert!(size_of::<SamplingChoice>() == 32);

/// A likely token and its logit after temperature. Mirrors `SamplingTop` in kernels/sampling.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct SamplingTop {
    pub token: i32,
    pub value: f32,
}

impl SamplingChoice {
    /// Errors: [`Error::Model`] for a logit that is not a number or infinite, [`Error::Request`] where no token is left,
    /// both for the token at `position` of the answer.
    pub fn check(&self, position: u64) -> Result<()> {
        match self.status {
            0 => Ok(()),
            1 => Err(Error::Model(format!(
                "token {position} of the answer: logit {} is {}: the model overflows; try --dtype f32 or bf16",
                self.token, self.value
            ))),
            _ => Err(Error::Request(format!(
                "token {position} of the answer: bad words, suppressed tokens and minimum length leave no token to choose"
            ))),
        }
    }

    /// Natural log-probability of a token with this logit; of the chosen one with `self.value`.
    pub fn logprob(&self, value: f32) -> f32 {
        (f64::from(value - self.max) - self.sum.ln()) as f32
    }

    /// The likely tokens with their log-probabilities, most likely first, of equal ones the lower id first. `entries` is
    /// the row's list as the device left it.
    pub fn top(&self, entries: &[SamplingTop]) -> Vec<(u32, f32)> {
        let count = usize::try_from(self.num_top).unwrap_or(0).min(entries.len());
        let mut entries = entries[..count].to_vec();
        entries.sort_unstable_by(|a, b| b.value.total_cmp(&a.value).then(a.token.cmp(&b.token)));
        entries.iter().map(|e| (e.token as u32, self.logprob(e.value))).collect()
    }
}

/// The choices of a step.
#[derive(Debug, Clone, Default)]
pub struct Choices {
    pub rows: Vec<SamplingChoice>,
    /// `[rows, top_stride]` lists of likely tokens.
    pub top: Vec<SamplingTop>,
    /// 0 where no row wanted a list.
    pub top_stride: usize,
}

impl Choices {
    /// A row's choice and its list. Panics where there is no such row.
    pub fn row(&self, row: usize) -> (&SamplingChoice, &[SamplingTop]) {
        (&self.rows[row], &self.top[row * self.top_stride..][..self.top_stride])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_follow_one_another_and_large_rows_stay_on_the_host() {
        let limits = SamplingLimits { ids: 4, top: 2 };
        let mut batch = SamplingBatch::default();
        let settings = SamplingSettings { num_top: 2, penalized: [7, 9], ..SamplingSettings::default() };
        batch.push(&limits, settings, [&[5, 6], &[]], |ban| ban(8));
        batch.push(&limits, settings, [&[1, 2, 3], &[]], |ban| [4, 5].into_iter().for_each(ban));
        batch.push(&limits, SamplingSettings { num_top: 3, ..settings }, [&[], &[]], |_| {});
        batch.push(&limits, settings, [&[], &[u32::MAX]], |ban| ban(3));
        assert_eq!(
            (batch.ids(), batch.on_host()),
            ([5, 6, 8, i32::MAX, 3].as_slice(), [false, true, true, false].as_slice())
        );
        let ranges: Vec<_> = batch.settings().iter().map(|s| [s.penalized, s.forced, s.banned]).collect();
        assert_eq!(ranges, [[[0, 2], [2, 2], [2, 3]], [[0; 2]; 3], [[0; 2]; 3], [[3, 3], [3, 4], [4, 5]]]);
        assert_eq!(batch.settings()[1], SamplingSettings::default());
        batch.clear();
        assert!(batch.settings().is_empty() && batch.ids().is_empty() && batch.on_host().is_empty());
    }
}
