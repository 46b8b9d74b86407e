//! The resampler against Pillow: `tests/data/image/resample.json`, made by `tools/golden/resample.py`.

use engine::input::image::{Filter, RgbImage, resize};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    seed: u32,
    source: (usize, usize),
    output: (usize, usize),
    filter: String,
    crc32: u32,
    pixels: Option<String>,
}

/// The generator that `resample.py` describes.
fn pseudo_random(count: usize, seed: u32) -> Vec<u8> {
    let mut x = seed;
    (0..count)
        .map(|_| {
            x = x.wrapping_mul(1664525).wrapping_add(1013904223);
            match x >> 16 & 15 {
                0 => 0,
                15 => 255,
                _ => (x >> 24) as u8,
            }
        })
        .collect()
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

#[test]
fn every_size_pair_and_filter_has_pillow_s_bits() {
    let golden: Golden = serde_json::from_str(include_str!("data/image/resample.json")).unwrap();
    let mut pairs = std::collections::HashSet::new();
    for case in &golden.cases {
        let id = match case.filter.as_str() {
            "nearest" => 0,
            "lanczos" => 1,
            "bilinear" => 2,
            "bicubic" => 3,
            "box" => 4,
            "hamming" => 5,
            other => panic!("unknown filter {other}"),
        };
        let (width, height) = case.source;
        let image = RgbImage { width, height, pixels: pseudo_random(width * height * 3, case.seed) };
        let resized = resize(&image, case.output.0, case.output.1, Filter::from_pil(id).unwrap());
        let name = format!("{:?} -> {:?} {}", case.source, case.output, case.filter);
        assert_eq!((resized.width, resized.height), case.output, "{name}");
        if let Some(pixels) = &case.pixels {
            let found: String = resized.pixels.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(&found, pixels, "{name}");
        }
        assert_eq!(crc32(&resized.pixels), case.crc32, "{name}");
        pairs.insert((case.source, case.output));
    }
    assert!(pairs.len() >= 40 && golden.cases.len() == pairs.len() * 6);
}
