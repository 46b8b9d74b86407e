//! Choosing tokens on the device (kernels/sampling.cu): one scan of the logits, one choice a row.
//!
//! In: logits on the device, settings and token lists that the host fills every step. Out: two launches. Owns: how the
//! work is split. Not here: the layout of settings and choices (`backend/sampling.rs`).

use bytemuck::{Pod, Zeroable};

use crate::backend::cuda::{Cuda, DeviceSlice, Launch, LaunchConfig, ops};
use crate::backend::sampling::{SamplingChoice, SamplingSettings, SamplingTop};
use crate::{Error, Result};

/// Masses are 64-bit integers, which one weight of 1 more would fill; token ids are searched in 19 bits.
pub const MAX_VOCAB: usize = (1 << 19) - 1;
/// Blocks of the scan's second dimension.
pub const MAX_ROWS: usize = u16::MAX as usize;
/// Parts of a row in the scan: one lane each in the choice.
const MAX_PARTS: usize = 32;
const MAX_TOP: usize = 1024;
const SCAN_THREADS: u32 = 256;
const CHOOSE_THREADS: u32 = 1024;
/// Bytes of one part's result.
const PART_BYTES: usize = 16;

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
        if self.vocab == 0 || self.vocab > MAX_VOCAB {
            return Err(Error::Unsupported(format!("{op}: a vocabulary of {}, expected 1 to {MAX_VOCAB}", self.vocab)));
        }
        if rows == 0 || rows > MAX_ROWS || self.max_top > MAX_TOP {
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
