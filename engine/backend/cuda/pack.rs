//! Linear weights in the order that the kernels read (kernels/packed.cuh).
//!
//! In: matrices as stored, row-major. Out: tiles, rounded to the activation type. Owns: the layout, on the host's
//! side, and that of a norm's weight which such a layer applies. Not here: uploading (`upload.rs`), quantised layouts.
//!
//! A matrix `[n, k]` is padded with zeros to multiples of 64 and made of panels of 64 rows, each contiguous: panels can
//! be packed by many threads and uploaded one by one. In a panel 16x16 tiles of 512 bytes follow each other, those of
//! 16 rows together and k ascending.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::tensor::{DType, HostTensor};
use crate::{Error, Result};

/// Rows of a panel.
pub const PANEL_ROWS: usize = 64;
/// Columns are padded to a multiple of this.
pub const K_ALIGN: usize = 64;
/// Rows and columns of a tile.
pub const TILE: usize = 16;

/// Bytes of a panel of a matrix with `k` columns.
pub fn panel_bytes(k: usize) -> usize {
    PANEL_ROWS * k.next_multiple_of(K_ALIGN) * 2
}

/// Packs panel `panel` of a matrix `[n, ..]` (trailing dimensions are columns) into `out`, `panel_bytes(k)` long;
/// elements are rounded (to nearest, ties to even) to `dtype`. Several matrices are one, each below the one before.
///
/// Errors name the tensor: a finite value that f16 cannot hold, a type that is no float, sizes that do not fit.
pub fn pack_panel(name: &str, tensors: &[&HostTensor], dtype: DType, panel: usize, out: &mut [u8]) -> Result<()> {
    let sources: Vec<Source> = tensors.iter().map(|t| Source::new(name, t)).collect::<Result<_>>()?;
    let k = sources.first().map_or(0, |s| s.k);
    if sources.iter().any(|s| s.k != k) {
        return Err(Error::Internal(format!("{name}: matrices of different widths, {tensors:?}")));
    }
    pack_rows(name, k, dtype, panel, out, |mut row, to| {
        for source in &sources {
            if row < source.n {
                return source.read(row, dtype, to);
            }
            row -= source.n;
        }
        Ok(false)
    })
}

/// As [`pack_panel`], of gate and up of a feed-forward layer as one matrix of `2 n` rows: gate of feature i is row 2i,
/// up row 2i + 1. Both have one shape.
pub fn pack_gated_panel(
    name: &str,
    gate: &HostTensor,
    up: &HostTensor,
    dtype: DType,
    panel: usize,
    out: &mut [u8],
) -> Result<()> {
    let sources = [Source::new(name, gate)?, Source::new(name, up)?];
    if gate.shape() != up.shape() {
        return Err(Error::Internal(format!("{name}: gate is {:?}, up is {:?}", gate.shape(), up.shape())));
    }
    pack_rows(name, sources[0].k, dtype, panel, out, |row, to| sources[row % 2].read(row / 2, dtype, to))
}

/// As [`pack_panel`], of q, k and v, whose rows are put in the order of [`qkv_row`].
pub fn pack_qkv_panel(
    name: &str,
    qkv: [&HostTensor; 3],
    head_dim: usize,
    dtype: DType,
    panel: usize,
    out: &mut [u8],
) -> Result<()> {
    let sources = [Source::new(name, qkv[0])?, Source::new(name, qkv[1])?, Source::new(name, qkv[2])?];
    let [(q, k), (k_rows, _), (v_rows, _)] = sources.each_ref().map(|s| (s.n, s.k));
    if sources.iter().any(|s| s.k != k) || head_dim == 0 || [q, k_rows].iter().any(|n| !n.is_multiple_of(head_dim)) {
        return Err(Error::Internal(format!("{name}: {qkv:?} in heads of {head_dim}")));
    }
    pack_rows(name, k, dtype, panel, out, |row, to| {
        if row >= q + k_rows + v_rows {
            return Ok(false);
        }
        match qkv_row(row, head_dim, q + k_rows) {
            row if row < q => sources[0].read(row, dtype, to),
            row if row < q + k_rows => sources[1].read(row - q, dtype, to),
            row => sources[2].read(row - q - k_rows, dtype, to),
        }
    })
}

/// The row of q, k and v, each below the one before, that is packed row `row`: elements i and i + head_dim / 2 of a
/// head, which rotary embedding turns together, become neighbours. Rows from `turned` on, those of v, stay.
pub fn qkv_row(row: usize, head_dim: usize, turned: usize) -> usize {
    if row >= turned {
        return row;
    }
    let at = row % head_dim;
    row - at + at / 2 + at % 2 * (head_dim / 2)
}

/// Bytes of a norm's weight of `k` elements as [`pack_norm`] makes it.
pub fn norm_bytes(k: usize) -> usize {
    k.next_multiple_of(8) * 2 + 16
}

/// The weight of a norm that a linear layer computes (kernels/gemv_norm.cu): rounded to `dtype`, and behind it an f32
/// that it was divided by: for f16 the power of two that brings its largest element to at most 1, so that nothing times
/// an element overflows; for bf16, which has the range of f32, 1. `out` is `norm_bytes` long.
pub fn pack_norm(weight: &[f32], dtype: DType, out: &mut [u8]) -> Result<()> {
    if out.len() != norm_bytes(weight.len()) || !matches!(dtype, DType::F16 | DType::Bf16) {
        return Err(Error::Internal(format!("a norm of {} in {} bytes of {}", weight.len(), out.len(), dtype.name())));
    }
    let largest = weight.iter().filter(|w| w.is_finite()).fold(0f32, |m, w| m.max(w.abs()));
    let exponent = if dtype == DType::F16 && largest > 0.0 { largest.log2().ceil().clamp(-100.0, 100.0) } else { 0.0 };
    let power = 2f32.powi(exponent as i32);
    out.fill(0);
    for (to, w) in out.as_chunks_mut::<2>().0.iter_mut().zip(weight) {
        *to = match dtype {
            DType::F16 => f16::from_f32(w / power).to_le_bytes(),
            _ => bf16::from_f32(*w).to_le_bytes(),
        };
    }
    let at = weight.len().next_multiple_of(8) * 2;
    out[at..at + 4].copy_from_slice(&power.to_le_bytes());
    Ok(())
}

/// All panels of a matrix, packed by all threads.
pub fn pack_matrix(name: &str, tensor: &HostTensor, dtype: DType) -> Result<Vec<u8>> {
    let source = Source::new(name, tensor)?;
    let mut out = vec![0; source.n.div_ceil(PANEL_ROWS) * panel_bytes(source.k)];
    let panels = out.par_chunks_exact_mut(panel_bytes(source.k)).enumerate();
    panels.map(|(i, out)| pack_panel(name, &[tensor], dtype, i, out)).collect::<Result<()>>()?;
    Ok(out)
}

/// All panels of gate and up, packed by all threads.
pub fn pack_gated_matrix(name: &str, gate: &HostTensor, up: &HostTensor, dtype: DType) -> Result<Vec<u8>> {
    let source = Source::new(name, gate)?;
    let mut out = vec![0; (2 * source.n).div_ceil(PANEL_ROWS) * panel_bytes(source.k)];
    let panels = out.par_chunks_exact_mut(panel_bytes(source.k)).enumerate();
    panels.map(|(i, out)| pack_gated_panel(name, gate, up, dtype, i, out)).collect::<Result<()>>()?;
    Ok(out)
}

/// A stored matrix.
pub(super) struct Source<'a> {
    name: &'a str,
    dtype: DType,
    bytes: &'a [u8],
    n: usize,
    k: usize,
}

impl<'a> Source<'a> {
    pub(super) fn new(name: &'a str, tensor: &'a HostTensor) -> Result<Source<'a>> {
        let (Some(&n), k) = (tensor.shape().first(), tensor.shape().iter().skip(1).product::<usize>()) else {
            return Err(Error::Internal(format!("{name}: expected a matrix, got {tensor:?}")));
        };
        if n == 0 || k == 0 {
            return Err(Error::Internal(format!("{name}: an empty matrix, {tensor:?}")));
        }
        if !matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::Bf16) {
            return Err(Error::Checkpoint(format!("{name}: expected F32, F16 or BF16, got {}", tensor.dtype().name())));
        }
        Ok(Source { name, dtype: tensor.dtype(), bytes: tensor.bytes(), n, k })
    }

    /// Row `row` as the bits of `dtype`; false beyond the last row.
    fn read(&self, row: usize, dtype: DType, to: &mut [u16]) -> Result<bool> {
        if row >= self.n {
            return Ok(false);
        }
        let row_bytes = self.k * self.dtype.size();
        let from = &self.bytes[row * row_bytes..][..row_bytes];
        match (self.dtype, dtype) {
            (DType::F16, DType::F16) | (DType::Bf16, DType::Bf16) => {
                bytemuck::cast_slice_mut::<u16, u8>(to).copy_from_slice(from);
            }
            (DType::F32, _) => self.round(from.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)), dtype, to)?,
            (DType::F16, _) => {
                self.round(from.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()), dtype, to)?;
            }
            (_, _) => self.round(from.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()), dtype, to)?,
        }
        Ok(true)
    }

    /// Row `row` as f32; none beyond the last one.
    pub(super) fn values(&self, row: usize) -> Option<Vec<f32>> {
        let row_bytes = self.k * self.dtype.size();
        let from = self.bytes.get(row * row_bytes..(row + 1) * row_bytes)?;
        Some(match self.dtype {
            DType::F32 => from.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            DType::F16 => from.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            _ => from.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        })
    }

    /// Rounds values to the bits of `dtype`. Errors: a finite one that f16 cannot hold.
    pub(super) fn round(&self, values: impl Iterator<Item = f32>, dtype: DType, to: &mut [u16]) -> Result<()> {
        if dtype == DType::Bf16 {
            for (to, value) in to.iter_mut().zip(values) {
                *to = bf16::from_f32(value).to_bits();
            }
            return Ok(());
        }
        for (to, value) in to.iter_mut().zip(values) {
            let rounded = f16::from_f32(value);
            if value.is_finite() && !rounded.is_finite() {
                return Err(Error::Checkpoint(format!(
                    "{}: expected values that f16 can hold, got {value}; use --dtype bf16",
                    self.name
                )));
            }
            *to = rounded.to_bits();
        }
        Ok(())
    }
}

/// Row of a tile that lane group `g` (lane / 4) holds in its words 0 and 1; words 2 and 3 hold the row two further on.
fn tile_row(g: usize) -> usize {
    4 * (g / 2) + g % 2
}

/// Packs a panel whose rows `read` gives: packed row number, room for k elements -> whether there is such a row.
pub(super) fn pack_rows(
    name: &str,
    k: usize,
    dtype: DType,
    panel: usize,
    out: &mut [u8],
    mut read: impl FnMut(usize, &mut [u16]) -> Result<bool>,
) -> Result<()> {
    if !matches!(dtype, DType::F16 | DType::Bf16) {
        return Err(Error::Unsupported(format!("{name}: packed weights of type {}", dtype.name())));
    }
    if out.len() != panel_bytes(k) {
        return Err(Error::Internal(format!("{name}: a panel of {} bytes, got {}", panel_bytes(k), out.len())));
    }
    let padded = k.next_multiple_of(K_ALIGN);
    // Sixteen rows, in words of two elements so that they are aligned to be read so.
    let mut words = vec![0u32; TILE * padded / 2];
    for (strip, out) in out.chunks_exact_mut(TILE * padded * 2).enumerate() {
        for (i, row) in words.chunks_exact_mut(padded / 2).enumerate() {
            let there = read(panel * PANEL_ROWS + strip * TILE + i, &mut bytemuck::cast_slice_mut(row)[..k])?;
            if !there {
                row.fill(0);
            }
        }
        for (tile, out) in out.chunks_exact_mut(512).enumerate() {
            for (lane, out) in out.chunks_exact_mut(16).enumerate() {
                let (g, t) = (lane / 4, lane % 4);
                let low = tile_row(g) * padded / 2 + tile * (TILE / 2) + t;
                let high = low + padded;
                for (word, at) in out.as_chunks_mut::<4>().0.iter_mut().zip([low, low + 4, high, high + 4]) {
                    *word = words[at].to_ne_bytes();
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::HostBytes;

    fn numbered(n: usize, k: usize) -> HostTensor {
        // Exact in bf16 and f16, different in neighbouring rows and columns.
        let data: Vec<f32> = (0..n * k).map(|i| ((i / k * 7 + i % k * 3) % 253) as f32).collect();
        HostTensor::from_f32(vec![n, k], &data)
    }

    /// Element (row, col) of a packed matrix, by the words of kernels/packed.cuh.
    fn element(packed: &[u8], k: usize, row: usize, col: usize) -> f32 {
        let k_tiles = k.next_multiple_of(64) / 16;
        let (r, c) = (row % 16, col % 16);
        // feature(g) = 4 * (g / 2) + g % 2, and two more in words 2 and 3.
        let (g, high) = (r / 4 * 2 + r % 2, r / 2 % 2);
        let (t, second) = (c % 8 / 2, c / 8);
        let at = (row / 16 * k_tiles + col / 16) * 512 + (g * 4 + t) * 16 + (high * 2 + second) * 4 + c % 2 * 2;
        bf16::from_le_bytes([packed[at], packed[at + 1]]).to_f32()
    }

    #[test]
    fn every_element_is_where_the_kernels_look() {
        for (n, k) in [(1, 1), (16, 16), (64, 64), (65, 67), (130, 588), (48, 36)] {
            let w = numbered(n, k);
            let packed = pack_matrix("w", &w, DType::Bf16).unwrap();
            let (rows, cols) = (n.next_multiple_of(64), k.next_multiple_of(64));
            assert_eq!(packed.len(), rows * cols * 2);
            let stored = w.to_f32().unwrap();
            for row in 0..rows {
                for col in 0..cols {
                    let want = if row < n && col < k { stored[row * k + col] } else { 0.0 };
                    assert_eq!(element(&packed, k, row, col), want, "[{n}, {k}] at {row}, {col}");
                }
            }
        }
    }

    #[test]
    fn several_matrices_are_one() {
        let k = 20;
        let parts = [numbered(37, k), numbered(5, k), numbered(40, k)];
        let refs: Vec<&HostTensor> = parts.iter().collect();
        let mut packed = vec![0; 2 * panel_bytes(k)];
        for (i, out) in packed.chunks_exact_mut(panel_bytes(k)).enumerate() {
            pack_panel("qkv", &refs, DType::Bf16, i, out).unwrap();
        }
        let rows: Vec<f32> = parts.iter().flat_map(|p| p.to_f32().unwrap().into_owned()).collect();
        for (i, want) in rows.iter().enumerate() {
            assert_eq!(element(&packed, k, i / k, i % k), *want, "{i}");
        }
        assert_eq!(element(&packed, k, 82, 0), 0.0);
        assert!(pack_panel("qkv", &[&parts[0], &numbered(3, 21)], DType::Bf16, 0, &mut packed[..64]).is_err());
    }

    #[test]
    fn pairs_of_q_and_k_are_neighbours() {
        let (k, head_dim) = (20, 6);
        let parts = [numbered(12, k), numbered(6, k), numbered(6, k)];
        let mut packed = vec![0; panel_bytes(k)];
        pack_qkv_panel("qkv", parts.each_ref(), head_dim, DType::Bf16, 0, &mut packed).unwrap();
        let order = [0, 3, 1, 4, 2, 5];
        for (row, part, of) in (0..24).map(|row| match row {
            0..12 => (row, &parts[0], row / 6 * 6 + order[row % 6]),
            12..18 => (row, &parts[1], order[row - 12]),
            _ => (row, &parts[2], row - 18),
        }) {
            assert_eq!(element(&packed, k, row, 7), part.to_f32().unwrap()[of * k + 7], "{row}");
        }
        assert_eq!(element(&packed, k, 24, 7), 0.0);
        // Heads that do not fit.
        assert!(pack_qkv_panel("qkv", parts.each_ref(), 5, DType::Bf16, 0, &mut packed).is_err());
    }

    #[test]
    fn the_weight_of_a_norm_cannot_make_f16_overflow() {
        let weight = [0.5, -9.0, 3.0, 1e-3, 0.0];
        let mut out = vec![0; norm_bytes(5)];
        assert_eq!(out.len(), 32);
        for (dtype, power) in [(DType::F16, 16.0), (DType::Bf16, 1.0)] {
            pack_norm(&weight, dtype, &mut out).unwrap();
            assert_eq!(f32::from_le_bytes(out[16..20].try_into().unwrap()), power);
            for (i, w) in weight.iter().enumerate() {
                let bytes = [out[2 * i], out[2 * i + 1]];
                let got = match dtype {
                    DType::F16 => f16::from_le_bytes(bytes).to_f32(),
                    _ => bf16::from_le_bytes(bytes).to_f32(),
                };
                assert!(
                    (got * power - w).abs() <= w.abs() * 4e-3 && (dtype == DType::Bf16 || got.abs() <= 1.0),
                    "{got}"
                );
            }
        }
        pack_norm(&[0.0; 5], DType::F16, &mut out).unwrap();
        assert_eq!(f32::from_le_bytes(out[16..20].try_into().unwrap()), 1.0);
        assert!(
            pack_norm(&weight, DType::F32, &mut out).is_err()
                && pack_norm(&weight[1..], DType::F16, &mut out[1..]).is_err()
        );
    }

    #[test]
    fn gate_and_up_take_turns() {
        let (n, k) = (37, 20);
        let (gate, up) = (numbered(n, k), HostTensor::from_f32(vec![n, k], &vec![-2.0; n * k]));
        let packed = pack_gated_matrix("w", &gate, &up, DType::Bf16).unwrap();
        assert_eq!(packed.len(), 128 * 64 * 2);
        for row in 0..n {
            assert_eq!(element(&packed, k, 2 * row, 3), gate.to_f32().unwrap()[row * k + 3]);
            assert_eq!(element(&packed, k, 2 * row + 1, 3), -2.0);
        }
        assert_eq!(element(&packed, k, 2 * n, 3), 0.0);
        let other = numbered(n + 1, k);
        assert!(pack_gated_matrix("w", &gate, &other, DType::Bf16).is_err());
    }

    #[test]
    fn types_are_rounded_and_misfits_refused() {
        // 1 + 2^-8 lies between two bf16 numbers and goes to the even one; 1 + 3 * 2^-8 too.
        let values = [1.0 + 2f32.powi(-8), 1.0 + 3.0 * 2f32.powi(-8)];
        let w = HostTensor::from_f32(vec![2, 1], &values);
        let packed = pack_matrix("w", &w, DType::Bf16).unwrap();
        assert_eq!([element(&packed, 1, 0, 0), element(&packed, 1, 1, 0)], [1.0, 1.0 + 2f32.powi(-6)]);
        let halves = bytemuck::cast_slice::<f16, u8>(&values.map(f16::from_f32)).to_vec();
        let stored = HostTensor::new(DType::F16, vec![2, 1], HostBytes::copy_from(&halves)).unwrap();
        assert_eq!(pack_matrix("w", &stored, DType::Bf16).unwrap(), packed);
        assert_eq!(pack_matrix("w", &stored, DType::F16).unwrap(), pack_matrix("w", &w, DType::F16).unwrap());

        let large = HostTensor::from_f32(vec![1, 2], &[1.0, 70000.0]);
        let text = pack_matrix("blocks.0.w", &large, DType::F16).unwrap_err().to_string();
        assert!(text.contains("blocks.0.w") && text.contains("70000") && text.contains("--dtype bf16"), "{text}");
        assert!(pack_matrix("w", &large, DType::F32).is_err());
        assert!(pack_matrix("w", &HostTensor::from_i32(vec![1, 1], &[1]), DType::Bf16).is_err());
        assert!(pack_matrix("w", &HostTensor::from_f32(vec![0, 4], &[]), DType::Bf16).is_err());
        assert!(pack_panel("w", &[&large], DType::Bf16, 0, &mut [0; 8]).is_err());
        // A convolution's weight is a matrix of its trailing dimensions.
        let conv = HostTensor::from_f32(vec![2, 3, 2, 2], &(0..24).map(|i| i as f32).collect::<Vec<_>>());
        assert_eq!(element(&pack_matrix("w", &conv, DType::Bf16).unwrap(), 12, 1, 11), 23.0);
    }
}
