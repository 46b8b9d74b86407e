//! What a launch did, in numbers.
//! In: per-instruction counts of the workers. Out: sums by class, by instruction. Owns: definitions of the counters.
//! Not here: how they are shown (`report`), the time model (`model`).

use crate::exec::grid::Launch;
use crate::ir::Class;

/// Counts of one instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PcCount {
    /// Times a warp issued it.
    pub issued: u64,
    /// Lanes that took part.
    pub lanes: u64,
    /// Global-memory requests of warps.
    pub requests: u64,
    /// Distinct 32-byte sectors, request by request.
    pub sectors: u64,
    /// The least number of sectors the same bytes fit in, request by request.
    pub sectors_min: u64,
    /// Sectors first read by this launch here.
    pub unique_read: u64,
    /// Sectors first written by this launch here.
    pub unique_written: u64,
    /// Passes through the shared-memory banks.
    pub wavefronts: u64,
    /// The least number of passes.
    pub wavefronts_min: u64,
    /// Lanes of atomics.
    pub atomics: u64,
}

impl PcCount {
    /// Adds another worker's counts.
    pub fn add(&mut self, o: &PcCount) {
        self.issued += o.issued;
        self.lanes += o.lanes;
        self.requests += o.requests;
        self.sectors += o.sectors;
        self.sectors_min += o.sectors_min;
        self.unique_read += o.unique_read;
        self.unique_written += o.unique_written;
        self.wavefronts += o.wavefronts;
        self.wavefronts_min += o.wavefronts_min;
        self.atomics += o.atomics;
    }
}

/// Counts of one launch.
#[derive(Clone, Debug, Default)]
pub struct LaunchCounts {
    /// Kernel name.
    pub kernel: String,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads a block.
    pub block: [u32; 3],
    /// Static and dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// Registers of a thread as this program allocated them (an estimate of ptxas').
    pub registers: u32,
    /// Number of launches summed here.
    pub launches: u64,
    /// Counts by instruction; empty when counters are off.
    pub instructions: Vec<PcCount>,
    /// Class of each instruction.
    pub classes: Vec<Class>,
    /// mma FLOPs of one issue of each instruction.
    pub flops: Vec<u32>,
}

impl LaunchCounts {
    /// Takes the counts of a finished launch.
    pub fn new(launch: &Launch, instructions: Vec<PcCount>) -> Self {
        let k = launch.kernel;
        let counted = !instructions.is_empty();
        LaunchCounts {
            kernel: k.name.clone(),
            grid: launch.grid,
            block: launch.block,
            shared_bytes: k.static_shared + launch.dynamic_shared,
            registers: k.registers,
            launches: 1,
            classes: if counted { k.code.iter().map(|i| i.class).collect() } else { Vec::new() },
            flops: if counted { k.flops.clone() } else { Vec::new() },
            instructions,
        }
    }

    /// The sum of a counter over all instructions.
    pub fn sum(&self, f: impl Fn(&PcCount) -> u64) -> u64 {
        self.instructions.iter().map(f).sum()
    }

    /// The sum over one class.
    pub fn of(&self, class: Class, f: impl Fn(&PcCount) -> u64) -> u64 {
        self.instructions.iter().zip(&self.classes).filter(|(_, c)| **c == class).map(|(p, _)| f(p)).sum()
    }

    /// Warp instructions issued.
    pub fn issued(&self) -> u64 {
        self.sum(|c| c.issued)
    }

    /// mma FLOPs.
    pub fn mma_flops(&self) -> u64 {
        self.instructions.iter().zip(&self.flops).map(|(c, f)| c.issued * u64::from(*f)).sum()
    }

    /// Active lanes over 32 times the warp instructions.
    pub fn lane_ratio(&self) -> f64 {
        let issued = self.issued();
        if issued == 0 { 1.0 } else { self.sum(|c| c.lanes) as f64 / (32 * issued) as f64 }
    }

    /// FLOPs outside the tensor cores is not known exactly; this is float lanes, an fma counting as one instruction.
    pub fn float_lanes(&self) -> u64 {
        self.of(Class::Float32, |c| c.lanes) + self.of(Class::Half, |c| c.lanes)
    }
}
