//! What a file is, by its first bytes.
//!
//! In: the bytes of a file. Out: the format to decode, or words for what was sent instead. Names and extensions do not count.

/// A format that is decoded here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Jpeg,
    Png,
    WebP,
    Gif,
    Bmp,
    Tiff,
}

impl Format {
    pub fn name(self) -> &'static str {
        match self {
            Format::Jpeg => "JPEG",
            Format::Png => "PNG",
            Format::WebP => "WebP",
            Format::Gif => "GIF",
            Format::Bmp => "BMP",
            Format::Tiff => "TIFF",
        }
    }
}

/// What a file is that is not decoded here, as a phrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Other {
    /// An image in another format.
    Image(&'static str),
    /// Something that is no picture.
    NoImage(&'static str),
}

/// The format of a file, or what it is instead.
pub(super) fn sniff(bytes: &[u8]) -> Result<Format, Other> {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    let at = |offset: usize, magic: &[u8]| bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    if starts(&[0xff, 0xd8]) {
        return Ok(Format::Jpeg);
    }
    if starts(b"\x89PNG\r\n\x1a\n") {
        return Ok(Format::Png);
    }
    if starts(b"RIFF") && at(8, b"WEBP") {
        return Ok(Format::WebP);
    }
    if starts(b"GIF87a") || starts(b"GIF89a") {
        return Ok(Format::Gif);
    }
    if [&b"II*\0"[..], b"MM\0*", b"II+\0", b"MM\0+"].iter().any(|magic| starts(magic)) {
        return Ok(Format::Tiff);
    }
    // "BM" alone is a common word; the size of the header that follows is not.
    if starts(b"BM")
        && bytes.get(14..18).is_some_and(|size| matches!(size, [12 | 16 | 40 | 52 | 56 | 64 | 108 | 124, 0, 0, 0]))
    {
        return Ok(Format::Bmp);
    }
    if starts(b"RIFF") {
        return Err(Other::NoImage(if at(8, b"WAVE") { "a WAV sound" } else { "a RIFF file that is not WebP" }));
    }
    if at(4, b"ftyp") {
        return Err(iso_brand(bytes));
    }
    let known: [(&[u8], Other); 17] = [
        (b"\xff\x0a", Other::Image("a JPEG XL image")),
        (b"\0\0\0\x0cJXL \r\n\x87\n", Other::Image("a JPEG XL image")),
        (b"\0\0\0\x0cjP  \r\n\x87\n", Other::Image("a JPEG 2000 image")),
        (b"\xff\x4f\xff\x51", Other::Image("a JPEG 2000 image")),
        (b"%PDF", Other::NoImage("a PDF document")),
        (b"8BPS", Other::Image("a Photoshop document")),
        (b"\0\0\x01\0", Other::Image("a Windows icon")),
        (b"qoif", Other::Image("a QOI image")),
        (b"v/1\x01", Other::Image("an OpenEXR image")),
        (b"PK\x03\x04", Other::NoImage("a ZIP archive")),
        (b"\x1f\x8b", Other::NoImage("gzip-compressed data")),
        (b"\x28\xb5\x2f\xfd", Other::NoImage("zstd-compressed data")),
        (b"\x1a\x45\xdf\xa3", Other::NoImage("a Matroska or WebM video")),
        (b"OggS", Other::NoImage("an Ogg stream")),
        (b"ID3", Other::NoImage("an MP3 sound")),
        (b"\x7fELF", Other::NoImage("a program")),
        (b"MZ", Other::NoImage("a program")),
    ];
    if let Some((_, what)) = known.iter().find(|(magic, _)| starts(magic)) {
        return Err(*what);
    }
    Err(text(bytes).unwrap_or(Other::NoImage("data of an unknown format")))
}

/// What a file of the ISO media family is, by its brand.
fn iso_brand(bytes: &[u8]) -> Other {
    match bytes.get(8..12) {
        Some(b"avif" | b"avis") => Other::Image("an AVIF image"),
        Some(b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1") => {
            Other::Image("a HEIC image")
        }
        _ => Other::NoImage("a video or sound (ISO media)"),
    }
}

/// What a text is; none where the bytes are no text.
fn text(bytes: &[u8]) -> Option<Other> {
    let head = &bytes[..bytes.len().min(1024)];
    let head = match std::str::from_utf8(head) {
        Ok(text) => text,
        // A character may be cut at the end.
        Err(error) if error.valid_up_to() + 4 > head.len() => std::str::from_utf8(&head[..error.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    if head.chars().any(|c| c.is_control() && !c.is_whitespace()) {
        return None;
    }
    let lower = head.trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
    let is_netpbm = lower.len() > 2 && lower.starts_with('p') && matches!(lower.as_bytes()[1], b'1'..=b'7');
    Some(if lower.starts_with("<svg") || (lower.starts_with("<?xml") && lower.contains("<svg")) {
        Other::Image("an SVG drawing")
    } else if lower.starts_with("<!doctype html") || lower.starts_with("<html") || lower.contains("<body") {
        Other::NoImage("an HTML page")
    } else if lower.starts_with("<?xml") {
        Other::NoImage("an XML document")
    } else if lower.starts_with('{') || lower.starts_with('[') {
        Other::NoImage("JSON text")
    } else if lower.starts_with("version https://git-lfs") {
        Other::NoImage("a Git LFS pointer, not the file it stands for")
    } else if is_netpbm && lower.as_bytes()[2].is_ascii_whitespace() {
        Other::Image("a Netpbm image")
    } else {
        Other::NoImage("text")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_instead_is_named() {
        let cases: [(&[u8], &str); 12] = [
            (b"\0\0\0\x20ftypavif\0\0\0\0", "AVIF"),
            (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
            (b"\0\0\0\x18ftypisom\0\0\0\0", "video"),
            (b"\xff\x0a\x01", "JPEG XL"),
            (b"<?xml version=\"1.0\"?>\n<svg xmlns=\"\">", "SVG"),
            (b"  <!DOCTYPE html><html>", "HTML"),
            (b"%PDF-1.7", "PDF"),
            (b"RIFF\x10\0\0\0WAVEfmt ", "WAV"),
            (b"{\"error\": 404}", "JSON"),
            (b"BMW is a car", "text"),
            ("gr\u{fc}n".as_bytes(), "text"),
            (b"\x01\x02\x03", "unknown"),
        ];
        for (bytes, word) in cases {
            let (Other::Image(what) | Other::NoImage(what)) = sniff(bytes).unwrap_err();
            assert!(what.contains(word), "{what} should name {word}");
        }
    }
}
