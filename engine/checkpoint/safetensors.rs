//! One safetensors file, mapped and checked.
//!
//! In: a path. Out: typed tensors over the mapped bytes, without a copy. Owns: the mapping, the header.
//! Not here: several files as one checkpoint (`mod.rs`), names of a family.
//!
//! Format: 8 bytes little-endian header length, a JSON object `{name: {dtype, shape, data_offsets}}` with an
//! optional `__metadata__` of strings, then the tensors' bytes, row-major little-endian, without holes.
//! Nothing in the file is believed: every length and offset is checked before a tensor can be asked for.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::built_in;
use crate::tensor::{DType, HostBytes, HostTensor};
use crate::{Error, Result};

/// Largest header accepted, in bytes; the limit of the reference implementation.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Type, shape and place of one tensor in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    pub dtype: DType,
    pub shape: Vec<usize>,
    /// First byte, counted from the start of the file.
    pub offset: usize,
    pub bytes: usize,
}

/// A mapped safetensors file whose header has been checked in full.
pub struct SafetensorsFile {
    path: PathBuf,
    bytes: FileBytes,
    /// In the order of their bytes in the file.
    tensors: Vec<(String, TensorInfo)>,
    by_name: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
}

/// Where the file's bytes lie.
enum FileBytes {
    Mapped(Arc<Mmap>),
    BuiltIn(&'static [u8]),
}

impl std::ops::Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            FileBytes::Mapped(map) => map,
            FileBytes::BuiltIn(bytes) => bytes,
        }
    }
}

impl fmt::Debug for SafetensorsFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SafetensorsFile({}, {} tensors)", self.path.display(), self.tensors.len())
    }
}

impl SafetensorsFile {
    /// Maps a file and checks its header against its length.
    ///
    /// Errors: [`Error::Checkpoint`] naming the file, the tensor and what is wrong;
    /// [`Error::Unsupported`] for an element type that the engine does not know.
    pub fn open(path: &Path) -> Result<SafetensorsFile> {
        if let Some(bytes) = built_in::file(path) {
            return SafetensorsFile::over(path, FileBytes::BuiltIn(bytes));
        }
        let fail = |what: String| Error::Checkpoint(format!("{}: {what}", path.display()));
        let file = File::open(path).map_err(|e| fail(e.to_string()))?;
        let found = file.metadata().map_err(|e| fail(e.to_string()))?;
        if !found.is_file() {
            return Err(fail("expected a regular file".into()));
        }
        if found.len() < 8 {
            return Err(fail(format!("expected a safetensors file, got {} bytes; download it again", found.len())));
        }
        // SAFETY: the mapping is read-only and private to reads; a writer that truncates the file under a
        // running engine is outside of what a reader can guard against, as with every mapped file.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| fail(format!("cannot be mapped: {e}")))?;
        SafetensorsFile::over(path, FileBytes::Mapped(Arc::new(map)))
    }

    fn over(path: &Path, bytes: FileBytes) -> Result<SafetensorsFile> {
        let header = check_header(&bytes).map_err(|p| p.into_error(path))?;
        let by_name = header.tensors.iter().enumerate().map(|(i, (n, _))| (n.clone(), i)).collect();
        Ok(SafetensorsFile {
            path: path.to_path_buf(),
            bytes,
            tensors: header.tensors,
            by_name,
            metadata: header.metadata,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The strings of `__metadata__`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Length of the file in bytes.
    pub fn file_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// All tensors in the order of their bytes.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(n, t)| (n.as_str(), t))
    }

    /// Type, shape and place of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i].1)
    }

    /// A tensor over the mapped bytes; no byte is read or copied.
    pub fn tensor(&self, name: &str) -> Result<HostTensor> {
        let info =
            self.info(name).ok_or_else(|| Error::Checkpoint(format!("{name}: not in {}", self.path.display())))?;
        let range = info.offset..info.offset + info.bytes;
        let bytes = match &self.bytes {
            FileBytes::Mapped(map) => HostBytes::Mapped { map: map.clone(), range },
            FileBytes::BuiltIn(bytes) => HostBytes::Static(&bytes[range]),
        };
        HostTensor::new(info.dtype, info.shape.clone(), bytes)
    }

    /// Asks the operating system to read a tensor's bytes ahead. A hint: failure is of no consequence.
    pub fn prefetch(&self, name: &str) {
        if let Some(info) = self.info(name) {
            self.advise(memmap2::Advice::WillNeed, info.offset, info.bytes);
        }
    }

    /// Says that the whole file will be read once from front to back (a repack, a conversion).
    pub fn will_read_sequentially(&self) {
        self.advise(memmap2::Advice::Sequential, 0, self.bytes.len());
    }

    #[cfg(unix)]
    fn advise(&self, advice: memmap2::Advice, offset: usize, bytes: usize) {
        if let FileBytes::Mapped(map) = &self.bytes
            && bytes > 0
        {
            // Only a hint, so an error (an odd file system) changes nothing.
            let _ = map.advise_range(advice, offset, bytes);
        }
    }

    #[cfg(not(unix))]
    fn advise(&self, _: memmap2::Advice, _: usize, _: usize) {}
}

/// What is wrong with a file; turned into an [`Error`] where the path is known.
enum Problem {
    Damaged(String),
    Unsupported(String),
}

impl Problem {
    fn into_error(self, path: &Path) -> Error {
        match self {
            Problem::Damaged(what) => Error::Checkpoint(format!("{}: {what}", path.display())),
            Problem::Unsupported(what) => Error::Unsupported(format!("{}: {what}", path.display())),
        }
    }
}

#[derive(Debug)]
struct Header {
    tensors: Vec<(String, TensorInfo)>,
    metadata: BTreeMap<String, String>,
}

/// Reads and checks the header of a file given as bytes (at least 8).
fn check_header(file: &[u8]) -> std::result::Result<Header, Problem> {
    let damaged = |what: String| Err(Problem::Damaged(what));
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return damaged(format!("expected a safetensors file, got {} bytes", file.len()));
    };
    let header_bytes = u64::from_le_bytes(*length);
    if let Some(other) = other_format(file) {
        return damaged(format!("expected a safetensors file, got {other}"));
    }
    if header_bytes > MAX_HEADER_BYTES {
        return damaged(format!("header length: expected at most {MAX_HEADER_BYTES} bytes, got {header_bytes}"));
    }
    if header_bytes > rest.len() as u64 {
        return damaged(format!(
            "header length: {header_bytes} bytes announced, the file ends after {}; it is cut short or damaged, \
             download it again",
            rest.len()
        ));
    }
    let (header, body) = rest.split_at(header_bytes as usize);
    if header.first() != Some(&b'{') {
        return damaged("header: expected a JSON object that begins with '{'".into());
    }
    let raw: RawHeader = match serde_json::from_slice(header) {
        Ok(raw) => raw,
        Err(e) => return damaged(format!("header: {e}")),
    };
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (name, raw) in raw.tensors {
        let info = check_tensor(&name, &raw, 8 + header_bytes as usize, body.len())?;
        tensors.push((name, info));
    }
    tensors.sort_by(|(a, s), (b, t)| (s.offset, s.bytes, a).cmp(&(t.offset, t.bytes, b)));

    let mut names: Vec<&str> = tensors.iter().map(|(n, _)| n.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|p| p[0] == p[1]) {
        return damaged(format!("header: {} is there twice", pair[0]));
    }

    let body_start = 8 + header_bytes as usize;
    let mut end = body_start;
    let mut previous = "the header";
    for (name, info) in &tensors {
        if info.offset < end {
            return damaged(format!(
                "{name}: bytes overlap {previous}: begins at {}, {previous} ends at {}",
                info.offset - body_start,
                end - body_start
            ));
        }
        if info.offset > end {
            return damaged(format!("{} bytes between {previous} and {name} belong to no tensor", info.offset - end));
        }
        end = info.offset + info.bytes;
        previous = name;
    }
    if end != file.len() {
        return damaged(format!("{} bytes after {previous} belong to no tensor", file.len() - end));
    }
    Ok(Header { tensors, metadata: raw.metadata })
}

/// Checks one entry of the header against itself and the length of the file's body.
fn check_tensor(
    name: &str,
    raw: &RawTensor,
    body_start: usize,
    body_bytes: usize,
) -> std::result::Result<TensorInfo, Problem> {
    let damaged = |what: String| Err(Problem::Damaged(format!("{name}: {what}")));
    let Some(dtype) = DType::from_name(&raw.dtype) else {
        return Err(Problem::Unsupported(format!(
            "{name}: dtype {:?}; known are F64 F32 F16 BF16 I64 I32 I16 I8 U64 U32 U16 U8 BOOL",
            raw.dtype
        )));
    };
    let [begin, end] = raw.data_offsets;
    if begin > end {
        return damaged(format!("data_offsets: begin {begin} lies after end {end}"));
    }
    if end > body_bytes as u64 {
        return damaged(format!(
            "data_offsets: ends at byte {end}, the file holds {body_bytes}; it is cut short or damaged, download it \
             again"
        ));
    }
    let size = raw.shape.iter().try_fold(dtype.size() as u64, |a, &d| a.checked_mul(d));
    match size {
        Some(size) if size == end - begin => {}
        Some(size) => {
            return damaged(format!(
                "{} {:?} takes {size} bytes, data_offsets give {}",
                dtype.name(),
                raw.shape,
                end - begin
            ));
        }
        None => return damaged(format!("shape {:?} is too large", raw.shape)),
    }
    let mut shape = Vec::with_capacity(raw.shape.len());
    for &d in &raw.shape {
        match usize::try_from(d) {
            Ok(d) => shape.push(d),
            Err(_) => return damaged(format!("shape {:?} is too large", raw.shape)),
        }
    }
    Ok(TensorInfo { dtype, shape, offset: body_start + begin as usize, bytes: (end - begin) as usize })
}

/// Names what a file is that is often found where weights are expected.
fn other_format(file: &[u8]) -> Option<&'static str> {
    let text = file.trim_ascii_start();
    if file.starts_with(b"version https://git-lfs") {
        Some("a Git LFS pointer; run `git lfs pull` in the checkpoint's directory")
    } else if file.starts_with(b"PK\x03\x04") {
        Some("a zip archive (a PyTorch file?); convert it to safetensors")
    } else if file.starts_with(b"GGUF") {
        Some("a GGUF file")
    } else if text.starts_with(b"<!") || text.starts_with(b"<html") || text.starts_with(b"<HTML") {
        Some("an HTML page; download it again")
    } else {
        None
    }
}

/// An entry as it stands in the header.
#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header as it stands in the file, duplicate names kept so that they can be refused.
struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<RawHeader, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawHeader, A::Error> {
                let mut header = RawHeader { tensors: Vec::new(), metadata: BTreeMap::new() };
                let mut metadata_seen = false;
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        if std::mem::replace(&mut metadata_seen, true) {
                            return Err(A::Error::custom("__metadata__ is there twice"));
                        }
                        header.metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
                    } else {
                        header.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Writes a safetensors file by temporary file and rename: readers see the old file or the whole new one.
///
/// Tensors are laid out by element size, largest first, then by name, as the reference implementation does,
/// so that each is aligned for its type. Errors: [`Error::Output`]; a name given twice is [`Error::Internal`].
pub fn write(path: &Path, tensors: &[(String, HostTensor)], metadata: &BTreeMap<String, String>) -> Result<()> {
    let mut order: Vec<&(String, HostTensor)> = tensors.iter().collect();
    order.sort_by(|(a, s), (b, t)| (t.dtype().size(), a).cmp(&(s.dtype().size(), b)));
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut offset = 0;
    for (name, tensor) in &order {
        let end = offset + tensor.bytes().len();
        let entry = serde_json::json!({
            "dtype": tensor.dtype().name(), "shape": tensor.shape(), "data_offsets": [offset, end],
        });
        if header.insert(name.clone(), entry).is_some() {
            return Err(Error::Internal(format!("{name}: written twice to {}", path.display())));
        }
        offset = end;
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    let fail = |e: std::io::Error| Error::Output(format!("{}: {e}", path.display()));
    let name = path.file_name().ok_or_else(|| Error::Output(format!("{}: not a file name", path.display())))?;
    let mut temporary_name = std::ffi::OsString::from(".");
    temporary_name.push(name);
    temporary_name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(temporary_name);
    let written = (|| {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&temporary)?);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for (_, tensor) in &order {
            out.write_all(tensor.bytes())?;
        }
        out.into_inner().map_err(|e| e.into_error())?.sync_all()?;
        std::fs::rename(&temporary, path)
    })();
    written.map_err(|e| {
        // The first error is the one to report; a temporary file that was never made is no second one.
        let _ = std::fs::remove_file(&temporary);
        fail(e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, body: usize) -> Vec<u8> {
        let mut f = (header.len() as u64).to_le_bytes().to_vec();
        f.extend_from_slice(header.as_bytes());
        f.resize(f.len() + body, 7);
        f
    }

    fn refusal(header: &str, body: usize) -> String {
        match check_header(&file(header, body)) {
            Ok(h) => panic!("accepted {header}: {h:?}"),
            Err(Problem::Damaged(s) | Problem::Unsupported(s)) => s,
        }
    }

    #[test]
    fn header_is_read() {
        let h = r#"{"b":{"dtype":"F32","shape":[2,1],"data_offsets":[4,12]},"__metadata__":{"format":"pt"},
            "a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},"e":{"dtype":"F32","shape":[0,9],"data_offsets":[4,4]},
            "s":{"dtype":"U8","shape":[],"data_offsets":[12,13]}}   "#;
        let Ok(got) = check_header(&file(h, 13)) else { panic!() };
        let names: Vec<_> = got.tensors.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, ["a", "e", "b", "s"]);
        assert_eq!(got.tensors[2].1.offset, 8 + h.len() + 4);
        assert_eq!(got.tensors[2].1.shape, [2, 1]);
        assert_eq!(got.metadata["format"], "pt");
    }

    #[test]
    fn header_is_refused_with_the_reason() {
        let cases: &[(&str, usize, &str)] = &[
            (r#"[]"#, 0, "begins with '{'"),
            (r#" {}"#, 0, "begins with '{'"),
            (r#"{"#, 0, "EOF"),
            (r#"{"a":3}"#, 0, "invalid type"),
            (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 3, "cut short"),
            (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 5, "1 bytes after a belong"),
            (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, 4, "begin 4 lies after end 0"),
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4, "takes 8 bytes, data_offsets give 4"),
            (r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,4]}}"#, 4, "too large"),
            (r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4, "invalid value"),
            (r#"{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}"#, 4, "invalid type"),
            (r#"{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}"#, 4, "dtype \"F8_E4M3\""),
            (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}"#, 5, "1 bytes between the header and a"),
            (
                r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#,
                4,
                "b: bytes overlap a: begins at 2, a ends at 3",
            ),
            (
                r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
                2,
                "a is there twice",
            ),
            (r#"{"__metadata__":{"a":1}}"#, 0, "invalid type"),
            (r#"{"__metadata__":{},"__metadata__":{}}"#, 0, "twice"),
        ];
        for (header, body, want) in cases {
            let got = refusal(header, *body);
            assert!(got.contains(want), "{header}: {got:?} lacks {want:?}");
        }
        let mut long = file("{}", 0);
        long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(check_header(&long), Err(Problem::Damaged(s)) if s.contains("at most 100000000")));
        long[..8].copy_from_slice(&3u64.to_le_bytes());
        assert!(matches!(check_header(&long), Err(Problem::Damaged(s)) if s.contains("3 bytes announced")));
        let page = b"<!DOCTYPE html><html>no such model</html>";
        assert!(matches!(check_header(page), Err(Problem::Damaged(s)) if s.contains("HTML")));
    }

    #[test]
    fn written_file_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let tensors = [
            ("b.bytes".to_string(), HostTensor::new(DType::U8, vec![3], HostBytes::copy_from(&[1, 2, 3])).unwrap()),
            ("a.floats".to_string(), HostTensor::from_f32(vec![2, 2], &[1.0, -2.0, 3.5, f32::MIN])),
        ];
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        write(&path, &tensors, &metadata).unwrap();
        let file = SafetensorsFile::open(&path).unwrap();
        assert_eq!(file.metadata(), &metadata);
        assert_eq!(file.tensors().map(|(n, _)| n).collect::<Vec<_>>(), ["a.floats", "b.bytes"]);
        let a = file.tensor("a.floats").unwrap();
        assert_eq!(a.as_slice::<f32>().unwrap(), [1.0, -2.0, 3.5, f32::MIN]);
        assert_eq!(file.tensor("b.bytes").unwrap().bytes(), [1, 2, 3]);
        assert!(file.tensor("c").is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the temporary file is gone");
        let twice = [tensors[0].clone(), tensors[0].clone()];
        assert!(matches!(write(&path, &twice, &metadata), Err(Error::Internal(_))));
        let nowhere = dir.path().join("no/such/dir/x.safetensors");
        assert!(matches!(write(&nowhere, &tensors, &metadata), Err(Error::Output(_))));
    }
}
