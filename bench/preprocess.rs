//! Decoding and resizing of a photograph, as preprocessing does it.
//!
//! In: `cargo bench --bench preprocess -- [JPEG]...`; without a path a generated 4000x3000 JPEG (4:4:4). Out: a line a
//! file on stdout, best and median of some rounds. Pillow's side is `tools/golden/pillow_preprocess_bench.py`, which
//! also makes 12-megapixel files to give to both.

use std::time::{Duration, Instant};

use engine::input::image::{DecodeOptions, Filter, RgbImage, decode, resize};

const ROUNDS: usize = 15;
/// The longest side after resizing.
const LONGEST: usize = 980;

fn main() {
    // cargo adds --bench.
    let paths: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    println!("{} threads; best (median) of {ROUNDS} rounds, milliseconds", rayon::current_num_threads());
    if paths.is_empty() {
        measure("generated 4000x3000", &generated());
    }
    for path in paths {
        measure(&path, &std::fs::read(&path).expect("the file can be read"));
    }
}

fn measure(name: &str, bytes: &[u8]) {
    let options = DecodeOptions::default();
    let (mut decoding, mut resizing) = (Vec::new(), Vec::new());
    let mut size = (0, 0, 0, 0);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let image = decode(bytes, &options).expect("the file is an image");
        decoding.push(start.elapsed());
        let start = Instant::now();
        let small = to_longest(&image);
        resizing.push(start.elapsed());
        size = (image.width, image.height, small.width, small.height);
    }
    let both: Vec<Duration> = decoding.iter().zip(&resizing).map(|(a, b)| *a + *b).collect();
    println!(
        "{name} ({} bytes, {}x{} to {}x{}): decode {}, resize {}, both {}",
        bytes.len(),
        size.0,
        size.1,
        size.2,
        size.3,
        summary(decoding),
        summary(resizing),
        summary(both)
    );
}

/// Bilinear, the longest side to [`LONGEST`].
fn to_longest(image: &RgbImage) -> RgbImage {
    let longest = image.width.max(image.height);
    let side = |side: usize| (side * LONGEST / longest).max(1);
    resize(image, side(image.width), side(image.height), Filter::Bilinear)
}

fn summary(mut times: Vec<Duration>) -> String {
    times.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    format!("{:.1} ({:.1})", ms(times[0]), ms(times[times.len() / 2]))
}

/// Waves and noise, about as hard to decode as a photograph.
fn generated() -> Vec<u8> {
    let (width, height) = (4000u32, 3000u32);
    let mut state = 1u32;
    let picture = image::RgbImage::from_fn(width, height, |x, y| {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        let noise = (state >> 28) as f32 - 8.0;
        let wave = |a: f32, b: f32| ((x as f32 / a).sin() * (y as f32 / b).cos() * 110.0 + 128.0 + noise) as u8;
        image::Rgb([wave(37.0, 53.0), wave(91.0, 29.0), wave(17.0, 71.0)])
    });
    let mut bytes = Vec::new();
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 90);
    picture.write_with_encoder(encoder).expect("a JPEG can be written to memory");
    bytes
}
