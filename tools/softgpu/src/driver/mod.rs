//! The CUDA driver API as a C library.
//! In: calls of programs that believe they loaded `libcuda.so.1`. Out: `CUresult`s. Owns: handles, the one device, errors.
//! Not here: execution (`gpu`, `exec`). Each family of calls has a file: `context`, `memory`, `module`, `launch`, `stream`,
//! `graph`; `names` lists every entry point and answers for those that are not implemented.
//!
//! Everything runs when it is called, in call order: that is one of the orders streams allow. A kernel's fault is returned by
//! the launch itself and by every later call, as on a GPU.
//!
//! Pointers come from a C caller; as with the real driver, passing bad ones is undefined.
#![allow(non_snake_case, clippy::missing_safety_doc, missing_docs, unsafe_op_in_unsafe_fn)]

pub mod context;
pub mod errors;
pub mod fatbin;
pub mod graph;
pub mod inject;
pub mod launch;
pub mod memory;
pub mod module;
pub mod names;
pub mod sites;
pub mod stream;

use crate::device::Part;
use crate::exec::grid::Options;
use crate::gpu::Module;
use crate::ir::Kernel;
use crate::memory::Memory;
use crate::report::Report;
use errors::ERRORS;
pub(crate) use inject::entry;
use std::collections::HashMap;
use std::ffi::{CStr, c_char};
use std::sync::{Arc, LazyLock, Mutex};

/// `CUresult`.
pub type Status = u32;
pub const SUCCESS: Status = 0;
pub const INVALID_VALUE: Status = 1;
pub const OUT_OF_MEMORY: Status = 2;
pub const NOT_INITIALIZED: Status = 3;
pub const NO_DEVICE: Status = 100;
pub const INVALID_DEVICE: Status = 101;
pub const INVALID_IMAGE: Status = 200;
pub const INVALID_CONTEXT: Status = 201;
pub const NO_BINARY: Status = 209;
pub const INVALID_PTX: Status = 218;
pub const UNSUPPORTED_PTX_VERSION: Status = 222;
pub const FILE_NOT_FOUND: Status = 301;
pub const INVALID_HANDLE: Status = 400;
pub const NOT_FOUND: Status = 500;
pub const LAUNCH_OUT_OF_RESOURCES: Status = 701;
pub const CAPTURE_UNSUPPORTED: Status = 900;
pub const CAPTURE_INVALIDATED: Status = 901;
pub const NOT_CAPTURING: Status = 903;
pub const UPDATE_FAILURE: Status = 910;
pub const NOT_SUPPORTED: Status = 801;
pub const UNKNOWN: Status = 999;

/// A function handle.
pub struct Function {
    pub kernel: Arc<Kernel>,
    pub module: u64,
    pub max_dynamic: u32,
    pub carveout: i32,
    pub name: std::ffi::CString,
}

/// All state behind the API.
pub struct State {
    pub initialised: bool,
    pub part: Part,
    /// Version told by cuDriverGetVersion, 1000 * major + 10 * minor; newer PTX is refused when it was asked for.
    pub version: i32,
    pub strict_version: bool,
    pub capacity: u64,
    pub memory: Option<Memory>,
    pub options: Options,
    pub next: u64,
    pub modules: HashMap<u64, Module>,
    pub functions: HashMap<u64, Function>,
    pub by_name: HashMap<(u64, String), u64>,
    pub streams: HashMap<u64, stream::Stream>,
    pub events: HashMap<u64, stream::Event>,
    pub graphs: HashMap<u64, graph::Graph>,
    pub executables: HashMap<u64, graph::Graph>,
    pub contexts: HashMap<u64, u32>,
    pub primary_users: u32,
    pub launches: u64,
    pub sticky: Status,
    pub report: Report,
}

// SAFETY: raw pointers in state are device addresses and callbacks of the caller; all access is under one lock.
unsafe impl Send for State {}

/// The device's only context besides those a program makes itself.
pub const PRIMARY: u64 = 0x5047_0000_0010;
/// The driver version told when none is asked for: CUDA 13.5.
pub const NEWEST_VERSION: i32 = 13050;
/// The default memory pool.
pub const POOL: u64 = 0x5047_0000_0020;

static STATE: LazyLock<Mutex<State>> = LazyLock::new(|| {
    let part = Part::from_env();
    let capacity = std::env::var("SOFTGPU_MEMORY").ok().and_then(|v| parse_bytes(&v)).unwrap_or(part.memory_bytes);
    let version = std::env::var("SOFTGPU_DRIVER_VERSION").ok().and_then(|v| v.trim().parse().ok());
    Mutex::new(State {
        initialised: false,
        part,
        version: version.unwrap_or(NEWEST_VERSION),
        strict_version: version.is_some(),
        capacity,
        memory: None,
        options: Options::from_env(),
        next: 0x5047_0000_1000,
        modules: HashMap::new(),
        functions: HashMap::new(),
        by_name: HashMap::new(),
        streams: HashMap::new(),
        events: HashMap::new(),
        graphs: HashMap::new(),
        executables: HashMap::new(),
        contexts: HashMap::new(),
        primary_users: 0,
        launches: 0,
        sticky: SUCCESS,
        report: Report::default(),
    })
});

/// "512M", "24G", "1000".
fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_shl(shift)
}

impl State {
    /// A new handle.
    pub fn handle(&mut self) -> u64 {
        self.next += 16;
        self.next
    }

    /// Device memory; it exists from the first context on.
    pub fn memory(&mut self) -> Result<&mut Memory, Status> {
        self.memory.as_mut().ok_or(INVALID_CONTEXT)
    }

    /// Makes device memory when it is not there yet.
    pub fn start(&mut self) -> Result<(), Status> {
        if self.memory.is_none() {
            self.memory = Memory::new(self.capacity);
            if self.memory.is_none() {
                say("no address space for device memory; lower SOFTGPU_MEMORY");
                return Err(OUT_OF_MEMORY);
            }
        }
        Ok(())
    }

    /// What is told of device memory before it goes: leaks on request, the most that was in use.
    fn last_look(&mut self) {
        let Some(m) = &self.memory else { return };
        if std::env::var("SOFTGPU_LEAKS").is_ok_and(|v| v != "0") {
            let left: Vec<_> = m.allocations().filter(|a| a.kind == crate::memory::Use::Device).collect();
            if !left.is_empty() {
                say(&format!("{} allocations were not freed:", left.len()));
                left.iter().take(20).for_each(|a| say(&format!("  {} bytes at {:#x}", a.bytes, a.start)));
            }
        }
        self.report.peak_bytes = self.report.peak_bytes.max(m.peak());
    }

    /// The end of the last context: everything it owned goes, and with it a fault.
    pub fn end_context(&mut self) {
        self.last_look();
        self.sticky = SUCCESS;
        self.modules.clear();
        self.functions.clear();
        self.by_name.clear();
        self.streams.clear();
        self.events.clear();
        self.graphs.clear();
        self.executables.clear();
        self.memory = None;
    }
}

/// Tells the user something on stderr.
pub fn say(text: &str) {
    eprintln!("softgpu: {text}");
}

fn finish(r: Result<(), Status>) -> Status {
    r.err().unwrap_or(SUCCESS)
}

/// Runs a call on the state. Before `cuInit` nothing works, after a fault everything repeats it.
pub fn call(f: impl FnOnce(&mut State) -> Result<(), Status>) -> Status {
    let Ok(mut s) = STATE.lock() else { return UNKNOWN };
    if !s.initialised {
        return NOT_INITIALIZED;
    }
    if s.sticky != SUCCESS {
        return s.sticky;
    }
    finish(f(&mut s))
}

/// As `call`, also after a fault: releasing things and asking for the device stay possible.
pub fn call_always(f: impl FnOnce(&mut State) -> Result<(), Status>) -> Status {
    let Ok(mut s) = STATE.lock() else { return UNKNOWN };
    if !s.initialised {
        return NOT_INITIALIZED;
    }
    finish(f(&mut s))
}

/// Writes through a pointer of the caller.
pub unsafe fn put<T>(p: *mut T, v: T) -> Result<(), Status> {
    if p.is_null() {
        return Err(INVALID_VALUE);
    }
    p.write(v);
    Ok(())
}

/// A C string of the caller.
pub unsafe fn text<'a>(p: *const c_char) -> Result<&'a str, Status> {
    if p.is_null() {
        return Err(INVALID_VALUE);
    }
    CStr::from_ptr(p).to_str().map_err(|_| INVALID_VALUE)
}

extern "C" fn at_exit() {
    let Ok(mut s) = STATE.lock() else { return };
    let s = &mut *s;
    s.last_look();
    if let Some(path) = std::env::var_os("SOFTGPU_REPORT")
        && let Err(e) = s.report.write(std::path::Path::new(&path), &s.part)
    {
        say(&format!("cannot write the report {}: {e}", path.to_string_lossy()));
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuInit(flags: u32) -> Status {
    entry!("cuInit");
    if flags != 0 {
        return INVALID_VALUE;
    }
    if crate::exec::lanes::isa() == crate::exec::lanes::Isa::Missing {
        say("this CPU lacks AVX2 and FMA");
        return NO_DEVICE;
    }
    let Ok(mut s) = STATE.lock() else { return UNKNOWN };
    if !s.initialised {
        s.initialised = true;
        libc::atexit(at_exit);
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut i32) -> Status {
    entry!("cuDriverGetVersion");
    {
        let Ok(s) = STATE.lock() else { return UNKNOWN };
        finish(put(version, s.version))
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(error: Status, name: *mut *const c_char) -> Status {
    entry!("cuGetErrorName");
    match ERRORS.iter().find(|e| e.0 == error) {
        Some(e) => finish(put(name, e.1.as_ptr())),
        None => INVALID_VALUE,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(error: Status, name: *mut *const c_char) -> Status {
    entry!("cuGetErrorString");
    match ERRORS.iter().find(|e| e.0 == error) {
        Some(e) => finish(put(name, e.2.as_ptr())),
        None => INVALID_VALUE,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuProfilerStart() -> Status {
    entry!("cuProfilerStart");
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuProfilerStop() -> Status {
    entry!("cuProfilerStop");
    SUCCESS
}
