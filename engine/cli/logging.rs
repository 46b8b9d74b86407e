//! Log lines on stderr, by `-v` or RUST_LOG.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// RUST_LOG, or warnings, with `-v` what is done, with `-vv` details.
fn filter(verbose: u8) -> EnvFilter {
    let level = ["warn", "engine=info,warn", "engine=debug,info"][usize::from(verbose.min(2))];
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level))
}

/// Starts logging once, a JSON object a line. Later starts have no effect.
pub fn start_json(verbose: u8) {
    let _ = tracing_subscriber::fmt()
        .json()
        .with_env_filter(filter(verbose))
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .try_init();
}

/// Starts logging once: warnings, with `-v` what is done, with `-vv` details. RUST_LOG wins.
pub fn start(verbose: u8) {
    let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // A second start in one process, as in tests, keeps the first.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter(verbose))
        .with_writer(std::io::stderr)
        .with_ansi(color)
        .log_internal_errors(false)
        .try_init();
}
