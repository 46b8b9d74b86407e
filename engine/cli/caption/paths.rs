//! Paths as a caption file has them, and as messages show them.
//!
//! In: paths of any bytes. Out: JSON fields that give the same path back; text without control characters.
//!
//! `path` is the path itself where it is UTF-8, whatever characters that holds (JSON escapes a newline). Where it is not,
//! `path` has U+FFFD for what cannot be said, and `path_bytes`, the base64 of its bytes, is what counts.

use std::path::{Component, Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

/// Puts a path into an object.
pub fn insert(o: &mut Map<String, Value>, path: &Path) {
    match path.to_str() {
        Some(text) => {
            o.insert("path".to_string(), text.into());
        }
        None => {
            o.insert("path".to_string(), path.to_string_lossy().into());
            o.insert("path_bytes".to_string(), STANDARD.encode(path.as_os_str().as_encoded_bytes()).into());
        }
    }
}

/// The path of an object; `None` where it has none, or bytes that are no path here.
pub fn take(o: &Map<String, Value>) -> Option<PathBuf> {
    match o.get("path_bytes") {
        Some(bytes) => from_bytes(STANDARD.decode(bytes.as_str()?).ok()?),
        None => Some(PathBuf::from(o.get("path")?.as_str()?)),
    }
}

/// The path of these bytes, in the system's own encoding.
#[cfg(unix)]
pub fn from_bytes(bytes: Vec<u8>) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    Some(std::ffi::OsString::from_vec(bytes).into())
}

#[cfg(not(unix))]
pub fn from_bytes(bytes: Vec<u8>) -> Option<PathBuf> {
    String::from_utf8(bytes).ok().map(PathBuf::from)
}

/// Without `.` and doubled separators, so that one file has one name; `..` and links stay as they are.
pub fn normal(path: &Path) -> PathBuf {
    let path: PathBuf = path.components().filter(|c| !matches!(c, Component::CurDir)).collect();
    if path.as_os_str().is_empty() { PathBuf::from(".") } else { path }
}

/// For messages: one line, control characters escaped.
pub fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy())
}

/// Text from outside on one line, control characters escaped.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() || is_direction_mark(c) {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    out
}

/// Characters that turn the text around them: a terminal would show another name.
fn is_direction_mark(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_comes_back_from_json() {
        for bytes in [
            &b"photos/a.jpg"[..],
            b"-n.png",
            b"two\nlines\t.png",
            "nfd e\u{301} \u{1f600}.png".as_bytes(),
            b"latin1 \xe9.jpg",
            b"\xff\xfe",
        ] {
            let path = from_bytes(bytes.to_vec()).unwrap();
            let mut o = Map::new();
            insert(&mut o, &path);
            let text = Value::Object(o).to_string();
            assert!(!text.contains('\n'), "{text}");
            let back: Map<String, Value> = serde_json::from_str(&text).unwrap();
            assert_eq!(take(&back), Some(path));
            assert_eq!(back.contains_key("path_bytes"), std::str::from_utf8(bytes).is_err());
        }
        assert_eq!(take(&Map::new()), None);
    }

    #[test]
    fn names_are_normal_and_printable() {
        for (given, expected) in [("./a//b/./c", "a/b/c"), ("a/", "a"), (".", "."), ("../x", "../x"), ("/", "/")] {
            assert_eq!(normal(Path::new(given)), Path::new(expected));
        }
        assert_eq!(printable("a\u{1b}[31m\nb\u{202e}\u{e9}"), "a\\u{1b}[31m\\nb\\u{202e}\u{e9}");
    }
}
