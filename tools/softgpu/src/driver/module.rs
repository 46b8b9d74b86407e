//! Modules, functions, libraries.
//! In: PTX or fatbin images, names. Out: handles, addresses, attributes. Owns: JIT logs, function attributes.
//! Not here: lowering (`gpu::load`).

use super::*;
use std::ffi::c_void;

/// `CU_JIT_*` options that name log buffers.
const JIT_ERROR_LOG: i32 = 5;
const JIT_ERROR_LOG_BYTES: i32 = 6;

/// The newest PTX version a driver takes, by the table of the PTX manual's release notes.
fn ptx_version(driver: i32) -> (u32, u32) {
    let (major, minor) = ((driver / 1000) as u32, (driver % 1000 / 10) as u32);
    match (major, minor) {
        (..=10, _) => (6, minor.min(5)),
        (11, _) => (7, minor),
        (12, 0..=5) => (8, minor),
        (12, _) => (8, minor - 1),
        _ => (major - 4, minor),
    }
}

impl State {
    fn load_text(&mut self, text: &str) -> Result<(u64, String), (Status, String)> {
        let arch = self.part.arch;
        let newest = if self.strict_version { ptx_version(self.version) } else { (u32::MAX, 0) };
        let memory = self.memory().map_err(|e| (e, String::new()))?;
        match crate::gpu::load(text, memory) {
            Ok(m) if m.target > arch || m.version > newest => {
                let (status, text) = if m.version > newest {
                    let ((a, b), (c, d)) = (m.version, newest);
                    let text = format!("the PTX has version {a}.{b}, this driver takes up to {c}.{d}");
                    (UNSUPPORTED_PTX_VERSION, text)
                } else {
                    (NO_BINARY, format!("the PTX is for sm_{}, this device is sm_{arch} (SOFTGPU_ARCH)", m.target))
                };
                for (a, _) in m.globals.values() {
                    // The variables of a module that is not kept.
                    let _ = memory.free(*a);
                }
                Err((status, text))
            }
            Ok(m) => {
                let h = self.handle();
                self.modules.insert(h, m);
                Ok((h, String::new()))
            }
            Err(crate::gpu::LoadError::Ptx(e)) => Err((INVALID_PTX, e.to_string())),
            Err(e) => Err((OUT_OF_MEMORY, e.to_string())),
        }
    }

    fn load_image(
        &mut self,
        to: *mut u64,
        image: *const c_void,
        log: Option<(*mut c_char, usize)>,
    ) -> Result<(), Status> {
        // SAFETY: the caller's image; a text ends with NUL, a fatbin says its size.
        let text = unsafe { fatbin::ptx(image.cast(), self.part.arch) }?;
        match self.load_text(&text) {
            // SAFETY: the caller's pointer, checked for null.
            Ok((h, _)) => unsafe { put(to, h) },
            Err((status, message)) => {
                say(&format!("module not loaded: {message}"));
                if let Some((p, n)) = log.filter(|(p, n)| !p.is_null() && *n > 0) {
                    let k = message.len().min(n - 1);
                    // SAFETY: the caller's buffer of n bytes.
                    unsafe {
                        std::ptr::copy_nonoverlapping(message.as_ptr().cast(), p, k);
                        p.add(k).write(0);
                    }
                }
                Err(status)
            }
        }
    }

    /// A handle for a kernel of a module.
    pub fn function(&mut self, module: u64, name: &str) -> Result<u64, Status> {
        let key = (module, name.to_string());
        if let Some(h) = self.by_name.get(&key) {
            return Ok(*h);
        }
        let kernel = self.modules.get(&module).ok_or(INVALID_HANDLE)?.kernels.get(name).ok_or(NOT_FOUND)?.clone();
        let h = self.handle();
        let max_dynamic = (48u32 << 10).saturating_sub(kernel.static_shared);
        let c_name = std::ffi::CString::new(name).unwrap_or_default();
        self.functions.insert(h, Function { kernel, module, max_dynamic, carveout: -1, name: c_name });
        self.by_name.insert(key, h);
        Ok(h)
    }

    fn unload(&mut self, h: u64) -> Result<(), Status> {
        let m = self.modules.remove(&h).ok_or(INVALID_HANDLE)?;
        if let Ok(memory) = self.memory() {
            for (a, _) in m.globals.values() {
                let _ = memory.free(*a);
            }
        }
        self.functions.retain(|_, f| f.module != h);
        self.by_name.retain(|k, _| k.0 != h);
        Ok(())
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(to: *mut u64, image: *const c_void) -> Status {
    entry!("cuModuleLoadData");
    call(|s| s.load_image(to, image, None))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    to: *mut u64,
    image: *const c_void,
    n: u32,
    options: *const i32,
    values: *const *mut c_void,
) -> Status {
    entry!("cuModuleLoadDataEx");
    let (mut buffer, mut bytes) = (std::ptr::null_mut(), 0);
    if !options.is_null() && !values.is_null() {
        for i in 0..n as usize {
            match *options.add(i) {
                JIT_ERROR_LOG => buffer = *values.add(i),
                // The size is passed in the pointer itself.
                JIT_ERROR_LOG_BYTES => bytes = *values.add(i) as usize,
                _ => {}
            }
        }
    }
    call(|s| s.load_image(to, image, Some((buffer.cast(), bytes))))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadFatBinary(to: *mut u64, image: *const c_void) -> Status {
    entry!("cuModuleLoadFatBinary");
    cuModuleLoadData(to, image)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoad(to: *mut u64, path: *const c_char) -> Status {
    entry!("cuModuleLoad");
    call(|s| {
        let mut bytes = std::fs::read(text(path)?).map_err(|_| FILE_NOT_FOUND)?;
        bytes.extend([0; 16]);
        s.load_image(to, bytes.as_ptr().cast(), None)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleUnload(module: u64) -> Status {
    entry!("cuModuleUnload");
    call_always(|s| s.unload(module))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(to: *mut u64, module: u64, name: *const c_char) -> Status {
    entry!("cuModuleGetFunction");
    call(|s| s.function(module, text(name)?).and_then(|h| put(to, h)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunctionCount(to: *mut u32, module: u64) -> Status {
    entry!("cuModuleGetFunctionCount");
    call(|s| put(to, s.modules.get(&module).ok_or(INVALID_HANDLE)?.kernels.len() as u32))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetGlobal_v2(
    to: *mut u64,
    bytes: *mut usize,
    module: u64,
    name: *const c_char,
) -> Status {
    entry!("cuModuleGetGlobal_v2");
    call(|s| {
        let m = s.modules.get(&module).ok_or(INVALID_HANDLE)?;
        let (a, n) = *m.globals.get(text(name)?).ok_or(NOT_FOUND)?;
        if !to.is_null() {
            put(to, a)?;
        }
        if bytes.is_null() { Ok(()) } else { put(bytes, n as usize) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetLoadingMode(mode: *mut i32) -> Status {
    entry!("cuModuleGetLoadingMode");
    call(|_| put(mode, 1))
}

/// A library is a module; a kernel of it is a function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLibraryLoadData(
    to: *mut u64,
    image: *const c_void,
    _jit: *const i32,
    _jit_values: *const *mut c_void,
    _n: u32,
    _options: *const i32,
    _values: *const *mut c_void,
    _m: u32,
) -> Status {
    entry!("cuLibraryLoadData");
    cuModuleLoadData(to, image)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLibraryUnload(library: u64) -> Status {
    entry!("cuLibraryUnload");
    cuModuleUnload(library)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLibraryGetKernel(to: *mut u64, library: u64, name: *const c_char) -> Status {
    entry!("cuLibraryGetKernel");
    cuModuleGetFunction(to, library, name)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLibraryGetModule(to: *mut u64, library: u64) -> Status {
    entry!("cuLibraryGetModule");
    call(|_| put(to, library))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLibraryGetGlobal(
    to: *mut u64,
    bytes: *mut usize,
    library: u64,
    name: *const c_char,
) -> Status {
    entry!("cuLibraryGetGlobal");
    cuModuleGetGlobal_v2(to, bytes, library, name)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuKernelGetFunction(to: *mut u64, kernel: u64) -> Status {
    entry!("cuKernelGetFunction");
    call(|_| put(to, kernel))
}

/// `CUfunction_attribute`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetAttribute(value: *mut i32, attribute: i32, function: u64) -> Status {
    entry!("cuFuncGetAttribute");
    call(|s| {
        let (target, optin) = (s.part.arch as i32, s.part.shared_optin);
        let f = s.functions.get(&function).ok_or(INVALID_HANDLE)?;
        let k = &f.kernel;
        let v = match attribute {
            0 => {
                if k.max_threads == 0 {
                    1024
                } else {
                    k.max_threads.min(1024) as i32
                }
            }
            1 => k.static_shared as i32,
            2 => 0,
            3 => k.local_bytes as i32,
            4 => k.registers.min(255) as i32,
            5 | 6 => target,
            7 => 0,
            8 => f.max_dynamic.min(optin) as i32,
            9 => f.carveout,
            10..=15 => 0,
            _ => return Err(INVALID_VALUE),
        };
        put(value, v)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetAttribute(function: u64, attribute: i32, value: i32) -> Status {
    entry!("cuFuncSetAttribute");
    call(|s| {
        let optin = s.part.shared_optin;
        let f = s.functions.get_mut(&function).ok_or(INVALID_HANDLE)?;
        match attribute {
            8 => {
                if value < 0 || value as u32 + f.kernel.static_shared > optin {
                    let most = optin - f.kernel.static_shared.min(optin);
                    say(&format!("{}: {value} bytes of dynamic shared memory, {most} are the most", f.kernel.name));
                    return Err(INVALID_VALUE);
                }
                f.max_dynamic = value as u32;
                Ok(())
            }
            9 => {
                f.carveout = value;
                Ok(())
            }
            10..=15 => Ok(()),
            _ => Err(INVALID_VALUE),
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuKernelGetAttribute(value: *mut i32, attribute: i32, kernel: u64, _dev: i32) -> Status {
    entry!("cuKernelGetAttribute");
    cuFuncGetAttribute(value, attribute, kernel)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuKernelSetAttribute(attribute: i32, value: i32, kernel: u64, _dev: i32) -> Status {
    entry!("cuKernelSetAttribute");
    cuFuncSetAttribute(kernel, attribute, value)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetCacheConfig(function: u64, _config: i32) -> Status {
    entry!("cuFuncSetCacheConfig");
    call(|s| s.functions.get(&function).map(|_| ()).ok_or(INVALID_HANDLE))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetSharedMemConfig(function: u64, _config: i32) -> Status {
    entry!("cuFuncSetSharedMemConfig");
    cuFuncSetCacheConfig(function, 0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetModule(to: *mut u64, function: u64) -> Status {
    entry!("cuFuncGetModule");
    call(|s| put(to, s.functions.get(&function).ok_or(INVALID_HANDLE)?.module))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetName(to: *mut *const c_char, function: u64) -> Status {
    entry!("cuFuncGetName");
    call(|s| put(to, s.functions.get(&function).ok_or(INVALID_HANDLE)?.name.as_ptr()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncLoad(function: u64) -> Status {
    entry!("cuFuncLoad");
    cuFuncSetCacheConfig(function, 0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetParamInfo(function: u64, n: usize, offset: *mut usize, bytes: *mut usize) -> Status {
    entry!("cuFuncGetParamInfo");
    call(|s| {
        let f = s.functions.get(&function).ok_or(INVALID_HANDLE)?;
        let p = f.kernel.params.get(n).ok_or(INVALID_VALUE)?;
        put(offset, p.offset as usize)?;
        if bytes.is_null() { Ok(()) } else { put(bytes, p.bytes as usize) }
    })
}
