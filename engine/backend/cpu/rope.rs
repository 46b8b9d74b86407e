//! Rotary position embedding, half rotation.
//!
//! In: `[tokens, heads, head_dim]` and a position a token. Out: the same array, rotated. Owns: nothing.
//! Not here: how a family scales its frequencies; it hands them in.

use crate::{Error, Result};

use super::matrix::check_len;
use super::parallel::for_row_blocks;

/// Rotates the pairs `(x[i], x[i + r])`, `r = inv_freq.len()`, of the first `2r` elements of each head by
/// `position * inv_freq[i]` (an f32 product, as transformers forms it), cos and sin times `scaling`.
/// Elements from `2r` on pass through. `x` is `[tokens, heads, head_dim]`.
pub fn rope(
    x: &mut [f32],
    positions: &[i32],
    heads: usize,
    head_dim: usize,
    inv_freq: &[f32],
    scaling: f32,
) -> Result<()> {
    let half = inv_freq.len();
    if half * 2 > head_dim {
        return Err(Error::Internal(format!("rope: {half} frequencies for head_dim {head_dim}")));
    }
    let width = heads * head_dim;
    check_len("rope", "x", x.len(), positions.len().checked_mul(width))?;
    for_row_blocks(x, width, |row, x| {
        let mut cos = vec![0.0f32; half];
        let mut sin = vec![0.0f32; half];
        for (x, &position) in x.chunks_exact_mut(width).zip(&positions[row..]) {
            for ((c, s), f) in cos.iter_mut().zip(&mut sin).zip(inv_freq) {
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
