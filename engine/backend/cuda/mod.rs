//! The CUDA backend: a GPU through its driver, and the kernels compiled into this program.
//!
//! In: a device number. Out: device memory, streams, kernels ready to launch. Owns: the context of one GPU.
//! Not here: the driver's C interface (`driver.rs`, the only file that names its bindings), which kernels there
//! are (`kernels.rs`), one operation's launch (`ops/`).
//!
//! Nothing of CUDA is loaded before [`Cuda::open`] is called.

mod backend;
mod chooser;
pub mod driver;
pub mod kernels;
pub mod launch;
mod lower;
pub mod ops;
pub mod pack;
pub mod pack_patches;
pub mod pack_quantized;
mod program;
mod scratch;
mod staging;
mod upload;

use std::sync::Arc;

pub use self::backend::{CudaBackend, CudaOptions};
use self::driver::{Device, Function};
pub use self::driver::{DeviceBuffer, DeviceSlice, LaunchConfig, Stream};
use self::kernels::KernelCache;
pub use self::launch::Launch;
use crate::{Error, Result};

/// CUDA version of the oldest driver that takes the embedded PTX (build.rs lowers its language version to 8.0).
const OLDEST_DRIVER: (u32, u32) = (12, 0);

/// Floats to a multiple of which a row of activations is rounded up: 16 bytes.
pub const ROW_ALIGN: usize = 8;

/// A GPU with its kernels.
pub struct Cuda {
    device: Arc<Device>,
    kernels: KernelCache,
}

impl Cuda {
    /// Opens GPU `ordinal` of those that the driver shows.
    ///
    /// Errors: [`Error::Device`] with the next step: a program that was built without kernels, no
    /// driver, no such GPU, a GPU too old.
    pub fn open(ordinal: usize) -> Result<Cuda> {
        if kernels::KERNELS.is_empty() {
            return Err(Error::Device(
                "cuda: this program was built without CUDA kernels (no nvcc was found); run tools/cuda-toolchain.sh \
                 and build again, or use --device cpu"
                    .into(),
            ));
        }
        let version = driver::driver_version()?;
        if version < OLDEST_DRIVER {
            return Err(Error::Device(format!(
                "cuda: the driver is for CUDA {}.{}, the kernels need {}.{}: install a driver of 525 or later, or use \
                 --device cpu",
                version.0, version.1, OLDEST_DRIVER.0, OLDEST_DRIVER.1
            )));
        }
        let device = Device::open(ordinal)?;
        let (major, minor) = device.compute_capability();
        if major < 8 {
            return Err(Error::Device(format!(
                "cuda:{ordinal}: {} has compute capability {major}.{minor}, the kernels need 8.0 (Ampere) or later; use \
                 --device cpu",
                device.name()
            )));
        }
        Ok(Cuda { kernels: KernelCache::new(device.clone()), device })
    }

    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// What of the kernels runs on this GPU, in words.
    pub fn code(&self) -> String {
        match kernels::KERNELS.first().and_then(|k| k.cubin(self.device.compute_capability())) {
            Some(cubin) => format!("machine code for sm_{}", cubin.arch),
            None => "PTX for compute_80, compiled by the driver".to_string(),
        }
    }

    /// A kernel by file and entry name, loaded at its first use.
    pub fn kernel(&self, file: &'static str, entry: &str) -> Result<Function> {
        self.kernels.function(file, entry)
    }
}
