//! Encoded bytes to an upright RGB image.
//!
//! In: the bytes of a file, limits and choices. Out: `RgbImage`. Owns: telling formats apart, limits, colour modes.
//! Not here: where the bytes come from (`source.rs`).

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use super::RgbImage;
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
    /// Accepts a JPEG whose data end early; what is missing stays grey.
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

/// Decodes an image by its content.
///
/// # Errors
/// `Error::Request` for bytes that are not an image, are damaged or exceed a limit; it names format, size and limit.
pub fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<RgbImage> {
    if bytes.is_empty() {
        return Err(Error::Request("image: the file is empty (0 bytes)".into()));
    }
    if bytes.len() as u64 > options.max_bytes {
        return Err(Error::Request(format!(
            "image: {} bytes are more than the limit of {} bytes; send a smaller file",
            bytes.len(),
            options.max_bytes
        )));
    }
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| damaged(e.into()))?;
    let format: ImageFormat = reader.format().ok_or_else(|| Error::Request("image: unknown format".into()))?;
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > options.max_pixels {
        return Err(Error::Request(format!(
            "image: {format:?} of {width}x{height} has more than the limit of {} pixels; send a smaller image",
            options.max_pixels
        )));
    }
    let orientation = decoder.orientation().ok();
    let mut image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    if let (true, Some(orientation)) = (options.exif_rotate, orientation) {
        image.apply_orientation(orientation);
    }
    let rgb = image.into_rgb8();
    Ok(RgbImage { width: rgb.width() as usize, height: rgb.height() as usize, pixels: rgb.into_raw() })
}

fn damaged(error: image::error::ImageError) -> Error {
    Error::Request(format!("image: {error}"))
}
