//! Grids over the pieces of rows, for kernels that do the same to every element or move rows (kernels/rows.cuh).
//!
//! In: rows, width, what is aligned. Out: the kernel's suffix, grid and block. Not here: what is done to a piece.

use crate::backend::cuda::{DeviceSlice, LaunchConfig};
use crate::{Error, Result};

const MAX_THREADS: usize = 256;
/// Elements of 16 bits in 16 bytes.
const VECTOR: usize = 8;

/// A matrix on the device: its rows lie `stride` elements apart.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    pub slice: DeviceSlice<'a>,
    pub stride: usize,
}

/// Elements a thread moves at once: 8 where width, strides and addresses allow it, otherwise 1.
pub(super) fn piece_width(width: usize, matrices: &[Rows]) -> usize {
    let whole = |m: &Rows| m.stride.is_multiple_of(VECTOR) && m.slice.address().is_multiple_of(16);
    if width.is_multiple_of(VECTOR) && matrices.iter().all(whole) { VECTOR } else { 1 }
}

/// Threads over `rows` rows of `width` elements, `piece` a thread. Errors: a matrix that is empty or too large.
pub(super) fn row_grid(op: &str, rows: usize, width: usize, piece: usize) -> Result<LaunchConfig> {
    let pieces = width / piece;
    if rows == 0 || pieces == 0 || i32::try_from(rows).is_err() || pieces > MAX_THREADS * usize::from(u16::MAX) {
        return Err(Error::Internal(format!("{op} of [{rows}, {width}]")));
    }
    // Blocks of equal width along a row, then as many rows as fill the block.
    let along = pieces.div_ceil(MAX_THREADS);
    let x = pieces.div_ceil(along);
    let y = (MAX_THREADS / x).min(rows.next_power_of_two());
    Ok(LaunchConfig {
        grid: (rows.div_ceil(y) as u32, along as u32, 1),
        block: (x as u32, y as u32, 1),
        shared_bytes: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_has_a_thread() {
        for rows in [1, 2, 3, 7, 255, 257, 100_000] {
            for (width, piece) in [(1, 1), (7, 1), (8, 8), (1152, 8), (4096, 8), (14336, 8), (588, 1), (4304, 8)] {
                let config = row_grid("test", rows, width, piece).expect("fits");
                let ((gx, gy, _), (bx, by, _)) = (config.grid, config.block);
                assert!(bx * by <= 256 && gy <= 65535);
                assert!((gx * by) as usize >= rows && (gy * bx) as usize >= width / piece);
                assert!(((gx - 1) * by) < rows as u32 && ((gy - 1) * bx) < (width / piece) as u32, "an idle block");
            }
        }
        assert!(row_grid("test", 0, 8, 8).is_err() && row_grid("test", 8, 0, 1).is_err());
    }
}
