//! Normalisation against transformers: `tests/data/image/normalize.json`, made by `tools/golden/image_normalize.py`.

use engine::graph::Normalization;
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
        let normalization = Normalization { rescale: case.rescale, normalize: case.mean.zip(case.std) };
        let (table, line) = (normalization.table(), normalization.line());
        for channel in 0..3 {
            let values: Vec<u32> = table[channel].iter().map(|v| v.to_bits()).collect();
            for (p, value) in table[channel].iter().enumerate() {
                let (factor, offset) = line[channel];
                let on_line = factor * p as f64 + offset;
                assert!((f64::from(*value) - on_line).abs() <= 4e-7 * (1.0 + offset.abs()), "{value} for {on_line}");
            }
            let kept: Vec<u32> = values.iter().copied().step_by(17).collect();
            assert_eq!(kept, case.bits[channel], "rescale {:?} channel {channel}", case.rescale);
            assert_eq!(values.iter().fold(0u32, |sum, &v| sum.wrapping_add(v)), case.sums[channel]);
        }
    }
}
