//! One warp: registers, active lanes, the reconvergence stack, the instruction loop.
//! In: `ir::Kernel`. Out: an `Event` for the block's scheduler. Owns: control flow.
//! Not here: what instructions do (`lanes`, `memory`, ...), who runs when (`block`).
//!
//! Lanes that part at a branch meet at its immediate post-dominator: the stack holds, for each open divergence, the lanes that
//! wait and the instruction they wait for. Lanes never run ahead of each other otherwise, so code whose lanes wait for one
//! another without converging (a spin lock inside a warp) does not end; `block` reports it.

use super::block::Block;
use super::fault::FaultKind;
use super::status;
use crate::ir::{Instr, Kind, NONE};

/// Lanes to continue with, once those running now reach `rpc`.
#[derive(Clone, Copy, Debug)]
struct Path {
    pc: u32,
    rpc: u32,
    mask: u32,
}

/// Why a warp stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// All lanes have left.
    Done,
    /// At a barrier; `pc` is past it.
    Barrier(u32),
    /// Out of its time slice, or waiting for something that is not there yet.
    Yield,
    /// The block's fault is set.
    Fault,
}

/// State of one warp. The pointers lead into the owning `Block`'s buffers, which outlive every call of `run`.
pub struct Warp {
    /// Register file.
    pub regs: *mut u8,
    /// Predicates.
    pub preds: *mut u32,
    /// Further operands of the kernel.
    pub xs: *const u32,
    /// Lanes the current instruction acts on.
    pub m: u32,
    /// The block.
    pub block: *mut Block,
    /// Number in the block.
    pub id: u32,
    /// Current instruction.
    pub pc: u32,
    rpc: u32,
    /// Lanes on the current path.
    pub mask: u32,
    /// Lanes that have not left.
    pub live: u32,
    stack: Vec<Path>,
    /// Local memory, one run of `local_bytes` a lane.
    pub local: *mut u8,
    /// What it waits for.
    pub waiting: Option<Wait>,
    /// Open and committed cp.async groups.
    pub copies: super::asynchronous::Copies,
    /// Instructions run since the block began.
    pub steps: u64,
}

/// A barrier wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wait {
    /// Barrier number.
    pub barrier: u32,
    /// The barrier instruction.
    pub pc: u32,
}

impl Warp {
    /// A warp without memory; `Block` sets it up.
    pub fn new() -> Self {
        Warp {
            regs: std::ptr::null_mut(),
            preds: std::ptr::null_mut(),
            xs: std::ptr::null(),
            m: 0,
            block: std::ptr::null_mut(),
            id: 0,
            pc: 0,
            rpc: NONE,
            mask: 0,
            live: 0,
            stack: Vec::new(),
            local: std::ptr::null_mut(),
            waiting: None,
            copies: Default::default(),
            steps: 0,
        }
    }

    /// Back to the first instruction with these lanes.
    pub fn start(&mut self, live: u32) {
        (self.pc, self.rpc, self.mask, self.live) = (0, NONE, live, live);
        self.stack.clear();
        self.waiting = None;
        self.copies.clear();
        self.steps = 0;
    }

    /// The block this warp belongs to.
    #[inline(always)]
    pub fn block(&mut self) -> &mut Block {
        // SAFETY: set by `Block::start`, and the block lives while its warps run; one thread runs a block.
        unsafe { &mut *self.block }
    }

    /// Records a fault of `lane` at the current instruction.
    #[cold]
    pub fn fault(&mut self, kind: FaultKind, lane: u32, address: Option<u64>, detail: String) -> u32 {
        let (pc, warp) = (self.pc, self.id);
        self.block().set_fault(kind, pc, warp, lane, address, detail);
        status::FAULT
    }

    /// Runs at most `budget` instructions.
    ///
    /// # Safety
    /// `Block::start` has set this warp up for the kernel that `code` belongs to.
    pub unsafe fn run<const COUNT: bool>(&mut self, code: &[Instr], budget: u64) -> Event {
        if self.live == 0 {
            return Event::Done;
        }
        let limit = self.steps + budget;
        loop {
            if self.pc == self.rpc {
                self.pop();
                if self.live == 0 {
                    return Event::Done;
                }
                continue;
            }
            // SAFETY: lowering ends every path with an exit, so `pc` stays inside.
            let i = code.get_unchecked(self.pc as usize);
            self.steps += 1;
            let mut m = self.mask;
            if i.guard != NONE {
                let p = *self.preds.add((i.guard >> 1) as usize);
                m &= if i.guard & 1 != 0 { !p } else { p };
            }
            if COUNT {
                let c = &mut *(*self.block).counts.add(self.pc as usize);
                c.issued += 1;
                c.lanes += u64::from(m.count_ones());
            }
            match i.kind {
                Kind::Op => {
                    if m != 0 {
                        self.m = m;
                        let s = (i.f)(self, i);
                        if s != status::OK {
                            if s == status::FAULT {
                                return Event::Fault;
                            }
                            self.pc += 1;
                            return Event::Yield;
                        }
                    }
                    self.pc += 1;
                }
                Kind::Branch => {
                    let rest = self.mask & !m;
                    if rest == 0 {
                        if i.x <= self.pc && self.steps >= limit {
                            self.pc = i.x;
                            return Event::Yield;
                        }
                        self.pc = i.x;
                    } else if m == 0 {
                        self.pc += 1;
                    } else {
                        let here = self.pc;
                        let meet = self.meet_at(i.a);
                        // Lanes already at the meeting point wait there: the entry below holds them.
                        if i.x == meet {
                            (self.pc, self.rpc, self.mask) = (here + 1, meet, rest);
                        } else if here + 1 == meet {
                            (self.pc, self.rpc, self.mask) = (i.x, meet, m);
                        } else {
                            self.stack.push(Path { pc: i.x, rpc: meet, mask: m });
                            (self.pc, self.rpc, self.mask) = (here + 1, meet, rest);
                        }
                        if self.steps >= limit {
                            return Event::Yield;
                        }
                    }
                }
                Kind::Indexed => {
                    let here = self.pc;
                    let rest = self.mask & !m;
                    if m == 0 {
                        self.pc += 1;
                        continue;
                    }
                    let index = *(self.regs.add(i.b as usize) as *const [u32; 32]);
                    let outside = (0..32).find(|l| m >> l & 1 != 0 && index[*l as usize] >= i.x);
                    if let Some(lane) = outside {
                        let v = index[lane as usize];
                        let detail = format!("index {v} into a table of {} branch targets", i.x);
                        self.fault(FaultKind::BadOperand, lane, None, detail);
                        return Event::Fault;
                    }
                    let meet = self.meet_at(i.a);
                    if rest != 0 && here + 1 != meet {
                        self.stack.push(Path { pc: here + 1, rpc: meet, mask: rest });
                    }
                    let mut todo = m;
                    while todo != 0 {
                        let v = index[todo.trailing_zeros() as usize];
                        let mut same = 0;
                        for l in 0..32 {
                            same |= u32::from(index[l] == v) << l;
                        }
                        same &= todo;
                        todo &= !same;
                        let pc = *self.xs.add((i.xs + v) as usize);
                        if pc != meet {
                            self.stack.push(Path { pc, rpc: meet, mask: same });
                        }
                    }
                    self.pop();
                }
                Kind::Exit => {
                    if m != 0 {
                        self.live &= !m;
                        self.mask &= !m;
                        for p in &mut self.stack {
                            p.mask &= !m;
                        }
                        if self.live == 0 {
                            return Event::Done;
                        }
                    }
                    if self.mask == 0 {
                        self.pop();
                    } else {
                        self.pc += 1;
                    }
                }
                Kind::Barrier => {
                    if m == 0 {
                        self.pc += 1;
                        continue;
                    }
                    self.m = m;
                    let s = (i.f)(self, i);
                    if s == status::FAULT {
                        return Event::Fault;
                    }
                    let at = self.pc;
                    self.pc += 1;
                    if s == status::YIELD {
                        return Event::Barrier(at);
                    }
                }
            }
        }
    }

    /// All lanes of the current path will go on together at `rpc`.
    fn meet_at(&mut self, rpc: u32) -> u32 {
        // Without a common point they part until the point the whole path goes to, or until they leave.
        if rpc != NONE && rpc != self.rpc {
            self.stack.push(Path { pc: rpc, rpc: self.rpc, mask: self.mask });
            return rpc;
        }
        self.rpc
    }

    /// The next path that has lanes. A path that met the same point as the one below it merges there: the entry below holds
    /// its lanes already.
    fn pop(&mut self) {
        while let Some(p) = self.stack.pop() {
            if p.mask & self.live != 0 {
                (self.pc, self.rpc, self.mask) = (p.pc, p.rpc, p.mask & self.live);
                return;
            }
        }
        // Lanes whose paths all ended without a meeting point: nothing is left.
        self.mask = 0;
        self.live = 0;
    }
}

impl Default for Warp {
    fn default() -> Self {
        Self::new()
    }
}
