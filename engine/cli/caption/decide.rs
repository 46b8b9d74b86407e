//! What becomes of one file: captioned, skipped or refused, and where its caption goes.
//!
//! In: a path, what earlier runs left, the flags. Out: a decision; the file's bytes where they had to be read. Runs on the
//! threads that read pictures. Not here: decoding.
//!
//! A picture is the same as before when its size and time of change are, otherwise when its SHA-256 is. `skip` keeps whatever
//! caption a picture has; only one that this program made of other content, and that nobody has changed since, is made anew.

use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sha2::{Digest as _, Sha256};

use super::ledger::{Index, Known, KnownLine, KnownMade};
use super::record::{Digest, Key};
use super::sidecar::{Existing, Kind};

/// How files are decided about.
pub struct Decider {
    pub index: Index,
    pub key: Key,
    pub sidecar: Option<Kind>,
    pub existing: Existing,
    /// Files of the run itself, which no sidecar may replace.
    pub reserved: Vec<PathBuf>,
    /// Largest file that is read, in bytes.
    pub max_bytes: u64,
}

/// A picture to be captioned.
#[derive(Debug)]
pub struct Picture {
    pub path: PathBuf,
    pub size: u64,
    /// In nanoseconds since 1970.
    pub modified: i64,
    pub sha256: Digest,
    pub sidecar: Option<PathBuf>,
    /// Its sidecar does not have the short name.
    pub has_full_name: bool,
    /// The caption that it has, where the new one joins it.
    pub old: Option<String>,
}

/// Why a picture is left as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Skip {
    /// Made by this run before it was stopped, or by an earlier one with the same settings.
    Done,
    /// A caption with other settings, or by another program.
    HasCaption,
}

impl Skip {
    pub fn name(self) -> &'static str {
        match self {
            Skip::Done => "captioned before",
            Skip::HasCaption => "with a caption made otherwise",
        }
    }
}

/// What becomes of a file.
#[derive(Debug)]
pub enum Decision {
    Skip(Skip),
    /// Its caption is known and only its sidecar is missing: this line's.
    Restore(Box<Picture>, String),
    /// With the file's bytes.
    Caption(Box<Picture>, Vec<u8>),
    /// Why not.
    Fail(String),
}

impl Decider {
    /// Decides about a file. `second`: another picture of its folder has its stem first.
    pub fn decide(&self, path: &Path, second: bool) -> Decision {
        self.try_decide(path, second).unwrap_or_else(Decision::Fail)
    }

    fn try_decide(&self, path: &Path, second: bool) -> Result<Decision, String> {
        let metadata = fs::metadata(path).map_err(|e| reason(&e))?;
        if !metadata.is_file() {
            return Err(if metadata.is_dir() { "a folder, not a file" } else { "not a regular file" }.to_string());
        }
        let known = self.index.pictures.get(path);
        let sidecar = self.sidecar_path(path, second, known)?;
        let sidecar_exists = match &sidecar {
            Some((sidecar, _)) => match fs::metadata(sidecar) {
                Ok(m) if m.is_file() => true,
                Ok(_) => return Err("its sidecar's name is taken by something that is no file".to_string()),
                Err(_) => false,
            },
            None => false,
        };
        let mut content = Content { path, metadata: &metadata, max_bytes: self.max_bytes, read: None };
        let verdict = self.verdict(known, sidecar.as_ref().map(|(s, _)| &**s), sidecar_exists, &mut content)?;
        let restored = match verdict {
            Verdict::Skip(skip) => return Ok(Decision::Skip(skip)),
            Verdict::Restore(line) => Some(self.index.read(line).map_err(|e| reason(&e))?),
            Verdict::Caption => None,
        };
        let old = match self.existing {
            Existing::Append | Existing::Prepend if restored.is_none() => self.old_caption(known, sidecar.as_ref())?,
            _ => None,
        };
        let (bytes, sha256) = match (&restored, known.and_then(|k| k.made.as_ref())) {
            // Known to be the same file.
            (Some(_), Some(made)) => (Vec::new(), made.sha256),
            _ => content.take()?,
        };
        let (sidecar, has_full_name) = sidecar.map_or((None, false), |(s, full)| (Some(s), full));
        let picture = Box::new(Picture {
            path: path.to_path_buf(),
            size: metadata.len(),
            modified: modified(&metadata),
            sha256,
            sidecar,
            has_full_name,
            old,
        });
        Ok(match restored {
            Some(line) => Decision::Restore(picture, line),
            None => Decision::Caption(picture, bytes),
        })
    }

    fn verdict<'k>(
        &self,
        known: Option<&'k Known>,
        sidecar: Option<&Path>,
        sidecar_exists: bool,
        content: &mut Content,
    ) -> Result<Verdict<'k>, String> {
        let made = known.and_then(|k| k.made.as_ref()).filter(|m| m.key == self.key);
        let line = known.and_then(|k| k.line.as_ref());
        let has_caption = if sidecar.is_some() { sidecar_exists } else { line.is_some() };
        // A run that goes on leaves what it has done.
        if let Some(made) = made.filter(|m| m.this_run)
            && has_caption
            && content.is_same(made)?
        {
            return Ok(Verdict::Skip(Skip::Done));
        }
        match self.existing {
            Existing::Overwrite | Existing::Append | Existing::Prepend => Ok(Verdict::Caption),
            Existing::RedoEmpty => {
                let is_empty = match (self.sidecar, sidecar) {
                    (Some(kind), Some(sidecar)) => {
                        kind.read(sidecar).map_err(|e| reason(&e))?.is_none_or(|t| t.trim().is_empty())
                    }
                    _ => line.is_none_or(|l| l.is_empty),
                };
                Ok(if is_empty { Verdict::Caption } else { Verdict::Skip(Skip::HasCaption) })
            }
            Existing::Skip => self.keep(known, made, sidecar, has_caption, content),
        }
    }

    /// The verdict of `skip`.
    fn keep<'k>(
        &self,
        known: Option<&'k Known>,
        made: Option<&KnownMade>,
        sidecar: Option<&Path>,
        has_caption: bool,
        content: &mut Content,
    ) -> Result<Verdict<'k>, String> {
        let line = known.and_then(|k| k.line.as_ref());
        if let (Some(made), Some(line)) = (made, line)
            && content.is_same(made)?
        {
            return Ok(if has_caption { Verdict::Skip(Skip::Done) } else { Verdict::Restore(line) });
        }
        if !has_caption {
            return Ok(Verdict::Caption);
        }
        let other_content = match (known.and_then(|k| k.made.as_ref()), line.and_then(|l| l.sha256)) {
            (Some(made), _) => !content.is_same(made)?,
            (None, Some(sha256)) => content.digest()? != sha256,
            (None, None) => false,
        };
        let untouched = match (sidecar, known.and_then(|k| k.made.as_ref()).and_then(|m| m.sidecar.as_ref())) {
            (None, _) => true,
            (Some(sidecar), Some((place, hash))) => {
                sidecar == place && fs::read(sidecar).is_ok_and(|bytes| blake3::hash(&bytes) == *hash)
            }
            (Some(_), None) => false,
        };
        Ok(if other_content && untouched { Verdict::Caption } else { Verdict::Skip(Skip::HasCaption) })
    }

    /// The sidecar's path, and whether it has the full name: the one that it had before; otherwise the short name, unless
    /// another picture has that or comes first.
    fn sidecar_path(
        &self,
        path: &Path,
        second: bool,
        known: Option<&Known>,
    ) -> Result<Option<(PathBuf, bool)>, String> {
        let Some(kind) = self.sidecar else { return Ok(None) };
        let (short, full) = (kind.short_name(path), kind.full_name(path));
        let before = known.and_then(|k| k.made.as_ref()).and_then(|m| m.sidecar.as_ref()).map(|(place, _)| place);
        let is_free = |name: &Path| {
            self.index.owners.get(name).is_none_or(|owner| owner == path)
                && name != path
                && !self.reserved.iter().any(|r| r == name)
        };
        let name = match before {
            Some(place) if (*place == short || *place == full) && is_free(place) => place.clone(),
            _ if !second && is_free(&short) => short.clone(),
            // A name without an extension has one form only.
            _ if is_free(&full) && !(second && full == short) => full.clone(),
            _ => return Err(format!("{}: this sidecar belongs to another picture", super::paths::shown(&full))),
        };
        let has_full_name = name == full && short != full;
        // The limit of every common file system; found out before a caption is made for nothing.
        const MAX_NAME_BYTES: usize = 255;
        if name.file_name().is_some_and(|n| n.as_encoded_bytes().len() > MAX_NAME_BYTES) {
            return Err("its sidecar's name would be longer than 255 bytes".to_string());
        }
        Ok(Some((name, has_full_name)))
    }

    fn old_caption(&self, known: Option<&Known>, sidecar: Option<&(PathBuf, bool)>) -> Result<Option<String>, String> {
        match (self.sidecar, sidecar, known.and_then(|k| k.line.as_ref())) {
            (Some(kind), Some((sidecar, _)), _) => kind.read(sidecar).map_err(|e| reason(&e)),
            (_, _, Some(line)) => self.index.caption(line).map(Some).map_err(|e| reason(&e)),
            _ => Ok(None),
        }
    }
}

enum Verdict<'k> {
    Skip(Skip),
    Restore(&'k KnownLine),
    Caption,
}

/// A file's bytes, read when they are needed and once.
struct Content<'a> {
    path: &'a Path,
    metadata: &'a Metadata,
    max_bytes: u64,
    read: Option<(Vec<u8>, Digest)>,
}

impl Content<'_> {
    fn load(&mut self) -> Result<&(Vec<u8>, Digest), String> {
        if self.read.is_none() {
            let too_large = || format!("more than the limit of {} bytes", self.max_bytes);
            if self.metadata.len() > self.max_bytes {
                return Err(too_large());
            }
            let mut bytes = Vec::with_capacity(usize::try_from(self.metadata.len()).unwrap_or(0));
            let file = fs::File::open(self.path).map_err(|e| reason(&e))?;
            file.take(self.max_bytes + 1).read_to_end(&mut bytes).map_err(|e| reason(&e))?;
            if bytes.len() as u64 > self.max_bytes {
                return Err(too_large());
            }
            let digest = Sha256::digest(&bytes).into();
            self.read = Some((bytes, digest));
        }
        self.read.as_ref().ok_or_else(String::new)
    }

    fn digest(&mut self) -> Result<Digest, String> {
        Ok(self.load()?.1)
    }

    fn take(mut self) -> Result<(Vec<u8>, Digest), String> {
        self.load()?;
        self.read.take().ok_or_else(String::new)
    }

    /// Whether the file is what a caption was made of.
    fn is_same(&mut self, made: &KnownMade) -> Result<bool, String> {
        if (self.metadata.len(), modified(self.metadata)) == (made.size, made.modified) {
            return Ok(true);
        }
        Ok(self.metadata.len() == made.size && self.digest()? == made.sha256)
    }
}

/// When a file was changed, in nanoseconds since 1970; 0 where the system does not say.
fn modified(metadata: &Metadata) -> i64 {
    let Ok(time) = metadata.modified() else { return 0 };
    let nanos = |d: std::time::Duration| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => nanos(after),
        Err(_) => -nanos(UNIX_EPOCH.duration_since(time).unwrap_or_default()),
    }
}

/// An error of the file system as a reason.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file; it may have been moved or removed during the run".to_string(),
        _ => error.to_string(),
    }
}
