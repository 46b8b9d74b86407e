//! f64 arithmetic in the directed roundings, on integers.
//! In: doubles, a mode. Out: the exact result rounded once. Owns: the f64 forms with .rz, .rm and .rp.
//! Not here: rounding to nearest, which the host has; f32, which fits into f64 (`float`).

use super::float::Round;

/// sig * 2^exp rounded to f64; `rest` says that the exact value is a little larger in magnitude.
pub fn pack64(negative: bool, sig: u128, exp: i32, rest: bool, mode: Round) -> f64 {
    let sign = u64::from(negative) << 63;
    // The exponent of the last bit kept: 53 bits, or the smallest step.
    let last = (128 - sig.leading_zeros() as i32 + exp - 53).max(-1074);
    let drop = last - exp;
    let (kept, half, rest) = match drop {
        ..=0 => (sig << -drop, false, rest),
        1..=127 => (sig >> drop, sig >> (drop - 1) & 1 != 0, rest || sig & ((1 << (drop - 1)) - 1) != 0),
        _ => (0, false, rest || sig != 0),
    };
    let up = match mode {
        Round::Nearest => half && (rest || kept & 1 != 0),
        Round::Away => half,
        Round::Zero => false,
        Round::Down => negative && (half || rest),
        Round::Up => !negative && (half || rest),
    };
    // Counted in steps from zero, a carry moves into the next exponent by itself.
    let steps = (((last + 1074) as u64) << 52) + kept as u64 + u64::from(up);
    if steps < 0x7ff << 52 {
        return f64::from_bits(sign | steps);
    }
    let infinite = match mode {
        Round::Nearest | Round::Away => true,
        Round::Zero => false,
        Round::Down => negative,
        Round::Up => !negative,
    };
    f64::from_bits(sign | if infinite { 0x7ff << 52 } else { (0x7ff << 52) - 1 })
}

/// Sign, significand and exponent of a finite number.
fn parts(x: f64) -> (bool, u128, i32) {
    let b = x.to_bits();
    let (e, m) = ((b >> 52 & 0x7ff) as i32, u128::from(b & ((1 << 52) - 1)));
    (x.is_sign_negative(), if e == 0 { m } else { m | 1 << 52 }, e.max(1) - 1075)
}

/// The sum of two numbers other than zero, each of at most 106 bits.
fn sum(a: (bool, u128, i32), b: (bool, u128, i32), mode: Round) -> f64 {
    // Top bits at 125: room for a carry, and at least 20 bits below what is rounded.
    let lift = |(n, s, e): (bool, u128, i32)| {
        let up = s.leading_zeros() as i32 - 2;
        (n, s << up, e - up)
    };
    let (a, b) = (lift(a), lift(b));
    let (large, small) = if a.2 > b.2 || a.2 == b.2 && a.1 >= b.1 { (a, b) } else { (b, a) };
    let by = (large.2 - small.2) as u32;
    // What is shifted out stays as a last bit: it is far below the rounding.
    let small_sig = if by > 126 { 1 } else { small.1 >> by | u128::from(small.1 & ((1 << by) - 1) != 0) };
    if large.0 == small.0 {
        return pack64(large.0, large.1 + small_sig, large.2, false, mode);
    }
    match large.1 - small_sig {
        0 => zero(mode),
        s => pack64(large.0, s, large.2, false, mode),
    }
}

/// An exact zero from unlike signs.
fn zero(mode: Round) -> f64 {
    if mode == Round::Down { -0.0 } else { 0.0 }
}

/// a + b.
pub fn add64(a: f64, b: f64, mode: Round) -> f64 {
    if !a.is_finite() || !b.is_finite() {
        return a + b;
    }
    match (a == 0.0, b == 0.0) {
        (true, true) if a.is_sign_negative() != b.is_sign_negative() => zero(mode),
        (_, true) => a,
        (true, _) => b,
        _ => sum(parts(a), parts(b), mode),
    }
}

/// a * b.
pub fn mul64(a: f64, b: f64, mode: Round) -> f64 {
    if !a.is_finite() || !b.is_finite() || a == 0.0 || b == 0.0 {
        return a * b;
    }
    let ((an, am, ae), (bn, bm, be)) = (parts(a), parts(b));
    pack64(an != bn, am * bm, ae + be, false, mode)
}

/// a * b + c, rounded once.
pub fn fma64(a: f64, b: f64, c: f64, mode: Round) -> f64 {
    if !a.is_finite() || !b.is_finite() || !c.is_finite() {
        return a.mul_add(b, c);
    }
    if a == 0.0 || b == 0.0 {
        return add64(a * b, c, mode);
    }
    if c == 0.0 {
        return mul64(a, b, mode);
    }
    let ((an, am, ae), (bn, bm, be)) = (parts(a), parts(b));
    sum((an != bn, am * bm, ae + be), parts(c), mode)
}

/// a / b.
pub fn div64(a: f64, b: f64, mode: Round) -> f64 {
    if !a.is_finite() || !b.is_finite() || a == 0.0 || b == 0.0 {
        return a / b;
    }
    let ((an, am, ae), (bn, bm, be)) = (parts(a), parts(b));
    let up = am.leading_zeros();
    let a = am << up;
    pack64(an != bn, a / bm, ae - be - up as i32, a % bm != 0, mode)
}

/// The square root of a.
pub fn sqrt64(a: f64, mode: Round) -> f64 {
    if !(a > 0.0 && a.is_finite()) {
        return a.sqrt();
    }
    let (_, m, e) = parts(a);
    // As many bits as fit, and an even exponent.
    let mut up = m.leading_zeros() as i32 - 1;
    up -= (e - up) & 1;
    let v = m << up;
    let root = v.isqrt();
    pack64(false, root, (e - up) / 2, root * root != v, mode)
}
