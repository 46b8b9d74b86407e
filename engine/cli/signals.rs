//! SIGINT and SIGTERM end the program at once with the codes that shells expect.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Ends the process with 130 or 143 when the signal comes. What was written to stdout has been flushed before.
pub fn exit_on_signals() {
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else { return };
    let watch = move || {
        if let Some(signal) = signals.forever().next() {
            // _exit, not exit: nothing that runs at exit may wait for a worker in the middle of a step. Stdout is flushed
            // after every write.
            signal_hook::low_level::exit(128 + signal);
        }
    };
    // Without the thread the signals' default actions stay in force.
    let _ = std::thread::Builder::new().name("signals".to_string()).spawn(watch);
}
