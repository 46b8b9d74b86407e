//! What an image processor does to 8-bit values before the vision tower.
//!
//! In: rescale factor, mean and standard deviation of a preprocessor config. Out: the float of every 8-bit value, or the
//! line that they lie on. Not here: when a family pads, before or after.

/// Rescaling and normalisation of red, green and blue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normalization {
    /// The rescale factor, where `do_rescale` is set.
    pub rescale: Option<f64>,
    /// `(image_mean, image_std)`, where `do_normalize` is set.
    pub normalize: Option<([f64; 3], [f64; 3])>,
}

impl Normalization {
    /// By channel, the float of each 8-bit value: those of the PIL image processors of transformers
    /// (`image_transforms.rescale` and `.normalize`). The value times the factor in f64, rounded to f32; then minus the
    /// mean and divided by the standard deviation, both rounded to f32 first, in f32.
    pub fn table(&self) -> Box<[[f32; 256]; 3]> {
        let mut table = Box::new([[0.0f32; 256]; 3]);
        for (channel, values) in table.iter_mut().enumerate() {
            for (value, out) in values.iter_mut().enumerate() {
                let mut x = match self.rescale {
                    Some(factor) => (value as f64 * factor) as f32,
                    None => value as f32,
                };
                if let Some((mean, std)) = self.normalize {
                    x = (x - mean[channel] as f32) / std[channel] as f32;
                }
                *out = x;
            }
        }
        table
    }

    /// By channel `(factor, offset)`: an 8-bit value `p` becomes `factor * p + offset`, the roundings of
    /// [`Normalization::table`] aside.
    pub fn line(&self) -> [(f64, f64); 3] {
        let rescale = self.rescale.unwrap_or(1.0);
        let f32 = |v: f64| f64::from(v as f32);
        std::array::from_fn(|c| match self.normalize {
            Some((mean, std)) => (rescale / f32(std[c]), -f32(mean[c]) / f32(std[c])),
            None => (rescale, 0.0),
        })
    }
}
