//! One thread block: its warps, shared memory, barriers.
//! In: a `grid::Launch` and a block index. Out: `Ok` or a `Fault`; counts. Owns: warp scheduling, barrier completion, clocks.
//! Not here: instructions (`warp` and the operation modules), blocks over cores (`grid`).
//!
//! Clocks: each warp has a clock and knows, of every other warp, the clock up to which it is ordered before itself (a vector
//! clock). A barrier joins them. `shared` compares an access with the recorded ones through them.

use super::fault::{Fault, FaultKind, place};
use super::grid::Launch;
use super::lanes::FULL;
use super::shared::SharedMemory;
use super::status;
use super::warp::{Event, Wait, Warp};
use crate::counters::PcCount;
use crate::ir::{Instr, ROW, Special};

/// Most warps a block can have.
pub const MAX_WARPS: usize = 32;

/// 64-byte aligned storage for register rows and shared memory.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Line(pub [u8; 64]);

/// Warp instructions a warp runs before others get a turn.
const SLICE: u64 = 1 << 16;

/// Rounds in which every runnable warp only waited, after which nothing can change any more.
const IDLE_ROUNDS: u32 = 4096;

#[derive(Clone, Default)]
struct Barrier {
    /// Threads expected, 0 for all.
    expected: u32,
    arrived_threads: u32,
    /// Warps that wait here.
    waiting: u32,
    /// All warps that arrived.
    arrived: u32,
    /// Join of the clocks of those that arrived.
    clocks: [u32; MAX_WARPS],
    /// Reduction over the predicates: count, and, or.
    count: u32,
    and: bool,
    or: bool,
}

/// State of a running block; reused for the next one.
pub struct Block {
    /// The launch; valid while a block runs.
    pub launch: *const Launch<'static>,
    /// Block index.
    pub index: [u32; 3],
    /// Warps in use.
    pub num_warps: usize,
    warps: Vec<Warp>,
    regs: Vec<Line>,
    preds: Vec<u32>,
    local: Vec<Line>,
    /// Shared memory and its records.
    pub shared: SharedMemory,
    barriers: Vec<Barrier>,
    /// `clocks[w][v]`: warp w is ordered after warp v's accesses up to this clock; `clocks[w][w]` is its own clock.
    pub clocks: [[u32; MAX_WARPS]; MAX_WARPS],
    fault: Option<Fault>,
    /// One counter set an instruction.
    pub counts: *mut PcCount,
    counts_store: Vec<PcCount>,
    /// Cached allocation of each `MemOp`: start, end, end of the initialised prefix.
    pub cache: Vec<(u64, u64, u64)>,
    /// Checks on.
    pub check: bool,
    /// Counters on.
    pub count: bool,
    /// mbarriers in shared memory, by offset.
    pub mbarriers: super::asynchronous::Mbarriers,
    /// Output of printf, in program order of this block.
    pub output: String,
}

impl Block {
    /// An empty block.
    pub fn new() -> Self {
        Block {
            launch: std::ptr::null(),
            index: [0; 3],
            num_warps: 0,
            warps: Vec::new(),
            regs: Vec::new(),
            preds: Vec::new(),
            local: Vec::new(),
            shared: SharedMemory::default(),
            barriers: vec![Barrier::default(); 16],
            clocks: [[0; MAX_WARPS]; MAX_WARPS],
            fault: None,
            counts: std::ptr::null_mut(),
            counts_store: Vec::new(),
            cache: Vec::new(),
            check: true,
            count: false,
            mbarriers: Default::default(),
            output: String::new(),
        }
    }

    /// The launch this block belongs to.
    #[inline(always)]
    pub fn launch<'a>(&self) -> &'a Launch<'a> {
        // SAFETY: set by `prepare` to a launch that outlives the worker's use of this block.
        unsafe { &*(self.launch as *const Launch<'a>) }
    }

    /// Sizes the buffers for a launch. Call once a launch and worker.
    pub fn prepare(&mut self, launch: &Launch) {
        self.launch = std::ptr::from_ref(launch).cast();
        let k = launch.kernel;
        let threads = launch.threads();
        let warps = threads.div_ceil(32) as usize;
        self.num_warps = warps;
        let (row_bytes, preds) = ((k.rows * ROW) as usize, k.preds.max(1) as usize);
        let local = (k.local_bytes as usize * 32).div_ceil(64) * 64;
        self.regs.resize(warps * row_bytes / 64 + 1, Line([0; 64]));
        self.preds.resize(warps * preds, 0);
        self.local.resize(warps * local / 64 + 1, Line([0; 64]));
        self.warps.resize_with(self.warps.len().max(warps), Warp::new);
        for w in 0..warps {
            let warp = &mut self.warps[w];
            // SAFETY: the buffers hold `warps` parts of these sizes.
            unsafe {
                warp.regs = self.regs.as_mut_ptr().cast::<u8>().add(w * row_bytes);
                warp.preds = self.preds.as_mut_ptr().add(w * preds);
                warp.local = self.local.as_mut_ptr().cast::<u8>().add(w * local);
            }
            warp.xs = k.xs.as_ptr();
            warp.id = w as u32;
        }
        (self.check, self.count) = (launch.options.check, launch.options.count);
        self.shared.prepare(k.static_shared + launch.dynamic_shared, k.shared_grain, self.check);
        self.cache.clear();
        self.cache.resize(k.mems.len(), (0, 0, 0));
        self.counts_store.clear();
        if self.count {
            self.counts_store.resize(k.code.len(), PcCount::default());
        }
        self.counts = self.counts_store.as_mut_ptr();
        self.output.clear();
        self.fault = None;
    }

    /// The counts of all blocks run since `prepare`.
    pub fn take_counts(&mut self) -> Vec<PcCount> {
        std::mem::take(&mut self.counts_store)
    }

    fn start(&mut self, index: [u32; 3]) {
        let launch = self.launch();
        let k = launch.kernel;
        self.index = index;
        let me: *mut Block = self;
        let threads = launch.threads();
        let [bx, by, _] = launch.block;
        let base = self.shared.next_clock();
        self.shared.clear();
        self.mbarriers.clear();
        self.barriers.iter_mut().for_each(|b| *b = Barrier::default());
        for w in 0..self.num_warps {
            self.clocks[w] = [base; MAX_WARPS];
            self.clocks[w][w] = base + 1;
            let live = threads - (w as u32 * 32);
            let warp = &mut self.warps[w];
            warp.block = me;
            warp.start(if live >= 32 { FULL } else { (1 << live) - 1 });
            // SAFETY: template and register file have the same leading rows; special rows are inside the file.
            unsafe {
                std::ptr::copy_nonoverlapping(launch.template.as_ptr().cast::<u8>(), warp.regs, launch.template_bytes);
                for (row, special) in &k.specials {
                    let to = &mut *(warp.regs.add((row * ROW) as usize) as *mut [u32; 32]);
                    for (l, v) in to.iter_mut().enumerate() {
                        let t = w as u32 * 32 + l as u32;
                        *v = match special {
                            Special::Tid(0) => t % bx,
                            Special::Tid(1) => t / bx % by,
                            Special::Tid(_) => t / bx / by,
                            Special::Ctaid(n) => index[*n as usize],
                            Special::WarpId => w as u32,
                            Special::SmId => launch.sm_of(index),
                            _ => continue,
                        };
                    }
                }
            }
        }
    }

    /// Runs one block to its end.
    pub fn run(&mut self, index: [u32; 3]) -> Result<(), Box<Fault>> {
        self.start(index);
        let code: &[Instr] = &self.launch().kernel.code;
        let (n, max_steps) = (self.num_warps, self.launch().options.max_steps);
        let first = self.launch().options.first_warp as usize % n.max(1);
        let mut idle = 0;
        loop {
            let (mut ran, mut live, mut moved) = (false, false, false);
            for at in 0..n {
                let w = (at + first) % n;
                let warp = &mut self.warps[w];
                if warp.live == 0 {
                    continue;
                }
                live = true;
                if warp.waiting.is_some() {
                    continue;
                }
                ran = true;
                let before = warp.steps;
                // SAFETY: `start` set the warp up for this kernel.
                let event =
                    unsafe { if self.count { warp.run::<true>(code, SLICE) } else { warp.run::<false>(code, SLICE) } };
                match event {
                    Event::Done => {
                        moved = true;
                        self.left();
                    }
                    Event::Barrier(pc) => {
                        moved = true;
                        self.after_arrival(w, pc);
                    }
                    Event::Yield => {
                        let warp = &mut self.warps[w];
                        // A long slice is work; a short one is a wait that failed.
                        moved |= warp.steps - before > 4096;
                        if warp.steps > max_steps {
                            let detail = format!(
                                "warp ran {max_steps} instructions (SOFTGPU_MAX_STEPS); it may wait for something that never comes"
                            );
                            let lane = warp.mask.trailing_zeros() & 31;
                            warp.fault(FaultKind::NoProgress, lane, None, detail);
                        }
                    }
                    Event::Fault => {}
                }
                if let Some(f) = self.fault.take() {
                    return Err(Box::new(f));
                }
            }
            if !live {
                break;
            }
            idle = if moved { 0 } else { idle + 1 };
            if !ran {
                self.deadlock();
            } else if idle > IDLE_ROUNDS {
                let warp = (0..n).find(|w| self.warps[*w].live != 0 && self.warps[*w].waiting.is_none()).unwrap_or(0);
                let lane = self.warps[warp].mask.trailing_zeros() & 31;
                let detail = "every warp of the block waits for an mbarrier phase that no one completes".to_string();
                self.warps[warp].fault(FaultKind::NoProgress, lane, None, detail);
            }
            if let Some(f) = self.fault.take() {
                return Err(Box::new(f));
            }
        }
        self.shared.retire(self.clocks[..n].iter().flatten().copied().max().unwrap_or(0));
        Ok(())
    }

    /// Keeps the first fault.
    pub fn set_fault(&mut self, kind: FaultKind, pc: u32, warp: u32, lane: u32, address: Option<u64>, detail: String) {
        if self.fault.is_some() {
            return;
        }
        let [bx, by, _] = self.launch().block;
        let t = warp * 32 + lane;
        let mut fault = Fault {
            kind,
            pc,
            block: self.index,
            thread: [t % bx, t / bx % by, t / bx / by],
            address,
            detail,
            kernel: String::new(),
            ptx_line: 0,
            op: String::new(),
            source: None,
            inlined: None,
        };
        fault.locate(self.launch().kernel);
        self.fault = Some(fault);
    }

    /// Thread index as text, of a thread number in the block.
    pub fn thread_name(&self, t: u32) -> String {
        let [bx, by, _] = self.launch().block;
        format!("({},{},{})", t % bx, t / bx % by, t / bx / by)
    }

    /// `warp` arrives at barrier `id`; `wait` says whether it stops there. `value` holds its lanes' predicates.
    /// Returns a status for the warp loop.
    pub fn arrive(&mut self, warp: u32, id: u32, expected: u32, wait: bool, value: u32) -> u32 {
        let w = warp as usize;
        let (mask, live, pc) = (self.warps[w].m, self.warps[w].live, self.warps[w].pc);
        if mask != live {
            let absent = live & !mask;
            let detail = format!(
                "{} of the warp's {} threads are here; lane {} is not",
                mask.count_ones(),
                live.count_ones(),
                absent.trailing_zeros()
            );
            let lane = mask.trailing_zeros();
            self.set_fault(FaultKind::BarrierDivergence, pc, warp, lane, None, detail);
            return status::FAULT;
        }
        if id >= 16 || expected % 32 != 0 {
            let detail =
                format!("barrier {id} with {expected} threads: barriers are 0 to 15, thread counts multiples of 32");
            self.set_fault(FaultKind::BadOperand, pc, warp, 0, None, detail);
            return status::FAULT;
        }
        let clocks = self.clocks[w];
        let b = &mut self.barriers[id as usize];
        if b.arrived == 0 {
            *b = Barrier { expected, and: true, ..Barrier::default() };
        } else if b.expected != expected || b.arrived >> w & 1 != 0 {
            let had = b.expected;
            let detail = if had != expected {
                format!("barrier {id} is open for {had} threads (0: all), this arrival names {expected}")
            } else {
                format!("warp {w} arrives twice at barrier {id} before it completes")
            };
            self.set_fault(FaultKind::BarrierDivergence, pc, warp, 0, None, detail);
            return status::FAULT;
        }
        b.arrived |= 1 << w;
        b.arrived_threads += 32;
        b.waiting |= u32::from(wait) << w;
        b.count += (value & mask).count_ones();
        b.and &= value & mask == mask;
        b.or |= value & mask != 0;
        for (t, c) in b.clocks.iter_mut().zip(clocks) {
            *t = (*t).max(c);
        }
        if !wait {
            self.clocks[w][w] += 1;
            self.try_complete(id as usize);
            return status::OK;
        }
        self.warps[w].waiting = Some(Wait { barrier: id, pc });
        status::YIELD
    }

    fn after_arrival(&mut self, w: usize, pc: u32) {
        debug_assert!(self.warps[w].waiting.is_none_or(|x| x.pc == pc));
        if let Some(wait) = self.warps[w].waiting {
            self.try_complete(wait.barrier as usize);
        }
    }

    /// A warp left: barriers for all threads may now be complete.
    fn left(&mut self) {
        for id in 0..self.barriers.len() {
            if self.barriers[id].arrived != 0 && self.barriers[id].expected == 0 {
                self.try_complete(id);
            }
        }
    }

    fn try_complete(&mut self, id: usize) {
        let live = (0..self.num_warps).filter(|w| self.warps[*w].live != 0).fold(0u32, |m, w| m | 1 << w);
        let b = &self.barriers[id];
        let complete = if b.expected == 0 { live & !b.arrived == 0 } else { b.arrived_threads >= b.expected };
        if !complete || b.arrived == 0 {
            return;
        }
        let done = std::mem::take(&mut self.barriers[id]);
        let code = &self.launch().kernel.code;
        // Those who waited go on with one common clock, so that records of many readers can keep a single one.
        let top =
            (0..self.num_warps).filter(|w| done.waiting >> w & 1 != 0).map(|w| self.clocks[w][w]).max().unwrap_or(0);
        for w in 0..self.num_warps {
            if done.waiting >> w & 1 == 0 {
                continue;
            }
            for (v, (t, c)) in self.clocks[w].iter_mut().zip(done.clocks).enumerate() {
                *t = if done.waiting >> v & 1 != 0 { top } else { (*t).max(c) };
            }
            self.clocks[w][w] = top + 1;
            let warp = &mut self.warps[w];
            let Some(wait) = warp.waiting.take() else { continue };
            // SAFETY: the operand offsets of the barrier instruction lie in this warp's files.
            unsafe {
                super::collective::finish_reduction(warp, &code[wait.pc as usize], done.count, done.and, done.or)
            };
        }
    }

    /// Every live warp waits and no barrier can complete.
    fn deadlock(&mut self) {
        let k = self.launch().kernel;
        let mut parts = Vec::new();
        let mut first: Option<(usize, Wait)> = None;
        for w in 0..self.num_warps {
            let Some(wait) = self.warps[w].waiting else { continue };
            if first.is_none_or(|(_, f)| f.barrier == wait.barrier && f.pc != wait.pc) {
                first = first.or(Some((w, wait)));
            }
            let expected = self.barriers[wait.barrier as usize].expected;
            let of = if expected == 0 { "all".to_string() } else { expected.to_string() };
            parts.push(format!("warp {w} waits at barrier {} for {of} threads, {}", wait.barrier, place(k, wait.pc)));
        }
        let Some((w, wait)) = first else { return };
        parts.truncate(4);
        self.set_fault(FaultKind::BarrierDivergence, wait.pc, w as u32, 0, None, parts.join("; "));
    }

    /// Mutable access to a warp of the block, for collective operations on all of them.
    pub fn warp(&mut self, w: usize) -> &mut Warp {
        &mut self.warps[w]
    }
}

impl Default for Block {
    fn default() -> Self {
        Self::new()
    }
}
