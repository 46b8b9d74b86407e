//! A device as a Rust value: memory, modules, launches.
//! In: PTX text, bytes, launch shapes. Out: bytes, counts, faults. Owns: one `Memory`, loaded modules.
//! Not here: the C ABI (`driver`), which is built on this.

use crate::counters::LaunchCounts;
use crate::exec::fault::Fault;
use crate::exec::grid::{Launch, Options};
use crate::ir::Kernel;
use crate::memory::{Memory, MemoryError, Use};
use crate::ptx::{self, Init, PtxError, Space};
use std::collections::HashMap;
use std::sync::Arc;

/// A loaded module.
pub struct Module {
    /// Kernels by name.
    pub kernels: HashMap<String, Arc<Kernel>>,
    /// Addresses and sizes of module variables.
    pub globals: HashMap<String, (u64, u64)>,
    /// `.target` of the text.
    pub target: u32,
    /// `.version` of the text.
    pub version: (u32, u32),
}

/// Why a module was not loaded.
#[derive(Debug)]
pub enum LoadError {
    /// The text is wrong or uses what is not supported.
    Ptx(PtxError),
    /// Its variables do not fit.
    Memory(MemoryError),
}

impl std::fmt::Display for LoadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LoadError::Ptx(e) => e.fmt(f),
            LoadError::Memory(e) => write!(f, "module variables: {e:?}"),
        }
    }
}

impl std::error::Error for LoadError {}

/// Loads a module: gives its variables addresses, lowers every kernel.
pub fn load(text: &str, memory: &mut Memory) -> Result<Module, LoadError> {
    let tree = ptx::parse(text).map_err(LoadError::Ptx)?;
    let mut addresses = HashMap::new();
    let mut sizes = HashMap::new();
    let function_vars = tree.functions.iter().flat_map(|f| &f.vars);
    let vars: Vec<&ptx::Var> = tree.vars.iter().chain(function_vars).collect();
    for v in vars.iter().filter(|v| matches!(v.space, Space::Global | Space::Const)) {
        if v.external {
            let message = format!("variable `{}` is declared .extern and has no definition in this module", v.name);
            return Err(LoadError::Ptx(PtxError { line: 0, message }));
        }
        let a = memory.alloc(v.bytes.max(1), Use::Module).map_err(LoadError::Memory)?;
        addresses.insert(v.name.clone(), a);
        sizes.insert(v.name.clone(), (a, v.bytes));
    }
    for v in vars.iter().filter(|v| matches!(v.space, Space::Global | Space::Const)) {
        let mut bytes = vec![0u8; v.bytes.max(1) as usize];
        let size = v.ty.bytes() as usize;
        for (n, init) in v.init.iter().enumerate() {
            let bits = match init {
                Init::Bits(b) => *b,
                Init::Symbol(s, off) => match addresses.get(s) {
                    Some(a) => a.wrapping_add(*off as u64),
                    None => {
                        let message = format!("initialiser of `{}` names `{s}`, which is no variable here", v.name);
                        return Err(LoadError::Ptx(PtxError { line: 0, message }));
                    }
                },
            };
            if let Some(to) = bytes.get_mut(n * size..(n + 1) * size) {
                to.copy_from_slice(&bits.to_le_bytes()[..size]);
            }
        }
        memory.write(addresses[&v.name], &bytes);
    }
    let mut kernels = HashMap::new();
    for f in tree.functions.iter().filter(|f| f.entry && f.body.is_some()) {
        let k = crate::lower::kernel(&tree, &f.name, &addresses).map_err(LoadError::Ptx)?;
        kernels.insert(f.name.clone(), Arc::new(k));
    }
    Ok(Module { kernels, globals: sizes, target: tree.target, version: tree.version })
}

/// Shape of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads a block.
    pub block: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub shared: u32,
}

/// A device for tests and tools written in Rust.
pub struct Gpu {
    /// Device memory.
    pub memory: Memory,
    /// How launches run.
    pub options: Options,
    launches: u64,
}

impl Gpu {
    /// A device with `capacity` bytes. `None` when the system has no address space left or the CPU lacks AVX2.
    pub fn new(capacity: u64) -> Option<Self> {
        if crate::exec::lanes::isa() == crate::exec::lanes::Isa::Missing {
            return None;
        }
        Some(Gpu { memory: Memory::new(capacity)?, options: Options::default(), launches: 0 })
    }

    /// Loads a module.
    pub fn load(&mut self, text: &str) -> Result<Module, LoadError> {
        load(text, &mut self.memory)
    }

    /// Allocates and fills a buffer.
    pub fn upload(&mut self, bytes: &[u8]) -> Result<u64, MemoryError> {
        let a = self.memory.alloc(bytes.len() as u64, Use::Device)?;
        self.memory.write(a, bytes);
        Ok(a)
    }

    /// Reads a buffer back; empty when the range is in no allocation.
    pub fn download(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut v = vec![0; bytes];
        if self.memory.read(address, &mut v).is_some() { v } else { Vec::new() }
    }

    /// Runs a kernel. `params` holds each parameter's bytes in order.
    pub fn launch(&mut self, kernel: &Kernel, shape: Shape, params: &[&[u8]]) -> Result<LaunchCounts, Box<Fault>> {
        let mut buffer = vec![0u8; kernel.param_bytes as usize];
        for (p, v) in kernel.params.iter().zip(params) {
            let (at, n) = (p.offset as usize, v.len().min(p.bytes as usize));
            buffer[at..at + n].copy_from_slice(&v[..n]);
        }
        self.launches += 1;
        run(kernel, shape, &buffer, &mut self.memory, &self.options, 108, self.launches, &mut |t| print!("{t}"))
    }
}

/// Runs a kernel on a memory. `num_sms` and `number` show in special registers.
#[allow(clippy::too_many_arguments)]
pub fn run(
    kernel: &Kernel,
    shape: Shape,
    params: &[u8],
    memory: &mut Memory,
    options: &Options,
    num_sms: u32,
    number: u64,
    print: &mut dyn FnMut(&str),
) -> Result<LaunchCounts, Box<Fault>> {
    let mut launch = Launch {
        kernel,
        grid: shape.grid,
        block: shape.block,
        dynamic_shared: shape.shared,
        params,
        view: memory.view(options.count),
        options,
        num_sms,
        number,
        template: Vec::new(),
        template_bytes: 0,
    };
    launch.run(print)
}
