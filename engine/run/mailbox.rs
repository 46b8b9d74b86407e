//! The channel from the worker thread to one request's owner: blocking, polled or with a waker.
//!
//! In: events. Out: the same, in order. Owns: the queue. Not here: what the events mean.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use super::request::EventResult;

#[derive(Default)]
struct Inner {
    events: VecDeque<EventResult>,
    closed: bool,
    cancelled: bool,
    waker: Option<Waker>,
}

/// Both ends of the channel; clones share it.
#[derive(Clone, Default)]
pub struct Mailbox {
    shared: Arc<(Mutex<Inner>, Condvar)>,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while the lock is held leaves a queue that is still whole.
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self, mut inner: MutexGuard<'_, Inner>) {
        let waker = inner.waker.take();
        drop(inner);
        self.shared.1.notify_all();
        if let Some(w) = waker {
            w.wake();
        }
    }

    /// Adds an event; ignored after [`Mailbox::close`].
    pub fn push(&self, event: EventResult) {
        let mut inner = self.lock();
        if !inner.closed {
            inner.events.push_back(event);
        }
        self.notify(inner);
    }

    /// No more events will come.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        self.notify(inner);
    }

    /// The reader is no longer interested.
    pub fn cancel(&self) {
        self.lock().cancelled = true;
    }

    pub fn is_cancelled(&self) -> bool {
        self.lock().cancelled
    }

    /// The next event; `None` when there are no more. Waits.
    pub fn next(&self) -> Option<EventResult> {
        let mut inner = self.lock();
        loop {
            if let Some(e) = inner.events.pop_front() {
                return Some(e);
            }
            if inner.closed {
                return None;
            }
            inner = self.shared.1.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// As [`Mailbox::next`], for at most `timeout`; `Poll::Pending` when nothing came.
    pub fn next_within(&self, timeout: Duration) -> Poll<Option<EventResult>> {
        let inner = self.lock();
        let waiting = |i: &mut Inner| i.events.is_empty() && !i.closed;
        let (mut inner, _) =
            self.shared.1.wait_timeout_while(inner, timeout, waiting).unwrap_or_else(PoisonError::into_inner);
        match inner.events.pop_front() {
            Some(e) => Poll::Ready(Some(e)),
            None if inner.closed => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    /// The next event without waiting; when there is none now, `waker` is woken once there is.
    pub fn poll(&self, waker: &Waker) -> Poll<Option<EventResult>> {
        let mut inner = self.lock();
        match inner.events.pop_front() {
            Some(e) => Poll::Ready(Some(e)),
            None if inner.closed => Poll::Ready(None),
            None => {
                inner.waker = Some(waker.clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;
    use crate::Error;
    use crate::run::request::Event;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn token(token_id: u32) -> EventResult {
        Ok(Event::Token { token_id, text: String::new() })
    }

    #[test]
    fn events_arrive_in_order_across_threads_and_end() {
        let m = Mailbox::default();
        let sender = m.clone();
        let thread = std::thread::spawn(move || {
            (0..100).for_each(|i| sender.push(token(i)));
            sender.push(Err(Error::Internal("x".into())));
            sender.close();
            sender.push(token(1000));
        });
        for i in 0..100 {
            assert!(matches!(m.next(), Some(Ok(Event::Token { token_id, .. })) if token_id == i));
        }
        assert!(matches!(m.next(), Some(Err(_))));
        thread.join().unwrap();
        assert!(m.next().is_none());
    }

    #[test]
    fn a_waker_is_woken_once_per_registration() {
        let m = Mailbox::default();
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(count.clone());
        assert!(m.poll(&waker).is_pending());
        m.push(token(1));
        m.push(token(2));
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(matches!(m.poll(&waker), Poll::Ready(Some(_))));
        assert!(m.next_within(Duration::ZERO).is_ready());
        assert!(m.next_within(Duration::ZERO).is_pending());
        m.close();
        assert!(matches!(m.poll(&waker), Poll::Ready(None)));
    }
}
