//! Resizing with Pillow's bits.
//!
//! In: an 8-bit RGB image, a size, a filter. Out: the image that `PIL.Image.resize` of Pillow 13 gives for mode RGB
//! without `reducing_gap`. Owns: filters, fixed-point coefficients, order of the passes.
//! Not here: the vector code of the passes (`resample_simd.rs`), choosing a size.
//!
//! Each pass sums `value * weight` in 32-bit integers, weights scaled by 2^22, and clips to 8 bits; the second pass
//! reads the clipped values of the first. Integer sums do not depend on their order, so vector code has the same bits.

use rayon::prelude::*;

use super::RgbImage;
use super::resample_simd;

/// Bits behind the point of a weight: 8 for the value and 2 for overshoot of negative lobes are kept free in an i32.
pub(super) const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Rows that one task of the horizontal pass works on; a multiple of the rows the vector code takes at once.
const ROWS_PER_TASK: usize = 16;

/// Resampling filters, named as Pillow's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
    Nearest,
    Box,
    Bilinear,
    Hamming,
    Bicubic,
    Lanczos,
}

impl Filter {
    /// The filter that a preprocessor config's `resample` names (`PIL.Image.Resampling`); none for an unknown number.
    pub fn from_pil(id: i64) -> Option<Filter> {
        Some(match id {
            0 => Filter::Nearest,
            1 => Filter::Lanczos,
            2 => Filter::Bilinear,
            3 => Filter::Bicubic,
            4 => Filter::Box,
            5 => Filter::Hamming,
            _ => return None,
        })
    }

    /// Half the width of the filter at scale 1, in source pixels.
    fn support(self) -> f64 {
        match self {
            Filter::Nearest => 0.0,
            Filter::Box => 0.5,
            Filter::Bilinear | Filter::Hamming => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    /// The weight at distance `x` from the centre.
    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| {
            if x == 0.0 {
                return 1.0;
            }
            let x = x * std::f64::consts::PI;
            x.sin() / x
        };
        match self {
            Filter::Nearest => 0.0,
            Filter::Box => f64::from(x > -0.5 && x <= 0.5),
            Filter::Bilinear => (1.0 - x.abs()).max(0.0),
            Filter::Hamming => {
                let x = x.abs();
                if x == 0.0 {
                    1.0
                } else if x >= 1.0 {
                    0.0
                } else {
                    // The two constants are single precision in Pillow.
                    let x = x * std::f64::consts::PI;
                    x.sin() / x * (f64::from(0.54f32) + f64::from(0.46f32) * x.cos())
                }
            }
            Filter::Bicubic => {
                const A: f64 = -0.5;
                let x = x.abs();
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Filter::Lanczos => 0.0,
        }
    }
}

/// The source pixels and fixed-point weights of every output pixel along one axis.
pub(super) struct Taps {
    /// First source pixel and number of source pixels, an output pixel.
    pub bounds: Vec<(usize, usize)>,
    /// `[output, stride]`, weights times 2^22; zero behind the last tap.
    pub weights: Vec<i32>,
    /// Weights kept an output pixel.
    pub stride: usize,
}

impl Taps {
    /// Weights for shrinking or stretching `source` pixels to `output`.
    pub fn new(source: usize, output: usize, filter: Filter) -> Taps {
        let scale = source as f64 / output as f64;
        let filter_scale = scale.max(1.0);
        let inverse = 1.0 / filter_scale;
        let support = filter.support() * filter_scale;
        let stride = support.ceil() as usize * 2 + 1;
        let mut bounds = Vec::with_capacity(output);
        let mut weights = vec![0i32; output * stride];
        let mut exact = vec![0.0f64; stride];
        for (at, out) in weights.chunks_exact_mut(stride).enumerate() {
            let center = (at as f64 + 0.5) * scale;
            // Casts to an integer cut towards zero, and negative values stop at 0.
            let first = (center - support + 0.5) as usize;
            let last = ((center + support + 0.5) as usize).min(source);
            let count = last.saturating_sub(first).min(stride);
            let mut sum = 0.0;
            for (tap, weight) in exact[..count].iter_mut().enumerate() {
                *weight = filter.weight(((tap + first) as f64 - center + 0.5) * inverse);
                sum += *weight;
            }
            for (weight, out) in exact[..count].iter().zip(out) {
                let weight = if sum != 0.0 { weight / sum } else { *weight };
                let rounding = if weight < 0.0 { -0.5 } else { 0.5 };
                *out = (rounding + weight * f64::from(1u32 << PRECISION_BITS)) as i32;
            }
            bounds.push((first, count));
        }
        Taps { bounds, weights, stride }
    }

    /// The weights of output pixel `at`.
    pub fn weights_of(&self, at: usize) -> &[i32] {
        &self.weights[at * self.stride..at * self.stride + self.bounds[at].1]
    }
}

/// Rounds and clips a sum of `value * weight` that started at [`HALF`].
#[inline(always)]
pub(super) fn clip8(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// One half, in the scale of the sums.
pub(super) const HALF: i32 = 1 << (PRECISION_BITS - 1);

/// Resizes as `PIL.Image.resize((width, height), filter)` does for mode RGB, bit for bit.
///
/// Downscaling widens the filter (antialiasing). An image without pixels, or a side of zero, gives an image without pixels.
pub fn resize(image: &RgbImage, width: usize, height: usize, filter: Filter) -> RgbImage {
    if (width, height) == (image.width, image.height) {
        return image.clone();
    }
    if width == 0 || height == 0 || image.width == 0 || image.height == 0 {
        return RgbImage { width, height, pixels: vec![0; width * height * 3] };
    }
    if filter == Filter::Nearest {
        return nearest(image, width, height);
    }
    // Pillow runs the vertical pass first where the height shrinks by more than twice what the width does.
    let shrink_y = image.height as i64 - height as i64;
    let vertical_first = shrink_y > 0 && shrink_y > (image.width as i64 - width as i64) * 2;
    let (wide, tall) = (width != image.width, height != image.height);
    let pixels = match (wide, tall) {
        (true, true) if vertical_first => {
            let columns = Taps::new(image.height, height, filter);
            let middle = vertical(&image.pixels, image.width * 3, &columns, 0);
            horizontal(&middle, image.width, &Taps::new(image.width, width, filter))
        }
        (true, true) => {
            let columns = Taps::new(image.height, height, filter);
            // Rows that the vertical pass reads; the first and the last output row reach furthest.
            let first = columns.bounds.first().map_or(0, |b| b.0);
            let last = columns.bounds.last().map_or(0, |b| b.0 + b.1).max(first);
            let rows = &image.pixels[first * image.width * 3..last * image.width * 3];
            let middle = horizontal(rows, image.width, &Taps::new(image.width, width, filter));
            vertical(&middle, width * 3, &columns, first)
        }
        (true, false) => horizontal(&image.pixels, image.width, &Taps::new(image.width, width, filter)),
        (false, _) => vertical(&image.pixels, width * 3, &Taps::new(image.height, height, filter), 0),
    };
    RgbImage { width, height, pixels }
}

/// Resizes rows: `[rows, source width, 3]` to `[rows, output width, 3]`.
fn horizontal(source: &[u8], source_width: usize, taps: &Taps) -> Vec<u8> {
    let (source_row, row) = (source_width * 3, taps.bounds.len() * 3);
    let rows = source.len() / source_row;
    let mut out = vec![0u8; rows * row];
    let pass = resample_simd::HorizontalPass::new(taps);
    out.par_chunks_mut(ROWS_PER_TASK * row).enumerate().for_each(|(task, out)| {
        pass.run(&source[task * ROWS_PER_TASK * source_row..], source_row, out);
    });
    out
}

/// Resizes columns: `[rows, row]` bytes to `[output rows, row]`; `offset` is the source row that `source` starts with.
fn vertical(source: &[u8], row: usize, taps: &Taps, offset: usize) -> Vec<u8> {
    let mut out = vec![0u8; taps.bounds.len() * row];
    out.par_chunks_mut(row).enumerate().for_each(|(y, out)| {
        let (first, count) = taps.bounds[y];
        let rows = &source[(first - offset) * row..(first - offset + count) * row];
        resample_simd::vertical_row(rows, taps.weights_of(y), out);
    });
    out
}

/// Takes the source pixel under each output pixel's centre. The centre is summed up step by step, as Pillow does:
/// rounding of the sum decides ties.
fn nearest(image: &RgbImage, width: usize, height: usize) -> RgbImage {
    let centers = |source: usize, output: usize| {
        let step = source as f64 / output as f64;
        let mut center = step * 0.5;
        let mut at = Vec::with_capacity(output);
        for _ in 0..output {
            at.push(center as usize);
            center += step;
        }
        at
    };
    let columns = centers(image.width, width);
    let mut pixels = vec![0u8; width * height * 3];
    for (out, y) in pixels.chunks_exact_mut(width * 3).zip(centers(image.height, height)) {
        for (out, &x) in out.chunks_exact_mut(3).zip(&columns) {
            // A centre that rounding pushed past the edge leaves black, as Pillow does.
            if x < image.width && y < image.height {
                out.copy_from_slice(&image.pixels[(y * image.width + x) * 3..][..3]);
            }
        }
    }
    RgbImage { width, height, pixels }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_sides_give_no_pixels() {
        let image = RgbImage { width: 2, height: 1, pixels: vec![9; 6] };
        assert_eq!(resize(&image, 0, 5, Filter::Bicubic).pixels.len(), 0);
        let empty = RgbImage { width: 0, height: 0, pixels: Vec::new() };
        assert_eq!(resize(&empty, 2, 1, Filter::Lanczos).pixels, vec![0; 6]);
    }

    #[test]
    fn weights_of_a_pixel_sum_to_one() {
        for filter in [Filter::Box, Filter::Bilinear, Filter::Hamming, Filter::Bicubic, Filter::Lanczos] {
            for (source, output) in [(10, 3), (3, 10), (4000, 980), (1, 7), (7, 1)] {
                let taps = Taps::new(source, output, filter);
                for at in 0..output {
                    let sum: i64 = taps.weights_of(at).iter().map(|&w| i64::from(w)).sum();
                    // Each weight is off by at most one half.
                    assert!((sum - (1 << PRECISION_BITS)).abs() <= taps.bounds[at].1 as i64, "{filter:?}");
                }
            }
        }
    }
}
