//! `engine doctor`: what this machine offers, what of it this program can use, and what would run where.
//!
//! In: the machine. Out: text or JSON on stdout. Exit code 0, or 6 where the asked device cannot be used.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::{Outcome, output};
use crate::Error;
use crate::backend::cuda::{Cuda, driver, kernels};
use crate::backend::{Backend, cpu::CpuBackend};
use crate::inspect::summary::bytes;
use crate::run::engine::Device;

/// Flags of `engine doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// Device that must be usable: auto, cpu, cuda or cuda:N
    #[arg(long, env = "ENGINE_DEVICE", default_value = "auto", value_parser = super::args::parse_device)]
    pub device: Device,
    /// Print one JSON object
    #[arg(long, env = "ENGINE_JSON", value_parser = super::args::parse_switch)]
    pub json: bool,
}

/// Runs the command.
pub fn doctor(args: DoctorArgs) -> Outcome {
    super::logging::start(0);
    let found = Found::look();
    let text = if args.json { format!("{}\n", found.json()) } else { found.to_string() };
    output::write(&text)?;
    let wanted = match args.device {
        Device::Cuda(index) => found.gpus.as_ref().map_or_else(
            |e| Err(e.clone()),
            |all| match all.get(index) {
                Some(gpu) => gpu.usable.clone(),
                None => Cuda::open(index).map(|_| ()),
            },
        ),
        Device::Auto | Device::Cpu => Ok(()),
    };
    wanted.map(|()| ExitCode::SUCCESS)
}

/// A GPU that the driver shows.
struct Gpu {
    index: usize,
    /// In the vendor's words; empty where it cannot be opened.
    description: String,
    /// Of this program's kernels: `sm_80`, or PTX for the driver's compiler.
    code: String,
    free: u64,
    total: u64,
    usable: Result<(), Error>,
}

/// The machine.
struct Found {
    cpu: String,
    cpu_free: u64,
    cpu_total: u64,
    driver: Result<(u32, u32), Error>,
    gpus: Result<Vec<Gpu>, Error>,
}

impl Found {
    fn look() -> Found {
        let cpu = CpuBackend::new().info();
        let driver = driver::driver_version();
        let gpus = driver::Device::count().map(|count| (0..count).map(Gpu::look).collect());
        Found { cpu: cpu.description, cpu_free: cpu.free_bytes, cpu_total: cpu.memory_bytes, driver, gpus }
    }

    /// What `--device auto` takes, as the engine does: the first GPU where it is usable.
    fn auto(&self) -> &str {
        match self.gpus.as_ref().ok().and_then(|g| g.first()) {
            Some(gpu) if gpu.usable.is_ok() => "cuda:0",
            _ => "cpu",
        }
    }

    fn json(&self) -> Value {
        let error = |e: &Error| json!({"error": e.to_string()});
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "cpu": {"description": self.cpu, "free_bytes": self.cpu_free, "memory_bytes": self.cpu_total},
            "driver": match &self.driver {
                Ok((major, minor)) => json!({"cuda": format!("{major}.{minor}")}),
                Err(e) => error(e),
            },
            "gpus": match &self.gpus {
                Ok(all) => all.iter().map(Gpu::json).collect(),
                Err(e) => error(e),
            },
            "kernels": {
                "files": kernels::KERNELS.len(),
                "toolchain": kernels::TOOLCHAIN,
                "ptx": if kernels::KERNELS.is_empty() { vec![] } else { vec!["compute_80"] },
                "cubins": archs(),
            },
            "auto": self.auto(),
        })
    }
}

impl Gpu {
    fn look(index: usize) -> Gpu {
        let opened = Cuda::open(index);
        let mut gpu = Gpu { index, description: String::new(), code: String::new(), free: 0, total: 0, usable: Ok(()) };
        match opened {
            Ok(cuda) => {
                let device = cuda.device();
                let (major, minor) = device.compute_capability();
                gpu.description = format!(
                    "{}, compute capability {major}.{minor}, {} multiprocessors",
                    device.name(),
                    device.multiprocessors()
                );
                gpu.code = cuda.code();
                match device.memory() {
                    Ok((free, total)) => (gpu.free, gpu.total) = (free, total),
                    Err(e) => gpu.usable = Err(e),
                }
            }
            Err(e) => gpu.usable = Err(e),
        }
        gpu
    }

    fn json(&self) -> Value {
        match &self.usable {
            Err(e) => json!({"name": format!("cuda:{}", self.index), "error": e.to_string()}),
            Ok(()) => json!({
                "name": format!("cuda:{}", self.index),
                "description": self.description,
                "free_bytes": self.free,
                "memory_bytes": self.total,
                "kernels": self.code,
                "dtypes": ["bf16", "f16"],
            }),
        }
    }
}

/// Parts for which there is machine code of every kernel.
fn archs() -> Vec<String> {
    let Some(first) = kernels::KERNELS.first() else { return Vec::new() };
    let everywhere = |arch: &&str| kernels::KERNELS.iter().all(|k| k.cubins.iter().any(|c| c.arch == *arch));
    first.cubins.iter().map(|c| c.arch).filter(everywhere).map(|a| format!("sm_{a}")).collect()
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "engine    {}", env!("CARGO_PKG_VERSION"))?;
        writeln!(f, "cpu       {}; {} of {} free", self.cpu, bytes(self.cpu_free), bytes(self.cpu_total))?;
        match &self.driver {
            Ok((major, minor)) => writeln!(f, "driver    CUDA {major}.{minor}")?,
            Err(e) => writeln!(f, "driver    none: {e}")?,
        }
        match kernels::TOOLCHAIN {
            Some(toolchain) => writeln!(
                f,
                "kernels   {} files, {}; {toolchain}",
                kernels::KERNELS.len(),
                std::iter::once("PTX for compute_80".to_string())
                    .chain(archs().into_iter().map(|a| format!("machine code for {a}")))
                    .collect::<Vec<_>>()
                    .join(", ")
            )?,
            None => writeln!(f, "kernels   none: built without nvcc; run tools/cuda-toolchain.sh and build again")?,
        }
        for gpu in self.gpus.as_ref().map(Vec::as_slice).unwrap_or_default() {
            let name = format!("cuda:{}", gpu.index);
            match &gpu.usable {
                Ok(()) => writeln!(
                    f,
                    "{name:<9} {}; {} of {} free; bf16 and f16 by {}",
                    gpu.description,
                    bytes(gpu.free),
                    bytes(gpu.total),
                    gpu.code
                )?,
                Err(e) => writeln!(f, "{name:<9} not usable: {e}")?,
            }
        }
        writeln!(f, "auto      --device auto runs on {}", self.auto())
    }
}
