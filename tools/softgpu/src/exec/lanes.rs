//! Warp-wide operations: a scalar closure becomes a function over 32 lanes.
//! In: closures from `lower`. Out: `OpFn`s. Owns: loading and storing register rows, the choice of CPU vector extensions.
//! Not here: what the closures compute (`lower`, `exec::float`).
//!
//! On x86-64 each wrapper is compiled for AVX-512 and for AVX2; `isa()` picks once a process. All lanes are computed and only
//! active lanes are stored: the closures have no side effects and do not trap.

use super::warp::Warp;
use crate::ir::{Instr, OpFn};
use std::sync::OnceLock;

/// Every lane active.
pub const FULL: u32 = u32::MAX;

/// Vector extensions the wrappers are compiled for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isa {
    /// x86-64 with AVX-512 F, BW, DQ, VL.
    Avx512,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// Another architecture: what its baseline has.
    Base,
    /// x86-64 without AVX2 or FMA: nothing may run.
    Missing,
}

/// The best extension this CPU has. `SOFTGPU_ISA=avx2` lowers it, for tests.
pub fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            match (avx512, avx2, std::env::var("SOFTGPU_ISA").as_deref()) {
                (true, _, Ok("avx2")) => Isa::Avx2,
                (true, ..) => Isa::Avx512,
                (_, true, _) => Isa::Avx2,
                _ => Isa::Missing,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Base
    })
}

/// `multiversion!(pick[A: Bound][A] = body)`: a function `pick::<A>()` that yields `body::<A>` compiled for the best extension.
#[macro_export]
#[doc(hidden)]
macro_rules! multiversion {
    ($vis:vis $name:ident[$($decl:tt)*][$($use:tt)*] = $body:ident) => {
        #[doc = "`"]
        #[doc = stringify!($body)]
        #[doc = "` compiled for this CPU."]
        $vis fn $name<$($decl)*>() -> $crate::ir::OpFn {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi1,bmi2,popcnt,lzcnt")]
            unsafe fn avx512<$($decl)*>(w: &mut $crate::exec::warp::Warp, i: &$crate::ir::Instr) -> u32 {
                unsafe { $body::<$($use)*>(w, i) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,bmi1,bmi2,popcnt,lzcnt")]
            unsafe fn avx2<$($decl)*>(w: &mut $crate::exec::warp::Warp, i: &$crate::ir::Instr) -> u32 {
                unsafe { $body::<$($use)*>(w, i) }
            }
            #[cfg(not(target_arch = "x86_64"))]
            unsafe fn base<$($decl)*>(w: &mut $crate::exec::warp::Warp, i: &$crate::ir::Instr) -> u32 {
                unsafe { $body::<$($use)*>(w, i) }
            }
            #[cfg(target_arch = "x86_64")]
            return match $crate::exec::lanes::isa() {
                $crate::exec::lanes::Isa::Avx512 => avx512::<$($use)*>,
                _ => avx2::<$($use)*>,
            };
            #[cfg(not(target_arch = "x86_64"))]
            return base::<$($use)*>;
        }
    };
}

/// A type a register row holds, one value a lane.
pub trait Lane: Copy + Default + 'static {
    /// Reads a row.
    ///
    /// # Safety
    /// `p` points at a row of this type's width inside a register file.
    unsafe fn load(p: *const u8) -> [Self; 32];
    /// Writes the lanes of `m`.
    ///
    /// # Safety
    /// As for `load`.
    unsafe fn store(p: *mut u8, v: &[Self; 32], m: u32);
}

#[inline(always)]
unsafe fn store_row<T: Copy>(p: *mut u8, v: &[T; 32], m: u32) {
    let to = p as *mut [T; 32];
    if m == FULL {
        *to = *v;
        return;
    }
    let mut r = *to;
    for l in 0..32 {
        r[l] = if (m >> l) & 1 != 0 { v[l] } else { r[l] };
    }
    *to = r;
}

macro_rules! lane_same {
    ($($t:ty),*) => {$(
        impl Lane for $t {
            #[inline(always)]
            unsafe fn load(p: *const u8) -> [Self; 32] { *(p as *const [$t; 32]) }
            #[inline(always)]
            unsafe fn store(p: *mut u8, v: &[Self; 32], m: u32) { store_row(p, v, m) }
        }
    )*};
}
lane_same!(u32, i32, f32, u64, i64, f64);

macro_rules! lane_narrow {
    ($($t:ty),*) => {$(
        impl Lane for $t {
            #[inline(always)]
            unsafe fn load(p: *const u8) -> [Self; 32] {
                let w = *(p as *const [u32; 32]);
                let mut r = [0 as $t; 32];
                for l in 0..32 { r[l] = w[l] as $t; }
                r
            }
            #[inline(always)]
            unsafe fn store(p: *mut u8, v: &[Self; 32], m: u32) {
                // Narrow values are kept zero-extended in their 32-bit lane.
                let mut w = [0u32; 32];
                for l in 0..32 { w[l] = v[l] as u16 as u32; }
                store_row(p, &w, m)
            }
        }
    )*};
}
lane_narrow!(u16, i16);

/// A closure without captures as a value: the wrappers get it by type alone.
#[inline(always)]
unsafe fn conjure<F: Copy>() -> F {
    assert!(size_of::<F>() == 0, "lane closures capture nothing");
    // SAFETY: a zero-sized type has exactly this value.
    unsafe { std::mem::transmute_copy(&()) }
}

#[inline(always)]
unsafe fn run1<A: Lane, R: Lane, F: Fn(A) -> R + Copy>(w: &mut Warp, i: &Instr) -> u32 {
    let f = conjure::<F>();
    let a = A::load(w.regs.add(i.a as usize));
    let mut r = [R::default(); 32];
    for l in 0..32 {
        r[l] = f(a[l]);
    }
    R::store(w.regs.add(i.d as usize), &r, w.m);
    0
}

#[inline(always)]
unsafe fn run2<A: Lane, B: Lane, R: Lane, F: Fn(A, B) -> R + Copy>(w: &mut Warp, i: &Instr) -> u32 {
    let f = conjure::<F>();
    let a = A::load(w.regs.add(i.a as usize));
    let b = B::load(w.regs.add(i.b as usize));
    let mut r = [R::default(); 32];
    for l in 0..32 {
        r[l] = f(a[l], b[l]);
    }
    R::store(w.regs.add(i.d as usize), &r, w.m);
    0
}

#[inline(always)]
unsafe fn run3<A: Lane, B: Lane, C: Lane, R: Lane, F: Fn(A, B, C) -> R + Copy>(w: &mut Warp, i: &Instr) -> u32 {
    let f = conjure::<F>();
    let a = A::load(w.regs.add(i.a as usize));
    let b = B::load(w.regs.add(i.b as usize));
    let c = C::load(w.regs.add(i.c as usize));
    let mut r = [R::default(); 32];
    for l in 0..32 {
        r[l] = f(a[l], b[l], c[l]);
    }
    R::store(w.regs.add(i.d as usize), &r, w.m);
    0
}

/// Three sources and `Instr::x` as an immediate.
#[inline(always)]
unsafe fn run3x<A: Lane, B: Lane, C: Lane, R: Lane, F: Fn(A, B, C, u32) -> R + Copy>(w: &mut Warp, i: &Instr) -> u32 {
    let f = conjure::<F>();
    let a = A::load(w.regs.add(i.a as usize));
    let b = B::load(w.regs.add(i.b as usize));
    let c = C::load(w.regs.add(i.c as usize));
    let x = i.x;
    let mut r = [R::default(); 32];
    for l in 0..32 {
        r[l] = f(a[l], b[l], c[l], x);
    }
    R::store(w.regs.add(i.d as usize), &r, w.m);
    0
}

/// How `setp` and `set` combine the comparison with predicate `c`: 0 not at all, 1 and, 2 or, 3 xor; bit 2 negates `c`.
#[inline(always)]
pub(crate) fn combine(bits: u32, other: u32, x: u32) -> u32 {
    let other = if x & 4 != 0 { !other } else { other };
    match x & 3 {
        1 => bits & other,
        2 => bits | other,
        3 => bits ^ other,
        _ => bits,
    }
}

/// Comparison into predicate `d`, and the combination of its complement into the predicate in `xs[0]`.
#[inline(always)]
unsafe fn run_cmp<A: Lane, B: Lane, F: Fn(A, B) -> bool + Copy>(w: &mut Warp, i: &Instr) -> u32 {
    let f = conjure::<F>();
    let a = A::load(w.regs.add(i.a as usize));
    let b = B::load(w.regs.add(i.b as usize));
    let mut bits = 0u32;
    for l in 0..32 {
        bits |= (f(a[l], b[l]) as u32) << l;
    }
    let other = if i.x & 3 != 0 { *w.preds.add(i.c as usize) } else { 0 };
    let d = w.preds.add(i.d as usize);
    let m = w.m;
    let second = *w.xs.add(i.xs as usize);
    if second != crate::ir::NONE {
        let q = w.preds.add(second as usize);
        *q = (*q & !m) | (combine(!bits, other, i.x) & m);
    }
    *d = (*d & !m) | (combine(bits, other, i.x) & m);
    0
}

#[inline(always)]
unsafe fn run_select<T: Lane>(w: &mut Warp, i: &Instr) -> u32 {
    let a = T::load(w.regs.add(i.a as usize));
    let b = T::load(w.regs.add(i.b as usize));
    let mut p = *w.preds.add(i.c as usize);
    if i.x != 0 {
        p = !p;
    }
    let mut r = [T::default(); 32];
    for l in 0..32 {
        r[l] = if (p >> l) & 1 != 0 { a[l] } else { b[l] };
    }
    T::store(w.regs.add(i.d as usize), &r, w.m);
    0
}

multiversion!(pick1[A: Lane, R: Lane, F: Fn(A) -> R + Copy + 'static][A, R, F] = run1);
multiversion!(pick2[A: Lane, B: Lane, R: Lane, F: Fn(A, B) -> R + Copy + 'static][A, B, R, F] = run2);
multiversion!(pick3[A: Lane, B: Lane, C: Lane, R: Lane, F: Fn(A, B, C) -> R + Copy + 'static][A, B, C, R, F] = run3);
multiversion!(pick3x[A: Lane, B: Lane, C: Lane, R: Lane, F: Fn(A, B, C, u32) -> R + Copy + 'static][A, B, C, R, F] = run3x);
multiversion!(pick_cmp[A: Lane, B: Lane, F: Fn(A, B) -> bool + Copy + 'static][A, B, F] = run_cmp);
multiversion!(pub pick_select[T: Lane][T] = run_select);

/// `d = f(a)`.
pub fn op1<A: Lane, R: Lane, F: Fn(A) -> R + Copy + 'static>(_: F) -> OpFn {
    pick1::<A, R, F>()
}

/// `d = f(a, b)`.
pub fn op2<A: Lane, B: Lane, R: Lane, F: Fn(A, B) -> R + Copy + 'static>(_: F) -> OpFn {
    pick2::<A, B, R, F>()
}

/// `d = f(a, b, c)`.
pub fn op3<A: Lane, B: Lane, C: Lane, R: Lane, F: Fn(A, B, C) -> R + Copy + 'static>(_: F) -> OpFn {
    pick3::<A, B, C, R, F>()
}

/// `d = f(a, b, c, x)` with the immediate of the instruction.
pub fn op3x<A: Lane, B: Lane, C: Lane, R: Lane, F: Fn(A, B, C, u32) -> R + Copy + 'static>(_: F) -> OpFn {
    pick3x::<A, B, C, R, F>()
}

/// `p = f(a, b)` combined as `combine` says; `xs[0]` may name the second predicate.
pub fn op_cmp<A: Lane, B: Lane, F: Fn(A, B) -> bool + Copy + 'static>(_: F) -> OpFn {
    pick_cmp::<A, B, F>()
}
