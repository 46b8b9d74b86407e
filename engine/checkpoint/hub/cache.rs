//! huggingface_hub's cache of one repository on disk.
//!
//! In: commits, entity tags, finished downloads. Out: paths of snapshots. Owns: layout, locks, atomic moves.
//! Not here: what is downloaded and from where.
//!
//! ```text
//! models--org--name/refs/<revision>              text: the commit
//! models--org--name/blobs/<etag>                 the bytes
//! models--org--name/snapshots/<commit>/<file>    relative link to its blob
//! .locks/models--org--name/<etag>.lock           held while a blob is downloaded
//! ```

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::client::Found;
use crate::{Error, Result};

/// One repository's folder.
pub struct Repo {
    dir: PathBuf,
    locks: PathBuf,
    symlinks: bool,
}

impl Repo {
    /// The folder of `org/name`; nothing is made yet.
    pub fn new(cache_dir: &Path, repo: &str, symlinks: bool) -> Repo {
        let folder = format!("models--{}", repo.replace('/', "--"));
        Repo { dir: cache_dir.join(&folder), locks: cache_dir.join(".locks").join(&folder), symlinks }
    }

    /// Where a commit's files are.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.dir.join("snapshots").join(commit)
    }

    /// The commit that a revision was last seen at; a commit is its own.
    pub fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_string());
        }
        let text = fs::read_to_string(self.dir.join("refs").join(revision)).ok()?;
        let commit = text.trim();
        is_commit(commit).then(|| commit.to_string())
    }

    /// Remembers the commit of a revision.
    pub fn point(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.dir.join("refs").join(revision);
        let written = (|| {
            make_parent(&path)?;
            let temporary = beside(&path, &temporary_suffix());
            File::create(&temporary)?.write_all(commit.as_bytes())?;
            fs::rename(&temporary, &path)
        })();
        written.map_err(|e| cannot_write(&path, &e))
    }

    /// Makes `snapshots/<commit>/<file>` lead to the blob that `found` names. Where the blob is not there yet,
    /// `download` is called with the path of the partial file, under the blob's lock, and must leave it complete.
    pub fn store(
        &self,
        found: &Found,
        commit: &str,
        file: &str,
        download: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let etag = &found.etag;
        let blob = self.dir.join("blobs").join(etag);
        let pointer = self.snapshot(commit).join(file);
        let lock_path = self.locks.join(format!("{etag}.lock"));
        for path in [&blob, &pointer, &lock_path] {
            make_parent(path).map_err(|e| cannot_write(path, &e))?;
        }
        let lock = File::create(&lock_path).map_err(|e| cannot_write(&lock_path, &e))?;
        if lock.try_lock().is_err() {
            tracing::info!("{file}: waiting for another download of it");
        }
        // Where the file system has no locks, two downloads at once must not share a partial file.
        let partial = match lock.lock() {
            Ok(()) => beside(&blob, ".incomplete"),
            Err(_) => beside(&blob, &format!(".{}.incomplete", std::process::id())),
        };
        if !blob.is_file() {
            if let Some(bytes) = found.size {
                check_space(&blob, bytes.saturating_sub(fs::metadata(&partial).map_or(0, |m| m.len())))?;
            }
            download(&partial)?;
            fs::rename(&partial, &blob).map_err(|e| cannot_write(&blob, &e))?;
        }
        self.link(&blob, &pointer).map_err(|e| cannot_write(&pointer, &e))
    }

    /// Makes `pointer` a relative link to `blob`, or a copy where links are not to be had.
    fn link(&self, blob: &Path, pointer: &Path) -> std::io::Result<()> {
        let temporary = beside(pointer, &temporary_suffix());
        // What an interrupted run left, if anything.
        let _ = fs::remove_file(&temporary);
        if !self.symlinks || symlink(&relative(&self.dir, blob, pointer), &temporary).is_err() {
            fs::copy(blob, &temporary)?;
        }
        fs::rename(&temporary, pointer)
    }
}

/// The end of a temporary file's name that no other thread or process uses.
fn temporary_suffix() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!(".{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Forty lower-case hexadecimal digits.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The way from `pointer`'s folder to `blob`, both under `root`.
fn relative(root: &Path, blob: &Path, pointer: &Path) -> PathBuf {
    let depth = pointer.strip_prefix(root).unwrap_or(pointer).components().count().saturating_sub(1);
    let up: PathBuf = std::iter::repeat_n(Component::ParentDir, depth).collect();
    up.join(blob.strip_prefix(root).unwrap_or(blob))
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// The path with something behind its file name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path.file_name().unwrap_or_default());
    name.push(suffix);
    path.with_file_name(name)
}

fn make_parent(path: &Path) -> std::io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))
}

fn cannot_write(path: &Path, e: &std::io::Error) -> Error {
    Error::Checkpoint(format!("{}: {e}; the cache is placed by HF_HUB_CACHE or HF_HOME", path.display()))
}

/// Refuses a download that the file system has no room for.
#[cfg(unix)]
fn check_space(blob: &Path, need: u64) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let dir = blob.parent().unwrap_or(Path::new("."));
    let Ok(name) = std::ffi::CString::new(dir.as_os_str().as_bytes()) else { return Ok(()) };
    // SAFETY: statvfs is a plain C struct of integers, for which zero is a value.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `name` ends with a zero byte and `stat` is writable for the length of the call.
    if unsafe { libc::statvfs(name.as_ptr(), &mut stat) } != 0 {
        return Ok(());
    }
    let free = (stat.f_bavail as u64).saturating_mul(stat.f_frsize as u64);
    if need > free {
        return Err(Error::Checkpoint(format!(
            "{}: the download needs {need} bytes, {free} are free; free some, or place the cache elsewhere by HF_HUB_CACHE",
            dir.display()
        )));
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_space(_: &Path, _: u64) -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_relative_as_pythons() {
        let root = Path::new("/c/models--o--n");
        let blob = root.join("blobs/abc");
        let at = |p: &str| relative(root, &blob, &root.join(p)).to_string_lossy().into_owned();
        assert_eq!(at("snapshots/k/config.json"), "../../blobs/abc");
        assert_eq!(at("snapshots/k/sub/config.json"), "../../../blobs/abc");
    }

    #[test]
    fn commits_are_told_from_branches() {
        assert!(is_commit("0123456789abcdef0123456789abcdef01234567"));
        assert!(!is_commit("main"));
        assert!(!is_commit("0123456789ABCDEF0123456789abcdef01234567"));
    }

    #[test]
    fn a_download_larger_than_the_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_space(&dir.path().join("x"), 1).is_ok());
        if cfg!(unix) {
            let got = check_space(&dir.path().join("x"), u64::MAX).unwrap_err().to_string();
            assert!(got.contains("needs 18446744073709551615 bytes"), "{got}");
        }
    }
}
