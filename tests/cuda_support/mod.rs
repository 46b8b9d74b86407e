//! The GPU of a test, on whatever driver the dynamic linker finds: a real one, or the software GPU's.
//! In: nothing. Out: the device, or none after a check that its absence is explained. Not here: what runs on it.
#![allow(dead_code, reason = "each test program uses a part")]

use engine::Error;
use engine::backend::cuda::{Cuda, kernels};

/// Whether the dynamic linker finds a driver, asked without the engine.
pub fn driver_is_there() -> bool {
    // SAFETY: loads the library that the engine would load.
    unsafe { !libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL).is_null() }
}

/// The device, or none after a check that its absence is explained.
pub fn open() -> Option<Cuda> {
    let opened = Cuda::open(0);
    let wanted = if kernels::KERNELS.is_empty() {
        "tools/cuda-toolchain.sh"
    } else if !driver_is_there() {
        "libcuda.so.1 cannot be loaded"
    } else {
        return Some(opened.expect("a driver and kernels are there"));
    };
    let error = opened.err().expect("neither driver nor kernels");
    assert!(matches!(error, Error::Device(_)) && error.exit_code() == 6, "{error}");
    let text = error.to_string();
    assert!(text.contains(wanted) && text.contains("--device cpu") && !text.contains('\n'), "{text}");
    None
}
