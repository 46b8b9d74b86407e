//! Calls into a library that asserts its invariants.
//!
//! In: a closure. Out: its result, or an error where it panicked. A file or text that breaks such an invariant ends one
//! request with one line, not the engine. Not here: our own faults, which stay loud.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

use crate::{Error, Result};

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; a panic in it prints nothing and becomes `Error::Config` about `what`.
pub fn no_panic<T>(what: &str, work: impl FnOnce() -> T) -> Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = take_hook();
        set_hook(Box::new(move |info| {
            if !QUIET.try_with(Cell::get).unwrap_or(false) {
                report(info);
            }
        }));
    });
    let outer = QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(outer);
    result.map_err(|_| Error::Config(format!("{what}: the tokenizers library fails on it; is the file damaged?")))
}

#[cfg(test)]
mod tests {
    use super::no_panic;

    #[test]
    fn a_panic_becomes_an_error() {
        let nested = no_panic("outer", || no_panic("inner", || panic!("inside")).map(|()| 1));
        assert!(nested.unwrap().unwrap_err().to_string().contains("inner"));
        assert_eq!(no_panic("fine", || 7).unwrap(), 7);
    }
}
