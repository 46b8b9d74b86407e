//! Launches and occupancy.
//! In: function handles, shapes, parameter pointers. Out: run kernels, block counts. Owns: the limits a launch must keep.
//! Not here: running (`gpu::run`), capture (`graph`).

use super::graph::Op;
use super::*;
use crate::gpu::Shape;
use std::ffi::c_void;

/// `CUlaunchConfig`.
#[repr(C)]
pub struct LaunchConfig {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: u64,
    attributes: *const c_void,
    num_attributes: u32,
}

impl State {
    fn check_shape(&self, f: &Function, shape: &Shape) -> Result<(), Status> {
        let k = &f.kernel;
        let fail = |text: String, e: Status| {
            say(&format!("launch of {}: {text}", k.name));
            Err(e)
        };
        let [gx, gy, gz] = shape.grid;
        let [bx, by, bz] = shape.block;
        if gx == 0 || gy == 0 || gz == 0 || gy > 65535 || gz > 65535 || gx > i32::MAX as u32 {
            return fail(format!("grid ({gx},{gy},{gz})"), INVALID_VALUE);
        }
        let threads = u64::from(bx) * u64::from(by) * u64::from(bz);
        if threads == 0 || threads > 1024 || bx > 1024 || by > 1024 || bz > 64 {
            return fail(format!("block ({bx},{by},{bz}): 1 to 1024 threads"), INVALID_VALUE);
        }
        if k.required_threads.is_some_and(|r| r != shape.block) {
            return fail(
                format!("block ({bx},{by},{bz}), the kernel requires {:?}", k.required_threads),
                INVALID_VALUE,
            );
        }
        if k.max_threads != 0 && threads > u64::from(k.max_threads) {
            return fail(
                format!("{threads} threads, __launch_bounds__ allows {}", k.max_threads),
                LAUNCH_OUT_OF_RESOURCES,
            );
        }
        if shape.shared > f.max_dynamic || shape.shared + k.static_shared > self.part.shared_optin {
            let text = format!(
                "{} bytes of dynamic shared memory, {} are allowed (cuFuncSetAttribute MAX_DYNAMIC_SHARED_SIZE_BYTES)",
                shape.shared, f.max_dynamic
            );
            return fail(text, INVALID_VALUE);
        }
        Ok(())
    }

    /// Runs a kernel now.
    pub fn run_kernel(&mut self, function: u64, shape: Shape, params: &[u8]) -> Result<(), Status> {
        let f = self.functions.get(&function).ok_or(INVALID_HANDLE)?;
        let k = f.kernel.clone();
        self.launches += 1;
        let (sms, number) = (self.part.num_sms, self.launches);
        let memory = self.memory.as_mut().ok_or(INVALID_CONTEXT)?;
        let mut print = |t: &str| {
            use std::io::Write;
            print!("{t}");
            let _ = std::io::stdout().flush();
        };
        let r = crate::gpu::run(&k, shape, params, memory, &self.options, sms, number, &mut print);
        match r {
            Ok(counts) => {
                self.report.launched(&k, counts);
                Ok(())
            }
            Err(fault) => {
                eprintln!("{fault}");
                self.sticky = fault.kind.cuda_error();
                let e = self.sticky;
                self.report.faults.push(*fault);
                Err(e)
            }
        }
    }

    unsafe fn launch(
        &mut self,
        function: u64,
        shape: Shape,
        stream: u64,
        params: *const *const c_void,
        extra: *const *const c_void,
    ) -> Result<(), Status> {
        let f = self.functions.get(&function).ok_or(INVALID_HANDLE)?;
        self.check_shape(f, &shape)?;
        let k = &f.kernel;
        let mut buffer = vec![0u8; k.param_bytes as usize];
        if !params.is_null() {
            for (n, p) in k.params.iter().enumerate() {
                let from = *params.add(n);
                if from.is_null() {
                    return Err(INVALID_VALUE);
                }
                let to = &mut buffer[p.offset as usize..(p.offset + p.bytes) as usize];
                std::ptr::copy_nonoverlapping(from.cast(), to.as_mut_ptr(), to.len());
            }
        } else if !extra.is_null() {
            // CU_LAUNCH_PARAM_BUFFER_POINTER, pointer, CU_LAUNCH_PARAM_BUFFER_SIZE, pointer to size, CU_LAUNCH_PARAM_END.
            let (mut at, mut from, mut n) = (extra, std::ptr::null::<u8>(), 0usize);
            loop {
                match *at as usize {
                    1 => from = (*at.add(1)).cast(),
                    2 => n = *(*at.add(1)).cast::<usize>(),
                    _ => break,
                }
                at = at.add(2);
            }
            if from.is_null() {
                return Err(INVALID_VALUE);
            }
            std::ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), n.min(buffer.len()));
        } else if !k.params.is_empty() {
            return Err(INVALID_VALUE);
        }
        self.enqueue(stream, Op::Kernel { function, shape, params: buffer })
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: u64,
    gx: u32,
    gy: u32,
    gz: u32,
    bx: u32,
    by: u32,
    bz: u32,
    shared: u32,
    stream: u64,
    params: *const *const c_void,
    extra: *const *const c_void,
) -> Status {
    entry!("cuLaunchKernel");
    call(|s| s.launch(function, Shape { grid: [gx, gy, gz], block: [bx, by, bz], shared }, stream, params, extra))
}

/// Blocks of a cooperative launch must wait for each other only when all fit the worker threads: grid-wide barriers spin.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchCooperativeKernel(
    function: u64,
    gx: u32,
    gy: u32,
    gz: u32,
    bx: u32,
    by: u32,
    bz: u32,
    shared: u32,
    stream: u64,
    params: *const *const c_void,
) -> Status {
    entry!("cuLaunchCooperativeKernel");
    call(|s| {
        let shape = Shape { grid: [gx, gy, gz], block: [bx, by, bz], shared };
        // All blocks must be resident: one worker thread each.
        let keep = s.options.threads;
        let blocks = [gx, gy, gz].iter().map(|g| u64::from(*g)).product::<u64>();
        if blocks > 1024 {
            say("a cooperative launch may have at most 1024 blocks here");
            return Err(720);
        }
        s.options.threads = keep.max(blocks as usize);
        let r = s.launch(function, shape, stream, params, std::ptr::null());
        s.options.threads = keep;
        r
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernelEx(
    config: *const LaunchConfig,
    function: u64,
    params: *const *const c_void,
    extra: *const *const c_void,
) -> Status {
    entry!("cuLaunchKernelEx");
    call(|s| {
        let c = config.as_ref().ok_or(INVALID_VALUE)?;
        let shape = Shape { grid: c.grid, block: c.block, shared: c.shared };
        s.launch(function, shape, c.stream, params, extra)
    })
}

type HostFunction = unsafe extern "C" fn(*mut c_void);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchHostFunc(stream: u64, f: Option<HostFunction>, argument: *mut c_void) -> Status {
    entry!("cuLaunchHostFunc");
    let mut run = None;
    let r = call(|s| {
        let f = f.ok_or(INVALID_VALUE)?;
        if s.capture_of(stream).is_some() {
            s.enqueue(stream, Op::Host { f, argument: argument as u64 })
        } else {
            run = Some(f);
            Ok(())
        }
    });
    // Outside the lock: the function may look at its own program's state for as long as it likes.
    if let Some(f) = run {
        f(argument);
    }
    r
}

fn blocks(s: &State, function: u64, threads: i32, shared: usize) -> Result<u32, Status> {
    let f = s.functions.get(&function).ok_or(INVALID_HANDLE)?;
    if threads <= 0 || threads > 1024 {
        return Err(INVALID_VALUE);
    }
    let total = f.kernel.static_shared + shared.min(1 << 30) as u32;
    if total > s.part.shared_optin {
        return Ok(0);
    }
    Ok(s.part.occupancy(threads as u32, f.kernel.registers, total).0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    n: *mut i32,
    function: u64,
    threads: i32,
    shared: usize,
) -> Status {
    entry!("cuOccupancyMaxActiveBlocksPerMultiprocessor");
    call(|s| put(n, blocks(s, function, threads, shared)? as i32))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    n: *mut i32,
    function: u64,
    threads: i32,
    shared: usize,
    _flags: u32,
) -> Status {
    entry!("cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags");
    cuOccupancyMaxActiveBlocksPerMultiprocessor(n, function, threads, shared)
}

type SharedOf = unsafe extern "C" fn(i32) -> usize;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxPotentialBlockSize(
    grid: *mut i32,
    block: *mut i32,
    function: u64,
    shared_of: Option<SharedOf>,
    shared: usize,
    limit: i32,
) -> Status {
    entry!("cuOccupancyMaxPotentialBlockSize");
    call(|s| {
        let most = s.functions.get(&function).ok_or(INVALID_HANDLE)?.kernel.max_threads;
        let most = if most == 0 { 1024 } else { most.min(1024) } as i32;
        let most = if limit > 0 { most.min(limit) } else { most };
        let mut best = (0, 0, 32);
        for threads in (32..=most.max(32)).step_by(32) {
            let bytes = shared_of.map_or(shared, |f| f(threads));
            let n = blocks(s, function, threads, bytes)? as i32;
            // More resident threads win; at a tie the larger block.
            best = best.max((n * threads, threads, n));
        }
        put(grid, best.2 * s.part.num_sms as i32)?;
        put(block, best.1)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxPotentialBlockSizeWithFlags(
    grid: *mut i32,
    block: *mut i32,
    function: u64,
    shared_of: Option<SharedOf>,
    shared: usize,
    limit: i32,
    _flags: u32,
) -> Status {
    entry!("cuOccupancyMaxPotentialBlockSizeWithFlags");
    cuOccupancyMaxPotentialBlockSize(grid, block, function, shared_of, shared, limit)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyAvailableDynamicSMemPerBlock(
    bytes: *mut usize,
    function: u64,
    num: i32,
    _threads: i32,
) -> Status {
    entry!("cuOccupancyAvailableDynamicSMemPerBlock");
    call(|s| {
        let f = s.functions.get(&function).ok_or(INVALID_HANDLE)?;
        if num <= 0 {
            return Err(INVALID_VALUE);
        }
        let each = (s.part.shared_per_sm / num as u32).saturating_sub(1024) / 128 * 128;
        put(bytes, each.min(s.part.shared_optin).saturating_sub(f.kernel.static_shared) as usize)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxActiveClusters(
    n: *mut i32,
    function: u64,
    config: *const LaunchConfig,
) -> Status {
    entry!("cuOccupancyMaxActiveClusters");
    call(|s| {
        let c = config.as_ref().ok_or(INVALID_VALUE)?;
        let threads = c.block.iter().product::<u32>() as i32;
        put(n, (blocks(s, function, threads, c.shared as usize)? * s.part.num_sms) as i32)
    })
}
