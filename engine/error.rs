//! Errors, sorted by who must act.
//!
//! In: what went wrong. Out: one line that names the object, what was expected, what was found and the
//! next step; an exit code. Not here: printing, which is the command's.

/// Result of everything in the crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, by who must act.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The request is at fault: flags, prompt, image, message list.
    #[error("request: {0}")]
    Request(String),
    /// A checkpoint's JSON files (config, generation_config, tokenizer, chat template) are at fault.
    #[error("config: {0}")]
    Config(String),
    /// Weight files are missing, damaged or of the wrong shape; downloads.
    #[error("checkpoint: {0}")]
    Checkpoint(String),
    /// The model as a whole cannot be run: unknown architecture, graph that does not verify.
    #[error("model: {0}")]
    Model(String),
    /// Valid, but not implemented here: a format, an op on a backend, an option.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// Memory does not suffice. Sizes in bytes; a need of 0 is one that nobody knows.
    #[error("out of memory: {what}{}", sizes(.need, .free))]
    OutOfMemory { what: String, need: u64, free: u64 },
    /// The device or its driver failed or is absent.
    #[error("device: {0}")]
    Device(String),
    /// An output cannot be written.
    #[error("output: {0}")]
    Output(String),
    /// A fault of the engine itself.
    #[error("internal: {0}")]
    Internal(String),
}

fn sizes(need: &u64, free: &u64) -> String {
    if *need == 0 { String::new() } else { format!(": need {need} bytes, {free} free") }
}

impl Error {
    /// Exit code of a command that ends with this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Internal(_) => 1,
            Error::Request(_) | Error::Unsupported(_) => 2,
            Error::Config(_) | Error::Checkpoint(_) | Error::Model(_) => 4,
            Error::OutOfMemory { .. } => 5,
            Error::Device(_) => 6,
            Error::Output(_) => 7,
        }
    }
}
