//! What makes two captions, and two runs, the same: keys over everything that decides them.
//!
//! In: the model's files, the request's settings, the command's inputs. Out: keys. Not here: the picture, which has a
//! digest of its own.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use super::paths;
use super::record::Key;
use crate::checkpoint::built_in;
use crate::{Error, Result};

/// A key over named texts, in order.
pub fn key(fields: &[(&str, &str)]) -> Key {
    let mut hash = blake3::Hasher::new();
    for (name, value) in fields {
        for part in [name, value] {
            hash.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
    }
    let mut key = [0; 16];
    key.copy_from_slice(&hash.finalize().as_bytes()[..16]);
    key
}

/// Identifies a model by its files: settings in full, of the weights their length and samples, as a run must not begin with
/// reading all of them. Errors: [`Error::Checkpoint`].
pub fn model_fingerprint(dir: &Path) -> Result<String> {
    let mut hash = blake3::Hasher::new();
    if built_in::is_inside(dir) {
        for (name, bytes) in built_in::files() {
            hash.update(name.as_bytes()).update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        }
        return Ok(hash.finalize().to_hex().to_string());
    }
    let fail = |e: io::Error| Error::Checkpoint(format!("{}: {e}", paths::shown(dir)));
    let mut files: Vec<_> = fs::read_dir(dir).map_err(fail)?.collect::<io::Result<_>>().map_err(fail)?;
    files.sort_by_key(|e| e.file_name());
    for entry in files {
        let name = entry.file_name();
        let extension = Path::new(&name).extension().and_then(|e| e.to_str()).unwrap_or_default();
        if matches!(extension, "json" | "jinja" | "safetensors" | "model" | "txt") && entry.path().is_file() {
            hash.update(name.as_encoded_bytes());
            sample(&entry.path(), extension == "safetensors", &mut hash).map_err(fail)?;
        }
    }
    Ok(hash.finalize().to_hex().to_string())
}

/// Bytes of each sample.
const SAMPLE_BYTES: u64 = 1 << 16;

fn sample(path: &Path, is_large: bool, hash: &mut blake3::Hasher) -> io::Result<()> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    hash.update(&length.to_le_bytes());
    let mut bytes = Vec::new();
    if !is_large {
        file.read_to_end(&mut bytes)?;
        hash.update(&bytes);
        return Ok(());
    }
    for part in 0..8 {
        bytes.clear();
        file.seek(SeekFrom::Start(length / 8 * part))?;
        Read::by_ref(&mut file).take(SAMPLE_BYTES).read_to_end(&mut bytes)?;
        hash.update(&bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_fields_apart() {
        assert_ne!(key(&[("a", "bc")]), key(&[("ab", "c")]));
        assert_ne!(key(&[("a", "b"), ("c", "")]), key(&[("a", ""), ("c", "b")]));
        assert_eq!(key(&[("a", "b")]), key(&[("a", "b")]));
    }

    #[test]
    fn a_model_is_known_by_its_content() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), b"{}").unwrap();
        let mut weights = vec![1u8; 1 << 20];
        fs::write(dir.path().join("model.safetensors"), &weights).unwrap();
        let first = model_fingerprint(dir.path()).unwrap();
        fs::write(dir.path().join("notes.md"), b"x").unwrap();
        assert_eq!(model_fingerprint(dir.path()).unwrap(), first);
        weights[1 << 19] = 2;
        fs::write(dir.path().join("model.safetensors"), &weights).unwrap();
        assert_ne!(model_fingerprint(dir.path()).unwrap(), first);
        assert!(model_fingerprint(&dir.path().join("no")).is_err());
    }
}
