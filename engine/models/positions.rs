//! Position tables: rotary frequencies, bucketed patch positions.
//!
//! In: config numbers. Out: frequencies and position ids. Pure functions.

use std::sync::Arc;

use crate::checkpoint::rope::{RopeParameters, RopeScaling};
use crate::graph::Rotary;
use crate::{Error, Result};

/// Rotary embedding of a decoder; with `mrope_section` its frequencies lie in sections, each of which takes a component
/// of (time, height, width). Source: transformers `Qwen2VLRotaryEmbedding`.
pub fn rotary(rope: &RopeParameters, head_dim: usize) -> Result<Rotary> {
    let inv_freq = inv_freq(rope, head_dim)?;
    let Some(sections) = &rope.mrope_section else { return Ok(Rotary::new(inv_freq)) };
    let pairs = inv_freq.len();
    Rotary::in_sections(inv_freq, sections).ok_or_else(|| {
        Error::Config(format!("mrope_section {sections:?}: expected a sum of {pairs}, half of head_dim {head_dim}"))
    })
}

/// Rotary embedding of patches on a grid: half the frequencies take the row, half the column, and each half is that of a
/// head of half the size. Source: transformers `Qwen2VLVisionRotaryEmbedding`.
pub fn grid_rotary(rope_theta: f64, head_dim: usize) -> Result<Rotary> {
    let of_four = || Error::Unsupported(format!("rotary embedding on a grid: head_dim {head_dim}, not of four parts"));
    if !head_dim.is_multiple_of(4) {
        return Err(of_four());
    }
    let rope =
        RopeParameters { rope_theta, partial_rotary_factor: 1.0, scaling: RopeScaling::None, mrope_section: None };
    let axis = inv_freq(&rope, head_dim / 2)?;
    let both: Arc<[f32]> = axis.iter().chain(&*axis).copied().collect();
    Rotary::in_sections(both, &[axis.len(); 2]).ok_or_else(of_four)
}

/// Rotary frequencies `[head_dim / 2]`: `theta^(-2i / head_dim)`, scaled as `rope_type` says.
/// Source: transformers `modeling_rope_utils.py`. Computed in f32 steps as there.
pub fn inv_freq(rope: &RopeParameters, head_dim: usize) -> Result<Arc<[f32]>> {
    if !head_dim.is_multiple_of(2) || rope.partial_rotary_factor != 1.0 {
        return Err(Error::Unsupported(format!(
            "rotary embedding of a part of the head: head_dim {head_dim}, partial_rotary_factor {}",
            rope.partial_rotary_factor
        )));
    }
    let base = (0..head_dim).step_by(2).map(|i| {
        let exponent = i as f32 / head_dim as f32;
        1.0 / rope.rope_theta.powf(f64::from(exponent)) as f32
    });
    match &rope.scaling {
        RopeScaling::None => Ok(base.collect()),
        RopeScaling::Linear { factor } => Ok(base.map(|f| f / *factor as f32).collect()),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let length = *original_max_position_embeddings as f64;
            let scale = |f: f32| {
                let wavelength = 2.0 * std::f64::consts::PI / f64::from(f);
                let smooth = (length / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let smooth = smooth.clamp(0.0, 1.0);
                ((1.0 - smooth) * f64::from(f) / factor + smooth * f64::from(f)) as f32
            };
            Ok(base.map(scale).collect())
        }
        other => Err(Error::Unsupported(format!("rope scaling {other:?}; default, linear and llama3 are known"))),
    }
}

/// Position ids of an `h x w` patch grid in a table of `side x side`: each fraction `i / h` falls into the last
/// bucket `k / side` that is not above it. Source: transformers `Idefics2VisionEmbeddings`, whose f32 rounding
/// decides at the edges: `i * (1 / h)` against boundaries computed in f64 and rounded to f32.
pub fn bucketed_patch_positions(h: usize, w: usize, side: usize) -> Vec<i32> {
    let step = 1.0 / side as f64;
    // torch.arange(step, 1.0, step) has ceil((1 - step) / step) elements.
    let count = ((1.0 - step) / step).ceil() as usize;
    let boundaries: Vec<f32> = (0..count).map(|i| (step + i as f64 * step) as f32).collect();
    let bucket = |n: usize| -> Vec<i32> {
        let fraction = 1.0f32 / n as f32;
        (0..n)
            .map(|i| {
                let x = (i as f32 * fraction).min((1.0f64 - 1e-6) as f32);
                boundaries.partition_point(|b| *b <= x) as i32
            })
            .collect()
    };
    let (rows, cols) = (bucket(h), bucket(w));
    rows.iter().flat_map(|r| cols.iter().map(move |c| r * side as i32 + c)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: RopeScaling) -> RopeParameters {
        RopeParameters { rope_theta: 10000.0, partial_rotary_factor: 1.0, scaling, mrope_section: None }
    }

    #[test]
    fn default_frequencies() {
        let f = inv_freq(&rope(RopeScaling::None), 8).unwrap();
        let want = [1.0f32, 0.1, 0.01, 0.001];
        assert!(f.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-7), "{f:?}");
    }

    #[test]
    fn llama3_keeps_high_and_divides_low_frequencies() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 64,
        };
        let plain = inv_freq(&rope(RopeScaling::None), 8).unwrap();
        let f = inv_freq(&rope(scaling), 8).unwrap();
        assert_eq!(f[0], plain[0]);
        assert_eq!(f[3], plain[3] / 8.0);
    }

    #[test]
    fn buckets_follow_the_f32_formula_not_integers() {
        // Printed by transformers 5.23 for one row of patches in a table of side 70: where n does not divide evenly,
        // the fp32 product falls on one side of the boundary.
        let row = |n: usize| bucketed_patch_positions(1, n, 70);
        assert_eq!(row(70), (0..70).collect::<Vec<_>>());
        assert_eq!(row(1), [0]);
        assert_eq!(row(3), [0, 23, 46]);
        let differs = |n: usize| row(n).iter().enumerate().any(|(i, r)| *r != (i * 70 / n) as i32);
        let list: Vec<usize> = (1..=140).filter(|n| differs(*n)).collect();
        assert_eq!(list, [25, 49, 50, 55, 82, 94, 98, 100, 110, 115, 122, 135]);
        assert_eq!(bucketed_patch_positions(2, 2, 4), [0, 2, 8, 10]);
    }
}
