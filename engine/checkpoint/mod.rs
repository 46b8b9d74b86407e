//! Files of a model turned into named, typed host tensors and settings.
//!
//! In: a directory (or a hub id, `hub`). Out: tensors by the family's names over mapped files; checked
//! configuration. Owns: the mappings. Not here: which tensors a family needs (models), how they are stored on a
//! device (backend), tokenizer and chat template (input).

pub mod built_in;
pub mod config;
pub mod generation;
pub mod hub;
pub mod rope;
pub mod safetensors;
pub mod storage;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

pub use self::config::{ConfigFile, Section};
pub use self::generation::GenerationConfig;
pub use self::rope::{RopeParameters, RopeScaling};
pub use self::safetensors::SafetensorsFile;

use crate::tensor::{DType, HostTensor};
use crate::{Error, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The weights of a model: one safetensors file or the shards of an index.
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<SafetensorsFile>,
    /// By the family's name.
    tensors: BTreeMap<String, Place>,
    ignored: Vec<String>,
}

/// Where a tensor lies.
#[derive(Debug)]
struct Place {
    file: usize,
    /// Its name in the file.
    stored: String,
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry<'a> {
    /// The family's name.
    pub name: &'a str,
    /// The name in the file.
    pub stored: &'a str,
    pub dtype: DType,
    pub shape: &'a [usize],
    pub bytes: usize,
    /// Index into [`Checkpoint::files`].
    pub file: usize,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checkpoint({}, {} files, {} tensors)", self.dir.display(), self.files.len(), self.tensors.len())
    }
}

impl Checkpoint {
    /// Maps model.safetensors, or the shards that model.safetensors.index.json names, and checks every header.
    ///
    /// `rename` gives the family's name of a stored tensor, or `None` for one that the family has no use for
    /// (a buffer that old versions saved). No tensor's bytes are read.
    ///
    /// Errors: [`Error::Checkpoint`] naming the file or tensor: no weights, a missing shard, a tensor listed but
    /// absent or in two files, two tensors under one name after renaming, a damaged header.
    pub fn open(dir: &Path, rename: impl Fn(&str) -> Option<String>) -> Result<Checkpoint> {
        let (files, listed) = open_files(dir)?;
        let mut checkpoint =
            Checkpoint { dir: dir.to_path_buf(), files, tensors: BTreeMap::new(), ignored: Vec::new() };
        let mut stored: HashMap<&str, usize> = HashMap::new();
        for (i, file) in checkpoint.files.iter().enumerate() {
            for (name, _) in file.tensors() {
                if let Some(first) = stored.insert(name, i) {
                    return Err(Error::Checkpoint(format!(
                        "{name}: is in two files, {} and {}",
                        checkpoint.file_name(first),
                        checkpoint.file_name(i)
                    )));
                }
                match rename(name) {
                    None => checkpoint.ignored.push(name.to_string()),
                    Some(new) => {
                        let place = Place { file: i, stored: name.to_string() };
                        if let Some(other) = checkpoint.tensors.insert(new.clone(), place) {
                            return Err(Error::Checkpoint(format!(
                                "{new}: stored twice in {}, as {} and as {name}",
                                dir.display(),
                                other.stored
                            )));
                        }
                    }
                }
            }
        }
        for (name, file) in &listed {
            let found = stored.get(name.as_str()).copied();
            if found != Some(*file) {
                let actual = match found {
                    Some(other) => format!("it is in {}", checkpoint.file_name(other)),
                    None => "it is in no file; download the checkpoint again".to_string(),
                };
                return Err(Error::Checkpoint(format!(
                    "{name}: {INDEX} places it in {}, {actual}",
                    checkpoint.file_name(*file)
                )));
            }
        }
        Ok(checkpoint)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The files, in the index's order of names.
    pub fn files(&self) -> &[SafetensorsFile] {
        &self.files
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorEntry<'_>> {
        self.tensors.iter().map(|(name, place)| {
            // A place is made from its file's own listing.
            let info = self.files[place.file].info(&place.stored).expect("a listed tensor");
            TensorEntry {
                name,
                stored: &place.stored,
                dtype: info.dtype,
                shape: &info.shape,
                bytes: info.bytes,
                file: place.file,
            }
        })
    }

    /// Stored names that `rename` dropped.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The shape of a tensor, where it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        let place = self.tensors.get(name)?;
        self.files[place.file].info(&place.stored).map(|i| i.shape.as_slice())
    }

    /// A tensor of the given shape over the mapped file, without a copy.
    ///
    /// Errors: [`Error::Checkpoint`]: absent (the nearest name is suggested) or of another shape.
    pub fn get(&self, name: &str, expected_shape: &[usize]) -> Result<HostTensor> {
        let tensor = self.get_any_shape(name)?;
        if tensor.shape() != expected_shape {
            return Err(Error::Checkpoint(format!(
                "{name}: expected {expected_shape:?}, got {:?} ({})",
                tensor.shape(),
                self.describe(&self.tensors[name], name)
            )));
        }
        Ok(tensor)
    }

    /// A tensor of whatever shape it has. Errors: [`Error::Checkpoint`] where it is absent.
    pub fn get_any_shape(&self, name: &str) -> Result<HostTensor> {
        match self.tensors.get(name) {
            Some(place) => self.files[place.file].tensor(&place.stored),
            None => Err(self.absent(name)),
        }
    }

    /// The error for a tensor that the family needs and the checkpoint lacks.
    pub fn absent(&self, name: &str) -> Error {
        let nearest = nearest_name(name, self.tensors.keys().map(String::as_str));
        let hint = nearest.map(|n| format!("; nearest is {n}")).unwrap_or_default();
        Error::Checkpoint(format!("{name}: not in {} ({} tensors){hint}", self.dir.display(), self.tensors.len()))
    }

    /// Asks the operating system to read a tensor's bytes ahead; a hint.
    pub fn prefetch(&self, name: &str) {
        if let Some(place) = self.tensors.get(name) {
            self.files[place.file].prefetch(&place.stored);
        }
    }

    fn describe(&self, place: &Place, name: &str) -> String {
        let file = format!("file {} of {}", place.file + 1, self.files.len());
        if place.stored == name { file } else { format!("stored as {}, {file}", place.stored) }
    }

    fn file_name(&self, i: usize) -> std::borrow::Cow<'_, str> {
        let path = self.files[i].path();
        path.file_name().unwrap_or(path.as_os_str()).to_string_lossy()
    }
}

/// A tensor's name and the number of the file that the index places it in.
type Listed = (String, usize);

/// The files of a checkpoint and, for shards, what the index says of each tensor.
fn open_files(dir: &Path) -> Result<(Vec<SafetensorsFile>, Vec<Listed>)> {
    let single = dir.join(SINGLE);
    // As in transformers, the single file wins where both are there.
    if single.exists() || built_in::is_inside(&single) {
        return Ok((vec![SafetensorsFile::open(&single)?], Vec::new()));
    }
    let index = dir.join(INDEX);
    if !index.exists() {
        return Err(no_weights(dir));
    }
    let map = read_index(&index)?;
    let mut names: Vec<&str> = map.iter().map(|(_, f)| f.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let mut files = Vec::with_capacity(names.len());
    for (i, name) in names.iter().enumerate() {
        let path = dir.join(name);
        if !path.exists() {
            return Err(Error::Checkpoint(format!(
                "{name}: shard {} of {} is missing from {}; download the checkpoint again",
                i + 1,
                names.len(),
                dir.display()
            )));
        }
        files.push(SafetensorsFile::open(&path)?);
    }
    let listed = map
        .iter()
        .map(|(tensor, file)| (tensor.clone(), names.binary_search(&file.as_str()).unwrap_or_default()))
        .collect();
    Ok((files, listed))
}

/// The shard names that an index file names, sorted, each once. Errors as [`Checkpoint::open`]'s.
pub fn shards_of_index(index: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> = read_index(index)?.into_iter().map(|(_, file)| file).collect();
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// (tensor, shard) of an index file, checked: no tensor twice, no shard outside of the directory.
fn read_index(path: &Path) -> Result<Vec<(String, String)>> {
    let fail = |what: String| Error::Checkpoint(format!("{}: {what}", path.display()));
    let text = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
    let index: Index = serde_json::from_slice(&text).map_err(|e| {
        // The plain parser names what it is where it is no JSON at all (an HTML page, a pointer).
        fail(config::parse_json(&text).err().unwrap_or_else(|| e.to_string()))
    })?;
    if index.weight_map.is_empty() {
        return Err(fail("weight_map: expected tensors, got none".into()));
    }
    let mut names: Vec<&str> = index.weight_map.iter().map(|(n, _)| n.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|p| p[0] == p[1]) {
        return Err(fail(format!("weight_map: {} is there twice", pair[0])));
    }
    for (tensor, shard) in &index.weight_map {
        let plain = !shard.starts_with('.') && !shard.contains(['/', '\\', ':', '\0']);
        if !plain || !shard.ends_with(".safetensors") {
            return Err(fail(format!(
                "weight_map: {tensor}: expected the name of a .safetensors file in the same directory, got {}",
                config::brief(shard)
            )));
        }
    }
    Ok(index.weight_map)
}

#[derive(Deserialize)]
struct Index {
    #[serde(deserialize_with = "pairs")]
    weight_map: Vec<(String, String)>,
}

/// An object of strings as pairs, so that a name given twice is seen.
fn pairs<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<(String, String)>, D::Error> {
    struct Pairs;
    impl<'de> Visitor<'de> for Pairs {
        type Value = Vec<(String, String)>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("an object of file names")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
            let mut list = Vec::new();
            while let Some(key) = map.next_key::<String>()? {
                let file = map.next_value().map_err(|e| A::Error::custom(format!("weight_map: {key}: {e}")))?;
                list.push((key, file));
            }
            Ok(list)
        }
    }
    deserializer.deserialize_map(Pairs)
}

/// Says what lies in a directory without safetensors, and what to do.
fn no_weights(dir: &Path) -> Error {
    let mut names: Vec<String> = match std::fs::read_dir(dir) {
        Ok(entries) => entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect(),
        Err(e) => return Error::Checkpoint(format!("{}: {e}", dir.display())),
    };
    names.sort();
    let has = |f: &dyn Fn(&str) -> bool| names.iter().find(|n| f(n)).map(String::as_str);
    let found = if let Some(bin) = has(&|n| n.starts_with("pytorch_model") && n.ends_with(".bin")) {
        format!(
            "only PyTorch weights ({bin}), which hold code and are not loaded; convert them once: \
             python -c \"from transformers import AutoModel; AutoModel.from_pretrained('DIR').save_pretrained('NEW')\", \
             or ask for a revision with safetensors (org/name@refs/pr/N)"
        )
    } else if let Some(adapter) = has(&|n| n.starts_with("adapter_model")) {
        format!("only an adapter ({adapter}); merge it into its base model first")
    } else if let Some(gguf) = has(&|n| n.ends_with(".gguf")) {
        format!("only GGUF weights ({gguf}); use the original safetensors checkpoint")
    } else if let Some(part) = has(&|n| n.ends_with(".safetensors")) {
        format!("{part} without an index; download {INDEX} too")
    } else {
        "no weights; is this the right directory?".to_string()
    };
    Error::Checkpoint(format!("{}: expected {SINGLE} or {INDEX}, got {found}", dir.display()))
}

/// The candidate nearest to `name` by edit distance, where that is near enough to be of help.
fn nearest_name<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = candidates.map(|c| (edit_distance(name.as_bytes(), c.as_bytes()), c)).min()?;
    (near.0 <= name.len() / 2).then_some(near.1)
}

/// Levenshtein distance.
fn edit_distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(dir: &Path, name: &str, tensors: &[(&str, &[usize])]) {
        let tensors: Vec<(String, HostTensor)> = tensors
            .iter()
            .map(|(n, s)| (n.to_string(), HostTensor::from_f32(s.to_vec(), &vec![1.0; s.iter().product()])))
            .collect();
        safetensors::write(&dir.join(name), &tensors, &BTreeMap::new()).unwrap();
    }

    fn index(dir: &Path, map: &[(&str, &str)]) {
        let map: serde_json::Map<String, serde_json::Value> =
            map.iter().map(|(t, f)| (t.to_string(), (*f).into())).collect();
        std::fs::write(dir.join(INDEX), serde_json::json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    }

    fn same(name: &str) -> Option<String> {
        Some(name.to_string())
    }

    #[test]
    fn shards_are_found_and_shapes_checked() {
        let dir = tempfile::tempdir().unwrap();
        shard(dir.path(), "a-1.safetensors", &[("old.layers.0.up.weight", &[4, 3]), ("old.inv_freq", &[2])]);
        shard(dir.path(), "a-2.safetensors", &[("old.layers.1.up.weight", &[4, 2])]);
        index(
            dir.path(),
            &[
                ("old.layers.0.up.weight", "a-1.safetensors"),
                ("old.layers.1.up.weight", "a-2.safetensors"),
                ("old.inv_freq", "a-1.safetensors"),
            ],
        );
        let rename = |n: &str| (!n.ends_with("inv_freq")).then(|| n.replace("old.", "model."));
        let c = Checkpoint::open(dir.path(), rename).unwrap();
        assert_eq!(c.get("model.layers.0.up.weight", &[4, 3]).unwrap().to_f32().unwrap().len(), 12);
        assert_eq!(c.ignored(), ["old.inv_freq"]);
        assert_eq!(
            c.tensors().map(|t| (t.name, t.file)).collect::<Vec<_>>(),
            [("model.layers.0.up.weight", 0), ("model.layers.1.up.weight", 1)]
        );
        assert_eq!(
            c.get("model.layers.1.up.weight", &[4, 3]).unwrap_err().to_string(),
            "checkpoint: model.layers.1.up.weight: expected [4, 3], got [4, 2] (stored as old.layers.1.up.weight, \
             file 2 of 2)"
        );
        let plain = Checkpoint::open(dir.path(), same).unwrap();
        assert_eq!(
            plain.get("old.layers.1.up.weight", &[4, 3]).unwrap_err().to_string(),
            "checkpoint: old.layers.1.up.weight: expected [4, 3], got [4, 2] (file 2 of 2)"
        );
        let got = c.get("model.layers.1.upp.weight", &[1]).unwrap_err().to_string();
        assert!(got.ends_with("(2 tensors); nearest is model.layers.1.up.weight"), "{got}");
        let got = c.get("xyz", &[1]).unwrap_err().to_string();
        assert!(got.ends_with("(2 tensors)"), "{got}");
        let one = |_: &str| Some("w".to_string());
        let got = Checkpoint::open(dir.path(), one).unwrap_err().to_string();
        assert!(got.starts_with("checkpoint: w: stored twice in "), "{got}");
    }

    #[test]
    fn directories_without_weights_say_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Checkpoint::open(dir.path(), same).unwrap_err().to_string();
        assert!(open().contains("no weights; is this the right directory?"), "{}", open());
        for (file, want) in [
            ("x.gguf", "GGUF"),
            ("adapter_model.safetensors", "adapter"),
            ("pytorch_model-00001-of-00002.bin", "save_pretrained"),
        ] {
            std::fs::write(dir.path().join(file), b"x").unwrap();
            assert!(open().contains(want), "{}", open());
        }
        let got = Checkpoint::open(&dir.path().join("no"), same).unwrap_err().to_string();
        assert!(got.contains("No such file"), "{got}");
    }

    #[test]
    fn distance_is_levenshteins() {
        for (a, b, d) in [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("a", "a", 0)] {
            assert_eq!(edit_distance(a.as_bytes(), b.as_bytes()), d, "{a} {b}");
            assert_eq!(edit_distance(b.as_bytes(), a.as_bytes()), d, "{b} {a}");
        }
    }
}
