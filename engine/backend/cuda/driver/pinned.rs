//! Host memory that the GPU copies from and to by itself, and events that say when it has.
//!
//! In: bytes. Out: copies in a stream's order. Owns: the allocation. Not here: what the bytes mean.

use std::ops::Range;
use std::sync::Arc;

use super::{Device, DeviceSlice, Stream, failed, result, sys};
use crate::{Error, Result};

/// Page-locked host memory, zeroed; freed when dropped.
#[derive(Debug)]
pub struct PinnedBuffer {
    device: Arc<Device>,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for PinnedBuffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    /// Errors: [`Error::OutOfMemory`] where the host cannot lock so much memory.
    pub fn new(device: &Arc<Device>, what: &str, bytes: usize) -> Result<PinnedBuffer> {
        device.bind()?;
        // SAFETY: a plain allocation, freed once in drop.
        let start = unsafe { result::malloc_host(bytes.max(1), 0) }.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Error::OutOfMemory { what: format!("page-locked host memory for {what}"), need: bytes as u64, free: 0 }
            }
            _ => failed(&format!("page-locked host memory for {what}"), e),
        })?;
        // SAFETY: the driver gave `bytes` bytes.
        unsafe { start.cast::<u8>().write_bytes(0, bytes.max(1)) };
        Ok(PinnedBuffer { device: device.clone(), start: start.cast(), bytes })
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: allocated with that length and initialised; a copy into it is awaited before it is read.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }

    /// Copies a range to the GPU, in the stream's order.
    ///
    /// # Safety
    /// The range must not be written before the stream has come past this copy (an [`Event`] says so).
    pub unsafe fn copy_to_device(&self, range: Range<usize>, to: &DeviceSlice, stream: &Stream) -> Result<()> {
        let host = self.part(&range)?;
        to.check(host.len())?;
        self.device.bind()?;
        // SAFETY: both ranges lie within their allocations; the caller leaves the host's alone.
        unsafe { result::memcpy_htod_async(to.address(), host, stream.stream) }
            .map_err(|e| failed("copying to the GPU", e))
    }

    /// Copies from the GPU to the start of this, after everything before it in the stream.
    ///
    /// # Safety
    /// The bytes must not be read or written before the stream has come past this copy.
    pub unsafe fn copy_from_device(&mut self, from: &DeviceSlice, stream: &Stream) -> Result<()> {
        self.part(&(0..from.bytes()))?;
        self.device.bind()?;
        let host = &mut self.as_mut_slice()[..from.bytes()];
        // SAFETY: both ranges lie within their allocations; the caller leaves the host's alone.
        unsafe { result::memcpy_dtoh_async(host, from.address(), stream.stream) }
            .map_err(|e| failed("copying from the GPU", e))
    }

    fn part(&self, range: &Range<usize>) -> Result<&[u8]> {
        self.as_slice()
            .get(range.clone())
            .ok_or_else(|| Error::Internal(format!("bytes {range:?} of {} pinned ones", self.bytes)))
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        // Where this fails the next call does too.
        let _ = self.device.bind();
        // SAFETY: allocated in new and freed once. A failure means that the context is gone.
        let _ = unsafe { result::free_host(self.start.cast()) };
    }
}

/// A point in a stream that can be waited for.
#[derive(Debug)]
pub struct Event {
    device: Arc<Device>,
    event: sys::CUevent,
}

// SAFETY: an event may be used from any thread; the driver's calls are thread-safe.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event that has passed already.
    pub fn new(device: &Arc<Device>) -> Result<Event> {
        device.bind()?;
        let event =
            result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(|e| failed("an event", e))?;
        Ok(Event { device: device.clone(), event })
    }

    /// Stands for everything that is in the stream now.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        self.device.bind()?;
        // SAFETY: both live.
        unsafe { result::event::record(self.event, stream.stream) }.map_err(|e| failed("recording an event", e))
    }

    /// Waits until the GPU has come past the point of the last record.
    pub fn wait(&self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the event lives as long as self.
        unsafe { result::event::synchronize(self.event) }.map_err(|e| failed("waiting for the GPU", e))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // Where this fails the next call does too.
        let _ = self.device.bind();
        // SAFETY: created in new and destroyed once.
        let _ = unsafe { result::event::destroy(self.event) };
    }
}
