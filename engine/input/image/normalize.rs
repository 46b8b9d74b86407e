//! From 8-bit values to the floats a vision encoder takes.
//!
//! In: rescale factor, mean and standard deviation of a preprocessor config. Out: a 256-entry table a channel.
//! Not here: when a family pads, before or after.

use super::RgbImage;

/// Rescaling and normalisation as one look-up a channel.
///
/// The values are those of the PIL image processors of transformers (`image_transforms.rescale` and `.normalize`):
/// the 8-bit value times the factor in f64, rounded to f32; then minus the mean and divided by the standard
/// deviation, both rounded to f32 first, in f32.
#[derive(Debug, Clone)]
pub struct Normalizer {
    table: Box<[[f32; 256]; 3]>,
}

impl Normalizer {
    /// `rescale` is the rescale factor where `do_rescale` is set; `normalize` is `(image_mean, image_std)` where
    /// `do_normalize` is set. With neither, values stay 0 to 255.
    pub fn new(rescale: Option<f64>, normalize: Option<([f64; 3], [f64; 3])>) -> Normalizer {
        let mut table = Box::new([[0.0f32; 256]; 3]);
        for (channel, values) in table.iter_mut().enumerate() {
            for (value, out) in values.iter_mut().enumerate() {
                let mut x = match rescale {
                    Some(factor) => (value as f64 * factor) as f32,
                    None => value as f32,
                };
                if let Some((mean, std)) = normalize {
                    x = (x - mean[channel] as f32) / std[channel] as f32;
                }
                *out = x;
            }
        }
        Normalizer { table }
    }

    /// The float value of an 8-bit value of one channel (0 red, 1 green, 2 blue).
    #[inline]
    pub fn value(&self, channel: usize, value: u8) -> f32 {
        self.table[channel][value as usize]
    }

    /// The float values of one pixel.
    #[inline]
    pub fn apply(&self, pixel: [u8; 3]) -> [f32; 3] {
        [self.value(0, pixel[0]), self.value(1, pixel[1]), self.value(2, pixel[2])]
    }

    /// Writes an image into the top left corner of `out`, `[3, height, width]` with `height` and `width` at least the
    /// image's; the rest of `out` keeps what it held.
    ///
    /// # Panics
    /// If the image does not fit into `out`.
    pub fn write_chw(&self, image: &RgbImage, out: &mut [f32], height: usize, width: usize) {
        assert!(image.width <= width && image.height <= height && out.len() == 3 * height * width);
        let (red, rest) = out.split_at_mut(height * width);
        let (green, blue) = rest.split_at_mut(height * width);
        for (y, row) in image.pixels.chunks_exact((image.width * 3).max(1)).enumerate() {
            let at = y * width..y * width + image.width;
            let planes = red[at.clone()].iter_mut().zip(&mut green[at.clone()]).zip(&mut blue[at]);
            for (pixel, ((r, g), b)) in row.chunks_exact(3).zip(planes) {
                *r = self.value(0, pixel[0]);
                *g = self.value(1, pixel[1]);
                *b = self.value(2, pixel[2]);
            }
        }
    }
}
