//! Shared memory of a block and its race detector.
//! In: accesses with their lane and clock. Out: a fault text, or nothing. Owns: the access records.
//! Not here: addresses of lanes (`memory`), clocks (`block`).
//!
//! Each grain (the kernel's smallest shared access) has the last write and the last reads since it: warp, lane, clock. Two
//! accesses by different threads, one of them a write, must be ordered: by a barrier (vector clocks), or within one warp by a
//! warp-level sync (the warp's own clock). A write of the value that is already there is no race: no order changes the result.

use super::block::{Block, Line};
use super::fault::FaultKind;
use crate::exec::fault::place;

const ATOMIC: u32 = 1 << 10;
const IN_FLIGHT: u32 = 1 << 11;
const MANY_LANES: u32 = 1 << 10;
const CLOCK_SHIFT: u32 = 12;
/// Clocks beyond this start over with empty records.
const CLOCK_LIMIT: u32 = (1 << 20) - (1 << 12);

/// How an access counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An atomic read-modify-write.
    Atomic,
    /// The issue of a cp.async: a write that lands later.
    AsyncIssue,
    /// The landing of a cp.async.
    AsyncLand,
}

/// Shared memory with records.
#[derive(Default)]
pub struct SharedMemory {
    memory: Vec<Line>,
    /// Bytes in use.
    pub bytes: u32,
    grain: u32,
    writes: Vec<u32>,
    /// The last read: lane, warp, `MANY_LANES` when others read too, the highest clock of them all.
    reads: Vec<u32>,
    /// Warps of those reads.
    readers: Vec<u32>,
    write_pc: Vec<u32>,
    read_pc: Vec<u32>,
    initialised: Vec<u8>,
    clock: u32,
    check: bool,
}

impl SharedMemory {
    /// Sizes the buffers for a launch.
    pub fn prepare(&mut self, bytes: u32, grain: u32, check: bool) {
        self.memory.resize(bytes as usize / 64 + 2, Line([0; 64]));
        let grains = if check { (bytes >> grain) as usize + 1 } else { 0 };
        (self.bytes, self.grain, self.check) = (bytes, grain, check);
        self.clock = 0;
        self.writes.clear();
        self.reads.clear();
        self.writes.resize(grains, 0);
        self.reads.resize(grains, 0);
        self.readers.resize(grains, 0);
        self.write_pc.resize(grains, 0);
        self.read_pc.resize(grains, 0);
        self.initialised.resize(grains, 0);
    }

    /// Start of the memory.
    #[inline(always)]
    pub fn pointer(&mut self) -> *mut u8 {
        self.memory.as_mut_ptr().cast()
    }

    /// The clock a new block starts from.
    pub fn next_clock(&mut self) -> u32 {
        if self.clock > CLOCK_LIMIT / 2 {
            self.writes.fill(0);
            self.reads.fill(0);
            self.clock = 0;
        }
        self.clock
    }

    /// Remembers the highest clock of a block that ended.
    pub fn retire(&mut self, clock: u32) {
        self.clock = clock + 1;
    }

    /// Contents become uninitialised again; an unchecked block sees whatever the last one left, as on a GPU.
    pub fn clear(&mut self) {
        self.initialised.fill(0);
        if self.check {
            // Flights of an earlier block that no one waited for are over.
            self.writes.iter_mut().for_each(|w| *w &= !IN_FLIGHT);
        }
    }

    /// log2 bytes of a record.
    pub fn grain(&self) -> u32 {
        self.grain
    }
}

/// What a warp knows of the others' clocks: up to `floor` everything anyone did is ordered before it, above `ceiling` nothing is.
#[derive(Clone, Copy)]
pub struct Epoch {
    floor: u32,
    ceiling: u32,
    now: u32,
}

impl SharedMemory {
    /// Records an access of `N` grains when it is plainly in order. False leaves it to the exact rules, with nothing recorded.
    #[inline(always)]
    unsafe fn plain<const N: usize>(&mut self, e: Epoch, first: usize, me: u32, pc: u32, access: Access) -> bool {
        let writes = &mut *self.writes.as_mut_ptr().add(first).cast::<[u32; N]>();
        let reads = &mut *self.reads.as_mut_ptr().add(first).cast::<[u32; N]>();
        let initialised = &mut *self.initialised.as_mut_ptr().add(first).cast::<[u8; N]>();
        let mut bad = 0u32;
        match access {
            Access::Read => {
                for g in 0..N {
                    let then = reads[g] >> CLOCK_SHIFT;
                    bad |= u32::from(writes[g] >> CLOCK_SHIFT > e.floor) | (writes[g] & IN_FLIGHT);
                    bad |= u32::from(initialised[g] == 0) | u32::from(then > e.floor && then <= e.ceiling);
                }
                if bad != 0 {
                    return false;
                }
                let readers = &mut *self.readers.as_mut_ptr().add(first).cast::<[u32; N]>();
                let bit = 1u32 << (me >> 5);
                for g in 0..N {
                    let (rd, then) = (reads[g], reads[g] >> CLOCK_SHIFT);
                    let fresh = then <= e.floor;
                    let many = if rd & 1023 != me || rd & MANY_LANES != 0 { MANY_LANES } else { 0 };
                    let joined = me | many | e.now.max(then) << CLOCK_SHIFT;
                    reads[g] = if fresh { me | e.now << CLOCK_SHIFT } else { joined };
                    readers[g] = if fresh { bit } else { readers[g] | bit };
                }
                *self.read_pc.as_mut_ptr().add(first).cast::<[u32; N]>() = [pc; N];
            }
            Access::Write | Access::AsyncIssue => {
                for g in 0..N {
                    bad |= u32::from(writes[g] >> CLOCK_SHIFT > e.floor) | (writes[g] & IN_FLIGHT);
                    bad |= u32::from(reads[g] >> CLOCK_SHIFT > e.floor);
                }
                if bad != 0 {
                    return false;
                }
                let flag = if access == Access::AsyncIssue { IN_FLIGHT } else { 0 };
                *writes = [me | flag | e.now << CLOCK_SHIFT; N];
                *initialised = [1; N];
                *self.write_pc.as_mut_ptr().add(first).cast::<[u32; N]>() = [pc; N];
            }
            Access::AsyncLand => {
                // The issuer's own flight.
                for g in 0..N {
                    bad |= (writes[g] & 1023) ^ me;
                }
                if bad != 0 {
                    return false;
                }
                *writes = [me | e.now << CLOCK_SHIFT; N];
                *initialised = [1; N];
                *self.write_pc.as_mut_ptr().add(first).cast::<[u32; N]>() = [pc; N];
            }
            Access::Atomic => return false,
        }
        true
    }

    /// `plain` for an access of `bytes` at `offset`, inside shared memory.
    #[inline(always)]
    pub unsafe fn plainly(&mut self, e: Epoch, offset: u32, bytes: u32, me: u32, pc: u32, access: Access) -> bool {
        let first = (offset >> self.grain) as usize;
        match bytes >> self.grain {
            1 => self.plain::<1>(e, first, me, pc, access),
            2 => self.plain::<2>(e, first, me, pc, access),
            4 => self.plain::<4>(e, first, me, pc, access),
            8 => self.plain::<8>(e, first, me, pc, access),
            _ => false,
        }
    }
}

impl Block {
    /// What a warp knows now. `None` when clocks are about to start over.
    #[inline(always)]
    pub fn epoch(&self, warp: u32) -> Option<Epoch> {
        let known = &self.clocks[warp as usize];
        let now = known[warp as usize];
        // Its own accesses are ordered by the clock before this one.
        let (mut floor, mut ceiling) = (now.wrapping_sub(1), now.wrapping_sub(1));
        for (v, c) in known[..self.num_warps].iter().enumerate() {
            let c = if v as u32 == warp { now.wrapping_sub(1) } else { *c };
            (floor, ceiling) = (floor.min(c), ceiling.max(c));
        }
        (now > 0 && now < CLOCK_LIMIT).then_some(Epoch { floor, ceiling, now })
    }

    /// Checks and records one lane's access to `bytes` bytes at `offset`; `new` points at the bytes of a write.
    /// Returns what is wrong. The range is inside shared memory and aligned to the grain.
    ///
    /// # Safety
    /// `new` is readable for `bytes` when it is not null.
    pub unsafe fn shared_access(
        &mut self,
        (warp, lane, pc): (u32, u32, u32),
        offset: u32,
        bytes: u32,
        access: Access,
        new: *const u8,
    ) -> Option<(FaultKind, String)> {
        let w = warp as usize;
        let now = self.clocks[w][w];
        if now >= CLOCK_LIMIT {
            // A block with a million barriers: forget what was recorded rather than wrap.
            self.shared.writes.fill(0);
            self.shared.reads.fill(0);
            for (i, row) in self.clocks.iter_mut().enumerate() {
                *row = [0; 32];
                row[i] = 1;
            }
        }
        let me = lane | warp << 5;
        let known = &self.clocks[w];
        let now = known[w];
        let s = &mut self.shared;
        let grain = s.grain;
        let (first, last) = (offset >> grain, (offset + bytes - 1) >> grain);
        let mut problem = None;
        for g in first..=last {
            let g = g as usize;
            let wr = *s.writes.get_unchecked(g);
            let at = ((g as u32) << grain).wrapping_sub(offset);
            // Last write against this access.
            if wr != 0 {
                let (by, then) = (wr & 1023, wr >> CLOCK_SHIFT);
                if wr & IN_FLIGHT != 0 && access != Access::AsyncLand {
                    problem = Some((FaultKind::MissingAsyncWait, g, by, s.write_pc[g]));
                    break;
                }
                let ordered = by == me
                    || if by >> 5 == warp { then < now } else { then <= *known.get_unchecked((by >> 5) as usize) };
                if !ordered && !(access == Access::Atomic && wr & ATOMIC != 0) {
                    let same = !new.is_null() && {
                        let p = s.memory.as_ptr().cast::<u8>().add(g << grain);
                        let n = 1usize << grain;
                        (0..n).all(|b| *p.add(b) == *new.add(at as usize + b))
                    };
                    if !same {
                        problem = Some((FaultKind::SharedRace, g, by, s.write_pc[g]));
                        break;
                    }
                }
            }
            let rd = *s.reads.get_unchecked(g);
            if access == Access::Read {
                if *s.initialised.get_unchecked(g) == 0 {
                    problem = Some((FaultKind::Uninitialised, g, 0, 0));
                    break;
                }
                let readers = *s.readers.get_unchecked(g);
                let rec = me | now << CLOCK_SHIFT;
                if rd == rec && readers == 1 << warp {
                    continue;
                }
                let fresh = rd == 0 || ordered_reads(known, rd, readers, warp, NONE_LANE);
                let (next, mask) = if fresh {
                    (rec, 1 << warp)
                } else {
                    let many = if rd & 1023 != me || rd & MANY_LANES != 0 { MANY_LANES } else { 0 };
                    (me | many | now.max(rd >> CLOCK_SHIFT) << CLOCK_SHIFT, readers | 1 << warp)
                };
                *s.readers.get_unchecked_mut(g) = mask;
                *s.reads.get_unchecked_mut(g) = next;
                *s.read_pc.get_unchecked_mut(g) = pc;
                continue;
            }
            // A write against the reads before it.
            if rd != 0 && access != Access::AsyncLand {
                let ordered = ordered_reads(known, rd, *s.readers.get_unchecked(g), warp, lane);
                if !ordered {
                    let same = !new.is_null() && access != Access::AsyncIssue && {
                        let p = s.memory.as_ptr().cast::<u8>().add(g << grain);
                        (0..1usize << grain).all(|b| *p.add(b) == *new.add(at as usize + b))
                    };
                    if !same {
                        problem = Some((FaultKind::SharedRace, g, rd & 1023, s.read_pc[g] | 1 << 31));
                        break;
                    }
                }
            }
            let flag = match access {
                Access::Atomic => ATOMIC,
                Access::AsyncIssue => IN_FLIGHT,
                _ => 0,
            };
            if access == Access::Atomic && *s.initialised.get_unchecked(g) == 0 {
                problem = Some((FaultKind::Uninitialised, g, 0, 0));
                break;
            }
            *s.writes.get_unchecked_mut(g) = me | flag | now << CLOCK_SHIFT;
            *s.write_pc.get_unchecked_mut(g) = pc;
            *s.initialised.get_unchecked_mut(g) = 1;
        }
        let (kind, g, by, at) = problem?;
        let k = self.launch().kernel;
        let what = match kind {
            FaultKind::Uninitialised => format!("shared offset {} was never written by this block", g << grain),
            FaultKind::MissingAsyncWait => format!(
                "the cp.async of thread {} at {} has not been waited for by that thread (cp.async.wait_group, then a barrier)",
                self.thread_name(by),
                place(k, at)
            ),
            _ => format!(
                "shared offset {} was {} by thread {} at {} and no barrier orders the two accesses",
                g << grain,
                if at >> 31 != 0 { "read" } else { "written" },
                self.thread_name(by),
                place(k, at & !(1 << 31))
            ),
        };
        let var = k.shared_vars.iter().find(|(_, o, n)| (g as u32) << grain >= *o && ((g as u32) << grain) < o + n);
        let var = var.map(|(n, o, _)| format!(" (`{n}` + {})", ((g as u32) << grain) - o)).unwrap_or_default();
        Some((kind, what + &var))
    }
}

/// No lane: reads by the own warp are ordered by clock alone.
const NONE_LANE: u32 = 32;

/// True when every recorded read happened before what (`warp`, `lane`) does now.
#[inline(always)]
fn ordered_reads(known: &[u32; 32], rd: u32, readers: u32, warp: u32, lane: u32) -> bool {
    let then = rd >> CLOCK_SHIFT;
    if readers == 1 << warp {
        return then < known[warp as usize] || (rd & MANY_LANES == 0 && rd & 31 == lane);
    }
    let mut left = readers;
    while left != 0 {
        let v = left.trailing_zeros();
        left &= left - 1;
        let before = if v == warp { then < known[v as usize] } else { then <= known[v as usize] };
        if !before {
            return false;
        }
    }
    true
}
