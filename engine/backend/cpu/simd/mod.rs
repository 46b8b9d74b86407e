//! Sixteen f32 lanes, the same arithmetic on every instruction set.
//!
//! In: kernels written once over [`Vector`]. Out: [`run`], which compiles a kernel for each [`Isa`] and calls
//! the one in use. Owns: the definition of each lane operation (that of x86: `max(a, b)` is `b` when either
//! is NaN) and of the reduction order. Not here: mathematics (`math.rs`).
//!
//! Every operation is IEEE-exact or a correctly rounded FMA, so a kernel gives the same bits on every ISA.
//! Soundness of the `unsafe` blocks below: a vector type's operations need its instruction set; its values
//! are made and used only inside `Kernel::run`, and [`run`] calls that only after CPUID said yes.

mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

use half::{bf16, f16};

use super::isa::Isa;
use super::tile::{self, Operands};

/// Lanes of a [`Vector`].
pub(super) const LANES: usize = 16;

/// A machine register's worth of lanes: what the matmul and attention tiles accumulate in.
pub(super) trait Part: Copy {
    /// Lanes of one register; divides [`LANES`].
    const LANES: usize;

    fn splat(v: f32) -> Self;
    /// Reads `Self::LANES` values.
    ///
    /// # Safety
    /// The values must lie in one allocation. Alignment is not needed.
    unsafe fn load(p: *const f32) -> Self;
    /// As `load`, widening exactly.
    ///
    /// # Safety
    /// As `load`.
    unsafe fn load_bf16(p: *const bf16) -> Self;
    /// As `load`, widening exactly.
    ///
    /// # Safety
    /// As `load`.
    unsafe fn load_f16(p: *const f16) -> Self;
    /// Writes `Self::LANES` values.
    ///
    /// # Safety
    /// As `load`, and nothing else uses them meanwhile.
    unsafe fn store(self, p: *mut f32);
    /// Asks for the cache line at `p`. Any address is allowed; nothing is read.
    fn prefetch(p: *const f32);
    /// `self * a + b`, rounded once.
    fn fma(self, a: Self, b: Self) -> Self;
    fn mul(self, o: Self) -> Self;
}

/// Sixteen lanes with all operations that kernels need.
pub(super) trait Vector: Part {
    /// The registers that tiles use; `LANES / Part::LANES` of them make a vector.
    type Part: Part;
    /// Whether an outer-product tile (`tile.rs`) keeps four vectors of columns in registers, or one.
    const WIDE: bool;
    /// Rows of a dot-product tile (`matmul/dot.rs`) four `Part`s wide.
    const DOT_ROWS: usize;

    /// [`tile::outer`], compiled once for this instruction set.
    ///
    /// # Safety
    /// As there.
    unsafe fn outer(rows: usize, vectors: usize, op: Operands);

    fn add(self, o: Self) -> Self;
    fn sub(self, o: Self) -> Self;
    fn div(self, o: Self) -> Self;
    /// `if self > o { self } else { o }`
    fn max(self, o: Self) -> Self;
    /// `if self < o { self } else { o }`
    fn min(self, o: Self) -> Self;
    fn abs(self) -> Self;
    /// The magnitude of `self` with the sign bit of `sign`.
    fn copysign(self, sign: Self) -> Self;
    /// Lane-wise `if self < limit { yes } else { no }`.
    fn select_lt(self, limit: Self, yes: Self, no: Self) -> Self;
    /// Lane j of result i is lane i of argument j.
    fn transpose(rows: [Self; LANES]) -> [Self; LANES];
    /// The bit pattern, shifted left by 23: moves an integer in the low bits into the exponent.
    fn shl23(self) -> Self;

    /// The sixteen lanes.
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        let mut a = [0.0; LANES];
        // SAFETY: `a` holds LANES values.
        unsafe { self.store(a.as_mut_ptr()) };
        a
    }

    /// Lanes from a slice of at least [`LANES`] values.
    #[inline(always)]
    fn from_slice(s: &[f32]) -> Self {
        assert!(s.len() >= LANES);
        // SAFETY: length checked.
        unsafe { Self::load(s.as_ptr()) }
    }

    /// Lanes into a slice of at least [`LANES`] values.
    #[inline(always)]
    fn to_slice(self, s: &mut [f32]) {
        assert!(s.len() >= LANES);
        // SAFETY: length checked.
        unsafe { self.store(s.as_mut_ptr()) }
    }

    /// Sum of the lanes by halving: l + (l+8), then +4, +2, +1.
    #[inline(always)]
    fn reduce_add(self) -> f32 {
        Self::reduce_add4([self; 4])[0]
    }

    /// [`Vector::reduce_add`] of four vectors.
    fn reduce_add4(v: [Self; 4]) -> [f32; 4];

    /// Largest lane by halving, with the semantics of [`Vector::max`].
    #[inline(always)]
    fn reduce_max(self) -> f32 {
        let mut a = self.to_array();
        let mut n = LANES / 2;
        while n > 0 {
            for l in 0..n {
                a[l] = if a[l] > a[l + n] { a[l] } else { a[l + n] };
            }
            n /= 2;
        }
        a[0]
    }
}

/// An element type that weights are stored in.
pub(super) trait Element: Copy + Default + Send + Sync + 'static {
    /// Reads `P::LANES` elements, widened exactly.
    ///
    /// # Safety
    /// They must lie in one allocation, aligned for `Self`.
    unsafe fn load<P: Part>(p: *const Self) -> P;
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<P: Part>(p: *const f32) -> P {
        // SAFETY: as the caller promised.
        unsafe { P::load(p) }
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<P: Part>(p: *const bf16) -> P {
        // SAFETY: as the caller promised.
        unsafe { P::load_bf16(p) }
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<P: Part>(p: *const f16) -> P {
        // SAFETY: as the caller promised.
        unsafe { P::load_f16(p) }
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
}

/// A piece of work written over [`Vector`]. `run` must be `#[inline(always)]`.
pub(super) trait Kernel {
    type Out;
    fn run<V: Vector>(self) -> Self::Out;
}

/// Runs `k` with the instruction set in use.
pub(super) fn run<K: Kernel>(k: K) -> K::Out {
    match Isa::current() {
        // SAFETY: `Isa::current` only gives sets that CPUID reported.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { run_avx512(k) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { run_avx2(k) },
        _ => k.run::<scalar::F32x16>(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn run_avx512<K: Kernel>(k: K) -> K::Out {
    k.run::<x86::Avx512>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<K: Kernel>(k: K) -> K::Out {
    k.run::<x86::Avx2>()
}
