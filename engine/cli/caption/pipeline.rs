//! From files to requests that the model works on: threads that read, decode and preprocess ahead of it.
//!
//! In: what discovery finds. Out: events, one for every file: decided without the model, refused, or handed to the model.
//! Owns: the threads, how far they may be ahead (seats and bytes). Not here: answers, which the writer waits for.
//!
//! A file takes a seat before it is read and gives it back when its caption is written, so memory is bounded whatever the
//! folder holds. Threads work in a pool of their own: the model's kernels share the other and must not wait for a JPEG.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::decide::{Decider, Decision, Picture, Skip};
use super::discover::{Discovery, Found, Tally};
use super::prompt::Template;
use crate::input::image::{self, DecodeOptions};
use crate::input::message::{Message, Role};
use crate::run::engine::{Engine, Handle};
use crate::run::request::{ImageInput, Prompt, Request};
use crate::run::sampling_params::SamplingFlags;
use crate::{Error, Result};

/// Found files that wait for a thread.
const FOUND_AHEAD: usize = 1 << 16;
/// Prepared pixels that wait for the model or are in it, in bytes.
const PIXEL_BYTES_AHEAD: usize = 256 << 20;
/// Threads beyond this read faster than any disk gives.
const MAX_THREADS: usize = 8;

/// Something that the writer has to know.
pub enum Event {
    /// The model works on it.
    Submitted(Box<Submitted>),
    /// Only its sidecar is to be written, from this line.
    Restored(Box<Picture>, String),
    Skipped(Skip),
    Failed(std::path::PathBuf, String),
    Note(String),
    /// A request has news.
    Woken(u64),
    /// No request can be right, or none can be worked on.
    Fatal(Error),
    /// One of the threads is through.
    ThreadEnded,
    /// SIGINT or SIGTERM.
    Signal,
}

/// A picture in the model.
pub struct Submitted {
    pub picture: Picture,
    pub handle: Handle,
    pub start: Instant,
    /// Given back when it is dropped.
    pub seat: Seat,
}

/// What a request says beside its picture.
pub struct Asking {
    pub template: Template,
    pub system: Option<String>,
    pub raw: bool,
    pub sampling: SamplingFlags,
    pub decode: DecodeOptions,
}

impl Asking {
    /// The request about one picture.
    pub fn request(&self, path: &std::path::Path, image: ImageInput) -> Request {
        let text = self.template.fill(path);
        let prompt = match self.raw {
            true => Prompt::Raw(text),
            false => {
                let system = self.system.iter().map(|s| Message::text(Role::System, s.clone()));
                Prompt::Messages(system.chain([Message::user(1, text)]).collect())
            }
        };
        Request { prompt, images: vec![image], sampling: self.sampling.clone(), decode: self.decode.clone() }
    }
}

/// Seconds that the threads have spent, in all.
#[derive(Debug, Default)]
pub struct Spent {
    listing: AtomicU64,
    reading: AtomicU64,
    decoding: AtomicU64,
}

impl Spent {
    fn add(to: &AtomicU64, since: Instant) -> Instant {
        let now = Instant::now();
        to.fetch_add((now - since).as_nanos() as u64, Ordering::Relaxed);
        now
    }

    /// Waiting for files to be found; reading and hashing; decoding and preprocessing.
    pub fn all(&self) -> [Duration; 3] {
        [&self.listing, &self.reading, &self.decoding].map(|n| Duration::from_nanos(n.load(Ordering::Relaxed)))
    }
}

/// Seats and bytes.
struct Gate {
    free: Mutex<(usize, usize)>,
    changed: Condvar,
    stop: Arc<AtomicBool>,
}

/// A place in the pipeline.
pub struct Seat {
    gate: Arc<Gate>,
    bytes: usize,
}

impl Gate {
    fn enter(self: &Arc<Self>) -> Option<Seat> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while free.0 == 0 {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            free = self.changed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        free.0 -= 1;
        Some(Seat { gate: self.clone(), bytes: 0 })
    }
}

impl Seat {
    /// Waits until this many bytes more may be held. More than there can be are let in alone. Seats that hold bytes are in
    /// the model and give them back, so this ends.
    fn hold(&mut self, bytes: usize) {
        let bytes = bytes.min(PIXEL_BYTES_AHEAD);
        let mut free = self.gate.free.lock().unwrap_or_else(PoisonError::into_inner);
        while free.1 < bytes {
            free = self.gate.changed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        free.1 -= bytes;
        self.bytes = bytes;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut free = self.gate.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.0 += 1;
        free.1 += self.bytes;
        drop(free);
        self.gate.changed.notify_all();
    }
}

/// The threads in front of the model.
pub struct Pipeline {
    pub tally: Arc<Tally>,
    pub spent: Arc<Spent>,
    pub num_threads: usize,
    gate: Arc<Gate>,
    stop: Arc<AtomicBool>,
}

impl Pipeline {
    /// Starts looking for files and preparing them. Each of the threads sends [`Event::ThreadEnded`] as its last event.
    pub fn start(
        discovery: Discovery,
        decider: Decider,
        asking: Asking,
        engine: Engine,
        num_threads: Option<usize>,
        events: &Sender<Event>,
    ) -> Result<Pipeline> {
        let available = std::thread::available_parallelism().map_or(1, |n| n.get());
        let num_threads = num_threads.unwrap_or(available).clamp(1, MAX_THREADS);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(num_threads)
            .thread_name(|i| format!("picture-{i}"))
            .build()
            .map_err(|e| Error::Internal(format!("picture threads: {e}")))?;
        let stop = Arc::new(AtomicBool::new(false));
        // The model's seats, as many prepared for them, and those that are being prepared.
        let seats = 2 * engine.max_num_seqs() + num_threads;
        let free = Mutex::new((seats, PIXEL_BYTES_AHEAD));
        let gate = Arc::new(Gate { free, changed: Condvar::new(), stop: stop.clone() });
        let pipeline = Pipeline { tally: Arc::default(), spent: Arc::default(), num_threads, gate, stop };

        let (found, files) = sync_channel(FOUND_AHEAD);
        let (tally, stop, notes) = (pipeline.tally.clone(), pipeline.stop.clone(), events.clone());
        spawn("discovery", move || list_files(&discovery, &tally, &stop, &found, &notes))?;

        let shared = Arc::new(Shared {
            files: Mutex::new(files),
            decider,
            asking,
            engine,
            gate: pipeline.gate.clone(),
            spent: pipeline.spent.clone(),
            stop: pipeline.stop.clone(),
        });
        let events = events.clone();
        spawn("pictures", move || {
            pool.broadcast(|_| {
                shared.work(&events);
                // The receiver outlives all threads; should it not, nobody is left to tell.
                let _ = events.send(Event::ThreadEnded);
            });
        })?;
        Ok(pipeline)
    }

    /// No further file is begun.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        // The lock, so that no thread is between looking and waiting.
        drop(self.gate.free.lock());
        self.gate.changed.notify_all();
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name.to_string()).spawn(work);
    thread.map(drop).map_err(|e| Error::Internal(format!("{name} thread: {e}")))
}

fn list_files(d: &Discovery, tally: &Tally, stop: &AtomicBool, found: &SyncSender<Found>, events: &Sender<Event>) {
    let listed = d.walk(tally, |f| {
        if let Found::Loop(path) = &f {
            let text = format!("{}: not entered, the link leads back to a folder it is in", super::paths::shown(path));
            return events.send(Event::Note(text)).is_ok();
        }
        !stop.load(Ordering::Relaxed) && found.send(f).is_ok()
    });
    if let Err(e) = listed {
        let list = d.filelist.as_deref().unwrap_or(std::path::Path::new(""));
        let error = Error::Request(format!("--filelist {}: {e}", super::paths::shown(list)));
        // As above.
        let _ = events.send(Event::Fatal(error));
    }
}

/// What the threads share.
struct Shared {
    files: Mutex<Receiver<Found>>,
    decider: Decider,
    asking: Asking,
    engine: Engine,
    gate: Arc<Gate>,
    spent: Arc<Spent>,
    stop: Arc<AtomicBool>,
}

impl Shared {
    fn work(&self, events: &Sender<Event>) {
        while !self.stop.load(Ordering::Relaxed) {
            let Some(seat) = self.gate.enter() else { return };
            let start = Instant::now();
            let Some(next) = self.next_file() else { return };
            let start = Spent::add(&self.spent.listing, start);
            let event = match next {
                Found::Fault { path, reason } => Event::Failed(path, reason),
                Found::Loop(_) => continue,
                Found::File { path, second } => {
                    // A decoder that panics has one picture less to its name, and the run goes on.
                    let done = std::panic::catch_unwind(AssertUnwindSafe(|| self.prepare(&path, second, start, seat)));
                    done.unwrap_or_else(|_| Event::Failed(path, "internal: preparing it failed".to_string()))
                }
            };
            if events.send(event).is_err() {
                return;
            }
        }
    }

    /// The next file; none after the last, or when the run is to stop. A list may come from a pipe that stays open.
    fn next_file(&self) -> Option<Found> {
        loop {
            let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
            match files.recv_timeout(Duration::from_millis(50)) {
                Ok(found) => return Some(found),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if self.stop.load(Ordering::Relaxed) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn prepare(&self, path: &std::path::Path, second: bool, start: Instant, mut seat: Seat) -> Event {
        let decision = self.decider.decide(path, second);
        let read = Spent::add(&self.spent.reading, start);
        let (picture, bytes) = match decision {
            Decision::Skip(skip) => return Event::Skipped(skip),
            Decision::Fail(reason) => return Event::Failed(path.to_path_buf(), reason),
            Decision::Restore(picture, line) => return Event::Restored(picture, line),
            Decision::Caption(picture, bytes) => (picture, bytes),
        };
        let prepared = image::decode(&bytes, &self.asking.decode).and_then(|pixels| {
            drop(bytes);
            self.engine.prepare(&self.asking.request(path, ImageInput::Pixels(Arc::new(pixels))))
        });
        Spent::add(&self.spent.decoding, read);
        let submitted = prepared.and_then(|prepared| {
            seat.hold(prepared.tiles.iter().map(|t| t.pixels.pixels.len()).sum());
            self.engine.submit_prepared(prepared)
        });
        match submitted {
            Ok(handle) => Event::Submitted(Box::new(Submitted { picture: *picture, handle, start, seat })),
            Err(e) if is_own(&e) => Event::Failed(path.to_path_buf(), own_reason(&e)),
            Err(e) => Event::Fatal(e),
        }
    }
}

/// Whether an error concerns one picture and not the run.
pub fn is_own(error: &Error) -> bool {
    matches!(error, Error::Request(_) | Error::Unsupported(_))
}

/// An error about the one picture of a request, without what says so.
pub fn own_reason(error: &Error) -> String {
    let text = match error {
        Error::Request(text) | Error::Unsupported(text) => text.as_str(),
        other => return other.to_string(),
    };
    let text = text.strip_prefix("image 1: ").unwrap_or(text);
    text.strip_prefix("image: ").unwrap_or(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_gate_waits_and_bytes_come_back() {
        let free = Mutex::new((2, PIXEL_BYTES_AHEAD));
        let gate = Arc::new(Gate { free, changed: Condvar::new(), stop: Arc::default() });
        let mut first = gate.enter().unwrap();
        first.hold(usize::MAX);
        let mut second = gate.enter().unwrap();
        let waiting = std::thread::spawn(move || {
            second.hold(1);
            second.bytes
        });
        drop(first);
        assert_eq!(waiting.join().unwrap(), 1);
        assert_eq!(*gate.free.lock().unwrap(), (2, PIXEL_BYTES_AHEAD));
        let _seats = [gate.enter(), gate.enter()];
        gate.stop.store(true, Ordering::Relaxed);
        assert!(gate.enter().is_none());
    }

    #[test]
    fn reasons_are_short() {
        let e = Error::Request("image 1: image: the file is empty".to_string());
        assert_eq!((is_own(&e), own_reason(&e).as_str()), (true, "the file is empty"));
        assert!(!is_own(&Error::Device("x".to_string())));
    }
}
