//! PNG, WebP, BMP and GIF, through their crates.
//!
//! In: a file of a known format, a check of its size. Out: stored pixels, RGB or RGBA, and the blocks that may tell
//! the orientation. Owns: turning every colour type into 8-bit RGB as Pillow does, 16 bits by their upper byte.
//! Not here: dropping or blending alpha, limits (`decode.rs`), JPEG and TIFF.

use std::io::Cursor;

use image::{ColorType, ImageDecoder};

use crate::Result;

/// An image as its file stores it.
pub(super) struct Stored {
    pub width: usize,
    pub height: usize,
    pub samples: Samples,
    /// The EXIF block and the XMP packet, empty where there is none.
    pub exif: Vec<u8>,
    pub xmp: Vec<u8>,
}

/// Pixels, row-major.
pub(super) enum Samples {
    Rgb(Vec<u8>),
    Rgba(Vec<u8>),
}

/// Why a file of these formats cannot be decoded.
pub(super) enum FormatError {
    /// In the words of the format's crate.
    Damaged(String),
    Unsupported(String),
    /// What the size check said.
    Refused(crate::Error),
}

pub(super) type FormatResult<T> = std::result::Result<T, FormatError>;

/// Refuses sizes over the limit; called with the size before pixels are decoded.
pub(super) type SizeCheck<'a> = &'a dyn Fn(u64, u64) -> Result<()>;

/// Bytes that decoders may allocate beyond the pixels.
pub(super) const SPARE_BYTES: usize = 64 << 20;

pub(super) fn damaged(error: impl std::fmt::Display) -> FormatError {
    FormatError::Damaged(error.to_string())
}

/// PNG; of an animation the default image.
pub(super) fn png(bytes: &[u8], check: SizeCheck) -> FormatResult<Stored> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    let header = decoder.read_header_info().map_err(damaged)?;
    check(header.width.into(), header.height.into()).map_err(FormatError::Refused)?;
    let (width, height) = (header.width as usize, header.height as usize);
    decoder.set_limits(png::Limits { bytes: width * height * 8 + SPARE_BYTES });
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    decoder.set_ignore_iccp_chunk(true);
    let mut reader = decoder.read_info().map_err(damaged)?;
    let size = reader.output_buffer_size().ok_or_else(|| damaged("its size overflows"))?;
    let mut buffer = vec![0u8; size];
    reader.next_frame(&mut buffer).map_err(damaged)?;
    let (color, _) = reader.output_color_type();
    // Blocks may stand behind the pixels; what is wrong there does not matter.
    let _ = reader.finish();
    let info = reader.info();
    let exif = info.exif_metadata.as_ref().map_or_else(|| raw_profile(info), |exif| exif.to_vec());
    let xmp = info.utf8_text.iter().find(|text| text.keyword == "XML:com.adobe.xmp");
    let xmp = xmp.and_then(|text| text.get_text().ok()).unwrap_or_default().into_bytes();
    let samples = match color {
        png::ColorType::Grayscale => Samples::Rgb(each(&buffer, |&[v]: &[u8; 1]| [v; 3])),
        png::ColorType::GrayscaleAlpha => Samples::Rgba(each(&buffer, |&[v, a]: &[u8; 2]| [v, v, v, a])),
        png::ColorType::Rgb => Samples::Rgb(buffer),
        png::ColorType::Rgba => Samples::Rgba(buffer),
        png::ColorType::Indexed => return Err(damaged("its palette is missing")),
    };
    Ok(Stored { width, height, samples, exif, xmp })
}

/// The EXIF block that ImageMagick writes into a text chunk: some lines of header, then hexadecimal digits.
fn raw_profile(info: &png::Info) -> Vec<u8> {
    const KEYWORD: &str = "Raw profile type exif";
    let plain = info.uncompressed_latin1_text.iter().find(|text| text.keyword == KEYWORD).map(|text| text.text.clone());
    let packed = || info.compressed_latin1_text.iter().find(|text| text.keyword == KEYWORD)?.get_text().ok();
    let Some(text) = plain.or_else(packed) else { return Vec::new() };
    let digits: Vec<u8> =
        text.split('\n').skip(3).flat_map(str::chars).filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
    digits.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect()
}

/// WebP; of an animation the first frame.
pub(super) fn webp(bytes: &[u8], check: SizeCheck) -> FormatResult<Stored> {
    let mut decoder = image::codecs::webp::WebPDecoder::new(Cursor::new(bytes)).map_err(damaged)?;
    let exif = decoder.exif_metadata().ok().flatten().unwrap_or_default();
    let xmp = decoder.xmp_metadata().ok().flatten().unwrap_or_default();
    Ok(Stored { exif, xmp, ..simple(decoder, check)? })
}

/// Windows bitmap.
pub(super) fn bmp(bytes: &[u8], check: SizeCheck) -> FormatResult<Stored> {
    simple(image::codecs::bmp::BmpDecoder::new(Cursor::new(bytes)).map_err(damaged)?, check)
}

/// A format that its decoder gives as 8-bit RGB or RGBA.
fn simple(mut decoder: impl ImageDecoder, check: SizeCheck) -> FormatResult<Stored> {
    let (width, height) = decoder.dimensions();
    check(width.into(), height.into()).map_err(FormatError::Refused)?;
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(decoder.total_bytes().saturating_add(SPARE_BYTES as u64));
    decoder.set_limits(limits).map_err(damaged)?;
    let color = decoder.color_type();
    let size = usize::try_from(decoder.total_bytes()).map_err(damaged)?;
    let mut buffer = vec![0u8; size];
    decoder.read_image(&mut buffer).map_err(damaged)?;
    let samples = match color {
        ColorType::L8 => Samples::Rgb(each(&buffer, |&[v]: &[u8; 1]| [v; 3])),
        ColorType::Rgb8 => Samples::Rgb(buffer),
        ColorType::Rgba8 => Samples::Rgba(buffer),
        other => return Err(FormatError::Unsupported(format!("colour type {other:?}"))),
    };
    Ok(Stored { width: width as usize, height: height as usize, samples, exif: Vec::new(), xmp: Vec::new() })
}

/// GIF, its first frame. The canvas around a smaller frame is transparent where the frame has a transparent colour,
/// else of colour 0; a frame that leaves the canvas widens it, as in Pillow.
pub(super) fn gif(bytes: &[u8], check: SizeCheck) -> FormatResult<Stored> {
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::Indexed);
    options.set_memory_limit(gif::MemoryLimit::Unlimited);
    options.allow_unknown_blocks(true);
    let mut decoder = options.read_info(Cursor::new(bytes)).map_err(damaged)?;
    let (screen_w, screen_h) = (decoder.width(), decoder.height());
    check(screen_w.into(), screen_h.into()).map_err(FormatError::Refused)?;
    let frame = decoder.next_frame_info().map_err(damaged)?.ok_or_else(|| damaged("it has no frame"))?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (frame_w, frame_h) = (usize::from(frame.width), usize::from(frame.height));
    let (width, height) = ((left + frame_w).max(screen_w.into()), (top + frame_h).max(screen_h.into()));
    check(width as u64, height as u64).map_err(FormatError::Refused)?;
    let transparent = frame.transparent;
    let palette = decoder.palette().map(<[u8]>::to_vec).unwrap_or_default();
    let mut indices = vec![0u8; decoder.buffer_size()];
    decoder.read_into_buffer(&mut indices).map_err(damaged)?;
    let color = |index: u8| {
        // Without a palette an index is a grey value.
        let entry = palette.get(usize::from(index) * 3..).and_then(|rest| rest.first_chunk::<3>());
        entry.copied().unwrap_or([index; 3])
    };
    let alpha = |index: u8| if Some(index) == transparent { 0 } else { 255 };
    let table: Vec<[u8; 4]> =
        (0..=255).map(|index| [color(index), [alpha(index); 3]].concat()).map(|c| [c[0], c[1], c[2], c[3]]).collect();
    let mut canvas = vec![transparent.unwrap_or(0); width * height];
    for (y, row) in indices.chunks_exact(frame_w.max(1)).enumerate() {
        canvas[(top + y) * width + left..][..frame_w].copy_from_slice(row);
    }
    let samples = match transparent {
        None => Samples::Rgb(each(&canvas, |&[v]: &[u8; 1]| {
            [table[v as usize][0], table[v as usize][1], table[v as usize][2]]
        })),
        Some(_) => Samples::Rgba(each(&canvas, |&[v]: &[u8; 1]| table[v as usize])),
    };
    Ok(Stored { width, height, samples, exif: Vec::new(), xmp: Vec::new() })
}

/// Applies `turn` to every group of samples.
pub(super) fn each<const N: usize, const M: usize>(samples: &[u8], turn: impl Fn(&[u8; N]) -> [u8; M]) -> Vec<u8> {
    let groups = samples.as_chunks::<N>().0;
    let mut out = vec![0u8; groups.len() * M];
    for (target, group) in out.as_chunks_mut::<M>().0.iter_mut().zip(groups) {
        *target = turn(group);
    }
    out
}
