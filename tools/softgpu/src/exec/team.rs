//! Worker threads that stay between launches.
//! In: work that several threads may do at once. Out: the work done. Owns: the threads.
//! Not here: what the work is (`grid`). A launch of a few small blocks is shorter than the start of a thread, and a decoder's
//! step is hundreds of such launches.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Work as the threads see it; it lives until `run` returns, which waits for all of them.
#[derive(Clone, Copy)]
struct Work(*const (dyn Fn() + Sync));
// SAFETY: the closure is `Sync`, and `run` keeps it alive while any thread uses it.
unsafe impl Send for Work {}

#[derive(Default)]
struct State {
    work: Option<Work>,
    /// Threads that may still join the work.
    places: usize,
    /// Threads at work.
    active: usize,
    /// Threads there are.
    threads: usize,
    panicked: bool,
}

static STATE: Mutex<State> = Mutex::new(State { work: None, places: 0, active: 0, threads: 0, panicked: false });
static WAKE: Condvar = Condvar::new();
static IDLE: Condvar = Condvar::new();
/// One launch at a time uses the team; others bring threads of their own.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// More helpers than this are made for the one launch (cooperative launches want a thread a block).
const MOST: usize = 64;

fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work` on this thread and on up to `helpers` others, and returns when none is in it any more.
pub fn run(helpers: usize, work: &(dyn Fn() + Sync)) {
    if helpers == 0 {
        return work();
    }
    if helpers > MOST || TAKEN.swap(true, Ordering::Acquire) {
        std::thread::scope(|s| {
            for _ in 0..helpers {
                s.spawn(work);
            }
            work();
        });
        return;
    }
    {
        let mut s = lock();
        while s.threads < helpers {
            // Without a thread the work is done by fewer.
            if std::thread::Builder::new().name("softgpu".into()).spawn(help).is_err() {
                break;
            }
            s.threads += 1;
        }
        // SAFETY: only the lifetime changes; `Finish` waits until no thread uses it.
        let work = unsafe { std::mem::transmute::<*const (dyn Fn() + Sync + '_), *const (dyn Fn() + Sync)>(work) };
        s.work = Some(Work(work));
        s.places = helpers;
    }
    WAKE.notify_all();
    let finish = Finish;
    work();
    drop(finish);
}

/// Ends the work: no thread joins it any more, and those in it are waited for, also when this thread panics.
struct Finish;

impl Drop for Finish {
    fn drop(&mut self) {
        let mut s = lock();
        (s.places, s.work) = (0, None);
        while s.active > 0 {
            s = IDLE.wait(s).unwrap_or_else(PoisonError::into_inner);
        }
        let panicked = std::mem::take(&mut s.panicked);
        drop(s);
        TAKEN.store(false, Ordering::Release);
        if panicked && !std::thread::panicking() {
            panic!("a worker thread panicked");
        }
    }
}

/// The life of a helper.
fn help() {
    let mut s = lock();
    loop {
        match s.work.filter(|_| s.places > 0) {
            None => s = WAKE.wait(s).unwrap_or_else(PoisonError::into_inner),
            Some(work) => {
                s.places -= 1;
                s.active += 1;
                drop(s);
                // SAFETY: `run` does not return before `active` is back at zero.
                let r = catch_unwind(AssertUnwindSafe(|| unsafe { (*work.0)() }));
                s = lock();
                s.active -= 1;
                s.panicked |= r.is_err();
                if s.active == 0 {
                    IDLE.notify_all();
                }
            }
        }
    }
}
