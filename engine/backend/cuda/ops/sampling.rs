//! Choosing tokens on the device (kernels/sampling.cu): one scan of the logits, one choice a row.
//!
//! In: logits on the device, settings and token lists that the host fills every step. Out: two launches; the meaning of
//! what they write. Owns: the layout of settings and choices. Not here: what a setting means (`run/sampler.rs`), which
//! tokens are penalised, forced or banned (`run/logits.rs`).

use bytemuck::{Pod, Zeroable};

use crate::backend::cuda::{Cuda, DeviceSlice, Launch, LaunchConfig, ops};
use crate::{Error, Result};

/// Masses are 64-bit integers, which this many weights of 1 would fill; token ids are searched in as many bits.
const MAX_VOCAB: usize = 1 << 19;
/// Parts of a row in the scan: one lane each in the choice.
const MAX_PARTS: usize = 32;
const MAX_TOP: usize = 1024;
const SCAN_THREADS: u32 = 256;
const CHOOSE_THREADS: u32 = 1024;
/// Bytes of one part's result.
const PART_BYTES: usize = 16;

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
    /// Greedy, without any processing.
    fn default() -> SamplingSettings {
        SamplingSettings { top_p: 1.0, repetition_penalty: 1.0, num_top: -1, ..Zeroable::zeroed() }
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

/// Mirrors `SamplingArgs` in kernels/sampling.cu.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SamplingArgs {
    logits: u64,
    settings: u64,
    ids: u64,
    partials: u64,
    chosen: u64,
    top: u64,
    tokens: u64,
    num_rows: u64,
    vocab: i32,
    parts: i32,
    max_top: i32,
    unused: i32,
}
const _: () = assert!(size_of::<SamplingArgs>() == 80);

/// Two launches: a token for every row.
pub struct Sampling<'a> {
    /// `[rows, vocab]` f32, contiguous; penalties and bans are applied in place.
    pub logits: DeviceSlice<'a>,
    /// `[rows]` [`SamplingSettings`].
    pub settings: DeviceSlice<'a>,
    /// i32 token ids that the settings' ranges point into.
    pub ids: DeviceSlice<'a>,
    /// Work memory of [`Sampling::partials_bytes`].
    pub partials: DeviceSlice<'a>,
    /// `[rows]` [`SamplingChoice`].
    pub chosen: DeviceSlice<'a>,
    /// `[rows, max_top]` [`SamplingTop`].
    pub top: DeviceSlice<'a>,
    /// `[rows]` i32: the chosen tokens again, where the next step's embedding reads them.
    pub tokens: DeviceSlice<'a>,
    /// Rows of the launch; those of the batch where `num_rows` is none.
    pub rows: usize,
    pub vocab: usize,
    /// Most entries a row's list of likely tokens may have, at most 1024.
    pub max_top: usize,
    /// One i32 on the device: rows of the batch, at most `rows`.
    pub num_rows: Option<DeviceSlice<'a>>,
}

impl Sampling<'_> {
    /// Bytes of work memory for `rows` rows.
    pub fn partials_bytes(rows: usize) -> usize {
        rows * MAX_PARTS * PART_BYTES
    }

    /// Errors: slices too small, a vocabulary or a list too large, the driver's.
    pub fn prepare(&self, cuda: &Cuda) -> Result<Vec<Launch>> {
        let (op, rows) = ("sampling", self.rows);
        if self.vocab == 0 || self.vocab >= MAX_VOCAB {
            return Err(Error::Unsupported(format!(
                "{op}: a vocabulary of {}, expected 1 to {}",
                self.vocab,
                MAX_VOCAB - 1
            )));
        }
        if rows == 0 || rows > usize::from(u16::MAX) || self.max_top > MAX_TOP {
            return Err(Error::Internal(format!("{op}: {rows} rows with {} likely tokens each", self.max_top)));
        }
        for (name, slice, bytes) in [
            ("logits", &self.logits, rows * self.vocab * 4),
            ("settings", &self.settings, rows * size_of::<SamplingSettings>()),
            ("partials", &self.partials, Sampling::partials_bytes(rows)),
            ("chosen", &self.chosen, rows * size_of::<SamplingChoice>()),
            ("top", &self.top, rows * self.max_top * size_of::<SamplingTop>()),
            ("tokens", &self.tokens, rows * 4),
        ] {
            ops::check_bytes(op, name, slice.bytes(), bytes)?;
        }
        if let Some(num_rows) = &self.num_rows {
            ops::check_bytes(op, "num_rows", num_rows.bytes(), 4)?;
        }
        // About two blocks a multiprocessor, and no part shorter than one pass of its block.
        let blocks = 2 * cuda.device().multiprocessors() as usize;
        let most = self.vocab.div_ceil(4 * SCAN_THREADS as usize).clamp(1, MAX_PARTS);
        let parts = blocks.div_ceil(rows).clamp(1, most);
        let args = SamplingArgs {
            logits: self.logits.address(),
            settings: self.settings.address(),
            ids: self.ids.address(),
            partials: self.partials.address(),
            chosen: self.chosen.address(),
            top: self.top.address(),
            tokens: self.tokens.address(),
            num_rows: self.num_rows.map_or(0, |n| n.address()),
            vocab: self.vocab as i32,
            parts: parts as i32,
            max_top: self.max_top as i32,
            unused: 0,
        };
        let launch = |entry: &str, grid: (u32, u32, u32), threads: u32| {
            let config = LaunchConfig { grid, block: (threads, 1, 1), shared_bytes: 0 };
            // SAFETY: the struct is the kernels', and the slices hold all that they touch, as checked above; ranges of
            // token ids are the caller's.
            unsafe { Launch::new(cuda.kernel("sampling", entry)?, config, &args) }
        };
        Ok(vec![
            launch("sampling_scan", (parts as u32, rows as u32, 1), SCAN_THREADS)?,
            launch("sampling_choose", (rows as u32, 1, 1), CHOOSE_THREADS)?,
        ])
    }
}
