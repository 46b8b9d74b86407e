//! `atom` and `red`.
//! In: address, operands. Out: the old value. Owns: the read-modify-write operations.
//! Not here: bounds and races (`memory`, `shared`). Blocks run on several CPU threads, so global atomics are CPU atomics.
//! Source: PTX ISA, "atom", "red".

use super::fault::FaultKind;
use super::float::{bf_to_f32, f32_to_bf, f32_to_half, half_to_f32};
use super::memory::{Touch, addresses, global_access, lanes, resolve, shared_access};
use super::shared::Access;
use super::status;
use super::warp::Warp;
use crate::ir::{Instr, NONE};
use crate::memory::SHARED_WINDOW;
use crate::ptx::{Space, Ty};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Operations, in the low byte of `xs[0]`; the type's number is in the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum AtomOp {
    Add,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
    Min,
    Max,
}

/// All operations by their word.
pub const ATOM_OPS: [(&str, AtomOp); 10] = [
    ("add", AtomOp::Add),
    ("and", AtomOp::And),
    ("or", AtomOp::Or),
    ("xor", AtomOp::Xor),
    ("exch", AtomOp::Exch),
    ("cas", AtomOp::Cas),
    ("inc", AtomOp::Inc),
    ("dec", AtomOp::Dec),
    ("min", AtomOp::Min),
    ("max", AtomOp::Max),
];

/// Types an atomic works on, by number.
pub const ATOM_TYPES: [Ty; 13] = [
    Ty::B32,
    Ty::U32,
    Ty::S32,
    Ty::B64,
    Ty::U64,
    Ty::S64,
    Ty::F32,
    Ty::F64,
    Ty::F16,
    Ty::F16x2,
    Ty::Bf16,
    Ty::Bf16x2,
    Ty::B16,
];

fn apply(op: AtomOp, ty: Ty, old: u64, b: u64, c: u64) -> u64 {
    let half = |f: fn(u16) -> f32, t: fn(f32) -> u16, x: u64, y: u64| u64::from(t(f(x as u16) + f(y as u16)));
    match (op, ty) {
        (AtomOp::And, _) => old & b,
        (AtomOp::Or, _) => old | b,
        (AtomOp::Xor, _) => old ^ b,
        (AtomOp::Exch, _) => b,
        (AtomOp::Cas, _) => {
            if old == b {
                c
            } else {
                old
            }
        }
        (AtomOp::Inc, _) => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        (AtomOp::Dec, _) => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
        (AtomOp::Add, Ty::F32) => {
            // The ISA lets f32 atomics flush subnormals in global memory only; none are flushed here.
            u64::from((f32::from_bits(old as u32) + f32::from_bits(b as u32)).to_bits())
        }
        (AtomOp::Add, Ty::F64) => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        (AtomOp::Add, Ty::F16) => half(half_to_f32, f32_to_half, old, b),
        (AtomOp::Add, Ty::Bf16) => half(bf_to_f32, f32_to_bf, old, b),
        (AtomOp::Add, Ty::F16x2) => {
            half(half_to_f32, f32_to_half, old, b) | half(half_to_f32, f32_to_half, old >> 16, b >> 16) << 16
        }
        (AtomOp::Add, Ty::Bf16x2) => {
            half(bf_to_f32, f32_to_bf, old, b) | half(bf_to_f32, f32_to_bf, old >> 16, b >> 16) << 16
        }
        (AtomOp::Add, _) if ty.bytes() == 8 => old.wrapping_add(b),
        (AtomOp::Add, _) => u64::from((old as u32).wrapping_add(b as u32)),
        (AtomOp::Min, Ty::S32) => u64::from((old as i32).min(b as i32) as u32),
        (AtomOp::Max, Ty::S32) => u64::from((old as i32).max(b as i32) as u32),
        (AtomOp::Min, Ty::S64) => (old as i64).min(b as i64) as u64,
        (AtomOp::Max, Ty::S64) => (old as i64).max(b as i64) as u64,
        (AtomOp::Min, _) => old.min(b),
        (AtomOp::Max, _) => old.max(b),
    }
}

/// `atom`/`red`: address row `a`, operands `b`, `c` (or NONE), destination `d` (NONE for red), `x` the `MemOp`,
/// `xs[0]` = operation | type << 8.
pub unsafe fn atomic(w: &mut Warp, i: &Instr) -> u32 {
    let mem = w.block().launch().kernel.mems[i.x as usize];
    let code = *w.xs.add(i.xs as usize);
    let (op, ty) = (ATOM_OPS[(code & 0xff) as usize].1, ATOM_TYPES[(code >> 8 & 0xff) as usize]);
    let bytes = ty.bytes();
    let all = addresses(w, i.a, mem.wide_address, mem.offset);
    let operand = |w: &Warp, at: u32, l: usize| -> u64 {
        if at == NONE {
            return 0;
        }
        let p = w.regs.add(at as usize);
        if mem.wide { *(p as *const u64).add(l) } else { u64::from(*(p as *const u32).add(l)) }
    };
    for l in lanes(w.m) {
        let mut a = all;
        let space = if mem.space == Space::Generic { resolve(a[l]).0 } else { mem.space };
        let one = 1u32 << l;
        let (b, c) = (operand(w, i.b, l), operand(w, i.c, l));
        let narrow = if bytes == 2 { 0xffff } else { u64::MAX };
        let (b, c) = (b & narrow, c & narrow);
        let old = if space == Space::Shared {
            if mem.space == Space::Generic {
                a[l] -= SHARED_WINDOW;
            }
            // Bank counting sees the whole warp once, below; the check goes lane by lane.
            let count = std::mem::replace(&mut w.block().count, false);
            let r = shared_access(w, &a, one, bytes, Access::Atomic, None);
            w.block().count = count;
            if let Err(s) = r {
                return s;
            }
            let p = w.block().shared.pointer().add(a[l] as usize);
            match bytes {
                2 => {
                    let old = u64::from(*(p as *const u16));
                    *(p as *mut u16) = apply(op, ty, old, b, c) as u16;
                    old
                }
                4 => {
                    let old = u64::from(*(p as *const u32));
                    *(p as *mut u32) = apply(op, ty, old, b, c) as u32;
                    old
                }
                _ => {
                    let old = *(p as *const u64);
                    *(p as *mut u64) = apply(op, ty, old, b, c);
                    old
                }
            }
        } else if space == Space::Global {
            let count = std::mem::replace(&mut w.block().count, false);
            let r = global_access(w, i.x as usize, &a, one, bytes, Touch::Both);
            w.block().count = count;
            if let Err(s) = r {
                return s;
            }
            match bytes {
                2 => {
                    // A 16-bit atomic is a compare-and-swap of the word around it.
                    let word = &*((a[l] & !3) as *const AtomicU32);
                    let shift = (a[l] & 2) * 8;
                    let step = |o: u32| {
                        let h = apply(op, ty, u64::from(o >> shift & 0xffff), b, c) as u32 & 0xffff;
                        Some(o & !(0xffff << shift) | h << shift)
                    };
                    let old = word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, step).unwrap_or(0);
                    u64::from(old >> shift & 0xffff)
                }
                4 => {
                    let word = &*(a[l] as *const AtomicU32);
                    let step = |o: u32| Some(apply(op, ty, u64::from(o), b, c) as u32);
                    u64::from(word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, step).unwrap_or(0))
                }
                _ => {
                    let word = &*(a[l] as *const AtomicU64);
                    let step = |o: u64| Some(apply(op, ty, o, b, c));
                    word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, step).unwrap_or(0)
                }
            }
        } else {
            let detail = "atomics work on global and shared memory".to_string();
            return w.fault(FaultKind::BadOperand, l as u32, Some(all[l]), detail);
        };
        if i.d != NONE {
            let p = w.regs.add(i.d as usize);
            if mem.wide {
                *(p as *mut u64).add(l) = old;
            } else {
                *(p as *mut u32).add(l) = old as u32;
            }
        }
    }
    if w.block().count {
        count(w, i, &all, bytes);
    }
    status::OK
}

/// Sectors or bank passes of the warp's atomics, and their number.
unsafe fn count(w: &mut Warp, i: &Instr, all: &[u64; 32], bytes: u32) {
    let mem = w.block().launch().kernel.mems[i.x as usize];
    let pc = w.pc as usize;
    let m = w.m;
    (*w.block().counts.add(pc)).atomics += u64::from(m.count_ones());
    let shared = mem.space == Space::Shared
        || mem.space == Space::Generic && resolve(all[(m.trailing_zeros() & 31) as usize]).0 == Space::Shared;
    let check = std::mem::replace(&mut w.block().check, false);
    if shared {
        let mut a = *all;
        if mem.space == Space::Generic {
            a.iter_mut().for_each(|v| *v = v.wrapping_sub(SHARED_WINDOW));
        }
        let _ = shared_access(w, &a, m, bytes, Access::Atomic, None);
    } else {
        let _ = global_access(w, i.x as usize, all, m, bytes, Touch::Both);
    }
    w.block().check = check;
}
