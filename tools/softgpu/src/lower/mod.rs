//! From the syntax tree to executable kernels.
//! In: `ptx::Module`, addresses of its variables. Out: `ir::Kernel`. Owns: the order of the passes.
//! Not here: each pass: `flatten` (calls inlined, variables placed), `ops` and its families (one instruction each), `regs`
//! (control flow, liveness, registers, assembly).

mod bits;
pub mod cfg;
mod compare;
mod convert;
mod flatten;
mod float;
pub mod forms;
mod half;
mod integer;
mod memory;
mod ops;
mod regs;
mod sync;
mod tensor;

use crate::ir::{Class, Instr, Kernel, Kind, MemOp, OpFn, Param, Special};
use crate::ptx::{Loc, Module, PtxError, Result, Ty};
use std::collections::HashMap;

/// An operand of an instruction before registers are allocated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Val {
    /// Absent.
    None,
    /// A virtual register.
    Reg(u32),
    /// A 32-bit constant row.
    C32(u32),
    /// A 64-bit constant row.
    C64(u64),
    /// A special register's row.
    Special(Special),
    /// A word that is no register (extra operands only).
    Raw(u32),
}

/// What an instruction does with an extra operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Def,
    Use,
    Both,
}

/// An instruction before registers are allocated.
pub(crate) struct Virtual {
    pub f: OpFn,
    pub d: Val,
    pub a: Val,
    pub b: Val,
    pub c: Val,
    pub x: u32,
    pub xs: Vec<(Role, Val)>,
    pub kind: Kind,
    pub class: Class,
    pub guard: Option<(u32, bool)>,
    pub loc: Loc,
    pub op: u32,
    pub targets: Vec<u32>,
    pub flops: u32,
    /// Lanes that do not take part keep the destination: true for every instruction, but a full definition ends a live range.
    pub d_is_def: bool,
}

/// Where a variable lies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// Address of a global or constant variable.
    Global(u64),
    /// Offset in shared memory.
    Shared(u32),
    /// Offset in the thread's local memory.
    Local(u32),
    /// Offset in the kernel's parameters.
    Param(u32),
}

/// A function being lowered: the kernel itself or an inlined call.
pub(crate) struct Context<'a> {
    pub function: &'a crate::ptx::Function,
    pub reg_base: u32,
    pub places: HashMap<(u32, String), Place>,
    pub labels: HashMap<(u32, String), u32>,
    pub tables: HashMap<(u32, String), Vec<String>>,
    /// Where `ret` goes; `None` in the kernel itself.
    pub end: Option<u32>,
}

/// The state of lowering one kernel.
pub(crate) struct Lower<'a> {
    pub module: &'a Module,
    pub globals: &'a HashMap<String, u64>,
    pub contexts: Vec<Context<'a>>,
    pub types: Vec<Ty>,
    pub out: Vec<Virtual>,
    /// Position in `out` of each label.
    pub labels: Vec<Option<usize>>,
    pub mems: Vec<MemOp>,
    pub shared: HashMap<String, (u32, u32)>,
    pub static_shared: u32,
    pub local_bytes: u32,
    pub ops: Vec<String>,
    /// Place of each opcode in `ops`.
    pub op_numbers: HashMap<&'a str, u32>,
    pub carry: Option<u32>,
    pub loc: Loc,
    pub guard: Option<(u32, bool)>,
    pub op: u32,
    pub depth: u32,
}

/// Lowers the kernel `name` of a module. `globals` holds the device addresses of module variables.
pub fn kernel(module: &Module, name: &str, globals: &HashMap<String, u64>) -> Result<Kernel> {
    let Some(f) = module.functions.iter().find(|f| f.name == name && f.entry && f.body.is_some()) else {
        return Err(PtxError { line: 0, message: format!("no kernel `{name}`") });
    };
    let mut params = Vec::new();
    let mut offset = 0u32;
    for p in &f.params {
        offset = offset.next_multiple_of(p.align.max(1));
        params.push(Param { offset, bytes: p.bytes as u32 });
        offset += p.bytes as u32;
    }
    if offset > 32764 {
        return Err(PtxError {
            line: f.line,
            message: format!("kernel `{name}` has {offset} bytes of parameters, 32764 are the most"),
        });
    }
    let mut lower = Lower {
        module,
        globals,
        contexts: Vec::new(),
        types: Vec::new(),
        out: Vec::new(),
        labels: Vec::new(),
        mems: Vec::new(),
        shared: HashMap::new(),
        static_shared: 0,
        local_bytes: 0,
        ops: Vec::new(),
        op_numbers: HashMap::new(),
        carry: None,
        loc: Loc::default(),
        guard: None,
        op: 0,
        depth: 0,
    };
    lower.place_shared(f)?;
    lower.function(f, None, &params)?;
    regs::assemble(lower, f, params, offset)
}

/// An instruction that does nothing.
pub(crate) unsafe fn nothing(_: &mut crate::exec::warp::Warp, _: &Instr) -> u32 {
    0
}
