//! Where image bytes come from.
//!
//! In: what a user wrote: a path, `-`, an http(s) URL, a `data:` URI, base64. Out: bytes within a limit.
//! Owns: which kinds of source a caller allows. Not here: HTTP (`fetch.rs`), decoding.

use std::io::Read;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::fetch;
use crate::{Error, Result};

/// Limits of [`read`], and what it may touch.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// Most bytes an image may have.
    pub max_bytes: u64,
    /// Time for a URL in all: name, connection, redirects, body.
    pub timeout: Duration,
    /// Whether paths, `file:` URLs and standard input are read.
    pub allow_local: bool,
    /// Whether URLs may lead to hosts that are not on the public internet.
    pub allow_private_hosts: bool,
}

impl Default for SourceOptions {
    /// For the command line: 256 MiB, 30 seconds, everything allowed.
    fn default() -> SourceOptions {
        SourceOptions {
            max_bytes: 256 << 20,
            timeout: Duration::from_secs(30),
            allow_local: true,
            allow_private_hosts: true,
        }
    }
}

impl SourceOptions {
    /// For requests of others: only public URLs and `data:` URIs.
    pub fn for_server() -> SourceOptions {
        SourceOptions { allow_local: false, allow_private_hosts: false, ..SourceOptions::default() }
    }
}

/// Reads the bytes that `spec` names: a path, `-` for standard input, an http(s) or `file:` URL, a `data:` URI.
///
/// # Errors
/// `Error::Request`, one line, which never quotes a payload or a URL's query.
pub fn read(spec: &str, options: &SourceOptions) -> Result<Vec<u8>> {
    match scheme(spec).as_deref() {
        Some("data") => data_uri(&spec[5..], options.max_bytes),
        Some("http" | "https") => fetch::get(spec, options),
        _ if !options.allow_local => {
            Err(Error::Request("image: expected an http(s) URL or a data: URI, got something else".into()))
        }
        Some("file") => {
            let path = spec[5..].strip_prefix("//").unwrap_or(&spec[5..]);
            // The host of a file: URL is empty or this one.
            let path = path.strip_prefix("localhost").filter(|rest| rest.starts_with('/')).unwrap_or(path);
            let path = percent_decoded(path)?;
            let path = String::from_utf8(path).map_err(|_| Error::Request(format!("image {spec}: not UTF-8")))?;
            file(&path, options.max_bytes)
        }
        _ if spec == "-" => capped(std::io::stdin().lock(), None, "standard input", options.max_bytes),
        _ => file(spec, options.max_bytes),
    }
}

/// The scheme of a URL in lower case; none for a path. A scheme that is not known here makes a path.
fn scheme(spec: &str) -> Option<String> {
    let (scheme, rest) = spec.split_once(':')?;
    let scheme = scheme.to_ascii_lowercase();
    let is_url = match scheme.as_str() {
        "data" => true,
        "http" | "https" | "file" => rest.starts_with("//"),
        _ => false,
    };
    is_url.then_some(scheme)
}

fn file(path: &str, max_bytes: u64) -> Result<Vec<u8>> {
    let fail = |error: std::io::Error| Error::Request(format!("image {path}: {error}"));
    let file = std::fs::File::open(path).map_err(fail)?;
    let size = file.metadata().map_err(fail)?;
    if size.is_dir() {
        return Err(Error::Request(format!("image {path}: is a directory, not a file")));
    }
    capped(file, Some(size.len()), path, max_bytes)
}

/// Reads to the end, but never more than the limit. `size` is what the source says about itself.
pub(super) fn capped(reader: impl Read, size: Option<u64>, name: &str, max_bytes: u64) -> Result<Vec<u8>> {
    let too_large =
        || Error::Request(format!("image {name}: more than the limit of {max_bytes} bytes; send a smaller file"));
    let size = size.unwrap_or(0);
    if size > max_bytes {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    let read = reader.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|error| Error::Request(format!("image {name}: {error}")))?;
    if bytes.len() as u64 > max_bytes {
        return Err(too_large());
    }
    Ok(bytes)
}

/// Decodes what follows `data:`. The media type does not count, the content tells the format.
fn data_uri(rest: &str, max_bytes: u64) -> Result<Vec<u8>> {
    let (head, payload) = rest
        .split_once(',')
        .ok_or_else(|| Error::Request("image data: URI: no comma between the media type and the payload".into()))?;
    if head.split(';').skip(1).any(|part| part.trim().eq_ignore_ascii_case("base64")) {
        return match payload.contains('%') {
            true => from_base64(&percent_decoded(payload)?, max_bytes),
            false => from_base64(payload.as_bytes(), max_bytes),
        };
    }
    let bytes = percent_decoded(payload)?;
    if bytes.len() as u64 > max_bytes {
        return Err(Error::Request(format!("image data: URI: more than the limit of {max_bytes} bytes")));
    }
    Ok(bytes)
}

/// Decodes base64 as people send it: either alphabet, with or without padding, with white space.
///
/// # Errors
/// `Error::Request` for other characters, an impossible length, or more than `max_bytes` bytes.
pub fn from_base64(payload: &[u8], max_bytes: u64) -> Result<Vec<u8>> {
    if payload.len() as u64 / 4 * 3 > max_bytes.saturating_mul(2) {
        return Err(Error::Request(format!("image data: URI: more than the limit of {max_bytes} bytes")));
    }
    let standard: Vec<u8> = payload
        .iter()
        .filter(|byte| !byte.is_ascii_whitespace())
        .map(|&byte| match byte {
            b'-' => b'+',
            b'_' => b'/',
            other => other,
        })
        .collect();
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let bytes = GeneralPurpose::new(&base64::alphabet::STANDARD, config).decode(standard).map_err(|error| {
        let what = match error {
            base64::DecodeError::InvalidByte(at, _) => format!("character {} does not belong to it", at + 1),
            base64::DecodeError::InvalidLength(_) => "its length is impossible; part of it is missing".to_string(),
            other => other.to_string(),
        };
        Error::Request(format!("image data: URI: not base64: {what}"))
    })?;
    if bytes.len() as u64 > max_bytes {
        return Err(Error::Request(format!("image data: URI: more than the limit of {max_bytes} bytes")));
    }
    Ok(bytes)
}

fn percent_decoded(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut escaped = text.bytes();
    while let Some(byte) = escaped.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |c: Option<u8>| c.and_then(|c| char::from(c).to_digit(16));
        match (digit(escaped.next()), digit(escaped.next())) {
            (Some(high), Some(low)) => bytes.push((high * 16 + low) as u8),
            _ => return Err(Error::Request("image URI: a % without two hexadecimal digits behind it".into())),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_data(uri: &str) -> Result<Vec<u8>> {
        read(uri, &SourceOptions::for_server())
    }

    #[test]
    fn data_uris_as_people_send_them() {
        let expected = [0xfb, 0xff, 0xfe, b'G', b'I'];
        for uri in [
            "data:image/png;base64,+//+R0k=",
            "data:image/jpg;base64,+//+R0k",
            "data:;base64,-__-R0k=",
            "data:image/png;charset=x;base64,-__-R0k",
            "DATA:image/png;BASE64,+//+ R0\r\nk=",
            "data:image/png;base64,%2B%2F%2f%2BR0k%3D",
            "data:image/gif,%fb%FF%feGI",
        ] {
            assert_eq!(read_data(uri).unwrap(), expected, "{uri}");
        }
        for uri in ["data:image/png;base64", "data:;base64,A", "data:;base64,!!!!", "data:,%4", "data:,%zz"] {
            let error = read_data(uri).unwrap_err().to_string();
            assert!(error.starts_with("request: image ") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn limits_hold_for_every_kind_of_payload() {
        let options = SourceOptions { max_bytes: 3, ..SourceOptions::default() };
        assert_eq!(read("data:;base64,QUJD", &options).unwrap(), b"ABC");
        for uri in ["data:;base64,QUJDRA", "data:,ABCD", &format!("data:;base64,{}", "QUJD".repeat(1000))] {
            let error = read(uri, &options).unwrap_err().to_string();
            assert!(error.contains("limit of 3 bytes"), "{error}");
        }
    }

    #[test]
    fn a_server_reads_nothing_local() {
        for spec in ["/etc/hostname", "-", "file:///etc/hostname", "ftp://host/x.png", "x.png", ""] {
            let error = read(spec, &SourceOptions::for_server()).unwrap_err().to_string();
            assert_eq!(error, "request: image: expected an http(s) URL or a data: URI, got something else");
        }
    }

    #[test]
    fn files_by_path_and_url() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a b.bin");
        std::fs::write(&path, b"abc").unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(read(path, &SourceOptions::default()).unwrap(), b"abc");
        let url = format!("file://{}", path.replace(' ', "%20"));
        assert_eq!(read(&url, &SourceOptions::default()).unwrap(), b"abc");
        let missing = read("no/such/file.png", &SourceOptions::default()).unwrap_err().to_string();
        assert!(missing.starts_with("request: image no/such/file.png: "), "{missing}");
        let directory = read(folder.path().to_str().unwrap(), &SourceOptions::default()).unwrap_err().to_string();
        assert!(directory.ends_with("is a directory, not a file"), "{directory}");
        let small = SourceOptions { max_bytes: 2, ..SourceOptions::default() };
        assert!(read(path, &small).unwrap_err().to_string().contains("more than the limit of 2 bytes"));
    }
}
