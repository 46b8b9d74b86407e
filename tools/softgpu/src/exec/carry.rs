//! Multi-word arithmetic with the carry flag: add.cc, addc, sub.cc, subc, mad.cc, madc.
//! In: rows, the carry predicate. Out: a row, the carry predicate. Owns: the carry rules. Not here: plain arithmetic (`lower`).
//! Source: PTX ISA, "Extended-Precision Integer Arithmetic Instructions".

use super::lanes::Lane;
use super::status;
use super::warp::Warp;
use crate::ir::{Instr, NONE};

/// Bits of `x`.
pub const SUBTRACT: u32 = 1;
/// Reads the carry.
pub const CARRY_IN: u32 = 2;
/// Writes the carry.
pub const CARRY_OUT: u32 = 4;
/// 64-bit operands.
pub const WIDE: u32 = 8;
/// d = a * b + c, low half.
pub const MAD_LOW: u32 = 16;
/// d = a * b + c, high half.
pub const MAD_HIGH: u32 = 32;
/// The product is signed.
pub const SIGNED: u32 = 64;

/// `d = a op b [op c] [op carry]`; the carry predicate is `xs[0]`. For sub the flag is a borrow.
pub unsafe fn carry(w: &mut Warp, i: &Instr) -> u32 {
    let x = i.x;
    let get = |at: u32| -> [u64; 32] {
        if at == NONE {
            [0; 32]
        } else if x & WIDE != 0 {
            u64::load(w.regs.add(at as usize))
        } else {
            u32::load(w.regs.add(at as usize)).map(u64::from)
        }
    };
    let (a, b, c) = (get(i.a), get(i.b), get(i.c));
    let flag = *w.xs.add(i.xs as usize) as usize;
    let cf = *w.preds.add(flag);
    let bits = if x & WIDE != 0 { 64 } else { 32 };
    let mut out = 0u32;
    let mut r = [0u64; 32];
    for l in 0..32 {
        let cin = if x & CARRY_IN != 0 { u128::from(cf >> l & 1) } else { 0 };
        let (p, q) = if x & (MAD_LOW | MAD_HIGH) != 0 {
            let product = if x & SIGNED != 0 && bits == 64 {
                (i128::from(a[l] as i64) * i128::from(b[l] as i64)) as u128
            } else if x & SIGNED != 0 {
                (i128::from(a[l] as i32) * i128::from(b[l] as i32)) as u128
            } else {
                u128::from(a[l]) * u128::from(b[l])
            };
            let part = if x & MAD_HIGH != 0 { product >> bits } else { product };
            (part & ((1u128 << bits) - 1), u128::from(c[l]))
        } else {
            (u128::from(a[l]), u128::from(b[l]))
        };
        let v = if x & SUBTRACT != 0 { p.wrapping_sub(q).wrapping_sub(cin) } else { p + q + cin };
        r[l] = v as u64;
        // A borrow shows as a one above the word, as a carry does.
        out |= ((v >> bits & 1) as u32) << l;
    }
    if x & WIDE != 0 {
        u64::store(w.regs.add(i.d as usize), &r, w.m);
    } else {
        u32::store(w.regs.add(i.d as usize), &r.map(|v| v as u32), w.m);
    }
    if x & CARRY_OUT != 0 {
        let p = &mut *w.preds.add(flag);
        *p = (*p & !w.m) | (out & w.m);
    }
    status::OK
}
