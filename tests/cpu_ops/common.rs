//! Numbers to test with, and ways to compare.

use std::sync::Mutex;

use engine::backend::cpu::isa::Isa;

/// A small generator: the tests need spread and repeatability, nothing more.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next_u32(&mut self) -> u32 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as u32
    }

    /// Roughly normal, standard deviation 1.
    pub fn normal(&mut self) -> f32 {
        let s: f64 = (0..4).map(|_| self.next_u32() as f64 / u32::MAX as f64 - 0.5).sum();
        (s * 3f64.sqrt()) as f32
    }

    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.next_u32() as usize % n
    }
}

/// Largest `|a - b| / scale`, NaN counting as infinite.
pub fn worst(a: &[f32], b: &[f64], scale: f64) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (*a as f64 - b).abs() / scale)
        .fold(0.0, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) })
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// The instruction set is a choice of the whole process; tests that make it take turns.
static CHOICE: Mutex<()> = Mutex::new(());

/// Runs `f` on every instruction set of this machine and asserts that all give the bits of the scalar one.
pub fn same_on_every_isa(f: impl Fn() -> Vec<f32>) -> Vec<f32> {
    let guard = CHOICE.lock().unwrap_or_else(|e| e.into_inner());
    let best = *Isa::available().last().expect("scalar is always there");
    let mut first: Option<Vec<f32>> = None;
    for isa in Isa::available() {
        assert!(Isa::force(isa));
        let y = f();
        match &first {
            None => first = Some(y),
            Some(s) => {
                let at = s.iter().zip(&y).position(|(a, b)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan()));
                assert_eq!(
                    at,
                    None,
                    "{}: {:?} differs from scalar's {:?}",
                    isa.name(),
                    at.map(|i| y[i]),
                    at.map(|i| s[i])
                );
            }
        }
    }
    assert!(Isa::force(best));
    drop(guard);
    first.expect("at least one instruction set")
}

/// Runs `f` in a pool of `threads` threads.
pub fn with_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a small pool").install(f)
}
