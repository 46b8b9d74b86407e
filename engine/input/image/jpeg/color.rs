//! Rows of JPEG components to rows of RGB, with the bits of libjpeg and, for four components, of Pillow.
//!
//! In: one row of each component at full width. Out: interleaved RGB. Owns: the arithmetic, its AVX2 code.
//! Not here: telling which colour model a file has (`mod.rs`).
//!
//! YCbCr is that of JFIF (BT.601, full range) in 16-bit fixed point:
//! `R = Y + 1.402 Cr`, `G = Y - 0.34414 Cb - 0.71414 Cr`, `B = Y + 1.772 Cb`, Cb and Cr less 128, rounded half up.

/// What the components of a file mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ColorModel {
    Grey,
    Rgb,
    YCbCr,
    /// Inks stored as light (255 is no ink), as Adobe does and Pillow assumes of every file.
    Cmyk,
    /// The first three inks of the above as YCbCr.
    Ycck,
}

/// Bits behind the point.
const SHIFT: i32 = 16;
const HALF: i32 = 1 << (SHIFT - 1);

/// A factor of the formulas in fixed point.
const fn fixed(value: f64) -> i32 {
    (value * (1 << SHIFT) as f64 + 0.5) as i32
}

const CR_TO_R: i32 = fixed(1.402);
const CB_TO_B: i32 = fixed(1.772);
const CB_TO_G: i32 = -fixed(0.34414);
const CR_TO_G: i32 = -fixed(0.71414);

/// Converts one row; `out` has three bytes a pixel, the planes at least a sample a pixel.
pub(super) fn row(model: ColorModel, planes: [&[u8]; 4], out: &mut [u8], vector: bool) {
    let [a, b, c, d] = planes;
    let pixels = out.as_chunks_mut::<3>().0;
    match model {
        ColorModel::Grey => {
            for (pixel, &grey) in pixels.iter_mut().zip(a) {
                *pixel = [grey; 3];
            }
        }
        ColorModel::Rgb => {
            for (((pixel, &r), &g), &b) in pixels.iter_mut().zip(a).zip(b).zip(c) {
                *pixel = [r, g, b];
            }
        }
        ColorModel::YCbCr => {
            let mut done = 0;
            #[cfg(target_arch = "x86_64")]
            if vector {
                // SAFETY: `vector` is set only where the processor has AVX2.
                done = unsafe { avx2::ycbcr_row(a, b, c, out) };
            }
            let _ = vector;
            let pixels = out.as_chunks_mut::<3>().0.iter_mut().skip(done);
            for (((pixel, &y), &cb), &cr) in pixels.zip(&a[done..]).zip(&b[done..]).zip(&c[done..]) {
                *pixel = ycbcr(y, cb, cr);
            }
        }
        ColorModel::Cmyk => {
            for ((((pixel, &c), &m), &y), &k) in pixels.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                *pixel = [255 - c, 255 - m, 255 - y].map(|ink| under_ink(ink, k));
            }
        }
        ColorModel::Ycck => {
            for ((((pixel, &y), &cb), &cr), &k) in pixels.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                // What YCbCr gives is the complement of the stored inks, which are complements themselves.
                *pixel = ycbcr(y, cb, cr).map(|ink| under_ink(ink, k));
            }
        }
    }
}

/// Red, green and blue of a YCbCr triple.
#[inline(always)]
pub(in super::super) fn ycbcr(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    [
        y + ((CR_TO_R * cr + HALF) >> SHIFT),
        y + ((CB_TO_G * cb + CR_TO_G * cr + HALF) >> SHIFT),
        y + ((CB_TO_B * cb + HALF) >> SHIFT),
    ]
    .map(|value| value.clamp(0, 255) as u8)
}

/// The light that an ink leaves of the light that black leaves: `light - ink * light / 255`, rounded as Pillow does.
#[inline(always)]
pub(in super::super) fn under_ink(ink: u8, light: u8) -> u8 {
    let product = u32::from(ink) * u32::from(light) + 128;
    let covered = ((product >> 8) + product) >> 8;
    u32::from(light).saturating_sub(covered) as u8
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{CB_TO_B, CB_TO_G, CR_TO_G, CR_TO_R, HALF, SHIFT};

    /// Pixels a step.
    const STEP: usize = 32;

    /// Converts as many pixels as whole steps allow and returns how many.
    #[target_feature(enable = "avx2")]
    pub fn ycbcr_row(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) -> usize {
        let steps = y.as_chunks::<STEP>().0.iter().zip(cb.as_chunks::<STEP>().0).zip(cr.as_chunks::<STEP>().0);
        let targets = out.as_chunks_mut::<{ STEP * 3 }>().0;
        let mut done = 0;
        for (((y, cb), cr), target) in steps.zip(targets) {
            let halves: [[__m256i; 3]; 2] = std::array::from_fn(|half| {
                let wide = |values: &[u8; STEP]| {
                    // SAFETY: 16 bytes from 0 or 16 lie in the 32.
                    _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(values.as_ptr().add(half * 16).cast()) })
                };
                convert(wide(y), wide(cb), wide(cr))
            });
            // Packing works in 128-bit parts; the permutation puts the quarters in order.
            let plane = |channel: usize| {
                let packed = _mm256_packus_epi16(halves[0][channel], halves[1][channel]);
                _mm256_permute4x64_epi64::<0b11_01_10_00>(packed)
            };
            let (r, g, b) = (plane(0), plane(1), plane(2));
            let low = |v: __m256i| _mm256_castsi256_si128(v);
            let high = |v: __m256i| _mm256_extracti128_si256::<1>(v);
            let parts = [interleave(low(r), low(g), low(b)), interleave(high(r), high(g), high(b))];
            for (at, part) in parts.into_iter().flatten().enumerate() {
                // SAFETY: six times 16 bytes are the 96 of `target`.
                unsafe { _mm_storeu_si128(target.as_mut_ptr().add(at * 16).cast(), part) };
            }
            done += STEP;
        }
        done
    }

    /// Red, green and blue of 16 pixels as 16-bit numbers, not yet clipped.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn convert(y: __m256i, cb: __m256i, cr: __m256i) -> [__m256i; 3] {
        let middle = _mm256_set1_epi16(128);
        let (cb, cr) = (_mm256_sub_epi16(cb, middle), _mm256_sub_epi16(cr, middle));
        let one = _mm256_set1_epi16(1);
        // (f * x + 2^15) >> 16 is ((f * 2x >> 16) + 1) >> 1 for factors that fit 16 bits; whole parts are added apart.
        let scaled = |x: __m256i, factor: i32| {
            let high = _mm256_mulhi_epi16(_mm256_add_epi16(x, x), _mm256_set1_epi16(factor as i16));
            _mm256_srai_epi16::<1>(_mm256_add_epi16(high, one))
        };
        let r = _mm256_add_epi16(_mm256_add_epi16(y, cr), scaled(cr, CR_TO_R - (1 << SHIFT)));
        let b = _mm256_add_epi16(_mm256_add_epi16(y, _mm256_add_epi16(cb, cb)), scaled(cb, CB_TO_B - (2 << SHIFT)));
        let factors = _mm256_set1_epi32((CB_TO_G & 0xffff) | (CR_TO_G + (1 << SHIFT)) << 16);
        let half = _mm256_set1_epi32(HALF);
        let sum =
            |pairs: __m256i| _mm256_srai_epi32::<SHIFT>(_mm256_add_epi32(_mm256_madd_epi16(pairs, factors), half));
        let green = _mm256_packs_epi32(sum(_mm256_unpacklo_epi16(cb, cr)), sum(_mm256_unpackhi_epi16(cb, cr)));
        let g = _mm256_add_epi16(y, _mm256_sub_epi16(green, cr));
        [r, g, b]
    }

    /// 16 pixels of three planes to 48 interleaved bytes.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn interleave(r: __m128i, g: __m128i, b: __m128i) -> [__m128i; 3] {
        const ORDER: [[[i8; 16]; 3]; 3] = orders();
        std::array::from_fn(|part| {
            let pick = |plane: usize, values: __m128i| {
                // SAFETY: an order has 16 bytes.
                _mm_shuffle_epi8(values, unsafe { _mm_loadu_si128(ORDER[part][plane].as_ptr().cast()) })
            };
            _mm_or_si128(_mm_or_si128(pick(0, r), pick(1, g)), pick(2, b))
        })
    }

    /// For each of three output parts and each plane: which sample goes to which byte, -1 for another plane's byte.
    const fn orders() -> [[[i8; 16]; 3]; 3] {
        let mut orders = [[[-1i8; 16]; 3]; 3];
        let mut at = 0;
        while at < 48 {
            orders[at / 16][at % 3][at % 16] = (at / 3) as i8;
            at += 1;
        }
        orders
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vector_code_has_the_bits_of_the_scalar_code_for_all_chroma() {
        for y in [0u8, 1, 77, 128, 200, 255] {
            for cb in 0..=255u8 {
                let crs: Vec<u8> = (0..=255).collect();
                let mut out = vec![0u8; 256 * 3];
                row(
                    ColorModel::YCbCr,
                    [&[y; 256], &[cb; 256], &crs, &[]],
                    &mut out,
                    super::super::idct::has_vector_code(),
                );
                for (pixel, cr) in out.chunks_exact(3).zip(0..=255) {
                    assert_eq!(pixel, ycbcr(y, cb, cr), "{y} {cb} {cr}");
                }
            }
        }
    }

    #[test]
    fn white_and_primaries() {
        assert_eq!(ycbcr(255, 128, 128), [255; 3]);
        assert_eq!(ycbcr(76, 85, 255), [254, 0, 0]);
        assert_eq!((under_ink(0, 255), under_ink(255, 255), under_ink(0, 0)), (255, 0, 0));
    }
}
