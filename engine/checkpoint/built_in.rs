//! The model inside the binary: a small real checkpoint that answers where no other is named.
//!
//! In: the files of `assets/demo-model`, which build.rs embeds. Out: their bytes, under paths that name no directory.
//! Owns: the table of files. Not here: anything special about the model; it is read as every other checkpoint is.

use std::path::Path;

use crate::{Error, Result};

/// The name that `--model` knows it by.
pub const NAME: &str = "demo";

/// Stands for its directory. No file system is asked about paths below it.
pub const DIRECTORY: &str = "<built-in model>";

/// What it can talk about; the README has the accuracies.
pub const KNOWS: &str = "simple scenes: coloured shapes, their number, size and position, short numbers and words";

/// Bytes at an address that every element type accepts.
#[repr(C, align(64))]
#[allow(dead_code, reason = "made by the generated table, which is empty where the model is missing")]
struct Aligned<B: ?Sized>(B);

// static FILES: &[(&str, &[u8])], by name.
include!(concat!(env!("OUT_DIR"), "/demo_model.rs"));

/// Whether a path lies in the built-in model's directory.
pub fn is_inside(path: &Path) -> bool {
    path.starts_with(DIRECTORY)
}

/// The bytes of a built-in file; `None` where there is no such file, or the path names the disk.
pub fn file(path: &Path) -> Option<&'static [u8]> {
    let name = path.strip_prefix(DIRECTORY).ok()?.to_str()?;
    FILES.iter().find(|(n, _)| *n == name).map(|(_, bytes)| *bytes)
}

/// All files, by name.
pub fn files() -> &'static [(&'static str, &'static [u8])] {
    FILES
}

/// Errors: [`Error::Checkpoint`] in a program that was built without the model.
pub fn check() -> Result<()> {
    match FILES.is_empty() {
        false => Ok(()),
        true => Err(Error::Checkpoint(
            "model: this program was built without the built-in model (no assets/demo-model in its sources); name one \
             with --model: a directory, a hub id (org/name[@revision]) or an alias"
                .to_string(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_by_their_path_alone() {
        for (name, bytes) in FILES {
            let found = file(&Path::new(DIRECTORY).join(name)).unwrap();
            assert_eq!(found, *bytes);
            assert_eq!(found.as_ptr() as usize % 64, 0, "{name}");
            assert!(file(Path::new(name)).is_none());
        }
        assert!(file(&Path::new(DIRECTORY).join("no-such-file")).is_none());
        assert!(is_inside(&Path::new(DIRECTORY).join("x")) && !is_inside(Path::new("x")));
        assert_eq!(check().is_ok(), FILES.iter().any(|(n, _)| *n == "config.json"));
    }
}
