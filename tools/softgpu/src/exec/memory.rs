//! Loads and stores.
//! In: address registers. Out: data registers, or a fault. Owns: address resolution, bounds, alignment, initialisation checks,
//! sector and bank counting. Not here: shared-memory races (`shared`), atomics (`atomics`), cp.async (`asynchronous`).

use super::fault::FaultKind;
use super::shared::Access;
use super::status;
use super::warp::Warp;
use crate::ir::{Instr, MemOp, NONE};
use crate::memory::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW_BYTES};
use crate::multiversion;
use crate::ptx::Space;

/// Addresses of the lanes of an instruction.
#[inline(always)]
pub unsafe fn addresses(w: &Warp, row: u32, wide: bool, offset: i64) -> [u64; 32] {
    let p = w.regs.add(row as usize);
    let mut r = [0u64; 32];
    if wide {
        let a = *(p as *const [u64; 32]);
        for l in 0..32 {
            r[l] = a[l].wrapping_add(offset as u64);
        }
    } else {
        let a = *(p as *const [u32; 32]);
        for l in 0..32 {
            r[l] = u64::from(a[l].wrapping_add(offset as u32));
        }
    }
    r
}

/// The space a generic address lies in, and its offset there.
pub fn resolve(address: u64) -> (Space, u64) {
    for (space, base) in [(Space::Shared, SHARED_WINDOW), (Space::Local, LOCAL_WINDOW), (Space::Param, PARAM_WINDOW)] {
        let off = address.wrapping_sub(base);
        if off < WINDOW_BYTES {
            return (space, off);
        }
    }
    (Space::Global, address)
}

/// Lanes of `m` whose generic addresses lie in the same space as the first one's; addresses become offsets in it.
fn split_generic(a: &mut [u64; 32], m: u32) -> (Space, u32) {
    let (space, _) = resolve(a[(m.trailing_zeros() & 31) as usize]);
    let mut same = 0;
    for (l, v) in a.iter_mut().enumerate() {
        if m >> l & 1 != 0 {
            let (s, off) = resolve(*v);
            if s == space {
                same |= 1 << l;
                *v = off;
            }
        }
    }
    (space, same)
}

/// Lanes in order.
pub fn lanes(mut m: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if m == 0 {
            return None;
        }
        let l = m.trailing_zeros() as usize;
        m &= m - 1;
        Some(l)
    })
}

/// What an access does to memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Touch {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Reads and writes.
    Both,
}

/// Checks a global access and, when asked to, counts its sectors. Addresses stay as they are: they are host addresses.
#[inline(always)]
pub unsafe fn global_access(
    w: &mut Warp,
    slot: usize,
    a: &[u64; 32],
    m: u32,
    bytes: u32,
    touch: Touch,
) -> Result<(), u32> {
    let (mut low, mut high, mut bits) = (u64::MAX, 0u64, 0u64);
    if m == u32::MAX {
        for v in a {
            (low, high, bits) = (low.min(*v), high.max(*v), bits | v);
        }
    } else {
        for l in lanes(m) {
            (low, high, bits) = (low.min(a[l]), high.max(a[l]), bits | a[l]);
        }
    }
    let align = u64::from(bytes.min(16));
    if bits & (align - 1) != 0 {
        let l = lanes(m).find(|l| a[*l] & (align - 1) != 0).unwrap_or(0);
        let detail = format!("an access of {bytes} bytes needs an address that is a multiple of {align}");
        return Err(w.fault(FaultKind::Misaligned, l as u32, Some(a[l]), detail));
    }
    let size = u64::from(bytes);
    let (mut start, mut end, mut init) = w.block().cache[slot];
    if low < start || high.saturating_add(size) > end {
        let view = w.block().launch().view;
        if let Some(r) = view.find(low) {
            (start, end, init) = (r.start, r.end, r.init_end);
            w.block().cache[slot] = (start, end, init);
        }
        if low < start || high.saturating_add(size) > end {
            // Lanes in several allocations, or outside all.
            init = 0;
            for l in lanes(m) {
                if !view.find(a[l]).is_some_and(|r| a[l].saturating_add(size) <= r.end) {
                    return Err(bounds_fault(w, l, a[l], size));
                }
            }
        }
    }
    if w.block().check {
        let view = &w.block().launch().view;
        if touch == Touch::Read || touch == Touch::Both {
            if high + size > init {
                for l in lanes(m) {
                    let s = view.shadow(a[l]);
                    if let Some(b) = (0..bytes as usize).find(|b| *s.add(*b) == 0) {
                        let detail = format!("byte {b} of the {bytes} read here was never written");
                        return Err(w.fault(FaultKind::Uninitialised, l as u32, Some(a[l]), detail));
                    }
                }
            }
        } else if high + size > init {
            for l in lanes(m) {
                std::ptr::write_bytes(view.shadow(a[l]), 1, bytes as usize);
            }
        }
    }
    if w.block().count {
        count_sectors(w, a, m, bytes, touch);
    }
    Ok(())
}

#[cold]
unsafe fn bounds_fault(w: &mut Warp, l: usize, address: u64, size: u64) -> u32 {
    let view = w.block().launch().view;
    if let Some(r) = view.was_freed(address)
        && view.find(address).is_none()
    {
        let detail =
            format!("{size} bytes in an allocation of {} bytes at {:#x} that was freed", r.end - r.start, r.start);
        return w.fault(FaultKind::UseAfterFree, l as u32, Some(address), detail);
    }
    let detail = match view.find(address) {
        Some(r) => format!(
            "{size} bytes begin inside the allocation of {} bytes at {:#x} and end behind it",
            r.end - r.start,
            r.start
        ),
        None => format!("{size} bytes, {}", view.describe(address)),
    };
    w.fault(FaultKind::OutOfBounds, l as u32, Some(address), detail)
}

/// Distinct 32-byte sectors of a warp's access, the least number its bytes need, and first touches for the L2 counters.
unsafe fn count_sectors(w: &mut Warp, a: &[u64; 32], m: u32, bytes: u32, touch: Touch) {
    let mut sectors: [u64; 64] = [0; 64];
    let mut spans: [(u64, u64); 32] = [(0, 0); 32];
    let (mut n, mut active) = (0, 0);
    for l in lanes(m) {
        spans[active] = (a[l], a[l] + u64::from(bytes));
        active += 1;
        // An aligned access of up to 32 bytes lies in one sector; 16-byte elements never straddle.
        let first = a[l] / 32;
        let last = (a[l] + u64::from(bytes) - 1) / 32;
        for s in first..=last {
            if n == 0 || !sectors[..n].contains(&s) {
                sectors[n.min(63)] = s;
                n = (n + 1).min(64);
            }
        }
    }
    // Bytes asked for, each counted once: the least number of sectors is these packed tightly.
    let spans = &mut spans[..active];
    if !spans.is_sorted() {
        spans.sort_unstable();
    }
    let (mut distinct, mut end) = (0, 0);
    for (s, e) in spans.iter() {
        distinct += e.saturating_sub((*s).max(end));
        end = end.max(*e);
    }
    let pc = w.pc as usize;
    let block = w.block();
    let view = block.launch().view;
    let c = &mut *block.counts.add(pc);
    c.requests += 1;
    c.sectors += n as u64;
    c.sectors_min += distinct.div_ceil(32);
    for s in &sectors[..n] {
        if touch != Touch::Write {
            c.unique_read += u64::from(view.touch(s * 32, false));
        }
        if touch != Touch::Read {
            c.unique_written += u64::from(view.touch(s * 32, true));
        }
    }
}

/// Checks a shared access: bounds, alignment, races; counts bank conflicts. `new[l]` points at the bytes lane l writes.
#[inline(always)]
pub unsafe fn shared_access(
    w: &mut Warp,
    a: &[u64; 32],
    m: u32,
    bytes: u32,
    access: Access,
    new: Option<&[*const u8; 32]>,
) -> Result<(), u32> {
    let size = u64::from(w.block().shared.bytes);
    let mut bad = 0u32;
    let align = u64::from(bytes.min(16)) - 1;
    for l in 0..32 {
        let out = a[l].saturating_add(u64::from(bytes)) > size || a[l] & align != 0;
        bad |= u32::from(out) << l;
    }
    if bad & m != 0 {
        let l = (bad & m).trailing_zeros() as usize;
        if a[l] & align != 0 {
            let detail =
                format!("a shared access of {bytes} bytes needs an offset that is a multiple of {}", align + 1);
            return Err(w.fault(FaultKind::Misaligned, l as u32, Some(a[l]), detail));
        }
        let detail = format!("{bytes} bytes at shared offset {}, the block has {size} bytes of shared memory", a[l]);
        return Err(w.fault(FaultKind::OutOfBounds, l as u32, Some(a[l]), detail));
    }
    if w.block().check {
        let (id, pc) = (w.id, w.pc);
        let epoch = w.block().epoch(id);
        for l in lanes(m) {
            if let Some(e) = epoch
                && w.block().shared.plainly(e, a[l] as u32, bytes, l as u32 | id << 5, pc, access)
            {
                continue;
            }
            let p = new.map_or(std::ptr::null(), |n| n[l]);
            if let Some((kind, text)) = w.block().shared_access((id, l as u32, pc), a[l] as u32, bytes, access, p) {
                return Err(w.fault(kind, l as u32, Some(a[l]), text));
            }
        }
    }
    if w.block().count && access != Access::AsyncLand {
        let (actual, least) = wavefronts(a, m, bytes);
        let pc = w.pc as usize;
        let c = &mut *w.block().counts.add(pc);
        c.wavefronts += u64::from(actual);
        c.wavefronts_min += u64::from(least);
    }
    Ok(())
}

/// Passes through the 32 banks of 4 bytes: a request goes by whole warps for up to 4 bytes a lane, by halves for 8, by quarters
/// for 16; within a group, distinct words of one bank take turns. Returns the passes and the least possible.
pub fn wavefronts(a: &[u64; 32], m: u32, bytes: u32) -> (u32, u32) {
    let group = if bytes <= 4 { 32 } else { 128 / bytes.min(16) };
    let (mut actual, mut least) = (0, 0);
    for first in (0..32).step_by(group as usize) {
        let mut words: [u64; 32] = [0; 32];
        let (mut n, mut per_bank, mut top) = (0usize, [0u8; 32], 0u8);
        for l in lanes(m).filter(|l| (first..first + group as usize).contains(l)) {
            for word in a[l] / 4..(a[l] + u64::from(bytes)).div_ceil(4) {
                if (n == 0 || words[n - 1] != word) && !words[..n].contains(&word) {
                    words[n & 31] = word;
                    n += 1;
                    let bank = (word & 31) as usize;
                    per_bank[bank] += 1;
                    top = top.max(per_bank[bank]);
                }
            }
        }
        actual += u32::from(top);
        least += (n as u32).div_ceil(32);
    }
    (actual, least)
}

/// Checks local accesses and turns frame offsets into host addresses.
unsafe fn local_access(w: &mut Warp, a: &mut [u64; 32], m: u32, bytes: u32) -> Result<(), u32> {
    let kernel = w.block().launch().kernel;
    let (frame, used) = (u64::from(kernel.local_bytes), u64::from(kernel.local_used));
    for l in lanes(m) {
        let align = u64::from(bytes.min(16));
        if a[l] % align != 0 {
            let detail = format!("a local access of {bytes} bytes needs an offset that is a multiple of {align}");
            return Err(w.fault(FaultKind::Misaligned, l as u32, Some(a[l]), detail));
        }
        if a[l].saturating_add(u64::from(bytes)) > used {
            let detail = format!("{bytes} bytes at local offset {}, the thread has {used} bytes of local memory", a[l]);
            return Err(w.fault(FaultKind::OutOfBounds, l as u32, Some(a[l]), detail));
        }
        a[l] += w.local as u64 + l as u64 * frame;
    }
    Ok(())
}

unsafe fn param_access(w: &mut Warp, a: &mut [u64; 32], m: u32, bytes: u32) -> Result<(), u32> {
    let params = w.block().launch().params;
    for l in lanes(m) {
        if a[l].saturating_add(u64::from(bytes)) > params.len() as u64 {
            let detail = format!("{bytes} bytes at parameter offset {}, the kernel has {}", a[l], params.len());
            return Err(w.fault(FaultKind::OutOfBounds, l as u32, Some(a[l]), detail));
        }
        a[l] += params.as_ptr() as u64;
    }
    Ok(())
}

/// Whether lane l is at `a[0] + l * step`.
#[inline(always)]
fn in_a_row(a: &[u64; 32], step: u64) -> bool {
    let mut off = 0;
    for l in 0..32 {
        off |= a[l] ^ a[0].wrapping_add(l as u64 * step);
    }
    off == 0
}

/// Moves elements of `n` bytes from memory into the register row at `d`.
#[inline(always)]
unsafe fn fetch(w: &Warp, op: &MemOp, d: u32, a: &[u64; 32], at: u64, m: u32) {
    if d == NONE {
        return;
    }
    let p = w.regs.add(d as usize);
    if op.size == 4 && !op.wide {
        let to = p as *mut u32;
        if m == u32::MAX {
            if in_a_row(a, 4) {
                *(to as *mut [u32; 32]) = ((a[0] + at) as *const [u32; 32]).read_unaligned();
                return;
            }
            for l in 0..32 {
                *to.add(l) = ((a[l] + at) as *const u32).read_unaligned();
            }
            return;
        }
        for l in lanes(m) {
            *to.add(l) = ((a[l] + at) as *const u32).read_unaligned();
        }
        return;
    }
    for l in lanes(m) {
        let q = a[l] + at;
        let v = match (op.size, op.signed) {
            (1, false) => u64::from(*(q as *const u8)),
            (1, true) => *(q as *const i8) as i64 as u64,
            (2, false) => u64::from((q as *const u16).read_unaligned()),
            (2, true) => (q as *const i16).read_unaligned() as i64 as u64,
            (4, false) => u64::from((q as *const u32).read_unaligned()),
            (4, true) => (q as *const i32).read_unaligned() as i64 as u64,
            _ => (q as *const u64).read_unaligned(),
        };
        if op.wide {
            *(p as *mut u64).add(l) = v;
        } else {
            *(p as *mut u32).add(l) = v as u32;
        }
    }
}

#[inline(always)]
unsafe fn put(w: &Warp, op: &MemOp, s: u32, a: &[u64; 32], at: u64, m: u32) {
    let p = w.regs.add(s as usize);
    if op.size == 4 && !op.wide {
        let from = p as *const u32;
        if m == u32::MAX {
            if in_a_row(a, 4) {
                ((a[0] + at) as *mut [u32; 32]).write_unaligned(*(from as *const [u32; 32]));
                return;
            }
            for l in 0..32 {
                ((a[l] + at) as *mut u32).write_unaligned(*from.add(l));
            }
            return;
        }
        for l in lanes(m) {
            ((a[l] + at) as *mut u32).write_unaligned(*from.add(l));
        }
        return;
    }
    for l in lanes(m) {
        let q = a[l] + at;
        let v = if op.wide { *(p as *const u64).add(l) } else { u64::from(*(p as *const u32).add(l)) };
        match op.size {
            1 => *(q as *mut u8) = v as u8,
            2 => (q as *mut u16).write_unaligned(v as u16),
            4 => (q as *mut u32).write_unaligned(v as u32),
            _ => (q as *mut u64).write_unaligned(v),
        }
    }
}

multiversion!(pub load[][] = load_body);
multiversion!(pub store[][] = store_body);

/// `ld`: address in row `a`, destination `d` or the rows `xs[..count]`, `x` the `MemOp`.
#[inline(always)]
unsafe fn load_body(w: &mut Warp, i: &Instr) -> u32 {
    let op = w.block().launch().kernel.mems[i.x as usize];
    let all = addresses(w, i.a, op.wide_address, op.offset);
    let bytes = op.size * op.count;
    let mut todo = w.m;
    while todo != 0 {
        let mut a = all;
        let (space, m) = if op.space == Space::Generic { split_generic(&mut a, todo) } else { (op.space, todo) };
        todo &= !m;
        let checked = match space {
            Space::Global | Space::Const | Space::Generic => global_access(w, i.x as usize, &a, m, bytes, Touch::Read),
            Space::Shared => {
                let r = shared_access(w, &a, m, bytes, Access::Read, None);
                let base = w.block().shared.pointer() as u64;
                a.iter_mut().for_each(|v| *v = v.wrapping_add(base));
                r
            }
            Space::Local => local_access(w, &mut a, m, bytes),
            Space::Param => param_access(w, &mut a, m, bytes),
        };
        if let Err(s) = checked {
            return s;
        }
        if op.count == 1 {
            fetch(w, &op, i.d, &a, 0, m);
        } else {
            for k in 0..op.count {
                fetch(w, &op, *w.xs.add((i.xs + k) as usize), &a, u64::from(k * op.size), m);
            }
        }
    }
    status::OK
}

/// `st`: address in row `a`, source `b` or the rows `xs[..count]`, `x` the `MemOp`.
#[inline(always)]
unsafe fn store_body(w: &mut Warp, i: &Instr) -> u32 {
    let op = w.block().launch().kernel.mems[i.x as usize];
    let all = addresses(w, i.a, op.wide_address, op.offset);
    let bytes = op.size * op.count;
    let mut todo = w.m;
    while todo != 0 {
        let mut a = all;
        let (space, m) = if op.space == Space::Generic { split_generic(&mut a, todo) } else { (op.space, todo) };
        todo &= !m;
        let checked = match space {
            Space::Global | Space::Generic => global_access(w, i.x as usize, &a, m, bytes, Touch::Write),
            Space::Shared => {
                let r = store_shared(w, i, &op, &a, m);
                if let Err(s) = r {
                    return s;
                }
                continue;
            }
            Space::Local => local_access(w, &mut a, m, bytes),
            Space::Const | Space::Param => {
                let l = m.trailing_zeros();
                Err(w.fault(FaultKind::OutOfBounds, l, Some(a[l as usize]), "the space is read-only".into()))
            }
        };
        if let Err(s) = checked {
            return s;
        }
        put_all(w, i, &op, &a, m);
    }
    status::OK
}

#[inline(always)]
unsafe fn put_all(w: &Warp, i: &Instr, op: &MemOp, a: &[u64; 32], m: u32) {
    if op.count == 1 {
        put(w, op, i.b, a, 0, m);
    } else {
        for k in 0..op.count {
            put(w, op, *w.xs.add((i.xs + k) as usize), a, u64::from(k * op.size), m);
        }
    }
}

/// Stores to shared memory go lane by lane, so that two lanes that write one place meet. Where the rules need the new bytes
/// beside the old ones, through a buffer.
#[inline(always)]
unsafe fn store_shared(w: &mut Warp, i: &Instr, op: &MemOp, a: &[u64; 32], m: u32) -> Result<(), u32> {
    let bytes = op.size * op.count;
    if !w.block().check {
        shared_access(w, a, m, bytes, Access::Write, None)?;
        let base = w.block().shared.pointer() as u64;
        let mut at = *a;
        at.iter_mut().for_each(|v| *v = v.wrapping_add(base));
        put_all(w, i, op, &at, m);
        return Ok(());
    }
    // Bounds and banks for the whole warp first.
    let (check, count) = (w.block().check, w.block().count);
    w.block().check = false;
    let r = shared_access(w, a, m, bytes, Access::Write, None);
    w.block().check = check;
    r?;
    let base = w.block().shared.pointer() as u64;
    let mut at = *a;
    at.iter_mut().for_each(|v| *v = v.wrapping_add(base));
    let (id, pc) = (w.id, w.pc);
    let epoch = w.block().epoch(id);
    // Lanes recorded whose bytes are still to be written.
    let mut open = 0u32;
    for l in lanes(m) {
        if let Some(e) = epoch
            && w.block().shared.plainly(e, a[l] as u32, bytes, l as u32 | id << 5, pc, Access::Write)
        {
            open |= 1 << l;
            continue;
        }
        put_all(w, i, op, &at, open);
        open = 0;
        w.block().count = false;
        let r = store_lane(w, i, op, a, l);
        w.block().count = count;
        r?;
    }
    put_all(w, i, op, &at, open);
    Ok(())
}

/// One lane's store by the exact rules.
#[inline(never)]
unsafe fn store_lane(w: &mut Warp, i: &Instr, op: &MemOp, a: &[u64; 32], l: usize) -> Result<(), u32> {
    let bytes = op.size * op.count;
    let mut buffer = [0u128; 2];
    let new = buffer.as_mut_ptr().cast::<u8>();
    put_all(w, i, op, &[new as u64; 32], 1 << l);
    let (id, pc) = (w.id, w.pc);
    if let Some((kind, text)) = w.block().shared_access((id, l as u32, pc), a[l] as u32, bytes, Access::Write, new) {
        return Err(w.fault(kind, l as u32, Some(a[l]), text));
    }
    std::ptr::copy_nonoverlapping(new, w.block().shared.pointer().add(a[l] as usize), bytes as usize);
    Ok(())
}

/// `isspacep`: predicate `d`, address row `a`, `x` the space (0 shared, 1 local, 2 global, 3 constant, 4 param).
pub unsafe fn is_space(w: &mut Warp, i: &Instr) -> u32 {
    let a = *(w.regs.add(i.a as usize) as *const [u64; 32]);
    let mut r = 0;
    for (l, v) in a.iter().enumerate() {
        let hit = match resolve(*v).0 {
            Space::Shared => i.x == 0,
            Space::Local => i.x == 1,
            Space::Param => i.x == 4,
            _ => i.x == 2,
        };
        r |= u32::from(hit) << l;
    }
    let d = &mut *w.preds.add(i.d as usize);
    *d = (*d & !w.m) | (r & w.m);
    status::OK
}
