//! Log lines on stderr, by `-v` or RUST_LOG.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging once: warnings, with `-v` what is done, with `-vv` details. RUST_LOG wins.
pub fn start(verbose: u8) {
    let level = ["warn", "engine=info,warn", "engine=debug,info"][usize::from(verbose.min(2))];
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // A second start in one process, as in tests, keeps the first.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(color)
        .log_internal_errors(false)
        .try_init();
}
