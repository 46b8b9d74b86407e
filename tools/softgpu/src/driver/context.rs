//! Devices and contexts.
//! In: ordinals, handles. Out: attributes. Owns: the current context of each thread. Not here: memory, streams.

use super::*;
use std::cell::RefCell;

thread_local! {
    static CURRENT: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// The calling thread's context.
pub fn current() -> u64 {
    CURRENT.with_borrow(|c| c.last().copied().unwrap_or(0))
}

fn device(ordinal: i32) -> Result<(), Status> {
    if ordinal == 0 { Ok(()) } else { Err(INVALID_DEVICE) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut i32) -> Status {
    entry!("cuDeviceGetCount");
    call_always(|_| put(count, 1))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(to: *mut i32, ordinal: i32) -> Status {
    entry!("cuDeviceGet");
    call_always(|_| device(ordinal).and_then(|()| put(to, 0)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: i32, dev: i32) -> Status {
    entry!("cuDeviceGetName");
    call_always(|s| {
        device(dev)?;
        if name.is_null() || len < 1 {
            return Err(INVALID_VALUE);
        }
        let n = s.part.name.len().min(len as usize - 1);
        std::ptr::copy_nonoverlapping(s.part.name.as_ptr().cast(), name, n);
        put(name.add(n), 0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid(uuid: *mut [u8; 16], dev: i32) -> Status {
    entry!("cuDeviceGetUuid");
    call_always(|s| {
        device(dev)?;
        let mut v = *b"softgpu-device-0";
        v[15] = s.part.arch as u8;
        put(uuid, v)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], dev: i32) -> Status {
    entry!("cuDeviceGetUuid_v2");
    cuDeviceGetUuid(uuid, dev)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetPCIBusId(to: *mut c_char, len: i32, dev: i32) -> Status {
    entry!("cuDeviceGetPCIBusId");
    call_always(|_| {
        device(dev)?;
        let id = b"0000:00:00.0\0";
        if to.is_null() || (len as usize) < id.len() {
            return Err(INVALID_VALUE);
        }
        std::ptr::copy_nonoverlapping(id.as_ptr().cast(), to, id.len());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, dev: i32) -> Status {
    entry!("cuDeviceTotalMem_v2");
    call_always(|s| device(dev).and_then(|()| put(bytes, s.capacity as usize)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem(bytes: *mut usize, dev: i32) -> Status {
    entry!("cuDeviceTotalMem");
    cuDeviceTotalMem_v2(bytes, dev)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceComputeCapability(major: *mut i32, minor: *mut i32, dev: i32) -> Status {
    entry!("cuDeviceComputeCapability");
    call_always(|s| {
        device(dev)?;
        put(major, s.part.arch as i32 / 10)?;
        put(minor, s.part.arch as i32 % 10)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceCanAccessPeer(can: *mut i32, _a: i32, _b: i32) -> Status {
    entry!("cuDeviceCanAccessPeer");
    call_always(|_| put(can, 0))
}

/// `CUdevice_attribute` by number, as in cuda.h.
fn attribute(p: &Part, n: i32) -> i32 {
    let limit = i32::MAX;
    match n {
        1 => 1024,        // threads a block
        2 | 3 => 1024,    // block x, y
        4 => 64,          // block z
        5 => limit,       // grid x
        6 | 7 => 65535,   // grid y, z
        8 => 48 << 10,    // shared memory a block
        9 => 64 << 10,    // constant memory
        10 => 32,         // warp size
        11 => limit,      // pitch
        12 | 82 => 65536, // registers a block, a multiprocessor
        13 => p.clock_khz as i32,
        14 => 512,         // texture alignment
        15 | 31 | 41 => 1, // overlap, concurrent kernels, unified addressing
        16 => p.num_sms as i32,
        19 => 1, // can map host memory
        36 => p.memory.0 as i32,
        37 => p.memory.1 as i32,
        38 => p.l2_bytes as i32,
        39 => p.threads_per_sm as i32,
        40 => 3, // async engines
        75 => (p.arch / 10) as i32,
        76 => (p.arch % 10) as i32,
        78..=80 => 1, // priorities, global and local L1
        81 => p.shared_per_sm as i32,
        83 => 1,      // managed memory
        86 => 1,      // native atomics between host and device
        88..=91 => 1, // pageable access, concurrent managed access, preemption, host pointers
        95 => 1,      // cooperative launch
        97 => p.shared_optin as i32,
        106 => p.blocks_per_sm as i32,
        108 => (p.l2_bytes / 4 * 3) as i32, // persisting L2
        109 => (p.l2_bytes / 4 * 3) as i32, // access policy window
        111 => 1024,                        // reserved shared memory a block
        115 => 1,                           // memory pools
        _ => 0,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut i32, n: i32, dev: i32) -> Status {
    entry!("cuDeviceGetAttribute");
    call_always(|s| {
        device(dev)?;
        if n <= 0 {
            return Err(INVALID_VALUE);
        }
        put(value, attribute(&s.part, n))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(ctx: *mut u64, dev: i32) -> Status {
    entry!("cuDevicePrimaryCtxRetain");
    call_always(|s| {
        device(dev)?;
        s.start()?;
        s.primary_users += 1;
        put(ctx, PRIMARY)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRelease_v2(dev: i32) -> Status {
    entry!("cuDevicePrimaryCtxRelease_v2");
    call_always(|s| {
        device(dev)?;
        s.primary_users = s.primary_users.checked_sub(1).ok_or(INVALID_CONTEXT)?;
        if s.primary_users == 0 && s.contexts.is_empty() {
            s.end_context();
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRelease(dev: i32) -> Status {
    entry!("cuDevicePrimaryCtxRelease");
    cuDevicePrimaryCtxRelease_v2(dev)
}

/// Everything the context owned goes, and with it a fault.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxReset_v2(dev: i32) -> Status {
    entry!("cuDevicePrimaryCtxReset_v2");
    call_always(|s| {
        device(dev)?;
        s.end_context();
        s.start()
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxReset(dev: i32) -> Status {
    entry!("cuDevicePrimaryCtxReset");
    cuDevicePrimaryCtxReset_v2(dev)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxSetFlags_v2(dev: i32, _flags: u32) -> Status {
    entry!("cuDevicePrimaryCtxSetFlags_v2");
    call_always(|_| device(dev))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxGetState(dev: i32, flags: *mut u32, active: *mut i32) -> Status {
    entry!("cuDevicePrimaryCtxGetState");
    call_always(|s| {
        device(dev)?;
        put(flags, 0)?;
        put(active, i32::from(s.primary_users > 0))
    })
}

fn create(dev: i32, ctx: *mut u64) -> Status {
    call(|s| {
        device(dev)?;
        s.start()?;
        let h = s.handle();
        s.contexts.insert(h, 0);
        CURRENT.with_borrow_mut(|c| c.push(h));
        // SAFETY: the caller's pointer, checked for null.
        unsafe { put(ctx, h) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxCreate_v2(ctx: *mut u64, _flags: u32, dev: i32) -> Status {
    entry!("cuCtxCreate_v2");
    create(dev, ctx)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxCreate_v3(ctx: *mut u64, _params: *mut u8, _n: i32, _flags: u32, dev: i32) -> Status {
    entry!("cuCtxCreate_v3");
    create(dev, ctx)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxCreate_v4(ctx: *mut u64, _params: *mut u8, _flags: u32, dev: i32) -> Status {
    entry!("cuCtxCreate_v4");
    create(dev, ctx)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxDestroy_v2(ctx: u64) -> Status {
    entry!("cuCtxDestroy_v2");
    call_always(|s| {
        s.contexts.remove(&ctx).ok_or(INVALID_CONTEXT)?;
        CURRENT.with_borrow_mut(|c| c.retain(|h| *h != ctx));
        if s.primary_users == 0 && s.contexts.is_empty() {
            s.end_context();
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetCurrent(ctx: u64) -> Status {
    entry!("cuCtxSetCurrent");
    call_always(|s| {
        if ctx != 0 && ctx != PRIMARY && !s.contexts.contains_key(&ctx) {
            return Err(INVALID_CONTEXT);
        }
        CURRENT.with_borrow_mut(|c| {
            c.pop();
            if ctx != 0 {
                c.push(ctx);
            }
        });
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxPushCurrent_v2(ctx: u64) -> Status {
    entry!("cuCtxPushCurrent_v2");
    call_always(|s| {
        if ctx != PRIMARY && !s.contexts.contains_key(&ctx) {
            return Err(INVALID_CONTEXT);
        }
        CURRENT.with_borrow_mut(|c| c.push(ctx));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxPopCurrent_v2(ctx: *mut u64) -> Status {
    entry!("cuCtxPopCurrent_v2");
    call_always(|_| {
        let h = CURRENT.with_borrow_mut(Vec::pop).ok_or(INVALID_CONTEXT)?;
        if ctx.is_null() { Ok(()) } else { put(ctx, h) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(ctx: *mut u64) -> Status {
    entry!("cuCtxGetCurrent");
    call_always(|_| put(ctx, current()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetDevice(dev: *mut i32) -> Status {
    entry!("cuCtxGetDevice");
    call_always(|_| if current() == 0 { Err(INVALID_CONTEXT) } else { put(dev, 0) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetApiVersion(_ctx: u64, version: *mut u32) -> Status {
    entry!("cuCtxGetApiVersion");
    call_always(|s| put(version, s.version as u32))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetId(ctx: u64, id: *mut u64) -> Status {
    entry!("cuCtxGetId");
    call_always(|_| put(id, if ctx == 0 { current() } else { ctx }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetFlags(flags: *mut u32) -> Status {
    entry!("cuCtxGetFlags");
    call_always(|_| put(flags, 0))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetFlags(_flags: u32) -> Status {
    entry!("cuCtxSetFlags");
    call_always(|_| Ok(()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSynchronize() -> Status {
    entry!("cuCtxSynchronize");
    call(|_| Ok(()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetLimit(_limit: i32, _value: usize) -> Status {
    entry!("cuCtxSetLimit");
    call(|_| Ok(()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetLimit(value: *mut usize, limit: i32) -> Status {
    entry!("cuCtxGetLimit");
    // Stack, printf buffer, heap.
    call(|_| put(value, [1 << 10, 1 << 20, 8 << 20].get(limit as usize).copied().unwrap_or(0)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCacheConfig(config: *mut i32) -> Status {
    entry!("cuCtxGetCacheConfig");
    call(|_| put(config, 0))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetCacheConfig(_config: i32) -> Status {
    entry!("cuCtxSetCacheConfig");
    call(|_| Ok(()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetStreamPriorityRange(least: *mut i32, greatest: *mut i32) -> Status {
    entry!("cuCtxGetStreamPriorityRange");
    call(|_| {
        if !least.is_null() {
            put(least, 0)?;
        }
        if greatest.is_null() { Ok(()) } else { put(greatest, -5) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxResetPersistingL2Cache() -> Status {
    entry!("cuCtxResetPersistingL2Cache");
    call(|_| Ok(()))
}
