//! A launch made once and put into a stream many times.
//!
//! In: a kernel, its grid, the bytes of its argument struct. Out: work in a stream. Owns: the arguments. Not here:
//! how an operation chooses them (`ops/`).

use super::driver::{Function, LaunchConfig, Stream};
use crate::{Error, Result};

/// Room for the largest argument struct of `kernels/`.
const MAX_ARGS_BYTES: usize = 256;

/// The argument struct of a kernel, as bytes.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Args([u8; MAX_ARGS_BYTES]);

/// A kernel with everything that its launch needs. What varies from step to step lies in device memory, so the same
/// launch serves every batch of its bucket, inside a captured graph too.
#[derive(Clone)]
pub struct Launch {
    function: Function,
    config: LaunchConfig,
    args: Args,
}

impl Launch {
    /// Errors: [`Error::Internal`] for an empty grid or a struct that is too large; the driver's where the kernel may
    /// not have that much shared memory.
    ///
    /// # Safety
    /// `args` must be the kernel's argument struct without padding bytes, and every address in it must stay allocated
    /// and large enough for as long as this launch is enqueued.
    pub unsafe fn new<A: bytemuck::Pod>(function: Function, config: LaunchConfig, args: &A) -> Result<Launch> {
        let ((gx, gy, gz), (bx, by, bz)) = (config.grid, config.block);
        if [gx, gy, gz, bx, by, bz].contains(&0) {
            return Err(Error::Internal(format!("{}: launched with {config:?}", function.entry())));
        }
        let bytes = bytemuck::bytes_of(args);
        let mut room = Args([0; MAX_ARGS_BYTES]);
        let Some(place) = room.0.get_mut(..bytes.len()) else {
            return Err(Error::Internal(format!("{}: arguments of {} bytes", function.entry(), bytes.len())));
        };
        place.copy_from_slice(bytes);
        if config.shared_bytes > 48 << 10 {
            function.allow_shared_bytes(config.shared_bytes)?;
        }
        Ok(Launch { function, config, args: room })
    }

    /// The kernel's entry.
    pub fn entry(&self) -> &str {
        self.function.entry()
    }

    pub fn config(&self) -> LaunchConfig {
        self.config
    }

    /// Puts the launch into the stream.
    pub fn enqueue(&self, stream: &Stream) -> Result<()> {
        // SAFETY: the driver copies as many bytes as the kernel's struct has, which `new` was given; its caller vouches
        // for the addresses.
        unsafe { self.function.launch(stream, self.config, &self.args) }
    }
}
