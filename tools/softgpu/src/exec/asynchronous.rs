//! Asynchronous copies and the barriers that wait for them: cp.async, cp.async.bulk (1-D), mbarrier.
//! In: addresses. Out: bytes in shared memory, at the wait. Owns: copies in flight, mbarrier phases.
//! Not here: race records (`shared`).
//! Source: PTX ISA, "cp.async", "cp.async.bulk", "mbarrier".
//!
//! Bytes are read when the copy is issued and land when the issuing thread waits for their group (cp.async), or when a thread
//! sees the phase of their mbarrier complete (bulk). Until then the destination is in flight: any other access is a fault.

use super::fault::FaultKind;
use super::lanes::Lane;
use super::memory::{Touch, addresses, global_access, lanes, shared_access};
use super::shared::Access;
use super::status;
use super::warp::Warp;
use crate::ir::{Instr, NONE};
use crate::memory::SHARED_WINDOW;
use crate::multiversion;
use std::collections::BTreeMap;

/// One cp.async instruction of a warp.
struct Copy {
    mask: u32,
    bytes: u32,
    pc: u32,
    to: [u32; 32],
    group: [u32; 32],
    data: [u128; 32],
}

/// Copies of a warp that have not landed.
#[derive(Default)]
pub struct Copies {
    flying: Vec<Box<Copy>>,
    spare: Vec<Box<Copy>>,
    /// Groups each lane has committed.
    committed: [u32; 32],
}

impl Copies {
    /// Forgets everything.
    pub fn clear(&mut self) {
        self.spare.append(&mut self.flying);
        self.committed = [0; 32];
    }
}

/// `cp.async`: shared address row `a`, global address row `b`, source size row `c` or NONE, `x` the `MemOp` (its size is
/// cp-size), `xs[0]` = 1 when addresses of shared memory are 64 bits wide.
#[inline(always)]
unsafe fn copy_body(w: &mut Warp, i: &Instr) -> u32 {
    let op = w.block().launch().kernel.mems[i.x as usize];
    let mut to = addresses(w, i.a, op.wide_address, op.offset);
    if op.wide_address {
        to.iter_mut().for_each(|v| {
            if *v >= SHARED_WINDOW {
                *v -= SHARED_WINDOW;
            }
        });
    }
    // The global operand's own offset is in the second extra word.
    let offset = *w.xs.add(i.xs as usize) as i32;
    let from = addresses(w, i.b, true, i64::from(offset));
    let sizes = if i.c == NONE { [op.size; 32] } else { u32::load(w.regs.add(i.c as usize)) };
    let m = w.m;
    let whole = lanes(m).filter(|l| sizes[*l] == op.size).fold(0u32, |s, l| s | 1 << l);
    if whole != 0
        && let Err(s) = global_access(w, i.x as usize, &from, whole, op.size, Touch::Read)
    {
        return s;
    }
    let mut record = w
        .copies
        .spare
        .pop()
        .unwrap_or_else(|| Box::new(Copy { mask: 0, bytes: 0, pc: 0, to: [0; 32], group: [0; 32], data: [0; 32] }));
    (record.mask, record.bytes, record.pc) = (m, op.size, w.pc);
    for l in lanes(m) {
        let n = sizes[l];
        if n > op.size {
            let detail = format!("source size {n} is larger than the copy's {} bytes", op.size);
            return w.fault(FaultKind::BadOperand, l as u32, Some(from[l]), detail);
        }
        if n != op.size && n != 0 {
            // The rest of the copy is zeros; only these bytes must exist.
            let count = std::mem::replace(&mut w.block().count, false);
            for b in 0..u64::from(n) {
                let mut a = [0; 32];
                a[l] = from[l] + b;
                if let Err(s) = global_access(w, i.x as usize, &a, 1 << l, 1, Touch::Read) {
                    return s;
                }
            }
            w.block().count = count;
        }
        record.data[l] = 0;
        std::ptr::copy_nonoverlapping(from[l] as *const u8, (&raw mut record.data[l]).cast(), n as usize);
        record.to[l] = to[l] as u32;
        record.group[l] = w.copies.committed[l];
    }
    if let Err(s) = shared_access(w, &to, m, op.size, Access::AsyncIssue, None) {
        return s;
    }
    w.copies.flying.push(record);
    status::OK
}

/// `cp.async.commit_group`.
pub unsafe fn commit(w: &mut Warp, _: &Instr) -> u32 {
    let m = w.m;
    lanes(m).for_each(|l| w.copies.committed[l] += 1);
    status::OK
}

multiversion!(pub copy[][] = copy_body);
multiversion!(pub wait[][] = wait_body);

/// `cp.async.wait_group N` (`x` = N) and `wait_all` (`x` = NONE).
#[inline(always)]
unsafe fn wait_body(w: &mut Warp, i: &Instr) -> u32 {
    let m = w.m;
    let mut at = 0;
    while at < w.copies.flying.len() {
        let c = &w.copies.flying[at];
        let ready = lanes(m & c.mask)
            .filter(|l| i.x == NONE || c.group[*l] + i.x < w.copies.committed[*l])
            .fold(0u32, |s, l| s | 1 << l);
        if ready == 0 {
            at += 1;
            continue;
        }
        let (to, bytes) = (c.to.map(u64::from), c.bytes);
        if let Err(s) = shared_access(w, &to, ready, bytes, Access::AsyncLand, None) {
            return s;
        }
        let base = w.block().shared.pointer();
        let c = &mut w.copies.flying[at];
        for l in lanes(ready) {
            let from = (&raw const c.data[l]).cast::<u8>();
            std::ptr::copy_nonoverlapping(from, base.add(to[l] as usize), bytes as usize);
        }
        c.mask &= !ready;
        if c.mask == 0 {
            let done = w.copies.flying.remove(at);
            w.copies.spare.push(done);
        } else {
            at += 1;
        }
    }
    status::OK
}

/// A bulk copy that waits for its phase.
struct Bulk {
    to: u32,
    warp: u32,
    lane: u32,
    pc: u32,
    bytes: Vec<u8>,
}

/// One mbarrier.
#[derive(Default)]
struct Mbarrier {
    count: u32,
    pending: u32,
    phase: u64,
    bytes: i64,
    /// Someone arrived in this phase: with no arrival expected any more, nothing completes by itself.
    arrived: bool,
    clocks: [u32; 32],
    /// Join of the clocks of the last completed phase.
    released: [u32; 32],
    flying: Vec<Bulk>,
    landed: Vec<Bulk>,
}

/// mbarriers of a block by shared offset.
#[derive(Default)]
pub struct Mbarriers {
    by_offset: BTreeMap<u32, Mbarrier>,
}

impl Mbarriers {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.by_offset.clear();
    }
}

impl Mbarrier {
    fn settle(&mut self) {
        if self.pending == 0 && self.bytes == 0 && self.arrived {
            self.phase += 1;
            self.arrived = false;
            self.pending = self.count;
            self.released = std::mem::take(&mut self.clocks);
            self.landed.append(&mut self.flying);
        }
    }
}

/// What an mbarrier instruction does; `Instr::x`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
#[repr(u32)]
pub enum MbarrierOp {
    Init,
    Invalidate,
    Arrive,
    ArriveDrop,
    ArriveExpect,
    DropExpect,
    Expect,
    Complete,
    TestParity,
    TestState,
    TryParity,
    TryState,
}

/// All of them by number.
pub const MBARRIER_OPS: [MbarrierOp; 12] = [
    MbarrierOp::Init,
    MbarrierOp::Invalidate,
    MbarrierOp::Arrive,
    MbarrierOp::ArriveDrop,
    MbarrierOp::ArriveExpect,
    MbarrierOp::DropExpect,
    MbarrierOp::Expect,
    MbarrierOp::Complete,
    MbarrierOp::TestParity,
    MbarrierOp::TestState,
    MbarrierOp::TryParity,
    MbarrierOp::TryState,
];

unsafe fn shared_offsets(w: &Warp, i: &Instr) -> [u64; 32] {
    let wide = *w.xs.add(i.xs as usize) != 0;
    let offset = *w.xs.add(i.xs as usize + 1) as i32;
    let mut a = addresses(w, i.a, wide, i64::from(offset));
    a.iter_mut().for_each(|v| {
        if *v >= SHARED_WINDOW {
            *v -= SHARED_WINDOW;
        }
    });
    a
}

/// `mbarrier.*`: address row `a` (`xs` = wide, offset), operand row `b` (count, bytes, parity: 32 bits; state: 64), destination
/// `d` (state row, or predicate of the tests; NONE for none), `x` an `MbarrierOp`.
pub unsafe fn mbarrier(w: &mut Warp, i: &Instr) -> u32 {
    let op = MBARRIER_OPS[i.x as usize % MBARRIER_OPS.len()];
    let a = shared_offsets(w, i);
    let (id, m) = (w.id as usize, w.m);
    let limit = u64::from(w.block().shared.bytes);
    let mut failed = false;
    for l in lanes(m) {
        let at = a[l];
        if at % 8 != 0 || at + 8 > limit {
            let kind = if at % 8 != 0 { FaultKind::Misaligned } else { FaultKind::OutOfBounds };
            return w.fault(kind, l as u32, Some(at), format!("mbarrier object in {limit} bytes of shared memory"));
        }
        let operand = if i.b == NONE {
            1
        } else if op == MbarrierOp::TestState || op == MbarrierOp::TryState {
            u64::load(w.regs.add(i.b as usize))[l]
        } else {
            u64::from(u32::load(w.regs.add(i.b as usize))[l])
        };
        let mine = w.block().clocks[id];
        if op == MbarrierOp::Init {
            let b = Mbarrier { count: operand as u32, pending: operand as u32, ..Mbarrier::default() };
            w.block().mbarriers.by_offset.insert(at as u32, b);
            continue;
        }
        let Some(b) = w.block().mbarriers.by_offset.get_mut(&(at as u32)) else {
            let detail = "no mbarrier was initialised there".to_string();
            return w.fault(FaultKind::Uninitialised, l as u32, Some(at), detail);
        };
        let state = b.phase;
        let mut tested = None;
        match op {
            MbarrierOp::Init => {}
            MbarrierOp::Invalidate => {
                w.block().mbarriers.by_offset.remove(&(at as u32));
                continue;
            }
            MbarrierOp::Expect => b.bytes += operand as i64,
            MbarrierOp::Complete => b.bytes -= operand as i64,
            MbarrierOp::Arrive | MbarrierOp::ArriveDrop | MbarrierOp::ArriveExpect | MbarrierOp::DropExpect => {
                let expects = matches!(op, MbarrierOp::ArriveExpect | MbarrierOp::DropExpect);
                let n = if expects { 1 } else { operand as u32 };
                if expects {
                    b.bytes += operand as i64;
                }
                if n > b.pending {
                    let detail = format!("{n} arrivals, {} are pending in this phase", b.pending);
                    return w.fault(FaultKind::BarrierDivergence, l as u32, Some(at), detail);
                }
                b.pending -= n;
                b.arrived = true;
                if matches!(op, MbarrierOp::ArriveDrop | MbarrierOp::DropExpect) {
                    b.count = b.count.saturating_sub(n);
                }
                b.clocks.iter_mut().zip(mine).for_each(|(t, c)| *t = (*t).max(c));
                b.settle();
            }
            MbarrierOp::TestParity | MbarrierOp::TryParity => tested = Some(b.phase & 1 != operand & 1),
            MbarrierOp::TestState | MbarrierOp::TryState => tested = Some(b.phase > operand),
        }
        if op == MbarrierOp::Complete {
            b.settle();
        }
        if tested == Some(true) {
            let (released, landed) = (b.released, std::mem::take(&mut b.landed));
            let block = w.block();
            block.clocks[id].iter_mut().zip(released).for_each(|(t, c)| *t = (*t).max(c));
            for bulk in landed {
                let base = block.shared.pointer();
                std::ptr::copy_nonoverlapping(bulk.bytes.as_ptr(), base.add(bulk.to as usize), bulk.bytes.len());
                if block.check {
                    let who = (bulk.warp, bulk.lane, bulk.pc);
                    let n = bulk.bytes.len() as u32;
                    block.shared_access(who, bulk.to, n, Access::AsyncLand, std::ptr::null());
                }
            }
            block.clocks[id][id] += 1;
            // What landed is the issuer's write of before; whoever saw the phase complete is ordered after it.
            let top: Vec<u32> = (0..32).map(|v| block.clocks[v][v]).collect();
            for (v, t) in top.iter().enumerate() {
                if v != id && released[v] != 0 {
                    block.clocks[id][v] = block.clocks[id][v].max(*t);
                    block.clocks[v][v] += 1;
                }
            }
        }
        if tested.is_none() && op != MbarrierOp::Expect {
            w.block().clocks[id][id] += 1;
        }
        if i.d != NONE {
            if let Some(ok) = tested {
                failed |= !ok;
                let p = &mut *w.preds.add(i.d as usize);
                *p = (*p & !(1 << l)) | u32::from(ok) << l;
            } else {
                *(w.regs.add(i.d as usize) as *mut u64).add(l) = state;
            }
        }
    }
    if failed { status::YIELD } else { status::OK }
}

/// `cp.async.bulk.shared::cluster.global.mbarrier`: shared address row `a` (`xs` = wide, offset), global row `b`, size row `c`,
/// mbarrier row `xs[2]` (`xs[3]` = wide).
pub unsafe fn bulk_load(w: &mut Warp, i: &Instr) -> u32 {
    let to = shared_offsets(w, i);
    let from = addresses(w, i.b, true, i64::from(*w.xs.add(i.xs as usize + 4) as i32));
    let sizes = u32::load(w.regs.add(i.c as usize));
    let barriers = addresses(w, *w.xs.add(i.xs as usize + 2), *w.xs.add(i.xs as usize + 3) != 0, 0);
    let (id, pc) = (w.id, w.pc);
    for l in lanes(w.m) {
        let n = sizes[l];
        let at = if barriers[l] >= SHARED_WINDOW { barriers[l] - SHARED_WINDOW } else { barriers[l] };
        if n % 16 != 0 || from[l] % 16 != 0 || to[l] % 16 != 0 {
            let detail = format!("bulk copies need sizes and addresses that are multiples of 16; the size is {n}");
            return w.fault(FaultKind::Misaligned, l as u32, Some(from[l]), detail);
        }
        let limit = u64::from(w.block().shared.bytes);
        if to[l] + u64::from(n) > limit {
            let detail = format!("{n} bytes at shared offset {}, the block has {limit}", to[l]);
            return w.fault(FaultKind::OutOfBounds, l as u32, Some(to[l]), detail);
        }
        for b in (0..n).step_by(16) {
            let mut a = [0; 32];
            a[l] = from[l] + u64::from(b);
            // One slot of the cache serves all bulk copies: their allocations change seldom.
            if let Err(s) = global_access(w, i.x as usize, &a, 1 << l, 16, Touch::Read) {
                return s;
            }
        }
        if w.block().check
            && n != 0
            && let Some((kind, text)) =
                w.block().shared_access((id, l as u32, pc), to[l] as u32, n, Access::AsyncIssue, std::ptr::null())
        {
            return w.fault(kind, l as u32, Some(to[l]), text);
        }
        let bytes = std::slice::from_raw_parts(from[l] as *const u8, n as usize).to_vec();
        let mine = w.block().clocks[id as usize];
        let Some(b) = w.block().mbarriers.by_offset.get_mut(&(at as u32)) else {
            let detail = "no mbarrier was initialised there".to_string();
            return w.fault(FaultKind::Uninitialised, l as u32, Some(at), detail);
        };
        b.flying.push(Bulk { to: to[l] as u32, warp: id, lane: l as u32, pc, bytes });
        b.bytes -= i64::from(n);
        b.clocks.iter_mut().zip(mine).for_each(|(t, c)| *t = (*t).max(c));
        b.settle();
    }
    status::OK
}

/// `cp.async.bulk.global.shared::cta.bulk_group`: global row `a` (`xs` = wide, offset), shared row `b` (`xs[2]` = wide),
/// size row `c`. The bytes are written at once; waits for the group have nothing left to do.
pub unsafe fn bulk_store(w: &mut Warp, i: &Instr) -> u32 {
    let to = addresses(w, i.a, true, i64::from(*w.xs.add(i.xs as usize + 1) as i32));
    let from = addresses(w, i.b, *w.xs.add(i.xs as usize + 2) != 0, 0);
    let sizes = u32::load(w.regs.add(i.c as usize));
    for l in lanes(w.m) {
        let at = if from[l] >= SHARED_WINDOW { from[l] - SHARED_WINDOW } else { from[l] };
        for b in (0..sizes[l]).step_by(16) {
            let (mut g, mut s) = ([0; 32], [0; 32]);
            (g[l], s[l]) = (to[l] + u64::from(b), at + u64::from(b));
            if let Err(e) = shared_access(w, &s, 1 << l, 16, Access::Read, None) {
                return e;
            }
            if let Err(e) = global_access(w, i.x as usize, &g, 1 << l, 16, Touch::Write) {
                return e;
            }
            let base = w.block().shared.pointer();
            std::ptr::copy_nonoverlapping(base.add(s[l] as usize), g[l] as *mut u8, 16);
        }
    }
    status::OK
}
