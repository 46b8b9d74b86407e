//! Scalar floating-point definitions: flushing, directed rounding, half formats, approximations.
//! In: bits and values. Out: bits and values. Owns: every rounding the executor does.
//! Not here: lanes (`lanes`), opcodes (`lower`).
//! Source: PTX ISA, "Floating-Point Instructions" and "Half Precision"; IEEE 754-2019.

/// A rounding mode of arithmetic and conversions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Round {
    /// To nearest, ties to even.
    Nearest,
    /// Toward zero.
    Zero,
    /// Toward minus infinity.
    Down,
    /// Toward plus infinity.
    Up,
    /// To nearest, ties away from zero (`.rna`).
    Away,
}

/// Subnormals become zero of the same sign.
#[inline(always)]
pub fn ftz(x: f32) -> f32 {
    let b = x.to_bits();
    f32::from_bits(if b & 0x7f80_0000 == 0 { b & 0x8000_0000 } else { b })
}

/// Clamp to [0, 1]; NaN becomes +0.
#[inline(always)]
pub fn saturate(x: f32) -> f32 {
    // `max` first: it drops a NaN.
    if x > 0.0 { if x < 1.0 { x } else { 1.0 } } else { 0.0 }
}

/// The NaN that f32 arithmetic instructions give.
pub const NAN32: u32 = 0x7fff_ffff;

/// PTX gives one canonical NaN from f32 arithmetic.
#[inline(always)]
pub fn canon(x: f32) -> f32 {
    // On the bits: of a NaN's payload the compiler promises nothing, and it drops a choice between two NaNs.
    let b = x.to_bits();
    f32::from_bits(if b & 0x7fff_ffff > 0x7f80_0000 { NAN32 } else { b })
}

/// `min` of PTX: a NaN loses, -0 is below +0.
#[inline(always)]
pub fn fmin(a: f32, b: f32) -> f32 {
    let (x, y) = (a.to_bits(), b.to_bits());
    if a.is_nan() {
        return if b.is_nan() { f32::from_bits(NAN32) } else { b };
    }
    if b.is_nan() || a < b || (a == b && x >= y) { a } else { b }
}

/// `max` of PTX: a NaN loses, +0 is above -0.
#[inline(always)]
pub fn fmax(a: f32, b: f32) -> f32 {
    let (x, y) = (a.to_bits(), b.to_bits());
    if a.is_nan() {
        return if b.is_nan() { f32::from_bits(NAN32) } else { b };
    }
    if b.is_nan() || a > b || (a == b && x <= y) { a } else { b }
}

/// Bits of a binary16 as f32.
#[inline(always)]
pub fn half_to_f32(h: u16) -> f32 {
    let sign = (u32::from(h) & 0x8000) << 16;
    let em = u32::from(h) & 0x7fff;
    // Shift exponent and mantissa into place, then rebias by a multiplication, which also normalises subnormals.
    let scaled = f32::from_bits(em << 13) * f32::from_bits(0x7780_0000);
    let infinite = (em << 13) | 0x7f80_0000;
    f32::from_bits(sign | if em >= 0x7c00 { infinite } else { scaled.to_bits() })
}

/// Nearest binary16, ties to even; NaN becomes 0x7fff.
#[inline(always)]
pub fn f32_to_half(x: f32) -> u16 {
    let b = x.to_bits();
    let sign = (b >> 16) & 0x8000;
    let a = b & 0x7fff_ffff;
    // Normal: round on the bits. Subnormal: adding a magic number lets the addition round.
    let odd = (a >> 13) & 1;
    let normal = (a.wrapping_add(0xc800_0fff).wrapping_add(odd)) >> 13;
    let magic = f32::from_bits(a) + 0.5;
    let subnormal = magic.to_bits().wrapping_sub(0x3f00_0000);
    let r = if a >= 0x477f_f000 {
        0x7c00
    } else if a < 0x3880_0000 {
        subnormal
    } else {
        normal
    };
    let r = if a > 0x7f80_0000 { 0x7fff } else { r | sign };
    r as u16
}

/// Bits of a bfloat16 as f32.
#[inline(always)]
pub fn bf_to_f32(h: u16) -> f32 {
    f32::from_bits(u32::from(h) << 16)
}

/// Nearest bfloat16, ties to even; NaN becomes 0x7fff.
#[inline(always)]
pub fn f32_to_bf(x: f32) -> u16 {
    let b = x.to_bits();
    let r = b.wrapping_add(0x7fff + ((b >> 16) & 1)) >> 16;
    (if b & 0x7fff_ffff > 0x7f80_0000 { 0x7fff } else { r }) as u16
}

/// Drops the error of an inexact double by setting its last bit ("round to odd"), so that a second rounding to at most 51 bits
/// is right. `error` is the exact value minus `x`.
#[inline(always)]
pub fn to_odd(x: f64, error: f64) -> f64 {
    if error == 0.0 || !x.is_finite() || error.is_nan() {
        return x;
    }
    let b = x.to_bits();
    if b & 1 == 1 {
        return x;
    }
    // The exact value lies on the side of `error`; the odd neighbour on that side is the answer.
    let grows = (error > 0.0) == (x > 0.0);
    if x == 0.0 {
        return error.signum() * f64::from_bits(1);
    }
    f64::from_bits(if grows { b + 1 } else { b - 1 })
}

/// a + b rounded to odd.
#[inline(always)]
pub fn add_odd(a: f64, b: f64) -> f64 {
    let s = a + b;
    let t = s - a;
    // Knuth's two-sum: exact error of the rounded sum.
    let e = (a - (s - t)) + (b - t);
    to_odd(s, e)
}

/// a * b + c rounded to odd, exact for a and b of at most 26 significant bits.
#[inline(always)]
pub fn fma_odd(a: f64, b: f64, c: f64) -> f64 {
    add_odd(a * b, c)
}

/// a / b rounded to odd.
pub fn div_odd(a: f64, b: f64) -> f64 {
    let q = a / b;
    let r = (-q).mul_add(b, a);
    to_odd(q, if b.is_infinite() || r == 0.0 { 0.0 } else { r / b })
}

/// sqrt(a) rounded to odd.
pub fn sqrt_odd(a: f64) -> f64 {
    let s = a.sqrt();
    if !(s > 0.0 && s.is_finite()) {
        return s;
    }
    to_odd(s, (-s).mul_add(s, a))
}

/// A double to a narrower binary format, any mode. `mantissa` excludes the hidden bit; exponents as in IEEE 754.
/// Returns the bits in the low end, NaN as all ones below the sign.
pub fn narrow(x: f64, exponent_bits: u32, mantissa: u32, mode: Round) -> u64 {
    let bits = x.to_bits();
    let sign = bits >> 63;
    let out_sign = sign << (exponent_bits + mantissa);
    let max_exponent = (1u64 << exponent_bits) - 1;
    let bias = (1i64 << (exponent_bits - 1)) - 1;
    if x.is_nan() {
        return (max_exponent << mantissa) | ((1 << mantissa) - 1);
    }
    if x.is_infinite() {
        return out_sign | max_exponent << mantissa;
    }
    if x == 0.0 {
        return out_sign;
    }
    let (mut significand, mut exponent) = (bits & ((1 << 52) - 1), ((bits >> 52) & 0x7ff) as i64);
    if exponent == 0 {
        exponent = 1;
        while significand >> 52 == 0 {
            significand <<= 1;
            exponent -= 1;
        }
    } else {
        significand |= 1 << 52;
    }
    let mut e = exponent - 1023 + bias;
    // Bits to drop: more when the result is subnormal.
    let mut drop = 52 - mantissa as i64;
    if e < 1 {
        drop += 1 - e;
        e = 0;
    }
    let (kept, rest, half) = if drop > 62 {
        (0u64, 1u64, 2u64)
    } else if drop == 0 {
        (significand, 0, 1)
    } else {
        (significand >> drop, significand & ((1 << drop) - 1), 1u64 << (drop - 1))
    };
    let up = match mode {
        Round::Nearest => rest > half || (rest == half && kept & 1 == 1),
        Round::Away => rest >= half && rest != 0,
        Round::Zero => false,
        Round::Down => rest != 0 && sign == 1,
        Round::Up => rest != 0 && sign == 0,
    };
    // A carry out of the significand moves into the exponent by itself. The hidden bit counts as one exponent step.
    let packed = if e == 0 { kept } else { kept + (((e - 1) as u64) << mantissa) } + u64::from(up);
    if packed >= max_exponent << mantissa {
        let to_infinity = match mode {
            Round::Nearest | Round::Away => true,
            Round::Zero => false,
            Round::Down => sign == 1,
            Round::Up => sign == 0,
        };
        let largest = (max_exponent << mantissa) - 1;
        return out_sign | if to_infinity { max_exponent << mantissa } else { largest };
    }
    out_sign | packed
}

/// A double to f32, any mode.
pub fn narrow32(x: f64, mode: Round) -> f32 {
    f32::from_bits(if x.is_nan() { NAN32 } else { narrow(x, 8, 23, mode) as u32 })
}

/// To an integral value.
pub fn integral(x: f64, mode: Round) -> f64 {
    match mode {
        Round::Nearest => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
        Round::Away => x.round(),
    }
}

/// 2^x, `ex2.approx.f32`: at most 2 ulp; subnormal results only without `.ftz`.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    let c = if x > 129.0 { 129.0 } else { x };
    let c = if c < -152.0 { -152.0 } else { c };
    let n = (c + 12_582_912.0) - 12_582_912.0;
    let f = (c - n) as f64;
    // Taylor of 2^f on [-0.5, 0.5] to degree 7: relative error below 2^-31.
    const L: f64 = std::f64::consts::LN_2;
    let t = f * L;
    let p = 1.0
        + t * (1.0
            + t * (0.5
                + t * (1.0 / 6.0 + t * (1.0 / 24.0 + t * (1.0 / 120.0 + t * (1.0 / 720.0 + t * (1.0 / 5040.0)))))));
    let scale = f64::from_bits(((n as i32 as i64 + 1023) as u64) << 52);
    let r = (p * scale) as f32;
    if x.is_nan() { f32::from_bits(NAN32) } else { r }
}

/// log2, `lg2.approx.f32`, through a double.
pub fn log2(x: f32) -> f32 {
    canon(f64::from(x).log2() as f32)
}

/// Reciprocal square root, `rsqrt.approx.f32`.
#[inline(always)]
pub fn rsqrt(x: f32) -> f32 {
    canon((1.0 / f64::from(x).sqrt()) as f32)
}

/// tanh, `tanh.approx.f32`.
pub fn tanh(x: f32) -> f32 {
    canon(f64::from(x).tanh() as f32)
}

/// Applies an f32 function to both halves of an f16x2.
#[inline(always)]
pub fn map_half2(a: u32, b: u32, f: impl Fn(f32, f32) -> f32) -> u32 {
    let lo = f32_to_half(f(half_to_f32(a as u16), half_to_f32(b as u16)));
    let hi = f32_to_half(f(half_to_f32((a >> 16) as u16), half_to_f32((b >> 16) as u16)));
    u32::from(lo) | u32::from(hi) << 16
}

/// fma.rn.f16: one rounding. The f64 sum of an exact product is exact or its double rounding is harmless (exponent range).
#[inline(always)]
pub fn half_fma(a: u16, b: u16, c: u16) -> f64 {
    fma_odd(f64::from(half_to_f32(a)), f64::from(half_to_f32(b)), f64::from(half_to_f32(c)))
}

/// fma.rn.bf16 before its rounding, as a double rounded to odd.
#[inline(always)]
pub fn bf_fma(a: u16, b: u16, c: u16) -> f64 {
    fma_odd(f64::from(bf_to_f32(a)), f64::from(bf_to_f32(b)), f64::from(bf_to_f32(c)))
}

/// A double rounded to odd to f32 rounded to odd: lets the vectorised f32 narrowings finish.
#[inline(always)]
pub fn odd32(x: f64) -> f32 {
    let r = x as f32;
    let back = f64::from(r);
    let b = r.to_bits();
    if back == x || !r.is_finite() && !x.is_finite() || b & 1 == 1 && r.is_finite() {
        return r;
    }
    if !r.is_finite() {
        // Overflow of a finite value: the largest finite f32 is odd, and narrower formats overflow from it as they should.
        return f32::from_bits((b & 0x8000_0000) | 0x7f7f_ffff);
    }
    let grows = x.abs() > back.abs();
    f32::from_bits(if grows { b + 1 } else { b.wrapping_sub(1) })
}
