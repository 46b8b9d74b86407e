//! The command line: one file a command.
//!
//! In: arguments and environment. Out: exit codes of the contract. Answers go to stdout, everything else to stderr.

pub mod args;
pub mod bench;
pub mod caption;
pub mod chat;
pub mod doctor;
pub mod inspect;
pub mod logging;
pub mod output;
pub mod requests;
pub mod run;
pub mod signals;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::Error;

/// Vision-language inference: one image and a question, a folder to caption, a server.
#[derive(Debug, Parser)]
#[command(name = "engine", version, arg_required_else_help = true, args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer one prompt about images, or a file of requests
    Run(Box<run::RunArgs>),
    /// Talk in the terminal, several turns
    Chat(Box<chat::ChatArgs>),
    /// Caption folders of pictures; a run that was stopped goes on
    Caption(Box<caption::CaptionArgs>),
    /// Show what a checkpoint holds and what fits
    Inspect(inspect::InspectArgs),
    /// Show what this machine offers and what would run where
    Doctor(doctor::DoctorArgs),
    /// Measure kernels, or a model from image to last token
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

/// What a command ends with.
pub type Outcome = Result<ExitCode, Error>;

/// Runs the program and returns its exit code. `kernels` measures kernels; the list of their shapes is not the library's.
pub fn main(kernels: bench::MeasureKernels) -> ExitCode {
    signals::exit_on_signals();
    let outcome = match Cli::parse().command {
        Command::Run(args) => run::run(*args),
        Command::Chat(args) => chat::chat(*args),
        Command::Caption(args) => caption::caption(*args),
        Command::Inspect(args) => inspect::inspect(args),
        Command::Doctor(args) => doctor::doctor(args),
        Command::Bench(command) => bench::bench(command, kernels),
    };
    outcome.unwrap_or_else(|e| {
        output::message(format_args!("error: {e}"));
        ExitCode::from(e.exit_code())
    })
}
