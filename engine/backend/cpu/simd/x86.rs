//! Sixteen lanes as one AVX-512 register or two AVX2 registers.
//!
//! In/Out: lanes. Owns: nothing. Not here: the choice between them (`isa.rs`).
//! Soundness: the intrinsics need only that the CPU has the instruction set, which `simd/mod.rs` guarantees;
//! the pointers are the caller's promise.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{LANES, Operands, Part, Vector, tile};

/// One 512-bit register.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx512(__m512);

/// One 256-bit register: half a vector.
#[derive(Clone, Copy)]
pub(in super::super) struct Ymm(__m256);

/// Two 256-bit registers: lanes 0-7 and 8-15.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx2(Ymm, Ymm);

/// Shorthand for an intrinsic call; see the module's note on soundness.
macro_rules! on {
    ($e:expr) => {{
        // SAFETY: the instruction set is present (module note).
        unsafe { $e }
    }};
}

/// [`tile::outer`] on AVX-512.
///
/// # Safety
/// As there.
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn outer_512(rows: usize, vectors: usize, op: Operands) {
    // SAFETY: the caller's promise is the tile's.
    unsafe { tile::outer::<Avx512>(rows, vectors, op) }
}

/// [`tile::outer`] on AVX2.
///
/// # Safety
/// As there.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn outer_256(rows: usize, vectors: usize, op: Operands) {
    // SAFETY: the caller's promise is the tile's.
    unsafe { tile::outer::<Avx2>(rows, vectors, op) }
}

impl Part for Avx512 {
    const LANES: usize = 16;

    #[inline(always)]
    fn splat(v: f32) -> Self {
        Avx512(on!(_mm512_set1_ps(v)))
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Avx512(on!(_mm512_loadu_ps(p)))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        Avx512(on!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()))))))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        Avx512(on!(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        on!(_mm512_storeu_ps(p, self.0))
    }
    #[inline(always)]
    fn prefetch(p: *const f32) {
        on!(_mm_prefetch::<_MM_HINT_T0>(p.cast()))
    }
    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        Avx512(on!(_mm512_fmadd_ps(self.0, a.0, b.0)))
    }
    #[inline(always)]
    fn mul(self, o: Self) -> Self {
        Avx512(on!(_mm512_mul_ps(self.0, o.0)))
    }
}

impl Vector for Avx512 {
    type Part = Avx512;
    const WIDE: bool = true;
    const DOT_ROWS: usize = 6;

    #[inline(always)]
    unsafe fn outer(rows: usize, vectors: usize, op: Operands) {
        on!(outer_512(rows, vectors, op))
    }

    #[inline(always)]
    fn add(self, o: Self) -> Self {
        Avx512(on!(_mm512_add_ps(self.0, o.0)))
    }
    #[inline(always)]
    fn sub(self, o: Self) -> Self {
        Avx512(on!(_mm512_sub_ps(self.0, o.0)))
    }
    #[inline(always)]
    fn div(self, o: Self) -> Self {
        Avx512(on!(_mm512_div_ps(self.0, o.0)))
    }
    #[inline(always)]
    fn max(self, o: Self) -> Self {
        Avx512(on!(_mm512_max_ps(self.0, o.0)))
    }
    #[inline(always)]
    fn min(self, o: Self) -> Self {
        Avx512(on!(_mm512_min_ps(self.0, o.0)))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Avx512(on!(_mm512_abs_ps(self.0)))
    }
    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        on!({
            let bit = _mm512_castps_si512(_mm512_set1_ps(-0.0));
            // 0xCA = bit ? first : second, per bit: sign bit from `sign`, the rest from `self`.
            let s = _mm512_castps_si512(sign.0);
            Avx512(_mm512_castsi512_ps(_mm512_ternarylogic_epi32::<0xCA>(bit, s, _mm512_castps_si512(self.0))))
        })
    }
    #[inline(always)]
    fn select_lt(self, limit: Self, yes: Self, no: Self) -> Self {
        on!({
            let m = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, limit.0);
            Avx512(_mm512_mask_blend_ps(m, no.0, yes.0))
        })
    }
    #[inline(always)]
    fn transpose(v: [Self; LANES]) -> [Self; LANES] {
        on!({
            // Pairs of lanes, then quads inside 128-bit groups: quad g of t[i + j] holds lane 4g + j of rows i..i+4.
            let mut t = [v[0].0; LANES];
            for i in (0..LANES).step_by(4) {
                let (a, b) = (_mm512_unpacklo_ps(v[i].0, v[i + 1].0), _mm512_unpackhi_ps(v[i].0, v[i + 1].0));
                let (c, d) = (_mm512_unpacklo_ps(v[i + 2].0, v[i + 3].0), _mm512_unpackhi_ps(v[i + 2].0, v[i + 3].0));
                t[i] = _mm512_shuffle_ps::<0x44>(a, c);
                t[i + 1] = _mm512_shuffle_ps::<0xEE>(a, c);
                t[i + 2] = _mm512_shuffle_ps::<0x44>(b, d);
                t[i + 3] = _mm512_shuffle_ps::<0xEE>(b, d);
            }
            // A 4 x 4 transposition of the groups.
            let mut out = v;
            for j in 0..4 {
                let (a, b) =
                    (_mm512_shuffle_f32x4::<0x44>(t[j], t[j + 4]), _mm512_shuffle_f32x4::<0xEE>(t[j], t[j + 4]));
                let (c, d) = (
                    _mm512_shuffle_f32x4::<0x44>(t[j + 8], t[j + 12]),
                    _mm512_shuffle_f32x4::<0xEE>(t[j + 8], t[j + 12]),
                );
                out[j] = Avx512(_mm512_shuffle_f32x4::<0x88>(a, c));
                out[j + 4] = Avx512(_mm512_shuffle_f32x4::<0xDD>(a, c));
                out[j + 8] = Avx512(_mm512_shuffle_f32x4::<0x88>(b, d));
                out[j + 12] = Avx512(_mm512_shuffle_f32x4::<0xDD>(b, d));
            }
            out
        })
    }
    #[inline(always)]
    fn shl23(self) -> Self {
        Avx512(on!(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(self.0)))))
    }
    #[inline(always)]
    fn reduce_add4(v: [Self; 4]) -> [f32; 4] {
        on!({
            // Lower half of each pair beside the upper half: one add does two vectors.
            let halve = |a: __m512, b: __m512| {
                _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xEE>(a, b))
            };
            let ab = halve(v[0].0, v[1].0);
            let cd = halve(v[2].0, v[3].0);
            // Four lanes left of each: group g of `s` is vector g.
            let s = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xDD>(ab, cd));
            let s = _mm512_add_ps(s, _mm512_permute_ps::<0x4E>(s));
            let s = _mm512_add_ps(s, _mm512_permute_ps::<0xB1>(s));
            let pick = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
            let mut out = [0.0; 4];
            _mm_storeu_ps(out.as_mut_ptr(), _mm512_castps512_ps128(_mm512_permutexvar_ps(pick, s)));
            out
        })
    }
}

impl Part for Ymm {
    const LANES: usize = 8;

    #[inline(always)]
    fn splat(v: f32) -> Self {
        Ymm(on!(_mm256_set1_ps(v)))
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Ymm(on!(_mm256_loadu_ps(p)))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        Ymm(on!(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))))))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        Ymm(on!(_mm256_cvtph_ps(_mm_loadu_si128(p.cast()))))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        on!(_mm256_storeu_ps(p, self.0))
    }
    #[inline(always)]
    fn prefetch(p: *const f32) {
        on!(_mm_prefetch::<_MM_HINT_T0>(p.cast()))
    }
    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        Ymm(on!(_mm256_fmadd_ps(self.0, a.0, b.0)))
    }
    #[inline(always)]
    fn mul(self, o: Self) -> Self {
        Ymm(on!(_mm256_mul_ps(self.0, o.0)))
    }
}

impl Part for Avx2 {
    const LANES: usize = LANES;

    #[inline(always)]
    fn splat(v: f32) -> Self {
        Avx2(Ymm::splat(v), Ymm::splat(v))
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        on!(Avx2(Ymm::load(p), Ymm::load(p.add(8))))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        on!(Avx2(Ymm::load_bf16(p), Ymm::load_bf16(p.add(8))))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        on!(Avx2(Ymm::load_f16(p), Ymm::load_f16(p.add(8))))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        on!({
            self.0.store(p);
            self.1.store(p.add(8));
        })
    }
    #[inline(always)]
    fn prefetch(p: *const f32) {
        on!(_mm_prefetch::<_MM_HINT_T0>(p.cast()))
    }
    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        Avx2(self.0.fma(a.0, b.0), self.1.fma(a.1, b.1))
    }
    #[inline(always)]
    fn mul(self, o: Self) -> Self {
        Avx2(self.0.mul(o.0), self.1.mul(o.1))
    }
}

impl Ymm {
    /// Lane j of result i is lane i of argument j.
    #[inline(always)]
    fn transpose(v: [Ymm; 8]) -> [Ymm; 8] {
        on!({
            let mut t = [v[0].0; 8];
            for i in [0, 4] {
                let (a, b) = (_mm256_unpacklo_ps(v[i].0, v[i + 1].0), _mm256_unpackhi_ps(v[i].0, v[i + 1].0));
                let (c, d) = (_mm256_unpacklo_ps(v[i + 2].0, v[i + 3].0), _mm256_unpackhi_ps(v[i + 2].0, v[i + 3].0));
                t[i] = _mm256_shuffle_ps::<0x44>(a, c);
                t[i + 1] = _mm256_shuffle_ps::<0xEE>(a, c);
                t[i + 2] = _mm256_shuffle_ps::<0x44>(b, d);
                t[i + 3] = _mm256_shuffle_ps::<0xEE>(b, d);
            }
            let mut out = v;
            for j in 0..4 {
                out[j] = Ymm(_mm256_permute2f128_ps::<0x20>(t[j], t[j + 4]));
                out[j + 4] = Ymm(_mm256_permute2f128_ps::<0x31>(t[j], t[j + 4]));
            }
            out
        })
    }
}

/// Applies a 256-bit operation to both halves.
macro_rules! both {
    ($a:expr, $b:expr, $f:expr) => {
        on!(Avx2(Ymm($f($a.0.0, $b.0.0)), Ymm($f($a.1.0, $b.1.0))))
    };
}

impl Vector for Avx2 {
    type Part = Ymm;
    const WIDE: bool = false;
    const DOT_ROWS: usize = 2;

    #[inline(always)]
    unsafe fn outer(rows: usize, vectors: usize, op: Operands) {
        on!(outer_256(rows, vectors, op))
    }

    #[inline(always)]
    fn add(self, o: Self) -> Self {
        both!(self, o, _mm256_add_ps)
    }
    #[inline(always)]
    fn sub(self, o: Self) -> Self {
        both!(self, o, _mm256_sub_ps)
    }
    #[inline(always)]
    fn div(self, o: Self) -> Self {
        both!(self, o, _mm256_div_ps)
    }
    #[inline(always)]
    fn max(self, o: Self) -> Self {
        both!(self, o, _mm256_max_ps)
    }
    #[inline(always)]
    fn min(self, o: Self) -> Self {
        both!(self, o, _mm256_min_ps)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        let bit = Avx2::splat(-0.0);
        both!(bit, self, _mm256_andnot_ps)
    }
    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        let bit = Avx2::splat(-0.0);
        let s = both!(bit, sign, _mm256_and_ps);
        let m = self.abs();
        both!(m, s, _mm256_or_ps)
    }
    #[inline(always)]
    fn select_lt(self, limit: Self, yes: Self, no: Self) -> Self {
        let m = both!(self, limit, _mm256_cmp_ps::<_CMP_LT_OQ>);
        on!(Avx2(Ymm(_mm256_blendv_ps(no.0.0, yes.0.0, m.0.0)), Ymm(_mm256_blendv_ps(no.1.0, yes.1.0, m.1.0))))
    }
    #[inline(always)]
    fn transpose(v: [Self; LANES]) -> [Self; LANES] {
        let mut out = v;
        for i in 0..2 {
            let (mut low, mut high) = ([v[0].0; 8], [v[0].0; 8]);
            for j in 0..8 {
                low[j] = v[8 * i + j].0;
                high[j] = v[8 * i + j].1;
            }
            let (low, high) = (Ymm::transpose(low), Ymm::transpose(high));
            for j in 0..8 {
                if i == 0 {
                    out[j].0 = low[j];
                    out[8 + j].0 = high[j];
                } else {
                    out[j].1 = low[j];
                    out[8 + j].1 = high[j];
                }
            }
        }
        out
    }
    #[inline(always)]
    fn shl23(self) -> Self {
        on!({
            let f = |v: __m256| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(v)));
            Avx2(Ymm(f(self.0.0)), Ymm(f(self.1.0)))
        })
    }
    #[inline(always)]
    fn reduce_add4(v: [Self; 4]) -> [f32; 4] {
        on!({
            let h: [__m256; 4] = [
                _mm256_add_ps(v[0].0.0, v[0].1.0),
                _mm256_add_ps(v[1].0.0, v[1].1.0),
                _mm256_add_ps(v[2].0.0, v[2].1.0),
                _mm256_add_ps(v[3].0.0, v[3].1.0),
            ];
            let halve = |a: __m256, b: __m256| {
                _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b))
            };
            // [v0 x4, v1 x4] and [v2 x4, v3 x4], then lanes l + (l+2), l + (l+1) inside each group of four.
            let fold = |s: __m256| {
                let s = _mm256_add_ps(s, _mm256_permute_ps::<0x4E>(s));
                _mm256_add_ps(s, _mm256_permute_ps::<0xB1>(s))
            };
            let (ab, cd) = (fold(halve(h[0], h[1])), fold(halve(h[2], h[3])));
            [
                _mm256_cvtss_f32(ab),
                _mm_cvtss_f32(_mm256_extractf128_ps::<1>(ab)),
                _mm256_cvtss_f32(cd),
                _mm_cvtss_f32(_mm256_extractf128_ps::<1>(cd)),
            ]
        })
    }
}
