//! Exact arithmetic on binary floating-point numbers, and their rounding: the definitions that instructions are held to.
//! A number is a sign, a big integer and a power of two; quotients and roots carry a flag for what lies below their last bit.

use std::cmp::Ordering;

/// A binary format: exponent bits and stored mantissa bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Format(pub u32, pub u32);

pub const F16: Format = Format(5, 10);
pub const BF16: Format = Format(8, 7);
pub const TF32: Format = Format(8, 10);
pub const F32: Format = Format(8, 23);
pub const F64: Format = Format(11, 52);

/// The format of a type.
pub fn format(ty: &str) -> Format {
    match ty {
        "f16" | "f16x2" => F16,
        "bf16" | "bf16x2" => BF16,
        "tf32" => TF32,
        "f32" => F32,
        _ => F64,
    }
}

/// A rounding direction by the letters of PTX: rn, rz, rm (down), rp (up), rna.
pub type Mode = &'static str;

/// A number.
#[derive(Clone, Debug)]
pub enum Num {
    Nan,
    Infinity(bool),
    Zero(bool),
    /// Negative, magnitude (little-endian words), exponent of its last bit, and whether a little more is there.
    Finite(bool, Vec<u64>, i32, bool),
}
use Num::{Finite, Infinity, Nan, Zero};

fn bits(m: &[u64]) -> u32 {
    m.iter().rposition(|w| *w != 0).map_or(0, |n| 64 * n as u32 + 64 - m[n].leading_zeros())
}

fn bit(m: &[u64], n: u32) -> bool {
    m.get(n as usize / 64).is_some_and(|w| w >> (n % 64) & 1 != 0)
}

fn shift_left(m: &[u64], n: u32) -> Vec<u64> {
    let mut r = vec![0; n as usize / 64];
    let s = n % 64;
    let mut low = 0;
    for w in m {
        r.push(w << s | low);
        low = if s == 0 { 0 } else { w >> (64 - s) };
    }
    r.push(low);
    r
}

fn compare(a: &[u64], b: &[u64]) -> Ordering {
    let at = |m: &[u64], n: usize| m.get(n).copied().unwrap_or(0);
    (0..a.len().max(b.len())).rev().map(|n| at(a, n).cmp(&at(b, n))).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
}

fn add_magnitudes(a: &[u64], b: &[u64]) -> Vec<u64> {
    let at = |m: &[u64], n: usize| u128::from(m.get(n).copied().unwrap_or(0));
    let mut carry = 0;
    (0..=a.len().max(b.len()))
        .map(|n| {
            let s = at(a, n) + at(b, n) + carry;
            carry = s >> 64;
            s as u64
        })
        .collect()
}

/// a - b, a not below b.
fn subtract_magnitudes(a: &[u64], b: &[u64]) -> Vec<u64> {
    let mut borrow = false;
    (0..a.len())
        .map(|n| {
            let (d, x) = a[n].overflowing_sub(b.get(n).copied().unwrap_or(0));
            let (d, y) = d.overflowing_sub(u64::from(borrow));
            borrow = x || y;
            d
        })
        .collect()
}

fn words(v: u128) -> Vec<u64> {
    vec![v as u64, (v >> 64) as u64]
}

impl Num {
    /// The number that bits of a format mean.
    pub fn read(v: u64, f: Format) -> Num {
        let (e, m) = (v >> f.1 & ((1 << f.0) - 1), v & ((1 << f.1) - 1));
        let (negative, top, bias) = (v >> (f.0 + f.1) & 1 != 0, (1u64 << f.0) - 1, (1i32 << (f.0 - 1)) - 1);
        match (e, m) {
            (0, 0) => Zero(negative),
            (0, m) => Finite(negative, vec![m], 1 - bias - f.1 as i32, false),
            (e, 0) if e == top => Infinity(negative),
            (e, _) if e == top => Nan,
            (e, m) => Finite(negative, vec![m | 1 << f.1], e as i32 - bias - f.1 as i32, false),
        }
    }

    /// An integer.
    pub fn integer(v: i128) -> Num {
        if v == 0 { Zero(false) } else { Finite(v < 0, words(v.unsigned_abs()), 0, false) }
    }

    pub fn is_nan(&self) -> bool {
        matches!(self, Nan)
    }

    pub fn negative(&self) -> bool {
        match self {
            Nan => false,
            Infinity(n) | Zero(n) | Finite(n, ..) => *n,
        }
    }

    pub fn neg(&self) -> Num {
        match self.clone() {
            Nan => Nan,
            Infinity(n) => Infinity(!n),
            Zero(n) => Zero(!n),
            Finite(n, m, e, s) => Finite(!n, m, e, s),
        }
    }

    /// The sum; an exact zero from unlike signs is -0 when rounding down.
    pub fn add(&self, other: &Num, mode: Mode) -> Num {
        match (self, other) {
            (Nan, _) | (_, Nan) => Nan,
            (Infinity(a), Infinity(b)) if a != b => Nan,
            (Infinity(a), _) | (_, Infinity(a)) => Infinity(*a),
            (Zero(a), Zero(b)) => Zero(if a == b { *a } else { mode == "rm" }),
            (Zero(_), x) | (x, Zero(_)) => x.clone(),
            (Finite(an, am, ae, _), Finite(bn, bm, be, _)) => {
                let e = (*ae).min(*be);
                let (a, b) = (shift_left(am, (ae - e) as u32), shift_left(bm, (be - e) as u32));
                if an == bn {
                    return Finite(*an, add_magnitudes(&a, &b), e, false);
                }
                match compare(&a, &b) {
                    Ordering::Equal => Zero(mode == "rm"),
                    Ordering::Greater => Finite(*an, subtract_magnitudes(&a, &b), e, false),
                    Ordering::Less => {
                        let mut b = b;
                        b.resize(a.len().max(b.len()), 0);
                        Finite(*bn, subtract_magnitudes(&b, &a), e, false)
                    }
                }
            }
        }
    }

    /// The product of two numbers of one word.
    pub fn mul(&self, other: &Num) -> Num {
        let n = self.negative() != other.negative();
        match (self, other) {
            (Nan, _) | (_, Nan) | (Infinity(_), Zero(_)) | (Zero(_), Infinity(_)) => Nan,
            (Infinity(_), _) | (_, Infinity(_)) => Infinity(n),
            (Zero(_), _) | (_, Zero(_)) => Zero(n),
            (Finite(_, a, ae, _), Finite(_, b, be, _)) => {
                Finite(n, words(u128::from(a[0]) * u128::from(b[0])), ae + be, false)
            }
        }
    }

    /// The quotient of two numbers of at most 53 bits, to more than 64 bits and the flag for the rest.
    pub fn div(&self, other: &Num) -> Num {
        let n = self.negative() != other.negative();
        match (self, other) {
            (Nan, _) | (_, Nan) | (Infinity(_), Infinity(_)) | (Zero(_), Zero(_)) => Nan,
            (Infinity(_), _) | (_, Zero(_)) => Infinity(n),
            (Zero(_), _) | (_, Infinity(_)) => Zero(n),
            (Finite(_, a, ae, _), Finite(_, b, be, _)) => {
                let up = a[0].leading_zeros() + 63;
                let (a, b) = (u128::from(a[0]) << up, u128::from(b[0]));
                Finite(n, words(a / b), ae - be - up as i32, a % b != 0)
            }
        }
    }

    /// The square root of a number of at most 53 bits.
    pub fn sqrt(&self) -> Num {
        match self {
            Zero(n) => Zero(*n),
            Infinity(false) => Infinity(false),
            Finite(false, m, e, _) => {
                // An even exponent, and as many bits as fit.
                let mut up = m[0].leading_zeros() + 62;
                up += (e - up as i32).rem_euclid(2) as u32;
                let v = u128::from(m[0]) << up;
                let root = v.isqrt();
                Finite(false, words(root), (e - up as i32) / 2, root * root != v)
            }
            _ => Nan,
        }
    }

    /// The magnitude as an integer, rounded; `None` when it has more than 100 bits.
    fn whole(&self, mode: Mode) -> Option<u128> {
        let Finite(negative, m, e, sticky) = self else { return Some(0) };
        if bits(m) as i32 + e > 100 {
            return None;
        }
        let (kept, half, rest) = split(m, -e, *sticky);
        let kept = u128::from(kept.first().copied().unwrap_or(0)) | u128::from(kept.get(1).copied().unwrap_or(0)) << 64;
        Some(kept + u128::from(rounds_up(mode, *negative, kept & 1 != 0, half, rest)))
    }

    /// The nearest integer in a direction, clamped to a range. Infinities clamp too.
    pub fn clamped(&self, mode: Mode, low: i128, high: i128) -> i128 {
        match (self, self.whole(mode)) {
            (Nan, _) => 0,
            (Infinity(n), _) => {
                if *n {
                    low
                } else {
                    high
                }
            }
            (_, None) => {
                if self.negative() {
                    low
                } else {
                    high
                }
            }
            (_, Some(v)) => (if self.negative() { -(v as i128) } else { v as i128 }).clamp(low, high),
        }
    }

    /// Rounded to an integral number.
    pub fn integral(&self, mode: Mode) -> Num {
        match self.whole(mode) {
            Some(0) if matches!(self, Finite(..)) => Zero(self.negative()),
            Some(v) if matches!(self, Finite(..)) => Finite(self.negative(), words(v), 0, false),
            _ => self.clone(),
        }
    }

    /// Subnormal numbers of a format become zeros of their sign.
    pub fn flushed(&self, f: Format) -> Num {
        match self {
            Finite(n, m, e, _) if bits(m) as i32 + e <= 2 - (1 << (f.0 - 1)) => Zero(*n),
            other => other.clone(),
        }
    }

    /// Bits in a format after rounding. NaN is all ones below the sign.
    pub fn round(&self, f: Format, mode: Mode) -> u64 {
        let (top, bias) = ((1u64 << f.0) - 1, (1i32 << (f.0 - 1)) - 1);
        let sign = |n: bool| u64::from(n) << (f.0 + f.1);
        match self {
            Nan => (1 << (f.0 + f.1)) - 1,
            Infinity(n) => sign(*n) | top << f.1,
            Zero(n) => sign(*n),
            Finite(n, m, e, sticky) => {
                // The exponent of the last bit kept: the format's precision, or its smallest step.
                let last = (bits(m) as i32 + e - 1 - f.1 as i32).max(1 - bias - f.1 as i32);
                let (kept, half, rest) = split(m, last - e, *sticky);
                let kept = kept.first().copied().unwrap_or(0);
                // Counting steps from zero: a carry moves on into the next exponent by itself.
                let exponent = (last + bias + f.1 as i32 - 1) as u64;
                let steps = (exponent << f.1) + kept + u64::from(rounds_up(mode, *n, kept & 1 != 0, half, rest));
                if steps < top << f.1 {
                    return sign(*n) | steps;
                }
                let beyond = matches!(mode, "rn" | "rna") || mode == "rp" && !n || mode == "rm" && *n;
                sign(*n) | if beyond { top << f.1 } else { (top << f.1) - 1 }
            }
        }
    }
}

/// A magnitude without its last `drop` bits, the first bit dropped, and whether any other was set.
fn split(m: &[u64], drop: i32, sticky: bool) -> (Vec<u64>, bool, bool) {
    if drop <= 0 {
        return (shift_left(m, (-drop) as u32), false, sticky);
    }
    let drop = drop as u32;
    let n = bits(m);
    let mut kept = vec![0u64; (n.saturating_sub(drop) as usize).div_ceil(64)];
    for k in drop..n.max(drop) {
        kept[(k - drop) as usize / 64] |= u64::from(bit(m, k)) << ((k - drop) % 64);
    }
    (kept, bit(m, drop - 1), sticky || (0..(drop - 1).min(n)).any(|k| bit(m, k)))
}

fn rounds_up(mode: Mode, negative: bool, odd: bool, half: bool, rest: bool) -> bool {
    match mode {
        "rn" => half && (rest || odd),
        "rna" => half,
        "rm" => negative && (half || rest),
        "rp" => !negative && (half || rest),
        _ => false,
    }
}

/// The order of two numbers of one format by their bits; `None` with a NaN.
pub fn order(a: u64, b: u64, f: Format) -> Option<Ordering> {
    let value = |v: u64| match Num::read(v, f) {
        Nan => None,
        _ => {
            let m = (v & ((1 << (f.0 + f.1)) - 1)) as i128;
            Some(if v >> (f.0 + f.1) & 1 != 0 { -m } else { m })
        }
    };
    Some(value(a)?.cmp(&value(b)?))
}

#[test]
fn the_definitions_agree_with_the_host_where_it_has_them() {
    let mut r = crate::common::Random(77);
    for _ in 0..20000 {
        let (a, b, c) = (f64::from_bits(r.bits()), f64::from_bits(r.bits()), f64::from_bits(r.bits()));
        let near = f64::from_bits(a.to_bits() ^ r.bits() >> 40 ^ 1 << 63);
        let n = |v: f64| Num::read(v.to_bits(), F64);
        let same = |x: Num, y: f64, what: &str| {
            let got = x.round(F64, "rn");
            assert!(
                f64::from_bits(got) == y || y.is_nan() && x.is_nan(),
                "{what} of {a:e}, {b:e}, {c:e}: {got:x} {y:e}"
            );
        };
        same(n(a).add(&n(b), "rn"), a + b, "sum");
        same(n(a).add(&n(near), "rn"), a + near, "difference");
        same(n(a).mul(&n(b)), a * b, "product");
        same(n(a).mul(&n(b)).add(&n(c), "rn"), a.mul_add(b, c), "fma");
        same(n(a).div(&n(b)), a / b, "quotient");
        same(n(a).sqrt(), a.sqrt(), "root");
        let narrow = n(a).round(F32, "rn") as u32;
        assert!(narrow == (a as f32).to_bits() || a.is_nan() && narrow == 0x7fff_ffff, "{a:e} as f32: {narrow:#x}");
        assert_eq!(n(a).clamped("rz", i128::from(i64::MIN), i128::from(i64::MAX)), i128::from(a as i64));
        let s = f64::from_bits(a.to_bits() & !(0x7ff << 52) | (1020 + (r.bits() % 60)) << 52);
        assert_eq!(n(s).clamped("rn", i128::MIN, i128::MAX), s.round_ties_even() as i128);
        assert_eq!(n(s).clamped("rm", i128::MIN, i128::MAX), s.floor() as i128);
    }
}
