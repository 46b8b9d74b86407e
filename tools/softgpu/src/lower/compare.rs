//! setp, set, slct.
//! In: `ptx::Inst`. Out: `Virtual`s. Owns: the comparison words. Not here: combination with a predicate (`exec::lanes`).
//! Source: PTX ISA, "Comparison and Selection Instructions".

use super::ops::Words;
use super::{Lower, Role, Val};
use crate::exec::float::{bf_to_f32, ftz, half_to_f32};
use crate::exec::lanes::{Lane, combine, op_cmp, op2, op3};
use crate::exec::warp::Warp;
use crate::ir::{Class, Instr, OpFn};
use crate::ptx::{Inst, Operand, Result, Ty};

const WORDS: [&str; 18] = [
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan",
];

fn integer(ty: Ty, word: &str) -> Option<OpFn> {
    macro_rules! all {
        ($t:ty) => {
            match word {
                "eq" => op_cmp::<$t, $t, _>(|a, b| a == b),
                "ne" => op_cmp::<$t, $t, _>(|a, b| a != b),
                "lt" | "lo" => op_cmp::<$t, $t, _>(|a, b| a < b),
                "le" | "ls" => op_cmp::<$t, $t, _>(|a, b| a <= b),
                "gt" | "hi" => op_cmp::<$t, $t, _>(|a, b| a > b),
                "ge" | "hs" => op_cmp::<$t, $t, _>(|a, b| a >= b),
                _ => return None,
            }
        };
    }
    Some(match ty {
        Ty::U16 | Ty::B16 => all!(u16),
        Ty::S16 => all!(i16),
        Ty::U32 | Ty::B32 => all!(u32),
        Ty::S32 => all!(i32),
        Ty::U64 | Ty::B64 => all!(u64),
        Ty::S64 => all!(i64),
        _ => return None,
    })
}

/// Ordered comparisons are false for a NaN; the `u` ones are true.
macro_rules! floats {
    ($t:ty, $word:expr, $load:expr) => {
        match $word {
            "eq" => op_cmp::<$t, $t, _>(|a, b| $load(a) == $load(b)),
            "ne" => op_cmp::<$t, $t, _>(|a, b| $load(a) < $load(b) || $load(a) > $load(b)),
            "lt" => op_cmp::<$t, $t, _>(|a, b| $load(a) < $load(b)),
            "le" => op_cmp::<$t, $t, _>(|a, b| $load(a) <= $load(b)),
            "gt" => op_cmp::<$t, $t, _>(|a, b| $load(a) > $load(b)),
            "ge" => op_cmp::<$t, $t, _>(|a, b| $load(a) >= $load(b)),
            "equ" => op_cmp::<$t, $t, _>(|a, b| !($load(a) < $load(b) || $load(a) > $load(b))),
            "neu" => op_cmp::<$t, $t, _>(|a, b| $load(a) != $load(b)),
            "ltu" => op_cmp::<$t, $t, _>(|a, b| !($load(a) >= $load(b))),
            "leu" => op_cmp::<$t, $t, _>(|a, b| !($load(a) > $load(b))),
            "gtu" => op_cmp::<$t, $t, _>(|a, b| !($load(a) <= $load(b))),
            "geu" => op_cmp::<$t, $t, _>(|a, b| !($load(a) < $load(b))),
            "num" => op_cmp::<$t, $t, _>(|a, b| !$load(a).is_nan() && !$load(b).is_nan()),
            "nan" => op_cmp::<$t, $t, _>(|a, b| $load(a).is_nan() || $load(b).is_nan()),
            _ => return None,
        }
    };
}

/// Flushes f16 subnormals (`.ftz`).
#[inline(always)]
fn flush(h: u16) -> u16 {
    if h & 0x7c00 == 0 { h & 0x8000 } else { h }
}

fn float(ty: Ty, word: &str, ftz_asked: bool) -> Option<OpFn> {
    Some(match (ty, ftz_asked) {
        (Ty::F32, false) => floats!(f32, word, |a: f32| a),
        (Ty::F32, true) => floats!(f32, word, ftz),
        (Ty::F64, _) => floats!(f64, word, |a: f64| a),
        (Ty::F16, false) => floats!(u16, word, half_to_f32),
        (Ty::F16, true) => floats!(u16, word, |h: u16| half_to_f32(flush(h))),
        (Ty::Bf16, _) => floats!(u16, word, bf_to_f32),
        _ => return None,
    })
}

impl Lower<'_> {
    /// Lowers setp, set, slct.
    pub(super) fn compare(&mut self, i: &Inst, w: &Words) -> Result<()> {
        if w.root == "slct" {
            return self.slct(i, w);
        }
        let types = w.types();
        let Some(ty) = types.last().copied() else { return self.error("no type") };
        let Some(word) = w.mods.first().filter(|m| WORDS.contains(m)) else { return self.error("no comparison") };
        let boolean = match w.mods.get(1).copied() {
            Some("and") => 1,
            Some("or") => 2,
            Some("xor") => 3,
            _ => 0,
        };
        let packed = matches!(ty, Ty::F16x2 | Ty::Bf16x2);
        if packed {
            return self.compare_pair(i, w, ty, word, boolean);
        }
        let f = if ty.float() { float(ty, word, w.has("ftz")) } else { integer(ty, word) };
        let Some(f) = f else { return self.error(format!("comparison `{word}` of {ty:?} is not supported")) };
        let n = i.operands.len();
        if n != 3 + usize::from(boolean != 0) {
            return self.error("wrong number of operands");
        }
        let (a, b) = (self.src(&i.operands[1], ty)?, self.src(&i.operands[2], ty)?);
        let (mut c, mut x) = (Val::None, boolean);
        if boolean != 0 {
            let (p, negated) = self.pred(&i.operands[3])?;
            c = p;
            x |= u32::from(negated) << 2;
        }
        if w.root == "set" {
            return self.set(i, types[0], f, [a, b, c], x);
        }
        let (d, second) = match &i.operands[0] {
            Operand::Pair(p, q) => (self.dest(p)?, self.dest(q)?),
            p => (self.dest(p)?, Val::None),
        };
        let d = match d {
            Val::None => self.scratch(Ty::Pred),
            d => d,
        };
        let v = self.emit(f, if ty.float() { Class::Float32 } else { Class::Integer }, d, [a, b, c]);
        v.x = x;
        if second != Val::None {
            v.xs = vec![(Role::Def, second)];
        }
        Ok(())
    }

    /// A register no one else uses.
    pub(super) fn scratch(&mut self, ty: Ty) -> Val {
        self.types.push(ty);
        Val::Reg(self.types.len() as u32 - 1)
    }

    /// `set`: all ones or 1.0 where true.
    fn set(&mut self, i: &Inst, dtype: Ty, f: OpFn, s: [Val; 3], x: u32) -> Result<()> {
        let p = self.scratch(Ty::Pred);
        let d = self.dest(&i.operands[0])?;
        let guard = self.guard.take();
        self.emit(f, Class::Integer, p, s).x = x;
        self.guard = guard;
        let one = match dtype {
            Ty::F32 => 0x3f80_0000,
            Ty::F16 => 0x3c00,
            Ty::Bf16 => 0x3f80,
            Ty::U32 | Ty::S32 => u32::MAX,
            Ty::U16 | Ty::S16 => 0xffff,
            t => return self.error(format!("set to {t:?} is not supported")),
        };
        self.emit(crate::exec::lanes::pick_select::<u32>(), Class::Integer, d, [Val::C32(one), Val::C32(0), p]);
        Ok(())
    }

    /// `setp.f16x2 p|q, a, b`: p compares the low halves, q the high ones. `set.f16x2`: 1.0 or all ones in each half.
    fn compare_pair(&mut self, i: &Inst, w: &Words, ty: Ty, word: &str, boolean: u32) -> Result<()> {
        if i.operands.len() != 3 + usize::from(boolean != 0) {
            return self.error("wrong number of operands");
        }
        let (a, b) = (self.src(&i.operands[1], ty)?, self.src(&i.operands[2], ty)?);
        let (mut c, mut x) = (Val::None, boolean);
        if boolean != 0 {
            let (p, negated) = self.pred(&i.operands[3])?;
            c = p;
            x |= u32::from(negated) << 2;
        }
        let Some(at) = WORDS.iter().position(|v| *v == word) else { return self.error("no comparison") };
        x |= (at as u32) << 4 | u32::from(ty == Ty::Bf16x2) << 3 | u32::from(w.has("ftz")) << 9;
        let (mut d, mut second) = (Val::None, Val::None);
        if w.root == "setp" {
            let Operand::Pair(p, q) = &i.operands[0] else { return self.error("expected p|q, a, b") };
            (d, second) = (self.dest(p)?, self.dest(q)?);
        }
        let d = if d == Val::None { self.scratch(Ty::Pred) } else { d };
        let second = if second == Val::None { self.scratch(Ty::Pred) } else { second };
        // The destination of `set` is written under the guard by the last step; the steps before it serve only that.
        let guard = self.guard;
        if w.root == "set" {
            self.guard = None;
        }
        let v = self.emit(compare_packed, Class::Half, d, [a, b, c]);
        (v.x, v.xs) = (x, vec![(Role::Def, second)]);
        if w.root == "setp" {
            return Ok(());
        }
        let one = match w.types()[0] {
            Ty::F16x2 => 0x3c00,
            Ty::Bf16x2 => 0x3f80,
            _ => 0xffff,
        };
        let select = crate::exec::lanes::pick_select::<u32>();
        let (low, high) = (self.scratch(Ty::B32), self.scratch(Ty::B32));
        self.emit(select, Class::Half, low, [Val::C32(one), Val::C32(0), d]);
        self.emit(select, Class::Half, high, [Val::C32(one << 16), Val::C32(0), second]);
        self.guard = guard;
        let d = self.dest(&i.operands[0])?;
        self.emit(op2::<u32, u32, u32, _>(|a, b| a | b), Class::Half, d, [low, high, Val::None]);
        Ok(())
    }

    /// `slct.dtype.{s32,f32} d, a, b, c`: a where c >= 0.
    fn slct(&mut self, i: &Inst, w: &Words) -> Result<()> {
        let types = w.types();
        let [dtype, ctype] = types[..] else { return self.error("expected two types") };
        let f = match (dtype.bytes() == 8, ctype, w.has("ftz")) {
            (false, Ty::S32, _) => op3::<u32, u32, i32, u32, _>(|a, b, c| if c >= 0 { a } else { b }),
            (true, Ty::S32, _) => op3::<u64, u64, i32, u64, _>(|a, b, c| if c >= 0 { a } else { b }),
            (false, _, false) => op3::<u32, u32, f32, u32, _>(|a, b, c| if c >= 0.0 { a } else { b }),
            (true, _, false) => op3::<u64, u64, f32, u64, _>(|a, b, c| if c >= 0.0 { a } else { b }),
            (false, _, true) => op3::<u32, u32, f32, u32, _>(|a, b, c| if ftz(c) >= 0.0 { a } else { b }),
            (true, _, true) => op3::<u64, u64, f32, u64, _>(|a, b, c| if ftz(c) >= 0.0 { a } else { b }),
        };
        self.emit3(i, f, Class::Integer, [dtype, dtype, ctype])
    }
}

unsafe fn compare_packed(w: &mut Warp, i: &Instr) -> u32 {
    unsafe {
        let (a, b) = (u32::load(w.regs.add(i.a as usize)), u32::load(w.regs.add(i.b as usize)));
        let value = |v: u32, high: u32| {
            let h = (v >> (16 * high)) as u16;
            let h = if i.x >> 9 != 0 { flush(h) } else { h };
            if i.x & 8 != 0 { bf_to_f32(h) } else { half_to_f32(h) }
        };
        let other = if i.x & 3 != 0 { *w.preds.add(i.c as usize) } else { 0 };
        for (high, p) in [(0, i.d), (1, *w.xs.add(i.xs as usize))] {
            let mut bits = 0;
            for l in 0..32 {
                let (x, y) = (value(a[l], high), value(b[l], high));
                let nan = x.is_nan() || y.is_nan();
                let r = match WORDS[(i.x >> 4 & 31) as usize] {
                    "eq" => x == y,
                    "ne" => !nan && x != y,
                    "lt" => x < y,
                    "le" => x <= y,
                    "gt" => x > y,
                    "ge" => x >= y,
                    "equ" => nan || x == y,
                    "neu" => x != y,
                    "ltu" => nan || x < y,
                    "leu" => nan || x <= y,
                    "gtu" => nan || x > y,
                    "geu" => nan || x >= y,
                    "num" => !nan,
                    _ => nan,
                };
                bits |= u32::from(r) << l;
            }
            let d = &mut *w.preds.add(p as usize);
            *d = (*d & !w.m) | (combine(bits, other, i.x & 7) & w.m);
        }
    }
    0
}
