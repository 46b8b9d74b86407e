//! One kernel launch: blocks over cores.
//! In: kernel, shape, parameters, memory. Out: counts, or the fault of the lowest block. Owns: worker threads, block order.
//! Not here: a block's inside (`block`), the driver's queues (`driver`).

use super::block::{Block, Line};
use super::fault::Fault;
use crate::counters::{LaunchCounts, PcCount};
use crate::ir::{Kernel, LaneMask, ROW, Special};
use crate::memory::View;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// How a launch is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory, race, initialisation checks.
    pub check: bool,
    /// Counters.
    pub count: bool,
    /// Worker threads.
    pub threads: usize,
    /// Seed of a shuffled block order; `None` runs blocks in index order.
    pub shuffle: Option<u64>,
    /// Warp that runs first in each block.
    pub first_warp: u32,
    /// Most instructions a warp may run.
    pub max_steps: u64,
}

impl Default for Options {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        Options { check: true, count: false, threads, shuffle: None, first_warp: 0, max_steps: 1 << 33 }
    }
}

impl Options {
    /// From `SOFTGPU_CHECKS=0|1`, `SOFTGPU_REPORT`, `SOFTGPU_THREADS`, `SOFTGPU_SHUFFLE=SEED`, `SOFTGPU_MAX_STEPS`.
    pub fn from_env() -> Self {
        let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
        let mut o = Options::default();
        o.check = number("SOFTGPU_CHECKS") != Some(0);
        o.count = std::env::var_os("SOFTGPU_REPORT").is_some();
        o.threads = number("SOFTGPU_THREADS").map_or(o.threads, |n| n.clamp(1, 256) as usize);
        o.shuffle = number("SOFTGPU_SHUFFLE");
        o.first_warp = o.shuffle.map_or(0, |s| (s % 32) as u32);
        o.max_steps = number("SOFTGPU_MAX_STEPS").unwrap_or(o.max_steps);
        o
    }
}

/// A launch in flight.
pub struct Launch<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads a block.
    pub block: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub dynamic_shared: u32,
    /// Parameter buffer, `kernel.param_bytes` long.
    pub params: &'a [u8],
    /// Device memory.
    pub view: View<'a>,
    /// Options.
    pub options: &'a Options,
    /// Multiprocessors of the part, for `%smid` and `%nsmid`.
    pub num_sms: u32,
    /// Number of the launch, `%gridid` and the stamp of touched sectors.
    pub number: u64,
    /// Leading register rows every warp starts with.
    pub template: Vec<Line>,
    /// Bytes of `template` in use.
    pub template_bytes: usize,
}

impl<'a> Launch<'a> {
    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        self.block[0] * self.block[1] * self.block[2]
    }

    /// Blocks of the grid.
    pub fn num_blocks(&self) -> u64 {
        self.grid.iter().map(|g| u64::from(*g)).product()
    }

    /// The multiprocessor a block is said to run on.
    pub fn sm_of(&self, index: [u32; 3]) -> u32 {
        let [gx, gy, _] = self.grid.map(u64::from);
        let linear = u64::from(index[0]) + gx * (u64::from(index[1]) + gy * u64::from(index[2]));
        (linear % u64::from(self.num_sms.max(1))) as u32
    }

    /// Builds the rows that are the same in all warps: constants, sizes, lane numbers.
    pub fn build_template(&mut self) {
        let k = self.kernel;
        let rows = k.constants.iter().map(|c| c.0 + if c.2 { 2 } else { 1 });
        let rows = rows.chain(k.specials.iter().map(|s| s.0 + 1)).max().unwrap_or(0);
        self.template_bytes = (rows * ROW) as usize;
        self.template = vec![Line([0; 64]); self.template_bytes / 64];
        let base = self.template.as_mut_ptr().cast::<u8>();
        // SAFETY: rows below `rows` lie inside the template.
        unsafe {
            for (row, bits, wide) in &k.constants {
                let p = base.add((row * ROW) as usize);
                if *wide {
                    *(p as *mut [u64; 32]) = [*bits; 32];
                } else {
                    *(p as *mut [u32; 32]) = [*bits as u32; 32];
                }
            }
            for (row, special) in &k.specials {
                let p = &mut *(base.add((row * ROW) as usize) as *mut [u32; 32]);
                for (l, v) in p.iter_mut().enumerate() {
                    let bit = 1u32 << l;
                    *v = match special {
                        Special::Ntid(n) => self.block[*n as usize],
                        Special::Nctaid(n) => self.grid[*n as usize],
                        Special::LaneId => l as u32,
                        Special::NumWarps => self.threads().div_ceil(32),
                        Special::NumSms => self.num_sms,
                        Special::GridId => self.number as u32,
                        Special::LaneMask(LaneMask::Eq) => bit,
                        Special::LaneMask(LaneMask::Lt) => bit - 1,
                        Special::LaneMask(LaneMask::Le) => bit | (bit - 1),
                        Special::LaneMask(LaneMask::Gt) => !(bit | (bit - 1)),
                        Special::LaneMask(LaneMask::Ge) => !(bit - 1),
                        Special::DynamicShared => self.dynamic_shared,
                        Special::TotalShared => k.static_shared + self.dynamic_shared,
                        Special::One => 1,
                        _ => 0,
                    };
                }
            }
        }
    }

    /// Runs all blocks. Output of printf goes to `print` block by block, in block order.
    pub fn run(&mut self, print: &mut dyn FnMut(&str)) -> Result<LaunchCounts, Box<Fault>> {
        self.build_template();
        let total = self.num_blocks();
        let next = AtomicU64::new(0);
        // The lowest position in the order that failed; blocks before it still run, so the fault reported is always the same.
        let failed = AtomicU64::new(u64::MAX);
        let fault: Mutex<Option<(u64, Box<Fault>)>> = Mutex::new(None);
        let outputs: Mutex<Vec<(u64, String)>> = Mutex::new(Vec::new());
        let merged: Mutex<Vec<PcCount>> = Mutex::new(Vec::new());
        let launch: &Launch = self;
        let work = || {
            let mut block = POOL.lock().ok().and_then(|mut p| p.pop()).unwrap_or_default();
            block.prepare(launch);
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= total || at > failed.load(Ordering::Relaxed) {
                    break;
                }
                let linear = launch.options.shuffle.map_or(at, |seed| permute(at, total, seed));
                let [gx, gy, _] = launch.grid.map(u64::from);
                let index = [linear % gx, linear / gx % gy, linear / gx / gy].map(|v| v as u32);
                if let Err(f) = block.run(index) {
                    failed.fetch_min(at, Ordering::Relaxed);
                    if let Ok(mut slot) = fault.lock()
                        && slot.as_ref().is_none_or(|(p, _)| at < *p)
                    {
                        *slot = Some((at, f));
                    }
                }
                if !block.output.is_empty()
                    && let Ok(mut o) = outputs.lock()
                {
                    o.push((linear, std::mem::take(&mut block.output)));
                }
            }
            let counts = block.take_counts();
            if let Ok(mut m) = merged.lock() {
                if m.is_empty() {
                    *m = counts;
                } else {
                    m.iter_mut().zip(&counts).for_each(|(a, b)| a.add(b));
                }
            }
            if let Ok(mut p) = POOL.lock() {
                p.push(block);
            }
        };
        let workers = (launch.options.threads as u64).min(total).max(1);
        super::team::run(workers as usize - 1, &work);
        let mut outputs = outputs.into_inner().unwrap_or_default();
        outputs.sort();
        outputs.iter().for_each(|(_, t)| print(t));
        match fault.into_inner().ok().flatten() {
            Some((_, f)) => Err(f),
            None => Ok(LaunchCounts::new(self, merged.into_inner().unwrap_or_default())),
        }
    }
}

/// Blocks between launches: their buffers are kept.
static POOL: Mutex<Vec<Box<Block>>> = Mutex::new(Vec::new());

// SAFETY: a pooled block holds only its own buffers and pointers that `prepare` sets anew before any use.
unsafe impl Send for Block {}
// SAFETY: workers only read a launch; device memory behind the view is shared as it is between the threads of a GPU.
unsafe impl Sync for Launch<'_> {}

/// A permutation of 0..n that depends on the seed: a four-round Feistel network, walked until it lands inside.
pub fn permute(at: u64, n: u64, seed: u64) -> u64 {
    let half = (64 - n.leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let mut v = at;
    loop {
        let (mut l, mut r) = (v >> half, v & mask);
        for round in 0..4u64 {
            let mut h = (r ^ seed.rotate_left(13 * round as u32) ^ round).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            h ^= h >> 29;
            (l, r) = (r, l ^ (h.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32 & mask));
        }
        v = l << half | r;
        if v < n {
            return v;
        }
    }
}
