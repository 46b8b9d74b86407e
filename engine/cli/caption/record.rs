//! What is written of a caption: a line of the caption file, an entry of the ledger.
//!
//! In: values. Out: one line of JSON each, and back. Not here: files.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::paths;

/// A SHA-256 digest.
pub type Digest = [u8; 32];

/// Identifies settings: everything that a caption depends on beside its picture.
pub type Key = [u8; 16];

/// A line of the caption file.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub path: PathBuf,
    pub caption: String,
    pub model: String,
    /// New tokens, a final end token included.
    pub tokens: usize,
    pub image_tokens: usize,
    /// From reading the file to the last token.
    pub seconds: f64,
    /// Of the file.
    pub sha256: Digest,
}

impl Line {
    /// JSON, without a line end.
    pub fn to_json(&self) -> String {
        let mut o = Map::new();
        paths::insert(&mut o, &self.path);
        o.insert("caption".to_string(), self.caption.clone().into());
        o.insert("model".to_string(), self.model.clone().into());
        o.insert("tokens".to_string(), self.tokens.into());
        o.insert("image_tokens".to_string(), self.image_tokens.into());
        o.insert("seconds".to_string(), ((self.seconds * 1e3).round() / 1e3).into());
        o.insert("sha256".to_string(), hex(&self.sha256).into());
        Value::Object(o).to_string()
    }
}

/// What is needed of a line to know its picture again. Any program may have written it: a path and a caption suffice.
#[derive(Debug, Clone, PartialEq)]
pub struct LineView {
    pub path: PathBuf,
    pub caption: String,
    pub sha256: Option<Digest>,
}

impl LineView {
    /// `None` where this is no line of a caption file.
    pub fn parse(line: &[u8]) -> Option<LineView> {
        let o: Map<String, Value> = serde_json::from_slice(line).ok()?;
        let sha256 = o.get("sha256").and_then(Value::as_str).and_then(from_hex);
        Some(LineView { path: paths::take(&o)?, caption: o.get("caption")?.as_str()?.to_string(), sha256 })
    }
}

/// A sidecar as it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct SidecarEntry {
    pub path: PathBuf,
    pub content: String,
}

/// A caption that was made; written before anything else is done with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    pub path: PathBuf,
    pub key: Key,
    pub sha256: Digest,
    /// Of the picture's file, in bytes.
    pub size: u64,
    /// When the file was changed, in nanoseconds since 1970.
    pub modified: i64,
    pub sidecar: Option<SidecarEntry>,
    /// The line of the caption file.
    pub line: String,
}

/// An entry of the ledger.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// A run begins; the key covers its flags and inputs.
    Run(Key),
    Made(Box<Made>),
    /// What was made of this picture could not be put beside it, and counts as not made.
    Void(PathBuf),
    /// The run was stopped in good order.
    Stop,
    /// The run is through.
    End,
}

impl Entry {
    /// JSON, without a line end.
    pub fn to_json(&self) -> String {
        match self {
            Entry::Run(key) => json!({"run": hex(key)}).to_string(),
            Entry::Stop => json!({"run_stopped": true}).to_string(),
            Entry::End => json!({"run_ended": true}).to_string(),
            Entry::Void(path) => {
                let mut o = Map::new();
                paths::insert(&mut o, path);
                o.insert("void".to_string(), true.into());
                Value::Object(o).to_string()
            }
            Entry::Made(made) => {
                let mut o = Map::new();
                paths::insert(&mut o, &made.path);
                o.insert("key".to_string(), hex(&made.key).into());
                o.insert("sha256".to_string(), hex(&made.sha256).into());
                o.insert("size".to_string(), made.size.into());
                o.insert("modified".to_string(), made.modified.into());
                if let Some(sidecar) = &made.sidecar {
                    let mut s = Map::new();
                    paths::insert(&mut s, &sidecar.path);
                    s.insert("content".to_string(), sidecar.content.clone().into());
                    o.insert("sidecar".to_string(), Value::Object(s));
                }
                o.insert("line".to_string(), made.line.clone().into());
                Value::Object(o).to_string()
            }
        }
    }

    /// `None` where this is no entry.
    pub fn parse(line: &[u8]) -> Option<Entry> {
        let o: Map<String, Value> = serde_json::from_slice(line).ok()?;
        if let Some(run) = o.get("run") {
            return Some(Entry::Run(from_hex(run.as_str()?)?));
        }
        for (name, entry) in [("run_stopped", Entry::Stop), ("run_ended", Entry::End)] {
            if o.contains_key(name) {
                return Some(entry);
            }
        }
        let path = paths::take(&o)?;
        if o.contains_key("void") {
            return Some(Entry::Void(path));
        }
        let sidecar = match o.get("sidecar") {
            Some(s) => {
                let s = s.as_object()?;
                Some(SidecarEntry { path: paths::take(s)?, content: s.get("content")?.as_str()?.to_string() })
            }
            None => None,
        };
        Some(Entry::Made(Box::new(Made {
            path,
            key: from_hex(o.get("key")?.as_str()?)?,
            sha256: from_hex(o.get("sha256")?.as_str()?)?,
            size: o.get("size")?.as_u64()?,
            modified: o.get("modified")?.as_i64()?,
            sidecar,
            line: o.get("line")?.as_str()?.to_string(),
        })))
    }
}

/// A line of the file of failures, which is also a line that --filelist takes.
pub fn failure_json(path: &Path, reason: &str) -> String {
    let mut o = Map::new();
    paths::insert(&mut o, path);
    o.insert("error".to_string(), reason.into());
    Value::Object(o).to_string()
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (i, b) in bytes.iter_mut().enumerate() {
        *b = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back() {
        let path = paths::from_bytes(b"odd \n name".to_vec()).unwrap();
        let line = Line {
            path: path.clone(),
            caption: "a \"b\"\nc".to_string(),
            model: "m".to_string(),
            tokens: 3,
            image_tokens: 4,
            seconds: 0.123_456,
            sha256: [7; 32],
        };
        let json = line.to_json();
        assert!(json.contains("\"seconds\":0.123,") && !json.contains('\n'), "{json}");
        let view = LineView::parse(json.as_bytes()).unwrap();
        assert_eq!(view, LineView { path: path.clone(), caption: line.caption, sha256: Some([7; 32]) });
        let made = Made {
            path: path.clone(),
            key: [1; 16],
            sha256: [2; 32],
            size: 3,
            modified: -4,
            sidecar: Some(SidecarEntry { path: "x.txt".into(), content: "c\n".into() }),
            line: json,
        };
        let bare = Made { sidecar: None, ..made.clone() };
        for entry in [
            Entry::Run([9; 16]),
            Entry::Stop,
            Entry::End,
            Entry::Void(path),
            Entry::Made(Box::new(made)),
            Entry::Made(Box::new(bare)),
        ] {
            assert_eq!(Entry::parse(entry.to_json().as_bytes()), Some(entry));
        }
        for bad in ["", "{}", "[]", "{\"run\":\"x\"}", "{\"path\":\"a\"}", "{\"path\":\"a\",\"caption\":\"b\""] {
            assert_eq!(Entry::parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(LineView::parse(b"{\"path\":\"a\"}"), None);
    }
}
