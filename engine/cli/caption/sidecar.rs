//! The file beside a picture that holds its caption.
//!
//! In: a picture's path, its caption. Out: the sidecar's name, text and content; files that are whole or not there.
//! Owns: how captions look in each kind of sidecar, how new ones join existing ones. Not here: when to write.
//!
//! `photo.jpg` has `photo.txt`. Where another picture of the folder has that stem too, the first by name keeps the short
//! form and the others are named in full: `photo.png.txt`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Kinds of sidecars, by extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Txt,
    Caption,
    Json,
}

/// What becomes of a picture that has a caption.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Existing {
    /// It keeps it
    Skip,
    /// A new one takes its place
    Overwrite,
    /// The new one is put behind it
    Append,
    /// The new one is put before it
    Prepend,
    /// It keeps it, unless it is empty
    RedoEmpty,
}

impl Existing {
    /// The new caption, joined with the old one where that is asked for.
    pub fn join(self, old: Option<&str>, new: &str, separator: &str) -> String {
        let old = old.map(str::trim).filter(|o| !o.is_empty());
        match (self, old) {
            (Existing::Append, Some(old)) => format!("{old}{separator}{new}"),
            (Existing::Prepend, Some(old)) => format!("{new}{separator}{old}"),
            _ => new.to_string(),
        }
    }
}

impl Kind {
    fn extension(self) -> &'static str {
        match self {
            Kind::Txt => "txt",
            Kind::Caption => "caption",
            Kind::Json => "json",
        }
    }

    /// `photo.jpg` to `photo.txt`.
    pub fn short_name(self, picture: &Path) -> PathBuf {
        picture.with_extension(self.extension())
    }

    /// `photo.jpg` to `photo.jpg.txt`.
    pub fn full_name(self, picture: &Path) -> PathBuf {
        let mut name = picture.as_os_str().to_os_string();
        name.push(OsStr::new("."));
        name.push(self.extension());
        name.into()
    }

    /// What the file holds: the caption on one line, as trainers may take every line for a caption of its own; or the
    /// whole object of the caption file.
    pub fn content(self, caption: &str, line: &str) -> String {
        match self {
            Kind::Txt | Kind::Caption => flat(caption) + "\n",
            Kind::Json => format!("{line}\n"),
        }
    }

    /// The caption in a sidecar; `None` where there is no file. One that is no text at all is an error, so that it is
    /// not taken for an empty one.
    pub fn read(self, sidecar: &Path) -> io::Result<Option<String>> {
        let text = match fs::read(sidecar) {
            Ok(bytes) => String::from_utf8(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        Ok(Some(match self {
            Kind::Txt | Kind::Caption => text.trim().to_string(),
            Kind::Json if text.trim().is_empty() => String::new(),
            Kind::Json => {
                let value: Value = serde_json::from_str(&text)?;
                value["caption"].as_str().unwrap_or_default().to_string()
            }
        }))
    }
}

/// On one line: line ends become single spaces.
pub fn flat(text: &str) -> String {
    text.split(['\n', '\r', '\u{2028}', '\u{2029}', '\u{b}', '\u{c}', '\u{85}'])
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// A file that is written beside its place and moved there when it is whole.
///
/// Its name follows from the place and from `owner`, which is one for each run that may go on at the same time: what a
/// killed run leaves is taken up by the next one.
pub struct Pending {
    temporary: PathBuf,
    place: PathBuf,
    is_moved: bool,
}

impl Pending {
    /// Writes the content beside `place`.
    pub fn write(place: &Path, content: &[u8], owner: &[u8]) -> io::Result<Pending> {
        Pending::create(place, owner, |mut file| file.write_all(content))
    }

    /// Has `fill` write the content beside `place`.
    pub fn create(place: &Path, owner: &[u8], fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<Pending> {
        let mut hash = blake3::Hasher::new();
        hash.update(place.file_name().unwrap_or_default().as_encoded_bytes()).update(b"\0").update(owner);
        let name = OsString::from(format!(".engine-{}.tmp", &hash.finalize().to_hex()[..24]));
        let temporary = place.with_file_name(name);
        let pending = Pending { temporary, place: place.to_path_buf(), is_moved: false };
        File::create(&pending.temporary).and_then(|file| fill(&file))?;
        Ok(pending)
    }

    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Moves it into its place.
    pub fn commit(mut self) -> io::Result<()> {
        fs::rename(&self.temporary, &self.place)?;
        self.is_moved = true;
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.is_moved {
            // It may not be there; and where it cannot be removed, the error that led here is what counts.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_contents() {
        let names = |p: &str| (Kind::Txt.short_name(Path::new(p)), Kind::Txt.full_name(Path::new(p)));
        assert_eq!(names("d/a.b.jpg"), ("d/a.b.txt".into(), "d/a.b.jpg.txt".into()));
        assert_eq!(names("photo"), ("photo.txt".into(), "photo.txt".into()));
        assert_eq!(Kind::Caption.content(" a\r\n\n b \u{2028}c", "{}"), "a b c\n");
        assert_eq!(Kind::Json.content("a", "{\"caption\":\"a\"}"), "{\"caption\":\"a\"}\n");
    }

    #[test]
    fn captions_join() {
        let join = |e: Existing, old: Option<&str>| e.join(old, "new", ", ");
        assert_eq!(join(Existing::Append, Some(" old\n")), "old, new");
        assert_eq!(join(Existing::Prepend, Some("old")), "new, old");
        for e in [Existing::Append, Existing::Prepend] {
            assert_eq!((join(e, None), join(e, Some(" "))), ("new".into(), "new".into()));
        }
        assert_eq!(join(Existing::Overwrite, Some("old")), "new");
    }

    #[test]
    fn files_are_whole_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("a.txt");
        let names = || fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
        let pending = Pending::write(&place, b"one", b"x").unwrap();
        assert!(!place.exists() && names().len() == 1);
        // A process that is killed drops nothing; what it leaves is taken up.
        std::mem::forget(pending);
        Pending::write(&place, b"two", b"x").unwrap().commit().unwrap();
        assert_eq!((Kind::Txt.read(&place).unwrap().unwrap(), names().len()), ("two".to_string(), 1));
        fs::create_dir(dir.path().join("b.txt")).unwrap();
        assert!(Pending::write(&dir.path().join("b.txt"), b"x", b"x").unwrap().commit().is_err());
        assert_eq!(names().len(), 2);
        drop(Pending::write(&place, b"three", b"x").unwrap());
        assert_eq!(names().len(), 2);
        assert!(Pending::write(&dir.path().join("no/c.txt"), b"x", b"x").is_err());
        assert_eq!(Kind::Txt.read(&dir.path().join("no")).unwrap(), None);
        fs::write(&place, b"\xff").unwrap();
        assert!(Kind::Txt.read(&place).is_err());
    }
}
