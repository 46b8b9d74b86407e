//! Sixteen lanes as an array: the definition that the vector types must equal bit for bit.
//!
//! In/Out: lanes. Owns: nothing. Not here: intrinsics.

use half::{bf16, f16};

use super::{Element, LANES, Operands, Part, Vector, tile};

/// Sixteen lanes in an array.
#[derive(Clone, Copy)]
pub(in super::super) struct F32x16([f32; LANES]);

impl F32x16 {
    #[inline(always)]
    fn zip(self, o: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        F32x16(std::array::from_fn(|l| f(self.0[l], o.0[l])))
    }
}

impl Part for F32x16 {
    const LANES: usize = LANES;

    #[inline(always)]
    fn splat(v: f32) -> Self {
        F32x16([v; LANES])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller promised LANES readable values.
        F32x16(unsafe { p.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        // SAFETY: the caller promised LANES readable values.
        let a = unsafe { p.cast::<[bf16; LANES]>().read_unaligned() };
        F32x16(a.map(Element::to_f32))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: the caller promised LANES readable values.
        let a = unsafe { p.cast::<[f16; LANES]>().read_unaligned() };
        F32x16(a.map(Element::to_f32))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller promised LANES writable values.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    fn prefetch(_: *const f32) {}
    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        F32x16(std::array::from_fn(|l| self.0[l].mul_add(a.0[l], b.0[l])))
    }
    #[inline(always)]
    fn mul(self, o: Self) -> Self {
        self.zip(o, |a, b| a * b)
    }
}

impl Vector for F32x16 {
    type Part = F32x16;
    const WIDE: bool = false;
    const DOT_ROWS: usize = 1;

    unsafe fn outer(rows: usize, vectors: usize, op: Operands) {
        // SAFETY: the caller's promise is the tile's.
        unsafe { tile::outer::<F32x16>(rows, vectors, op) }
    }

    #[inline(always)]
    fn add(self, o: Self) -> Self {
        self.zip(o, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, o: Self) -> Self {
        self.zip(o, |a, b| a - b)
    }
    #[inline(always)]
    fn div(self, o: Self) -> Self {
        self.zip(o, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, o: Self) -> Self {
        self.zip(o, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, o: Self) -> Self {
        self.zip(o, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn abs(self) -> Self {
        F32x16(self.0.map(f32::abs))
    }
    #[inline(always)]
    fn copysign(self, sign: Self) -> Self {
        self.zip(sign, f32::copysign)
    }
    #[inline(always)]
    fn select_lt(self, limit: Self, yes: Self, no: Self) -> Self {
        F32x16(std::array::from_fn(|l| if self.0[l] < limit.0[l] { yes.0[l] } else { no.0[l] }))
    }
    #[inline(always)]
    fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
        std::array::from_fn(|i| F32x16(std::array::from_fn(|j| rows[j].0[i])))
    }
    #[inline(always)]
    fn shl23(self) -> Self {
        F32x16(self.0.map(|v| f32::from_bits(v.to_bits() << 23)))
    }
    #[inline(always)]
    fn reduce_add4(v: [Self; 4]) -> [f32; 4] {
        v.map(|v| {
            let mut a = v.0;
            let mut n = LANES / 2;
            while n > 0 {
                for l in 0..n {
                    a[l] += a[l + n];
                }
                n /= 2;
            }
            a[0]
        })
    }
}
