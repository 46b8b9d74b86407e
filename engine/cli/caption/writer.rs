//! The one place where answers become files: waits for the model, writes, counts.
//!
//! In: events of the pipeline, answers of the model. Out: sidecars, the caption file with its ledger, failures, what is said
//! on the way. Owns: the order of writing. One thread, so that files have one writer.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::task::{Poll, Wake, Waker};
use std::time::{Duration, Instant};

use super::decide::{Picture, Skip};
use super::ledger::{Ledger, ends_run, output_error};
use super::pipeline::{Event, Pipeline, Submitted, is_own, own_reason};
use super::progress::{Counts, Moment, Reporter, Stages};
use super::record::{Key, Line, LineView, Made, SidecarEntry, failure_json};
use super::sidecar::{Existing, Kind, Pending};
use crate::cli::output;
use crate::run::engine::Engine;
use crate::run::request::{Answer, Event as Answered};
use crate::{Error, Result};

/// Where lines go.
pub enum Out {
    /// A file that a later run goes on with.
    Kept(Box<Ledger>),
    /// Standard output.
    Stdout,
    /// A pipe or a device.
    Stream(PathBuf, std::fs::File),
}

/// How captions are written.
pub struct Style {
    pub model: String,
    pub key: Key,
    pub sidecar: Option<Kind>,
    pub existing: Existing,
    pub separator: String,
    pub prepend: String,
    pub append: String,
    /// Every result on stdout too.
    pub json: bool,
}

/// The state of the writing thread.
pub struct Writer<'a> {
    pub out: Out,
    pub style: Style,
    pub engine: Engine,
    pub reporter: &'a mut Reporter,
    pub start: Instant,
    /// Lines about failures; written at the end, so that a list that is being read may be replaced.
    pub failures: Vec<u8>,
    pub counts: Counts,
    pub first_caption: Option<Duration>,
    pub num_full_names: usize,
    in_model: HashMap<u64, Submitted>,
    num_submitted: u64,
    writing: Duration,
    stopping: bool,
}

/// Sends word of a request that has news.
struct Waking {
    id: u64,
    events: Sender<Event>,
}

impl Wake for Waking {
    fn wake(self: Arc<Self>) {
        // A run that is over needs no news.
        let _ = self.events.send(Event::Woken(self.id));
    }
}

impl<'a> Writer<'a> {
    pub fn new(out: Out, style: Style, engine: Engine, reporter: &'a mut Reporter) -> Writer<'a> {
        Writer {
            out,
            style,
            engine,
            reporter,
            start: Instant::now(),
            failures: Vec::new(),
            counts: Counts::default(),
            first_caption: None,
            num_full_names: 0,
            in_model: HashMap::new(),
            num_submitted: 0,
            writing: Duration::ZERO,
            stopping: false,
        }
    }

    /// Writes what comes until all threads are through and the model has answered everything. True where every file was
    /// looked at, false where a signal ended the run before.
    ///
    /// Errors: of the output, and of the model where it can answer nothing any more.
    pub fn run(&mut self, pipeline: &Pipeline, events: &Receiver<Event>, sender: &Sender<Event>) -> Result<bool> {
        let mut num_ended = 0;
        let mut last_tick = Instant::now();
        while num_ended < pipeline.num_threads || !self.in_model.is_empty() {
            match events.recv_timeout(Duration::from_millis(200)) {
                Ok(Event::ThreadEnded) => num_ended += 1,
                Ok(Event::Signal) => self.stop(pipeline),
                Ok(event) => self.event(event, sender)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Error::Internal("the event channel closed".into())),
            }
            if last_tick.elapsed() >= Duration::from_millis(200) {
                last_tick = Instant::now();
                let moment = self.moment(pipeline);
                self.reporter.tick(moment);
            }
        }
        Ok(!self.stopping)
    }

    fn stop(&mut self, pipeline: &Pipeline) {
        self.stopping = true;
        pipeline.stop();
        let n = self.in_model.len();
        self.reporter
            .note(&format!("stopping: {n} pictures are in the model and will be finished; once more to stop at once"));
    }

    /// Where the run stands.
    pub fn moment(&self, pipeline: &Pipeline) -> Moment {
        use std::sync::atomic::Ordering::Relaxed;
        let threads = pipeline.num_threads as u32;
        let [listing, reading, decoding] = pipeline.spent.all().map(|d| d / threads);
        let model = self.engine.busy();
        let total = pipeline.tally.total.load(Relaxed);
        Moment {
            counts: self.counts.clone(),
            total,
            is_complete: pipeline.tally.complete.load(Relaxed),
            elapsed: self.start.elapsed(),
            stages: Stages { model, listing, reading, decoding, writing: self.writing },
        }
    }

    fn event(&mut self, event: Event, sender: &Sender<Event>) -> Result<()> {
        match event {
            Event::Submitted(submitted) => {
                let id = self.num_submitted;
                self.num_submitted += 1;
                self.num_full_names += usize::from(submitted.picture.has_full_name);
                self.in_model.insert(id, *submitted);
                self.look(id, sender)
            }
            Event::Woken(id) => self.look(id, sender),
            Event::Restored(picture, line) => self.restore(*picture, line),
            Event::Skipped(skip) => {
                *self.counts.skipped.entry(skip).or_default() += 1;
                Ok(())
            }
            Event::Failed(path, reason) => self.fail(&path, &reason),
            Event::Note(text) => {
                self.reporter.note(&text);
                Ok(())
            }
            Event::Fatal(error) => Err(error),
            Event::ThreadEnded | Event::Signal => Ok(()),
        }
    }

    /// Takes what a request has to tell, and waits for more.
    fn look(&mut self, id: u64, sender: &Sender<Event>) -> Result<()> {
        let waker = Waker::from(Arc::new(Waking { id, events: sender.clone() }));
        loop {
            let Some(submitted) = self.in_model.get(&id) else { return Ok(()) };
            match submitted.handle.poll(&waker) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(Ok(Answered::Token { .. }))) => self.counts.tokens += 1,
                Poll::Ready(Some(Ok(Answered::Started { .. }))) => {}
                Poll::Ready(Some(Ok(Answered::Done(answer)))) => {
                    let Some(submitted) = self.in_model.remove(&id) else { return Ok(()) };
                    return self.answered(submitted, &answer);
                }
                Poll::Ready(Some(Err(e))) if is_own(&e) => {
                    let path = submitted.picture.path.clone();
                    self.in_model.remove(&id);
                    return self.fail(&path, &own_reason(&e));
                }
                Poll::Ready(Some(Err(e))) => return Err(e),
                Poll::Ready(None) => return Err(Error::Internal("a request ended without an answer".to_string())),
            }
        }
    }

    fn answered(&mut self, submitted: Submitted, answer: &Answer) -> Result<()> {
        let Submitted { picture, start, seat, .. } = submitted;
        let new = format!("{}{}{}", self.style.prepend, answer.text.trim(), self.style.append);
        let caption = self.style.existing.join(picture.old.as_deref(), &new, &self.style.separator);
        let line = Line {
            path: picture.path.clone(),
            caption,
            model: self.style.model.clone(),
            tokens: answer.token_ids.len(),
            image_tokens: answer.image_tokens,
            seconds: start.elapsed().as_secs_f64(),
            sha256: picture.sha256,
        };
        let json = line.to_json();
        if !self.put(&picture, &line.caption, &json, true)? {
            return Ok(());
        }
        self.counts.ok += 1;
        self.counts.empty += usize::from(line.caption.trim().is_empty());
        self.first_caption.get_or_insert_with(|| self.start.elapsed());
        drop(seat);
        if self.style.json && !matches!(self.out, Out::Stdout) {
            output::write(&format!("{json}\n"))?;
        }
        Ok(())
    }

    fn restore(&mut self, picture: Picture, line: String) -> Result<()> {
        let caption = LineView::parse(line.as_bytes()).map(|v| v.caption).unwrap_or_default();
        self.num_full_names += usize::from(picture.has_full_name);
        if self.put(&picture, &caption, &line, false)? {
            *self.counts.skipped.entry(Skip::Done).or_default() += 1;
            self.counts.restored += 1;
        }
        Ok(())
    }

    /// Writes a caption: the ledger's entry, the sidecar, the line, in this order. False where the sidecar cannot be made
    /// and the picture has failed.
    fn put(&mut self, picture: &Picture, caption: &str, line: &str, is_new: bool) -> Result<bool> {
        let start = Instant::now();
        let done = self.put_in_order(picture, caption, line, is_new);
        self.writing += start.elapsed();
        match done? {
            None => Ok(true),
            Some(reason) => self.fail(&picture.path, &reason).map(|()| false),
        }
    }

    fn put_in_order(&mut self, picture: &Picture, caption: &str, line: &str, is_new: bool) -> Result<Option<String>> {
        let sidecar = match (self.style.sidecar, &picture.sidecar) {
            (Some(kind), Some(path)) => Some(SidecarEntry { path: path.clone(), content: kind.content(caption, line) }),
            _ => None,
        };
        // Whole beside its place before the ledger says that it was made: a full disk is met here.
        let pending = match &sidecar {
            Some(s) => match Pending::write(&s.path, s.content.as_bytes(), self.owner()) {
                Ok(pending) => Some((pending, s.path.clone())),
                Err(e) => return own_or_fatal(&s.path, &e).map(Some),
            },
            None => None,
        };
        if let Out::Kept(ledger) = &mut self.out {
            ledger.made(&Made {
                path: picture.path.clone(),
                key: self.style.key,
                sha256: picture.sha256,
                size: picture.size,
                modified: picture.modified,
                sidecar,
                line: line.to_string(),
            })?;
        }
        if let Some((pending, path)) = pending
            && let Err(e) = pending.commit()
        {
            let reason = own_or_fatal(&path, &e)?;
            if let Out::Kept(ledger) = &mut self.out {
                ledger.void(&picture.path)?;
            }
            return Ok(Some(reason));
        }
        if is_new {
            match &mut self.out {
                Out::Kept(ledger) => ledger.line(&picture.path, line).map(drop)?,
                Out::Stdout => output::write(&format!("{line}\n"))?,
                Out::Stream(path, file) => {
                    use std::io::Write;
                    file.write_all(format!("{line}\n").as_bytes()).map_err(|e| output_error(path, &e))?;
                }
            }
        }
        Ok(None)
    }

    fn owner(&self) -> &[u8] {
        match &self.out {
            Out::Kept(ledger) => ledger.owner(),
            Out::Stdout | Out::Stream(..) => b"stream",
        }
    }

    fn fail(&mut self, path: &Path, reason: &str) -> Result<()> {
        self.counts.failed += 1;
        *self.counts.reasons.entry(kind_of(reason)).or_default() += 1;
        self.reporter.failed(path, reason);
        let line = failure_json(path, reason) + "\n";
        self.failures.extend_from_slice(line.as_bytes());
        if self.style.json { output::write(&line) } else { Ok(()) }
    }
}

/// A reason where one sidecar cannot be written, an error where none can.
fn own_or_fatal(path: &Path, error: &std::io::Error) -> Result<String> {
    match ends_run(error) {
        true => Err(output_error(path, error)),
        false => Ok(format!("its sidecar cannot be written: {error}")),
    }
}

/// A reason's beginning with N for its numbers, so that equal faults are counted together.
fn kind_of(reason: &str) -> String {
    let end = reason.find([':', ';', '(']).unwrap_or(reason.len());
    let mut kind = String::new();
    for c in reason[..end].trim_end().chars() {
        match c.is_ascii_digit() {
            true if kind.ends_with('N') => {}
            true => kind.push('N'),
            false => kind.push(c),
        }
    }
    kind
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_faults_have_one_name() {
        assert_eq!(kind_of("the file is empty (0 bytes); send a JPEG"), "the file is empty");
        assert_eq!(kind_of("image of 1x300 pixels: expected more"), "image of NxN pixels");
    }
}
