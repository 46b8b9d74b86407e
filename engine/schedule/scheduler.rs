//! Continuous batching: which tokens of which sequences the next step computes.
//!
//! In: sequences, sampled tokens. Out: a [`Batch`] a step, finished sequences. Owns: the queues, the
//! page pool, the encoder cache. Not here: running the batch, sampling, finish reasons.
//!
//! Policy (that of vLLM's v1 scheduler, by arrival): running sequences first, oldest first, each with its
//! next token or its next chunk of prompt; then waiting ones, strictly in order, while tokens, seats,
//! pages and encoder budget last. Out of pages, the latest-arrived running sequence is preempted and
//! recomputed later. So the running sequences are at all times the oldest ones, and the oldest of all
//! advances in every step.

use std::collections::{HashSet, VecDeque};

use super::{Batch, BatchSeq, EncodeItem, EncoderCache, PagePool, SeqId, Sequence, SequenceSpec, SequenceState};
use crate::{Error, Result};

/// Sizes and limits.
#[derive(Debug, Clone)]
pub struct SchedulerConfig {
    /// Tokens in a KV page.
    pub page_size: usize,
    /// KV pages.
    pub num_pages: usize,
    /// Bytes of a KV page over all layers, for messages.
    pub page_bytes: u64,
    /// Sequences that run at once.
    pub max_num_seqs: usize,
    /// Tokens in a step.
    pub max_num_batched_tokens: usize,
    /// Tokens of a sequence, prompt and answer.
    pub max_model_len: usize,
    /// Rows of the encoder slab; 0 without an encoder.
    pub encoder_rows: usize,
    /// Encoder work in a step, in the unit of `ImageSpan::work`.
    pub max_encode_work: usize,
    /// Whether pages are shared between sequences with equal beginnings.
    pub prefix_caching: bool,
    /// Components of a position: 1, or 3 (time, height, width).
    pub position_components: usize,
    /// Row length of `BatchInputs::block_table`; 0: the longest row of each batch.
    pub block_table_stride: usize,
}

impl Default for SchedulerConfig {
    fn default() -> SchedulerConfig {
        SchedulerConfig {
            page_size: 16,
            num_pages: 0,
            page_bytes: 0,
            max_num_seqs: 64,
            max_num_batched_tokens: 2048,
            max_model_len: 4096,
            encoder_rows: 0,
            max_encode_work: usize::MAX,
            prefix_caching: true,
            position_components: 1,
            block_table_stride: 0,
        }
    }
}

/// Counters since the start, and the present state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    pub num_running: usize,
    pub num_waiting: usize,
    pub num_preemptions: u64,
    /// Tokens looked up in the prefix cache when sequences were first admitted, and those found.
    pub prefix_query_tokens: u64,
    pub prefix_hit_tokens: u64,
    /// Images that a sequence needed and found in the encoder slab; that had to be encoded.
    pub encoder_hits: u64,
    pub encoder_misses: u64,
    pub pages_used: usize,
    /// Free pages with content that can still be found.
    pub pages_cached: usize,
    pub pages_total: usize,
}

/// The state machine of continuous batching.
#[derive(Debug, Clone)]
pub struct Scheduler {
    config: SchedulerConfig,
    pool: PagePool,
    encoder: EncoderCache,
    /// By ascending arrival; all older than any in `waiting`.
    running: Vec<Sequence>,
    waiting: VecDeque<Sequence>,
    live: HashSet<SeqId>,
    arrivals: u64,
    step: u64,
    /// Whether the batch of `step` may still be committed.
    open: bool,
    spare: Option<Batch>,
    stats: Stats,
}

impl Scheduler {
    /// Errors name the size that is zero or too large.
    pub fn new(config: SchedulerConfig) -> Result<Scheduler> {
        let c = &config;
        for (value, what) in [
            (c.page_size, "KV page size"),
            (c.num_pages, "number of KV pages"),
            (c.max_num_seqs, "--max-num-seqs"),
            (c.max_num_batched_tokens, "--max-num-batched-tokens"),
            (c.max_model_len, "--max-model-len"),
            (c.position_components, "number of position components"),
        ] {
            if value == 0 {
                return Err(Error::Request(format!("{what}: expected at least 1, got 0")));
            }
        }
        // Slots, rows and positions travel as i32.
        let slots = c.num_pages.checked_mul(c.page_size);
        for (value, what) in [
            (slots, "KV slots (pages x page size)"),
            (Some(c.encoder_rows), "encoder rows"),
            (Some(c.max_model_len), "--max-model-len"),
        ] {
            if value.is_none_or(|v| v > i32::MAX as usize) {
                return Err(Error::Request(format!("{what}: expected at most {}, got more", i32::MAX)));
            }
        }
        let blocks = c.max_model_len.div_ceil(c.page_size).min(c.num_pages);
        if c.block_table_stride != 0 && c.block_table_stride < blocks {
            let s = c.block_table_stride;
            return Err(Error::Internal(format!("block table rows of {s} entries; a sequence may need {blocks}")));
        }
        Ok(Scheduler {
            pool: PagePool::new(c.num_pages, c.page_size),
            encoder: EncoderCache::new(c.encoder_rows),
            running: Vec::new(),
            waiting: VecDeque::new(),
            live: HashSet::new(),
            arrivals: 0,
            step: 0,
            open: false,
            spare: None,
            stats: Stats::default(),
            config,
        })
    }

    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// The longest a sequence may become, answer included: `max_model_len`, or less when the pool holds
    /// less. The last token of an answer is never computed and needs no slot.
    pub fn max_len(&self) -> usize {
        self.config.max_model_len.min(self.config.num_pages * self.config.page_size + 1)
    }

    /// Queues a sequence; returns the length, prompt included, at which it will end for want of room or
    /// by `max_new_tokens`. Refuses at once what could never run:
    /// - `Error::Request`: an empty prompt, no answer tokens wanted, a prompt that leaves no room in
    ///   `max_model_len`, an image larger than the encoder slab or budget;
    /// - `Error::OutOfMemory`: the sequence at full length does not fit in the pool even alone;
    /// - `Error::Internal`: a spec that contradicts itself or an id that is live.
    pub fn add(&mut self, spec: SequenceSpec) -> Result<usize> {
        let limit = self.admission_limit(&spec)?;
        if self.live.contains(&spec.id) {
            return Err(Error::Internal(format!("{} is already live", spec.id)));
        }
        let seq = Sequence::new(spec, self.arrivals, limit, self.config.position_components)?;
        self.arrivals += 1;
        self.live.insert(seq.id);
        self.waiting.push_back(seq);
        Ok(limit)
    }

    fn admission_limit(&self, spec: &SequenceSpec) -> Result<usize> {
        let c = &self.config;
        let n = spec.prompt.len();
        if n == 0 {
            return Err(Error::Request("prompt: expected at least one token, got none".into()));
        }
        if spec.max_new_tokens == 0 {
            return Err(Error::Request("--max-tokens: expected at least 1, got 0".into()));
        }
        if n >= c.max_model_len {
            let image_tokens: usize = spec.images.iter().fold(0, |a, s| a.saturating_add(s.rows));
            return Err(Error::Request(format!(
                "prompt has {n} tokens ({} text, {image_tokens} image{}), the context has {} and the answer needs at least 1: \
                 shorten the text, send fewer or smaller images, or raise --max-model-len",
                n.saturating_sub(image_tokens),
                row_counts(spec),
                c.max_model_len
            )));
        }
        let limit = n.saturating_add(spec.max_new_tokens).min(c.max_model_len);
        let blocks = self.pool.blocks_for(limit - 1);
        if blocks > c.num_pages {
            return Err(Error::OutOfMemory {
                what: format!(
                    "KV cache: a prompt of {n} tokens with {} answer tokens takes {blocks} pages of {} tokens, there are {}; \
                     lower --max-tokens or --max-model-len, or raise --gpu-memory-utilization",
                    limit - n,
                    c.page_size,
                    c.num_pages
                ),
                need: blocks as u64 * c.page_bytes,
                free: c.num_pages as u64 * c.page_bytes,
            });
        }
        for (i, s) in spec.images.iter().enumerate() {
            for (need, have, what) in
                [(s.rows, c.encoder_rows, "encoder rows"), (s.work, c.max_encode_work, "units of encoder work")]
            {
                if need > have {
                    return Err(Error::Request(format!(
                        "image part {i} of {} needs {need} {what}, the engine has {have}: send a smaller image",
                        spec.images.len()
                    )));
                }
            }
        }
        Ok(limit)
    }

    /// Takes a sequence out, wherever it is; `None` when it is not live. Between `schedule` and `commit`
    /// the batch stays valid, the sequence's part of it is ignored; its pixels must stay until the step
    /// has run, as another sequence of the batch may use the same image.
    pub fn abort(&mut self, id: SeqId) -> Option<Sequence> {
        if !self.live.remove(&id) {
            return None;
        }
        let mut seq = match self.running.iter().position(|s| s.id == id) {
            Some(i) => self.running.remove(i),
            None => {
                let i = self.waiting.iter().position(|s| s.id == id)?;
                self.waiting.remove(i)?
            }
        };
        release(&mut self.pool, &mut self.encoder, &mut seq);
        seq.state = SequenceState::Finished;
        Some(seq)
    }

    /// Steps from now on compute at most `tokens` tokens, at least one.
    pub fn limit_step(&mut self, tokens: usize) {
        self.config.max_num_batched_tokens = self.config.max_num_batched_tokens.min(tokens.max(1));
    }

    /// Plans the next step; `None` when no sequence is live. A batch that was planned before and not
    /// committed becomes void. Pixels of a sequence's images must be at hand until it has finished:
    /// after a preemption they may be encoded again.
    pub fn schedule(&mut self) -> Option<Batch> {
        self.step += 1;
        self.open = true;
        self.encoder.begin_step();
        let mut batch = self.spare.take().unwrap_or_default();
        batch.clear();
        batch.step = self.step;
        let mut tokens = self.config.max_num_batched_tokens;
        let mut work = self.config.max_encode_work;

        let mut i = 0;
        while i < self.running.len() && tokens > 0 {
            if !self.grow(i) {
                break;
            }
            let seq = &mut self.running[i];
            let (start, want) = (seq.num_computed, (seq.tokens.len() - seq.num_computed).min(tokens));
            // Only the oldest may take rows from under others: one that always advances is enough.
            let n =
                encode_for(&mut self.encoder, &mut self.stats, seq, start, want, &mut work, i == 0, &mut batch.encode);
            if n > 0 {
                batch.seqs.push(part(seq, n));
                tokens -= n;
            }
            i += 1;
        }
        // After a preemption nobody is admitted: the victim is first in line and lacks the page it made way for.
        while tokens > 0 && self.running.len() < self.config.max_num_seqs {
            let Some(n) = self.admit(tokens, &mut work, &mut batch.encode) else { break };
            let seq = self.running.last().expect("just admitted");
            batch.seqs.push(part(seq, n));
            tokens -= n;
        }
        if batch.seqs.is_empty() {
            debug_assert!(self.live.is_empty(), "the oldest sequence always advances");
            self.spare = Some(batch);
            return None;
        }
        let c = &self.config;
        batch.fill_inputs(&self.running, &self.encoder, c.page_size, c.position_components, c.block_table_stride);
        Some(batch)
    }

    /// Gives running sequence `i` pages for all its tokens, preempting the latest-arrived while there
    /// are too few. False when `i` itself had to go.
    fn grow(&mut self, i: usize) -> bool {
        loop {
            let seq = &mut self.running[i];
            let blocks = seq.tokens.len().div_ceil(self.config.page_size);
            if self.pool.allocate(&mut seq.table, blocks) {
                return true;
            }
            let mut victim = self.running.pop().expect("sequence i is running");
            release(&mut self.pool, &mut self.encoder, &mut victim);
            victim.state = SequenceState::Waiting;
            victim.num_preemptions += 1;
            self.stats.num_preemptions += 1;
            self.waiting.push_front(victim);
            if i == self.running.len() {
                return false;
            }
        }
    }

    /// Moves the first waiting sequence to the running ones; returns how many of its tokens this step
    /// computes, or `None` when it must wait. Pages for all its known tokens are taken now, and one page
    /// for every running sequence must remain: otherwise it would soon be preempted again.
    fn admit(&mut self, tokens: usize, work: &mut usize, encode: &mut Vec<EncodeItem>) -> Option<usize> {
        let page_size = self.config.page_size;
        let seq = self.waiting.front_mut()?;
        let len = seq.tokens.len();
        // The last token is always computed: its logits are wanted.
        let cacheable = if self.config.prefix_caching { (len - 1) / page_size } else { 0 };
        let hashes = seq.block_hashes(cacheable, page_size);
        let (hits, hits_free) = self.pool.lookup_prefix(hashes);
        let blocks = len.div_ceil(page_size);
        if blocks - hits + hits_free + self.running.len() > self.pool.num_free() {
            return None;
        }
        let start = hits * page_size;
        let want = (len - start).min(tokens);
        let n = encode_for(&mut self.encoder, &mut self.stats, seq, start, want, work, false, encode);
        if n == 0 {
            return None;
        }
        let mut seq = self.waiting.pop_front()?;
        let taken = self.pool.take_prefix(&mut seq.table, &seq.hashes[..hits]);
        let allocated = self.pool.allocate(&mut seq.table, blocks);
        debug_assert!(taken == hits && allocated);
        seq.num_computed = start;
        seq.num_cached_blocks = hits;
        seq.state = SequenceState::Running;
        if !seq.admitted {
            seq.admitted = true;
            seq.num_prefix_tokens = start;
            self.stats.prefix_query_tokens += len as u64;
            self.stats.prefix_hit_tokens += start as u64;
        }
        // Images further on that are in the slab already: keep them there.
        for i in seq.images_in(start + n..len) {
            if seq.pins[i].is_none()
                && let Some(r) = self.encoder.lookup(&seq.images[i].hash, seq.images[i].rows)
            {
                self.encoder.pin(r);
                seq.pins[i] = Some(r);
                self.stats.encoder_hits += 1;
            }
        }
        self.running.push(seq);
        Some(n)
    }

    /// Records that the device has run `batch`, with the sampled tokens as (sequence, token, whether it
    /// ends there), in the order of [`Batch::sampling`]. Returns the sequences that ended, also those
    /// that reached their limit; their pages are free, and what is cached stays.
    ///
    /// `Error::Internal` when the batch is not the latest or was committed before (nothing changes), or
    /// when a token is missing (that sequence computes its last token again).
    pub fn commit(&mut self, batch: &Batch, sampled: &[(SeqId, u32, bool)]) -> Result<Vec<Sequence>> {
        if !self.open || batch.step != self.step {
            return Err(Error::Internal(format!("commit of step {}, the open step is {}", batch.step, self.step)));
        }
        self.open = false;
        self.encoder.commit_step();
        let mut finished = Vec::new();
        let mut missing = None;
        let (mut i, mut k) = (0, 0);
        for part in &batch.seqs {
            // Both are by ascending arrival; aborted sequences are gone from `running`.
            while i < self.running.len() && self.running[i].arrival < part.arrival {
                i += 1;
            }
            let Some(seq) = self.running.get_mut(i).filter(|s| s.arrival == part.arrival) else { continue };
            seq.num_computed = part.start + part.num_tokens;
            let mut ended = false;
            if part.samples {
                let in_order = sampled.get(k).filter(|s| s.0 == part.id);
                match in_order.or_else(|| sampled.iter().find(|s| s.0 == part.id)) {
                    Some(&(_, token, end)) => {
                        k += 1;
                        seq.tokens.push(token);
                        ended = end || seq.tokens.len() >= seq.limit;
                    }
                    None => {
                        seq.num_computed -= 1;
                        missing = missing.or(Some(part.id));
                    }
                }
            }
            if self.config.prefix_caching {
                let full = seq.num_computed / self.config.page_size;
                for b in seq.num_cached_blocks..full {
                    let hash = seq.block_hashes(b + 1, self.config.page_size)[b];
                    self.pool.cache_block(&mut seq.table, b, hash);
                }
                seq.num_cached_blocks = full.max(seq.num_cached_blocks);
            }
            if ended {
                let mut seq = self.running.remove(i);
                release(&mut self.pool, &mut self.encoder, &mut seq);
                self.live.remove(&seq.id);
                seq.state = SequenceState::Finished;
                finished.push(seq);
            } else {
                for s in seq.images_in(part.start..seq.num_computed) {
                    if seq.images[s].range().end <= seq.num_computed
                        && let Some(r) = seq.pins[s].take()
                    {
                        self.encoder.unpin(r);
                    }
                }
            }
        }
        match missing {
            None => Ok(finished),
            Some(id) => Err(Error::Internal(format!("{id} sampled, but no token was given for it"))),
        }
    }

    /// Gives a batch's memory back, to be used by the next `schedule`.
    pub fn recycle(&mut self, batch: Batch) {
        self.spare = Some(batch);
    }

    /// A live sequence.
    pub fn sequence(&self, id: SeqId) -> Option<&Sequence> {
        self.sequences().find(|s| s.id == id)
    }

    /// Live sequences by arrival; the running ones come first.
    pub fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.running.iter().chain(&self.waiting)
    }

    /// Whether nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.live.is_empty()
    }

    pub fn stats(&self) -> Stats {
        Stats {
            num_running: self.running.len(),
            num_waiting: self.waiting.len(),
            pages_used: self.pool.num_used(),
            pages_cached: self.pool.num_cached(),
            pages_total: self.pool.num_pages(),
            ..self.stats
        }
    }

    /// Checks every invariant of the scheduler, its pool and its encoder cache. For tests.
    pub fn debug_validate(&self) -> std::result::Result<(), String> {
        self.pool.debug_validate(self.sequences().map(|s| &s.table))?;
        self.encoder.debug_validate(self.sequences().flat_map(|s| s.pins.iter().flatten().copied()))?;
        if !self.sequences().is_sorted_by(|a, b| a.arrival < b.arrival) {
            return Err("running sequences are not the oldest".into());
        }
        if self.sequences().count() != self.live.len() || self.running.len() > self.config.max_num_seqs {
            return Err("too many sequences".into());
        }
        for s in &self.running {
            // Whatever is still to be written lies in a page of one's own.
            let own = &s.table.pages()[s.num_computed / self.config.page_size..];
            if own.iter().any(|&p| self.pool.ref_count(p) != 1) || s.num_computed >= s.tokens.len() {
                return Err(format!("{}: writes into a shared page or has nothing to compute", s.id));
            }
        }
        match self.waiting.iter().find(|s| !s.table.pages().is_empty() || s.pins.iter().any(Option::is_some)) {
            Some(s) => Err(format!("{} waits, but holds pages or rows", s.id)),
            None => Ok(()),
        }
    }
}

fn part(seq: &Sequence, num_tokens: usize) -> BatchSeq {
    let samples = seq.num_computed + num_tokens == seq.tokens.len();
    BatchSeq { id: seq.id, start: seq.num_computed, num_tokens, samples, arrival: seq.arrival }
}

/// Gives back all that a sequence holds and forgets what it has computed.
fn release(pool: &mut PagePool, encoder: &mut EncoderCache, seq: &mut Sequence) {
    pool.free(&mut seq.table);
    seq.num_computed = 0;
    seq.num_cached_blocks = 0;
    for r in seq.pins.iter_mut().filter_map(Option::take) {
        encoder.unpin(r);
    }
}

/// Brings every image that tokens `start..start + n` touch into the slab, by use or by encoding. Returns
/// how many of the tokens can be computed: fewer where budget or room for an image is lacking.
#[allow(clippy::too_many_arguments)]
fn encode_for(
    encoder: &mut EncoderCache,
    stats: &mut Stats,
    seq: &mut Sequence,
    start: usize,
    n: usize,
    work: &mut usize,
    evict_pinned: bool,
    encode: &mut Vec<EncodeItem>,
) -> usize {
    for i in seq.images_in(start..start + n) {
        if seq.pins[i].is_some_and(|r| encoder.touch(r)) {
            continue;
        }
        let span = &seq.images[i];
        let found = encoder.lookup(&span.hash, span.rows);
        let place = match found {
            None if span.work > *work => None,
            None => encoder.allocate(&span.hash, span.rows, evict_pinned),
            found => found,
        };
        let Some((r, slab_row)) = place.and_then(|r| Some((r, encoder.row(r)?))) else {
            return span.start.saturating_sub(start);
        };
        encoder.touch(r);
        encoder.pin(r);
        seq.pins[i] = Some(r);
        if found.is_some() {
            stats.encoder_hits += 1;
        } else {
            stats.encoder_misses += 1;
            *work -= span.work;
            let (hash, rows, work) = (span.hash, span.rows, span.work);
            encode.push(EncodeItem { seq: seq.id, span: i, hash, slab_row, rows, work });
        }
    }
    n
}

/// How image tokens are spread over the images: `: 5 x 64 + 2 x 128`; empty without images.
fn row_counts(spec: &SequenceSpec) -> String {
    let mut text = String::new();
    for (shown, group) in spec.images.chunk_by(|a, b| a.rows == b.rows).enumerate() {
        if shown == 8 {
            return text + " + ...";
        }
        text += if shown == 0 { ": " } else { " + " };
        text += &format!("{} x {}", group.len(), group[0].rows);
    }
    text
}
