//! Patches of images as an encoder takes them: pixels as they are, and where each patch begins.
//!
//! In: images. Out: the arrays of a patch embedding. Not here: resizing, normalising, positions.

use crate::input::image::RgbImage;

/// Pixels and patch origins of one encoder run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Patches {
    /// Images `[height, width, 3]` one after another, each cut to whole patches.
    pub pixels: Vec<u8>,
    /// `[patches, 2]`: the byte of a patch's first pixel, and the bytes from one of its rows to the next.
    pub origins: Vec<i32>,
}

impl Patches {
    /// Appends an image's patches of `side` x `side` pixels, row by row; what is left at the right and at the bottom is
    /// dropped. Returns rows and columns of patches.
    pub fn push(&mut self, image: &RgbImage, side: usize) -> (usize, usize) {
        let (rows, cols) = (image.height / side, image.width / side);
        let (base, width) = (self.pixels.len(), cols * side * 3);
        self.pixels.reserve(rows * side * width);
        for line in image.pixels.chunks_exact((image.width * 3).max(1)).take(rows * side) {
            self.pixels.extend_from_slice(&line[..width]);
        }
        for (row, col) in (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c))) {
            self.origins.extend([base + row * side * width + col * side * 3, width].map(|n| n as i32));
        }
        (rows, cols)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_cut_to_whole_patches() {
        let image = |width: usize, height: usize, first: u8| RgbImage {
            width,
            height,
            pixels: (0..width * height * 3).map(|i| first + i as u8).collect(),
        };
        let mut patches = Patches::default();
        assert_eq!(patches.push(&image(5, 3, 0), 2), (1, 2));
        assert_eq!(patches.push(&image(2, 4, 100), 2), (2, 1));
        // Two rows of four of five pixels; then four rows of two.
        let want: Vec<u8> = (0..12).chain(15..27).chain(100..124).collect();
        assert_eq!(patches.pixels, want);
        assert_eq!(patches.origins, [0, 12, 6, 12, 24, 6, 36, 6]);
    }
}
