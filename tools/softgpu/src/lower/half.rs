//! f16 and bf16 instructions, scalar and packed.
//! In: `ptx::Inst`. Out: `Virtual`s with closures over lanes. Owns: packed forms. Not here: scalar definitions (`exec::float`).
//! Source: PTX ISA, "Half Precision Floating-Point Instructions". Each result is rounded once.

use super::Lower;
use super::ops::Words;
use crate::exec::float::{
    bf_fma, bf_to_f32, exp2, f32_to_bf, f32_to_half, fmax, fmin, half_fma, half_to_f32, odd32, saturate, tanh,
};
use crate::exec::lanes::{op1, op2, op3, op3x};
use crate::ir::{Class, OpFn};
use crate::ptx::{Inst, Result, Ty};

/// Flushes f16 subnormals (`.ftz`).
#[inline(always)]
fn flush(h: u16) -> u16 {
    if h & 0x7c00 == 0 { h & 0x8000 } else { h }
}

#[inline(always)]
fn both(a: u32, f: impl Fn(u16) -> u16) -> u32 {
    u32::from(f(a as u16)) | u32::from(f((a >> 16) as u16)) << 16
}

#[inline(always)]
fn both2(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
    u32::from(f(a as u16, b as u16)) | u32::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16
}

#[inline(always)]
fn both3(a: u32, b: u32, c: u32, f: impl Fn(u16, u16, u16) -> u16) -> u32 {
    let lo = f(a as u16, b as u16, c as u16);
    u32::from(lo) | u32::from(f((a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16)) << 16
}

/// A binary operation that is exact enough in f32 (sum, difference, product of two 16-bit floats round once from there: f16
/// sums and products fit f32 exactly or lie far enough from ties; bf16 ones are rounded to odd first).
macro_rules! binary {
    ($ty:expr, |$a:ident, $b:ident| $e:expr) => {
        match $ty {
            Ty::F16 => op2::<u16, u16, u16, _>(|x, y| {
                let ($a, $b) = (f64::from(half_to_f32(x)), f64::from(half_to_f32(y)));
                f32_to_half(odd32($e))
            }),
            Ty::F16x2 => op2::<u32, u32, u32, _>(|x, y| {
                both2(x, y, |x, y| {
                    let ($a, $b) = (f64::from(half_to_f32(x)), f64::from(half_to_f32(y)));
                    f32_to_half(odd32($e))
                })
            }),
            Ty::Bf16 => op2::<u16, u16, u16, _>(|x, y| {
                let ($a, $b) = (f64::from(bf_to_f32(x)), f64::from(bf_to_f32(y)));
                f32_to_bf(odd32($e))
            }),
            _ => op2::<u32, u32, u32, _>(|x, y| {
                both2(x, y, |x, y| {
                    let ($a, $b) = (f64::from(bf_to_f32(x)), f64::from(bf_to_f32(y)));
                    f32_to_bf(odd32($e))
                })
            }),
        }
    };
}

/// Binary on f32 values whose result is one of the operands (or NaN).
macro_rules! choose {
    ($ty:expr, |$a:ident, $b:ident| $e:expr) => {
        match $ty {
            Ty::F16 => op2::<u16, u16, u16, _>(|x, y| {
                let ($a, $b) = (half_to_f32(x), half_to_f32(y));
                f32_to_half($e)
            }),
            Ty::F16x2 => op2::<u32, u32, u32, _>(|x, y| {
                both2(x, y, |x, y| {
                    let ($a, $b) = (half_to_f32(x), half_to_f32(y));
                    f32_to_half($e)
                })
            }),
            Ty::Bf16 => op2::<u16, u16, u16, _>(|x, y| {
                let ($a, $b) = (bf_to_f32(x), bf_to_f32(y));
                f32_to_bf($e)
            }),
            _ => op2::<u32, u32, u32, _>(|x, y| {
                both2(x, y, |x, y| {
                    let ($a, $b) = (bf_to_f32(x), bf_to_f32(y));
                    f32_to_bf($e)
                })
            }),
        }
    };
}

macro_rules! unary {
    ($ty:expr, |$a:ident| $e:expr) => {
        match $ty {
            Ty::F16 => op1::<u16, u16, _>(|x| {
                let $a = half_to_f32(x);
                f32_to_half($e)
            }),
            Ty::F16x2 => op1::<u32, u32, _>(|x| {
                both(x, |x| {
                    let $a = half_to_f32(x);
                    f32_to_half($e)
                })
            }),
            Ty::Bf16 => op1::<u16, u16, _>(|x| {
                let $a = bf_to_f32(x);
                f32_to_bf($e)
            }),
            _ => op1::<u32, u32, _>(|x| {
                both(x, |x| {
                    let $a = bf_to_f32(x);
                    f32_to_bf($e)
                })
            }),
        }
    };
}

/// `x` of the modified forms: 1 flush, 2 saturate, 4 relu; the operation in bits 4..: 0 add, 1 sub, 2 mul, 3 fma.
fn modified(a: u16, b: u16, c: u16, x: u32, bf: bool) -> u16 {
    let z = |h: u16| if x & 1 != 0 { flush(h) } else { h };
    let one = if bf { 0x3f80 } else { 0x3c00 };
    let (a, b, c) = match x >> 4 {
        0 => (z(a), one, z(b)),
        1 => (z(a), one, z(b) ^ 0x8000),
        2 => (z(a), z(b), if (a ^ b) & 0x8000 != 0 { 0x8000 } else { 0 }),
        _ => (z(a), z(b), z(c)),
    };
    let exact = odd32(if bf { bf_fma(a, b, c) } else { half_fma(a, b, c) });
    let exact = if x & 2 != 0 { saturate(exact) } else { exact };
    let exact = if x & 4 != 0 && exact < 0.0 { 0.0 } else { exact };
    let r = if bf { f32_to_bf(exact) } else { f32_to_half(exact) };
    let r = if x & 4 != 0 && r == 0x8000 { 0 } else { r };
    z(r)
}

/// min or max of two 16-bit floats. `x`: 1 flush, 2 max, 4 NaN wins, 8 magnitudes with the exclusive or of the signs, 16 bf16.
fn choice(a: u16, b: u16, x: u32) -> u16 {
    let (a, b) = if x & 1 != 0 { (flush(a), flush(b)) } else { (a, b) };
    let infinity = if x & 16 != 0 { 0x7f80 } else { 0x7c00 };
    let nan = |h: u16| h & 0x7fff > infinity;
    let (sign, a, b) = if x & 8 != 0 { ((a ^ b) & 0x8000, a & 0x7fff, b & 0x7fff) } else { (0, a, b) };
    // As integers with the order of the numbers, -0 below +0.
    let key = |h: u16| if h & 0x8000 != 0 { -i32::from(h & 0x7fff) - 1 } else { i32::from(h) };
    let r = match (nan(a), nan(b)) {
        (true, true) => return 0x7fff,
        (true, false) | (false, true) if x & 4 != 0 => return 0x7fff,
        (true, false) => b,
        (false, true) => a,
        _ if (key(a) < key(b)) == (x & 2 == 0) => a,
        _ => b,
    };
    r | sign
}

impl Lower<'_> {
    /// Lowers an f16, f16x2, bf16 or bf16x2 instruction.
    pub(super) fn half(&mut self, i: &Inst, w: &Words) -> Result<()> {
        let Some(ty) = w.types().last().copied() else { return self.error("no type") };
        if !matches!(ty, Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2) {
            return self.error(format!("type {ty:?} is not supported here"));
        }
        let class = Class::Half;
        let x = u32::from(w.has("ftz")) | u32::from(w.has("sat")) << 1 | u32::from(w.has("relu")) << 2;
        if matches!(w.root, "min" | "max") && (x != 0 || w.has("xorsign")) {
            return self.half_choice(i, w, ty, x);
        }
        if x != 0 && matches!(w.root, "add" | "sub" | "mul" | "fma") {
            return self.half_modified(i, w, ty, x);
        }
        let f: OpFn = match w.root {
            "add" => binary!(ty, |a, b| a + b),
            "sub" => binary!(ty, |a, b| a - b),
            "mul" => binary!(ty, |a, b| a * b),
            "fma" => {
                let f = match ty {
                    Ty::F16 => op3::<u16, u16, u16, u16, _>(|a, b, c| f32_to_half(odd32(half_fma(a, b, c)))),
                    Ty::F16x2 => op3::<u32, u32, u32, u32, _>(|a, b, c| {
                        both3(a, b, c, |a, b, c| f32_to_half(odd32(half_fma(a, b, c))))
                    }),
                    Ty::Bf16 => op3::<u16, u16, u16, u16, _>(|a, b, c| f32_to_bf(odd32(bf_fma(a, b, c)))),
                    _ => op3::<u32, u32, u32, u32, _>(|a, b, c| {
                        both3(a, b, c, |a, b, c| f32_to_bf(odd32(bf_fma(a, b, c))))
                    }),
                };
                return self.emit3(i, f, class, [ty; 3]);
            }
            "min" if w.has("NaN") => choose!(ty, |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { fmin(a, b) }),
            "max" if w.has("NaN") => choose!(ty, |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { fmax(a, b) }),
            "min" => choose!(ty, |a, b| fmin(a, b)),
            "max" => choose!(ty, |a, b| fmax(a, b)),
            "neg" | "abs" => {
                let packed = ty.bytes() == 4;
                let f = match (w.root, packed) {
                    ("neg", false) if x != 0 => op1::<u16, u16, _>(|a| flush(a ^ 0x8000)),
                    ("neg", true) if x != 0 => op1::<u32, u32, _>(|a| both(a ^ 0x8000_8000, flush)),
                    (_, false) if x != 0 => op1::<u16, u16, _>(|a| flush(a & 0x7fff)),
                    (_, true) if x != 0 => op1::<u32, u32, _>(|a| both(a & 0x7fff_7fff, flush)),
                    ("neg", false) => op1::<u16, u16, _>(|a| a ^ 0x8000),
                    ("neg", true) => op1::<u32, u32, _>(|a| a ^ 0x8000_8000),
                    (_, false) => op1::<u16, u16, _>(|a| a & 0x7fff),
                    (_, true) => op1::<u32, u32, _>(|a| a & 0x7fff_7fff),
                };
                return self.emit1(i, f, class, ty);
            }
            "ex2" => return self.emit1(i, unary!(ty, |a| exp2(a)), Class::SpecialFunction, ty),
            "tanh" => return self.emit1(i, unary!(ty, |a| tanh(a)), Class::SpecialFunction, ty),
            other => return self.error(format!("unknown opcode `{other}`")),
        };
        self.emit2(i, f, class, [ty; 2])
    }

    /// min and max with `.ftz` or `.xorsign.abs`.
    fn half_choice(&mut self, i: &Inst, w: &Words, ty: Ty, x: u32) -> Result<()> {
        let f = if ty.bytes() == 4 {
            op3x::<u32, u32, u32, u32, _>(|a, b, _, x| both2(a, b, |a, b| choice(a, b, x)))
        } else {
            op3x::<u16, u16, u16, u16, _>(|a, b, _, x| choice(a, b, x))
        };
        let flag = |on: bool, n: u32| u32::from(on) << n;
        let x = x & 1
            | flag(w.root == "max", 1)
            | flag(w.has("NaN"), 2)
            | flag(w.has("xorsign"), 3)
            | flag(matches!(ty, Ty::Bf16 | Ty::Bf16x2), 4);
        let [d, a, b] = self.operands::<3>(i)?;
        let (d, a, b) = (self.dest(d)?, self.src(a, ty)?, self.src(b, ty)?);
        self.emit(f, Class::Half, d, [a, b, b]).x = x;
        Ok(())
    }

    fn half_modified(&mut self, i: &Inst, w: &Words, ty: Ty, x: u32) -> Result<()> {
        let operation = match w.root {
            "add" => 0,
            "sub" => 1,
            "mul" => 2,
            _ => 3,
        };
        let f = match ty {
            Ty::F16 => op3x::<u16, u16, u16, u16, _>(|a, b, c, x| modified(a, b, c, x, false)),
            Ty::Bf16 => op3x::<u16, u16, u16, u16, _>(|a, b, c, x| modified(a, b, c, x, true)),
            Ty::F16x2 => {
                op3x::<u32, u32, u32, u32, _>(|a, b, c, x| both3(a, b, c, |a, b, c| modified(a, b, c, x, false)))
            }
            _ => op3x::<u32, u32, u32, u32, _>(|a, b, c, x| both3(a, b, c, |a, b, c| modified(a, b, c, x, true))),
        };
        let (d, s) = if operation == 3 {
            let [d, a, b, c] = self.operands::<4>(i)?;
            (self.dest(d)?, [self.src(a, ty)?, self.src(b, ty)?, self.src(c, ty)?])
        } else {
            let [d, a, b] = self.operands::<3>(i)?;
            (self.dest(d)?, [self.src(a, ty)?, self.src(b, ty)?, self.src(b, ty)?])
        };
        self.emit(f, Class::Half, d, s).x = x | operation << 4;
        Ok(())
    }
}
