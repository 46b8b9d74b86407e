//! Elementary functions on sixteen lanes.
//!
//! In/Out: [`Vector`]s. Owns: the polynomials (fitted by tools/golden/cpu_polynomials.py). Not here: loops over
//! slices (`activations.rs`). Largest errors against f64, measured by tests/cpu_ops.rs over dense sweeps:
//! exp 1 ulp, tanh 2 ulp, erf 2 ulp, all with correct limits at infinities; NaN gives NaN.

use super::simd::Vector;

/// Evaluates `c[0] x^n + c[1] x^(n-1) + ...` by Horner's rule.
#[inline(always)]
fn horner<V: Vector, const N: usize>(x: V, c: [f32; N]) -> V {
    let mut p = V::splat(c[0]);
    for &k in &c[1..] {
        p = p.fma(x, V::splat(k));
    }
    p
}

/// e^x. Gradual underflow below 2^-126, zero below about -104, infinity above 88.73.
#[inline(always)]
pub(super) fn exp<V: Vector>(x: V) -> V {
    // The operand order keeps NaN: max and min give their second operand then.
    let x = V::splat(-105.0).max(x);
    let x = V::splat(89.0).min(x);
    // Adding 1.5 * 2^23 rounds to an integer n, which then sits in the low bits of the sum.
    let magic = V::splat(12_582_912.0);
    let n = x.fma(V::splat(std::f32::consts::LOG2_E), magic).sub(magic);
    // ln 2 in two parts; n * 0.693359375 is exact.
    let r = n.fma(V::splat(-0.693_359_4), x);
    let r = n.fma(V::splat(2.121_944_4e-4), r);
    let q = horner(r, [1.392_617_6e-3, 8.363_173e-3, 4.166_655_6e-2, 1.666_657_8e-1, 0.5]);
    // 1 + (r + r^2 q)
    let p = r.mul(r).fma(q, r).add(V::splat(1.0));
    // 2^n in two factors, so that neither overflows nor is subnormal and the last product rounds once.
    let h = n.fma(V::splat(0.5), magic).sub(magic);
    let bias = V::splat(12_582_912.0 + 127.0);
    let a = h.add(bias).shl23();
    let b = n.sub(h).add(bias).shl23();
    p.mul(a).mul(b)
}

/// Hyperbolic tangent.
#[inline(always)]
pub(super) fn tanh<V: Vector>(x: V) -> V {
    let a = x.abs();
    let z = x.mul(x);
    let p = horner(z, [-6.096_714e-3, 2.099_718e-2, -5.385_091e-2, 1.333_277e-1, -3.333_333e-1]);
    let small = x.mul(z).fma(p, x);
    // 1 - 2 / (e^2a + 1)
    let e = exp(a.add(a)).add(V::splat(1.0));
    let large = V::splat(1.0).sub(V::splat(2.0).div(e)).copysign(x);
    a.select_lt(V::splat(0.625), small, large)
}

/// Error function.
#[inline(always)]
pub(super) fn erf<V: Vector>(x: V) -> V {
    let a = x.abs();
    let z = x.mul(x);
    let c = [7.875_875e-5, -8.016_864e-4, 5.189_087e-3, -2.685_421e-2, 1.128_359_4e-1, -3.761_262_6e-1, 1.283_791_7e-1];
    let small = x.fma(horner(z, c), x);
    // erfc(a) = e^(-a S(a)) on [1, 4]; beyond, erf is 1 to f32.
    let t = V::splat(4.0).min(a);
    let c = [
        -1.166_032_5e-6,
        3.659_301e-5,
        -5.157_455_5e-4,
        4.373_922_5e-3,
        -2.530_860_2e-2,
        1.080_919_1e-1,
        6.339_714_5e-1,
        1.128_957_3,
    ];
    let e = exp(V::splat(0.0).sub(t).mul(horner(t, c)));
    let large = V::splat(1.0).sub(e).copysign(x);
    a.select_lt(V::splat(1.0), small, large)
}

/// 1 / (1 + e^-x)
#[inline(always)]
pub(super) fn sigmoid<V: Vector>(x: V) -> V {
    let one = V::splat(1.0);
    one.div(one.add(exp(V::splat(0.0).sub(x))))
}
