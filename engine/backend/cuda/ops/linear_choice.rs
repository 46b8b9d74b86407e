//! Which kernel computes a linear layer of a size.
//!
//! In: rows of the bucket, the shape and storage of the weight, the GPU's multiprocessors. Out: kernel, splits of k, the
//! memory that these need. Owns: the choice, nowhere else is one made. Not here: arguments of a launch (`linear.rs`).

use crate::backend::cuda::pack;
use crate::{Error, Result};

/// Rows up to which a layer computes the norm of its input: every block reads all of x, and the multiply has room for
/// so many beside the norm's weight (kernels/gemv_norm.cu).
pub const NORM_ROWS: usize = 8;

/// A storage of weights, as far as the choice of a kernel goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// f16 or bf16.
    Dense,
    Int8,
    /// Weights and activations.
    Int8Both,
    Int4,
}

/// What [`Work`] must hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkBytes {
    pub partial_bytes: usize,
    pub arrived_bytes: usize,
}

/// Work memory of a layer of `columns` (of a gated one: gate's and up's) in a launch of `rows`; none where k is not split.
pub fn work_bytes(rows: usize, columns: usize, k: usize, multiprocessors: usize) -> WorkBytes {
    work_bytes_of(Storage::Dense, rows, columns, k, multiprocessors)
}

/// As [`work_bytes`], of weights in any storage.
pub fn work_bytes_of(storage: Storage, rows: usize, columns: usize, k: usize, multiprocessors: usize) -> WorkBytes {
    let columns = columns.next_multiple_of(pack::PANEL_ROWS);
    choose(storage, rows, columns, k, multiprocessors).work(rows, columns)
}

/// A kernel, by what one block computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    /// gemm.cuh: a part `[rows, columns]` of y, with stages of `k` columns of x and w in shared memory.
    Tile { rows: usize, columns: usize, k: usize, stages: usize, warps: usize },
    /// gemv.cuh, gemv_integers.cuh: all rows, at most `rows`, and `16 tiles` columns of y.
    Stream { rows: usize, tiles: usize },
}

const NARROW: Kernel = Kernel::Stream { rows: 8, tiles: 1 };
const WIDE: Kernel = Kernel::Stream { rows: 8, tiles: 2 };
const TALL: Kernel = Kernel::Stream { rows: 16, tiles: 2 };
const INT8: Kernel = Kernel::Stream { rows: 8, tiles: 2 };
const INT4: Kernel = Kernel::Stream { rows: 8, tiles: 4 };
const SMALL: Kernel = Kernel::Tile { rows: 32, columns: 128, k: 64, stages: 4, warps: 4 };
const MIDDLE: Kernel = Kernel::Tile { rows: 64, columns: 128, k: 64, stages: 4, warps: 4 };
const LARGE: Kernel = Kernel::Tile { rows: 128, columns: 128, k: 32, stages: 4, warps: 4 };
const HUGE: Kernel = Kernel::Tile { rows: 128, columns: 256, k: 32, stages: 3, warps: 8 };
// Columns of int8 are counted in pairs, and there may be as few as 64 of them.
const SMALL_PAIRS: Kernel = Kernel::Tile { rows: 32, columns: 128, k: 32, stages: 4, warps: 4 };
const MIDDLE_PAIRS: Kernel = Kernel::Tile { rows: 64, columns: 128, k: 32, stages: 4, warps: 4 };
// A warp's words of int4 are of 64 columns; a stage is of one group, and those have from 32 columns on.
const SMALL_INT4: Kernel = Kernel::Tile { rows: 32, columns: 256, k: 32, stages: 4, warps: 4 };
const MIDDLE_INT4: Kernel = Kernel::Tile { rows: 64, columns: 256, k: 32, stages: 4, warps: 4 };
const STREAM_WARPS: usize = 8;

/// Of int4, what kernels are made for: columns with one scale, whether there are zero points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Groups {
    pub(super) columns: usize,
    pub(super) zeros: bool,
}

impl Groups {
    /// In a unit of 128 columns.
    fn of_unit(self) -> usize {
        128 / self.columns.clamp(1, 128)
    }
}

/// A row of x in shared memory, of `columns`: one chunk more (kRowBytes in kernels/gemv.cuh).
const fn row_bytes(columns: usize) -> usize {
    2 * columns + 16
}

/// The end of the name of a kernel with weights as stored.
fn stream_size(rows: usize, tiles: usize) -> String {
    if rows == 16 { "m16".to_string() } else { format!("r{tiles}") }
}

/// Of kernels/gemv.cuh: two units of 64 columns for each of the parts of k, of x and of a norm's weight; then the
/// warps' sums, of a norm also squares.
fn stream_bytes(rows: usize, tiles: usize, norm: bool) -> usize {
    let parts = STREAM_WARPS / tiles;
    let squares = if norm { parts * 32 } else { 0 };
    (parts * 2 * (rows + usize::from(norm)) * row_bytes(64)).max(STREAM_WARPS * (rows / 8) * 512 + squares)
}

impl Kernel {
    /// File and entry; `groups` are those of int4.
    pub(super) fn entry(self, storage: Storage, groups: Option<Groups>, suffix: &str) -> (&'static str, String) {
        let (file, size) = match (self, storage) {
            (Kernel::Tile { rows, columns, .. }, Storage::Dense) => ("gemm", format!("{rows}x{columns}")),
            (Kernel::Tile { rows, columns, .. }, Storage::Int8) => ("gemm_int8", format!("{rows}x{columns}")),
            (Kernel::Tile { rows, columns, .. }, Storage::Int8Both) => ("gemm_w8a8", format!("{rows}x{columns}")),
            (Kernel::Tile { rows, columns, .. }, Storage::Int4) => ("gemm_int4", format!("{rows}x{columns}")),
            (Kernel::Stream { rows, tiles }, Storage::Dense) => ("gemv", stream_size(rows, tiles)),
            (Kernel::Stream { tiles, .. }, Storage::Int8 | Storage::Int8Both) => ("gemv_int8", format!("r{tiles}")),
            (Kernel::Stream { .. }, Storage::Int4) => {
                let letter = if groups.is_some_and(|g| g.zeros) { "z" } else { "g" };
                ("gemv_int4", format!("{letter}{}", 128 / groups.map_or(1, Groups::of_unit)))
            }
        };
        (file, format!("{file}_{suffix}_{size}"))
    }

    /// File, entry and shared bytes of the same kernel with a norm before it, or the output of q, k and v behind it.
    pub(super) fn fused(
        self,
        suffix: &str,
        rows: usize,
        norm: bool,
        qkv: bool,
    ) -> Result<(&'static str, String, usize)> {
        let (most, tiles) = match self {
            Kernel::Stream { rows, tiles } => (rows, tiles),
            Kernel::Tile { rows, columns, .. } if qkv && !norm => {
                // Behind the stages positions of up to three components, and slots.
                let shared = self.shared_bytes(Storage::Dense, None) + rows * 4 * 4;
                return Ok(("gemm_qkv", format!("gemm_qkv_{suffix}_{rows}x{columns}"), shared));
            }
            Kernel::Tile { .. } => return Err(Error::Internal(format!("no norm is fused with {self:?}"))),
        };
        let (file, name) = match (norm, qkv) {
            (true, true) => ("gemv_qkv", "gemv_qkv_norm"),
            (false, true) => ("gemv_qkv", "gemv_qkv"),
            (_, false) => ("gemv_norm", "gemv_norm"),
        };
        // Behind x what turns each vector of four sums, then a factor a row.
        let turns = if qkv { most * tiles * 4 * 16 } else { 0 };
        let factors = if norm { rows * 4 } else { 0 };
        let size = stream_size(most, tiles);
        Ok((file, format!("{name}_{suffix}_{size}"), stream_bytes(most, tiles, norm) + turns + factors))
    }

    /// Without splits of k.
    pub(super) fn blocks(self, rows: usize, columns: usize) -> usize {
        match self {
            Kernel::Tile { rows: r, columns: c, .. } => rows.div_ceil(r) * columns.div_ceil(c),
            Kernel::Stream { tiles, .. } => columns.div_ceil(tiles * pack::TILE),
        }
    }

    pub(super) fn threads(self) -> u32 {
        match self {
            Kernel::Tile { warps, .. } => 32 * warps as u32,
            Kernel::Stream { .. } => 32 * STREAM_WARPS as u32,
        }
    }

    pub(super) fn shared_bytes(self, storage: Storage, groups: Option<Groups>) -> usize {
        match self {
            Kernel::Tile { rows, columns, k, stages, .. } => {
                let weights = match storage {
                    Storage::Dense | Storage::Int8Both => columns * k * 2,
                    Storage::Int8 => columns * k,
                    // With scales and zeros of a group.
                    Storage::Int4 => columns * k / 2 + columns * 4,
                };
                stages * (rows * k * 2 + weights)
            }
            Kernel::Stream { rows, tiles } => match storage {
                Storage::Dense => stream_bytes(rows, tiles, false),
                // A unit of 128 columns a warp, where its sums go in the end.
                Storage::Int8 | Storage::Int8Both => STREAM_WARPS * rows * row_bytes(128),
                // And a tile's totals in the place of two rows of x, scales and zeros of the unit's groups, between two
                // pairs of which there is a chunk.
                Storage::Int4 => {
                    let (of_unit, zeros) = groups.map_or((1, false), |g| (g.of_unit(), g.zeros));
                    let scales = of_unit * tiles * pack::TILE * 2 + if of_unit > 2 { 16 } else { 0 };
                    STREAM_WARPS * ((rows + 2 * tiles) * row_bytes(128) + (1 + usize::from(zeros)) * scales)
                }
            },
        }
    }

    /// Elements of y that one block sums.
    fn sums(self, rows: usize) -> usize {
        match self {
            Kernel::Tile { rows, columns, .. } => rows * columns,
            Kernel::Stream { tiles, .. } => rows * tiles * pack::TILE,
        }
    }
}

/// How a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) kernel: Kernel,
    /// Parts of k, each a block's.
    pub(super) splits: usize,
}

impl Choice {
    pub(super) fn work(self, rows: usize, columns: usize) -> WorkBytes {
        if self.splits == 1 {
            return WorkBytes::default();
        }
        let blocks = self.kernel.blocks(rows, columns);
        // Where a row's squares are summed too, for a norm, they take a vector more.
        let squares = if matches!(self.kernel, Kernel::Stream { .. }) { rows * 4 } else { 0 };
        WorkBytes {
            partial_bytes: self.splits * blocks * (self.kernel.sums(rows) + squares) * 4,
            arrived_bytes: blocks * 4,
        }
    }
}

/// As [`choose`], of the kernels that all sum a product in one order: a row's bits do not depend on how many there are.
pub(super) fn choose_alike(storage: Storage, rows: usize, columns: usize, multiprocessors: usize) -> Choice {
    Choice { kernel: tile(storage, rows, columns, multiprocessors), splits: 1 }
}

/// For up to 32 rows and up to 64.
fn small_tiles(storage: Storage) -> (Kernel, Kernel) {
    match storage {
        Storage::Dense | Storage::Int8 => (SMALL, MIDDLE),
        Storage::Int8Both => (SMALL_PAIRS, MIDDLE_PAIRS),
        Storage::Int4 => (SMALL_INT4, MIDDLE_INT4),
    }
}

/// The kernel for `rows` of `[columns, k]`, columns a multiple of 64. The only place that knows which is best for what.
pub(super) fn choose(storage: Storage, rows: usize, columns: usize, k: usize, multiprocessors: usize) -> Choice {
    // Rows that the kernels with streams of weights take.
    let stream_rows = match storage {
        Storage::Dense => 16,
        Storage::Int8 | Storage::Int4 => 8,
        Storage::Int8Both => 0,
    };
    if rows <= stream_rows {
        let kernel = match storage {
            Storage::Int8 | Storage::Int8Both => INT8,
            Storage::Int4 => INT4,
            Storage::Dense if rows > 8 => TALL,
            // Every block reads all of x: wide ones where there are enough to fill the GPU in several rounds.
            Storage::Dense if WIDE.blocks(rows, columns) >= 4 * multiprocessors => WIDE,
            Storage::Dense => NARROW,
        };
        // Fewer blocks than multiprocessors: two each, while every warp still has a unit.
        let blocks = kernel.blocks(rows, columns);
        let most = if blocks < multiprocessors { 2 * multiprocessors / blocks.max(1) } else { 1 };
        return Choice { kernel, splits: most.min(k / 1024).max(1) };
    }
    let kernel = tile(storage, rows, columns, multiprocessors);
    // Up to one block a multiprocessor (two of the tiles that take less than half the shared memory), each with enough k
    // to be worth the sum over parts: that costs 8 bytes an element of y and part, against 2 of w an element and k.
    let small = matches!(kernel, Kernel::Tile { rows: 32, .. }) || storage == Storage::Int4;
    let slots = if small { 2 * multiprocessors } else { multiprocessors };
    let splits = (slots / kernel.blocks(rows, columns).max(1)).min(k / 512).max(1);
    Choice { kernel, splits }
}

/// The tile for `rows` of a weight of `columns`.
fn tile(storage: Storage, rows: usize, columns: usize, multiprocessors: usize) -> Kernel {
    // Rounds over the multiprocessors times the work of a tile, in which small tiles cost more: they copy more for a
    // multiplication. Half a tile in every multiprocessor is better than a whole one in half of them.
    let cost = |kernel: Kernel, percent: usize| {
        kernel.blocks(rows, columns).div_ceil(multiprocessors.max(1)) * kernel.sums(rows) * percent
    };
    let (small, middle) = small_tiles(storage);
    match (rows, storage) {
        (0..=32, _) => small,
        // Of int4 this one has 64 x 64 sums a warp already, as the largest of the others.
        (33..=64, _) | (_, Storage::Int4) => middle,
        _ => {
            let all = [(HUGE, 100), (LARGE, 105), (middle, 120)];
            let there = all.into_iter().filter(|(kernel, _)| *kernel != HUGE || storage != Storage::Int8);
            there.min_by_key(|(kernel, percent)| cost(*kernel, *percent)).map_or(LARGE, |(kernel, _)| kernel)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k_is_split_only_where_multiprocessors_would_be_idle() {
        // Llama's o_proj, gate_up and kv projections on 132 multiprocessors.
        assert_eq!(choose(Storage::Dense, 1, 4096, 4096, 132), Choice { kernel: NARROW, splits: 1 });
        assert_eq!(choose(Storage::Dense, 8, 28672, 4096, 132), Choice { kernel: WIDE, splits: 1 });
        assert_eq!(choose(Storage::Dense, 16, 4096, 4096, 132), Choice { kernel: TALL, splits: 2 });
        let choice = choose(Storage::Dense, 1, 1024, 4096, 132);
        assert_eq!(choice, Choice { kernel: NARROW, splits: 4 });
        assert_eq!(choice.work(1, 1024), WorkBytes { partial_bytes: 4 * 64 * 20 * 4, arrived_bytes: 64 * 4 });
        let choice = choose(Storage::Dense, 17, 4096, 4096, 132);
        assert_eq!(choice, Choice { kernel: SMALL, splits: 8 });
        assert_eq!(choice.work(17, 4096), WorkBytes { partial_bytes: 8 * 32 * 32 * 128 * 4, arrived_bytes: 32 * 4 });
        assert_eq!(choose(Storage::Dense, 1024, 4096, 4096, 132), Choice { kernel: HUGE, splits: 1 });
        assert_eq!(choose(Storage::Int8, 1024, 4096, 4096, 132).kernel, LARGE);
        assert_eq!(choose(Storage::Dense, 512, 4096, 4096, 132).kernel, LARGE);
        assert_eq!(choose(Storage::Dense, 32, 28672, 4096, 132).splits, 1);
        // Few columns, little k: nothing to split; and one multiprocessor never does.
        assert_eq!(choose(Storage::Dense, 1, 64, 100, 132).splits, 1);
        assert_eq!(choose(Storage::Dense, 4096, 14336, 4096, 1).splits, 1);
        // 729 patches of SigLIP: 54 whole tiles would leave 78 of 132 idle.
        assert_eq!(choose(Storage::Dense, 729, 1152, 1152, 132).kernel, MIDDLE);
        assert_eq!(choose(Storage::Int8Both, 1, 4096, 4096, 132).kernel, SMALL_PAIRS);
        assert_eq!(choose(Storage::Int4, 9, 4096, 4096, 132).kernel, SMALL_INT4);
        assert_eq!(choose(Storage::Int8, 9, 4096, 4096, 132).kernel, SMALL);
        assert_eq!(choose(Storage::Int4, 4096, 4096, 4096, 132).kernel, MIDDLE_INT4);
        let choice = choose(Storage::Int8, 1, 4096, 4096, 132);
        assert_eq!(choice, Choice { kernel: INT8, splits: 2 });
        let choice = choose(Storage::Dense, 16, 1024, 4096, 132);
        assert_eq!(work_bytes(16, 1000, 4096, 132), choice.work(16, 1024));
    }

    #[test]
    fn kernels_for_few_rows_take_little_shared_memory() {
        // Five blocks on a multiprocessor of an RTX 4090 (100 KiB, one of each block for the system), with int4 two.
        for kernel in [NARROW, WIDE, TALL] {
            assert!(kernel.shared_bytes(Storage::Dense, None) <= 19 << 10, "{kernel:?}");
        }
        for (columns, zeros, size) in
            [(32, true, "z32"), (64, false, "g64"), (128, true, "z128"), (4096, false, "g128")]
        {
            let groups = Some(Groups { columns, zeros });
            assert_eq!(INT4.entry(Storage::Int4, groups, "bf16").1, format!("gemv_int4_bf16_{size}"));
            assert!(INT4.shared_bytes(Storage::Int4, groups) <= 49 << 10, "{size}");
        }
        assert_eq!(TALL.entry(Storage::Dense, None, "f16").1, "gemv_f16_m16");
    }
}
