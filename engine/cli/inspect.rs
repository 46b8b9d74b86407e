//! `engine inspect MODEL`: architecture, tensors by part, bytes, what fits. Nothing is loaded.

use std::process::ExitCode;

use clap::Args;

use super::{Outcome, output};
use crate::backend::{Backend, cpu::CpuBackend};
use crate::checkpoint::hub::HubOptions;
use crate::inspect::summary::summarise;
use crate::models::{ALIASES, REGISTRY};
use crate::run::engine::resolve_model;
use crate::{Error, Result};

/// Flags of `engine inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// A directory, a hub id or an alias
    #[arg(value_name = "MODEL", env = "ENGINE_MODEL", required_unless_present = "list")]
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
    let families = REGISTRY.iter().map(|e| format!("family {}\n", e.model_type));
    families.chain(ALIASES.iter().map(|(a, id)| format!("alias  {a} = {id}\n"))).collect()
}

fn summary(args: &InspectArgs) -> Result<String> {
    let model = args.model.as_deref().ok_or_else(|| Error::Request("MODEL: not given".to_string()))?;
    let env = HubOptions::from_env();
    let hub = HubOptions {
        revision: args.revision.clone().or(env.revision.clone()),
        offline: args.offline || env.offline,
        ..env
    };
    let summary = summarise(&resolve_model(model, &hub)?, CpuBackend::new().info().free_bytes)?;
    Ok(if args.json { format!("{}\n", summary.value) } else { format!("{summary}\n") })
}
