//! Quantised linear weights in the order that the kernels read (kernels/packed.cuh).
//!
//! In: integers, row-major, as checkpoints or the quantiser have them; their scales and zero points. Out: blocks of 512
//! bytes; scales and zeros for every packed row. Owns: the layout, on the host's side. Not here: how weights are
//! quantised, dense weights (`pack.rs`).
//!
//! Rows and columns are padded to multiples of 64 as those of dense weights; padding is zero whatever its scale. Gated
//! matrices are packed from rows that take turns, gate of feature i before up of feature i.

use half::{bf16, f16};
use rayon::prelude::*;

use super::pack::{K_ALIGN, PANEL_ROWS, TILE};
use crate::tensor::DType;
use crate::{Error, Result};

/// Bytes of a block of either storage.
const BLOCK_BYTES: usize = 512;

/// Columns of int4 weights that share a scale: 32, 64 or a multiple of 128.
pub fn check_group(group: usize) -> Result<()> {
    if matches!(group, 32 | 64) || (group > 0 && group.is_multiple_of(128)) {
        return Ok(());
    }
    Err(Error::Unsupported(format!("int4 weights in groups of {group} on cuda; 32, 64 and multiples of 128 are there")))
}

/// Bytes of `[n, k]` as int8.
pub fn int8_bytes(n: usize, k: usize) -> usize {
    n.next_multiple_of(PANEL_ROWS) * k.next_multiple_of(K_ALIGN)
}

/// Bytes of `[n, k]` as int4, without scales.
pub fn int4_bytes(n: usize, k: usize) -> usize {
    int8_bytes(n, k) / 2
}

/// Rows that lane group `g` (lane / 4) has of a tile: in its first and its second operand.
fn tile_rows(g: usize) -> [usize; 2] {
    let first = 4 * (g / 2) + g % 2;
    [first, first + 2]
}

/// Packs `[n, k]` integers: blocks of 16 rows and 32 columns.
pub fn pack_int8(q: &[i8], n: usize, k: usize) -> Result<Vec<u8>> {
    check_len("int8 weights", q.len(), n * k)?;
    let at = |row: usize, col: usize| if row < n && col < k { q[row * k + col] as u8 } else { 0 };
    let mut out = vec![0; int8_bytes(n, k)];
    let strip_bytes = TILE * k.next_multiple_of(K_ALIGN);
    out.par_chunks_exact_mut(strip_bytes.max(1)).enumerate().for_each(|(strip, out)| {
        for (block, out) in out.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            for (lane, out) in out.chunks_exact_mut(16).enumerate() {
                let t = lane % 4;
                for (i, byte) in out.iter_mut().enumerate() {
                    let row = strip * TILE + tile_rows(lane / 4)[i / 8];
                    let col = block * 2 * TILE + i / 4 % 2 * TILE + 2 * t + [0, 8, 1, 9][i % 4];
                    *byte = at(row, col);
                }
            }
        }
    });
    Ok(out)
}

/// Packs `[n, k]` integers of 0..16, one a byte: blocks of 64 rows and 16 columns.
pub fn pack_int4(q: &[u8], n: usize, k: usize) -> Result<Vec<u8>> {
    check_len("int4 weights", q.len(), n * k)?;
    if let Some(bad) = q.iter().find(|q| **q > 15) {
        return Err(Error::Internal(format!("int4 weights: expected 0 to 15, got {bad}")));
    }
    // Padding columns meet x of zero, padding rows are no features: any value will do.
    let at = |row: usize, col: usize| if row < n && col < k { u32::from(q[row * k + col]) } else { 8 };
    let mut out = vec![0; int4_bytes(n, k)];
    let panel_bytes = PANEL_ROWS / 2 * k.next_multiple_of(K_ALIGN);
    out.par_chunks_exact_mut(panel_bytes.max(1)).enumerate().for_each(|(panel, out)| {
        for (block, out) in out.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            for (lane, out) in out.chunks_exact_mut(16).enumerate() {
                let t = lane % 4;
                for (j, word) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    let row = panel * PANEL_ROWS + j * TILE;
                    let col = block * TILE + 2 * t;
                    let nibble =
                        |i: usize| at(row + tile_rows(lane / 4)[i % 4 / 2], col + i / 4 + i % 2 * 8) << (4 * i);
                    *word = (0..8).map(nibble).sum::<u32>().to_le_bytes();
                }
            }
        }
    });
    Ok(out)
}

/// The scale of every packed row of int8 weights; padding has 1.
pub fn pack_row_scales(scales: &[f32]) -> Vec<f32> {
    let mut out = scales.to_vec();
    out.resize(scales.len().next_multiple_of(PANEL_ROWS), 1.0);
    out
}

/// `[n, groups]` scales, as checkpoints have them, as `[groups, packed rows]`. The kernels divide by them: one of zero
/// becomes the smallest that there is.
pub fn pack_group_scales(scales: &[f16], n: usize) -> Result<Vec<f16>> {
    const SMALLEST: f16 = f16::from_bits(1);
    let mut packed = transpose(scales, n, f16::ONE)?;
    packed.iter_mut().filter(|scale| **scale == f16::ZERO).for_each(|scale| *scale = SMALLEST);
    Ok(packed)
}

/// `[n, groups]` zero points of 0..=16 as what the kernels add to take them off, `[groups, packed rows]` as bits of
/// `dtype`: minus (128 + zero) in bf16, minus (1024 + zero) in f16, both exact for whole zero points.
pub fn pack_group_zeros(zeros: &[u8], n: usize, dtype: DType) -> Result<Vec<u16>> {
    let bits = |zero: f32| match dtype {
        DType::Bf16 => bf16::from_f32(-128.0 - zero).to_bits(),
        _ => f16::from_f32(-1024.0 - zero).to_bits(),
    };
    let offsets: Vec<u16> = zeros.iter().map(|z| bits(f32::from(*z))).collect();
    transpose(&offsets, n, bits(8.0))
}

fn transpose<T: Copy>(values: &[T], n: usize, padding: T) -> Result<Vec<T>> {
    if n == 0 || !values.len().is_multiple_of(n) {
        return Err(Error::Internal(format!("{} group values of {n} rows", values.len())));
    }
    let (groups, rows) = (values.len() / n, n.next_multiple_of(PANEL_ROWS));
    let mut out = vec![padding; groups * rows];
    for (i, value) in values.iter().enumerate() {
        out[i % groups * rows + i / groups] = *value;
    }
    Ok(out)
}

fn check_len(what: &str, got: usize, want: usize) -> Result<()> {
    if got == want { Ok(()) } else { Err(Error::Internal(format!("{what}: expected {want} elements, got {got}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lane, operand (0 or 1) and position of the pair of a column within 16, by kernels/packed.cuh.
    fn place(row: usize, col: usize) -> (usize, usize, usize, usize) {
        let g = row % 16 / 4 * 2 + row % 2;
        (g * 4 + col % 8 / 2, row / 2 % 2, col % 16 / 8, col % 2)
    }

    #[test]
    fn every_int8_is_where_the_kernels_look() {
        for (n, k) in [(1, 1), (64, 64), (70, 100)] {
            let q: Vec<i8> = (0..n * k).map(|i| (i * 37 % 251) as i8).collect();
            let packed = pack_int8(&q, n, k).unwrap();
            assert_eq!(packed.len(), n.next_multiple_of(64) * k.next_multiple_of(64));
            for row in 0..n.next_multiple_of(64) {
                for col in 0..k.next_multiple_of(64) {
                    let (lane, operand, half, odd) = place(row, col);
                    let block = row / 16 * (k.next_multiple_of(64) / 32) + col / 32;
                    let byte = operand * 8 + col / 16 % 2 * 4 + odd * 2 + half;
                    let want = if row < n && col < k { q[row * k + col] } else { 0 };
                    assert_eq!(packed[block * 512 + lane * 16 + byte] as i8, want, "[{n}, {k}] at {row}, {col}");
                }
            }
        }
    }

    #[test]
    fn every_int4_is_where_the_kernels_look() {
        for (n, k) in [(1, 1), (64, 64), (70, 100)] {
            let q: Vec<u8> = (0..n * k).map(|i| (i * 37 % 251 % 16) as u8).collect();
            let packed = pack_int4(&q, n, k).unwrap();
            assert_eq!(packed.len(), n.next_multiple_of(64) * k.next_multiple_of(64) / 2);
            for row in 0..n {
                for col in 0..k {
                    let (lane, operand, half, odd) = place(row, col);
                    let block = row / 64 * (k.next_multiple_of(64) / 16) + col / 16;
                    let at = block * 512 + lane * 16 + row / 16 % 4 * 4;
                    let word = u32::from_le_bytes(packed[at..at + 4].try_into().unwrap());
                    let nibble = word >> (4 * (odd * 4 + operand * 2 + half)) & 15;
                    assert_eq!(nibble as u8, q[row * k + col], "[{n}, {k}] at {row}, {col}");
                }
            }
        }
    }

    #[test]
    fn scales_and_zeros_are_by_group_and_packed_row() {
        let scales: Vec<f16> = (0..6).map(|i| f16::from_f32(i as f32)).collect();
        let packed = pack_group_scales(&scales, 2).unwrap();
        assert_eq!(packed.len(), 3 * 64);
        assert_eq!([packed[1], packed[64], packed[65]].map(f16::to_f32), [3.0, 1.0, 4.0]);
        // None is zero.
        assert_eq!(packed[0], f16::from_bits(1));
        assert_eq!(pack_group_scales(&[f16::NEG_ZERO], 1).unwrap()[0], f16::from_bits(1));
        let zeros = pack_group_zeros(&[0, 7, 15, 16], 4, DType::Bf16).unwrap();
        assert_eq!([0, 1, 2, 3].map(|i| bf16::from_bits(zeros[i]).to_f32()), [-128.0, -135.0, -143.0, -144.0]);
        let zeros = pack_group_zeros(&[3], 1, DType::F16).unwrap();
        assert_eq!((f16::from_bits(zeros[0]).to_f32(), f16::from_bits(zeros[1]).to_f32()), (-1027.0, -1032.0));
        assert_eq!(pack_row_scales(&[2.0; 65]).len(), 128);
    }

    #[test]
    fn misfits_are_refused() {
        assert!(pack_int8(&[0; 5], 2, 3).is_err());
        assert!(pack_int4(&[16], 1, 1).unwrap_err().to_string().contains("0 to 15"));
        assert!(pack_group_scales(&[f16::ONE; 5], 2).is_err());
        assert!(check_group(32).is_ok() && check_group(128).is_ok() && check_group(256).is_ok());
        assert!(check_group(16).is_err() && check_group(192).is_err() && check_group(0).is_err());
    }
}
