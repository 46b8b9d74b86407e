//! `engine inspect MODEL`: architecture, tensors by part, bytes, what fits. Nothing is loaded.

use std::process::ExitCode;

use clap::Args;

use super::{Outcome, output};
use crate::Result;
use crate::backend::{Backend, cpu::CpuBackend};
use crate::checkpoint::built_in;
use crate::checkpoint::hub::HubOptions;
use crate::inspect::summary::summarise;
use crate::models::{ALIASES, REGISTRY};
use crate::run::engine::resolve_model;

/// Flags of `engine inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// A directory, a hub id or an alias; without it, and as `demo`, the built-in model
    #[arg(value_name = "MODEL", env = "ENGINE_MODEL")]
    pub model: Option<String>,
    /// Print one JSON object
    #[arg(long, env = "ENGINE_JSON", value_parser = super::args::parse_switch)]
    pub json: bool,
    /// Print the known families and aliases
    #[arg(long)]
    pub list: bool,
    /// Branch, tag or commit on the hub
    #[arg(long, env = "ENGINE_REVISION")]
    pub revision: Option<String>,
    /// Use only what is in the hub cache
    #[arg(long, env = "ENGINE_OFFLINE", value_parser = super::args::parse_switch)]
    pub offline: bool,
}

/// Runs the command.
pub fn inspect(args: InspectArgs) -> Outcome {
    super::logging::start(0);
    let text = if args.list { list() } else { summary(&args)? };
    output::write(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn list() -> String {
    let built_in = format!("built in {}\n", built_in::NAME);
    let families = REGISTRY.iter().map(|e| format!("family {}\n", e.model_type));
    [built_in].into_iter().chain(families).chain(ALIASES.iter().map(|(a, id)| format!("alias  {a} = {id}\n"))).collect()
}

fn summary(args: &InspectArgs) -> Result<String> {
    let model = args.model.as_deref().unwrap_or(built_in::NAME);
    let env = HubOptions::from_env();
    let hub = HubOptions {
        revision: args.revision.clone().or(env.revision.clone()),
        offline: args.offline || env.offline,
        ..env
    };
    let summary = summarise(&resolve_model(model, &hub)?, CpuBackend::new().info().free_bytes)?;
    Ok(if args.json { format!("{}\n", summary.value) } else { format!("{summary}\n") })
}
