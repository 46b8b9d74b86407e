//! cvt and cvt.pack.
//! In: `ptx::Inst`. Out: `Virtual`s. Owns: which conversions get vectorised closures; the general conversion lane by lane.
//! Not here: roundings (`exec::float`).
//! Source: PTX ISA, "Data Movement and Conversion Instructions: cvt, cvt.pack".

use super::ops::Words;
use super::{Lower, Val};
use crate::exec::float::{
    Round, bf_to_f32, canon, f32_to_bf, f32_to_half, ftz, half_to_f32, integral, narrow, saturate, to_odd,
};
use crate::exec::lanes::{Lane, op1, op2, op3x};
use crate::exec::warp::Warp;
use crate::ir::{Class, Instr, OpFn};
use crate::ptx::{Inst, Result, Ty};

const TYPES: [Ty; 13] = [
    Ty::U8,
    Ty::S8,
    Ty::U16,
    Ty::S16,
    Ty::U32,
    Ty::S32,
    Ty::U64,
    Ty::S64,
    Ty::F16,
    Ty::Bf16,
    Ty::F32,
    Ty::F64,
    Ty::Tf32,
];
const ROUNDS: [Round; 5] = [Round::Nearest, Round::Zero, Round::Down, Round::Up, Round::Away];

// Bits of the general conversion's word.
const FROM: u32 = 4;
const MODE: u32 = 8;
const INTEGRAL: u32 = 1 << 12;
const FLUSH: u32 = 1 << 13;
const SATURATE: u32 = 1 << 14;
const RELU: u32 = 1 << 15;
const WIDE_FROM: u32 = 1 << 16;
const WIDE_TO: u32 = 1 << 17;

/// Limits of an integer type.
fn limits(ty: Ty) -> (i128, i128) {
    let bits = ty.bytes() * 8;
    if ty.signed() { (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1) } else { (0, (1i128 << bits) - 1) }
}

fn read_int(v: u64, ty: Ty) -> i128 {
    match ty {
        Ty::U8 => i128::from(v as u8),
        Ty::S8 => i128::from(v as i8),
        Ty::U16 => i128::from(v as u16),
        Ty::S16 => i128::from(v as i16),
        Ty::U32 => i128::from(v as u32),
        Ty::S32 => i128::from(v as i32),
        Ty::U64 => i128::from(v),
        _ => i128::from(v as i64),
    }
}

fn read_float(v: u64, ty: Ty, flush: bool) -> f64 {
    match ty {
        Ty::F16 => f64::from(half_to_f32(v as u16)),
        Ty::Bf16 => f64::from(bf_to_f32(v as u16)),
        Ty::F64 => f64::from_bits(v),
        _ => {
            let f = f32::from_bits(v as u32);
            f64::from(if flush { ftz(f) } else { f })
        }
    }
}

/// One conversion; `x` as packed by `convert`.
pub(crate) fn convert_bits(v: u64, x: u32) -> u64 {
    let (to, from) = (TYPES[(x & 15) as usize], TYPES[(x >> FROM & 15) as usize]);
    let mode = ROUNDS[(x >> MODE & 7) as usize];
    let (sat, flush) = (x & SATURATE != 0, x & FLUSH != 0);
    match (from.float(), to.float()) {
        (false, false) => {
            let n = read_int(v, from);
            let (low, high) = limits(to);
            let n = if sat { n.clamp(low, high) } else { n };
            // The result is extended to the register by the destination's own sign.
            read_int(n as u64, to) as u64
        }
        (true, false) => {
            let f = read_float(v, from, flush);
            if f.is_nan() {
                let large = from == Ty::F64 || matches!(to, Ty::S64 | Ty::U64);
                return if large { read_int(1 << (to.bytes() * 8 - 1), to) as u64 } else { 0 };
            }
            let (low, high) = limits(to);
            // The cast saturates at the limits of i128, far outside those of every type here.
            (integral(f, mode) as i128).clamp(low, high) as u64
        }
        (false, true) => {
            let n = read_int(v, from);
            let near = n as f64;
            let value = to_odd(near, (n - near as i128) as f64);
            // In f64 itself the odd trick would show; there the integer is rounded as it is.
            let value = match (to, n) {
                (_, 0) => 0.0,
                (Ty::F64, n) => crate::exec::exact::pack64(n < 0, n.unsigned_abs(), 0, false, mode),
                _ => value,
            };
            store_float(value, to, mode, sat, false, false)
        }
        (true, true) => {
            let mut f = read_float(v, from, flush);
            if x & INTEGRAL != 0 {
                f = integral(f, mode);
            }
            store_float(f, to, mode, sat, flush, x & RELU != 0)
        }
    }
}

fn store_float(f: f64, to: Ty, mode: Round, sat: bool, flush: bool, relu: bool) -> u64 {
    let f = if relu && !(f > 0.0) && !f.is_nan() { 0.0 } else { f };
    let f = if sat { if f > 0.0 { f.min(1.0) } else { 0.0 } } else { f };
    match to {
        Ty::F64 => f.to_bits(),
        Ty::F16 => {
            if f.is_nan() {
                0x7fff
            } else {
                narrow(f, 5, 10, mode)
            }
        }
        Ty::Bf16 => {
            if f.is_nan() {
                0x7fff
            } else {
                narrow(f, 8, 7, mode)
            }
        }
        Ty::Tf32 => narrow(f, 8, 10, mode) << 13,
        _ => {
            let r = if f.is_nan() {
                f32::from_bits(crate::exec::float::NAN32)
            } else {
                f32::from_bits(narrow(f, 8, 23, mode) as u32)
            };
            u64::from((if flush { ftz(r) } else { r }).to_bits())
        }
    }
}

/// The general conversion: operand row `a`, destination `d`.
unsafe fn convert_any(w: &mut Warp, i: &Instr) -> u32 {
    unsafe {
        let p = w.regs.add(i.a as usize);
        let v = if i.x & WIDE_FROM != 0 { u64::load(p) } else { u32::load(p).map(u64::from) };
        let mut r = [0u64; 32];
        for l in super::super::exec::memory::lanes(w.m) {
            r[l] = convert_bits(v[l], i.x);
        }
        let d = w.regs.add(i.d as usize);
        if i.x & WIDE_TO != 0 {
            u64::store(d, &r, w.m);
        } else {
            u32::store(d, &r.map(|v| v as u32), w.m);
        }
    }
    0
}

/// f32 to s32, truncating and saturating, NaN to 0.
fn fast(to: Ty, from: Ty, mode: Round, integral: bool) -> Option<OpFn> {
    Some(match (to, from, mode) {
        (Ty::U64 | Ty::S64, Ty::U32, _) => op1::<u32, u64, _>(u64::from),
        (Ty::U64 | Ty::S64, Ty::S32, _) => op1::<i32, i64, _>(i64::from),
        (Ty::U32 | Ty::S32, Ty::U64 | Ty::S64, _) => op1::<u64, u32, _>(|a| a as u32),
        (Ty::U32 | Ty::S32, Ty::U16, _) => op1::<u16, u32, _>(u32::from),
        (Ty::U32 | Ty::S32, Ty::S16, _) => op1::<i16, i32, _>(i32::from),
        (Ty::U16 | Ty::S16, Ty::U32 | Ty::S32, _) => op1::<u32, u32, _>(|a| a & 0xffff),
        (Ty::U32 | Ty::S32, Ty::U8, _) => op1::<u32, u32, _>(|a| a & 0xff),
        (Ty::U32 | Ty::S32, Ty::S8, _) => op1::<u32, u32, _>(|a| a as i8 as i32 as u32),
        (Ty::F32, Ty::Bf16, _) if !integral => op1::<u16, f32, _>(bf_to_f32),
        (Ty::F32, Ty::F16, _) if !integral => op1::<u16, f32, _>(half_to_f32),
        (Ty::Bf16, Ty::F32, Round::Nearest) if !integral => op1::<f32, u16, _>(f32_to_bf),
        (Ty::F16, Ty::F32, Round::Nearest) if !integral => op1::<f32, u16, _>(f32_to_half),
        (Ty::F32, Ty::S32, Round::Nearest) => op1::<i32, f32, _>(|a| a as f32),
        (Ty::F32, Ty::U32, Round::Nearest) => op1::<u32, f32, _>(|a| a as f32),
        (Ty::S32, Ty::F32, Round::Zero) => op1::<f32, i32, _>(|a| a as i32),
        (Ty::U32, Ty::F32, Round::Zero) => op1::<f32, u32, _>(|a| a as u32),
        (Ty::S32, Ty::F32, Round::Nearest) => op1::<f32, i32, _>(|a| a.round_ties_even() as i32),
        (Ty::S32, Ty::F32, Round::Down) => op1::<f32, i32, _>(|a| a.floor() as i32),
        (Ty::S32, Ty::F32, Round::Up) => op1::<f32, i32, _>(|a| a.ceil() as i32),
        (Ty::F64, Ty::F32, _) if !integral => op1::<f32, f64, _>(f64::from),
        (Ty::F32, Ty::F64, Round::Nearest) if !integral => op1::<f64, f32, _>(|a| canon(a as f32)),
        (Ty::F32, Ty::F32, Round::Nearest) if integral => op1::<f32, f32, _>(|a| canon(a.round_ties_even())),
        (Ty::F32, Ty::F32, Round::Zero) if integral => op1::<f32, f32, _>(|a| canon(a.trunc())),
        (Ty::F32, Ty::F32, Round::Down) if integral => op1::<f32, f32, _>(|a| canon(a.floor())),
        (Ty::F32, Ty::F32, Round::Up) if integral => op1::<f32, f32, _>(|a| canon(a.ceil())),
        _ => return None,
    })
}

impl Lower<'_> {
    /// Lowers cvt.
    pub(super) fn convert(&mut self, i: &Inst, w: &Words) -> Result<()> {
        let class = Class::Convert;
        if w.has("pack") {
            return self.convert_pack(i, w);
        }
        let fp8 = w
            .mods
            .iter()
            .any(|m| m.starts_with("e4m3") || m.starts_with("e5m2") || m.starts_with("e2m") || m.starts_with("e3m"));
        if fp8 {
            return self.error("8-bit and smaller float formats are not supported");
        }
        let types = w.types();
        if let [packed @ (Ty::F16x2 | Ty::Bf16x2), Ty::F32] = types[..] {
            return self.convert_pair(i, w, packed);
        }
        let [to, from] = types[..] else { return self.error("expected two types") };
        let round = w.mods.iter().find_map(|m| {
            Some(match *m {
                "rn" => (Round::Nearest, false),
                "rz" => (Round::Zero, false),
                "rm" => (Round::Down, false),
                "rp" => (Round::Up, false),
                "rna" => (Round::Away, false),
                "rni" => (Round::Nearest, true),
                "rzi" => (Round::Zero, true),
                "rmi" => (Round::Down, true),
                "rpi" => (Round::Up, true),
                _ => return None,
            })
        });
        if w.has("satfinite") || w.has("rs") {
            return self.error("satfinite and stochastic rounding are not supported");
        }
        let (mode, integral) = round.unwrap_or((Round::Nearest, false));
        let [d, a] = self.operands::<2>(i)?;
        let (d, a) = (self.dest(d)?, self.src(a, from)?);
        let (sat, flush, relu) = (w.has("sat"), w.has("ftz"), w.has("relu"));
        let (wide_to, wide_from) = (self.reg_type(d).bytes() == 8, self.reg_type(a).bytes() == 8);
        // Closures read and write registers of the types' own width.
        let natural = wide_to == (to.bytes() == 8) && wide_from == (from.bytes() == 8);
        if sat && to == Ty::F32 && from == Ty::F32 && !flush && !integral {
            self.emit(op1::<f32, f32, _>(saturate), class, d, [a, Val::None, Val::None]);
            return Ok(());
        }
        if !sat
            && !flush
            && !relu
            && natural
            && let Some(f) = fast(to, from, mode, integral)
        {
            self.emit(f, class, d, [a, Val::None, Val::None]);
            return Ok(());
        }
        let number = |t: Ty| TYPES.iter().position(|v| *v == t);
        let (Some(t), Some(f)) = (number(to), number(from)) else {
            return self.error(format!("conversion from {from:?} to {to:?} is not supported"));
        };
        let mode = ROUNDS.iter().position(|r| *r == mode).unwrap_or(0) as u32;
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        let x = t as u32
            | (f as u32) << FROM
            | mode << MODE
            | flag(integral, INTEGRAL)
            | flag(flush, FLUSH)
            | flag(sat, SATURATE)
            | flag(relu, RELU)
            | flag(wide_from, WIDE_FROM)
            | flag(wide_to, WIDE_TO);
        self.emit(convert_any, class, d, [a, Val::None, Val::None]).x = x;
        Ok(())
    }

    /// `cvt.rn.bf16x2.f32 d, a, b`: a is the upper half.
    fn convert_pair(&mut self, i: &Inst, w: &Words, to: Ty) -> Result<()> {
        let f = match (to, w.has("rz"), w.has("relu")) {
            (Ty::Bf16x2, false, false) => {
                op2::<f32, f32, u32, _>(|a, b| u32::from(f32_to_bf(b)) | u32::from(f32_to_bf(a)) << 16)
            }
            (Ty::F16x2, false, false) => {
                op2::<f32, f32, u32, _>(|a, b| u32::from(f32_to_half(b)) | u32::from(f32_to_half(a)) << 16)
            }
            (_, rz, relu) => {
                let f = op3x::<f32, f32, u32, u32, _>(|a, b, _, x| {
                    let mode = if x & 1 != 0 { Round::Zero } else { Round::Nearest };
                    let ty = if x & 4 != 0 { Ty::Bf16 } else { Ty::F16 };
                    let half = |v: f32| store_float(f64::from(v), ty, mode, false, false, x & 2 != 0) as u32;
                    half(b) | half(a) << 16
                });
                let [d, a, b] = self.operands::<3>(i)?;
                let (d, s) = (self.dest(d)?, [self.src(a, Ty::F32)?, self.src(b, Ty::F32)?, Val::C32(0)]);
                let x = u32::from(rz) | u32::from(relu) << 1 | u32::from(to == Ty::Bf16x2) << 2;
                self.emit(f, Class::Convert, d, s).x = x;
                return Ok(());
            }
        };
        self.emit2(i, f, Class::Convert, [Ty::F32; 2])
    }

    /// `cvt.pack.sat.{s8,u8,s16,u16}.s32[.b32] d, a, b[, c]`: b saturated is the lowest element, then a, then c's low part.
    fn convert_pack(&mut self, i: &Inst, w: &Words) -> Result<()> {
        let types = w.types();
        let Some(to @ (Ty::S8 | Ty::U8 | Ty::S16 | Ty::U16)) = types.first().copied() else {
            return self.error("cvt.pack to this type is not supported");
        };
        let f = match to {
            Ty::S8 => op3x::<i32, i32, u32, u32, _>(|a, b, c, _| {
                u32::from(b.clamp(-128, 127) as u8) | u32::from(a.clamp(-128, 127) as u8) << 8 | c << 16
            }),
            Ty::U8 => op3x::<i32, i32, u32, u32, _>(|a, b, c, _| {
                u32::from(b.clamp(0, 255) as u8) | u32::from(a.clamp(0, 255) as u8) << 8 | c << 16
            }),
            Ty::S16 => op3x::<i32, i32, u32, u32, _>(|a, b, _, _| {
                u32::from(b.clamp(-32768, 32767) as u16) | u32::from(a.clamp(-32768, 32767) as u16) << 16
            }),
            _ => op3x::<i32, i32, u32, u32, _>(|a, b, _, _| {
                u32::from(b.clamp(0, 65535) as u16) | u32::from(a.clamp(0, 65535) as u16) << 16
            }),
        };
        let (d, a, b) = match &i.operands[..] {
            [d, a, b] | [d, a, b, _] => (self.dest(d)?, self.src(a, Ty::S32)?, self.src(b, Ty::S32)?),
            _ => return self.error("wrong number of operands"),
        };
        let c = match i.operands.get(3) {
            Some(c) => self.src(c, Ty::B32)?,
            None => Val::C32(0),
        };
        self.emit(f, Class::Convert, d, [a, b, c]);
        Ok(())
    }
}
