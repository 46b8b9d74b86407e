//! The inner loops of the resampler, chosen at run time by what the processor has.
//!
//! In: rows of 8-bit RGB, fixed-point weights. Out: resized rows. Owns: the AVX2 code and its scalar twin.
//! Not here: which rows, which weights (`resample.rs`).
//!
//! A weight has 23 bits and the vector multiply-add takes 16, so a weight is cut into `high * 2^16 + low` with `low`
//! signed; both halves are summed apart and joined at the end. Sums wrap modulo 2^32, so the result is the scalar one.

use super::resample::{HALF, Taps, clip8};

/// The horizontal pass with its weights laid out for the processor.
pub(super) struct HorizontalPass<'a> {
    taps: &'a Taps,
    #[cfg(target_arch = "x86_64")]
    packed: Option<avx2::Packed>,
}

impl<'a> HorizontalPass<'a> {
    pub fn new(taps: &'a Taps) -> HorizontalPass<'a> {
        HorizontalPass {
            taps,
            #[cfg(target_arch = "x86_64")]
            packed: is_x86_feature_detected!("avx2").then(|| avx2::Packed::new(taps)),
        }
    }

    /// Fills `out` with resized rows. `source` starts with the first row, `source_row` bytes long, and may go on
    /// behind the last one needed.
    pub fn run(&self, source: &[u8], source_row: usize, out: &mut [u8]) {
        let row = self.taps.bounds.len() * 3;
        #[cfg(target_arch = "x86_64")]
        if let Some(packed) = &self.packed {
            for (group, out) in out.chunks_mut(avx2::ROWS * row).enumerate() {
                let source = &source[group * avx2::ROWS * source_row..];
                if out.len() == avx2::ROWS * row {
                    // SAFETY: `packed` is made only where the processor has AVX2.
                    unsafe { avx2::horizontal_rows(self.taps, packed, source, source_row, out) };
                } else {
                    for (y, out) in out.chunks_mut(row).enumerate() {
                        horizontal_row(self.taps, 0, &source[y * source_row..], out);
                    }
                }
            }
            return;
        }
        for (y, out) in out.chunks_mut(row).enumerate() {
            horizontal_row(self.taps, 0, &source[y * source_row..], out);
        }
    }
}

/// Resizes one row, output pixels from `from` on.
fn horizontal_row(taps: &Taps, from: usize, source: &[u8], out: &mut [u8]) {
    for (at, out) in out.chunks_exact_mut(3).enumerate().skip(from) {
        let (first, count) = taps.bounds[at];
        let mut sums = [HALF; 3];
        for (pixel, &weight) in source[first * 3..(first + count) * 3].chunks_exact(3).zip(taps.weights_of(at)) {
            for (sum, &value) in sums.iter_mut().zip(pixel) {
                *sum = sum.wrapping_add(i32::from(value).wrapping_mul(weight));
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = clip8(sum);
        }
    }
}

/// One output row of the vertical pass: `rows` holds `weights.len()` rows as long as `out`.
pub(super) fn vertical_row(rows: &[u8], weights: &[i32], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        unsafe { vertical_row_avx2(rows, weights, out) };
        return;
    }
    vertical_row_any(rows, weights, out);
}

/// The same code, compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn vertical_row_avx2(rows: &[u8], weights: &[i32], out: &mut [u8]) {
    vertical_row_any(rows, weights, out);
}

#[inline(always)]
fn vertical_row_any(rows: &[u8], weights: &[i32], out: &mut [u8]) {
    /// Columns whose sums stay in registers over all taps.
    const BLOCK: usize = 32;
    let row = out.len();
    let (blocks, rest) = out.as_chunks_mut::<BLOCK>();
    for (block, out) in blocks.iter_mut().enumerate() {
        let mut sums = [HALF; BLOCK];
        for (source, &weight) in rows.chunks_exact(row).zip(weights) {
            if let Some(source) = source[block * BLOCK..].first_chunk::<BLOCK>() {
                for (sum, &value) in sums.iter_mut().zip(source) {
                    *sum = sum.wrapping_add(i32::from(value).wrapping_mul(weight));
                }
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = clip8(sum);
        }
    }
    let done = row - rest.len();
    for (x, out) in rest.iter_mut().enumerate() {
        let column = rows.chunks_exact(row).zip(weights);
        let sum = column.fold(HALF, |sum, (source, &w)| sum.wrapping_add(i32::from(source[done + x]).wrapping_mul(w)));
        *out = clip8(sum);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::super::resample::{HALF, PRECISION_BITS, Taps};
    use super::horizontal_row;

    /// Rows that share one load of the weights.
    pub const ROWS: usize = 4;
    /// Source pixels a multiply-add step takes.
    const GROUP: usize = 4;

    /// Weights as the multiply-add wants them: an output pixel has `groups` x `[low 0|1, low 2|3, high 0|1, high 2|3]`,
    /// each entry two 16-bit halves of neighbouring taps.
    pub struct Packed {
        weights: Vec<[u32; 4]>,
        groups: usize,
        /// The first output pixel whose loads may reach past the end of a row; it and those behind go the scalar way.
        safe: usize,
    }

    impl Packed {
        pub fn new(taps: &Taps) -> Packed {
            let groups = taps.bounds.iter().map(|b| b.1).max().unwrap_or(0).div_ceil(GROUP);
            let split = |weight: i32| {
                let low = weight as i16;
                let high = ((weight - i32::from(low)) >> 16) as i16;
                (u32::from(low as u16), u32::from(high as u16))
            };
            let mut weights = vec![[0u32; 4]; groups * taps.bounds.len()];
            for at in 0..taps.bounds.len() {
                for (tap, &weight) in taps.weights_of(at).iter().enumerate() {
                    let entry = &mut weights[at * groups + tap / GROUP];
                    let (pair, shift) = (tap % GROUP / 2, tap % 2 * 16);
                    let (low, high) = split(weight);
                    entry[pair] |= low << shift;
                    entry[2 + pair] |= high << shift;
                }
            }
            let end = taps.bounds.iter().map(|b| b.0 + b.1).max().unwrap_or(0);
            let is_inside = |b: &(usize, usize)| (b.0 + b.1.next_multiple_of(GROUP)) * 3 + 4 <= end * 3;
            let safe = taps.bounds.iter().position(|b| !is_inside(b)).unwrap_or(taps.bounds.len());
            Packed { weights, groups, safe }
        }
    }

    /// Resizes [`ROWS`] rows.
    #[target_feature(enable = "avx2")]
    pub fn horizontal_rows(taps: &Taps, packed: &Packed, source: &[u8], source_row: usize, out: &mut [u8]) {
        let row = taps.bounds.len() * 3;
        let rows: [&[u8]; ROWS] = std::array::from_fn(|y| &source[y * source_row..(y + 1) * source_row]);
        // Pixels 0 and 1 go to the low half, 2 and 3 to the high half: r0 r1 g0 g1 b0 b1 as 16-bit numbers.
        let order = _mm256_setr_epi8(
            0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1, 6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1,
            -1, -1, -1,
        );
        let low_order = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
        let high_order = _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3);
        for at in 0..packed.safe {
            let (first, count) = taps.bounds[at];
            let weights = &packed.weights[at * packed.groups..][..count.div_ceil(GROUP)];
            let mut low = [_mm256_setzero_si256(); ROWS];
            let mut high = [_mm256_setzero_si256(); ROWS];
            for (group, entry) in weights.iter().enumerate() {
                // SAFETY: an entry has 16 bytes.
                let entry = unsafe { _mm_loadu_si128(entry.as_ptr().cast()) };
                let entry = _mm256_broadcastsi128_si256(entry);
                let low_weights = _mm256_permutevar8x32_epi32(entry, low_order);
                let high_weights = _mm256_permutevar8x32_epi32(entry, high_order);
                let from = (first + group * GROUP) * 3;
                for y in 0..ROWS {
                    // SAFETY: `safe` holds only output pixels whose 16-byte loads end inside the row.
                    let pixels = unsafe { _mm_loadu_si128(rows[y].as_ptr().add(from).cast()) };
                    let pixels = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(pixels), order);
                    low[y] = _mm256_add_epi32(low[y], _mm256_madd_epi16(pixels, low_weights));
                    high[y] = _mm256_add_epi32(high[y], _mm256_madd_epi16(pixels, high_weights));
                }
            }
            for y in 0..ROWS {
                let sum = _mm256_add_epi32(low[y], _mm256_slli_epi32::<16>(high[y]));
                let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
                let sum = _mm_srai_epi32::<{ PRECISION_BITS as i32 }>(_mm_add_epi32(sum, _mm_set1_epi32(HALF)));
                let words = _mm_packs_epi32(sum, sum);
                let bytes = (_mm_cvtsi128_si32(_mm_packus_epi16(words, words)) as u32).to_le_bytes();
                out[y * row + at * 3..][..3].copy_from_slice(&bytes[..3]);
            }
        }
        for (y, out) in out.chunks_exact_mut(row).enumerate() {
            horizontal_row(taps, packed.safe, rows[y], out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Filter, RgbImage, resize};
    use super::*;

    /// The processor's code and the scalar code agree, on values and weights that reach the limits.
    #[test]
    fn vector_code_has_the_bits_of_the_scalar_code() {
        let mut state = 1u32;
        let pixels: Vec<u8> = (0..97 * 9 * 3)
            .map(|_| {
                state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                if state >> 28 == 0 { 255 } else { (state >> 24) as u8 }
            })
            .collect();
        let image = RgbImage { width: 97, height: 9, pixels };
        for filter in [Filter::Box, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
            for width in [1, 2, 5, 31, 96, 98, 300] {
                let resized = resize(&image, width, 9, filter);
                for y in 0..9 {
                    let mut row = vec![0u8; width * 3];
                    let taps = Taps::new(97, width, filter);
                    horizontal_row(&taps, 0, &image.pixels[y * 97 * 3..], &mut row);
                    assert_eq!(row, resized.pixels[y * width * 3..(y + 1) * width * 3], "{filter:?} {width} row {y}");
                }
            }
        }
    }
}
