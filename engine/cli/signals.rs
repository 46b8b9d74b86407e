//! SIGINT and SIGTERM end the program with the codes that shells expect: at once, or for commands that ask for it
//! at their next good moment.

use std::sync::OnceLock;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// What the first signal does instead of ending the process.
type Stop = Box<dyn Fn(i32) + Send + Sync>;

static STOP: OnceLock<Stop> = OnceLock::new();

/// Ends the process with 130 or 143 when the signal comes. What was written to stdout has been flushed before.
pub fn exit_on_signals() {
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else { return };
    let watch = move || {
        let mut asked = false;
        for signal in signals.forever() {
            match STOP.get() {
                Some(stop) if !asked => {
                    asked = true;
                    stop(signal);
                }
                // _exit, not exit: nothing that runs at exit may wait for a worker in the middle of a step. Stdout is
                // flushed after every write.
                _ => signal_hook::low_level::exit(128 + signal),
            }
        }
    };
    // Without the thread the signals' default actions stay in force.
    let _ = std::thread::Builder::new().name("signals".to_string()).spawn(watch);
}

/// From now on the first signal calls `stop` with its number, and the command ends by itself; the second ends the
/// process at once. The first call in a process counts.
pub fn stop_at_first_signal(stop: impl Fn(i32) + Send + Sync + 'static) {
    let _ = STOP.set(Box::new(stop));
}
