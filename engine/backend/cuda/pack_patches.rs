//! Weights of a patch embedding as its kernel reads them (kernels/patch_embed.cu): with the normalisation of the pixels in
//! them, columns in the order of the pixels.
//!
//! In: a convolution's weight `[n, 3, side, side]` and bias, what is done to pixels before. Out: a packed matrix and a
//! bias for pixels less 128. Not here: tiles (`pack.rs`), uploading (`upload.rs`).
//!
//! A pixel `p` of channel c is `factor[c] * p + offset[c]` when normalised, so
//!     sum w[c] (factor[c] p + offset[c]) + b = factor[0] * sum (w[c] factor[c] / factor[0]) (p - 128)
//!                                              + (b + sum w[c] (128 factor[c] + offset[c]))
//! With one factor for all channels the weights stay what they are; otherwise they are rounded with it once.

use super::pack::{self, Source};
use crate::Result;
use crate::graph::Normalization;
use crate::tensor::{DType, HostTensor};

/// Words of 4 bytes of a row of a patch's pixels.
pub fn row_words(side: usize) -> usize {
    (3 * side).div_ceil(4)
}

/// Columns of the packed matrix: `side` rows of pixels, each in whole words.
pub fn columns(side: usize) -> usize {
    side * row_words(side) * 4
}

/// What goes into the weights: numbers by their bits, so that it can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PatchFold {
    side: usize,
    /// By channel, f64: the factor as a part of the first one's; the value of a pixel of 128.
    ratio: [u64; 3],
    middle: [u64; 3],
}

impl PatchFold {
    /// Of patches of `side` pixels.
    pub fn new(side: usize, normalization: &Normalization) -> PatchFold {
        let line = normalization.line();
        PatchFold {
            side,
            ratio: line.map(|(factor, _)| (factor / line[0].0).to_bits()),
            middle: line.map(|(factor, offset)| (128.0 * factor + offset).to_bits()),
        }
    }

    /// What the product is multiplied by.
    pub fn scale(normalization: &Normalization) -> f32 {
        normalization.line()[0].0 as f32
    }

    /// Of the packed matrix.
    pub fn columns(&self) -> usize {
        columns(self.side)
    }

    /// A row of the weight, `[3, side, side]`, in the order of pixels; padding is left as it is.
    fn fold(&self, row: &[f32], out: &mut [f32]) {
        let area = self.side * self.side;
        for (c, (plane, ratio)) in row.chunks_exact(area).zip(self.ratio).enumerate() {
            for (line, out) in plane.chunks_exact(self.side).zip(out.chunks_exact_mut(row_words(self.side) * 4)) {
                for (x, w) in line.iter().enumerate() {
                    out[3 * x + c] = (f64::from(*w) * f64::from_bits(ratio)) as f32;
                }
            }
        }
    }

    /// The bias of a row of the weight.
    pub fn bias(&self, row: &[f32], bias: f32) -> f32 {
        let planes = row.chunks_exact(self.side * self.side).zip(self.middle);
        let sums = planes.map(|(plane, m)| plane.iter().map(|w| f64::from(*w)).sum::<f64>() * f64::from_bits(m));
        (f64::from(bias) + sums.sum::<f64>()) as f32
    }
}

/// As [`pack::pack_panel`], of a patch embedding's weight.
pub fn pack_patch_panel(
    name: &str,
    weight: &HostTensor,
    fold: &PatchFold,
    dtype: DType,
    panel: usize,
    out: &mut [u8],
) -> Result<()> {
    let source = Source::new(name, weight)?;
    let mut folded = vec![0.0; fold.columns()];
    pack::pack_rows(name, fold.columns(), dtype, panel, out, |row, to| {
        let Some(values) = source.values(row) else { return Ok(false) };
        fold.fold(&values, &mut folded);
        source.round(folded.iter().copied(), dtype, to)?;
        Ok(true)
    })
}

/// The biases of all rows of a patch embedding's weight.
pub fn patch_biases(name: &str, weight: &HostTensor, bias: Option<&[f32]>, fold: &PatchFold) -> Result<Vec<f32>> {
    let source = Source::new(name, weight)?;
    let of = |row| Some(fold.bias(&source.values(row)?, bias.map_or(0.0, |b| b[row])));
    Ok((0..).map_while(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folded_sum_is_that_of_normalised_pixels() {
        let normalization =
            Normalization { rescale: Some(1.0 / 255.0), normalize: Some(([0.48, 0.46, 0.41], [0.27, 0.26, 0.28])) };
        let (side, area) = (3, 9);
        let fold = PatchFold::new(side, &normalization);
        let weight: Vec<f32> = (0..3 * area).map(|i| (i as f32 * 0.7).sin()).collect();
        let pixel = |y: usize, x: usize, c: usize| ((y * 89 + x * 57 + c * 31) % 256) as u8;
        let mut packed = vec![9.0; fold.columns()];
        fold.fold(&weight, &mut packed);
        let (table, mut want, mut sum) = (normalization.table(), 0.25, 0.0);
        for (y, x, c) in (0..side).flat_map(|y| (0..side).flat_map(move |x| (0..3).map(move |c| (y, x, c)))) {
            let p = pixel(y, x, c);
            want += f64::from(weight[c * area + y * side + x]) * f64::from(table[c][p as usize]);
            sum += f64::from(packed[y * 12 + 3 * x + c]) * (f64::from(p) - 128.0);
        }
        let got = sum * f64::from(PatchFold::scale(&normalization)) + f64::from(fold.bias(&weight, 0.25));
        assert!((got - want).abs() < 1e-5, "{got} for {want}");
        // Three bytes of padding a row of nine stay.
        assert!(packed.chunks_exact(12).all(|row| row[9..] == [9.0; 3]) && packed.len() == 36);
    }

    #[test]
    fn equal_factors_leave_the_weights() {
        let half = Normalization { rescale: Some(1.0 / 255.0), normalize: Some(([0.5; 3], [0.5; 3])) };
        let fold = PatchFold::new(1, &half);
        let mut packed = vec![0.0; 4];
        fold.fold(&[0.1, -0.2, 0.3], &mut packed);
        assert_eq!(packed, [0.1, -0.2, 0.3, 0.0]);
    }
}
