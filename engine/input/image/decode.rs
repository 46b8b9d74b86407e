//! Encoded bytes to an upright RGB image.
//!
//! In: the bytes of a file, limits and choices. Out: `RgbImage`. Owns: limits, what becomes of alpha, the words of errors.
//! Not here: where the bytes come from (`source.rs`), the formats (`jpeg/`, `formats.rs`).
//!
//! Where Pillow has an opinion the pixels are those of `ImageOps.exif_transpose(image).convert("RGB")`, with one choice
//! of our own: 16-bit grey is scaled (`value >> 8`), where Pillow clips everything above 255 to white.

use std::panic::AssertUnwindSafe;

use super::formats::{self, FormatError, Samples, Stored};
use super::jpeg::{self, JpegError};
use super::sniff::{Format, Other, sniff};
use super::{RgbImage, exif, tiff};
use crate::{Error, Result};

/// Choices and limits of [`decode`].
#[derive(Debug, Clone)]
pub struct DecodeOptions {
    /// The colour that transparent pixels are blended onto; none drops alpha, as `PIL.Image.convert("RGB")` does.
    pub background: Option<[u8; 3]>,
    /// Turns the image upright by its EXIF orientation.
    pub exif_rotate: bool,
    /// Most pixels an image may have; read from the header before anything is decoded.
    pub max_pixels: u64,
    /// Most bytes an encoded image may have.
    pub max_bytes: u64,
    /// Accepts a JPEG whose data end early or stop making sense; what is missing stays grey.
    pub allow_truncated: bool,
}

impl Default for DecodeOptions {
    /// Alpha dropped, upright, 178 956 970 pixels (where Pillow refuses as a decompression bomb), 256 MiB, whole files only.
    fn default() -> DecodeOptions {
        DecodeOptions {
            background: None,
            exif_rotate: true,
            max_pixels: 178_956_970,
            max_bytes: 256 << 20,
            allow_truncated: false,
        }
    }
}

/// What can be sent instead of a file that cannot be decoded.
const SUPPORTED: &str = "send a JPEG, PNG, WebP, GIF, BMP or TIFF image";

/// Decodes an image by its content: the first frame of an animation, the first page of a TIFF.
///
/// # Errors
/// `Error::Request` for bytes that are not an image, are damaged or exceed a limit, `Error::Unsupported` for kinds of
/// images that are not decoded here. One line: what the bytes are, what is wrong, what to do.
pub fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<RgbImage> {
    if bytes.is_empty() {
        return Err(Error::Request(format!("image: the file is empty (0 bytes); {SUPPORTED}")));
    }
    if bytes.len() as u64 > options.max_bytes {
        return Err(Error::Request(format!(
            "image: {} bytes are more than the limit of {}; send a smaller file",
            bytes.len(),
            options.max_bytes
        )));
    }
    let format = sniff(bytes).map_err(|other| match other {
        Other::Image(what) => Error::Unsupported(format!("image: the file is {what}; {SUPPORTED}")),
        Other::NoImage(what) => Error::Request(format!("image: the file is {what}; {SUPPORTED}")),
    })?;
    let check = |width: u64, height: u64| match width.checked_mul(height) {
        Some(0) => Err(Error::Request(format!("image: the {} has a size of {width}x{height} pixels", format.name()))),
        Some(pixels) if pixels <= options.max_pixels => Ok(()),
        _ => Err(Error::Request(format!(
            "image: the {} has {width}x{height} pixels, more than the limit of {} in all; send a smaller image",
            format.name(),
            options.max_pixels
        ))),
    };
    let decoder = match format {
        Format::Jpeg => return decode_jpeg(bytes, options, &check),
        Format::Png => formats::png,
        Format::WebP => formats::webp,
        Format::Gif => formats::gif,
        Format::Bmp => formats::bmp,
        Format::Tiff => tiff::decode,
    };
    // These decoders are not ours: should one panic, the request fails and the engine lives.
    let stored = std::panic::catch_unwind(AssertUnwindSafe(|| decoder(bytes, &check)))
        .unwrap_or_else(|_| Err(formats::damaged("its decoder failed")));
    let stored = stored.map_err(|error| match error {
        FormatError::Refused(error) => error,
        FormatError::Damaged(what) => Error::Request(one_line(format!(
            "image: the {} is damaged or cut off: {what}; send the whole file",
            format.name()
        ))),
        FormatError::Unsupported(what) => Error::Unsupported(one_line(format!(
            "image: this kind of {} is not supported: {what}; save it as 8-bit RGB or as PNG",
            format.name()
        ))),
    })?;
    let Stored { width, height, samples, exif, xmp } = stored;
    let pixels = match samples {
        Samples::Rgb(pixels) => pixels,
        Samples::Rgba(pixels) => without_alpha(&pixels, options.background),
    };
    Ok(upright(RgbImage { width, height, pixels }, &exif, &xmp, options))
}

fn decode_jpeg(bytes: &[u8], options: &DecodeOptions, check: formats::SizeCheck) -> Result<RgbImage> {
    let explain = |error: JpegError| match error {
        JpegError::Truncated(what) => Error::Request(format!(
            "image: the JPEG is truncated: {what}; send the whole file, or take what is there with --allow-truncated"
        )),
        JpegError::Damaged(what) => Error::Request(format!("image: the JPEG is damaged: {what}; send an intact file")),
        JpegError::Unsupported(what) => {
            Error::Unsupported(format!("image: {what} is not supported; save it as a baseline JPEG or as PNG"))
        }
    };
    let mut decoder = jpeg::Decoder::new(bytes).map_err(explain)?;
    let (width, height) = decoder.size();
    check(width as u64, height as u64)?;
    let (exif, xmp) = (std::mem::take(&mut decoder.exif), std::mem::take(&mut decoder.xmp));
    let pixels = decoder.decode(options.allow_truncated).map_err(explain)?;
    Ok(upright(RgbImage { width, height, pixels }, &exif, &xmp, options))
}

fn upright(image: RgbImage, exif: &[u8], xmp: &[u8], options: &DecodeOptions) -> RgbImage {
    if options.exif_rotate { exif::apply(image, exif::orientation(exif, xmp)) } else { image }
}

/// Drops alpha, or blends onto a background: `(color * alpha + background * (255 - alpha)) / 255`, rounded half up.
fn without_alpha(pixels: &[u8], background: Option<[u8; 3]>) -> Vec<u8> {
    let pixels = pixels.as_chunks::<4>().0;
    let mut out = vec![0u8; pixels.len() * 3];
    for (target, &[r, g, b, alpha]) in out.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
        *target = [r, g, b];
        let Some(background) = background else { continue };
        for (value, background) in target.iter_mut().zip(background) {
            let sum = u32::from(*value) * u32::from(alpha) + u32::from(background) * u32::from(255 - alpha) + 128;
            *value = ((sum + (sum >> 8)) >> 8) as u8;
        }
    }
    out
}

/// Errors are one line whatever a crate says.
fn one_line(text: String) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
