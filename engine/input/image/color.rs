//! Colours as people write them.
//!
//! In: a name or `#rrggbb`. Out: eight-bit RGB.

use crate::{Error, Result};

const NAMES: &[(&str, [u8; 3])] = &[
    ("black", [0, 0, 0]),
    ("white", [255, 255, 255]),
    ("gray", [128, 128, 128]),
    ("grey", [128, 128, 128]),
    ("silver", [192, 192, 192]),
    ("red", [255, 0, 0]),
    ("maroon", [128, 0, 0]),
    ("green", [0, 128, 0]),
    ("lime", [0, 255, 0]),
    ("olive", [128, 128, 0]),
    ("yellow", [255, 255, 0]),
    ("blue", [0, 0, 255]),
    ("navy", [0, 0, 128]),
    ("teal", [0, 128, 128]),
    ("aqua", [0, 255, 255]),
    ("cyan", [0, 255, 255]),
    ("purple", [128, 0, 128]),
    ("fuchsia", [255, 0, 255]),
    ("magenta", [255, 0, 255]),
];

/// A name of HTML 4 (with grey, cyan and magenta), `#rrggbb` or `#rgb`.
pub fn parse_color(text: &str) -> Result<[u8; 3]> {
    let lower = text.trim().to_ascii_lowercase();
    if let Some((_, rgb)) = NAMES.iter().find(|(name, _)| *name == lower) {
        return Ok(*rgb);
    }
    let wrong = || {
        let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
        Error::Request(format!("colour {text:?}: expected #rrggbb, #rgb or one of {}", names.join(", ")))
    };
    let digits: Option<Vec<u8>> =
        lower.strip_prefix('#').and_then(|h| h.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect());
    match digits.as_deref() {
        Some([r, g, b]) => Ok([r * 17, g * 17, b * 17]),
        Some([r, rr, g, gg, b, bb]) => Ok([r * 16 + rr, g * 16 + gg, b * 16 + bb]),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_color;

    #[test]
    fn forms() {
        assert_eq!(parse_color("White").unwrap(), [255; 3]);
        assert_eq!(parse_color("#1a2B3c").unwrap(), [0x1a, 0x2b, 0x3c]);
        assert_eq!(parse_color("#f80").unwrap(), [255, 136, 0]);
        for bad in ["", "#12345", "#gggggg", "chartreuse-ish", "é"] {
            assert!(parse_color(bad).unwrap_err().to_string().contains("expected #rrggbb"), "{bad}");
        }
    }
}
