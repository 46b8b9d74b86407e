//! Patch embedding: the convolution of a vision tower whose windows touch but do not overlap.
//!
//! In: 8-bit pixels of images, where each patch begins. Out: a row a patch. Not here: cutting images into patches.

use std::cell::Cell;

use rayon::prelude::*;

use super::buffer::Buffer;
use super::matmul;
use super::matrix::{Matrix, bad_index, check_len};
use crate::graph::Normalization;
use crate::{Error, Result};

/// Floats of patches, `[patches, 3, side, side]`. `pixels` are images `[height, width, 3]` one after another; `origins`
/// `[patches, 2]` are the byte of a patch's first pixel and the bytes from one of its rows to the next.
pub fn patches(
    out: &mut [f32],
    pixels: &[u8],
    origins: &[i32],
    side: usize,
    normalization: &Normalization,
) -> Result<()> {
    let op = "patch_embed";
    if side == 0 || !origins.len().is_multiple_of(2) {
        return Err(Error::Internal(format!("{op}: {} origins of patches of {side}", origins.len())));
    }
    let (origins, area) = (origins.as_chunks::<2>().0, side * side);
    check_len(op, "patches", out.len(), origins.len().checked_mul(3 * area))?;
    for &[first, stride] in origins {
        let last = i64::from(first) + (side as i64 - 1) * i64::from(stride) + 3 * side as i64;
        if first < 0 || stride < 0 || last > pixels.len() as i64 {
            return Err(bad_index(op, "the end of a patch", last, pixels.len() + 1));
        }
    }
    let table = normalization.table();
    out.par_chunks_exact_mut(3 * area).zip(origins).for_each(|(out, &[first, stride])| {
        for y in 0..side {
            let line = &pixels[first as usize + y * stride as usize..][..3 * side];
            for (x, pixel) in line.chunks_exact(3).enumerate() {
                for (c, value) in pixel.iter().enumerate() {
                    out[c * area + y * side + x] = table[c][*value as usize];
                }
            }
        }
    });
    Ok(())
}

/// `y = patches * w^T + b`, `w` `[n, 3 * side * side]`.
pub fn patch_embed(
    y: &mut [f32],
    (pixels, origins): (&[u8], &[i32]),
    side: usize,
    normalization: &Normalization,
    w: &Matrix<'_>,
    bias: Option<&[f32]>,
) -> Result<()> {
    thread_local! {
        static PATCHES: Cell<Buffer> = const { Cell::new(Buffer::new()) };
    }
    let rows = origins.len() / 2;
    let mut buffer = PATCHES.take();
    let x = buffer.slice(rows * 3 * side * side);
    let done = patches(x, pixels, origins, side, normalization).and_then(|()| matmul::linear(y, x, rows, w, bias));
    PATCHES.set(buffer);
    done
}
