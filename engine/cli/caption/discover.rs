//! Which files are captioned: folders walked in order, lists read line by line, as a stream.
//!
//! In: the paths of the command line, a list. Out: files, each once, in sorted order per folder; nothing is opened, and
//! only links are looked at, so that a folder of any size begins at once. Owns: what counts as a picture by its name, which
//! of two files of one stem came first, shards. Not here: whether a file is captioned already.
//!
//! A folder gives its files with the extension of a picture; hidden files, other files and (without --recursive) its
//! folders are counted. Named files and lines of a list are taken as they are. Links to folders are followed, a folder
//! within itself is not.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use glob::MatchOptions;
use serde_json::Value;

use super::paths;
use crate::{Error, Result};

/// Extensions of pictures in lower case, those included that are refused by name when they are read.
const EXTENSIONS: [&str; 17] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff", "heic", "heif", "avif",
    "jxl", "mpo",
];

/// What to look through.
#[derive(Debug, Clone)]
pub struct Discovery {
    /// Folders and files.
    pub paths: Vec<PathBuf>,
    /// A list of files; `-` is standard input.
    pub filelist: Option<PathBuf>,
    pub recursive: bool,
    pub glob: Option<Pattern>,
    pub shard: Option<Shard>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    File {
        path: PathBuf,
        /// Another picture of its folder has the same stem and comes before it.
        second: bool,
    },
    /// Something that cannot be looked into.
    Fault { path: PathBuf, reason: String },
    /// A link to a folder that it lies in. Nothing is lost by it.
    Loop(PathBuf),
}

/// Counts that are ahead of what has been sent.
#[derive(Debug, Default)]
pub struct Tally {
    /// Files that will be sent or have been.
    pub total: AtomicUsize,
    /// Files of folders that are no pictures by their name, or hidden.
    pub ignored: AtomicUsize,
    /// Folders left out for want of --recursive.
    pub folders_left_out: AtomicUsize,
    /// Files that were named more than once.
    pub repeated: AtomicUsize,
    /// Everything has been sent.
    pub complete: AtomicBool,
}

/// Every `count`-th file, decided by its path alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 1.
    pub index: u64,
    pub count: u64,
}

impl Shard {
    /// Reads `I/N`.
    pub fn parse(text: &str) -> std::result::Result<Shard, String> {
        let numbers = text.split_once('/').map(|(i, n)| (i.trim().parse::<u64>(), n.trim().parse::<u64>()));
        match numbers {
            Some((Ok(index), Ok(count))) if (1..=count).contains(&index) => Ok(Shard { index, count }),
            _ => Err("expected I/N with I from 1 to N, such as 2/4".to_string()),
        }
    }

    fn has(self, digest: &[u8; 16]) -> bool {
        let [a, b, c, d, e, f, g, h, ..] = *digest;
        u64::from_le_bytes([a, b, c, d, e, f, g, h]) % self.count == self.index - 1
    }
}

/// A shell pattern; one with a slash is held against the path below the folder, others against the name. What is not
/// UTF-8 in a name is held against it as U+FFFD.
#[derive(Debug, Clone)]
pub struct Pattern {
    pattern: glob::Pattern,
    whole_path: bool,
}

impl Pattern {
    pub fn parse(text: &str) -> std::result::Result<Pattern, String> {
        let pattern = glob::Pattern::new(text).map_err(|e| e.to_string())?;
        Ok(Pattern { pattern, whole_path: text.contains('/') })
    }

    fn fits(&self, below: &Path, name: &OsStr) -> bool {
        let options = MatchOptions { require_literal_separator: true, ..MatchOptions::new() };
        let whole = if self.whole_path { below.join(name) } else { PathBuf::from(name) };
        self.pattern.matches_with(&whole.to_string_lossy(), options)
    }
}

/// Whether a file is a picture by its name.
pub fn is_picture(name: &OsStr) -> bool {
    let extension = Path::new(name).extension().and_then(OsStr::to_str).unwrap_or_default();
    !is_hidden(name) && EXTENSIONS.iter().any(|e| extension.eq_ignore_ascii_case(e))
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

impl Discovery {
    /// Errors: [`Error::Request`] where nothing that was named exists, or the list cannot be opened.
    pub fn check(&self) -> Result<()> {
        if self.paths.is_empty() && self.filelist.is_none() {
            return Err(Error::Request("expected a folder, files or --filelist, got none".to_string()));
        }
        if let Some(list) = self.filelist.as_deref().filter(|l| l.as_os_str() != "-") {
            fs::File::open(list).map_err(|e| Error::Request(format!("--filelist {}: {e}", paths::shown(list))))?;
        }
        match self.paths.first() {
            // Some of many may vanish, and are then accounted for; all of them are a mistake.
            Some(first) if self.paths.iter().all(|p| p.symlink_metadata().is_err()) => {
                Err(Error::Request(format!("{}: no such file or folder", paths::shown(first))))
            }
            _ => Ok(()),
        }
    }

    /// Sends everything to `sink` until that answers false.
    pub fn walk(&self, tally: &Tally, sink: impl FnMut(Found) -> bool) -> io::Result<()> {
        let mut walk = Walk { options: self, tally, sink, seen: HashSet::new(), siblings: Siblings::default() };
        for path in &self.paths {
            let path = paths::normal(path);
            let go_on = match path.is_dir() {
                true => walk.folder(&path, Path::new(""), &mut Vec::new()),
                false => walk.single(path),
            };
            if !go_on {
                return Ok(());
            }
        }
        match &self.filelist {
            Some(list) => walk.list(list)?,
            None => true,
        };
        tally.complete.store(true, Ordering::Relaxed);
        Ok(())
    }
}

struct Walk<'a, S> {
    options: &'a Discovery,
    tally: &'a Tally,
    sink: S,
    /// Digests of the paths so far.
    seen: HashSet<[u8; 16]>,
    siblings: Siblings,
}

impl<S: FnMut(Found) -> bool> Walk<'_, S> {
    /// Whether a file is to be sent: in this shard, and not sent before.
    fn takes(&mut self, path: &Path) -> bool {
        let digest = blake3::hash(path.as_os_str().as_encoded_bytes());
        let mut short = [0; 16];
        short.copy_from_slice(&digest.as_bytes()[..16]);
        if self.options.shard.is_some_and(|s| !s.has(&short)) {
            return false;
        }
        let new = self.seen.insert(short);
        self.tally.repeated.fetch_add(usize::from(!new), Ordering::Relaxed);
        new
    }

    fn fault(&mut self, path: &Path, reason: String) -> bool {
        self.tally.total.fetch_add(1, Ordering::Relaxed);
        (self.sink)(Found::Fault { path: path.to_path_buf(), reason })
    }

    /// A named file. It is taken whatever it is called.
    fn single(&mut self, path: PathBuf) -> bool {
        if !self.takes(&path) {
            return true;
        }
        self.tally.total.fetch_add(1, Ordering::Relaxed);
        let second = self.siblings.is_second(&path);
        (self.sink)(Found::File { path, second })
    }

    /// A folder, `below` the one that was named; `above` are the real paths of those it lies in.
    fn folder(&mut self, folder: &Path, below: &Path, above: &mut Vec<PathBuf>) -> bool {
        let real = match fs::canonicalize(folder) {
            Ok(real) if above.contains(&real) => {
                return (self.sink)(Found::Loop(folder.to_path_buf()));
            }
            Ok(real) => real,
            Err(e) => return self.fault(folder, e.to_string()),
        };
        let (names, folders) = match listing(folder) {
            Ok(listing) => listing,
            Err(e) => return self.fault(folder, e.to_string()),
        };
        let num_names = names.len();
        let mut stems = HashSet::new();
        let mut files = Vec::new();
        for name in names.into_iter().filter(|n| is_picture(n)) {
            // Decided among all pictures of the folder, so that it does not depend on pattern or shard.
            let second = !stems.insert(Path::new(&name).file_stem().unwrap_or_default().to_os_string());
            if second {
                // Its sidecar's stem is the whole name, which must not be another's.
                stems.insert(name.clone());
            }
            let fits = self.options.glob.as_ref().is_none_or(|g| g.fits(below, &name));
            files.push((name, second, fits));
        }
        let num_fitting = files.iter().filter(|(.., fits)| *fits).count();
        self.tally.ignored.fetch_add(num_names - num_fitting, Ordering::Relaxed);
        let files: Vec<Found> = files
            .into_iter()
            .filter(|(.., fits)| *fits)
            .map(|(name, second, _)| Found::File { path: paths::normal(&folder.join(name)), second })
            .filter(|f| matches!(f, Found::File { path, .. } if self.takes(path)))
            .collect();
        self.tally.total.fetch_add(files.len(), Ordering::Relaxed);
        for file in files {
            if !(self.sink)(file) {
                return false;
            }
        }
        if !self.options.recursive {
            self.tally.folders_left_out.fetch_add(folders.len(), Ordering::Relaxed);
            return true;
        }
        above.push(real);
        for name in folders {
            if !self.folder(&paths::normal(&folder.join(&name)), &below.join(&name), above) {
                return false;
            }
        }
        above.pop();
        true
    }

    /// A list: a path a line, or a JSON object with `path` a line; with zero bytes in it, paths between those.
    fn list(&mut self, list: &Path) -> io::Result<bool> {
        let mut reader: Box<dyn BufRead> = match list.as_os_str() == "-" {
            true => Box::new(io::stdin().lock()),
            false => Box::new(BufReader::with_capacity(1 << 16, fs::File::open(list)?)),
        };
        let end = if reader.fill_buf()?.contains(&0) { 0 } else { b'\n' };
        let mut line = Vec::new();
        loop {
            line.clear();
            if reader.read_until(end, &mut line)? == 0 {
                return Ok(true);
            }
            if line.last() == Some(&end) {
                line.pop();
            }
            if end == b'\n' && line.last() == Some(&b'\r') {
                line.pop();
            }
            if line.is_empty() {
                continue;
            }
            let path = match serde_json::from_slice::<Value>(&line) {
                Ok(Value::Object(o)) => paths::take(&o),
                _ => paths::from_bytes(line.clone()),
            };
            let go_on = match path {
                Some(path) => self.single(paths::normal(&path)),
                None => {
                    let line = PathBuf::from(String::from_utf8_lossy(&line).into_owned());
                    self.fault(&line, "a line of the list without a path".to_string())
                }
            };
            if !go_on {
                return Ok(false);
            }
        }
    }
}

/// The names of a folder's files and of its visible folders, each sorted. Only links are looked at.
fn listing(folder: &Path) -> io::Result<(Vec<OsString>, Vec<OsString>)> {
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (name, kind) = (entry.file_name(), entry.file_type()?);
        // A link that leads nowhere stays a file, and is found missing when it is read.
        let is_folder = kind.is_dir() || kind.is_symlink() && fs::metadata(entry.path()).is_ok_and(|m| m.is_dir());
        match is_folder {
            true if is_hidden(&name) => {}
            true => folders.push(name),
            false => files.push(name),
        }
    }
    files.sort_unstable();
    folders.sort_unstable();
    Ok((files, folders))
}

/// Which file of a folder has a stem first, for files that are named one by one.
#[derive(Default)]
struct Siblings {
    folders: HashMap<PathBuf, HashMap<OsString, OsString>>,
}

/// Folders remembered at once.
const MAX_FOLDERS: usize = 64;

impl Siblings {
    fn is_second(&mut self, path: &Path) -> bool {
        let (Some(name), Some(stem)) = (path.file_name(), path.file_stem()) else { return false };
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !self.folders.contains_key(folder) {
            if self.folders.len() >= MAX_FOLDERS {
                self.folders.clear();
            }
            let mut first = HashMap::new();
            // A folder that cannot be listed may still be read from; its files then stand alone.
            for name in listing(folder).map(|(files, _)| files).unwrap_or_default() {
                if is_picture(&name) {
                    let stem = Path::new(&name).file_stem().unwrap_or_default().to_os_string();
                    match first.contains_key(&stem) {
                        true => first.insert(name.clone(), name),
                        false => first.insert(stem, name),
                    };
                }
            }
            self.folders.insert(folder.to_path_buf(), first);
        }
        self.folders[folder].get(stem).is_some_and(|first| first != name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
        dir
    }

    fn discovery(dir: &Path) -> Discovery {
        Discovery { paths: vec![dir.to_path_buf()], filelist: None, recursive: true, glob: None, shard: None }
    }

    /// Paths below the folder, with `+` where another file has the stem first, `!` for faults and `@` for loops; the tally.
    fn found(d: &Discovery, dir: &Path) -> (Vec<String>, Tally) {
        let (tally, mut all) = (Tally::default(), Vec::new());
        let below = |p: &Path| p.strip_prefix(dir).unwrap_or(p).display().to_string();
        d.walk(&tally, |f| {
            all.push(match f {
                Found::File { path, second } => below(&path) + if second { "+" } else { "" },
                Found::Fault { path, .. } => below(&path) + "!",
                Found::Loop(path) => below(&path) + "@",
            });
            true
        })
        .unwrap();
        assert_eq!(tally.total.load(Ordering::Relaxed), all.iter().filter(|a| !a.ends_with('@')).count());
        (all, tally)
    }

    #[test]
    fn folders_in_order_with_pictures_only() {
        let dir =
            folder(&["b.JPG", "a.png", "a.jpg", "a.txt", ".hidden.png", "sub/x.webp", "sub/deep/y.gif", ".git/z.png"]);
        fs::write(dir.path().join("a.png.jpg"), b"").unwrap();
        let (all, tally) = found(&discovery(dir.path()), dir.path());
        assert_eq!(all, ["a.jpg", "a.png+", "a.png.jpg+", "b.JPG", "sub/x.webp", "sub/deep/y.gif"]);
        assert_eq!(tally.ignored.load(Ordering::Relaxed), 2);
        let flat = Discovery { recursive: false, ..discovery(dir.path()) };
        let (all, tally) = found(&flat, dir.path());
        assert_eq!((all.len(), tally.folders_left_out.load(Ordering::Relaxed)), (4, 1));
    }

    #[test]
    fn patterns_and_shards_leave_the_rest() {
        let dir = folder(&["a.jpg", "a.png", "b.png", "sub/c.png", "sub/d.jpg"]);
        let glob = |p: &str| Discovery { glob: Some(Pattern::parse(p).unwrap()), ..discovery(dir.path()) };
        assert_eq!(found(&glob("*.png"), dir.path()).0, ["a.png+", "b.png", "sub/c.png"]);
        assert_eq!(found(&glob("**/[cd].*"), dir.path()).0, ["sub/c.png", "sub/d.jpg"]);
        assert!(Pattern::parse("[").is_err());
        let mut parts = Vec::new();
        for index in 1..=3 {
            let shard = Some(Shard { index, count: 3 });
            parts.extend(found(&Discovery { shard, ..discovery(dir.path()) }, dir.path()).0);
        }
        parts.sort();
        assert_eq!(parts, ["a.jpg", "a.png+", "b.png", "sub/c.png", "sub/d.jpg"]);
        for bad in ["0/3", "4/3", "1", "a/b", "1/0"] {
            assert!(Shard::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lists_name_files_in_three_ways() {
        let dir = folder(&["a.jpg", "a.png", "list"]);
        let at = |n: &str| dir.path().join(n).display().to_string();
        let list = |text: String| {
            fs::write(dir.path().join("list"), text).unwrap();
            let d = Discovery { paths: vec![], filelist: Some(dir.path().join("list")), ..discovery(dir.path()) };
            let (all, tally) = found(&d, dir.path());
            (all, tally.repeated.load(Ordering::Relaxed))
        };
        let json = serde_json::json!({"path": at("a.png"), "error": "x"});
        let text = format!("{}\r\n\n{json}\n{{\"x\": 1}}\n./no\n{}", at("a.jpg"), at("./a.jpg"));
        assert_eq!(list(text).0, ["a.jpg", "a.png+", "{\"x\": 1}!", "no"]);
        let two_lines = at("two\nlines.png");
        assert_eq!(
            list(format!("{two_lines}\0{}\0{two_lines}\0", at("a.jpg"))),
            (vec!["two\nlines.png".into(), "a.jpg".into()], 1)
        );
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_but_not_in_circles() {
        let dir = folder(&["real/a.png"]);
        std::os::unix::fs::symlink("..", dir.path().join("real/up")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("also")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("gone.png")).unwrap();
        let (all, _) = found(&discovery(dir.path()), dir.path());
        assert_eq!(all, ["gone.png", "also/a.png", "also/up@", "real/a.png", "real/up@"]);
    }
}
