//! Activation functions.
//!
//! In: f32 values. Out: f32 values. Owns: the formulas, as transformers computes them. Not here: polynomials.

use crate::Result;
use crate::graph::Activation;

use super::math::{erf, exp, sigmoid, tanh};
use super::matrix::check_len;
use super::parallel::for_row_blocks;
use super::simd::{self, Kernel, LANES, Vector};

/// `x = act(x)`, element by element.
pub fn activation(x: &mut [f32], kind: Activation) {
    for_row_blocks(x, 1, |_, x| simd::run(Apply { x, kind }));
}

/// `y = silu(gate) * up`, element by element.
pub fn silu_mul(y: &mut [f32], gate: &[f32], up: &[f32]) -> Result<()> {
    check_len("silu_mul", "gate", gate.len(), Some(y.len()))?;
    check_len("silu_mul", "up", up.len(), Some(y.len()))?;
    for_row_blocks(y, 1, |at, y| {
        y.copy_from_slice(&gate[at..at + y.len()]);
        simd::run(Apply { x: y, kind: Activation::Silu });
        for (y, u) in y.iter_mut().zip(&up[at..]) {
            *y *= u;
        }
    });
    Ok(())
}

/// `y = tanh(y)`, element by element.
pub fn tanh_in_place(x: &mut [f32]) {
    for_row_blocks(x, 1, |_, x| simd::run(Tanh { x }));
}

struct Apply<'a> {
    x: &'a mut [f32],
    kind: Activation,
}

impl Kernel for Apply<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        activate::<V>(self.x, self.kind);
    }
}

struct Tanh<'a> {
    x: &'a mut [f32],
}

impl Kernel for Tanh<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        map::<V, TanhOf>(self.x);
    }
}

/// A function of one vector.
trait Function {
    fn of<V: Vector>(x: V) -> V;
}

struct Silu;
struct GeluErf;
struct GeluTanh;
struct QuickGelu;
struct Relu;
struct TanhOf;

impl Function for Silu {
    /// x / (1 + e^-x)
    #[inline(always)]
    fn of<V: Vector>(x: V) -> V {
        x.div(V::splat(1.0).add(exp(V::splat(0.0).sub(x))))
    }
}

impl Function for GeluErf {
    /// x/2 (1 + erf(x / sqrt 2))
    #[inline(always)]
    fn of<V: Vector>(x: V) -> V {
        let e = erf(x.mul(V::splat(std::f32::consts::FRAC_1_SQRT_2)));
        x.mul(V::splat(0.5)).mul(e.add(V::splat(1.0)))
    }
}

impl Function for GeluTanh {
    /// x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
    #[inline(always)]
    fn of<V: Vector>(x: V) -> V {
        let cube = x.mul(x).mul(x);
        let inner = cube.fma(V::splat(0.044715), x).mul(V::splat(0.797_884_6));
        x.mul(V::splat(0.5)).mul(tanh(inner).add(V::splat(1.0)))
    }
}

impl Function for QuickGelu {
    /// x sigmoid(1.702 x)
    #[inline(always)]
    fn of<V: Vector>(x: V) -> V {
        x.mul(sigmoid(x.mul(V::splat(1.702))))
    }
}

impl Function for Relu {
    #[inline(always)]
    fn of<V: Vector>(x: V) -> V {
        // NaN stays: max gives its second operand then.
        V::splat(0.0).max(x)
    }
}

impl Function for TanhOf {
    #[inline(always)]
    fn of<V: Vector>(x: V) -> V {
        tanh(x)
    }
}

/// `x = act(x)` on this thread.
#[inline(always)]
pub(super) fn activate<V: Vector>(x: &mut [f32], kind: Activation) {
    match kind {
        Activation::Silu => map::<V, Silu>(x),
        Activation::GeluErf => map::<V, GeluErf>(x),
        Activation::GeluTanh => map::<V, GeluTanh>(x),
        Activation::QuickGelu => map::<V, QuickGelu>(x),
        Activation::Relu => map::<V, Relu>(x),
    }
}

#[inline(always)]
fn map<V: Vector, F: Function>(x: &mut [f32]) {
    let mut chunks = x.chunks_exact_mut(LANES);
    for c in &mut chunks {
        F::of(V::from_slice(c)).to_slice(c);
    }
    let rest = chunks.into_remainder();
    let mut last = [0.0; LANES];
    last[..rest.len()].copy_from_slice(rest);
    let last = F::of(V::from_slice(&last)).to_array();
    rest.copy_from_slice(&last[..rest.len()]);
}
