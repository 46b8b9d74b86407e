//! The scheduler step by step: what exactly a batch holds in the situations that matter.

use engine::Error;
use engine::schedule::{
    Batch, ImageSpan, Positions, Scheduler, SchedulerConfig, SeqId, Sequence, SequenceSpec, SequenceState,
};

fn config() -> SchedulerConfig {
    SchedulerConfig {
        page_size: 4,
        num_pages: 32,
        page_bytes: 1000,
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        max_model_len: 100,
        encoder_rows: 32,
        max_encode_work: 10,
        ..SchedulerConfig::default()
    }
}

fn scheduler(change: impl FnOnce(&mut SchedulerConfig)) -> Scheduler {
    let mut c = config();
    change(&mut c);
    Scheduler::new(c).unwrap()
}

/// A prompt of `len` tokens `first, first + 1, ...` that wants 20 tokens.
fn text(id: u64, first: u32, len: usize) -> SequenceSpec {
    SequenceSpec {
        id: SeqId(id),
        prompt: (first..first + len as u32).collect(),
        max_new_tokens: 20,
        ..Default::default()
    }
}

/// `text` with images as (hash, start, rows), each of work 5.
fn picture(id: u64, first: u32, len: usize, images: &[(u8, usize, usize)]) -> SequenceSpec {
    let images = images.iter().map(|&(h, start, rows)| ImageSpan { hash: [h; 32], start, rows, work: 5 });
    SequenceSpec { images: images.collect(), ..text(id, first, len) }
}

/// (id, start, number of tokens, samples) of each sequence.
fn parts(batch: &Batch) -> Vec<(u64, usize, usize, bool)> {
    batch.seqs.iter().map(|s| (s.id.0, s.start, s.num_tokens, s.samples)).collect()
}

/// Commits with token 7 for everyone.
fn commit(scheduler: &mut Scheduler, batch: &Batch) -> Vec<Sequence> {
    let sampled: Vec<_> = batch.sampling().map(|id| (id, 7, false)).collect();
    let finished = scheduler.commit(batch, &sampled).unwrap();
    scheduler.debug_validate().unwrap();
    finished
}

fn step(scheduler: &mut Scheduler) -> Batch {
    let batch = scheduler.schedule().unwrap();
    commit(scheduler, &batch);
    batch
}

#[test]
fn inputs_of_a_mixed_batch() {
    let mut s = scheduler(|c| c.max_num_batched_tokens = 7);
    s.add(text(1, 10, 3)).unwrap();
    s.add(picture(2, 20, 9, &[(1, 2, 5)])).unwrap();
    let b = step(&mut s);
    assert_eq!(parts(&b), [(1, 0, 3, true), (2, 0, 4, false)]);
    assert_eq!(b.encode.len(), 1);
    let b = s.schedule().unwrap();
    assert_eq!(parts(&b), [(1, 3, 1, true), (2, 4, 5, true)]);
    assert!(b.encode.is_empty(), "the image was encoded in the step before");
    let x = &b.inputs;
    assert_eq!(x.token_ids, [7, 24, 25, 26, 27, 28]);
    assert_eq!(x.image_rows, [-1, 2, 3, 4, -1, -1]);
    assert_eq!(x.positions, [3, 4, 5, 6, 7, 8]);
    assert_eq!(x.cu_seqlens_q, [0, 1, 6]);
    assert_eq!(x.context_lens, [4, 9]);
    // Sequence 1 took page 0, sequence 2 pages 1, 2, 3 when it was admitted.
    assert_eq!((x.block_table_stride, x.block_table.as_slice()), (3, [0, -1, -1, 1, 2, 3].as_slice()));
    assert_eq!(x.slot_mapping, [3, 8, 9, 10, 11, 12]);
    assert_eq!(x.logit_rows, [0, 5]);
    assert_eq!(b.sampling().collect::<Vec<_>>(), [SeqId(1), SeqId(2)]);
    commit(&mut s, &b);
    assert_eq!(s.sequence(SeqId(1)).unwrap().output(), [7, 7]);
}

#[test]
fn the_block_table_has_the_stride_asked_for() {
    let mut s = scheduler(|c| c.block_table_stride = 25);
    s.add(text(1, 0, 5)).unwrap();
    let x = s.schedule().unwrap().inputs;
    assert_eq!((x.block_table_stride, &x.block_table[..3], x.block_table.len()), (25, [0, 1, -1].as_slice(), 25));
    let too_short = SchedulerConfig { block_table_stride: 24, ..config() };
    assert!(matches!(Scheduler::new(too_short), Err(Error::Internal(_))));
}

#[test]
fn positions_of_three_components() {
    let mut s = scheduler(|c| c.position_components = 3);
    let positions = Positions { prompt: vec![0, 1, 1, 0, 1, 2, 0, 3, 4], delta: 2 };
    s.add(SequenceSpec { positions: Some(positions), ..text(1, 10, 3) }).unwrap();
    s.add(text(2, 10, 2)).unwrap();
    let b = step(&mut s);
    assert_eq!(b.inputs.positions, [0, 1, 1, 0, 1, 0, 1, 2, 0, 1, 0, 3, 4, 0, 1]);
    assert_eq!(step(&mut s).inputs.positions, [5, 2, 5, 2, 5, 2]);
}

#[test]
fn an_image_is_encoded_once_for_all_who_show_it() {
    let mut s = scheduler(|_| ());
    s.add(picture(1, 10, 8, &[(1, 1, 6)])).unwrap();
    s.add(picture(2, 30, 9, &[(1, 2, 6)])).unwrap();
    let b = step(&mut s);
    assert_eq!(b.encode.len(), 1);
    assert_eq!((b.encode[0].seq, b.encode[0].slab_row, b.encode[0].rows), (SeqId(1), 0, 6));
    assert_eq!(b.inputs.image_rows, [-1, 0, 1, 2, 3, 4, 5, -1, -1, -1, 0, 1, 2, 3, 4, 5, -1]);
    // A later request finds it too.
    s.add(picture(3, 50, 8, &[(1, 1, 6)])).unwrap();
    assert!(step(&mut s).encode.is_empty());
    assert_eq!((s.stats().encoder_hits, s.stats().encoder_misses), (2, 1));
}

#[test]
fn a_chunk_ends_before_an_image_that_the_budget_does_not_allow() {
    // Two images a step; the third waits, its own text before it does not.
    let mut s = scheduler(|_| ());
    s.add(picture(1, 10, 12, &[(1, 0, 3), (2, 3, 3), (3, 8, 3)])).unwrap();
    s.add(text(2, 50, 4)).unwrap();
    let b = step(&mut s);
    assert_eq!((b.encode.len(), parts(&b)), (2, vec![(1, 0, 8, false), (2, 0, 4, true)]));
    let b = step(&mut s);
    assert_eq!((b.encode.len(), parts(&b)), (1, vec![(1, 8, 4, true), (2, 4, 1, true)]));
}

#[test]
fn waiting_sequences_are_admitted_strictly_in_order() {
    let mut s = scheduler(|_| ());
    s.add(picture(1, 10, 8, &[(1, 0, 3), (2, 4, 3)])).unwrap();
    s.add(picture(2, 30, 6, &[(3, 0, 3)])).unwrap();
    s.add(text(3, 50, 4)).unwrap();
    // The encoder budget is spent: 2 waits, and 3 does not overtake it.
    assert_eq!(parts(&step(&mut s)), [(1, 0, 8, true)]);
    assert_eq!(parts(&step(&mut s)), [(1, 8, 1, true), (2, 0, 6, true), (3, 0, 4, true)]);
}

#[test]
fn a_cached_prompt_computes_its_last_token() {
    let mut s = scheduler(|_| ());
    let long = |id| picture(id, 10, 12, &[(1, 1, 6)]);
    s.add(SequenceSpec { max_new_tokens: 1, ..long(1) }).unwrap();
    let b = s.schedule().unwrap();
    assert_eq!(commit(&mut s, &b).len(), 1);
    assert_eq!((s.stats().pages_used, s.stats().pages_cached), (0, 3));
    // All three blocks are cached; the last is computed again, and its image is not needed.
    s.add(long(2)).unwrap();
    s.add(SequenceSpec { salt: [1; 32], ..long(3) }).unwrap();
    let b = step(&mut s);
    assert_eq!(parts(&b), [(2, 8, 4, true), (3, 0, 12, true)]);
    assert_eq!((s.stats().prefix_query_tokens, s.stats().prefix_hit_tokens), (36, 8));
    assert_eq!(s.sequence(SeqId(2)).unwrap().num_prefix_tokens(), 8);
    // The block that was computed twice is kept once: 3 pages, a fourth each for the next token is not taken yet.
    assert_eq!((s.stats().pages_used, s.stats().pages_cached), (6, 0));
    assert_eq!(s.sequence(SeqId(2)).unwrap().block_table().pages(), [0, 1, 2]);
}

#[test]
fn without_prefix_caching_nothing_is_shared() {
    let mut s = scheduler(|c| c.prefix_caching = false);
    s.add(SequenceSpec { max_new_tokens: 1, ..text(1, 10, 12) }).unwrap();
    step(&mut s);
    s.add(text(2, 10, 12)).unwrap();
    assert_eq!(parts(&step(&mut s)), [(2, 0, 12, true)]);
    assert_eq!((s.stats().pages_cached, s.stats().prefix_hit_tokens), (0, 0));
}

#[test]
fn the_latest_arrived_is_preempted_and_resumes_from_its_prefix() {
    let mut s = scheduler(|c| c.num_pages = 7);
    s.add(SequenceSpec { max_new_tokens: 12, ..text(1, 10, 8) }).unwrap();
    s.add(SequenceSpec { max_new_tokens: 12, ..text(2, 30, 8) }).unwrap();
    // Both grow to 12 tokens in 3 pages; the 13th of sequence 1 takes the last page, that of 2 finds none.
    let mut batch = step(&mut s);
    while batch.seqs.len() == 2 {
        batch = step(&mut s);
    }
    assert_eq!(parts(&batch), [(1, 12, 1, true)]);
    let two = s.sequence(SeqId(2)).unwrap();
    assert_eq!((two.state(), two.num_computed(), two.num_preemptions()), (SequenceState::Waiting, 0, 1));
    assert_eq!(two.output(), [7; 5]);
    assert_eq!(s.stats().num_preemptions, 1);
    while batch.seqs[0].id == SeqId(1) {
        batch = step(&mut s);
    }
    // Sequence 1 has needed one more page and evicted the last block of 2. The two before are found again,
    // and what 2 had said already is recomputed with the rest.
    assert_eq!(parts(&batch), [(2, 8, 5, true)]);
    assert_eq!(batch.inputs.token_ids, [7; 5]);
    assert_eq!(s.sequence(SeqId(2)).unwrap().output(), [7; 6]);
    assert_eq!(s.sequence(SeqId(2)).unwrap().num_prefix_tokens(), 0, "its own tokens are no hits");
}

#[test]
fn the_oldest_takes_rows_from_under_the_younger() {
    // 1 waits at its second image for want of work; 2 then pins rows that cut the slab.
    let mut s = scheduler(|c| {
        (c.encoder_rows, c.max_encode_work, c.max_num_batched_tokens) = (10, 5, 5);
    });
    s.add(picture(1, 10, 14, &[(1, 0, 3), (2, 4, 8)])).unwrap();
    assert_eq!(parts(&step(&mut s)), [(1, 0, 4, false)]);
    s.add(picture(2, 50, 9, &[(3, 0, 7)])).unwrap();
    // The slab has 10 rows, 3 hold image 1, which is done with; image 2 needs 8.
    let b = step(&mut s);
    assert_eq!((parts(&b), b.encode[0].rows), (vec![(1, 4, 5, false)], 8));
    // Now pin the slab by a younger sequence in mid-image, with an older one that comes back to need it.
    let mut s = scheduler(|c| {
        (c.encoder_rows, c.max_encode_work, c.max_num_batched_tokens) = (10, 5, 6);
    });
    s.add(picture(1, 10, 12, &[(1, 0, 2), (2, 3, 8)])).unwrap();
    s.add(picture(2, 50, 12, &[(1, 0, 2), (4, 2, 8)])).unwrap();
    let b = step(&mut s);
    assert_eq!(parts(&b), [(1, 0, 3, false), (2, 0, 2, false)]);
    let b = step(&mut s);
    assert_eq!((parts(&b), b.encode[0].span), (vec![(1, 3, 6, false)], 1));
    let b = step(&mut s);
    // 1 is done with its image after this step; 2 cannot have the rows before.
    assert_eq!(parts(&b), [(1, 9, 3, true)]);
    let b = step(&mut s);
    assert_eq!((parts(&b), b.encode[0].seq), (vec![(1, 12, 1, true), (2, 2, 5, false)], SeqId(2)));
    // 2 holds rows 0..8 pinned in mid-image and has the whole slab; it goes on undisturbed.
    assert_eq!(parts(&step(&mut s)), [(1, 13, 1, true), (2, 7, 5, true)]);
}

#[test]
fn an_abort_between_schedule_and_commit() {
    let mut s = scheduler(|_| ());
    s.add(text(1, 10, 4)).unwrap();
    s.add(text(2, 30, 4)).unwrap();
    let b = s.schedule().unwrap();
    let gone = s.abort(SeqId(1)).unwrap();
    assert_eq!((gone.id(), gone.state()), (SeqId(1), SequenceState::Finished));
    assert!(s.abort(SeqId(1)).is_none());
    s.commit(&b, &[(SeqId(1), 5, false), (SeqId(2), 6, false)]).unwrap();
    s.debug_validate().unwrap();
    assert_eq!(s.sequence(SeqId(2)).unwrap().output(), [6]);
    assert!(s.sequence(SeqId(1)).is_none());
    // The id is free again.
    s.add(text(1, 10, 4)).unwrap();
    assert!(s.abort(SeqId(1)).is_some() && s.abort(SeqId(2)).is_some() && s.schedule().is_none() && s.is_idle());
}

#[test]
fn a_step_that_failed_is_planned_again() {
    let mut s = scheduler(|_| ());
    s.add(picture(1, 10, 8, &[(1, 1, 6)])).unwrap();
    let failed = s.schedule().unwrap();
    let again = s.schedule().unwrap();
    assert_eq!((parts(&failed), failed.encode.len()), (parts(&again), again.encode.len()));
    assert!(matches!(s.commit(&failed, &[(SeqId(1), 7, false)]), Err(Error::Internal(_))));
    commit(&mut s, &again);
    assert!(matches!(s.commit(&again, &[(SeqId(1), 7, false)]), Err(Error::Internal(_))));
    assert_eq!(s.sequence(SeqId(1)).unwrap().output(), [7]);
}

#[test]
fn a_missing_token_is_an_error_and_does_not_wedge() {
    let mut s = scheduler(|_| ());
    s.add(text(1, 10, 8)).unwrap();
    let b = s.schedule().unwrap();
    assert!(matches!(s.commit(&b, &[]), Err(Error::Internal(_))));
    s.debug_validate().unwrap();
    assert_eq!(parts(&step(&mut s)), [(1, 7, 1, true)]);
}

#[test]
fn a_sequence_ends_when_told_or_at_its_limit() {
    let mut s = scheduler(|c| c.max_model_len = 10);
    assert_eq!(s.add(text(1, 10, 8)).unwrap(), 10);
    assert_eq!(s.add(SequenceSpec { max_new_tokens: usize::MAX, ..text(2, 30, 2) }).unwrap(), 10);
    let b = s.schedule().unwrap();
    let done = s.commit(&b, &[(SeqId(1), 5, false), (SeqId(2), 6, true)]).unwrap();
    assert_eq!((done.len(), done[0].id(), done[0].output()), (1, SeqId(2), [6].as_slice()));
    let b = s.schedule().unwrap();
    let done = s.commit(&b, &[(SeqId(1), 5, false)]).unwrap();
    assert_eq!((done.len(), done[0].output(), done[0].state()), (1, [5, 5].as_slice(), SequenceState::Finished));
    assert!(s.is_idle() && s.stats().pages_used == 0);
}

#[test]
fn what_can_never_run_is_refused_with_numbers() {
    let mut s = scheduler(|c| c.num_pages = 20);
    let refusal = |s: &mut Scheduler, spec| match s.add(spec) {
        Err(e @ (Error::Request(_) | Error::OutOfMemory { .. })) => e.to_string(),
        other => panic!("expected a refusal, got {other:?}"),
    };
    assert_eq!(
        refusal(&mut s, picture(1, 0, 100, &[(1, 0, 30), (2, 30, 30), (3, 70, 8)])),
        "request: prompt has 100 tokens (32 text, 68 image: 2 x 30 + 1 x 8), the context has 100 and the answer needs at \
         least 1: shorten the text, send fewer or smaller images, or raise --max-model-len"
    );
    // 66 prompt tokens and 15 of the answer: the last is not stored, 80 slots suffice.
    assert!(s.add(SequenceSpec { max_new_tokens: 15, ..text(1, 0, 66) }).is_ok());
    assert_eq!(
        refusal(&mut s, SequenceSpec { max_new_tokens: 16, ..text(2, 0, 66) }),
        "out of memory: KV cache: a prompt of 66 tokens with 16 answer tokens takes 21 pages of 4 tokens, there are 20; \
         lower --max-tokens or --max-model-len, or raise --gpu-memory-utilization: need 21000 bytes, 20000 free"
    );
    assert_eq!(
        refusal(&mut s, picture(2, 0, 50, &[(1, 0, 33)])),
        "request: image part 0 of 1 needs 33 encoder rows, the engine has 32: send a smaller image"
    );
    let mut heavy = picture(2, 0, 50, &[(1, 0, 3)]);
    heavy.images[0].work = 11;
    assert_eq!(
        refusal(&mut s, heavy),
        "request: image part 0 of 1 needs 11 units of encoder work, the engine has 10: send a smaller image"
    );
    assert_eq!(refusal(&mut s, text(2, 0, 0)), "request: prompt: expected at least one token, got none");
    let none = SequenceSpec { max_new_tokens: 0, ..text(2, 0, 3) };
    assert_eq!(refusal(&mut s, none), "request: --max-tokens: expected at least 1, got 0");
    assert!(matches!(s.add(text(1, 0, 3)), Err(Error::Internal(_))), "id 1 is live");
    assert_eq!(s.max_len(), 81);
    assert_eq!((s.stats().num_waiting, s.sequences().count()), (1, 1));
}

#[test]
fn sizes_that_cannot_work_are_refused() {
    for (change, what) in [
        ((|c: &mut SchedulerConfig| c.page_size = 0) as fn(&mut SchedulerConfig), "KV page size"),
        (|c| c.num_pages = 0, "number of KV pages"),
        (|c| c.max_num_seqs = 0, "--max-num-seqs"),
        (|c| c.max_num_batched_tokens = 0, "--max-num-batched-tokens"),
        (|c| c.max_model_len = 0, "--max-model-len"),
        (|c| c.position_components = 0, "position components"),
        (|c| c.num_pages = usize::MAX / 2, "KV slots"),
        (|c| c.encoder_rows = usize::MAX, "encoder rows"),
        (|c| c.max_model_len = usize::MAX, "--max-model-len"),
    ] {
        let mut c = config();
        change(&mut c);
        match Scheduler::new(c) {
            Err(Error::Request(m)) => assert!(m.contains(what), "{m}"),
            other => panic!("{what}: {other:?}"),
        }
    }
}
