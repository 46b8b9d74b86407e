//! A checkpoint's JSON files, read with errors that say file, key, what was expected and what was found.
//!
//! In: config.json, preprocessor_config.json and their kin. Out: sections with typed getters, or a family's
//! own serde struct. Owns: the parsed JSON. Not here: which keys a family has (its file), generation settings
//! (`generation.rs`), rope spellings (`rope.rs`).
//!
//! Nothing in these files is believed: sizes are whole numbers from 1 to [`MAX_SIZE`], floats are finite.

use std::fmt;
use std::path::Path;

use serde::de::{DeserializeOwned, Deserializer, Error as _, Unexpected};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::built_in;
use crate::tensor::DType;
use crate::{Error, Result};

/// Largest size or count accepted in a configuration; more is damage, not a model.
pub const MAX_SIZE: usize = i32::MAX as usize;

/// Largest JSON file read, in bytes. The longest real ones (a shard index of a very large model) take a few MB.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// A parsed JSON file whose top level is an object.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    name: String,
    map: Map<String, Value>,
}

impl ConfigFile {
    /// Reads and parses a file. Errors: [`Error::Config`] naming the file and the line.
    pub fn read(path: &Path) -> Result<ConfigFile> {
        let name = file_name(path);
        let fail = |e: &dyn fmt::Display| Error::Config(format!("{}: {e}", path.display()));
        if let Some(text) = built_in::file(path) {
            return ConfigFile::parse(&name, text);
        }
        let found = std::fs::metadata(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => fail(&"not found; is this a checkpoint directory?"),
            _ => fail(&e),
        })?;
        if !found.is_file() {
            return Err(fail(&"expected a regular file"));
        }
        if found.len() > MAX_FILE_BYTES {
            return Err(fail(&format!("expected at most {MAX_FILE_BYTES} bytes, got {}", found.len())));
        }
        let text = std::fs::read(path).map_err(|e| fail(&e))?;
        ConfigFile::parse(&name, &text)
    }

    /// As [`ConfigFile::read`]; `None` where there is no such file.
    pub fn read_if_present(path: &Path) -> Result<Option<ConfigFile>> {
        if path.exists() || built_in::file(path).is_some() { ConfigFile::read(path).map(Some) } else { Ok(None) }
    }

    /// Parses the bytes of a file that messages call `name`.
    pub fn parse(name: &str, text: &[u8]) -> Result<ConfigFile> {
        match parse_json(text).map_err(|e| Error::Config(format!("{name}: {e}")))? {
            Value::Object(map) => Ok(ConfigFile { name: name.to_string(), map }),
            other => Err(Error::Config(format!("{name}: expected an object, got {}", brief(&other)))),
        }
    }

    /// The file's name, as messages give it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The top level.
    pub fn root(&self) -> Section<'_> {
        Section { file: &self.name, path: String::new(), map: &self.map }
    }
}

/// The image processor's settings: `image_processor` inside processor_config.json where it is nested there
/// (transformers 5), otherwise preprocessor_config.json; `None` where the checkpoint has neither.
/// In the first case the returned file holds the nested object alone.
pub fn read_image_processor(dir: &Path) -> Result<Option<ConfigFile>> {
    if let Some(processor) = ConfigFile::read_if_present(&dir.join("processor_config.json"))?
        && let Some(section) = processor.root().section_if_present("image_processor")?
    {
        return Ok(Some(ConfigFile { name: section.place(None), map: section.map.clone() }));
    }
    ConfigFile::read_if_present(&dir.join("preprocessor_config.json"))
}

/// An object inside a file; knows where it lies, so that every error does.
#[derive(Debug, Clone)]
pub struct Section<'a> {
    file: &'a str,
    /// Keys from the top level, joined by dots; empty at the top.
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    /// The value of a key; `None` where it is missing or null.
    pub fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// True where the key is written, null included: transformers takes a written null as None, not as the
    /// class default.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// The keys, in file order.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    /// The object itself.
    pub fn map(&self) -> &'a Map<String, Value> {
        self.map
    }

    /// `file: path.key`, for messages.
    pub fn place(&self, key: Option<&str>) -> String {
        let keys: Vec<&str> =
            [self.path.as_str(), key.unwrap_or_default()].into_iter().filter(|k| !k.is_empty()).collect();
        if keys.is_empty() { self.file.to_string() } else { format!("{}: {}", self.file, keys.join(".")) }
    }

    /// The error for a key that holds something else than `expected`.
    pub fn error(&self, key: &str, expected: impl fmt::Display) -> Error {
        let found = match self.map.get(key) {
            None => "nothing".to_string(),
            Some(v) => brief(v),
        };
        Error::Config(format!("{}: expected {expected}, got {found}", self.place(Some(key))))
    }

    /// An object that must be there.
    pub fn section(&self, key: &str) -> Result<Section<'a>> {
        self.section_if_present(key)?.ok_or_else(|| self.error(key, "an object"))
    }

    /// An object; `None` where it is missing or null.
    pub fn section_if_present(&self, key: &str) -> Result<Option<Section<'a>>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                let path = if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) };
                Ok(Some(Section { file: self.file, path, map }))
            }
            Some(_) => Err(self.error(key, "an object")),
        }
    }

    /// A size that must be there: a whole number from 1 to [`MAX_SIZE`].
    pub fn size(&self, key: &str) -> Result<usize> {
        self.size_if_present(key)?.ok_or_else(|| self.error(key, format!("a whole number from 1 to {MAX_SIZE}")))
    }

    /// A size; `None` where it is missing or null.
    pub fn size_if_present(&self, key: &str) -> Result<Option<usize>> {
        self.whole(key, 1)
    }

    /// A size, or the class default where it is missing or null.
    pub fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.size_if_present(key)?.unwrap_or(default))
    }

    /// A whole number from 0 to [`MAX_SIZE`]; `None` where it is missing or null.
    pub fn count_if_present(&self, key: &str) -> Result<Option<usize>> {
        self.whole(key, 0)
    }

    fn whole(&self, key: &str, least: usize) -> Result<Option<usize>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match whole_number(value, least) {
            Some(n) => Ok(Some(n)),
            None => Err(self.error(key, format!("a whole number from {least} to {MAX_SIZE}"))),
        }
    }

    /// A list of whole numbers from 0 to [`MAX_SIZE`]; `None` where it is missing or null.
    pub fn counts_if_present(&self, key: &str) -> Result<Option<Vec<usize>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let list = value.as_array().and_then(|l| l.iter().map(|v| whole_number(v, 0)).collect());
        list.map(Some).ok_or_else(|| self.error(key, format!("a list of whole numbers from 0 to {MAX_SIZE}")))
    }

    /// A finite number; `None` where it is missing or null.
    pub fn number_if_present(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x.is_finite() => Ok(Some(x)),
            _ => Err(self.error(key, "a number")),
        }
    }

    /// A finite number above zero; `None` where it is missing or null.
    pub fn positive_if_present(&self, key: &str) -> Result<Option<f64>> {
        match self.number_if_present(key)? {
            Some(x) if x <= 0.0 => Err(self.error(key, "a number above 0")),
            x => Ok(x),
        }
    }

    /// A finite number above zero that must be there.
    pub fn positive(&self, key: &str) -> Result<f64> {
        self.positive_if_present(key)?.ok_or_else(|| self.error(key, "a number above 0"))
    }

    /// A list of finite numbers; `None` where it is missing or null.
    pub fn numbers_if_present(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let list = value.as_array().and_then(|l| l.iter().map(Value::as_f64).collect());
        list.map(Some).ok_or_else(|| self.error(key, "a list of numbers"))
    }

    /// True or false; `None` where it is missing or null.
    pub fn flag_if_present(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.error(key, "true or false"))
    }

    /// A string; `None` where it is missing or null.
    pub fn text_if_present(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.error(key, "a string"))
    }

    /// The element type the checkpoint says it is stored in: `dtype` (transformers 5) or `torch_dtype` (4);
    /// `None` where neither is there or it is "auto".
    pub fn dtype(&self) -> Result<Option<DType>> {
        let key = if self.value("dtype").is_some() { "dtype" } else { "torch_dtype" };
        let Some(name) = self.text_if_present(key)? else { return Ok(None) };
        Ok(Some(match name.strip_prefix("torch.").unwrap_or(name) {
            "float32" | "float" => DType::F32,
            "float16" | "half" => DType::F16,
            "bfloat16" => DType::Bf16,
            "float64" | "double" => DType::F64,
            "auto" => return Ok(None),
            _ => return Err(self.error(key, "float32, float16, bfloat16 or float64")),
        }))
    }

    /// The section as a family's own struct. Errors name the key by its full path.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        let value = Value::Object(self.map.clone());
        serde_path_to_error::deserialize(value).map_err(|e| {
            let inner = e.path().to_string();
            let key = if inner == "." { None } else { Some(inner.as_str()) };
            Error::Config(format!("{}: {}", self.place(key), e.inner()))
        })
    }
}

/// For `#[serde(deserialize_with = "size")]`: a whole number from 1 to [`MAX_SIZE`].
pub fn size<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<usize, D::Error> {
    from_value(deserializer, "a whole number from 1 to 2147483647", |v| whole_number(v, 1))
}

/// For `#[serde(default, deserialize_with = "size_if_present")]`: as [`size`], None where it is null.
pub fn size_if_present<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<usize>, D::Error> {
    from_value(deserializer, "null or a whole number from 1 to 2147483647", |v| {
        if v.is_null() { Some(None) } else { whole_number(v, 1).map(Some) }
    })
}

/// For `#[serde(deserialize_with = "positive")]`: a finite number above zero, such as an epsilon or a base.
pub fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    from_value(deserializer, "a number above 0", |v| v.as_f64().filter(|x| x.is_finite() && *x > 0.0))
}

fn from_value<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expected: &str,
    convert: impl Fn(&Value) -> Option<T>,
) -> std::result::Result<T, D::Error> {
    let value = Value::deserialize(deserializer)?;
    convert(&value).ok_or_else(|| D::Error::invalid_value(Unexpected::Other(&brief(&value)), &expected))
}

/// A whole number in range; 8.0 is none, as for the reference.
fn whole_number(value: &Value, least: usize) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok().filter(|&n| n >= least && n <= MAX_SIZE)
}

/// A value for a message: short, on one line.
pub(crate) fn brief(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value).unwrap_or_else(|_| "something unprintable".into());
    if text.chars().count() <= 60 { text } else { text.chars().take(57).chain("...".chars()).collect() }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Parses JSON; the error says the line and, for Python's NaN and Infinity, the key that holds it.
pub(crate) fn parse_json(text: &[u8]) -> std::result::Result<Value, String> {
    // A byte order mark is no JSON, but editors on Windows write one.
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    serde_json::from_slice(text).map_err(|e| match python_literal(text) {
        Some((literal, key, line)) if e.line() == line => {
            format!("{key}: expected a number, got {literal} (line {line}); JSON has no such value, write a finite one")
        }
        _ if text.is_empty() => "the file is empty".to_string(),
        _ if text.trim_ascii_start().starts_with(b"<") => "expected JSON, got an HTML or XML page".to_string(),
        _ if text.starts_with(b"version https://git-lfs") => {
            "expected JSON, got a Git LFS pointer; run `git lfs pull` in the checkpoint's directory".to_string()
        }
        _ => e.to_string(),
    })
}

/// The first NaN or Infinity outside a string, as Python's json writes them: literal, last key, line.
fn python_literal(text: &[u8]) -> Option<(&'static str, String, usize)> {
    let (mut line, mut at, mut last, mut key) = (1, 0, String::new(), String::from("a value"));
    while at < text.len() {
        let rest = &text[at..];
        match rest[0] {
            b'\n' => line += 1,
            b'"' => {
                let mut end = 1;
                while end < rest.len() && rest[end] != b'"' {
                    end += if rest[end] == b'\\' { 2 } else { 1 };
                }
                last = String::from_utf8_lossy(&rest[1..end.min(rest.len())]).into_owned();
                at += end;
            }
            b':' => key = std::mem::take(&mut last),
            _ => {
                if let Some(l) = ["-Infinity", "Infinity", "NaN"].into_iter().find(|l| rest.starts_with(l.as_bytes())) {
                    return Some((l, key, line));
                }
            }
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> ConfigFile {
        ConfigFile::parse("config.json", text.as_bytes()).unwrap()
    }

    fn message<T: fmt::Debug>(r: Result<T>) -> String {
        r.unwrap_err().to_string()
    }

    #[test]
    fn getters_say_file_key_expected_and_found() {
        let c = config(
            r#"{"text_config": {"hidden_size": -3, "big": 1e30, "half": 2.5, "float": 64.0, "none": null, "name": 7,
                "eps": 0, "list": [1, -2], "flag": 1, "zero": 0, "dtype": "int3"}, "torch_dtype": "bfloat16"}"#,
        );
        let t = c.root().section("text_config").unwrap();
        let range = "a whole number from 1 to 2147483647";
        assert_eq!(
            message(t.size("hidden_size")),
            format!("config: config.json: text_config.hidden_size: expected {range}, got -3")
        );
        assert_eq!(
            message(t.size("big")),
            format!("config: config.json: text_config.big: expected {range}, got 1e+30")
        );
        assert_eq!(
            message(t.size("half")),
            format!("config: config.json: text_config.half: expected {range}, got 2.5")
        );
        assert_eq!(message(t.size("zero")), format!("config: config.json: text_config.zero: expected {range}, got 0"));
        assert_eq!(
            message(t.size("absent")),
            format!("config: config.json: text_config.absent: expected {range}, got nothing")
        );
        assert!(message(t.size("float")).ends_with("got 64.0"));
        assert_eq!(t.size_or("none", 5).unwrap(), 5);
        assert!(t.has("none") && !t.has("absent"));
        assert_eq!(t.count_if_present("zero").unwrap(), Some(0));
        assert!(message(t.text_if_present("name")).contains("text_config.name: expected a string, got 7"));
        assert!(message(t.positive("eps")).contains("text_config.eps: expected a number above 0, got 0"));
        assert!(message(t.counts_if_present("list")).contains("text_config.list"));
        assert!(message(t.flag_if_present("flag")).contains("text_config.flag: expected true or false, got 1"));
        assert!(message(t.dtype()).contains("text_config.dtype"));
        assert_eq!(c.root().dtype().unwrap(), Some(DType::Bf16));
        assert!(message(c.root().section("torch_dtype")).contains("torch_dtype: expected an object"));
    }

    #[test]
    fn families_parse_their_own_structs() {
        #[derive(Debug, Deserialize)]
        struct Text {
            #[serde(deserialize_with = "size")]
            hidden_size: usize,
            #[serde(default, deserialize_with = "size_if_present")]
            head_dim: Option<usize>,
            #[serde(deserialize_with = "positive")]
            rms_norm_eps: f64,
        }
        #[derive(Debug, Deserialize)]
        struct Whole {
            text_config: Text,
        }
        let ok = config(r#"{"text_config": {"hidden_size": 64, "head_dim": null, "rms_norm_eps": 1e-5}}"#);
        let whole: Whole = ok.root().parse().unwrap();
        assert_eq!((whole.text_config.hidden_size, whole.text_config.head_dim), (64, None));
        assert_eq!(whole.text_config.rms_norm_eps, 1e-5);
        let bad = config(r#"{"text_config": {"hidden_size": 0, "rms_norm_eps": 1e-5}}"#);
        let got = message(bad.root().parse::<Whole>());
        assert!(got.starts_with("config: config.json: text_config.hidden_size: "), "{got}");
        assert!(got.contains("expected a whole number from 1"), "{got}");
        let missing = config(r#"{"text_config": {"hidden_size": 4}}"#);
        let got = message(missing.root().section("text_config").unwrap().parse::<Text>());
        assert_eq!(got, "config: config.json: text_config: missing field `rms_norm_eps`");
    }

    #[test]
    fn python_numbers_are_named() {
        let text = "{\n \"a\": \"NaN\",\n \"text_config\": {\"x\": 1,\n  \"rms_norm_eps\": NaN}}";
        let got = message(ConfigFile::parse("config.json", text.as_bytes()));
        assert_eq!(
            got,
            "config: config.json: rms_norm_eps: expected a number, got NaN (line 4); JSON has no such value, write a \
             finite one"
        );
        let got = message(ConfigFile::parse("c", b"{\"factor\": -Infinity}"));
        assert!(got.contains("factor: expected a number, got -Infinity (line 1)"), "{got}");
        assert!(message(ConfigFile::parse("c", b"{\"a\": 1e999}")).contains("out of range"));
        assert!(message(ConfigFile::parse("c", b"")).contains("empty"));
        assert!(message(ConfigFile::parse("c", b"[]")).contains("expected an object, got []"));
        assert!(message(ConfigFile::parse("c", b"<html>")).contains("HTML"));
        assert!(ConfigFile::parse("c", b"\xef\xbb\xbf{}").is_ok());
    }

    #[test]
    fn image_processor_is_found_in_both_places() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_image_processor(dir.path()).unwrap().is_none());
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("processor_config.json", r#"{"processor_class": "P"}"#);
        write("preprocessor_config.json", r#"{"size": 1}"#);
        let size = || read_image_processor(dir.path()).unwrap().unwrap().root().size("size").unwrap();
        assert_eq!(size(), 1);
        write("processor_config.json", r#"{"image_processor": {"size": 2, "mean": "x"}}"#);
        assert_eq!(size(), 2);
        let nested = read_image_processor(dir.path()).unwrap().unwrap();
        let got = message(nested.root().numbers_if_present("mean"));
        assert_eq!(got, "config: processor_config.json: image_processor: mean: expected a list of numbers, got \"x\"");
    }
}
