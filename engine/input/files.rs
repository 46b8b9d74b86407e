//! Reading a checkpoint's small text files.
//!
//! In: a path, a size limit. Out: its text, or nothing when there is no such file. Not here: what the text means.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use crate::checkpoint::built_in;
use crate::{Error, Result};

/// The text of a file of at most `max_bytes`, `None` when it does not exist. `name` stands for it in errors.
///
/// # Errors
/// `Error::Config` when it cannot be read, is too long or not UTF-8.
pub fn read_text(path: &Path, name: &str, max_bytes: u64) -> Result<Option<String>> {
    if let Some(bytes) = built_in::file(path) {
        return text(bytes.to_vec(), name).map(Some);
    }
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::Config(format!("{name}: cannot be opened: {e}"))),
    };
    let mut bytes = Vec::new();
    file.take(max_bytes + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::Config(format!("{name}: cannot be read: {e}")))?;
    if bytes.len() as u64 > max_bytes {
        return Err(Error::Config(format!("{name}: expected at most {max_bytes} bytes, the file is longer")));
    }
    text(bytes, name).map(Some)
}

fn text(bytes: Vec<u8>, name: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| Error::Config(format!("{name}: expected UTF-8 text, got {e}")))
}
