//! The CUDA driver, as much of it as the engine uses. The only file that names its bindings.
//!
//! In: device numbers, bytes, images of kernels, arguments. Out: devices, memory, streams, launches, with errors
//! that say what to do. Owns: the primary context of a GPU, allocations, modules. Not here: what is computed.
//!
//! The driver library is loaded when the first device is opened, and never linked: the same program runs where
//! there is none.

mod graph;
mod pinned;

use std::ffi::{CStr, CString, c_void};
use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use crate::{Error, Result};

pub use self::graph::CapturedGraph;
pub use self::pinned::{Event, PinnedBuffer};

/// One GPU and its primary context.
pub struct Device {
    ordinal: usize,
    device: sys::CUdevice,
    context: sys::CUcontext,
    name: String,
    compute_capability: (u32, u32),
    multiprocessors: u32,
}

// SAFETY: a context may be made current on any thread, and every call here makes it current first.
unsafe impl Send for Device {}
// SAFETY: as above; the driver's calls are thread-safe.
unsafe impl Sync for Device {}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device(cuda:{}, {})", self.ordinal, self.name)
    }
}

/// An error of the driver with what was tried: [`Error::OutOfMemory`] where it says so, otherwise [`Error::Device`].
fn failed(what: &str, error: DriverError) -> Error {
    if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        return out_of_memory(what, 0);
    }
    let text =
        |s: std::result::Result<&CStr, DriverError>| s.map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    // Faults of a kernel (700 to 719) and of the hardware stay with the context: every later call repeats them.
    let lost = (700..720).contains(&(error.0 as u32)) || error.0 == sys::CUresult::CUDA_ERROR_ECC_UNCORRECTABLE;
    let next = if lost {
        "; the GPU's state is lost to this process, start it again (dmesg and nvidia-smi say more)"
    } else {
        ""
    };
    Error::Device(format!("cuda: {what}: {} ({}){next}", text(error.error_name()), text(error.error_string())))
}

/// `need` is 0 where the driver does not say how much it wanted.
fn out_of_memory(what: &str, need: usize) -> Error {
    let free = result::mem_get_info().map_or(0, |(free, _)| free as u64);
    Error::OutOfMemory { what: format!("{what} on the GPU"), need: need as u64, free }
}

/// Everything of the driver that is called below. The bindings panic at the first call of a function that the library
/// lacks, so a library that is too old, or something else of that name, is found here.
const FUNCTIONS: &[&CStr] = &[
    c"cuCtxSetCurrent",
    c"cuCtxSynchronize",
    c"cuDeviceGet",
    c"cuDeviceGetAttribute",
    c"cuDeviceGetCount",
    c"cuDeviceGetName",
    c"cuDevicePrimaryCtxRelease_v2",
    c"cuDevicePrimaryCtxRetain",
    c"cuDriverGetVersion",
    c"cuEventCreate",
    c"cuEventDestroy_v2",
    c"cuEventRecord",
    c"cuEventSynchronize",
    c"cuFuncSetAttribute",
    c"cuGetErrorName",
    c"cuGetErrorString",
    c"cuGraphDestroy",
    c"cuGraphExecDestroy",
    c"cuGraphInstantiateWithFlags",
    c"cuGraphLaunch",
    c"cuInit",
    c"cuLaunchKernel",
    c"cuMemAlloc_v2",
    c"cuMemFreeHost",
    c"cuMemFree_v2",
    c"cuMemGetInfo_v2",
    c"cuMemHostAlloc",
    c"cuMemcpyDtoHAsync_v2",
    c"cuMemcpyHtoDAsync_v2",
    c"cuMemsetD8Async",
    c"cuModuleGetFunction",
    c"cuModuleLoadData",
    c"cuModuleUnload",
    c"cuStreamBeginCapture_v2",
    c"cuStreamCreate",
    c"cuStreamDestroy_v2",
    c"cuStreamEndCapture",
    c"cuStreamSynchronize",
];

/// Loads the driver library, once, and starts it.
fn start() -> Result<()> {
    // SAFETY: only asks the dynamic linker whether a library of that name loads.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::Device(
            "cuda: no NVIDIA driver (libcuda.so.1 cannot be loaded); install the driver, in a container start it with \
             --gpus all, or use --device cpu"
                .into(),
        ));
    }
    // SAFETY: the library was found just now; symbols are looked up and not called.
    let lacks = |name: &&CStr| unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.to_bytes_with_nul()) }.is_err();
    if let Some(name) = FUNCTIONS.iter().copied().find(lacks) {
        return Err(Error::Device(format!(
            "cuda: the driver library has no {}: it is too old, or no NVIDIA driver; install driver 525 or later, or \
             use --device cpu",
            name.to_string_lossy()
        )));
    }
    result::init().map_err(|e| match e.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => no_device(0),
        _ => match failed("the driver does not start", e) {
            Error::Device(text) => Error::Device(format!("{text}; see nvidia-smi, or use --device cpu")),
            other => other,
        },
    })
}

fn no_device(count: usize) -> Error {
    Error::Device(format!(
        "cuda: the driver shows {count} usable GPUs; see nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu"
    ))
}

/// The newest CUDA version that the driver knows, `(12, 8)`.
pub fn driver_version() -> Result<(u32, u32)> {
    start()?;
    let mut version = 0;
    // SAFETY: writes one int.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(|e| failed("the driver's version", e))?;
    Ok((version as u32 / 1000, version as u32 % 1000 / 10))
}

impl Device {
    /// How many GPUs the driver shows. Errors: no driver.
    pub fn count() -> Result<usize> {
        start()?;
        let count = result::device::get_count().map_err(|e| failed("counting GPUs", e))?;
        Ok(count.max(0) as usize)
    }

    /// Opens a GPU: its primary context, shared with every other user in this process.
    pub fn open(ordinal: usize) -> Result<Arc<Device>> {
        let count = Device::count()?;
        if count == 0 {
            return Err(no_device(0));
        }
        if ordinal >= count {
            return Err(Error::Device(format!(
                "cuda:{ordinal}: the driver shows {count} GPUs (cuda:0 to cuda:{}); see CUDA_VISIBLE_DEVICES",
                count - 1
            )));
        }
        let device = result::device::get(ordinal as i32).map_err(|e| failed("opening the GPU", e))?;
        let name = result::device::get_name(device).map_err(|e| failed("its name", e))?;
        use sys::CUdevice_attribute_enum as Attribute;
        let attribute = |a| {
            // SAFETY: `device` came from the driver.
            unsafe { result::device::get_attribute(device, a) }.map_err(|e| failed("its attributes", e))
        };
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        // SAFETY: `device` came from the driver; released in drop.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(|e| failed("opening the GPU", e))?;
        let device = Device {
            ordinal,
            device,
            context,
            name,
            compute_capability: (major.max(0) as u32, minor.max(0) as u32),
            multiprocessors: multiprocessors.max(0) as u32,
        };
        device.bind()?;
        Ok(Arc::new(device))
    }

    /// Makes the context current on this thread, as every call below needs.
    fn bind(&self) -> Result<()> {
        // SAFETY: the context lives as long as self.
        unsafe { result::ctx::set_current(self.context) }.map_err(|e| failed("making the GPU current", e))
    }

    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// In the vendor's words.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// (8, 0) for an A100.
    pub fn compute_capability(&self) -> (u32, u32) {
        self.compute_capability
    }

    /// Streaming multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// (free, total) bytes of device memory now.
    pub fn memory(&self) -> Result<(u64, u64)> {
        self.bind()?;
        let (free, total) = result::mem_get_info().map_err(|e| failed("memory in use", e))?;
        Ok((free as u64, total as u64))
    }

    /// Waits for all work of all streams; reports an error of an earlier launch.
    pub fn synchronize(&self) -> Result<()> {
        self.bind()?;
        result::ctx::synchronize().map_err(|e| failed("waiting for the GPU", e))
    }

    /// Allocates device memory, contents undefined. Errors: [`Error::OutOfMemory`] with need and free.
    pub fn alloc(self: &Arc<Self>, what: &str, bytes: usize) -> Result<DeviceBuffer> {
        self.bind()?;
        // The driver refuses a size of zero; an empty tensor is none of its business.
        // SAFETY: a plain allocation, freed once in drop.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => out_of_memory(what, bytes),
            _ => failed(&format!("allocating {what}"), e),
        })?;
        Ok(DeviceBuffer { device: self.clone(), address, bytes })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: retained in open. A failure at the end has no one to act on it.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// An allocation on a device, freed when dropped.
#[derive(Debug)]
pub struct DeviceBuffer {
    device: Arc<Device>,
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl DeviceBuffer {
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of it.
    pub fn all(&self) -> DeviceSlice<'_> {
        DeviceSlice { buffer: self, offset: 0, bytes: self.bytes }
    }

    /// A part. Errors: [`Error::Internal`] where it does not lie within.
    pub fn slice(&self, offset: usize, bytes: usize) -> Result<DeviceSlice<'_>> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(DeviceSlice { buffer: self, offset, bytes }),
            _ => Err(Error::Internal(format!("bytes {offset}..+{bytes} of a device buffer of {}", self.bytes))),
        }
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        // Where this fails the next call does too.
        let _ = self.device.bind();
        // SAFETY: allocated in Device::alloc and freed once. The driver waits for work that uses it; a failure
        // means that the context is gone, and the memory with it.
        let _ = unsafe { result::free_sync(self.address) };
    }
}

/// A part of a device buffer.
#[derive(Debug, Clone, Copy)]
pub struct DeviceSlice<'a> {
    buffer: &'a DeviceBuffer,
    offset: usize,
    bytes: usize,
}

impl DeviceSlice<'_> {
    /// The address that kernels take.
    pub fn address(&self) -> u64 {
        self.buffer.address + self.offset as u64
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies from host memory, in the stream's order; the host may reuse its memory at once.
    pub fn copy_from_host(&self, stream: &Stream, host: &[u8]) -> Result<()> {
        self.check(host.len())?;
        self.buffer.device.bind()?;
        // SAFETY: the range lies within the allocation; pageable memory is staged before the call returns.
        unsafe { result::memcpy_htod_async(self.address(), host, stream.stream) }
            .map_err(|e| failed("copying to the GPU", e))
    }

    /// Copies to host memory after everything before it in the stream, and waits for that.
    pub fn copy_to_host(&self, stream: &Stream, host: &mut [u8]) -> Result<()> {
        self.check(host.len())?;
        self.buffer.device.bind()?;
        // SAFETY: the range lies within the allocation, and `host` is kept until the stream has been waited for.
        unsafe { result::memcpy_dtoh_async(host, self.address(), stream.stream) }
            .map_err(|e| failed("copying from the GPU", e))?;
        stream.synchronize()
    }

    /// Fills with a byte, in the stream's order.
    pub fn fill(&self, stream: &Stream, byte: u8) -> Result<()> {
        self.buffer.device.bind()?;
        // SAFETY: the range lies within the allocation.
        unsafe { result::memset_d8_async(self.address(), byte, self.bytes, stream.stream) }
            .map_err(|e| failed("filling memory", e))
    }

    fn check(&self, host_bytes: usize) -> Result<()> {
        if host_bytes != self.bytes {
            return Err(Error::Internal(format!("a copy of {host_bytes} host bytes and {} device bytes", self.bytes)));
        }
        Ok(())
    }
}

/// A queue of work on a device, in order.
#[derive(Debug)]
pub struct Stream {
    device: Arc<Device>,
    stream: sys::CUstream,
}

// SAFETY: a stream may be used from any thread; the driver's calls are thread-safe.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream that does not wait for the default one.
    pub fn new(device: &Arc<Device>) -> Result<Stream> {
        device.bind()?;
        let stream =
            result::stream::create(result::stream::StreamKind::NonBlocking).map_err(|e| failed("a stream", e))?;
        Ok(Stream { device: device.clone(), stream })
    }

    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Waits for all work in the stream; reports an error of an earlier launch.
    pub fn synchronize(&self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the stream lives as long as self.
        unsafe { result::stream::synchronize(self.stream) }.map_err(|e| failed("waiting for the GPU", e))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Where this fails the next call does too.
        let _ = self.device.bind();
        // SAFETY: created in new and destroyed once; the driver finishes its work first.
        let _ = unsafe { result::stream::destroy(self.stream) };
    }
}

/// Loaded kernels of one file.
#[derive(Debug)]
pub struct Module {
    device: Arc<Device>,
    name: String,
    module: sys::CUmodule,
}

// SAFETY: a module may be used from any thread with its context current.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads machine code. `None` where the driver does not take it: made for another part, or by a newer toolkit.
    pub fn load_cubin(device: &Arc<Device>, name: &str, image: &[u8]) -> Result<Option<Module>> {
        if !image.starts_with(b"\x7fELF") {
            return Err(Error::Internal(format!("{name}: machine code that is no ELF file")));
        }
        use sys::CUresult as Code;
        // SAFETY: an ELF file states its own length.
        match unsafe { Module::load(device, name, image) }? {
            Ok(module) => Ok(Some(module)),
            Err(DriverError(
                Code::CUDA_ERROR_INVALID_IMAGE
                | Code::CUDA_ERROR_NO_BINARY_FOR_GPU
                | Code::CUDA_ERROR_INVALID_PTX
                | Code::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
                | Code::CUDA_ERROR_INVALID_SOURCE,
            )) => Ok(None),
            Err(e) => Err(failed(&format!("loading kernels of {name}"), e)),
        }
    }

    /// Loads PTX, which the driver compiles. It ends with a zero byte.
    pub fn load_ptx(device: &Arc<Device>, name: &str, image: &[u8]) -> Result<Module> {
        if !image.ends_with(b"\0") {
            return Err(Error::Internal(format!("{name}: PTX without a final zero byte")));
        }
        // SAFETY: the text ends with the zero byte just checked.
        unsafe { Module::load(device, name, image) }?.map_err(|e| {
            match failed(&format!("loading kernels of {name}"), e) {
                Error::Device(text) => Error::Device(format!(
                    "{text}; an NVIDIA driver of 525 or later is needed, update it or use --device cpu"
                )),
                other => other,
            }
        })
    }

    /// The outer error is one before the driver looks at the image.
    ///
    /// # Safety
    /// The image must say where it ends.
    unsafe fn load(device: &Arc<Device>, name: &str, image: &[u8]) -> Result<std::result::Result<Module, DriverError>> {
        device.bind()?;
        // SAFETY: the caller's.
        let loaded = unsafe { result::module::load_data(image.as_ptr().cast()) };
        Ok(loaded.map(|module| Module { device: device.clone(), name: name.to_string(), module }))
    }

    /// An entry by name.
    pub fn function(self: &Arc<Self>, entry: &str) -> Result<Function> {
        self.device.bind()?;
        let c_entry = CString::new(entry).map_err(|_| Error::Internal(format!("kernel name {entry:?}")))?;
        // SAFETY: the module is loaded and kept by the function.
        let function = unsafe { result::module::get_function(self.module, c_entry) }
            .map_err(|e| failed(&format!("kernel {entry} of {}", self.name), e))?;
        Ok(Function { module: self.clone(), entry: entry.to_string(), function })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // Where this fails the next call does too.
        let _ = self.device.bind();
        // SAFETY: loaded in load and unloaded once.
        let _ = unsafe { result::module::unload(self.module) };
    }
}

/// Blocks and threads of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchConfig {
    pub grid: (u32, u32, u32),
    pub block: (u32, u32, u32),
    /// Dynamic shared memory.
    pub shared_bytes: u32,
}

/// A kernel entry.
#[derive(Debug, Clone)]
pub struct Function {
    module: Arc<Module>,
    entry: String,
    function: sys::CUfunction,
}

// SAFETY: a function may be launched from any thread with its context current.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    pub fn entry(&self) -> &str {
        &self.entry
    }

    /// Allows more dynamic shared memory than the 48 KiB that every launch may have.
    pub fn allow_shared_bytes(&self, bytes: u32) -> Result<()> {
        self.module.device.bind()?;
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function belongs to a loaded module.
        unsafe { result::function::set_function_attribute(self.function, attribute, bytes as i32) }
            .map_err(|e| failed(&format!("{bytes} bytes of shared memory for {}", self.entry), e))
    }

    /// Puts a launch into the stream. The kernel takes one argument, the struct `args`, which is copied.
    ///
    /// # Safety
    /// `A` must be the kernel's parameter struct, and every address in it must stay allocated, large enough and
    /// free of conflicting access until the launch has run.
    pub unsafe fn launch<A: Copy>(&self, stream: &Stream, config: LaunchConfig, args: &A) -> Result<()> {
        let (grid, block) = (config.grid, config.block);
        if [grid.0, grid.1, grid.2, block.0, block.1, block.2].contains(&0) {
            return Err(Error::Internal(format!("{}: launched with {config:?}", self.entry)));
        }
        self.module.device.bind()?;
        let mut parameters = [std::ptr::from_ref(args).cast_mut().cast::<c_void>()];
        // SAFETY: the driver copies sizeof(A) bytes, as the caller vouches; the rest is the caller's.
        unsafe {
            result::launch_kernel(self.function, grid, block, config.shared_bytes, stream.stream, &mut parameters)
        }
        .map_err(|e| failed(&format!("launching {}", self.entry), e))
    }
}
