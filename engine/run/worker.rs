//! The one thread that owns all state: scheduler, programs, live requests.
//!
//! In: prepared requests. Out: events in their mailboxes. A step: schedule, encode, run, sample, commit, tell.
//! A fault of one request ends that request; a fault of the device ends those that are live.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::choose::{self, Row};
use super::executor::Executor;
use super::logits::LogitsProcessors;
use super::mailbox::Mailbox;
use super::prepare::{Frontend, Prepared};
use super::request::{Answer, Event, FinishReason, Timings, TokenLogprobs};
use super::sampler::Sampler;
use super::sampling_params::SamplingParams;
use super::stop::{StopMatcher, StopOutcome};
use crate::backend::Probe;
use crate::backend::sampling::{SamplingBatch, SamplingLimits};
use crate::graph::Node;
use crate::input::detokenizer::Detokenizer;
use crate::models::Tile;
use crate::schedule::{Batch, Scheduler, SeqId, SequenceSpec, Stats};
use crate::{Error, Result};

/// What the engine's handle sends.
pub enum Command {
    Submit(Box<Prepared>, Mailbox),
    /// Something was cancelled: look.
    Wake,
}

/// A probe that the worker owns: sees every value of every run.
pub type OwnedProbe = Box<dyn FnMut(&Node, &[usize], &mut [f32]) -> Result<()> + Send>;

/// State of the worker thread.
pub struct Worker {
    pub frontend: Arc<Frontend>,
    pub executor: Executor,
    pub scheduler: Scheduler,
    pub commands: Receiver<Command>,
    pub stats: Arc<Mutex<Stats>>,
    /// Nanoseconds spent in steps.
    pub busy: Arc<AtomicU64>,
    pub probe: Option<OwnedProbe>,
    /// Scratch memory of sampling.
    pub sampler: Sampler,
    /// What the rows of a step ask the device.
    pub rows: SamplingBatch,
    pub live: HashMap<SeqId, Live>,
    pub next_id: u64,
}

/// A request in the scheduler.
pub struct Live {
    mailbox: Mailbox,
    tiles: Vec<Arc<Tile>>,
    params: SamplingParams,
    processors: LogitsProcessors,
    detokenizer: Detokenizer,
    stop: StopMatcher,
    answer: Answer,
    /// Length, prompt included, at which it ends at the latest.
    limit: usize,
    admitted: Instant,
    first_token: Option<Instant>,
}

impl Drop for Worker {
    /// Nobody waits for a worker that is gone.
    fn drop(&mut self) {
        for live in self.live.values() {
            live.mailbox.push(Err(Error::Internal("the engine's worker ended".to_string())));
            live.mailbox.close();
        }
        while let Ok(Command::Submit(_, mailbox)) = self.commands.try_recv() {
            mailbox.push(Err(Error::Internal("the engine's worker ended".to_string())));
            mailbox.close();
        }
    }
}

impl Worker {
    /// Works until every handle is gone.
    pub fn run(mut self) {
        loop {
            if self.scheduler.is_idle() {
                match self.commands.recv() {
                    Ok(c) => self.command(c),
                    Err(_) => return,
                }
            }
            loop {
                match self.commands.try_recv() {
                    Ok(c) => self.command(c),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            self.drop_cancelled();
            if let Some(batch) = self.scheduler.schedule() {
                let start = Instant::now();
                match self.step(&batch) {
                    Ok(()) => {}
                    // Nothing is allocated in a step, but a driver may want memory to start one. What was not committed
                    // is scheduled again, in smaller pieces.
                    Err(Error::OutOfMemory { what, .. }) if batch.num_tokens() > 1 => {
                        let tokens = batch.num_tokens() / 2;
                        tracing::warn!("out of memory: {what}; from now on steps of at most {tokens} tokens");
                        self.scheduler.limit_step(tokens);
                    }
                    Err(e) => self.fail_all(&e),
                }
                self.busy.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
                self.scheduler.recycle(batch);
            }
            *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = self.scheduler.stats();
        }
    }

    fn command(&mut self, command: Command) {
        let Command::Submit(prepared, mailbox) = command else { return };
        if let Err(e) = self.admit(*prepared, &mailbox) {
            mailbox.push(Err(e));
            mailbox.close();
        }
    }

    fn admit(&mut self, prepared: Prepared, mailbox: &Mailbox) -> Result<()> {
        let Prepared { prompt, spans, tiles, params, image_tokens, image_s } = prepared;
        let id = SeqId(self.next_id);
        self.next_id += 1;
        // Without the prompt's tail: the text is what decoding the new tokens alone gives, as in transformers.
        let detokenizer = Detokenizer::new(self.frontend.tokenizer.clone(), &[], true)?;
        let stop = StopMatcher::new(&params.stop)?;
        let max_new_tokens = params.max_tokens;
        let processors = LogitsProcessors::new(&params, &prompt);
        let spec = SequenceSpec { id, prompt: prompt.clone(), images: spans, max_new_tokens, ..Default::default() };
        let limit = self.scheduler.add(spec)?;
        mailbox.push(Ok(Event::Started { prompt_tokens: prompt.len(), image_tokens }));
        let answer = Answer {
            text: String::new(),
            token_ids: Vec::new(),
            finish_reason: FinishReason::Length,
            prompt_token_ids: prompt,
            image_tokens,
            logprobs: Vec::new(),
            timings: Timings { image_s, ..Timings::default() },
        };
        let mailbox = mailbox.clone();
        let admitted = Instant::now();
        self.live.insert(
            id,
            Live { mailbox, tiles, params, processors, detokenizer, stop, answer, limit, admitted, first_token: None },
        );
        Ok(())
    }

    fn drop_cancelled(&mut self) {
        let gone: Vec<SeqId> = self.live.iter().filter(|(_, l)| l.mailbox.is_cancelled()).map(|(id, _)| *id).collect();
        for id in gone {
            self.scheduler.abort(id);
            if let Some(l) = self.live.remove(&id) {
                l.mailbox.close();
            }
        }
    }

    fn fail_all(&mut self, error: &Error) {
        for (id, live) in self.live.drain() {
            self.scheduler.abort(id);
            live.mailbox.push(Err(error.clone()));
            live.mailbox.close();
        }
    }

    fn step(&mut self, batch: &Batch) -> Result<()> {
        let Worker { frontend, executor, live, probe, sampler, rows, .. } = self;
        let mut tiles = Vec::with_capacity(batch.encode.len());
        for item in &batch.encode {
            let owner = live.get(&item.seq).and_then(|l| l.tiles.get(item.span));
            let tile = owner.ok_or_else(|| Error::Internal(format!("{}: image {} is gone", item.seq, item.span)))?;
            tiles.push((&**tile, item.slab_row));
        }
        if !tiles.is_empty() {
            executor.encode(&*frontend.family, &tiles, probe.as_mut().map(|p| p as &mut Probe))?;
        }
        rows.clear();
        let limits = executor.sampling().filter(|_| probe.is_none());
        for id in batch.sampling() {
            match (live.get(&id), &limits) {
                (Some(l), Some(limits)) => l.ask(rows, limits),
                _ => rows.push_for_host(),
            }
        }
        let rows = limits.map(|_| &*rows);
        let results = executor.step(&batch.inputs, rows, probe.as_mut().map(|p| p as &mut Probe))?;

        let mut sampled = Vec::with_capacity(batch.inputs.logit_rows.len());
        for (id, row) in batch.sampling().zip(results) {
            let Some(l) = live.get_mut(&id) else { continue };
            match l.take_token(row, sampler) {
                Ok((token, ended)) => sampled.push((id, token, ended)),
                Err(e) => {
                    // Logits that leave no token are that request's fault; the others go on.
                    l.mailbox.push(Err(e));
                    l.mailbox.close();
                    live.remove(&id);
                    sampled.push((id, 0, true));
                }
            }
        }
        for ended in self.scheduler.commit(batch, &sampled)? {
            if let Some(l) = self.live.remove(&ended.id()) {
                l.finish();
            }
        }
        Ok(())
    }
}

impl Live {
    /// Asks the device for the next token.
    fn ask(&self, rows: &mut SamplingBatch, limits: &SamplingLimits) {
        choose::ask(rows, limits, &self.params, &self.processors, self.answer.token_ids.len() as u64);
    }

    /// Takes the next token and tells what is certain of the text. True where the answer ends here.
    fn take_token(&mut self, row: Row, sampler: &mut Sampler) -> Result<(u32, bool)> {
        let now = Instant::now();
        let first = *self.first_token.get_or_insert(now);
        self.answer.timings.prefill_s = (first - self.admitted).as_secs_f64();
        self.answer.timings.decode_s = (now - first).as_secs_f64();

        let position = self.answer.token_ids.len() as u64;
        let sampled = choose::take(row, sampler, &self.params, &self.processors, position)?;
        let token_id = sampled.token;
        self.processors.observe(token_id);
        self.answer.token_ids.push(token_id);
        if let Some(logprob) = sampled.logprob {
            self.answer.logprobs.push(TokenLogprobs { token_id, logprob, top: sampled.top });
        }
        // An end token is no text; everything else may be, and the last token lets out what was held back.
        let is_end = !self.params.ignore_eos && self.params.eos_token_id.contains(&token_id);
        let is_full = self.answer.prompt_token_ids.len() + self.answer.token_ids.len() >= self.limit;
        let mut piece = String::new();
        if !is_end {
            piece.extend(self.detokenizer.push(token_id)?);
        }
        if is_end || is_full {
            piece.extend(self.detokenizer.flush()?);
        }
        let StopOutcome { emit: mut text, stopped } = self.stop.push(&piece);
        if !stopped && (is_end || is_full) {
            text.push_str(&self.stop.flush());
        }
        self.answer.text.push_str(&text);
        if is_end || stopped {
            self.answer.finish_reason = FinishReason::Stop;
        }
        self.mailbox.push(Ok(Event::Token { token_id, text }));
        Ok((token_id, is_end || stopped))
    }

    fn finish(self) {
        self.mailbox.push(Ok(Event::Done(Box::new(self.answer))));
        self.mailbox.close();
    }
}
