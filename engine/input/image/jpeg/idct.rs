//! The inverse DCT with libjpeg-turbo's bits (its accurate integer method, "islow").
//!
//! In: quantised coefficients, a quantisation table. Out: 8-bit samples. Owns: the AVX2 code and its scalar twin.
//! Not here: where blocks lie in a plane (`render.rs`).
//!
//! After Loeffler, Ligtenberg and Moschytz (ICASSP 1989): 11 multiplications a transform, constants of 13 bits, two
//! bits kept between the passes. libjpeg-turbo's vector code keeps 16-bit intermediates; so does this code, with the
//! same wrapping and saturation, so that coefficients out of range give the same samples too.

use super::scan::Block;

/// Bits behind the point of the constants, and bits kept between the passes.
const CONST_BITS: i32 = 13;
const PASS1_BITS: i32 = 2;
/// Shifts at the end of the first and second pass; the second also divides by 8.
const SHIFT1: i32 = CONST_BITS - PASS1_BITS;
const SHIFT2: i32 = CONST_BITS + PASS1_BITS + 3;

// Multipliers of the rotations, times 2^13, in pairs that one multiply-add applies: [for the first, for the second].
const EVEN_2: [i16; 2] = [4433, 4433 - 15137];
const EVEN_3: [i16; 2] = [4433 + 6270, 4433];
const ODD_Z3: [i16; 2] = [9633 - 16069, 9633];
const ODD_Z4: [i16; 2] = [9633, 9633 - 3196];
const ODD_0: [i16; 2] = [2446 - 7373, -7373];
const ODD_1: [i16; 2] = [16819 - 20995, -20995];
const ODD_2: [i16; 2] = [-20995, 25172 - 20995];
const ODD_3: [i16; 2] = [-7373, 12299 - 7373];

/// Whether this processor takes the vector code.
pub(super) fn has_vector_code() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Transforms one row of blocks into 8 rows of samples, `stride` bytes apart, at least `blocks.len() * 8` each.
pub(super) fn row_of_blocks(blocks: &[Block], quant: &Block, out: &mut [u8], stride: usize) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        let (pairs, _) = blocks.as_chunks::<2>();
        // SAFETY: the processor has AVX2.
        unsafe { avx2::pairs(pairs, quant, out, stride) };
        done = pairs.len() * 2;
    }
    for (at, block) in blocks.iter().enumerate().skip(done) {
        let samples = block_scalar(block, quant);
        for (y, row) in samples.chunks_exact(8).enumerate() {
            out[y * stride + at * 8..][..8].copy_from_slice(row);
        }
    }
}

/// Transforms one block.
fn block_scalar(block: &Block, quant: &Block) -> [u8; 64] {
    let mut middle = [0i16; 64];
    for column in 0..8 {
        let input = std::array::from_fn(|row| block[row * 8 + column].wrapping_mul(quant[row * 8 + column]));
        for (row, value) in transform(input, SHIFT1).into_iter().enumerate() {
            middle[row * 8 + column] = value;
        }
    }
    let mut samples = [0u8; 64];
    for (input, out) in middle.as_chunks::<8>().0.iter().zip(samples.as_chunks_mut::<8>().0) {
        *out = transform(*input, SHIFT2).map(|value| (value.clamp(-128, 127) + 128) as u8);
    }
    samples
}

/// One transform of eight values, rounded, shifted and saturated to 16 bits.
fn transform(input: [i16; 8], shift: i32) -> [i16; 8] {
    let rotate = |a: i16, b: i16, by: [i16; 2]| i32::from(a) * i32::from(by[0]) + i32::from(b) * i32::from(by[1]);
    let even0 = i32::from(input[0].wrapping_add(input[4])) << CONST_BITS;
    let even1 = i32::from(input[0].wrapping_sub(input[4])) << CONST_BITS;
    let even2 = rotate(input[2], input[6], EVEN_2);
    let even3 = rotate(input[2], input[6], EVEN_3);
    let even =
        [even0.wrapping_add(even3), even1.wrapping_add(even2), even1.wrapping_sub(even2), even0.wrapping_sub(even3)];
    let z3 = input[7].wrapping_add(input[3]);
    let z4 = input[5].wrapping_add(input[1]);
    let (z3, z4) = (rotate(z3, z4, ODD_Z3), rotate(z3, z4, ODD_Z4));
    let odd = [
        rotate(input[7], input[1], ODD_3).wrapping_add(z4),
        rotate(input[5], input[3], ODD_2).wrapping_add(z3),
        rotate(input[5], input[3], ODD_1).wrapping_add(z4),
        rotate(input[7], input[1], ODD_0).wrapping_add(z3),
    ];
    let round = |value: i32| {
        (value.wrapping_add(1 << (shift - 1)) >> shift).clamp(i32::from(i16::MIN), i32::from(i16::MAX)) as i16
    };
    std::array::from_fn(|at| {
        if at < 4 { round(even[at].wrapping_add(odd[at])) } else { round(even[7 - at].wrapping_sub(odd[7 - at])) }
    })
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::*;

    /// Eight rows of eight 16-bit values of two blocks, one block a 128-bit half.
    type Rows = [__m256i; 8];

    /// Transforms pairs of neighbouring blocks.
    #[target_feature(enable = "avx2")]
    pub fn pairs(pairs: &[[Block; 2]], quant: &Block, out: &mut [u8], stride: usize) {
        let load = |values: &Block, row: usize| {
            // SAFETY: a block has 64 values and `row` is below 8.
            unsafe { _mm_loadu_si128(values.as_ptr().add(row * 8).cast()) }
        };
        let quant: Rows = std::array::from_fn(|row| _mm256_broadcastsi128_si256(load(quant, row)));
        let first = _mm256_setr_epi16(-1, 0, 0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 0, 0, 0, 0);
        let middle = _mm256_set1_epi8(-128);
        for (at, [a, b]) in pairs.iter().enumerate() {
            let rows: Rows = std::array::from_fn(|row| {
                _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load(a, row)), load(b, row))
            });
            let ac = rows[1..].iter().fold(_mm256_andnot_si256(first, rows[0]), |all, &row| _mm256_or_si256(all, row));
            let packed = if _mm256_testz_si256(ac, ac) == 1 {
                // Only DC: every sample is the same.
                let dc = _mm256_mullo_epi16(rows[0], quant[0]);
                let dc = _mm256_shuffle_epi8(dc, _mm256_set1_epi16(0x0100));
                let zero = _mm256_setzero_si256();
                let row = pass::<SHIFT1>([dc, zero, zero, zero, zero, zero, zero, zero])[0];
                let row = pass::<SHIFT2>([row, zero, zero, zero, zero, zero, zero, zero])[0];
                [_mm256_packs_epi16(row, row); 4]
            } else {
                let rows: Rows = std::array::from_fn(|row| _mm256_mullo_epi16(rows[row], quant[row]));
                let columns = pass::<SHIFT2>(transpose(pass::<SHIFT1>(rows)));
                let rows = transpose(columns);
                std::array::from_fn(|two| _mm256_packs_epi16(rows[two * 2], rows[two * 2 + 1]))
            };
            for (two, samples) in packed.into_iter().enumerate() {
                // [a0 a1 b0 b1] in quarters to [a0 b0 a1 b1]: two rows of 16 samples.
                let samples = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_xor_si256(samples, middle));
                let halves = [_mm256_castsi256_si128(samples), _mm256_extracti128_si256::<1>(samples)];
                for (half, samples) in halves.into_iter().enumerate() {
                    let target = &mut out[(two * 2 + half) * stride + at * 16..][..16];
                    // SAFETY: `target` has 16 bytes.
                    unsafe { _mm_storeu_si128(target.as_mut_ptr().cast(), samples) };
                }
            }
        }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn pass<const SHIFT: i32>(rows: Rows) -> Rows {
        let zero = _mm256_setzero_si256();
        let pair = |by: [i16; 2]| _mm256_set1_epi32(i32::from(by[0] as u16) | i32::from(by[1]) << 16);
        // A 32-bit sum of products for the lower and the upper four columns of each block.
        let rotate = |(low, high): (__m256i, __m256i), by: [i16; 2]| {
            [_mm256_madd_epi16(low, pair(by)), _mm256_madd_epi16(high, pair(by))]
        };
        let interleave = |a, b| (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
        let widen = |values: __m256i| {
            [
                _mm256_srai_epi32::<{ 16 - CONST_BITS }>(_mm256_unpacklo_epi16(zero, values)),
                _mm256_srai_epi32::<{ 16 - CONST_BITS }>(_mm256_unpackhi_epi16(zero, values)),
            ]
        };
        let add = |a: [__m256i; 2], b: [__m256i; 2]| [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])];
        let sub = |a: [__m256i; 2], b: [__m256i; 2]| [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])];
        let even0 = widen(_mm256_add_epi16(rows[0], rows[4]));
        let even1 = widen(_mm256_sub_epi16(rows[0], rows[4]));
        let pair26 = interleave(rows[2], rows[6]);
        let (even2, even3) = (rotate(pair26, EVEN_2), rotate(pair26, EVEN_3));
        let even = [add(even0, even3), add(even1, even2), sub(even1, even2), sub(even0, even3)];
        let z = interleave(_mm256_add_epi16(rows[7], rows[3]), _mm256_add_epi16(rows[5], rows[1]));
        let (z3, z4) = (rotate(z, ODD_Z3), rotate(z, ODD_Z4));
        let (pair71, pair53) = (interleave(rows[7], rows[1]), interleave(rows[5], rows[3]));
        let odd = [
            add(rotate(pair71, ODD_3), z4),
            add(rotate(pair53, ODD_2), z3),
            add(rotate(pair53, ODD_1), z4),
            add(rotate(pair71, ODD_0), z3),
        ];
        let half = _mm256_set1_epi32(1 << (SHIFT - 1));
        let round = |sum: [__m256i; 2]| {
            let [low, high] = add(sum, [half, half]);
            _mm256_packs_epi32(_mm256_srai_epi32::<SHIFT>(low), _mm256_srai_epi32::<SHIFT>(high))
        };
        [
            round(add(even[0], odd[0])),
            round(add(even[1], odd[1])),
            round(add(even[2], odd[2])),
            round(add(even[3], odd[3])),
            round(sub(even[3], odd[3])),
            round(sub(even[2], odd[2])),
            round(sub(even[1], odd[1])),
            round(sub(even[0], odd[0])),
        ]
    }

    /// Transposes the 8x8 values of both halves.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn transpose(rows: Rows) -> Rows {
        let words =
            |a: usize, b: usize| [_mm256_unpacklo_epi16(rows[a], rows[b]), _mm256_unpackhi_epi16(rows[a], rows[b])];
        let [a0, a1] = words(0, 1);
        let [b0, b1] = words(2, 3);
        let [c0, c1] = words(4, 5);
        let [d0, d1] = words(6, 7);
        let longs = |a: __m256i, b: __m256i| [_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b)];
        let ([e0, e1], [e2, e3]) = (longs(a0, b0), longs(a1, b1));
        let ([f0, f1], [f2, f3]) = (longs(c0, d0), longs(c1, d1));
        let quads = |a: __m256i, b: __m256i| [_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b)];
        let ([r0, r1], [r2, r3]) = (quads(e0, f0), quads(e1, f1));
        let ([r4, r5], [r6, r7]) = (quads(e2, f2), quads(e3, f3));
        [r0, r1, r2, r3, r4, r5, r6, r7]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T.81 A.3.3: the transform by its definition, in f64.
    fn by_definition(block: &Block, quant: &Block) -> [f64; 64] {
        let scale = |u: usize| if u == 0 { 0.5f64.sqrt() } else { 1.0 };
        let angle = |x: usize, u: usize| ((2 * x + 1) as f64 * u as f64 * std::f64::consts::PI / 16.0).cos();
        std::array::from_fn(|at| {
            let (y, x) = (at / 8, at % 8);
            let terms = (0..64).map(|k| {
                let (v, u) = (k / 8, k % 8);
                let coefficient = f64::from(block[k]) * f64::from(quant[k]);
                scale(u) * scale(v) * coefficient * angle(x, u) * angle(y, v) / 4.0
            });
            (terms.sum::<f64>() + 128.0).clamp(0.0, 255.0)
        })
    }

    fn blocks(count: usize, limit: i32) -> Vec<Block> {
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 8) as i32
        };
        (0..count)
            .map(|at| {
                std::array::from_fn(|k| {
                    let value = next() % (2 * limit + 1) - limit;
                    // Some blocks have only DC, most are sparse.
                    if k == 0 || (at % 3 != 0 && next() % 4 == 0) { value as i16 } else { 0 }
                })
            })
            .collect()
    }

    #[test]
    fn samples_are_within_one_of_the_definition() {
        let quant: Block = std::array::from_fn(|k| 1 + k as i16 / 4);
        for block in blocks(200, 60) {
            let expected = by_definition(&block, &quant);
            for (found, expected) in block_scalar(&block, &quant).iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() <= 1.0, "{found} instead of {expected}");
            }
        }
    }

    #[test]
    fn vector_code_has_the_bits_of_the_scalar_code_even_out_of_range() {
        let quant: Block = std::array::from_fn(|k| 1 + k as i16 * 3);
        for limit in [40, 1000, 32767] {
            let blocks = blocks(7, limit);
            let mut rows = vec![0u8; 8 * 56];
            row_of_blocks(&blocks, &quant, &mut rows, 56);
            for (at, block) in blocks.iter().enumerate() {
                let expected = block_scalar(block, &quant);
                for y in 0..8 {
                    assert_eq!(
                        rows[y * 56 + at * 8..][..8],
                        expected[y * 8..][..8],
                        "block {at} row {y} limit {limit}"
                    );
                }
            }
        }
    }
}
