//! The caption file and the ledger beside it: what makes a run that was killed go on as if it had not been.
//!
//! In: captions that were made. Out: `captions.jsonl`, and `captions.jsonl.ledger`, which only grows. Owns: both files, the
//! lock, what is known of earlier runs. Not here: whether a known picture is captioned again (`decide.rs`).
//!
//! A caption is written in three steps: an entry of the ledger with all that follows from it, the sidecar (moved into place
//! as a whole), the line of the caption file. A process that is killed leaves at most one entry whose steps were not all
//! taken, the last; they are taken, or taken again to the same effect, when the next run begins. A last line that was
//! cut is removed: its entry is whole. A picture that is captioned anew has two lines until the run ends; the later counts.
//! This holds for a process that dies; where the machine does, the system may have lost the last seconds of every file.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::paths;
use super::record::{Digest, Entry, Key, LineView, Made};
use super::sidecar::Pending;
use crate::{Error, Result};

/// What earlier runs left of one picture.
#[derive(Debug, Clone, Default)]
pub struct Known {
    pub line: Option<KnownLine>,
    pub made: Option<KnownMade>,
}

/// A line of the caption file.
#[derive(Debug, Clone)]
pub struct KnownLine {
    offset: u64,
    bytes: usize,
    pub is_empty: bool,
    pub sha256: Option<Digest>,
}

/// An entry of the ledger.
#[derive(Debug, Clone)]
pub struct KnownMade {
    pub key: Key,
    pub sha256: Digest,
    pub size: u64,
    pub modified: i64,
    /// Where its sidecar is, and the hash of what was written there.
    pub sidecar: Option<(PathBuf, blake3::Hash)>,
    /// By the run that now goes on.
    pub this_run: bool,
}

/// Everything that earlier runs left, by path.
#[derive(Debug, Default)]
pub struct Index {
    pub pictures: HashMap<PathBuf, Known>,
    /// Sidecars and the pictures that they belong to.
    pub owners: HashMap<PathBuf, PathBuf>,
    file: Option<File>,
}

impl Index {
    /// The text of a line. Safe beside a run: what it points at does not move before the run ends.
    pub fn read(&self, line: &KnownLine) -> io::Result<String> {
        // Another handle, as one shared by threads has one position.
        let mut file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?.try_clone()?;
        read_at(&mut file, line)
    }

    /// The caption of a line.
    pub fn caption(&self, line: &KnownLine) -> io::Result<String> {
        let text = self.read(line)?;
        Ok(LineView::parse(text.as_bytes()).ok_or(io::ErrorKind::InvalidData)?.caption)
    }
}

fn read_at(file: &mut File, line: &KnownLine) -> io::Result<String> {
    let mut bytes = vec![0; line.bytes];
    #[cfg(unix)]
    std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, line.offset)?;
    #[cfg(not(unix))]
    {
        file.seek(SeekFrom::Start(line.offset))?;
        io::Read::read_exact(file, &mut bytes)?;
    }
    String::from_utf8(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// A file that only grows, line by line.
struct Grown {
    path: PathBuf,
    file: File,
    /// Up to the last whole line.
    bytes: u64,
}

impl Grown {
    fn open(path: PathBuf) -> Result<Grown> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let file = file.map_err(|e| output_error(&path, &e))?;
        Ok(Grown { path, file, bytes: 0 })
    }

    /// Gives every line with its offset to `each`, which says whether it is whole; a last line without an end that is
    /// not whole is cut off, one that is gets its end.
    fn load(&mut self, mut each: impl FnMut(u64, &[u8], bool) -> Result<bool>) -> Result<()> {
        let path = self.path.clone();
        let fail = |e: io::Error| output_error(&path, &e);
        let mut reader = BufReader::with_capacity(1 << 18, self.file.try_clone().map_err(fail)?);
        reader.seek(SeekFrom::Start(0)).map_err(fail)?;
        let (mut offset, mut line) = (0, Vec::new());
        loop {
            line.clear();
            if reader.read_until(b'\n', &mut line).map_err(fail)? == 0 {
                break;
            }
            let whole = line.last() == Some(&b'\n');
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            if !text.trim_ascii().is_empty() && !each(offset, text, whole)? && !whole {
                break;
            }
            offset += text.len() as u64 + 1;
            if !whole {
                self.file.write_all(b"\n").map_err(fail)?;
            }
        }
        self.bytes = offset;
        self.cut().map_err(fail)
    }

    /// Removes what lies behind the last whole line.
    fn cut(&mut self) -> io::Result<()> {
        match self.file.metadata()?.len() > self.bytes {
            true => self.file.set_len(self.bytes),
            false => Ok(()),
        }
    }

    /// Adds a line; where that fails nothing of it stays. Returns its offset.
    fn add(&mut self, text: &str) -> Result<u64> {
        let offset = self.bytes;
        match self.file.write_all(format!("{text}\n").as_bytes()) {
            Ok(()) => {
                self.bytes += text.len() as u64 + 1;
                Ok(offset)
            }
            Err(e) => {
                // If this fails too, the next run cuts the line.
                let _ = self.cut();
                Err(output_error(&self.path, &e))
            }
        }
    }
}

/// Says what to do about an output that cannot be written.
pub fn output_error(path: &Path, error: &io::Error) -> Error {
    let next = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            "; what was finished is kept: make room and run the same command again"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::NotFound => {
            "; expected a place that can be written, see --out and --sidecar"
        }
        _ => "",
    };
    Error::Output(format!("{}: {error}{next}", paths::shown(path)))
}

/// The open files of a run.
pub struct Ledger {
    out: Grown,
    log: Grown,
    /// Lines of the caption file that a later one replaces.
    stale: usize,
    /// Distinguishes this run's temporary files from those of runs with other caption files.
    owner: Vec<u8>,
    /// Pictures that have a line.
    lines: std::collections::HashSet<blake3::Hash>,
}

/// The ledger of a caption file.
fn ledger_path(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_os_string();
    name.push(".ledger");
    name.into()
}

fn path_hash(path: &Path) -> blake3::Hash {
    // Hashes, as a million paths would take more room.
    blake3::hash(path.as_os_str().as_encoded_bytes())
}

impl Ledger {
    /// Opens or creates both files, takes the lock, mends what a killed run left and reads what is known.
    /// `job` identifies the run: one that did not end is continued by the same job.
    ///
    /// Errors: [`Error::Output`]: not writable, locked by another run, or a file that holds something else.
    pub fn open(out: &Path, job: &Key) -> Result<(Ledger, Index)> {
        let log = Grown::open(ledger_path(out))?;
        match log.file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Output(format!(
                    "{}: another run is writing it; wait for that one, or give this one another --out",
                    paths::shown(out)
                )));
            }
            // Some network file systems have no locks; a single run is right without.
            Err(TryLockError::Error(e)) => tracing::warn!("{}: cannot be locked: {e}", paths::shown(&log.path)),
        }
        if !out.exists() {
            // Captions that somebody removed are not brought back.
            log.file.set_len(0).map_err(|e| output_error(&log.path, &e))?;
        }
        let out = Grown::open(out.to_path_buf())?;
        let real = fs::canonicalize(&out.path).map_err(|e| output_error(&out.path, &e))?;
        let owner = real.as_os_str().as_encoded_bytes().to_vec();
        let out = Grown { path: real, ..out };
        let mut ledger = Ledger { out, log, stale: 0, owner, lines: Default::default() };
        let mut index = Index::default();
        ledger.load_lines(&mut index)?;
        let last = ledger.load_log(&mut index, job)?;
        if let Some(made) = last {
            ledger.finish_steps(*made, &mut index)?;
        }
        index.file = Some(ledger.out.file.try_clone().map_err(|e| output_error(&ledger.out.path, &e))?);
        Ok((ledger, index))
    }

    /// The identity that this run's temporary files carry.
    pub fn owner(&self) -> &[u8] {
        &self.owner
    }

    fn load_lines(&mut self, index: &mut Index) -> Result<()> {
        let (mut number, name) = (0usize, paths::shown(&self.out.path));
        let (stale, lines) = (&mut self.stale, &mut self.lines);
        self.out.load(|offset, text, whole| {
            number += 1;
            let Some(view) = LineView::parse(text) else {
                return match whole {
                    true => Err(Error::Output(format!(
                        "{name}: line {number}: expected an object with path and caption; if this is another file, give --out another name"
                    ))),
                    false => Ok(false),
                };
            };
            lines.insert(path_hash(&view.path));
            let is_empty = view.caption.trim().is_empty();
            let line = KnownLine { offset, bytes: text.len(), is_empty, sha256: view.sha256 };
            let known = index.pictures.entry(view.path).or_default();
            *stale += usize::from(known.line.replace(line).is_some());
            Ok(true)
        })
    }

    /// Reads the ledger; returns the last entry where nothing came after it.
    fn load_log(&mut self, index: &mut Index, job: &Key) -> Result<Option<Box<Made>>> {
        let mut last = None;
        // The run that the entries belong to; none once it has ended.
        let mut run = None;
        let mut unreadable = 0usize;
        self.log.load(|_, text, whole| {
            let Some(entry) = Entry::parse(text) else {
                unreadable += usize::from(whole);
                return Ok(false);
            };
            last = None;
            match entry {
                Entry::Run(key) if run == Some(key) => {}
                Entry::Run(key) => {
                    run = Some(key);
                    index.pictures.values_mut().filter_map(|k| k.made.as_mut()).for_each(|m| m.this_run = false);
                }
                Entry::Stop => {}
                Entry::End => run = None,
                Entry::Void(path) => {
                    if let Some(known) = index.pictures.get_mut(&path) {
                        known.made = None;
                    }
                }
                Entry::Made(made) => {
                    note_made(index, &made, run == Some(*job));
                    last = Some(made);
                }
            }
            Ok(true)
        })?;
        if unreadable > 0 {
            tracing::warn!("{}: {unreadable} lines are damaged and count for nothing", paths::shown(&self.log.path));
        }
        if run != Some(*job) {
            index.pictures.values_mut().filter_map(|k| k.made.as_mut()).for_each(|m| m.this_run = false);
            self.log.add(&Entry::Run(*job).to_json())?;
        }
        Ok(last)
    }

    /// Takes the steps that follow from the last entry, where they were not taken.
    fn finish_steps(&mut self, made: Made, index: &mut Index) -> Result<()> {
        if let Some(line) = index.pictures.get(&made.path).and_then(|k| k.line.as_ref()) {
            let text = read_at(&mut self.out.file, line).map_err(|e| output_error(&self.out.path, &e))?;
            if text == made.line {
                return Ok(());
            }
        }
        if let Some(s) = &made.sidecar {
            let done = Pending::write(&s.path, s.content.as_bytes(), &self.owner).and_then(Pending::commit);
            match done {
                Ok(()) => {}
                Err(e) if ends_run(&e) => return Err(output_error(&s.path, &e)),
                Err(e) => {
                    tracing::warn!("{}: {e}", paths::shown(&s.path));
                    if let Some(known) = index.pictures.get_mut(&made.path) {
                        known.made = None;
                    }
                    return self.void(&made.path);
                }
            }
        }
        let offset = self.line(&made.path, &made.line)?;
        let view = LineView::parse(made.line.as_bytes());
        let is_empty = view.is_some_and(|v| v.caption.trim().is_empty());
        let line = KnownLine { offset, bytes: made.line.len(), is_empty, sha256: Some(made.sha256) };
        index.pictures.entry(made.path).or_default().line = Some(line);
        Ok(())
    }

    /// First step: what was made, before anything is done with it.
    pub fn made(&mut self, made: &Made) -> Result<()> {
        self.log.add(&Entry::Made(Box::new(made.clone())).to_json()).map(drop)
    }

    /// Takes an entry back whose sidecar could not be put into place.
    pub fn void(&mut self, path: &Path) -> Result<()> {
        self.log.add(&Entry::Void(path.to_path_buf()).to_json()).map(drop)
    }

    /// Last step: the line of the caption file. Returns its offset.
    pub fn line(&mut self, path: &Path, line: &str) -> Result<u64> {
        let offset = self.out.add(line)?;
        self.stale += usize::from(!self.lines.insert(path_hash(path)));
        Ok(offset)
    }

    /// Ends the run in good order: lines that were replaced go, and everything is on the disk. `complete` where every
    /// picture was looked at, so that the same command begins a new run.
    pub fn end(&mut self, complete: bool) -> Result<()> {
        if self.stale > 0 {
            self.compact().map_err(|e| output_error(&self.out.path, &e))?;
        }
        self.log.add(&if complete { Entry::End } else { Entry::Stop }.to_json())?;
        for file in [&self.out, &self.log] {
            file.file.sync_data().map_err(|e| output_error(&file.path, &e))?;
        }
        Ok(())
    }

    /// Writes the caption file anew with the last line of every picture, in their order.
    fn compact(&mut self) -> io::Result<()> {
        let mut last = HashMap::new();
        each_line(&self.out.file, |offset, path, _| {
            last.insert(path_hash(&path), offset);
            Ok(())
        })?;
        let mut bytes = 0;
        let pending = Pending::create(&self.out.path, b"caption file", |file| {
            let mut kept = BufWriter::with_capacity(1 << 16, file);
            each_line(&self.out.file, |offset, path, line| {
                if last.get(&path_hash(&path)) == Some(&offset) {
                    bytes += line.len() as u64;
                    kept.write_all(line)?;
                }
                Ok(())
            })?;
            kept.flush()
        })?;
        fs::set_permissions(pending.temporary(), self.out.file.metadata()?.permissions())?;
        pending.commit()?;
        self.out.file = OpenOptions::new().read(true).append(true).open(&self.out.path)?;
        self.out.bytes = bytes;
        self.stale = 0;
        Ok(())
    }
}

/// Gives every line of a caption file, its end included, to `each`, with its offset and path.
fn each_line(file: &File, mut each: impl FnMut(u64, PathBuf, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(1 << 18, file.try_clone()?);
    reader.seek(SeekFrom::Start(0))?;
    let (mut offset, mut line) = (0, Vec::new());
    while reader.read_until(b'\n', &mut line)? > 0 {
        if let Some(view) = LineView::parse(&line) {
            each(offset, view.path, &line)?;
        }
        offset += line.len() as u64;
        line.clear();
    }
    Ok(())
}

/// Whether an error of writing concerns the disk as a whole and not one file.
pub fn ends_run(error: &io::Error) -> bool {
    use io::ErrorKind::{
        FileTooLarge, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, ResourceBusy, StaleNetworkFileHandle,
        StorageFull,
    };
    // EIO has no kind of its own.
    const EIO: i32 = 5;
    let whole = [
        FileTooLarge,
        PermissionDenied,
        QuotaExceeded,
        ReadOnlyFilesystem,
        ResourceBusy,
        StaleNetworkFileHandle,
        StorageFull,
    ];
    whole.contains(&error.kind()) || error.raw_os_error() == Some(EIO)
}

fn note_made(index: &mut Index, made: &Made, this_run: bool) {
    let sidecar = made.sidecar.as_ref().map(|s| (s.path.clone(), blake3::hash(s.content.as_bytes())));
    if let Some((sidecar, _)) = &sidecar {
        index.owners.insert(sidecar.clone(), made.path.clone());
    }
    index.pictures.entry(made.path.clone()).or_default().made = Some(KnownMade {
        key: made.key,
        sha256: made.sha256,
        size: made.size,
        modified: made.modified,
        sidecar,
        this_run,
    });
}
