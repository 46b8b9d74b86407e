//! Where image bytes come from.
//!
//! In: what a user wrote: a path, `-`, a `data:` URI. Out: bytes, within a limit. Not here: decoding.

use std::io::Read;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::{Error, Result};

/// Limits of [`read`].
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// Most bytes an image may have.
    pub max_bytes: u64,
}

impl Default for SourceOptions {
    /// 256 MiB.
    fn default() -> SourceOptions {
        SourceOptions { max_bytes: 256 << 20 }
    }
}

/// Reads the bytes that `spec` names: a path, `-` for standard input or a `data:` URI.
pub fn read(spec: &str, options: &SourceOptions) -> Result<Vec<u8>> {
    if spec.len() >= 5 && spec.is_char_boundary(5) && spec[..5].eq_ignore_ascii_case("data:") {
        return data_uri(&spec[5..], options.max_bytes);
    }
    if spec == "-" {
        return capped(std::io::stdin().lock(), "standard input", options.max_bytes);
    }
    let file = std::fs::File::open(spec).map_err(|e| Error::Request(format!("image {spec}: {e}")))?;
    capped(file, spec, options.max_bytes)
}

fn capped(reader: impl Read, name: &str, max_bytes: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader
        .take(max_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|e| Error::Request(format!("image {name}: {e}")))?;
    if bytes.len() as u64 > max_bytes {
        return Err(Error::Request(format!("image {name}: more than the limit of {max_bytes} bytes")));
    }
    Ok(bytes)
}

/// Decodes what follows `data:`. Messages never quote the payload.
fn data_uri(rest: &str, max_bytes: u64) -> Result<Vec<u8>> {
    let (head, payload) =
        rest.split_once(',').ok_or_else(|| Error::Request("image data: URI: no comma before the payload".into()))?;
    let mut bytes = Vec::with_capacity(payload.len());
    let mut escaped = payload.bytes();
    while let Some(byte) = escaped.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |c: Option<u8>| c.and_then(|c| char::from(c).to_digit(16));
        match (digit(escaped.next()), digit(escaped.next())) {
            (Some(high), Some(low)) => bytes.push((high * 16 + low) as u8),
            _ => return Err(Error::Request("image data: URI: a % without two hexadecimal digits behind it".into())),
        }
    }
    if head.split(';').any(|part| part.trim().eq_ignore_ascii_case("base64")) {
        bytes.retain(|b| !b.is_ascii_whitespace());
        let url_safe = bytes.iter().any(|b| matches!(b, b'-' | b'_'));
        let alphabet = if url_safe { base64::alphabet::URL_SAFE } else { base64::alphabet::STANDARD };
        let config = GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true);
        bytes = GeneralPurpose::new(&alphabet, config)
            .decode(&bytes)
            .map_err(|e| Error::Request(format!("image data: URI: not base64: {e}")))?;
    }
    if bytes.len() as u64 > max_bytes {
        return Err(Error::Request(format!("image data: URI: more than the limit of {max_bytes} bytes")));
    }
    Ok(bytes)
}
