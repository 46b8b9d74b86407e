//! Steady decoding allocates no memory beyond the amortised growth of what it keeps.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use engine::schedule::{Scheduler, SchedulerConfig, SeqId, SequenceSpec};

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
fn decoding_does_not_allocate_per_step() {
    const SEQS: usize = 64;
    const STEPS: usize = 1024;
    let mut scheduler = Scheduler::new(SchedulerConfig {
        num_pages: 8192,
        max_num_seqs: SEQS,
        max_num_batched_tokens: 4096,
        ..SchedulerConfig::default()
    })
    .unwrap();
    for id in 0..SEQS as u64 {
        let prompt = vec![id as u32; 40];
        scheduler.add(SequenceSpec { id: SeqId(id), prompt, max_new_tokens: 2000, ..Default::default() }).unwrap();
    }
    let mut sampled = Vec::with_capacity(SEQS);
    let mut quiet = 0;
    let before = ALLOCATIONS.get();
    for step in 0..STEPS {
        let at = ALLOCATIONS.get();
        let batch = scheduler.schedule().unwrap();
        sampled.clear();
        sampled.extend(batch.sampling().map(|id| (id, step as u32, false)));
        scheduler.commit(&batch, &sampled).unwrap();
        scheduler.recycle(batch);
        quiet += (ALLOCATIONS.get() == at) as usize;
    }
    let total = ALLOCATIONS.get() - before;
    // A sequence doubles its tokens, pages and hashes a dozen times in all.
    assert!(total < SEQS * 20, "{total} allocations in {STEPS} steps of {SEQS} sequences");
    assert!(quiet > STEPS * 95 / 100, "{quiet} of {STEPS} steps allocate nothing");
}
