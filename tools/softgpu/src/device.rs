//! The parts softgpu can stand in for.
//! In: an architecture number. Out: limits and rates. Owns: the table. Not here: the time model (`model`).
//! Source: NVIDIA data sheets and the CUDA programming guide's table of technical specifications; the achievable fractions of
//! the peaks are this project's own assumptions and labelled so in reports.

/// One GPU part.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Compute capability times ten.
    pub arch: u32,
    /// Marketing name.
    pub name: &'static str,
    /// Multiprocessors.
    pub num_sms: u32,
    /// Boost clock in kHz.
    pub clock_khz: u32,
    /// Memory clock in kHz and bus width in bits.
    pub memory: (u32, u32),
    /// L2 cache in bytes.
    pub l2_bytes: u32,
    /// Device memory in bytes.
    pub memory_bytes: u64,
    /// Most shared memory a block can have, opted in.
    pub shared_optin: u32,
    /// Shared memory of a multiprocessor.
    pub shared_per_sm: u32,
    /// Threads and blocks of a multiprocessor.
    pub threads_per_sm: u32,
    /// Blocks of a multiprocessor.
    pub blocks_per_sm: u32,
    /// Peak bandwidth in bytes a second.
    pub bandwidth: f64,
    /// Dense bf16 mma.sync ceiling in FLOP a second.
    pub mma_flops: f64,
    /// Fraction of the bandwidth a streaming kernel reaches (assumption).
    pub reached_bandwidth: f64,
    /// Seconds between kernels of a graph (assumption).
    pub gap: f64,
}

/// All parts.
pub const PARTS: [Part; 4] = [
    Part {
        arch: 80,
        name: "NVIDIA A100-SXM4-80GB (softgpu)",
        num_sms: 108,
        clock_khz: 1_410_000,
        memory: (1_593_000, 5120),
        l2_bytes: 40 << 20,
        memory_bytes: 80 << 30,
        shared_optin: 163 << 10,
        shared_per_sm: 164 << 10,
        threads_per_sm: 2048,
        blocks_per_sm: 32,
        bandwidth: 2.039e12,
        mma_flops: 312e12,
        reached_bandwidth: 0.84,
        gap: 2.5e-6,
    },
    Part {
        arch: 86,
        name: "NVIDIA GeForce RTX 3090 (softgpu)",
        num_sms: 82,
        clock_khz: 1_695_000,
        memory: (9_751_000, 384),
        l2_bytes: 6 << 20,
        memory_bytes: 24 << 30,
        shared_optin: 99 << 10,
        shared_per_sm: 100 << 10,
        threads_per_sm: 1536,
        blocks_per_sm: 16,
        bandwidth: 936e9,
        mma_flops: 71e12,
        reached_bandwidth: 0.90,
        gap: 2.0e-6,
    },
    Part {
        arch: 89,
        name: "NVIDIA GeForce RTX 4090 (softgpu)",
        num_sms: 128,
        clock_khz: 2_520_000,
        memory: (10_501_000, 384),
        l2_bytes: 72 << 20,
        memory_bytes: 24 << 30,
        shared_optin: 99 << 10,
        shared_per_sm: 100 << 10,
        threads_per_sm: 1536,
        blocks_per_sm: 24,
        bandwidth: 1.008e12,
        mma_flops: 165e12,
        reached_bandwidth: 0.91,
        gap: 2.0e-6,
    },
    Part {
        arch: 90,
        name: "NVIDIA H100 80GB HBM3 (softgpu)",
        num_sms: 132,
        clock_khz: 1_980_000,
        memory: (2_619_000, 5120),
        l2_bytes: 50 << 20,
        memory_bytes: 80 << 30,
        shared_optin: 227 << 10,
        shared_per_sm: 228 << 10,
        threads_per_sm: 2048,
        blocks_per_sm: 32,
        bandwidth: 3.35e12,
        mma_flops: 620e12,
        reached_bandwidth: 0.86,
        gap: 2.0e-6,
    },
];

impl Part {
    /// The part named by `SOFTGPU_ARCH` (80, 86, 89, 90; with or without `sm_`), or the A100.
    pub fn from_env() -> Part {
        let wish = std::env::var("SOFTGPU_ARCH").unwrap_or_default();
        let wish = wish.trim_start_matches("sm_").parse().unwrap_or(80);
        PARTS.into_iter().find(|p| p.arch == wish).unwrap_or(PARTS[0])
    }

    /// Blocks of a kernel that fit a multiprocessor at once, and what limits them.
    pub fn occupancy(&self, threads: u32, registers: u32, shared: u32) -> (u32, &'static str) {
        let warps = threads.div_ceil(32).max(1);
        // Registers are given out by warp in units of 256, shared memory in units of 128 bytes with 1 KiB for the system.
        let by_regs = 65536 / ((registers.clamp(16, 255) * 32).next_multiple_of(256) * warps);
        let by_shared = self.shared_per_sm / ((shared + 1024).next_multiple_of(128));
        let by_warps = self.threads_per_sm / 32 / warps;
        let limits = [
            (by_warps, "threads"),
            (by_regs, "registers"),
            (by_shared, "shared memory"),
            (self.blocks_per_sm, "blocks"),
        ];
        limits.into_iter().min_by_key(|l| l.0).unwrap_or((0, "threads"))
    }
}
