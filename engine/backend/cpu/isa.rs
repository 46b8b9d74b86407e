//! Which vector instructions this process uses.
//!
//! In: CPUID, or a choice by a test or benchmark. Out: an [`Isa`]. Owns: the process-wide choice.
//! Not here: the vector types (`simd/`). Every ISA gives the same bits, so the choice is about speed only.

use std::sync::atomic::{AtomicU8, Ordering};

/// A set of vector instructions that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Isa {
    /// Plain Rust; the oracle of the others.
    Scalar = 1,
    /// AVX2 with FMA and F16C.
    Avx2 = 2,
    /// AVX-512 Foundation.
    Avx512 = 3,
}

static CHOSEN: AtomicU8 = AtomicU8::new(0);

impl Isa {
    /// The sets this machine has, slowest first. Never empty.
    pub fn available() -> Vec<Isa> {
        let mut sets = vec![Isa::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                sets.push(Isa::Avx2);
            }
            if is_x86_feature_detected!("avx512f") {
                sets.push(Isa::Avx512);
            }
        }
        sets
    }

    /// The set in use: the best available one, unless [`Isa::force`] chose another.
    pub fn current() -> Isa {
        match CHOSEN.load(Ordering::Relaxed) {
            1 => Isa::Scalar,
            2 => Isa::Avx2,
            3 => Isa::Avx512,
            _ => {
                let best = Isa::available().last().copied().unwrap_or(Isa::Scalar);
                CHOSEN.store(best as u8, Ordering::Relaxed);
                best
            }
        }
    }

    /// Makes the whole process use `isa`. False, and no change, where the machine lacks it. For tests and
    /// benchmarks; the results of running kernels do not change.
    pub fn force(isa: Isa) -> bool {
        let have = Isa::available().contains(&isa);
        if have {
            CHOSEN.store(isa as u8, Ordering::Relaxed);
        }
        have
    }

    /// The name in benchmark tables.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }
}
