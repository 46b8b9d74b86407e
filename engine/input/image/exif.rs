//! Orientation: finding it and applying it.
//!
//! In: EXIF blocks, XMP packets, a stored image. Out: the upright image. Owns: reading the first directory of a TIFF
//! structure, which is also what a TIFF file starts with. Not here: where a format keeps its blocks (`formats.rs`).
//!
//! A block that is broken has no orientation; it never makes an image fail. Sources: TIFF 6.0, EXIF 2.32, and for
//! XMP's `tiff:Orientation`, which counts where EXIF says nothing, Pillow's `Image.getexif`.

use super::RgbImage;

const ORIENTATION: u16 = 0x0112;

/// The first directory of a TIFF structure.
pub(super) struct Directory<'a> {
    bytes: &'a [u8],
    is_big_endian: bool,
    entries: usize,
    count: usize,
}

impl<'a> Directory<'a> {
    /// None where there is no directory; a directory that the bytes cut off has as many entries as they hold.
    pub fn new(bytes: &'a [u8]) -> Option<Directory<'a>> {
        let is_big_endian = match bytes.get(..4)? {
            b"II*\0" => false,
            b"MM\0*" => true,
            _ => return None,
        };
        let mut directory = Directory { bytes, is_big_endian, entries: 0, count: 0 };
        let offset = directory.u32_at(4)? as usize;
        directory.count = usize::from(directory.u16_at(offset)?);
        directory.entries = offset + 2;
        Some(directory)
    }

    fn u16_at(&self, at: usize) -> Option<u16> {
        let bytes = *self.bytes.get(at..)?.first_chunk::<2>()?;
        Some(if self.is_big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    fn u32_at(&self, at: usize) -> Option<u32> {
        let bytes = *self.bytes.get(at..)?.first_chunk::<4>()?;
        Some(if self.is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    /// Where the entry of a tag starts.
    pub fn entry(&self, tag: u16) -> Option<usize> {
        let starts = (0..self.count).map(|entry| self.entries + entry * 12);
        starts.take_while(|&at| at + 12 <= self.bytes.len()).find(|&at| self.u16_at(at) == Some(tag))
    }

    /// The first number of a tag with whole numbers that lies in its entry.
    pub fn number(&self, tag: u16) -> Option<u32> {
        let entry = self.entry(tag)?;
        match (self.u16_at(entry + 2)?, self.u32_at(entry + 4)?) {
            (_, 0) => None,
            (1, _) => Some(u32::from(self.bytes[entry + 8])),
            (3, _) => Some(u32::from(self.u16_at(entry + 8)?)),
            (4, _) => self.u32_at(entry + 8),
            _ => None,
        }
    }

    /// The same bytes with another value in the entry of a tag of one 16-bit number.
    pub fn with_number(&self, tag: u16, value: u16) -> Option<Vec<u8>> {
        let at = self.entry(tag)? + 8;
        let mut bytes = self.bytes.to_vec();
        let value = if self.is_big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        bytes.get_mut(at..at + 2)?.copy_from_slice(&value);
        Some(bytes)
    }
}

/// The orientation, 1 to 8, that an EXIF block or else an XMP packet tells; 1 where neither does.
pub(super) fn orientation(exif: &[u8], xmp: &[u8]) -> u8 {
    // Some writers put the marker of the JPEG segment into other formats too.
    let mut exif = exif;
    while let Some(rest) = exif.strip_prefix(b"Exif\0\0") {
        exif = rest;
    }
    let from_exif = Directory::new(exif).and_then(|directory| directory.number(ORIENTATION));
    let orientation = from_exif.or_else(|| xmp_orientation(xmp));
    orientation.filter(|value| (1..=8).contains(value)).map_or(1, |value| value as u8)
}

/// `tiff:Orientation="6"` or `<tiff:Orientation>6<`.
fn xmp_orientation(xmp: &[u8]) -> Option<u32> {
    const KEY: &[u8] = b"tiff:Orientation";
    xmp.windows(KEY.len()).enumerate().filter(|(_, window)| *window == KEY).find_map(|(at, _)| {
        let rest = &xmp[at + KEY.len()..];
        let rest = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?;
        rest.first().filter(|byte| byte.is_ascii_digit()).map(|byte| u32::from(byte - b'0'))
    })
}

/// Turns a stored image upright.
pub(super) fn apply(image: RgbImage, orientation: u8) -> RgbImage {
    let (width, height) = (image.width, image.height);
    // For each output pixel the source pixel is `start + x * step_x + y * step_y`.
    let (last_x, last_y) = (width as isize - 1, (height as isize - 1) * width as isize);
    let (right, down) = (1isize, width as isize);
    let (start, step_x, step_y) = match orientation {
        2 => (last_x, -right, down),
        3 => (last_x + last_y, -right, -down),
        4 => (last_y, right, -down),
        5 => (0, down, right),
        6 => (last_y, -down, right),
        7 => (last_x + last_y, -down, -right),
        8 => (last_x, down, -right),
        _ => return image,
    };
    let (out_width, out_height) = if orientation >= 5 { (height, width) } else { (width, height) };
    let mut pixels = vec![0u8; image.pixels.len()];
    let (source, _) = image.pixels.as_chunks::<3>();
    let (target, _) = pixels.as_chunks_mut::<3>();
    // In tiles, so that reading columns stays in the cache.
    const TILE: usize = 32;
    for tile_y in (0..out_height).step_by(TILE) {
        for tile_x in (0..out_width).step_by(TILE) {
            let columns = tile_x..(tile_x + TILE).min(out_width);
            for y in tile_y..(tile_y + TILE).min(out_height) {
                let mut from = start + columns.start as isize * step_x + y as isize * step_y;
                for pixel in &mut target[y * out_width..][columns.clone()] {
                    *pixel = source[from as usize];
                    from += step_x;
                }
            }
        }
    }
    RgbImage { width: out_width, height: out_height, pixels }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(is_big_endian: bool, value: u16) -> Vec<u8> {
        let short = |v: u16| if is_big_endian { v.to_be_bytes() } else { v.to_le_bytes() };
        let long = |v: u32| if is_big_endian { v.to_be_bytes() } else { v.to_le_bytes() };
        let mut bytes = if is_big_endian { b"MM\0*".to_vec() } else { b"II*\0".to_vec() };
        bytes.extend(long(8));
        bytes.extend(short(1));
        bytes.extend([short(ORIENTATION), short(3)].concat());
        bytes.extend(long(1));
        bytes.extend([short(value), short(0)].concat());
        bytes.extend(long(0));
        bytes
    }

    #[test]
    fn both_byte_orders_are_read_and_broken_blocks_are_ignored() {
        for is_big_endian in [false, true] {
            for value in 0..10 {
                let expected = if (1..=8).contains(&value) { value as u8 } else { 1 };
                let bytes = block(is_big_endian, value);
                assert_eq!(orientation(&bytes, b""), expected);
                assert_eq!(orientation(&[b"Exif\0\0", &bytes[..]].concat(), b""), expected);
            }
            let bytes = block(is_big_endian, 6);
            for end in 0..22 {
                assert_eq!(orientation(&bytes[..end], b""), 1, "cut at {end}");
            }
        }
        assert_eq!(orientation(b"", b"<x tiff:Orientation=\"8\"/>"), 8);
        assert_eq!(orientation(b"", b"<tiff:Orientation>3</tiff:Orientation>"), 3);
        assert_eq!(orientation(&block(false, 6), b"tiff:Orientation=\"8\""), 6);
    }

    #[test]
    fn eight_orientations_of_a_small_image() {
        // a b c
        // d e f
        let image = RgbImage { width: 3, height: 2, pixels: b"abcdef".iter().flat_map(|&c| [c; 3]).collect() };
        let expected = ["abcdef", "cbafed", "fedcba", "defabc", "adbecf", "daebfc", "fcebda", "cfbead"];
        for (orientation, expected) in (1..=8).zip(expected) {
            let turned = apply(image.clone(), orientation);
            let found: Vec<u8> = turned.pixels.iter().copied().step_by(3).collect();
            assert_eq!(String::from_utf8(found).unwrap(), expected, "orientation {orientation}");
            assert_eq!((turned.width, turned.height), if orientation < 5 { (3, 2) } else { (2, 3) });
        }
    }
}
