//! TIFF, its first page.
//!
//! In: a file, a check of its size. Out: stored pixels. Owns: photometric interpretations, bit depths, planes, palettes.
//! Not here: compression, strips and tiles, which are the crate's; orientation (`exif.rs`).
//!
//! JPEG-compressed strips are decoded by the crate's own JPEG decoder, whose samples can differ by a few levels.

use std::io::Cursor;

use tiff::ColorType;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;

use super::exif::Directory;
use super::formats::{FormatError, FormatResult, SPARE_BYTES, Samples, SizeCheck, Stored, damaged, each};
use super::jpeg::{under_ink, ycbcr};

// Tags, and values of theirs, that are looked at before the crate sees the file.
const PHOTOMETRIC: u16 = 262;
const PALETTE: u32 = 3;
const FILL_ORDER: u16 = 266;
const PLANAR_CONFIG: u16 = 284;
const TILE_WIDTH: u16 = 322;

/// Reads the first page.
pub(super) fn decode(bytes: &[u8], check: SizeCheck) -> FormatResult<Stored> {
    let directory = Directory::new(bytes);
    let number = |tag: u16| directory.as_ref().and_then(|directory| directory.number(tag));
    // Two things that the crate gets wrong: it ignores the bit order and stops the program at planes in tiles.
    if number(FILL_ORDER) == Some(2) {
        return Err(unsupported("lowest bit first"));
    }
    if number(PLANAR_CONFIG) == Some(2) && number(TILE_WIDTH).is_some() {
        return Err(unsupported("tiles of separate planes"));
    }
    // The crate has no palettes: such a file is read as grey, which gives the indices.
    let is_palette = number(PHOTOMETRIC) == Some(PALETTE);
    let grey = directory.as_ref().filter(|_| is_palette).and_then(|directory| directory.with_number(PHOTOMETRIC, 1));
    let mut decoder = Decoder::new(Cursor::new(grey.as_deref().unwrap_or(bytes))).map_err(explain)?;
    let (width, height) = decoder.dimensions().map_err(explain)?;
    check(width.into(), height.into()).map_err(FormatError::Refused)?;
    let (width, height) = (width as usize, height as usize);
    let mut limits = Limits::default();
    limits.decoding_buffer_size = (width * height).saturating_mul(16).saturating_add(SPARE_BYTES);
    limits.intermediate_buffer_size = limits.decoding_buffer_size;
    let mut decoder = decoder.with_limits(limits);
    let color = decoder.colortype().map_err(explain)?;
    let xmp = decoder.get_tag_u8_vec(Tag::Unknown(700)).unwrap_or_default();
    let map = if is_palette { decoder.get_tag_u16_vec(Tag::ColorMap).map_err(explain)? } else { Vec::new() };
    let is_premultiplied = decoder.get_tag_u16_vec(Tag::ExtraSamples).is_ok_and(|extra| extra.first() == Some(&1));

    let mut buffer = DecodingResult::U8(Vec::new());
    let layout = decoder.read_image_to_buffer(&mut buffer).map_err(explain)?;
    let samples: Vec<u8> = match buffer {
        DecodingResult::U8(samples) => samples,
        DecodingResult::U16(samples) => samples.into_iter().map(|sample| (sample >> 8) as u8).collect(),
        _ => return Err(unsupported(format!("{color:?} samples that are not 8- or 16-bit numbers"))),
    };
    let samples = match color.bit_depth() {
        8 | 16 => samples,
        bits @ (1 | 2 | 4) => {
            let bytes_per_row = layout.row_stride.map_or(0, |stride| stride.get());
            unpacked(&samples, bits, width, bytes_per_row, is_palette)
        }
        bits => return Err(unsupported(format!("{bits} bits a sample"))),
    };
    let samples = interleaved(samples, layout.planes);
    let pixels = width * height;
    let part = |count: usize| samples.get(..pixels * count).ok_or_else(|| damaged("it has fewer samples than pixels"));
    let palette = Palette::new(&map);
    let samples = match color {
        ColorType::Gray(_) if is_palette => Samples::Rgb(each(part(1)?, |&[v]: &[u8; 1]| palette.color(v))),
        ColorType::Gray(_) => Samples::Rgb(each(part(1)?, |&[v]: &[u8; 1]| [v; 3])),
        ColorType::GrayA(_) | ColorType::Multiband { num_samples: 2, .. } => {
            Samples::Rgba(each(part(2)?, |&[v, alpha]: &[u8; 2]| {
                let [r, g, b] = if is_palette { palette.color(v) } else { [v; 3] };
                [r, g, b, alpha]
            }))
        }
        ColorType::RGB(_) => Samples::Rgb(part(3)?.to_vec()),
        ColorType::RGBA(_) if is_premultiplied => Samples::Rgba(each(part(4)?, unmultiplied)),
        ColorType::RGBA(_) => Samples::Rgba(part(4)?.to_vec()),
        ColorType::YCbCr(_) => Samples::Rgb(each(part(3)?, |&[y, cb, cr]: &[u8; 3]| ycbcr(y, cb, cr))),
        ColorType::CMYK(_) => {
            Samples::Rgb(each(part(4)?, |&[c, m, y, k]: &[u8; 4]| [c, m, y].map(|ink| under_ink(ink, 255 - k))))
        }
        other => return Err(unsupported(format!("colour type {other:?}"))),
    };
    Ok(Stored { width, height, samples, exif: bytes.to_vec(), xmp })
}

fn unsupported(what: impl Into<String>) -> FormatError {
    FormatError::Unsupported(what.into())
}

fn explain(error: tiff::TiffError) -> FormatError {
    match error {
        tiff::TiffError::UnsupportedError(what) => unsupported(what.to_string()),
        other => damaged(other),
    }
}

/// A colour map: all reds, all greens, all blues, 16 bits each.
struct Palette {
    colors: Vec<[u8; 3]>,
}

impl Palette {
    fn new(map: &[u16]) -> Palette {
        let size = map.len() / 3;
        let color = |at: usize| [map[at], map[size + at], map[2 * size + at]].map(|value| (value >> 8) as u8);
        Palette { colors: (0..size).map(color).collect() }
    }

    fn color(&self, index: u8) -> [u8; 3] {
        self.colors.get(usize::from(index)).copied().unwrap_or_default()
    }
}

/// Undoes the multiplication with alpha, as Pillow's mode RGBa does.
fn unmultiplied(&[r, g, b, alpha]: &[u8; 4]) -> [u8; 4] {
    match alpha {
        0 => [0; 4],
        255 => [r, g, b, 255],
        _ => {
            let [r, g, b] = [r, g, b].map(|value| (u32::from(value) * 255 / u32::from(alpha)).min(255) as u8);
            [r, g, b, alpha]
        }
    }
}

/// Samples of 1, 2 or 4 bits, rows padded to bytes, as bytes: scaled to 0..255, or as they are.
fn unpacked(packed: &[u8], bits: u8, width: usize, bytes_per_row: usize, as_index: bool) -> Vec<u8> {
    let (per_byte, top) = (usize::from(8 / bits), (1u16 << bits) as u8 - 1);
    let scale = if as_index { 1 } else { 255 / top };
    let rows = packed.chunks_exact(bytes_per_row.max(1));
    rows.flat_map(|row| {
        (0..width).map(move |x| {
            let shift = 8 - usize::from(bits) * (x % per_byte + 1);
            row.get(x / per_byte).map_or(0, |byte| (byte >> shift & top) * scale)
        })
    })
    .collect()
}

/// Samples that lie plane by plane, put together pixel by pixel.
fn interleaved(samples: Vec<u8>, planes: usize) -> Vec<u8> {
    if planes <= 1 {
        return samples;
    }
    let size = samples.len() / planes;
    let mut out = vec![0u8; size * planes];
    for (plane, samples) in samples.chunks_exact(size.max(1)).enumerate().take(planes) {
        for (target, &sample) in out.iter_mut().skip(plane).step_by(planes).zip(samples) {
            *target = sample;
        }
    }
    out
}
