//! Tensor-core instructions: mma.sync fragments and arithmetic, ldmatrix.
//! In: fragment registers, shared memory. Out: fragment registers. Owns: fragment layouts, accumulation order.
//! Not here: shared-memory checks (`memory`).
//! Source: PTX ISA, "Matrix Fragments for mma.m16n8k*", "ldmatrix".
//!
//! Layouts of m16n8k*, g = lane / 4, t = lane % 4, e elements a 32-bit register (tf32 1, f16 and bf16 2, 8-bit 4, 4-bit 8):
//!   A register r holds row g + 8 (r % 2), columns (k) 4e (r / 2) + e t .. + e
//!   B register r holds rows (k) 4e r + e t .. + e, column g
//!   C and D element i holds row g + 8 (i / 2), column 2 t + i % 2; f16 accumulators pack elements 0, 1 and 2, 3.
//! Arithmetic: for k from 0 up, d = fma(a[k], b[k], d) from d = c, in f32 (products of 16-bit formats are exact in it); an f16
//! accumulator is rounded once at the end. Hardware adds several products at a time and truncates: compare with a tolerance.

use super::fault::FaultKind;
use super::float::{f32_to_half, half_to_f32};
use super::memory::{addresses, lanes, shared_access};
use super::shared::Access;
use super::status;
use super::warp::Warp;
use crate::ir::Instr;
use crate::memory::SHARED_WINDOW;
use crate::multiversion;

/// Float element formats of a fragment register.
trait Format: Copy + 'static {
    /// Elements a register.
    const E: usize;
    /// Element `j` of a register.
    fn get(word: u32, j: usize) -> f32;
}
#[derive(Clone, Copy)]
struct Half;
#[derive(Clone, Copy)]
struct Bfloat;
#[derive(Clone, Copy)]
struct Tf32;

impl Format for Half {
    const E: usize = 2;
    #[inline(always)]
    fn get(word: u32, j: usize) -> f32 {
        half_to_f32((word >> (16 * j)) as u16)
    }
}
impl Format for Bfloat {
    const E: usize = 2;
    #[inline(always)]
    fn get(word: u32, j: usize) -> f32 {
        f32::from_bits(if j == 0 { word << 16 } else { word & 0xffff_0000 })
    }
}
impl Format for Tf32 {
    const E: usize = 1;
    #[inline(always)]
    fn get(word: u32, _: usize) -> f32 {
        // The tensor core reads the upper 19 bits.
        f32::from_bits(word & 0xffff_e000)
    }
}

#[inline(always)]
unsafe fn word(w: &Warp, i: &Instr, n: usize) -> *mut [u32; 32] {
    w.regs.add(*w.xs.add(i.xs as usize + n) as usize) as *mut [u32; 32]
}

unsafe fn all_lanes(w: &mut Warp) -> bool {
    if w.m == u32::MAX {
        return true;
    }
    let (m, lane) = (w.m, (!w.m).trailing_zeros());
    w.fault(FaultKind::WarpDivergence, lane, None, format!("all 32 lanes must run it, active are {m:#010x}"));
    false
}

/// `xs` = d, a, b, c registers. `HALF`: f16 accumulators in two registers instead of four.
#[inline(always)]
unsafe fn mma_float<F: Format, const K: usize, const HALF: bool>(w: &mut Warp, i: &Instr) -> u32 {
    if !all_lanes(w) {
        return status::FAULT;
    }
    let (num_a, num_b) = (K / F::E / 2, K / F::E / 4);
    let num_c = if HALF { 2 } else { 4 };
    // a[k][row], b[k][column]: a word of lane (g, t) holds elements of row (or column) g.
    let mut a = [[0f32; 16]; K];
    let mut b = [[0f32; 8]; K];
    for r in 0..num_a {
        let words = by_thread(&*word(w, i, num_c + r));
        for t in 0..4 {
            for j in 0..F::E {
                let to = &mut a[4 * F::E * (r / 2) + F::E * t + j];
                for g in 0..8 {
                    to[8 * (r % 2) + g] = F::get(words[t][g], j);
                }
            }
        }
    }
    for r in 0..num_b {
        let words = by_thread(&*word(w, i, num_c + num_a + r));
        for t in 0..4 {
            for j in 0..F::E {
                let to = &mut b[4 * F::E * r + F::E * t + j];
                for g in 0..8 {
                    to[g] = F::get(words[t][g], j);
                }
            }
        }
    }
    // Rows of eight: lane 4 g + t of a register pair holds columns 2 t and 2 t + 1 of row g.
    let mut c = [[0f32; 64]; 2];
    for half in 0..2 {
        if HALF {
            let v = &*word(w, i, num_c + num_a + num_b + half);
            for l in 0..32 {
                c[half][2 * l] = half_to_f32(v[l] as u16);
                c[half][2 * l + 1] = half_to_f32((v[l] >> 16) as u16);
            }
        } else {
            let v0 = &*word(w, i, num_c + num_a + num_b + 2 * half);
            let v1 = &*word(w, i, num_c + num_a + num_b + 2 * half + 1);
            for l in 0..32 {
                c[half][2 * l] = f32::from_bits(v0[l]);
                c[half][2 * l + 1] = f32::from_bits(v1[l]);
            }
        }
    }
    for half in 0..2 {
        // Eight rows at a time: their sums are independent and fit the vector registers.
        let mut acc = [[0f32; 8]; 8];
        for row in 0..8 {
            acc[row].copy_from_slice(&c[half][8 * row..8 * row + 8]);
        }
        for k in 0..K {
            for row in 0..8 {
                let x = a[k][8 * half + row];
                for n in 0..8 {
                    acc[row][n] = x.mul_add(b[k][n], acc[row][n]);
                }
            }
        }
        for row in 0..8 {
            c[half][8 * row..8 * row + 8].copy_from_slice(&acc[row]);
        }
    }
    for half in 0..2 {
        if HALF {
            let d = &mut *word(w, i, half);
            for l in 0..32 {
                d[l] = u32::from(f32_to_half(c[half][2 * l])) | u32::from(f32_to_half(c[half][2 * l + 1])) << 16;
            }
        } else {
            let d0 = &mut *word(w, i, 2 * half);
            for l in 0..32 {
                d0[l] = super::float::canon(c[half][2 * l]).to_bits();
            }
            let d1 = &mut *word(w, i, 2 * half + 1);
            for l in 0..32 {
                d1[l] = super::float::canon(c[half][2 * l + 1]).to_bits();
            }
        }
    }
    status::OK
}

/// Words of lanes 4 g + t as `[t][g]`.
#[inline(always)]
fn by_thread(v: &[u32; 32]) -> [[u32; 8]; 4] {
    let mut r = [[0; 8]; 4];
    for t in 0..4 {
        for g in 0..8 {
            r[t][g] = v[4 * g + t];
        }
    }
    r
}

/// Integer mma: `BITS` 8 or 4; `x` bit 0: A signed, bit 1: B signed, bit 2: saturate.
#[inline(always)]
unsafe fn mma_int<const BITS: usize, const K: usize>(w: &mut Warp, i: &Instr) -> u32 {
    if !all_lanes(w) {
        return status::FAULT;
    }
    let e = 32 / BITS;
    let (num_a, num_b) = (K / e / 2, K / e / 4);
    let (signed_a, signed_b) = (i.x & 1 != 0, i.x & 2 != 0);
    let element = |v: u32, j: usize, signed: bool| -> i32 {
        let up = v << (32 - BITS - BITS * j);
        if signed { up as i32 >> (32 - BITS) } else { (up >> (32 - BITS)) as i32 }
    };
    let mut a = [[0i32; 16]; K];
    let mut b = [[0i32; 8]; K];
    for r in 0..num_a {
        let words = by_thread(&*word(w, i, 4 + r));
        for t in 0..4 {
            for j in 0..e {
                let to = &mut a[4 * e * (r / 2) + e * t + j];
                for g in 0..8 {
                    to[8 * (r % 2) + g] = element(words[t][g], j, signed_a);
                }
            }
        }
    }
    for r in 0..num_b {
        let words = by_thread(&*word(w, i, 4 + num_a + r));
        for t in 0..4 {
            for j in 0..e {
                let to = &mut b[4 * e * r + e * t + j];
                for g in 0..8 {
                    to[g] = element(words[t][g], j, signed_b);
                }
            }
        }
    }
    let mut sum = [[0i32; 8]; 16];
    for k in 0..K {
        for row in 0..16 {
            for n in 0..8 {
                sum[row][n] += a[k][row] * b[k][n];
            }
        }
    }
    for r in 0..4 {
        let c = *word(w, i, 4 + num_a + num_b + r);
        let d = &mut *word(w, i, r);
        for l in 0..32 {
            let s = sum[l / 4 + 8 * (r / 2)][2 * (l % 4) + r % 2];
            let v = if i.x & 4 != 0 { (c[l] as i32).saturating_add(s) } else { (c[l] as i32).wrapping_add(s) };
            d[l] = v as u32;
        }
    }
    status::OK
}

macro_rules! float_mma {
    ($pick:ident, $body:ident, $format:ty, $k:literal, $half:literal) => {
        #[inline(always)]
        unsafe fn $body(w: &mut Warp, i: &Instr) -> u32 {
            mma_float::<$format, $k, $half>(w, i)
        }
        multiversion!($pick[][] = $body);
    };
}
float_mma!(half_16, half_16_body, Half, 16, false);
float_mma!(half_16h, half_16h_body, Half, 16, true);
float_mma!(half_8, half_8_body, Half, 8, false);
float_mma!(half_8h, half_8h_body, Half, 8, true);
float_mma!(bf_16, bf_16_body, Bfloat, 16, false);
float_mma!(bf_8, bf_8_body, Bfloat, 8, false);
float_mma!(tf_8, tf_8_body, Tf32, 8, false);
float_mma!(tf_4, tf_4_body, Tf32, 4, false);

macro_rules! int_mma {
    ($pick:ident, $body:ident, $bits:literal, $k:literal) => {
        #[inline(always)]
        unsafe fn $body(w: &mut Warp, i: &Instr) -> u32 {
            mma_int::<$bits, $k>(w, i)
        }
        multiversion!($pick[][] = $body);
    };
}
int_mma!(int8_16, int8_16_body, 8, 16);
int_mma!(int8_32, int8_32_body, 8, 32);
int_mma!(int4_32, int4_32_body, 4, 32);
int_mma!(int4_64, int4_64_body, 4, 64);

/// An mma shape: the function and the registers of d, a, b, c.
pub struct MmaShape {
    /// The work.
    pub f: crate::ir::OpFn,
    /// Registers of D (and C), A, B.
    pub registers: [usize; 3],
}

/// The function for m16n8k`k` with element type `ty` and accumulators `acc` ("f32", "f16", "s32").
pub fn mma(k: u32, ty: &str, acc: &str) -> Option<MmaShape> {
    let shape = |f, registers| Some(MmaShape { f, registers });
    match (k, ty, acc) {
        (16, "f16", "f32") => shape(half_16(), [4, 4, 2]),
        (16, "f16", "f16") => shape(half_16h(), [2, 4, 2]),
        (8, "f16", "f32") => shape(half_8(), [4, 2, 1]),
        (8, "f16", "f16") => shape(half_8h(), [2, 2, 1]),
        (16, "bf16", "f32") => shape(bf_16(), [4, 4, 2]),
        (8, "bf16", "f32") => shape(bf_8(), [4, 2, 1]),
        (8, "tf32", "f32") => shape(tf_8(), [4, 4, 2]),
        (4, "tf32", "f32") => shape(tf_4(), [4, 2, 1]),
        (16, "s8" | "u8", "s32") => shape(int8_16(), [4, 2, 1]),
        (32, "s8" | "u8", "s32") => shape(int8_32(), [4, 4, 2]),
        (32, "s4" | "u4", "s32") => shape(int4_32(), [4, 2, 1]),
        (64, "s4" | "u4", "s32") => shape(int4_64(), [4, 4, 2]),
        _ => None,
    }
}

multiversion!(pub ldmatrix[][] = ldmatrix_body);

/// `ldmatrix`: address row `a`, destinations `xs[..n]`, `x` = the `MemOp` | transposed << 31. Lanes 8 q .. 8 q + 8 name the
/// rows of matrix q, 16 bytes each. Lane (g, t) gets elements 2t, 2t + 1 of row g; transposed, elements g of rows 2t, 2t + 1.
#[inline(always)]
unsafe fn ldmatrix_body(w: &mut Warp, i: &Instr) -> u32 {
    if !all_lanes(w) {
        return status::FAULT;
    }
    let op = w.block().launch().kernel.mems[(i.x & 0x7fff_ffff) as usize];
    let mut a = addresses(w, i.a, op.wide_address, op.offset);
    if op.wide_address {
        for v in &mut a {
            if *v >= SHARED_WINDOW {
                *v -= SHARED_WINDOW;
            }
        }
    }
    let n = op.count as usize;
    let m = if n == 4 { u32::MAX } else { (1u32 << (8 * n)) - 1 };
    if let Err(s) = shared_access(w, &a, m, 16, Access::Read, None) {
        return s;
    }
    let base = w.block().shared.pointer();
    for q in 0..n {
        // As halves, the register row is the matrix row by row: lane 4 g + t holds elements 2 t and 2 t + 1 of row g.
        let mut rows = [[0u16; 8]; 8];
        for r in 0..8 {
            rows[r] = (base.add(a[8 * q + r] as usize) as *const [u16; 8]).read_unaligned();
        }
        let d = word(w, i, q) as *mut [[u16; 8]; 8];
        *d = if i.x >> 31 != 0 { transpose(&rows) } else { rows };
    }
    status::OK
}

/// The transposed matrix.
#[inline(always)]
fn transpose(rows: &[[u16; 8]; 8]) -> [[u16; 8]; 8] {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE2 is part of the architecture; the arrays are 128 bytes, moved without alignment.
    unsafe {
        use std::arch::x86_64::*;
        let r: [__m128i; 8] = std::array::from_fn(|n| _mm_loadu_si128(rows[n].as_ptr().cast()));
        // Interleaving halves of rows n and n + 4 three times brings every column together.
        let mut v = r;
        for _ in 0..3 {
            let o = v;
            for n in 0..4 {
                v[2 * n] = _mm_unpacklo_epi16(o[n], o[n + 4]);
                v[2 * n + 1] = _mm_unpackhi_epi16(o[n], o[n + 4]);
            }
        }
        let mut out = [[0u16; 8]; 8];
        for n in 0..8 {
            _mm_storeu_si128(out[n].as_mut_ptr().cast(), v[n]);
        }
        out
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::array::from_fn(|r| std::array::from_fn(|c| rows[c][r]))
}

/// `stmatrix`: address row `a`, sources `xs[..n]`, `x` as for `ldmatrix`, whose inverse it is.
pub unsafe fn stmatrix(w: &mut Warp, i: &Instr) -> u32 {
    if !all_lanes(w) {
        return status::FAULT;
    }
    let op = w.block().launch().kernel.mems[(i.x & 0x7fff_ffff) as usize];
    let mut a = addresses(w, i.a, op.wide_address, op.offset);
    if op.wide_address {
        a.iter_mut().filter(|v| **v >= SHARED_WINDOW).for_each(|v| *v -= SHARED_WINDOW);
    }
    let n = op.count as usize;
    let m = if n == 4 { u32::MAX } else { (1u32 << (8 * n)) - 1 };
    if let Err(s) = shared_access(w, &a, m, 16, Access::Write, None) {
        return s;
    }
    let base = w.block().shared.pointer();
    for q in 0..n {
        let s = *word(w, i, q);
        let mut rows = [[0u16; 8]; 8];
        for l in 0..32 {
            let (g, t) = (l / 4, 2 * (l % 4));
            for (k, h) in [(t, s[l] as u16), (t + 1, (s[l] >> 16) as u16)] {
                if i.x >> 31 != 0 {
                    rows[k][g] = h;
                } else {
                    rows[g][k] = h;
                }
            }
        }
        for l in lanes(0xff << (8 * q)) {
            (base.add(a[l] as usize) as *mut [u16; 8]).write_unaligned(rows[l % 8]);
        }
    }
    status::OK
}

/// `movmatrix.trans`: the transposed matrix of registers `a` in registers `d`.
pub unsafe fn movmatrix(w: &mut Warp, i: &Instr) -> u32 {
    if !all_lanes(w) {
        return status::FAULT;
    }
    let s = *(w.regs.add(i.a as usize) as *const [u32; 32]);
    // Element (row, column) is half column % 2 of lane 4 row + column / 2.
    let element = |r: usize, c: usize| s[4 * r + c / 2] >> (16 * (c % 2)) & 0xffff;
    let d = &mut *(w.regs.add(i.d as usize) as *mut [u32; 32]);
    for (l, v) in d.iter_mut().enumerate() {
        *v = element(2 * (l % 4), l / 4) | element(2 * (l % 4) + 1, l / 4) << 16;
    }
    status::OK
}
