//! Rotary position embedding, half rotation.
//!
//! In: `[tokens, heads, head_dim]` and a position a token. Out: the same array, rotated. Owns: nothing.
//! Not here: how a family scales its frequencies; it hands them in.

use crate::{Error, Result};

use super::matrix::check_len;
use super::parallel::for_row_blocks;

/// Where a token's angles come from.
#[derive(Debug, Clone, Copy)]
pub struct Angles<'a> {
    /// `[components, tokens]`.
    pub positions: &'a [i32],
    /// Of a position.
    pub components: usize,
    /// A frequency a pair.
    pub inv_freq: &'a [f32],
    /// By frequency, the component of a position that it takes; empty where there is one.
    pub component: &'a [i32],
    /// Factor on cos and sin.
    pub scaling: f32,
}

/// Rotates the pairs `(x[i], x[i + r])`, `r` frequencies, of the first `2r` elements of each head by
/// `position * inv_freq[i]` (an f32 product, as transformers forms it), cos and sin times `scaling`.
/// Elements from `2r` on pass through. `x` is `[tokens, heads, head_dim]`.
pub fn rope(x: &mut [f32], angles: &Angles<'_>, heads: usize, head_dim: usize) -> Result<()> {
    let Angles { positions, components, inv_freq, component, scaling } = *angles;
    let half = inv_freq.len();
    if half * 2 > head_dim {
        return Err(Error::Internal(format!("rope: {half} frequencies for head_dim {head_dim}")));
    }
    let width = heads * head_dim;
    let tokens = positions.len() / components.max(1);
    check_len("rope", "positions", positions.len(), tokens.checked_mul(components))?;
    check_len("rope", "x", x.len(), tokens.checked_mul(width))?;
    let whole = component.len() == half || component.is_empty() && components == 1;
    if !whole || component.iter().any(|c| !(0..components as i64).contains(&i64::from(*c))) {
        return Err(Error::Internal(format!("rope: {component:?} of {components} components, {half} frequencies")));
    }
    for_row_blocks(x, width, |row, x| {
        let mut cos = vec![0.0f32; half];
        let mut sin = vec![0.0f32; half];
        for (token, x) in (row..).zip(x.chunks_exact_mut(width)) {
            for (i, ((c, s), f)) in cos.iter_mut().zip(&mut sin).zip(inv_freq).enumerate() {
                let position = positions[component.get(i).map_or(0, |c| *c as usize) * tokens + token];
                let (sine, cosine) = (position as f32 * f).sin_cos();
                (*c, *s) = (cosine * scaling, sine * scaling);
            }
            for head in x.chunks_exact_mut(head_dim) {
                let (a, b) = head.split_at_mut(half);
                for (((a, b), c), s) in a.iter_mut().zip(b).zip(&cos).zip(&sin) {
                    (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                }
            }
        }
    });
    Ok(())
}
