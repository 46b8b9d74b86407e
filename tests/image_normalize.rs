//! Normalisation against transformers: `tests/data/image/normalize.json`, made by `tools/golden/image_normalize.py`.

use engine::input::image::{Normalizer, RgbImage};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    rescale: Option<f64>,
    mean: Option<[f64; 3]>,
    std: Option<[f64; 3]>,
    bits: [Vec<u32>; 3],
    sums: [u32; 3],
}

#[test]
fn every_8_bit_value_has_the_reference_s_float() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("data/image/normalize.json")).unwrap();
    assert!(cases.len() >= 6);
    for case in cases {
        let normalizer = Normalizer::new(case.rescale, case.mean.zip(case.std));
        for channel in 0..3 {
            let values: Vec<u32> = (0..=255).map(|v| normalizer.value(channel, v).to_bits()).collect();
            let kept: Vec<u32> = values.iter().copied().step_by(17).collect();
            assert_eq!(kept, case.bits[channel], "rescale {:?} channel {channel}", case.rescale);
            assert_eq!(values.iter().fold(0u32, |sum, &v| sum.wrapping_add(v)), case.sums[channel]);
        }
    }
}

#[test]
fn an_image_goes_to_the_top_left_corner_and_leaves_the_rest() {
    let image = RgbImage { width: 2, height: 1, pixels: vec![1, 2, 3, 4, 5, 6] };
    let mut out = vec![-1.0; 3 * 2 * 3];
    Normalizer::new(None, None).write_chw(&image, &mut out, 2, 3);
    let expected = [1., 4., -1., -1., -1., -1., 2., 5., -1., -1., -1., -1., 3., 6., -1., -1., -1., -1.];
    assert_eq!(out, expected);
}
