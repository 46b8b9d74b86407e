//! No bytes make the decoder panic: small valid files with bytes flipped, copied, overwritten and cut off.

use std::path::Path;

use engine::input::image::{DecodeOptions, decode};

/// A generator whose sequence never changes (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    let length = bytes.len();
    match random.below(5) {
        0 => bytes.truncate(random.below(length)),
        1 => {
            for _ in 0..1 + random.below(3) {
                bytes[random.below(length)] = random.below(256) as u8;
            }
        }
        // Headers come first.
        2 => {
            for _ in 0..1 + random.below(8) {
                bytes[random.below(length.min(400))] ^= 1 << random.below(8);
            }
        }
        3 => {
            let from = random.below(length);
            let part = bytes[from..(from + random.below(64)).min(length)].to_vec();
            let to = random.below(length - part.len() + 1);
            bytes[to..to + part.len()].copy_from_slice(&part);
        }
        _ => {
            let at = random.below(length);
            let end = (at + 1 + random.below(4)).min(length);
            bytes[at..end].fill([0, 1, 127, 128, 255][random.below(5)]);
        }
    }
}

#[test]
fn mutated_files_are_decoded_or_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/image/files");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 120);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut decoded, mut refused) = (0, 0);
    for path in paths {
        let original = std::fs::read(&path).unwrap();
        for round in 0..60 {
            let mut bytes = original.clone();
            mutate(&mut bytes, &mut random);
            let options = DecodeOptions {
                background: (round % 3 == 0).then_some([255; 3]),
                allow_truncated: round % 2 == 0,
                max_pixels: 1 << 20,
                ..DecodeOptions::default()
            };
            match decode(&bytes, &options) {
                Ok(image) => {
                    assert_eq!(image.pixels.len(), image.width * image.height * 3, "{path:?} round {round}");
                    decoded += 1;
                }
                Err(error) => {
                    let error = error.to_string();
                    assert!(!error.contains('\n'), "{path:?} round {round}: {error}");
                    // A decoder of others that panics is caught, but it should not have come to that.
                    assert!(!error.contains("its decoder failed"), "{path:?} round {round}: {error}");
                    refused += 1;
                }
            }
        }
    }
    // Mutations are neither too rough nor too gentle to reach all of the decoders.
    assert!(decoded > 1000 && refused > 1000, "{decoded} decoded, {refused} refused");
}
