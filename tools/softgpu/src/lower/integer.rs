//! Integer and logic instructions.
//! In: `ptx::Inst`. Out: `Virtual`s with closures over lanes. Owns: their definitions.
//! Not here: comparisons (`compare`), conversions (`convert`), multi-word carries (`exec::carry`).
//! Source: PTX ISA, "Integer Arithmetic Instructions", "Logic and Shift Instructions".

use super::bits::{bfe_s, bfe_u, bfi, lop3, prmt};
use super::ops::Words;
use super::{Lower, Role, Val};
use crate::exec::carry;
use crate::exec::lanes::{op1, op2, op3, op3x};
use crate::exec::warp::Warp;
use crate::ir::{Class, Instr};
use crate::ptx::{Inst, Operand, Result, Ty};

macro_rules! by_type {
    ($self:ident, $ty:expr, $t:ident, $e:expr) => {
        match $ty {
            Ty::U16 | Ty::B16 => {
                type $t = u16;
                $e
            }
            Ty::S16 => {
                type $t = i16;
                $e
            }
            Ty::U32 | Ty::B32 => {
                type $t = u32;
                $e
            }
            Ty::S32 => {
                type $t = i32;
                $e
            }
            Ty::U64 | Ty::B64 => {
                type $t = u64;
                $e
            }
            Ty::S64 => {
                type $t = i64;
                $e
            }
            t => return $self.error(format!("type {t:?} is not supported here")),
        }
    };
}

impl Lower<'_> {
    /// Lowers an integer or logic instruction.
    pub(super) fn integer(&mut self, i: &Inst, w: &Words) -> Result<()> {
        let class = Class::Integer;
        let types = w.types();
        let Some(ty) = types.last().copied() else { return self.error("no type") };
        let cc = w.has("cc");
        match w.root {
            "addc" | "subc" | "madc" => return self.carry(i, w, ty),
            "add" | "sub" | "mad" if cc => return self.carry(i, w, ty),
            "and" | "or" | "xor" | "not" if ty == Ty::Pred => return self.logic_pred(i, w),
            _ => {}
        }
        let f = match w.root {
            "add" if w.has("sat") => op2::<i32, i32, i32, _>(|a, b| a.saturating_add(b)),
            "sub" if w.has("sat") => op2::<i32, i32, i32, _>(|a, b| a.saturating_sub(b)),
            "add" => by_type!(self, ty, T, op2::<T, T, T, _>(|a, b| a.wrapping_add(b))),
            "sub" => by_type!(self, ty, T, op2::<T, T, T, _>(|a, b| a.wrapping_sub(b))),
            "min" if w.has("relu") => op2::<i32, i32, i32, _>(|a, b| a.min(b).max(0)),
            "max" if w.has("relu") => op2::<i32, i32, i32, _>(|a, b| a.max(b).max(0)),
            "min" => by_type!(self, ty, T, op2::<T, T, T, _>(|a, b| a.min(b))),
            "max" => by_type!(self, ty, T, op2::<T, T, T, _>(|a, b| a.max(b))),
            // Division by zero has no defined result on a GPU; all ones is what hardware gives for unsigned types.
            "div" => by_type!(self, ty, T, op2::<T, T, T, _>(|a, b| if b == 0 { !0 } else { a.wrapping_div(b) })),
            "rem" => by_type!(self, ty, T, op2::<T, T, T, _>(|a, b| if b == 0 { a } else { a.wrapping_rem(b) })),
            "and" => by_type!(self, ty, T, op2::<T, T, T, _>(|a, b| a & b)),
            "or" => by_type!(self, ty, T, op2::<T, T, T, _>(|a, b| a | b)),
            "xor" => by_type!(self, ty, T, op2::<T, T, T, _>(|a, b| a ^ b)),
            "sad" => {
                let f = by_type!(
                    self,
                    ty,
                    T,
                    op3::<T, T, T, T, _>(|a, b, c| c.wrapping_add(if a < b {
                        b.wrapping_sub(a)
                    } else {
                        a.wrapping_sub(b)
                    }))
                );
                return self.emit3(i, f, class, [ty; 3]);
            }
            "not" => {
                let f = by_type!(self, ty, T, op1::<T, T, _>(|a| !a));
                return self.emit1(i, f, class, ty);
            }
            "cnot" => {
                let f = by_type!(self, ty, T, op1::<T, T, _>(|a| if a == 0 { 1 } else { 0 }));
                return self.emit1(i, f, class, ty);
            }
            "neg" => {
                let f = by_type!(self, ty, T, op1::<T, T, _>(|a| (0 as T).wrapping_sub(a)));
                return self.emit1(i, f, class, ty);
            }
            "abs" => {
                let f = match ty {
                    Ty::S16 => op1::<i16, i16, _>(|a| a.wrapping_abs()),
                    Ty::S32 => op1::<i32, i32, _>(|a| a.wrapping_abs()),
                    Ty::S64 => op1::<i64, i64, _>(|a| a.wrapping_abs()),
                    t => return self.error(format!("abs of {t:?}")),
                };
                return self.emit1(i, f, class, ty);
            }
            "shl" => {
                let f = match ty.bytes() {
                    2 => op2::<u16, u32, u16, _>(|a, b| if b > 15 { 0 } else { a << b }),
                    4 => op2::<u32, u32, u32, _>(|a, b| if b > 31 { 0 } else { a << (b & 31) }),
                    _ => op2::<u64, u32, u64, _>(|a, b| if b > 63 { 0 } else { a << (b & 63) }),
                };
                return self.emit2(i, f, class, [ty, Ty::U32]);
            }
            "shr" => {
                let f = match ty {
                    Ty::S16 => op2::<i16, u32, i16, _>(|a, b| a >> b.min(15)),
                    Ty::S32 => op2::<i32, u32, i32, _>(|a, b| a >> b.min(31)),
                    Ty::S64 => op2::<i64, u32, i64, _>(|a, b| a >> b.min(63)),
                    _ if ty.bytes() == 2 => op2::<u16, u32, u16, _>(|a, b| if b > 15 { 0 } else { a >> b }),
                    _ if ty.bytes() == 4 => op2::<u32, u32, u32, _>(|a, b| if b > 31 { 0 } else { a >> (b & 31) }),
                    _ => op2::<u64, u32, u64, _>(|a, b| if b > 63 { 0 } else { a >> (b & 63) }),
                };
                return self.emit2(i, f, class, [ty, Ty::U32]);
            }
            "mul" | "mad" | "mul24" | "mad24" => return self.multiply(i, w, ty),
            "shf" => {
                let f = match (w.has("l"), w.has("wrap")) {
                    (true, true) => op3::<u32, u32, u32, u32, _>(|a, b, c| {
                        ((u64::from(a) | u64::from(b) << 32) << (c & 31) >> 32) as u32
                    }),
                    (true, false) => op3::<u32, u32, u32, u32, _>(|a, b, c| {
                        ((u128::from(a) | u128::from(b) << 32) << c.min(32) >> 32) as u32
                    }),
                    (false, true) => {
                        op3::<u32, u32, u32, u32, _>(|a, b, c| ((u64::from(a) | u64::from(b) << 32) >> (c & 31)) as u32)
                    }
                    (false, false) => op3::<u32, u32, u32, u32, _>(|a, b, c| {
                        ((u64::from(a) | u64::from(b) << 32) >> c.min(32)) as u32
                    }),
                };
                return self.emit3(i, f, class, [Ty::B32, Ty::B32, Ty::U32]);
            }
            "lop3" => {
                let [d, a, b, c, t] = match self.operands::<5>(i) {
                    Ok(o) => o,
                    Err(_) => {
                        return self.error("expected lop3.b32 d, a, b, c, immLut (the .BoolOp form is not supported)");
                    }
                };
                let Operand::Int(t) = t else { return self.error("immLut must be a literal") };
                let (d, s) = (self.dest(d)?, [self.src(a, ty)?, self.src(b, ty)?, self.src(c, ty)?]);
                let (f, x) = common_lop3(*t as u32 & 0xff);
                self.emit(f, class, d, s).x = x;
                return Ok(());
            }
            "prmt" => {
                let mode = ["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"]
                    .iter()
                    .position(|m| w.has(m))
                    .map_or(0, |p| p as u32 + 1);
                let [d, a, b, c] = self.operands::<4>(i)?;
                let (d, s) = (self.dest(d)?, [self.src(a, ty)?, self.src(b, ty)?, self.src(c, Ty::U32)?]);
                self.emit(op3x::<u32, u32, u32, u32, _>(prmt), class, d, s).x = mode;
                return Ok(());
            }
            "popc" => {
                let f = if ty.bytes() == 8 {
                    op1::<u64, u32, _>(|a| a.count_ones())
                } else {
                    op1::<u32, u32, _>(|a| a.count_ones())
                };
                return self.emit1(i, f, class, ty);
            }
            "clz" => {
                let f = if ty.bytes() == 8 {
                    op1::<u64, u32, _>(|a| a.leading_zeros())
                } else {
                    op1::<u32, u32, _>(|a| a.leading_zeros())
                };
                return self.emit1(i, f, class, ty);
            }
            "brev" => {
                let f = if ty.bytes() == 8 {
                    op1::<u64, u64, _>(|a| a.reverse_bits())
                } else {
                    op1::<u32, u32, _>(|a| a.reverse_bits())
                };
                return self.emit1(i, f, class, ty);
            }
            "bfind" => {
                // The highest set bit, or for negative values the highest clear one; all ones when there is none.
                let f = match (ty, w.has("shiftamt")) {
                    (Ty::U32, false) => op1::<u32, u32, _>(|a| if a == 0 { !0 } else { 31 - a.leading_zeros() }),
                    (Ty::U32, true) => op1::<u32, u32, _>(|a| if a == 0 { !0 } else { a.leading_zeros() }),
                    (Ty::S32, shift) => {
                        if shift {
                            op1::<i32, u32, _>(|a| {
                                let v = if a < 0 { !a } else { a };
                                if v == 0 { !0 } else { v.leading_zeros() }
                            })
                        } else {
                            op1::<i32, u32, _>(|a| {
                                let v = if a < 0 { !a } else { a };
                                if v == 0 { !0 } else { 31 - v.leading_zeros() }
                            })
                        }
                    }
                    (Ty::S64, shift) => {
                        if shift {
                            op1::<i64, u32, _>(|a| {
                                let v = if a < 0 { !a } else { a };
                                if v == 0 { !0 } else { v.leading_zeros() }
                            })
                        } else {
                            op1::<i64, u32, _>(|a| {
                                let v = if a < 0 { !a } else { a };
                                if v == 0 { !0 } else { 63 - v.leading_zeros() }
                            })
                        }
                    }
                    (_, true) => op1::<u64, u32, _>(|a| if a == 0 { !0 } else { a.leading_zeros() }),
                    (_, false) => op1::<u64, u32, _>(|a| if a == 0 { !0 } else { 63 - a.leading_zeros() }),
                };
                return self.emit1(i, f, class, ty);
            }
            "bfe" => {
                let f = match ty {
                    Ty::U32 => op3::<u32, u32, u32, u32, _>(|a, b, c| bfe_u(u64::from(a), b, c, 32) as u32),
                    Ty::S32 => op3::<i32, u32, u32, i32, _>(|a, b, c| bfe_s(i64::from(a), b, c, 32) as i32),
                    Ty::S64 => op3::<i64, u32, u32, i64, _>(|a, b, c| bfe_s(a, b, c, 64)),
                    _ => op3::<u64, u32, u32, u64, _>(|a, b, c| bfe_u(a, b, c, 64)),
                };
                return self.emit3(i, f, class, [ty, Ty::U32, Ty::U32]);
            }
            "bfi" => {
                let [d, a, b, c, n] = self.operands::<5>(i)?;
                let s = [self.src(a, ty)?, self.src(b, ty)?, self.src(c, Ty::U32)?];
                let (d, n) = (self.dest(d)?, self.src(n, Ty::U32)?);
                let v = self.emit(insert_field, class, d, s);
                (v.x, v.xs) = (u32::from(ty.bytes() == 8), vec![(Role::Use, n)]);
                return Ok(());
            }
            "bmsk" => {
                let f = if w.has("wrap") {
                    op2::<u32, u32, u32, _>(|a, b| {
                        let ones = (1u64 << (b & 31)) - 1;
                        (ones << (a & 31)) as u32
                    })
                } else {
                    op2::<u32, u32, u32, _>(|a, b| {
                        let ones = if b > 31 { u64::from(u32::MAX) } else { (1u64 << b) - 1 };
                        if a > 31 { 0 } else { (ones << a) as u32 }
                    })
                };
                return self.emit2(i, f, class, [Ty::U32; 2]);
            }
            "szext" => {
                let f = match (ty, w.has("wrap")) {
                    (Ty::S32, true) => op2::<u32, u32, u32, _>(|a, b| {
                        let n = b & 31;
                        if n == 0 { 0 } else { ((a << (32 - n)) as i32 >> (32 - n)) as u32 }
                    }),
                    (Ty::S32, false) => op2::<u32, u32, u32, _>(|a, b| {
                        let n = b.min(32);
                        if n == 0 { 0 } else { ((a << (32 - n)) as i32 >> (32 - n)) as u32 }
                    }),
                    (_, true) => op2::<u32, u32, u32, _>(|a, b| a & ((1u64 << (b & 31)) - 1) as u32),
                    (_, false) => op2::<u32, u32, u32, _>(|a, b| a & ((1u64 << b.min(32)) - 1) as u32),
                };
                return self.emit2(i, f, class, [ty, Ty::U32]);
            }
            "fns" => {
                let f = op3::<u32, u32, i32, u32, _>(|mask, base, offset| {
                    if offset == 0 {
                        return if base < 32 && mask >> base & 1 != 0 { base } else { !0 };
                    }
                    let (mut at, mut left) = (i64::from(base), offset.unsigned_abs());
                    let step = if offset > 0 { 1 } else { -1 };
                    while (0..32).contains(&at) {
                        if mask >> at & 1 != 0 {
                            left -= 1;
                            if left == 0 {
                                return at as u32;
                            }
                        }
                        at += step;
                    }
                    !0
                });
                return self.emit3(i, f, class, [Ty::B32, Ty::B32, Ty::S32]);
            }
            "dp4a" | "dp2a" => {
                let (sa, sb) = (types[0] == Ty::S32, types[types.len() - 1] == Ty::S32);
                let x = u32::from(sa) | u32::from(sb) << 1 | u32::from(w.has("hi")) << 2;
                let f = if w.root == "dp4a" {
                    op3x::<u32, u32, u32, u32, _>(|a, b, c, x| {
                        let mut r = c as i32;
                        for n in 0..4 {
                            let (p, q) = ((a >> (8 * n)) as u8, (b >> (8 * n)) as u8);
                            let p = if x & 1 != 0 { i32::from(p as i8) } else { i32::from(p) };
                            let q = if x & 2 != 0 { i32::from(q as i8) } else { i32::from(q) };
                            r = r.wrapping_add(p * q);
                        }
                        r as u32
                    })
                } else {
                    op3x::<u32, u32, u32, u32, _>(|a, b, c, x| {
                        let mut r = c as i32;
                        for n in 0..2 {
                            let p = (a >> (16 * n)) as u16;
                            let q = (b >> (8 * n + if x & 4 != 0 { 16 } else { 0 })) as u8;
                            let p = if x & 1 != 0 { i32::from(p as i16) } else { i32::from(p) };
                            let q = if x & 2 != 0 { i32::from(q as i8) } else { i32::from(q) };
                            r = r.wrapping_add(p * q);
                        }
                        r as u32
                    })
                };
                let [d, a, b, c] = self.operands::<4>(i)?;
                let (d, s) = (self.dest(d)?, [self.src(a, Ty::B32)?, self.src(b, Ty::B32)?, self.src(c, Ty::B32)?]);
                self.emit(f, class, d, s).x = x;
                return Ok(());
            }
            other => return self.error(format!("unknown opcode `{other}`")),
        };
        self.emit2(i, f, class, [ty; 2])
    }

    /// add, min and max of two 16-bit integers in one register.
    pub(super) fn integer_pair(&mut self, i: &Inst, w: &Words) -> Result<()> {
        macro_rules! pair {
            ($t:ty, |$a:ident, $b:ident| $e:expr) => {
                op2::<u32, u32, u32, _>(|x, y| {
                    let half = |$a: $t, $b: $t| u32::from($e as u16);
                    half(x as $t, y as $t) | half((x >> 16) as $t, (y >> 16) as $t) << 16
                })
            };
        }
        let f = match (w.root, w.has("s16x2"), w.has("relu")) {
            ("add", ..) => pair!(u16, |a, b| a.wrapping_add(b)),
            ("min", false, _) => pair!(u16, |a, b| a.min(b)),
            ("max", false, _) => pair!(u16, |a, b| a.max(b)),
            ("min", true, false) => pair!(i16, |a, b| a.min(b)),
            ("max", true, false) => pair!(i16, |a, b| a.max(b)),
            ("min", ..) => pair!(i16, |a, b| a.min(b).max(0)),
            _ => pair!(i16, |a, b| a.max(b).max(0)),
        };
        self.emit2(i, f, Class::Integer, [Ty::B32; 2])
    }

    fn multiply(&mut self, i: &Inst, w: &Words, ty: Ty) -> Result<()> {
        let class = Class::Integer;
        let mad = w.root.starts_with("mad");
        if w.root.ends_with("24") {
            // 24-bit operands; .hi is the upper 32 of the 48 bits of the product.
            let f = match (ty == Ty::S32, w.has("hi")) {
                (true, false) => {
                    op3::<i32, i32, i32, i32, _>(|a, b, c| (a << 8 >> 8).wrapping_mul(b << 8 >> 8).wrapping_add(c))
                }
                (true, true) if w.has("sat") => op3::<i32, i32, i32, i32, _>(|a, b, c| {
                    ((i64::from(a << 8 >> 8) * i64::from(b << 8 >> 8) >> 16) as i32).saturating_add(c)
                }),
                (true, true) => op3::<i32, i32, i32, i32, _>(|a, b, c| {
                    ((i64::from(a << 8 >> 8) * i64::from(b << 8 >> 8) >> 16) as i32).wrapping_add(c)
                }),
                (false, false) => {
                    op3::<u32, u32, u32, u32, _>(|a, b, c| (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff).wrapping_add(c))
                }
                (false, true) => op3::<u32, u32, u32, u32, _>(|a, b, c| {
                    ((u64::from(a & 0xff_ffff) * u64::from(b & 0xff_ffff) >> 16) as u32).wrapping_add(c)
                }),
            };
            if mad {
                return self.emit3(i, f, class, [ty; 3]);
            }
            let [d, a, b] = self.operands::<3>(i)?;
            let (d, s) = (self.dest(d)?, [self.src(a, ty)?, self.src(b, ty)?, Val::C32(0)]);
            self.emit(f, class, d, s);
            return Ok(());
        }
        if w.has("wide") {
            let out = match ty.bytes() {
                2 => Ty::B32,
                _ => Ty::B64,
            };
            let f = match (ty, mad) {
                (Ty::U16, false) => op2::<u16, u16, u32, _>(|a, b| u32::from(a) * u32::from(b)),
                (Ty::S16, false) => op2::<i16, i16, i32, _>(|a, b| i32::from(a) * i32::from(b)),
                (Ty::U32, false) => op2::<u32, u32, u64, _>(|a, b| u64::from(a) * u64::from(b)),
                (Ty::S32, false) => op2::<i32, i32, i64, _>(|a, b| i64::from(a) * i64::from(b)),
                (Ty::U16, true) => {
                    op3::<u16, u16, u32, u32, _>(|a, b, c| (u32::from(a) * u32::from(b)).wrapping_add(c))
                }
                (Ty::S16, true) => {
                    op3::<i16, i16, i32, i32, _>(|a, b, c| (i32::from(a) * i32::from(b)).wrapping_add(c))
                }
                (Ty::U32, true) => {
                    op3::<u32, u32, u64, u64, _>(|a, b, c| (u64::from(a) * u64::from(b)).wrapping_add(c))
                }
                (Ty::S32, true) => {
                    op3::<i32, i32, i64, i64, _>(|a, b, c| (i64::from(a) * i64::from(b)).wrapping_add(c))
                }
                (t, _) => return self.error(format!("wide multiplication of {t:?}")),
            };
            return if mad { self.emit3(i, f, class, [ty, ty, out]) } else { self.emit2(i, f, class, [ty; 2]) };
        }
        if w.has("hi") {
            let f = match (ty, mad) {
                (Ty::U16, _) => {
                    op3::<u16, u16, u16, u16, _>(|a, b, c| ((u32::from(a) * u32::from(b) >> 16) as u16).wrapping_add(c))
                }
                (Ty::S16, _) => {
                    op3::<i16, i16, i16, i16, _>(|a, b, c| ((i32::from(a) * i32::from(b) >> 16) as i16).wrapping_add(c))
                }
                (Ty::U32, _) => {
                    op3::<u32, u32, u32, u32, _>(|a, b, c| ((u64::from(a) * u64::from(b) >> 32) as u32).wrapping_add(c))
                }
                (Ty::S32, true) if w.has("sat") => op3::<i32, i32, i32, i32, _>(|a, b, c| {
                    ((i64::from(a) * i64::from(b) >> 32) as i32).saturating_add(c)
                }),
                (Ty::S32, _) => {
                    op3::<i32, i32, i32, i32, _>(|a, b, c| ((i64::from(a) * i64::from(b) >> 32) as i32).wrapping_add(c))
                }
                (Ty::U64, _) => op3::<u64, u64, u64, u64, _>(|a, b, c| {
                    ((u128::from(a) * u128::from(b) >> 64) as u64).wrapping_add(c)
                }),
                (Ty::S64, _) => op3::<i64, i64, i64, i64, _>(|a, b, c| {
                    ((i128::from(a) * i128::from(b) >> 64) as i64).wrapping_add(c)
                }),
                (t, _) => return self.error(format!("multiplication of {t:?}")),
            };
            if mad {
                return self.emit3(i, f, class, [ty; 3]);
            }
            let [d, a, b] = self.operands::<3>(i)?;
            let zero = if ty.bytes() == 8 { Val::C64(0) } else { Val::C32(0) };
            let (d, s) = (self.dest(d)?, [self.src(a, ty)?, self.src(b, ty)?, zero]);
            self.emit(f, class, d, s);
            return Ok(());
        }
        if mad {
            let f = by_type!(self, ty, T, op3::<T, T, T, T, _>(|a, b, c| a.wrapping_mul(b).wrapping_add(c)));
            return self.emit3(i, f, class, [ty; 3]);
        }
        let f = by_type!(self, ty, T, op2::<T, T, T, _>(|a, b| a.wrapping_mul(b)));
        self.emit2(i, f, class, [ty; 2])
    }

    fn carry(&mut self, i: &Inst, w: &Words, ty: Ty) -> Result<()> {
        let mut x = if ty.bytes() == 8 { carry::WIDE } else { 0 };
        x |= if w.root.ends_with('c') && w.root.len() == 4 { carry::CARRY_IN } else { 0 };
        x |= if w.has("cc") { carry::CARRY_OUT } else { 0 };
        x |= if ty.signed() { carry::SIGNED } else { 0 };
        let mad = w.root.starts_with("mad");
        x |= match (w.root.starts_with("sub"), mad, w.has("hi")) {
            (true, ..) => carry::SUBTRACT,
            (_, true, false) => carry::MAD_LOW,
            (_, true, true) => carry::MAD_HIGH,
            _ => 0,
        };
        let (d, s) = if mad {
            let [d, a, b, c] = self.operands::<4>(i)?;
            (self.dest(d)?, [self.src(a, ty)?, self.src(b, ty)?, self.src(c, ty)?])
        } else {
            let [d, a, b] = self.operands::<3>(i)?;
            (self.dest(d)?, [self.src(a, ty)?, self.src(b, ty)?, Val::None])
        };
        let flag = match self.carry {
            Some(f) => f,
            None => {
                self.types.push(Ty::Pred);
                *self.carry.insert(self.types.len() as u32 - 1)
            }
        };
        let v = self.emit(carry::carry, Class::Integer, d, s);
        let role = match (x & carry::CARRY_IN != 0, x & carry::CARRY_OUT != 0) {
            (true, true) => Role::Both,
            (true, false) => Role::Use,
            _ => Role::Def,
        };
        (v.x, v.xs) = (x, vec![(role, Val::Reg(flag))]);
        Ok(())
    }

    /// and, or, xor, not of predicates.
    fn logic_pred(&mut self, i: &Inst, w: &Words) -> Result<()> {
        let mut x = 0;
        let mut s = [Val::None; 3];
        let n = i.operands.len();
        if n != if w.root == "not" { 2 } else { 3 } {
            return self.error("wrong number of operands");
        }
        for (k, o) in i.operands[1..].iter().enumerate() {
            if let Operand::Int(v) = o {
                // A literal predicate.
                x |= if *v != 0 { 16 << k } else { 64 << k };
                continue;
            }
            let (v, negated) = self.pred(o)?;
            s[k] = v;
            x |= u32::from(negated) << (2 + k);
        }
        x |= match w.root {
            "and" => 0,
            "or" => 1,
            "xor" => 2,
            _ => 3,
        };
        let d = self.dest(&i.operands[0])?;
        self.emit(predicate_logic, Class::Integer, d, s).x = x;
        Ok(())
    }
}

/// The truth tables nvcc writes most get closures of their own.
fn common_lop3(t: u32) -> (crate::ir::OpFn, u32) {
    let f = match t {
        0xc0 => op3::<u32, u32, u32, u32, _>(|a, b, _| a & b),
        0xfc => op3::<u32, u32, u32, u32, _>(|a, b, _| a | b),
        0x3c => op3::<u32, u32, u32, u32, _>(|a, b, _| a ^ b),
        0xea => op3::<u32, u32, u32, u32, _>(|a, b, c| a & b | c),
        0xf8 => op3::<u32, u32, u32, u32, _>(|a, b, c| a | b & c),
        0x96 => op3::<u32, u32, u32, u32, _>(|a, b, c| a ^ b ^ c),
        0xca => op3::<u32, u32, u32, u32, _>(|a, b, c| a & b | !a & c),
        0x6a => op3::<u32, u32, u32, u32, _>(|a, b, c| a & b ^ c),
        0x80 => op3::<u32, u32, u32, u32, _>(|a, b, c| a & b & c),
        0xfe => op3::<u32, u32, u32, u32, _>(|a, b, c| a | b | c),
        _ => op3x::<u32, u32, u32, u32, _>(lop3),
    };
    (f, t)
}

unsafe fn predicate_logic(w: &mut Warp, i: &Instr) -> u32 {
    unsafe {
        let get = |at: u32, k: u32| {
            if i.x & (16 << k) != 0 {
                return u32::MAX;
            }
            if i.x & (64 << k) != 0 {
                return 0;
            }
            if at == crate::ir::NONE {
                return 0;
            }
            let v = *w.preds.add(at as usize);
            if i.x >> (2 + k) & 1 != 0 { !v } else { v }
        };
        let (a, b) = (get(i.a, 0), get(i.b, 1));
        let r = match i.x & 3 {
            0 => a & b,
            1 => a | b,
            2 => a ^ b,
            _ => !a,
        };
        let d = &mut *w.preds.add(i.d as usize);
        *d = (*d & !w.m) | (r & w.m);
    }
    0
}

unsafe fn insert_field(w: &mut Warp, i: &Instr) -> u32 {
    use crate::exec::lanes::Lane;
    unsafe {
        let c = u32::load(w.regs.add(i.c as usize));
        let n = u32::load(w.regs.add(*w.xs.add(i.xs as usize) as usize));
        if i.x != 0 {
            let (a, b) = (u64::load(w.regs.add(i.a as usize)), u64::load(w.regs.add(i.b as usize)));
            let r = std::array::from_fn(|l| bfi(a[l], b[l], c[l], n[l], 64));
            u64::store(w.regs.add(i.d as usize), &r, w.m);
        } else {
            let (a, b) = (u32::load(w.regs.add(i.a as usize)), u32::load(w.regs.add(i.b as usize)));
            let r = std::array::from_fn(|l| bfi(u64::from(a[l]), u64::from(b[l]), c[l], n[l], 32) as u32);
            u32::store(w.regs.add(i.d as usize), &r, w.m);
        }
    }
    0
}
