//! Sums and products of arrays, element by element.
//!
//! In: f32 arrays of one length. Out: the first, overwritten. Owns: nothing. Not here: activations.
//! One IEEE operation an element, so plain loops are the same on every instruction set.

use crate::Result;

use super::matrix::check_len;
use super::parallel::for_row_blocks;

/// `y = y + x`.
pub fn add(y: &mut [f32], x: &[f32]) -> Result<()> {
    check_len("add", "x", x.len(), Some(y.len()))?;
    for_row_blocks(y, 1, |at, y| {
        for (y, x) in y.iter_mut().zip(&x[at..]) {
            *y += x;
        }
    });
    Ok(())
}

/// `y = y * x`.
pub fn mul(y: &mut [f32], x: &[f32]) -> Result<()> {
    check_len("mul", "x", x.len(), Some(y.len()))?;
    mul_unchecked(y, x);
    Ok(())
}

/// [`mul`] of arrays known to be of one length.
pub(super) fn mul_unchecked(y: &mut [f32], x: &[f32]) {
    for_row_blocks(y, 1, |at, y| {
        for (y, x) in y.iter_mut().zip(&x[at..]) {
            *y *= x;
        }
    });
}
