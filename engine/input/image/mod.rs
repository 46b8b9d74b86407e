//! Images as a user sends them, turned into upright 8-bit RGB and resized as Pillow does.
//!
//! In: encoded bytes, paths, URLs. Out: `RgbImage`, resized images.
//! Owns: decoding, EXIF orientation, colour modes, resampling.
//! Not here: sizes, tiles and padding, which a family decides; normalisation, which is a part of the encoder.

pub mod color;
mod decode;
mod exif;
mod fetch;
mod formats;
mod jpeg;
mod resample;
mod resample_simd;
mod sniff;
pub mod source;
mod tiff;

pub use decode::{DecodeOptions, decode};
pub use resample::{Filter, resize};

/// An upright image in 8-bit RGB, values as stored (no colour management, as in `PIL.Image.convert("RGB")`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage {
    /// Pixels a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, 3]`, row-major.
    pub pixels: Vec<u8>,
}

impl RgbImage {
    /// The rectangle of `w` x `h` pixels whose top left corner is `(x, y)`; what lies outside the image is cut off.
    pub fn crop(&self, x: usize, y: usize, w: usize, h: usize) -> RgbImage {
        let (x, y) = (x.min(self.width), y.min(self.height));
        let (width, height) = (w.min(self.width - x), h.min(self.height - y));
        let mut pixels = Vec::with_capacity(width * height * 3);
        for row in y..y + height {
            let start = (row * self.width + x) * 3;
            pixels.extend_from_slice(&self.pixels[start..start + width * 3]);
        }
        RgbImage { width, height, pixels }
    }

    /// Red, green and blue at column `x` of row `y`.
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let at = (y * self.width + x) * 3;
        [self.pixels[at], self.pixels[at + 1], self.pixels[at + 2]]
    }
}
