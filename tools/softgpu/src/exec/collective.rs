//! Warp collectives: shuffles, votes, matches, reductions, warp and block barriers.
//! In: register rows and member masks. Out: register rows, predicates. Owns: member-mask checks.
//! Not here: barrier completion (`block`).
//! Source: PTX ISA, "shfl.sync", "vote.sync", "match.sync", "redux.sync", "bar", "bar.warp.sync".

use super::fault::FaultKind;
use super::lanes::Lane;
use super::memory::lanes;
use super::status;
use super::warp::Warp;
use crate::ir::{Instr, NONE};

unsafe fn row(w: &Warp, at: u32) -> [u32; 32] {
    u32::load(w.regs.add(at as usize))
}

unsafe fn set_pred(w: &mut Warp, p: u32, bits: u32) {
    let d = &mut *w.preds.add(p as usize);
    *d = (*d & !w.m) | (bits & w.m);
}

/// Every active lane must be in its own mask, and every live lane its mask names must be here.
unsafe fn members(w: &mut Warp, mask: &[u32; 32]) -> Result<(), u32> {
    let (m, live) = (w.m, w.live);
    let mut bad = 0u32;
    for (l, k) in mask.iter().enumerate() {
        bad |= u32::from(k & live & !m != 0 || k >> l & 1 == 0) << l;
    }
    if bad & m == 0 {
        return Ok(());
    }
    let l = (bad & m).trailing_zeros();
    let k = mask[l as usize];
    let detail = if k >> l & 1 == 0 {
        format!("lane {l} runs it, but its member mask {k:#010x} does not name it")
    } else {
        format!(
            "member mask {k:#010x} names lane {}, which is not here (active lanes {m:#010x})",
            (k & live & !m).trailing_zeros()
        )
    };
    Err(w.fault(FaultKind::WarpDivergence, l, None, detail))
}

/// `shfl.sync`: value `a`, lane operand `b`, clamp and segment `c`, `xs` = predicate or NONE, member mask row.
/// `x`: 0 up, 1 down, 2 bfly, 3 idx.
pub unsafe fn shuffle(w: &mut Warp, i: &Instr) -> u32 {
    let (a, b, c) = (row(w, i.a), row(w, i.b), row(w, i.c));
    let mask = row(w, *w.xs.add(i.xs as usize + 1));
    if let Err(s) = members(w, &mask) {
        return s;
    }
    let (mut r, mut p) = ([0u32; 32], 0u32);
    for l in 0..32u32 {
        let at = l as usize;
        let (bval, cval, seg) = (b[at] & 31, c[at] & 31, c[at] >> 8 & 31);
        let max = (l & seg) | (cval & !seg);
        let min = l & seg;
        let (j, valid) = match i.x {
            0 => (l.wrapping_sub(bval), l as i32 - bval as i32 >= max as i32),
            1 => (l + bval, l + bval <= max),
            2 => (l ^ bval, l ^ bval <= max),
            _ => {
                let j = min | (bval & !seg);
                (j, j <= max)
            }
        };
        r[at] = a[if valid { j as usize & 31 } else { at }];
        p |= u32::from(valid) << l;
    }
    u32::store(w.regs.add(i.d as usize), &r, w.m);
    let pred = *w.xs.add(i.xs as usize);
    if pred != NONE {
        set_pred(w, pred, p);
    }
    status::OK
}

/// `vote.sync`: predicate `a` (negated when `x` has bit 4), member mask row `b`. `x & 3`: 0 all, 1 any, 2 uni, 3 ballot.
pub unsafe fn vote(w: &mut Warp, i: &Instr) -> u32 {
    let mask = row(w, i.b);
    if let Err(s) = members(w, &mask) {
        return s;
    }
    let p = *w.preds.add(i.a as usize);
    let p = if i.x & 16 != 0 { !p } else { p } & w.m;
    if i.x & 3 == 3 {
        let mut r = [0; 32];
        r.iter_mut().zip(mask).for_each(|(r, k)| *r = p & k);
        u32::store(w.regs.add(i.d as usize), &r, w.m);
        return status::OK;
    }
    let mut bits = 0;
    for (l, k) in mask.iter().enumerate() {
        let (here, yes) = (k & w.m, p & k);
        let v = match i.x & 3 {
            0 => yes == here,
            1 => yes != 0,
            _ => yes == 0 || yes == here,
        };
        bits |= u32::from(v) << l;
    }
    set_pred(w, i.d, bits);
    status::OK
}

/// `match.sync`: value `a` (64 bits when `x` has bit 0), mask row `b`; bit 1 of `x`: match.all with predicate `xs[0]`.
pub unsafe fn matches(w: &mut Warp, i: &Instr) -> u32 {
    let mask = row(w, i.b);
    if let Err(s) = members(w, &mask) {
        return s;
    }
    let v = if i.x & 1 != 0 { u64::load(w.regs.add(i.a as usize)) } else { row(w, i.a).map(u64::from) };
    let (mut r, mut p) = ([0u32; 32], 0u32);
    for l in lanes(w.m) {
        let same = lanes(w.m & mask[l]).filter(|o| v[*o] == v[l]).fold(0u32, |s, o| s | 1 << o);
        if i.x & 2 != 0 {
            let all = same == w.m & mask[l];
            r[l] = if all { mask[l] } else { 0 };
            p |= u32::from(all) << l;
        } else {
            r[l] = same;
        }
    }
    u32::store(w.regs.add(i.d as usize), &r, w.m);
    let pred = *w.xs.add(i.xs as usize);
    if pred != NONE {
        set_pred(w, pred, p);
    }
    status::OK
}

/// `redux.sync`: value `a`, mask row `b`. `x`: 0 add, 1 and, 2 or, 3 xor, 4 min.u, 5 max.u, 6 min.s, 7 max.s.
pub unsafe fn reduce(w: &mut Warp, i: &Instr) -> u32 {
    let (v, mask) = (row(w, i.a), row(w, i.b));
    if let Err(s) = members(w, &mask) {
        return s;
    }
    let mut r = [0u32; 32];
    for l in lanes(w.m) {
        r[l] = lanes(w.m & mask[l])
            .map(|o| v[o])
            .reduce(|a, b| match i.x {
                0 => a.wrapping_add(b),
                1 => a & b,
                2 => a | b,
                3 => a ^ b,
                4 => a.min(b),
                5 => a.max(b),
                6 => (a as i32).min(b as i32) as u32,
                _ => (a as i32).max(b as i32) as u32,
            })
            .unwrap_or(0);
    }
    u32::store(w.regs.add(i.d as usize), &r, w.m);
    status::OK
}

/// `activemask`.
pub unsafe fn active_mask(w: &mut Warp, i: &Instr) -> u32 {
    u32::store(w.regs.add(i.d as usize), &[w.m; 32], w.m);
    status::OK
}

/// `elect.sync d|p, mask`: the lowest lane of the mask leads. Row `d` may be NONE; predicate `xs[0]`.
pub unsafe fn elect(w: &mut Warp, i: &Instr) -> u32 {
    let mask = row(w, i.b);
    if let Err(s) = members(w, &mask) {
        return s;
    }
    let (mut r, mut p) = ([0u32; 32], 0u32);
    for l in lanes(w.m) {
        r[l] = (mask[l] & w.m).trailing_zeros();
        p |= u32::from(r[l] == l as u32) << l;
    }
    if i.d != NONE {
        u32::store(w.regs.add(i.d as usize), &r, w.m);
    }
    let pred = *w.xs.add(i.xs as usize);
    if pred != NONE {
        set_pred(w, pred, p);
    }
    status::OK
}

/// `bar.warp.sync`: orders the memory accesses of the lanes in mask row `a`.
pub unsafe fn warp_barrier(w: &mut Warp, i: &Instr) -> u32 {
    let mask = row(w, i.a);
    if let Err(s) = members(w, &mask) {
        return s;
    }
    let id = w.id as usize;
    // A partial sync orders only some lanes; counting it for all can hide a race but never invents one.
    w.block().clocks[id][id] += 1;
    status::OK
}

/// Barrier instructions: id row `a`, thread count row `b` or NONE, predicate `c` for reductions.
/// `x & 7`: 0 sync, 1 arrive, 2 red.popc, 3 red.and, 4 red.or; bit 3 negates the predicate.
pub unsafe fn barrier(w: &mut Warp, i: &Instr) -> u32 {
    let lane = (w.m.trailing_zeros() & 31) as usize;
    let id = row(w, i.a)[lane];
    let expected = if i.b == NONE { 0 } else { row(w, i.b)[lane] };
    let mut value = 0;
    if i.x & 7 >= 2 {
        value = *w.preds.add(i.c as usize);
        if i.x & 8 != 0 {
            value = !value;
        }
    }
    let warp = w.id;
    w.block().arrive(warp, id, expected, i.x & 7 != 1, value)
}

/// Writes the result of a completed bar.red into a warp that waited for it.
pub unsafe fn finish_reduction(w: &mut Warp, i: &Instr, count: u32, and: bool, or: bool) {
    let m = w.live;
    match i.x & 7 {
        2 => u32::store(w.regs.add(i.d as usize), &[count; 32], m),
        x @ (3 | 4) => {
            let v = if x == 3 { and } else { or };
            let d = &mut *w.preds.add(i.d as usize);
            *d = (*d & !m) | if v { m } else { 0 };
        }
        _ => {}
    }
}
