//! Choosing a token allocates nothing, whatever the settings.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use engine::run::logits::LogitsProcessors;
use engine::run::sampler::Sampler;
use engine::run::sampling_params::SamplingParams;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: as required of our caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: as required of our caller.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_step_allocates_nothing() {
    const VOCAB: usize = 32_003;
    let everything = SamplingParams {
        temperature: 0.8,
        top_k: 5000,
        top_p: 0.95,
        min_p: 0.01,
        repetition_penalty: 1.1,
        no_repeat_ngram_size: 3,
        bad_words_ids: vec![vec![32_000], vec![5, 6]],
        min_new_tokens: 10,
        eos_token_id: vec![2],
        max_tokens: 600,
        ..SamplingParams::default()
    };
    for params in [SamplingParams::default(), everything] {
        let before = ALLOCATIONS.get();
        let mut sampler = Sampler::new(VOCAB);
        let mut processors = LogitsProcessors::new(&params, &[1, 2, 3, 31_999]);
        let mut row = vec![0.0f32; VOCAB];
        assert!(ALLOCATIONS.get() > before, "the counter counts");
        let before = ALLOCATIONS.get();
        for position in 0..200u64 {
            for (i, logit) in row.iter_mut().enumerate() {
                *logit = ((i as u64).wrapping_mul(position + 7919) % 1013) as f32 / 150.0;
            }
            processors.apply(&mut row);
            let sampled = sampler.sample(&mut row, &params, position).unwrap();
            processors.observe(sampled.token);
        }
        assert_eq!(ALLOCATIONS.get() - before, 0);
    }
}
