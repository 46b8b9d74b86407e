//! Memory: allocation, pools, copies, fills.
//! In: device and host addresses. Out: bytes moved. Owns: which side an address is on. Not here: the address space (`crate::memory`).

use super::graph::Op;
use super::*;
use crate::memory::{MemoryError, Use};
use std::ffi::c_void;

fn status(e: MemoryError, what: &str, address: u64) -> Status {
    match e {
        MemoryError::OutOfMemory => OUT_OF_MEMORY,
        MemoryError::DoubleFree => {
            say(&format!("{what}: double free of {address:#x}"));
            INVALID_VALUE
        }
        MemoryError::NotAllocated => {
            say(&format!("{what}: {address:#x} is not the start of an allocation"));
            INVALID_VALUE
        }
    }
}

impl State {
    fn allocate(&mut self, bytes: usize, kind: Use) -> Result<u64, Status> {
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        self.memory()?.alloc(bytes as u64, kind).map_err(|e| status(e, "cuMemAlloc", 0))
    }

    fn release(&mut self, address: u64, what: &str) -> Result<(), Status> {
        if address == 0 {
            return Ok(());
        }
        self.memory()?.free(address).map_err(|e| status(e, what, address))
    }

    /// Copies `n` bytes between any two addresses; device ranges must lie inside allocations.
    pub fn copy(&mut self, to: u64, from: u64, n: u64, what: &str) -> Result<(), Status> {
        if n == 0 {
            return Ok(());
        }
        let m = self.memory()?;
        let (device_to, device_from) = (m.reserved(to), m.reserved(from));
        for (address, device) in [(to, device_to), (from, device_from)] {
            if address == 0 || device && !m.contains(address, n) {
                let text = match m.find(address) {
                    Some(a) => format!("it leaves the allocation of {} bytes at {:#x}", a.bytes, a.start),
                    None => "no allocation is there".to_string(),
                };
                say(&format!("{what}: {n} bytes at {address:#x}: {text}"));
                return Err(INVALID_VALUE);
            }
        }
        // SAFETY: device ranges were checked; host ranges are the caller's promise.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, n as usize) };
        match (device_to, device_from) {
            (true, true) => m.copy_shadow(to, from, n),
            (true, false) => m.mark_initialised(to, n),
            _ => {}
        }
        // Page-locked memory has addresses that kernels may use and is the host's all the same.
        let on_device = |address: u64| m.find(address).is_some_and(|a| a.kind != Use::Host);
        let (device_to, device_from) = (device_to && on_device(to), device_from && on_device(from));
        self.report.copied(device_to, device_from, n);
        Ok(())
    }

    /// Fills `n` elements of `width` bytes.
    pub fn fill(&mut self, to: u64, value: u32, width: u32, n: u64) -> Result<(), Status> {
        let bytes = n.checked_mul(u64::from(width)).ok_or(INVALID_VALUE)?;
        if bytes == 0 {
            return Ok(());
        }
        let m = self.memory()?;
        if !m.contains(to, bytes) || to % u64::from(width) != 0 {
            say(&format!("cuMemset: {bytes} bytes at {to:#x} are not inside an allocation"));
            return Err(INVALID_VALUE);
        }
        // SAFETY: inside an allocation, aligned.
        unsafe {
            match width {
                1 => std::ptr::write_bytes(to as *mut u8, value as u8, n as usize),
                2 => std::slice::from_raw_parts_mut(to as *mut u16, n as usize).fill(value as u16),
                _ => std::slice::from_raw_parts_mut(to as *mut u32, n as usize).fill(value),
            }
        }
        m.mark_initialised(to, bytes);
        Ok(())
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Status {
    entry!("cuMemGetInfo_v2");
    call(|s| {
        let (f, t) = s.memory()?.info();
        put(free, f as usize)?;
        put(total, t as usize)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(to: *mut u64, bytes: usize) -> Status {
    entry!("cuMemAlloc_v2");
    call(|s| s.allocate(bytes, Use::Device).and_then(|a| put(to, a)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocPitch_v2(
    to: *mut u64,
    pitch: *mut usize,
    width: usize,
    height: usize,
    _element: u32,
) -> Status {
    entry!("cuMemAllocPitch_v2");
    call(|s| {
        let p = width.next_multiple_of(512);
        let a = s.allocate(p.checked_mul(height).ok_or(INVALID_VALUE)?, Use::Device)?;
        put(pitch, p)?;
        put(to, a)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFree_v2(address: u64) -> Status {
    entry!("cuMemFree_v2");
    call(|s| s.release(address, "cuMemFree"))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetAddressRange_v2(base: *mut u64, bytes: *mut usize, address: u64) -> Status {
    entry!("cuMemGetAddressRange_v2");
    call(|s| {
        let a = s.memory()?.find(address).cloned().ok_or(NOT_FOUND)?;
        if !base.is_null() {
            put(base, a.start)?;
        }
        if bytes.is_null() { Ok(()) } else { put(bytes, a.bytes as usize) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocManaged(to: *mut u64, bytes: usize, _flags: u32) -> Status {
    entry!("cuMemAllocManaged");
    call(|s| s.allocate(bytes, Use::Host).and_then(|a| put(to, a)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(to: *mut u64, bytes: usize, _flags: u32) -> Status {
    entry!("cuMemHostAlloc");
    call(|s| s.allocate(bytes, Use::Host).and_then(|a| put(to, a)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocHost_v2(to: *mut u64, bytes: usize) -> Status {
    entry!("cuMemAllocHost_v2");
    cuMemHostAlloc(to, bytes, 0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(address: u64) -> Status {
    entry!("cuMemFreeHost");
    call(|s| s.release(address, "cuMemFreeHost"))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostGetDevicePointer_v2(to: *mut u64, address: u64, _flags: u32) -> Status {
    entry!("cuMemHostGetDevicePointer_v2");
    call(|s| if s.memory()?.contains(address, 1) { put(to, address) } else { Err(INVALID_VALUE) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostGetFlags(flags: *mut u32, _address: u64) -> Status {
    entry!("cuMemHostGetFlags");
    call(|_| put(flags, 0))
}

/// Registered memory may be copied from and to, as any host memory; kernels cannot reach it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostRegister_v2(_address: *mut c_void, _bytes: usize, _flags: u32) -> Status {
    entry!("cuMemHostRegister_v2");
    call(|_| Ok(()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostUnregister(_address: *mut c_void) -> Status {
    entry!("cuMemHostUnregister");
    call(|_| Ok(()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAdvise_v2(_address: u64, _bytes: usize, _advice: i32, _location: u64) -> Status {
    entry!("cuMemAdvise_v2");
    call(|_| Ok(()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPrefetchAsync_v2(
    _address: u64,
    _bytes: usize,
    _location: u64,
    _flags: u32,
    _stream: u64,
) -> Status {
    entry!("cuMemPrefetchAsync_v2");
    call(|_| Ok(()))
}

/// `CUpointer_attribute`: 1 context, 2 memory type, 3 device pointer, 4 host pointer, 8 managed, 9 device ordinal.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuPointerGetAttribute(to: *mut c_void, attribute: i32, address: u64) -> Status {
    entry!("cuPointerGetAttribute");
    call(|s| {
        let a = s.memory()?.find(address).cloned().ok_or(INVALID_VALUE)?;
        match attribute {
            1 => put(to.cast(), PRIMARY),
            2 => put(to.cast(), if a.kind == Use::Host { 1u32 } else { 2 }),
            3 | 4 => put(to.cast(), address),
            8 => put(to.cast(), 0u32),
            9 => put(to.cast(), 0i32),
            11 => put(to.cast(), a.start),
            12 => put(to.cast(), a.bytes),
            _ => Err(NOT_SUPPORTED),
        }
    })
}

macro_rules! copies {
    ($($name:ident($to:ident: $tt:ty, $from:ident: $ft:ty) $async_name:ident;)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($to: $tt, $from: $ft, bytes: usize) -> Status {
            entry!(stringify!($name));
            call(|s| s.copy($to as u64, $from as u64, bytes as u64, stringify!($name)))
        }
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $async_name($to: $tt, $from: $ft, bytes: usize, stream: u64) -> Status {
            entry!(stringify!($async_name));
            call(|s| s.enqueue(stream, Op::Copy { to: $to as u64, from: $from as u64, bytes: bytes as u64 }))
        }
    )*};
}
copies! {
    cuMemcpyHtoD_v2(to: u64, from: *const c_void) cuMemcpyHtoDAsync_v2;
    cuMemcpyDtoH_v2(to: *mut c_void, from: u64) cuMemcpyDtoHAsync_v2;
    cuMemcpyDtoD_v2(to: u64, from: u64) cuMemcpyDtoDAsync_v2;
    cuMemcpy(to: u64, from: u64) cuMemcpyAsync;
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyPeer(to: u64, _to_ctx: u64, from: u64, _from_ctx: u64, bytes: usize) -> Status {
    entry!("cuMemcpyPeer");
    call(|s| s.copy(to, from, bytes as u64, "cuMemcpyPeer"))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyPeerAsync(
    to: u64,
    _to_ctx: u64,
    from: u64,
    _from_ctx: u64,
    bytes: usize,
    stream: u64,
) -> Status {
    entry!("cuMemcpyPeerAsync");
    call(|s| s.enqueue(stream, Op::Copy { to, from, bytes: bytes as u64 }))
}

/// CUDA_MEMCPY2D of cuda.h.
#[repr(C)]
pub struct Copy2d {
    from_x: usize,
    from_y: usize,
    from_kind: u32,
    from_host: u64,
    from_device: u64,
    from_array: u64,
    from_pitch: usize,
    to_x: usize,
    to_y: usize,
    to_kind: u32,
    to_host: u64,
    to_device: u64,
    to_array: u64,
    to_pitch: usize,
    width: usize,
    height: usize,
}

unsafe fn copy_2d(p: *const Copy2d, stream: Option<u64>) -> Status {
    call(|s| {
        let c = p.as_ref().ok_or(INVALID_VALUE)?;
        // Kinds: 1 host, 2 device, 3 array, 4 unified.
        if c.from_kind == 3 || c.to_kind == 3 {
            return Err(NOT_SUPPORTED);
        }
        let from = if c.from_kind == 1 { c.from_host } else { c.from_device };
        let to = if c.to_kind == 1 { c.to_host } else { c.to_device };
        for row in 0..c.height {
            let f = from + ((c.from_y + row) * c.from_pitch + c.from_x) as u64;
            let t = to + ((c.to_y + row) * c.to_pitch + c.to_x) as u64;
            match stream {
                Some(stream) => s.enqueue(stream, Op::Copy { to: t, from: f, bytes: c.width as u64 })?,
                None => s.copy(t, f, c.width as u64, "cuMemcpy2D")?,
            }
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpy2D_v2(p: *const Copy2d) -> Status {
    entry!("cuMemcpy2D_v2");
    copy_2d(p, None)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpy2DUnaligned_v2(p: *const Copy2d) -> Status {
    entry!("cuMemcpy2DUnaligned_v2");
    copy_2d(p, None)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpy2DAsync_v2(p: *const Copy2d, stream: u64) -> Status {
    entry!("cuMemcpy2DAsync_v2");
    copy_2d(p, Some(stream))
}

macro_rules! fills {
    ($($name:ident $async_name:ident $t:ty, $width:literal;)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(to: u64, value: $t, n: usize) -> Status {
            entry!(stringify!($name));
            call(|s| s.fill(to, u32::from(value), $width, n as u64))
        }
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $async_name(to: u64, value: $t, n: usize, stream: u64) -> Status {
            entry!(stringify!($async_name));
            call(|s| s.enqueue(stream, Op::Fill { to, value: u32::from(value), width: $width, n: n as u64 }))
        }
    )*};
}
fills! {
    cuMemsetD8_v2 cuMemsetD8Async u8, 1;
    cuMemsetD16_v2 cuMemsetD16Async u16, 2;
    cuMemsetD32_v2 cuMemsetD32Async u32, 4;
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocAsync(to: *mut u64, bytes: usize, _stream: u64) -> Status {
    entry!("cuMemAllocAsync");
    // While capturing, the allocation is made at once and its address stays valid for every launch of the graph.
    call(|s| s.allocate(bytes, Use::Device).and_then(|a| put(to, a)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocFromPoolAsync(to: *mut u64, bytes: usize, _pool: u64, stream: u64) -> Status {
    entry!("cuMemAllocFromPoolAsync");
    cuMemAllocAsync(to, bytes, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeAsync(address: u64, stream: u64) -> Status {
    entry!("cuMemFreeAsync");
    call(|s| {
        if s.capture_of(stream).is_some() {
            // The graph keeps using the memory at every launch.
            return Ok(());
        }
        s.release(address, "cuMemFreeAsync")
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetDefaultMemPool(pool: *mut u64, _dev: i32) -> Status {
    entry!("cuDeviceGetDefaultMemPool");
    call(|_| put(pool, POOL))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetMemPool(pool: *mut u64, _dev: i32) -> Status {
    entry!("cuDeviceGetMemPool");
    call(|_| put(pool, POOL))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceSetMemPool(_dev: i32, _pool: u64) -> Status {
    entry!("cuDeviceSetMemPool");
    call(|_| Ok(()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolCreate(pool: *mut u64, _props: *const c_void) -> Status {
    entry!("cuMemPoolCreate");
    call(|s| {
        let h = s.handle();
        put(pool, h)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolDestroy(_pool: u64) -> Status {
    entry!("cuMemPoolDestroy");
    call_always(|_| Ok(()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolTrimTo(_pool: u64, _keep: usize) -> Status {
    entry!("cuMemPoolTrimTo");
    call(|_| Ok(()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolSetAttribute(_pool: u64, _attribute: i32, _value: *mut c_void) -> Status {
    entry!("cuMemPoolSetAttribute");
    call(|_| Ok(()))
}

/// Pools keep nothing back: reserved equals used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolGetAttribute(_pool: u64, attribute: i32, value: *mut c_void) -> Status {
    entry!("cuMemPoolGetAttribute");
    call(|s| {
        let (free, total) = s.memory()?.info();
        let peak = s.memory()?.peak();
        match attribute {
            1..=3 => put(value.cast(), 1i32),
            4 => put(value.cast(), 0u64),
            5 | 7 => put(value.cast(), total - free),
            6 | 8 => put(value.cast(), peak),
            _ => Err(INVALID_VALUE),
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolSetAccess(_pool: u64, _map: *const c_void, _n: usize) -> Status {
    entry!("cuMemPoolSetAccess");
    call(|_| Ok(()))
}
