//! Property test of the scheduler against a simulated device.
//!
//! The device keeps, in every KV slot, a digest of the whole history up to that token, as it saw it:
//! the token before (read through the block table), the embedding (token id or encoder row), the
//! position. Each step checks that attention would read exactly the history that the request implies.
//! Answers depend on that digest alone, so they must come out as if each request had run by itself.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};

use engine::schedule::{
    Batch, Hash, ImageSpan, Positions, Scheduler, SchedulerConfig, SeqId, Sequence, SequenceSpec, SequenceState, Stats,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

const IMAGE_TOKEN: u32 = 3;

fn mix(parts: &[u64]) -> u64 {
    parts.iter().fold(0x9e37_79b9_7f4a_7c15, |h, &p| {
        let x = (h ^ p).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^ (x >> 29)
    })
}

/// What the device sees of one token.
fn embedding_of_token(id: i32) -> u64 {
    mix(&[1, id as u64])
}

fn embedding_of_row(image: u8, row: usize) -> u64 {
    mix(&[2, image as u64, row as u64])
}

/// The next token after a history, and whether the answer ends with it.
fn sample(digest: u64) -> (u32, bool) {
    (4 + (digest % 5) as u32, digest.is_multiple_of(37))
}

#[derive(Debug, Clone)]
enum Segment {
    /// A run of text, drawn from few so that beginnings coincide.
    Text {
        variant: u8,
        len: usize,
    },
    Image {
        image: u8,
    },
}

#[derive(Debug, Clone)]
struct Arrival {
    step: usize,
    segments: Vec<Segment>,
    max_new_tokens: usize,
    salt: u8,
    explicit_positions: bool,
    /// Steps after arrival at which it is aborted, and whether between schedule and commit.
    abort: Option<(usize, bool)>,
}

#[derive(Debug, Clone)]
struct Case {
    config: SchedulerConfig,
    arrivals: Vec<Arrival>,
    /// Steps whose batch is dropped: the device failed, before (false) or after (true) it had run.
    failures: Vec<(usize, bool)>,
}

/// Rows and work of an image; images 0 and 1 are of one size, so are 2 and 3.
fn image_size(image: u8) -> (usize, usize) {
    let image = image / 2;
    (2 + image as usize * 4, 1 + image as usize * 2)
}

fn case() -> impl Strategy<Value = Case> {
    let segment = prop_oneof![
        (0..2u8, prop_oneof![Just(8usize), 1..9usize]).prop_map(|(variant, len)| Segment::Text { variant, len }),
        (0..4u8).prop_map(|image| Segment::Image { image }),
    ];
    let arrival = (
        0..40usize,
        prop::collection::vec(segment, 1..7),
        1..45usize,
        prop_oneof![9 => Just(0u8), 1 => Just(1u8)],
        prop::bool::weighted(0.2),
        prop::option::weighted(0.15, (0..15usize, any::<bool>())),
    )
        .prop_map(|(step, segments, max_new_tokens, salt, explicit_positions, abort)| Arrival {
            step,
            segments,
            max_new_tokens,
            salt,
            explicit_positions,
            abort,
        });
    let config = (1..6usize, 4..24usize, 1..8usize, 1..24usize, 20..70usize, 7..20usize, 4..12usize, 0..6u8).prop_map(
        |(
            page_size,
            pages,
            max_num_seqs,
            max_num_batched_tokens,
            max_model_len,
            encoder_rows,
            max_encode_work,
            odd,
        )| {
            SchedulerConfig {
                page_size,
                num_pages: pages,
                page_bytes: 1,
                max_num_seqs,
                max_num_batched_tokens,
                max_model_len,
                encoder_rows,
                max_encode_work,
                prefix_caching: odd != 0,
                position_components: if odd == 1 { 3 } else { 1 },
                block_table_stride: if odd == 2 { 80 } else { 0 },
            }
        },
    );
    let failures = prop::collection::vec((0..60usize, any::<bool>()), 0..3);
    (config, prop::collection::vec(arrival, 1..14), failures).prop_map(|(config, arrivals, failures)| Case {
        config,
        arrivals,
        failures,
    })
}

/// A request and everything that follows from it.
struct Request {
    spec: SequenceSpec,
    images: Vec<u8>,
    components: usize,
    tokens: Vec<u32>,
    /// Digest of the history up to and with each token.
    digests: Vec<u64>,
    answer: Vec<u32>,
    abort_at: Option<(usize, bool)>,
}

impl Request {
    fn new(id: usize, a: &Arrival, components: usize) -> Request {
        let (mut prompt, mut spans, mut images) = (Vec::new(), Vec::new(), Vec::new());
        for s in &a.segments {
            match *s {
                Segment::Text { variant, len } => {
                    prompt.extend((0..len).map(|i| if i % 4 == 3 { IMAGE_TOKEN } else { 10 + variant as u32 }));
                }
                Segment::Image { image } => {
                    let (rows, work) = image_size(image);
                    spans.push(ImageSpan { hash: [image; 32], start: prompt.len(), rows, work });
                    images.push(image);
                    prompt.extend(std::iter::repeat_n(IMAGE_TOKEN, rows));
                }
            }
        }
        let n = prompt.len();
        let positions = a
            .explicit_positions
            .then(|| Positions { prompt: (0..components * n).map(|i| (i * 7 % 11) as i32).collect(), delta: -2 });
        let salt: Hash = [a.salt; 32];
        let spec = SequenceSpec {
            id: SeqId(id as u64),
            prompt: prompt.clone(),
            images: spans,
            positions,
            max_new_tokens: a.max_new_tokens,
            salt,
        };
        let abort_at = a.abort.map(|(after, inside)| (a.step + after, inside));
        let mut r = Request { spec, images, components, tokens: prompt, digests: vec![], answer: vec![], abort_at };
        for t in 0..n {
            r.digest(t);
        }
        r
    }

    fn position(&self, component: usize, t: usize) -> i32 {
        match &self.spec.positions {
            None => t as i32,
            Some(p) if t < self.spec.prompt.len() => p.prompt[component * self.spec.prompt.len() + t],
            Some(p) => t as i32 + p.delta,
        }
    }

    fn digest(&mut self, t: usize) {
        let inside = self.spec.images.iter().position(|s| s.range().contains(&t));
        let embedding = match inside {
            Some(i) => embedding_of_row(self.images[i], t - self.spec.images[i].start),
            None => embedding_of_token(self.tokens[t] as i32),
        };
        let positions: Vec<i32> = (0..self.components).map(|c| self.position(c, t)).collect();
        let before = if t == 0 { 0 } else { self.digests[t - 1] };
        self.digests.push(step_digest(before, embedding, &positions));
    }

    /// The answer that the request gets when it is alone in the world.
    fn run_alone(&mut self, limit: usize) {
        while self.tokens.len() < limit {
            let (token, end) = sample(*self.digests.last().unwrap());
            self.tokens.push(token);
            self.answer.push(token);
            self.digest(self.tokens.len() - 1);
            if end {
                break;
            }
        }
    }
}

fn step_digest(before: u64, embedding: u64, positions: &[i32]) -> u64 {
    positions.iter().fold(mix(&[before, embedding]), |h, &p| mix(&[h, p as u64]))
}

struct Device {
    kv: Vec<Option<u64>>,
    slab: Vec<Option<(u8, usize)>>,
    page_size: usize,
    components: usize,
}

impl Device {
    /// Runs a batch; gives the sampled tokens.
    fn run(&mut self, batch: &Batch, requests: &BTreeMap<SeqId, Request>) -> Vec<(SeqId, u32, bool)> {
        for e in &batch.encode {
            let image = requests[&e.seq].images[e.span];
            assert_eq!((e.hash, (e.rows, e.work)), ([image; 32], image_size(image)));
            for row in 0..e.rows {
                self.slab[e.slab_row + row] = Some((image, row));
            }
        }
        let x = &batch.inputs;
        let (num_tokens, num_seqs) = (batch.num_tokens(), batch.seqs.len());
        assert_eq!(x.image_rows.len(), num_tokens);
        assert_eq!(x.slot_mapping.len(), num_tokens);
        assert_eq!(x.positions.len(), self.components * num_tokens);
        assert_eq!(x.cu_seqlens_q.len(), num_seqs + 1);
        assert_eq!((x.cu_seqlens_q[0], x.cu_seqlens_q[num_seqs]), (0, num_tokens as i32));
        assert_eq!(x.context_lens.len(), num_seqs);
        assert_eq!(x.block_table.len(), num_seqs * x.block_table_stride);
        assert_eq!(x.logit_rows.len(), batch.sampling().count());
        let mut written = HashSet::new();
        let mut sampled = Vec::new();
        for (s, part) in batch.seqs.iter().enumerate() {
            let request = &requests[&part.id];
            let tokens = x.cu_seqlens_q[s] as usize..x.cu_seqlens_q[s + 1] as usize;
            assert_eq!(tokens.len(), part.num_tokens);
            let context_len = x.context_lens[s] as usize;
            assert_eq!(context_len, part.start + part.num_tokens);
            let row = &x.block_table[s * x.block_table_stride..][..x.block_table_stride];
            let blocks = context_len.div_ceil(self.page_size);
            assert!(row[..blocks].iter().all(|&p| p >= 0) && row[blocks..].iter().all(|&p| p == -1));
            let slot = |t: usize| row[t / self.page_size] as usize * self.page_size + t % self.page_size;
            for i in tokens.clone() {
                let t = part.start + i - tokens.start;
                assert_eq!(x.slot_mapping[i] as usize, slot(t), "{}: token {t} goes elsewhere", part.id);
                assert!(written.insert(slot(t)), "slot {} written twice in a step", slot(t));
                let embedding = match x.image_rows[i] {
                    -1 => embedding_of_token(x.token_ids[i]),
                    r => {
                        let (image, row) = self.slab[r as usize].expect("slab row holds an image");
                        embedding_of_row(image, row)
                    }
                };
                let positions: Vec<i32> = (0..self.components).map(|c| x.positions[c * num_tokens + i]).collect();
                let before = if t == 0 { 0 } else { self.kv[slot(t - 1)].expect("the token before is computed") };
                self.kv[slot(t)] = Some(step_digest(before, embedding, &positions));
            }
            // Attention of the chunk reads every key up to the last: all must be this request's own.
            for t in 0..context_len {
                assert_eq!(self.kv[slot(t)], Some(request.digests[t]), "{}: key {t} of {context_len}", part.id);
            }
            if part.samples {
                assert_eq!(x.logit_rows[sampled.len()] as usize, tokens.end - 1);
                let (token, end) = sample(self.kv[slot(context_len - 1)].unwrap());
                sampled.push((part.id, token, end));
            }
        }
        // No write reached a key that a later sequence of the batch had already been checked for.
        for (s, part) in batch.seqs.iter().enumerate() {
            let row = &x.block_table[s * x.block_table_stride..][..x.block_table_stride];
            for t in 0..x.context_lens[s] as usize {
                let slot = row[t / self.page_size] as usize * self.page_size + t % self.page_size;
                assert_eq!(self.kv[slot], Some(requests[&part.id].digests[t]), "{}: key {t} overwritten", part.id);
            }
        }
        sampled
    }
}

#[derive(Debug, Default, Clone)]
struct Seen {
    preemptions: u64,
    prefix_hits: u64,
    encoder_hits: u64,
    encoder_misses: u64,
    finished: usize,
    aborted: usize,
    refused: usize,
    voided: usize,
    resumed_from_cache: usize,
    split_images: usize,
}

fn check_budgets(c: &SchedulerConfig, batch: &Batch, scheduler: &Scheduler) {
    assert!(batch.num_tokens() <= c.max_num_batched_tokens);
    assert!(batch.seqs.len() <= c.max_num_seqs);
    assert!(batch.encode.iter().map(|e| e.work).sum::<usize>() <= c.max_encode_work);
    let mut rows: Vec<_> = batch.encode.iter().map(|e| (e.slab_row, e.slab_row + e.rows)).collect();
    rows.sort();
    assert!(rows.windows(2).all(|w| w[0].1 <= w[1].0), "two images encoded into the same rows");
    assert!(rows.iter().all(|r| r.1 <= c.encoder_rows));
    let oldest = scheduler.sequences().next().expect("a batch has sequences").id();
    assert!(batch.seqs[0].id == oldest && batch.seqs.iter().all(|s| s.num_tokens > 0), "the oldest did not advance");
}

fn run(case: &Case, seen: &mut Seen) {
    let c = &case.config;
    let mut scheduler = Scheduler::new(c.clone()).unwrap();
    let mut device = Device {
        kv: vec![None; c.num_pages * c.page_size],
        slab: vec![None; c.encoder_rows],
        page_size: c.page_size,
        components: c.position_components,
    };
    let mut requests = BTreeMap::new();
    let mut arrivals: Vec<_> = case.arrivals.iter().enumerate().collect();
    arrivals.sort_by_key(|(_, a)| a.step);
    let mut arrivals = arrivals.into_iter().peekable();
    let (mut ended, mut step, mut work) = (HashSet::new(), 0, 0);
    loop {
        while let Some((id, a)) = arrivals.next_if(|(_, a)| a.step <= step) {
            let mut r = Request::new(id, a, c.position_components);
            match scheduler.add(r.spec.clone()) {
                Ok(limit) => {
                    assert_eq!(limit, c.max_model_len.min(r.spec.prompt.len() + a.max_new_tokens));
                    r.run_alone(limit);
                    work += limit;
                    requests.insert(r.spec.id, r);
                }
                Err(_) => seen.refused += 1,
            }
        }
        let mut abort = |scheduler: &mut Scheduler, inside: bool| {
            for (&id, r) in &requests {
                if r.abort_at.is_some_and(|(at, i)| at == step && i == inside)
                    && let Some(s) = scheduler.abort(id)
                {
                    assert_eq!(s.state(), SequenceState::Finished);
                    assert!(s.block_table().pages().is_empty() && r.answer.starts_with(s.output()));
                    assert!(ended.insert(id) && scheduler.sequence(id).is_none());
                    seen.aborted += 1;
                }
            }
        };
        abort(&mut scheduler, false);
        let waited: HashSet<_> =
            scheduler.sequences().filter(|s| s.state() == SequenceState::Waiting).map(Sequence::id).collect();
        let preemptions = scheduler.stats().num_preemptions;
        let Some(batch) = scheduler.schedule() else {
            assert!(scheduler.is_idle());
            match arrivals.peek() {
                Some((_, a)) => step = step.max(a.step),
                None => break,
            }
            continue;
        };
        scheduler.debug_validate().unwrap();
        check_budgets(c, &batch, &scheduler);
        if batch.seqs.iter().any(|s| waited.contains(&s.id)) {
            let now = scheduler.stats();
            assert_eq!(now.num_preemptions, preemptions, "admitted in a step that preempts");
            let others = now.num_running - 1;
            assert!(now.pages_total - now.pages_used >= others, "admitted into the others' next pages");
        }
        for s in &batch.seqs {
            let sequence = scheduler.sequence(s.id).unwrap();
            let inside = |end: usize| sequence.images().iter().any(|i| i.start < end && end < i.range().end);
            seen.split_images += inside(s.start + s.num_tokens) as usize;
            seen.resumed_from_cache += (sequence.num_preemptions() > 0 && s.start > 0) as usize;
        }
        let failure = case.failures.iter().find(|f| f.0 == step);
        if failure.is_none_or(|f| f.1) {
            let sampled = device.run(&batch, &requests);
            abort(&mut scheduler, true);
            if failure.is_none() {
                for s in scheduler.commit(&batch, &sampled).unwrap() {
                    let r = &requests[&s.id()];
                    assert_eq!(s.output(), r.answer, "{} alone answers otherwise", s.id());
                    assert_eq!((s.state(), s.block_table().pages()), (SequenceState::Finished, [].as_slice()));
                    assert!(ended.insert(s.id()));
                    seen.finished += 1;
                }
                assert!(scheduler.commit(&batch, &sampled).is_err(), "a batch is committed once");
            }
        } else {
            abort(&mut scheduler, true);
        }
        seen.voided += failure.is_some() as usize;
        scheduler.debug_validate().unwrap();
        if step % 2 == 0 {
            scheduler.recycle(batch);
        }
        step += 1;
        // The oldest advances in every committed step, so this many suffice.
        assert!(step <= 40 + case.failures.len() + work, "livelock");
    }
    let Stats { num_preemptions, prefix_hit_tokens, encoder_hits, encoder_misses, pages_used, .. } = scheduler.stats();
    assert_eq!((ended.len(), pages_used), (requests.len(), 0));
    seen.preemptions += num_preemptions;
    seen.prefix_hits += prefix_hit_tokens;
    seen.encoder_hits += encoder_hits;
    seen.encoder_misses += encoder_misses;
}

#[test]
fn every_history_is_right_and_everyone_finishes() {
    let seen = RefCell::new(Seen::default());
    let config = Config { cases: 5000, rng_seed: RngSeed::Fixed(20), failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&case(), |case| {
        run(&case, &mut seen.borrow_mut());
        Ok(())
    });
    outcome.unwrap_or_else(|e| panic!("{e}"));
    // The cases reached what they are about.
    let s = seen.into_inner();
    for (count, least, what) in [
        (s.finished, 10_000, "finished"),
        (s.preemptions as usize, 1500, "preemptions"),
        (s.prefix_hits as usize, 6000, "tokens from the prefix cache"),
        (s.encoder_hits as usize, 10_000, "encoder hits"),
        (s.encoder_misses as usize, 5000, "encoder misses"),
        (s.resumed_from_cache, 3000, "chunks after a preemption that did not begin at 0"),
        (s.split_images, 5000, "chunks that end inside an image"),
        (s.aborted, 1000, "aborts"),
        (s.refused, 1000, "refusals"),
        (s.voided, 1000, "failed steps"),
    ] {
        assert!(count >= least, "only {count} {what}, expected {least}: {s:?}");
    }
}

fn live(scheduler: &Scheduler) -> Vec<&Sequence> {
    scheduler.sequences().collect()
}

/// The same text with other images: from the first block that an image overlaps, no page is shared,
/// however far the two have come.
#[test]
fn other_images_never_share_pages() {
    let config = SchedulerConfig {
        page_size: 4,
        num_pages: 64,
        encoder_rows: 64,
        max_num_batched_tokens: 6,
        ..SchedulerConfig::default()
    };
    for text_before in 0..9 {
        let mut scheduler = Scheduler::new(config.clone()).unwrap();
        for id in 0..3u8 {
            // 0 and 2 have the same image.
            let hash = [id % 2; 32];
            let mut prompt = vec![7; text_before];
            prompt.extend([IMAGE_TOKEN; 10]);
            prompt.extend([8; 5]);
            scheduler
                .add(SequenceSpec {
                    id: SeqId(id as u64),
                    prompt,
                    images: vec![ImageSpan { hash, start: text_before, rows: 10, work: 1 }],
                    max_new_tokens: 30,
                    ..Default::default()
                })
                .unwrap();
        }
        let text_blocks = text_before / 4;
        let mut shared = 0;
        for _ in 0..25 {
            let batch = scheduler.schedule().unwrap();
            let sampled: Vec<_> = batch.sampling().map(|id| (id, 9, false)).collect();
            scheduler.commit(&batch, &sampled).unwrap();
            let s = live(&scheduler);
            let pages = |i: usize| s[i].block_table().pages().iter().skip(text_blocks).collect::<HashSet<_>>();
            assert!(pages(0).is_disjoint(&pages(1)) && pages(1).is_disjoint(&pages(2)));
            shared = pages(0).intersection(&pages(2)).count();
        }
        assert!(shared >= 2, "the same image shares its pages, here {shared}");
    }
}
