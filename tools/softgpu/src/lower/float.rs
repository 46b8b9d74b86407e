//! f32 and f64 instructions.
//! In: `ptx::Inst`. Out: `Virtual`s with closures over lanes. Owns: which rounding, flushing and saturation an opcode asks for.
//! Not here: the scalar definitions (`exec::float`), half formats (`half`), comparisons (`compare`).
//! Source: PTX ISA, "Floating-Point Instructions". The approximate instructions are computed to well within their documented
//! error: rcp, sqrt, rsqrt, div through correctly rounded operations, ex2 by a polynomial, lg2, sin, cos, tanh through f64.

use super::ops::Words;
use super::{Lower, Val};
use crate::exec::exact::{add64, div64, fma64, mul64, sqrt64};
use crate::exec::float::{
    Round, add_odd, canon, div_odd, exp2, fma_odd, fmax, fmin, ftz, log2, narrow32, rsqrt, saturate, sqrt_odd, tanh,
};
use crate::exec::lanes::{op_cmp, op1, op2, op3, op3x};
use crate::ir::{Class, OpFn};
use crate::ptx::{Inst, Result, Ty};

/// A unary f32 closure with and without flushing.
macro_rules! un32 {
    ($ftz:expr, |$a:ident| $e:expr) => {
        if $ftz {
            op1::<f32, f32, _>(|$a| {
                let $a = ftz($a);
                ftz($e)
            })
        } else {
            op1::<f32, f32, _>(|$a| $e)
        }
    };
}

/// A binary f32 closure, plain, flushing, saturating, both.
macro_rules! bin32 {
    ($ftz:expr, $sat:expr, |$a:ident, $b:ident| $e:expr) => {
        match ($ftz, $sat) {
            (false, false) => op2::<f32, f32, f32, _>(|$a, $b| canon($e)),
            (true, false) => op2::<f32, f32, f32, _>(|$a, $b| {
                let ($a, $b) = (ftz($a), ftz($b));
                canon(ftz($e))
            }),
            (false, true) => op2::<f32, f32, f32, _>(|$a, $b| saturate($e)),
            (true, true) => op2::<f32, f32, f32, _>(|$a, $b| {
                let ($a, $b) = (ftz($a), ftz($b));
                saturate(ftz($e))
            }),
        }
    };
}

macro_rules! ter32 {
    ($ftz:expr, $sat:expr, |$a:ident, $b:ident, $c:ident| $e:expr) => {
        match ($ftz, $sat) {
            (false, false) => op3::<f32, f32, f32, f32, _>(|$a, $b, $c| canon($e)),
            (true, false) => op3::<f32, f32, f32, f32, _>(|$a, $b, $c| {
                let ($a, $b, $c) = (ftz($a), ftz($b), ftz($c));
                canon(ftz($e))
            }),
            (false, true) => op3::<f32, f32, f32, f32, _>(|$a, $b, $c| saturate($e)),
            (true, true) => op3::<f32, f32, f32, f32, _>(|$a, $b, $c| {
                let ($a, $b, $c) = (ftz($a), ftz($b), ftz($c));
                saturate(ftz($e))
            }),
        }
    };
}

/// Directed f32 arithmetic: `x` = mode (0 zero, 1 down, 2 up) | ftz << 2 | sat << 3.
fn mode_of(x: u32) -> Round {
    match x & 3 {
        0 => Round::Zero,
        1 => Round::Down,
        _ => Round::Up,
    }
}

fn finish(v: f64, x: u32) -> f32 {
    let r = narrow32(v, mode_of(x));
    let r = if x & 4 != 0 { ftz(r) } else { r };
    if x & 8 != 0 { saturate(r) } else { r }
}

fn flush_if(a: f32, x: u32) -> f64 {
    f64::from(if x & 4 != 0 { ftz(a) } else { a })
}

/// The sign of a zero sum in a directed mode: exact zero from unlike signs is +0, in mode down -0.
fn zero_sum(v: f64, a: f64, b: f64, x: u32) -> f64 {
    if v == 0.0 && a.is_sign_negative() != b.is_sign_negative() {
        if mode_of(x) == Round::Down { -0.0 } else { 0.0 }
    } else {
        v
    }
}

impl Lower<'_> {
    /// Lowers an f32 or f64 instruction.
    pub(super) fn float(&mut self, i: &Inst, w: &Words) -> Result<()> {
        let Some(ty) = w.types().last().copied() else { return self.error("no type") };
        if w.root == "testp" {
            return self.test_property(i, w, ty);
        }
        if ty == Ty::F64 {
            return self.double(i, w);
        }
        if ty != Ty::F32 {
            return self.error(format!("type {ty:?} is not supported here"));
        }
        let (z, sat) = (w.has("ftz"), w.has("sat"));
        let directed = ["rz", "rm", "rp"].iter().position(|m| w.has(m));
        if let Some(mode) = directed {
            return self.directed32(i, w, mode as u32 | u32::from(z) << 2 | u32::from(sat) << 3);
        }
        let class = Class::Float32;
        let mufu = Class::SpecialFunction;
        match w.root {
            "add" => self.emit2(i, bin32!(z, sat, |a, b| a + b), class, [ty; 2]),
            "sub" => self.emit2(i, bin32!(z, sat, |a, b| a - b), class, [ty; 2]),
            "mul" => self.emit2(i, bin32!(z, sat, |a, b| a * b), class, [ty; 2]),
            "fma" | "mad" => self.emit3(i, ter32!(z, sat, |a, b, c| a.mul_add(b, c)), class, [ty; 3]),
            "div" => self.emit2(i, bin32!(z, false, |a, b| a / b), class, [ty; 2]),
            "min" | "max" => {
                let f = self.min_max(w, z);
                self.emit2(i, f, class, [ty; 2])
            }
            "abs" => self.emit1(i, un32!(z, |a| f32::from_bits(a.to_bits() & 0x7fff_ffff)), class, ty),
            "neg" => self.emit1(i, un32!(z, |a| f32::from_bits(a.to_bits() ^ 0x8000_0000)), class, ty),
            "copysign" => {
                // copysign d, a, b: the sign of a on the magnitude of b.
                let f = op2::<u32, u32, u32, _>(|a, b| (a & 0x8000_0000) | (b & 0x7fff_ffff));
                self.emit2(i, f, class, [ty; 2])
            }
            "rcp" => self.emit1(i, un32!(z, |a| canon(1.0 / a)), mufu, ty),
            "sqrt" => self.emit1(i, un32!(z, |a| canon(a.sqrt())), mufu, ty),
            "rsqrt" => self.emit1(i, un32!(z, |a| rsqrt(a)), mufu, ty),
            "sin" => self.emit1(i, un32!(z, |a| canon(f64::from(a).sin() as f32)), mufu, ty),
            "cos" => self.emit1(i, un32!(z, |a| canon(f64::from(a).cos() as f32)), mufu, ty),
            "lg2" => self.emit1(i, un32!(z, |a| log2(a)), mufu, ty),
            "ex2" => self.emit1(i, un32!(z, |a| exp2(a)), mufu, ty),
            "tanh" => self.emit1(i, un32!(z, |a| tanh(a)), mufu, ty),
            other => self.error(format!("unknown opcode `{other}`")),
        }
    }

    fn min_max(&self, w: &Words, z: bool) -> OpFn {
        let nan = w.has("NaN");
        if w.has("xorsign") {
            // min.xorsign.abs: the smaller magnitude with the exclusive or of the signs.
            macro_rules! magnitude {
                ($nan:literal, $pick:ident) => {
                    bin32!(z, false, |a, b| {
                        let s = (a.to_bits() ^ b.to_bits()) & 0x8000_0000;
                        let r = $pick(a.abs(), b.abs());
                        let r = if $nan && (a.is_nan() || b.is_nan()) { f32::NAN } else { r };
                        f32::from_bits(r.to_bits() | s)
                    })
                };
            }
            return match (w.root == "min", nan) {
                (true, false) => magnitude!(false, fmin),
                (true, true) => magnitude!(true, fmin),
                (false, false) => magnitude!(false, fmax),
                (false, true) => magnitude!(true, fmax),
            };
        }
        match (w.root == "min", nan) {
            (true, false) => bin32!(z, false, |a, b| fmin(a, b)),
            (false, false) => bin32!(z, false, |a, b| fmax(a, b)),
            (true, true) => bin32!(z, false, |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { fmin(a, b) }),
            (false, true) => bin32!(z, false, |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { fmax(a, b) }),
        }
    }

    fn directed32(&mut self, i: &Inst, w: &Words, x: u32) -> Result<()> {
        let ty = Ty::F32;
        let f = match w.root {
            "add" | "sub" => op3x::<f32, f32, u32, f32, _>(|a, b, _, x| {
                let (p, q) = (flush_if(a, x), flush_if(b, x));
                finish(zero_sum(add_odd(p, q), p, q, x), x)
            }),
            "mul" => op3x::<f32, f32, u32, f32, _>(|a, b, _, x| finish(flush_if(a, x) * flush_if(b, x), x)),
            "div" => op3x::<f32, f32, u32, f32, _>(|a, b, _, x| finish(div_odd(flush_if(a, x), flush_if(b, x)), x)),
            "rcp" => op3x::<f32, f32, u32, f32, _>(|a, _, _, x| finish(div_odd(1.0, flush_if(a, x)), x)),
            "sqrt" => op3x::<f32, f32, u32, f32, _>(|a, _, _, x| finish(sqrt_odd(flush_if(a, x)), x)),
            "fma" | "mad" => {
                let f = op3x::<f32, f32, f32, f32, _>(|a, b, c, x| {
                    let (p, q, r) = (flush_if(a, x), flush_if(b, x), flush_if(c, x));
                    finish(zero_sum(fma_odd(p, q, r), p * q, r, x), x)
                });
                let [d, a, b, c] = self.operands::<4>(i)?;
                let (d, s) = (self.dest(d)?, [self.src(a, ty)?, self.src(b, ty)?, self.src(c, ty)?]);
                self.emit(f, Class::Float32, d, s).x = x;
                return Ok(());
            }
            other => return self.error(format!("`{other}` has no directed rounding")),
        };
        if matches!(w.root, "rcp" | "sqrt") {
            let [d, a] = self.operands::<2>(i)?;
            let (d, a) = (self.dest(d)?, self.src(a, ty)?);
            self.emit(f, Class::SpecialFunction, d, [a, a, Val::C32(0)]).x = x;
            return Ok(());
        }
        let [d, a, b] = self.operands::<3>(i)?;
        let (d, a, mut b) = (self.dest(d)?, self.src(a, ty)?, self.src(b, ty)?);
        if w.root == "sub" {
            // a - b is a + (-b), in every mode.
            let r = self.types.len() as u32;
            self.types.push(ty);
            let guard = self.guard.take();
            self.emit(op1::<u32, u32, _>(|b| b ^ 0x8000_0000), Class::Float32, Val::Reg(r), [b, Val::None, Val::None]);
            self.guard = guard;
            b = Val::Reg(r);
        }
        self.emit(f, Class::Float32, d, [a, b, Val::C32(0)]).x = x;
        Ok(())
    }

    fn double(&mut self, i: &Inst, w: &Words) -> Result<()> {
        let (ty, class) = (Ty::F64, Class::Float64);
        if let Some(mode) = ["rz", "rm", "rp"].iter().position(|m| w.has(m)) {
            return self.directed64(i, w, mode as u32);
        }
        match w.root {
            "add" => self.emit2(i, op2::<f64, f64, f64, _>(|a, b| a + b), class, [ty; 2]),
            "sub" => self.emit2(i, op2::<f64, f64, f64, _>(|a, b| a - b), class, [ty; 2]),
            "mul" => self.emit2(i, op2::<f64, f64, f64, _>(|a, b| a * b), class, [ty; 2]),
            "div" => self.emit2(i, op2::<f64, f64, f64, _>(|a, b| a / b), class, [ty; 2]),
            "fma" | "mad" => self.emit3(i, op3::<f64, f64, f64, f64, _>(|a, b, c| a.mul_add(b, c)), class, [ty; 3]),
            "min" => {
                let f = op2::<f64, f64, f64, _>(|a, b| {
                    if a.is_nan() {
                        b
                    } else if b.is_nan() || a < b || (a == b && a.is_sign_negative()) {
                        a
                    } else {
                        b
                    }
                });
                self.emit2(i, f, class, [ty; 2])
            }
            "max" => {
                let f = op2::<f64, f64, f64, _>(|a, b| {
                    if a.is_nan() {
                        b
                    } else if b.is_nan() || a > b || (a == b && a.is_sign_positive()) {
                        a
                    } else {
                        b
                    }
                });
                self.emit2(i, f, class, [ty; 2])
            }
            "abs" => self.emit1(i, op1::<u64, u64, _>(|a| a & !(1 << 63)), class, ty),
            "neg" => self.emit1(i, op1::<u64, u64, _>(|a| a ^ 1 << 63), class, ty),
            "copysign" => {
                let f = op2::<u64, u64, u64, _>(|a, b| (a & 1 << 63) | (b & !(1 << 63)));
                self.emit2(i, f, class, [ty; 2])
            }
            "rcp" if w.has("approx") => {
                // rcp.approx.ftz.f64 works on the upper word: 20 mantissa bits, the rest zero.
                let f = op1::<f64, f64, _>(|a| {
                    let a = if a.is_subnormal() { 0.0f64.copysign(a) } else { a };
                    f64::from_bits((1.0 / a).to_bits() & 0xffff_ffff_0000_0000)
                });
                self.emit1(i, f, class, ty)
            }
            "rcp" => self.emit1(i, op1::<f64, f64, _>(|a| 1.0 / a), class, ty),
            "sqrt" => self.emit1(i, op1::<f64, f64, _>(|a| a.sqrt()), class, ty),
            "rsqrt" if w.has("ftz") => {
                let f = op1::<f64, f64, _>(|a| {
                    let a = if a.is_subnormal() { 0.0f64.copysign(a) } else { a };
                    f64::from_bits((1.0 / a.sqrt()).to_bits() & 0xffff_ffff_0000_0000)
                });
                self.emit1(i, f, class, ty)
            }
            "rsqrt" => self.emit1(i, op1::<f64, f64, _>(|a| 1.0 / a.sqrt()), class, ty),
            other => self.error(format!("unknown opcode `{other}`")),
        }
    }

    fn directed64(&mut self, i: &Inst, w: &Words, x: u32) -> Result<()> {
        let (ty, class) = (Ty::F64, Class::Float64);
        let f = match w.root {
            "add" => op3x::<f64, f64, u64, f64, _>(|a, b, _, x| add64(a, b, mode_of(x))),
            "sub" => op3x::<f64, f64, u64, f64, _>(|a, b, _, x| add64(a, -b, mode_of(x))),
            "mul" => op3x::<f64, f64, u64, f64, _>(|a, b, _, x| mul64(a, b, mode_of(x))),
            "div" => op3x::<f64, f64, u64, f64, _>(|a, b, _, x| div64(a, b, mode_of(x))),
            "sqrt" | "rcp" => {
                let f = if w.root == "sqrt" {
                    op3x::<f64, u64, u64, f64, _>(|a, _, _, x| sqrt64(a, mode_of(x)))
                } else {
                    op3x::<f64, u64, u64, f64, _>(|a, _, _, x| div64(1.0, a, mode_of(x)))
                };
                let [d, a] = self.operands::<2>(i)?;
                let (d, a) = (self.dest(d)?, self.src(a, ty)?);
                self.emit(f, class, d, [a, Val::C64(0), Val::C64(0)]).x = x;
                return Ok(());
            }
            "fma" | "mad" => {
                let f = op3x::<f64, f64, f64, f64, _>(|a, b, c, x| fma64(a, b, c, mode_of(x)));
                let [d, a, b, c] = self.operands::<4>(i)?;
                let (d, s) = (self.dest(d)?, [self.src(a, ty)?, self.src(b, ty)?, self.src(c, ty)?]);
                self.emit(f, class, d, s).x = x;
                return Ok(());
            }
            other => return self.error(format!("`{other}.f64` has no directed rounding here")),
        };
        let [d, a, b] = self.operands::<3>(i)?;
        let (d, a, b) = (self.dest(d)?, self.src(a, ty)?, self.src(b, ty)?);
        self.emit(f, class, d, [a, b, Val::C64(0)]).x = x;
        Ok(())
    }

    fn test_property(&mut self, i: &Inst, w: &Words, ty: Ty) -> Result<()> {
        let [d, a] = self.operands::<2>(i)?;
        let (d, a) = (self.dest(d)?, self.src(a, ty)?);
        macro_rules! property {
            ($t:ty) => {
                match w.mods.first().copied().unwrap_or("") {
                    "finite" => op_cmp::<$t, $t, _>(|a, _| a.is_finite()),
                    "infinite" => op_cmp::<$t, $t, _>(|a, _| a.is_infinite()),
                    "number" => op_cmp::<$t, $t, _>(|a, _| !a.is_nan()),
                    "notanumber" => op_cmp::<$t, $t, _>(|a, _| a.is_nan()),
                    "normal" => op_cmp::<$t, $t, _>(|a, _| a.is_normal()),
                    "subnormal" => op_cmp::<$t, $t, _>(|a, _| a.is_subnormal()),
                    other => return self.error(format!("unknown property `{other}`")),
                }
            };
        }
        let f = if ty == Ty::F64 { property!(f64) } else { property!(f32) };
        self.emit(f, Class::Float32, d, [a, a, Val::None]);
        Ok(())
    }
}
