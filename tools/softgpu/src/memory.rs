//! Device memory: one reserved address range, allocations with exact bounds, an initialisation shadow.
//! In: sizes, copies. Out: device addresses (equal to host addresses), `View`s for launches. Owns: the address space, capacity.
//! Not here: checks of kernel accesses (`exec::memory`), the driver's handles (`driver`).
//!
//! Addresses start at 0x2000_0000_0000 and are handed out in order, so a run gives the same addresses every time. One shadow
//! byte a byte says whether it was written. Freed memory is not reused before much more was freed, so a stale pointer meets
//! no new owner.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU16, Ordering};

/// Generic addresses of shared memory start here.
pub const SHARED_WINDOW: u64 = 0x00a0_0000_0000;
/// Generic addresses of local memory start here.
pub const LOCAL_WINDOW: u64 = 0x00b0_0000_0000;
/// Generic addresses of kernel parameters start here.
pub const PARAM_WINDOW: u64 = 0x00c0_0000_0000;
/// Size of each window.
pub const WINDOW_BYTES: u64 = 1 << 32;

/// Allocation granularity, and the least gap behind an allocation.
const GRAIN: u64 = 512;
const GAP: u64 = 256;
/// Bytes of freed address space kept away from new allocations.
const QUARANTINE: u64 = 1 << 28;

/// What an allocation is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// cuMemAlloc and pools.
    Device,
    /// Pinned host or managed memory: the host writes it without telling.
    Host,
    /// Variables of a module, initialised at load.
    Module,
}

/// One allocation.
#[derive(Clone, Debug)]
pub struct Alloc {
    /// First address.
    pub start: u64,
    /// Size in bytes, as asked for.
    pub bytes: u64,
    /// What for.
    pub kind: Use,
    /// Everything before this address is initialised.
    init_end: u64,
}

/// An allocation as a launch sees it.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// Address behind the last byte.
    pub end: u64,
    /// Everything before this address is initialised.
    pub init_end: u64,
}

/// Why an allocation or free failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryError {
    /// The part's capacity is used up.
    OutOfMemory,
    /// No allocation starts there.
    NotAllocated,
    /// It was freed before.
    DoubleFree,
}

/// Device memory.
pub struct Memory {
    base: u64,
    reserved: u64,
    next: u64,
    capacity: u64,
    used: u64,
    peak: u64,
    allocs: BTreeMap<u64, Alloc>,
    freed: VecDeque<Region>,
    freed_bytes: u64,
    reusable: BTreeMap<u64, Vec<u64>>,
    shadow: *mut u8,
    stamps: [*mut AtomicU16; 2],
    stamp: u16,
    regions: Vec<Region>,
    stale: bool,
}

// SAFETY: the pointers are to mappings this value owns; all methods take `&mut self` or only read.
unsafe impl Send for Memory {}

fn map(hint: u64, bytes: u64) -> Option<*mut u8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: an anonymous mapping at a place the kernel may choose differently; nothing is replaced.
    let p = unsafe {
        libc::mmap(hint as *mut libc::c_void, bytes as usize, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    };
    (p != libc::MAP_FAILED).then_some(p.cast())
}

impl Memory {
    /// Reserves address space for `capacity` bytes of device memory. `None` when the system has no address space left.
    pub fn new(capacity: u64) -> Option<Self> {
        let mut reserved = (capacity * 3).next_multiple_of(1 << 21).max(1 << 26);
        // Systems with tight address-space limits get less room for quarantine before they get nothing.
        loop {
            let data = map(0x2000_0000_0000, reserved);
            let shadow = map(0, reserved);
            let stamps = [map(0, reserved / 16), map(0, reserved / 16)];
            if let (Some(data), Some(shadow), [Some(a), Some(b)]) = (data, shadow, stamps) {
                let base = data as u64;
                return Some(Memory {
                    base,
                    reserved,
                    next: base + (1 << 20),
                    capacity,
                    used: 0,
                    peak: 0,
                    allocs: BTreeMap::new(),
                    freed: VecDeque::new(),
                    freed_bytes: 0,
                    reusable: BTreeMap::new(),
                    shadow,
                    stamps: [a.cast(), b.cast()],
                    stamp: 0,
                    regions: Vec::new(),
                    stale: true,
                });
            }
            for (p, n) in [(data, reserved), (shadow, reserved), (stamps[0], reserved / 16), (stamps[1], reserved / 16)]
            {
                if let Some(p) = p {
                    // SAFETY: mapped above, not used.
                    unsafe { libc::munmap(p.cast(), n as usize) };
                }
            }
            reserved /= 2;
            if reserved < 1 << 26 {
                return None;
            }
        }
    }

    /// Bytes free and in all.
    pub fn info(&self) -> (u64, u64) {
        (self.capacity - self.used, self.capacity)
    }

    /// Most bytes ever in use.
    pub fn peak(&self) -> u64 {
        self.peak
    }

    /// Live allocations in address order.
    pub fn allocations(&self) -> impl Iterator<Item = &Alloc> {
        self.allocs.values()
    }

    /// Allocates `bytes`. Contents are not initialised unless the use says otherwise.
    pub fn alloc(&mut self, bytes: u64, kind: Use) -> Result<u64, MemoryError> {
        let Some(span) = bytes.checked_add(GAP).map(|b| b.next_multiple_of(GRAIN)) else {
            return Err(MemoryError::OutOfMemory);
        };
        let cost = bytes.next_multiple_of(GRAIN);
        let counts = kind != Use::Host;
        if counts && cost > self.capacity - self.used {
            return Err(MemoryError::OutOfMemory);
        }
        let reuse = self.reusable.get_mut(&span).and_then(Vec::pop);
        let start = match reuse {
            Some(a) => a,
            None => {
                // Large allocations begin on a page so that freeing gives the pages back.
                let a = if span >= 1 << 16 { self.next.next_multiple_of(4096) } else { self.next };
                if a + span > self.base + self.reserved {
                    return Err(MemoryError::OutOfMemory);
                }
                self.next = a + span;
                a
            }
        };
        self.used += if counts { cost } else { 0 };
        self.peak = self.peak.max(self.used);
        let init_end = if kind == Use::Device { start } else { start + bytes };
        self.allocs.insert(start, Alloc { start, bytes, kind, init_end });
        self.stale = true;
        Ok(start)
    }

    /// Frees the allocation that starts at `address`.
    pub fn free(&mut self, address: u64) -> Result<(), MemoryError> {
        let Some(a) = self.allocs.remove(&address) else {
            let before = self.freed.iter().any(|r| r.start == address);
            return Err(if before { MemoryError::DoubleFree } else { MemoryError::NotAllocated });
        };
        if a.kind != Use::Host {
            self.used -= a.bytes.next_multiple_of(GRAIN);
        }
        let span = (a.bytes + GAP).next_multiple_of(GRAIN);
        self.wipe(a.start, span);
        self.freed.push_back(Region { start: a.start, end: a.start + a.bytes, init_end: a.start });
        self.freed_bytes += span;
        while self.freed_bytes > QUARANTINE.max(self.capacity / 8) || self.freed.len() > 1 << 16 {
            let Some(old) = self.freed.pop_front() else { break };
            let span = (old.end - old.start + GAP).next_multiple_of(GRAIN);
            self.freed_bytes -= span;
            self.reusable.entry(span).or_default().push(old.start);
        }
        self.stale = true;
        Ok(())
    }

    /// Forgets contents and shadow, and gives whole pages back to the system.
    fn wipe(&mut self, start: u64, bytes: u64) {
        for origin in [self.base, self.shadow as u64] {
            let (from, to) = (start - self.base + origin, start - self.base + origin + bytes);
            let (page_from, page_to) = (from.next_multiple_of(4096), to / 4096 * 4096);
            // SAFETY: the range belongs to an allocation being freed, inside the mappings.
            unsafe {
                if page_from < page_to {
                    libc::madvise(page_from as *mut libc::c_void, (page_to - page_from) as usize, libc::MADV_DONTNEED);
                    std::ptr::write_bytes(from as *mut u8, 0, (page_from - from) as usize);
                    std::ptr::write_bytes(page_to as *mut u8, 0, (to - page_to) as usize);
                } else {
                    std::ptr::write_bytes(from as *mut u8, 0, bytes as usize);
                }
            }
        }
    }

    /// The allocation that holds `address`.
    pub fn find(&self, address: u64) -> Option<&Alloc> {
        self.allocs.range(..=address).next_back().map(|(_, a)| a).filter(|a| address < a.start + a.bytes.max(1))
    }

    /// True when the range lies inside one allocation.
    pub fn contains(&self, address: u64, bytes: u64) -> bool {
        bytes == 0
            || self.find(address).is_some_and(|a| address.checked_add(bytes).is_some_and(|e| e <= a.start + a.bytes))
    }

    /// True when the address lies in the reserved range at all (then it must be in an allocation to be used).
    pub fn reserved(&self, address: u64) -> bool {
        address >= self.base && address < self.base + self.reserved
    }

    /// Marks bytes as initialised. The range must lie inside an allocation.
    pub fn mark_initialised(&mut self, address: u64, bytes: u64) {
        if !self.contains(address, bytes) || bytes == 0 {
            return;
        }
        // SAFETY: inside an allocation, so inside the shadow.
        unsafe {
            std::ptr::write_bytes(self.shadow.add((address - self.base) as usize), 1, bytes as usize);
        }
        self.stale = true;
    }

    /// Copies the shadow of one range to another: copies of uninitialised bytes stay uninitialised.
    pub fn copy_shadow(&mut self, to: u64, from: u64, bytes: u64) {
        if !self.contains(to, bytes) || !self.contains(from, bytes) || bytes == 0 {
            return;
        }
        if self.find(from).is_some_and(|a| a.kind != Use::Device) {
            return self.mark_initialised(to, bytes);
        }
        // SAFETY: both ranges lie inside the shadow; they may overlap.
        unsafe {
            let (t, f) = ((to - self.base) as usize, (from - self.base) as usize);
            std::ptr::copy(self.shadow.add(f), self.shadow.add(t), bytes as usize);
        }
        if let Some(a) = self.allocs.range_mut(..=to).next_back().map(|(_, a)| a) {
            a.init_end = a.init_end.min(to.max(a.start));
        }
        self.stale = true;
    }

    /// What a launch needs to know. `count` also stamps touched sectors anew.
    pub fn view(&mut self, count: bool) -> View<'_> {
        self.regions.clear();
        for a in self.allocs.values_mut() {
            let end = a.start + a.bytes;
            if a.kind != Use::Device {
                a.init_end = end;
            }
            while a.init_end < end {
                // SAFETY: inside the shadow of this allocation; the tail is read bytewise.
                unsafe {
                    let p = self.shadow.add((a.init_end - self.base) as usize);
                    if end - a.init_end >= 8 && p.cast::<u64>().read_unaligned() == 0x0101_0101_0101_0101 {
                        a.init_end += 8;
                    } else if *p == 1 {
                        a.init_end += 1;
                    } else {
                        break;
                    }
                }
            }
            self.regions.push(Region { start: a.start, end, init_end: a.init_end });
        }
        self.stale = false;
        if count {
            self.stamp = self.stamp.wrapping_add(1);
            if self.stamp == 0 {
                self.stamp = 1;
                for s in self.stamps {
                    // SAFETY: the whole stamp mapping.
                    unsafe { libc::madvise(s.cast(), (self.reserved / 16) as usize, libc::MADV_DONTNEED) };
                }
            }
        }
        View {
            regions: &self.regions,
            freed: &self.freed,
            base: self.base,
            shadow: self.shadow,
            stamps: self.stamps,
            stamp: self.stamp,
        }
    }

    /// Reads device memory from the host. `None` when the range is in no allocation.
    pub fn read(&self, address: u64, to: &mut [u8]) -> Option<()> {
        self.contains(address, to.len() as u64).then(|| {
            // SAFETY: inside an allocation.
            unsafe { std::ptr::copy_nonoverlapping(address as *const u8, to.as_mut_ptr(), to.len()) }
        })
    }

    /// Writes device memory from the host. `None` when the range is in no allocation.
    pub fn write(&mut self, address: u64, from: &[u8]) -> Option<()> {
        if !self.contains(address, from.len() as u64) {
            return None;
        }
        // SAFETY: inside an allocation.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), address as *mut u8, from.len()) };
        self.mark_initialised(address, from.len() as u64);
        Some(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let parts = [
            (self.base as *mut u8, self.reserved),
            (self.shadow, self.reserved),
            (self.stamps[0].cast(), self.reserved / 16),
            (self.stamps[1].cast(), self.reserved / 16),
        ];
        for (p, n) in parts {
            // SAFETY: mapped by `new`, not used after this.
            unsafe { libc::munmap(p.cast(), n as usize) };
        }
    }
}

/// Device memory as a running launch sees it.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Live allocations in address order.
    pub regions: &'a [Region],
    freed: &'a VecDeque<Region>,
    base: u64,
    shadow: *mut u8,
    stamps: [*mut AtomicU16; 2],
    stamp: u16,
}

impl View<'_> {
    /// The allocation that holds `address`.
    pub fn find(&self, address: u64) -> Option<Region> {
        let at = self.regions.partition_point(|r| r.start <= address);
        self.regions.get(at.wrapping_sub(1)).copied().filter(|r| address < r.end)
    }

    /// Shadow byte of an address inside an allocation.
    #[inline(always)]
    pub fn shadow(&self, address: u64) -> *mut u8 {
        // Wrapping: the caller has checked that the address is inside.
        self.shadow.wrapping_add(address.wrapping_sub(self.base) as usize)
    }

    /// True when a freed allocation held the address.
    pub fn was_freed(&self, address: u64) -> Option<Region> {
        self.freed.iter().rev().copied().find(|r| address >= r.start && address < r.end)
    }

    /// What lies around an address that is in no allocation.
    pub fn describe(&self, address: u64) -> String {
        let at = self.regions.partition_point(|r| r.start <= address);
        let below = self.regions.get(at.wrapping_sub(1)).filter(|_| at > 0);
        match (below, self.regions.get(at)) {
            (Some(b), _) if address - b.end < 1 << 20 => format!(
                "{} bytes behind the end of the allocation of {} bytes at {:#x}",
                address - b.end,
                b.end - b.start,
                b.start
            ),
            (_, Some(a)) if a.start - address < 1 << 20 => format!(
                "{} bytes before the allocation of {} bytes at {:#x}",
                a.start - address,
                a.end - a.start,
                a.start
            ),
            _ => "no allocation is near".to_string(),
        }
    }

    /// Marks the 32-byte sector of `address` as touched by this launch; true the first time. `write` keeps its own marks.
    #[inline]
    pub fn touch(&self, address: u64, write: bool) -> bool {
        let at = (address.wrapping_sub(self.base) / 32) as usize;
        // SAFETY: the address is inside an allocation, so the stamp is inside its mapping; stamps are atomic.
        let s = unsafe { &*self.stamps[usize::from(write)].add(at) };
        s.load(Ordering::Relaxed) != self.stamp && s.swap(self.stamp, Ordering::Relaxed) != self.stamp
    }
}
