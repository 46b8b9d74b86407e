//! Decoding against Pillow: `tests/data/image/files/` and `decode.json`, made by `tools/golden/image_decode.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use engine::input::image::{DecodeOptions, decode};
use serde::Deserialize;

#[derive(Deserialize)]
struct Truth {
    width: usize,
    height: usize,
    crc32: u32,
    /// The CRC of the image on white, where it has alpha.
    on_white: Option<u32>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/image")
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(folder().join("files").join(name)).unwrap()
}

fn truths() -> BTreeMap<String, Truth> {
    serde_json::from_str(&std::fs::read_to_string(folder().join("decode.json")).unwrap()).unwrap()
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

#[test]
fn every_file_has_pillow_s_pixels() {
    let truths = truths();
    assert!(truths.len() >= 120);
    let white = DecodeOptions { background: Some([255; 3]), ..DecodeOptions::default() };
    let mut wrong = Vec::new();
    for (name, truth) in &truths {
        let bytes = file(name);
        let image = match decode(&bytes, &DecodeOptions::default()) {
            Ok(image) => image,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        if (image.width, image.height) != (truth.width, truth.height) {
            wrong.push(format!("{name}: {}x{} for {}x{}", image.width, image.height, truth.width, truth.height));
        } else if crc32(&image.pixels) != truth.crc32 {
            wrong.push(format!("{name}: other pixels"));
        }
        // An opaque image does not change on a background.
        let on_white = crc32(&decode(&bytes, &white).unwrap().pixels);
        if on_white != truth.on_white.unwrap_or(truth.crc32) {
            wrong.push(format!("{name}: other pixels on white"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn orientation_can_be_left_alone() {
    let stored = DecodeOptions { exif_rotate: false, ..DecodeOptions::default() };
    let upright = decode(&file("exif-1-ii.jpg"), &stored).unwrap();
    for orientation in 1..=8 {
        for order in ["ii", "mm"] {
            let image = decode(&file(&format!("exif-{orientation}-{order}.jpg")), &stored).unwrap();
            assert_eq!(image, upright);
        }
    }
}

/// What `decode` says about bytes it refuses: one line, from the requester's fault.
fn refusal(bytes: &[u8], options: &DecodeOptions) -> String {
    let error = decode(bytes, options).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let error = error.to_string();
    assert!(!error.contains('\n') && error.contains("image: "), "{error}");
    error
}

#[test]
fn cut_and_damaged_files_are_refused() {
    let options = DecodeOptions::default();
    let lenient = DecodeOptions { allow_truncated: true, ..DecodeOptions::default() };
    for name in
        ["large-420.jpg", "420-baseline-q95.jpg", "large-progressive.jpg", "grey.jpg", "restart.jpg", "cmyk.jpg"]
    {
        let bytes = file(name);
        let whole = decode(&bytes, &options).unwrap();
        for end in [bytes.len() - 128, bytes.len() / 2 + 300] {
            let error = refusal(&bytes[..end], &options);
            assert!(error.contains("truncated") && error.contains("send the whole file"), "{name}: {error}");
            let part = decode(&bytes[..end], &lenient).unwrap();
            assert_eq!((part.width, part.height), (whole.width, whole.height), "{name}");
        }
    }
    // What came before the cut is there: the first rows of a baseline file are whole.
    let bytes = file("large-420.jpg");
    let part = decode(&bytes[..bytes.len() / 2 + 300], &lenient).unwrap();
    let row = part.width * 3;
    assert_eq!(part.pixels[..row * 100], decode(&bytes, &options).unwrap().pixels[..row * 100]);
    assert_eq!(part.pixels[part.pixels.len() - 3..], [128; 3]);

    // The end marker alone may be missing where no further scan can come, as in Pillow.
    let bytes = file("large-420.jpg");
    assert_eq!(decode(&bytes[..bytes.len() - 2], &options).unwrap(), decode(&bytes, &options).unwrap());
    let bytes = file("large-progressive.jpg");
    assert!(refusal(&bytes[..bytes.len() - 2], &options).contains("truncated"));

    // Codes that no table has: all ones.
    let mut bytes = file("large-420.jpg");
    let middle = bytes.len() / 2;
    bytes[middle..middle + 64].copy_from_slice(&[0xff, 0].repeat(32));
    assert!(refusal(&bytes, &options).contains("damaged"));
    let mut bytes = file("restart.jpg");
    let marker = bytes.windows(2).position(|pair| pair == [0xff, 0xd1]).unwrap();
    bytes[marker + 1] = 0xd5;
    assert!(refusal(&bytes, &options).contains("restart marker"));

    for name in
        ["rgb.png", "interlaced.png", "lossy.webp", "lossless.webp", "plain.gif", "rgb.bmp", "rgb-lzw.tif", "rgb.tif"]
    {
        let bytes = file(name);
        let error = refusal(&bytes[..bytes.len() * 2 / 3], &options);
        assert!(error.contains("damaged or cut off"), "{name}: {error}");
    }
}

#[test]
fn what_is_no_image_is_named() {
    let options = DecodeOptions::default();
    assert!(refusal(b"", &options).contains("empty (0 bytes)"));
    let cases: [(&[u8], &str); 9] = [
        (b"just some words in a file named photo.jpg", "text"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        (b"<svg xmlns=\"http://www.w3.org/2000/svg\"></svg>", "an SVG drawing"),
        (b"%PDF-1.4\n", "a PDF document"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "an AVIF image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl ", "a JPEG XL image"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "a WAV sound"),
        (b"\x01\x02\x03\x04", "data of an unknown format"),
    ];
    for (bytes, name) in cases {
        let error = refusal(bytes, &options);
        assert!(error.contains(&format!("the file is {name}; send a JPEG")), "{error}");
    }
}

#[test]
fn limits_are_named() {
    let bytes = file("rgb.png");
    let few = DecodeOptions { max_bytes: 100, ..DecodeOptions::default() };
    assert!(refusal(&bytes, &few).contains(&format!("{} bytes are more than the limit of 100", bytes.len())));
    let small = DecodeOptions { max_pixels: 35 * 27 - 1, ..DecodeOptions::default() };
    for name in [
        "rgb.png",
        "lossy.webp",
        "lossless.webp",
        "plain.gif",
        "rgb.bmp",
        "rgb.tif",
        "grey.jpg",
        "420-progressive-q40.jpg",
    ] {
        let error = refusal(&file(name), &small);
        assert!(error.contains("35x27 pixels, more than the limit of 944 in all"), "{name}: {error}");
    }
}
