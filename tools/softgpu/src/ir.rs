//! The internal form a kernel runs in.
//! In: filled by `lower`. Out: read by `exec`, `report`. Owns: the layout of an instruction and of a warp's register file.
//! Not here: how PTX becomes this (`lower`), what the functions do (`exec`).
//!
//! A warp's register file is rows of 32 lanes x 4 bytes; a 64-bit register takes two rows. Immediates and special registers
//! have rows too, so every operand of an instruction is one byte offset into the file. Predicates are 32-bit lane masks.

use crate::exec::warp::Warp;
use crate::ptx::{Loc, Space};

/// Executes one instruction for the lanes in `Warp::m`; returns one of `exec::status`.
pub type OpFn = unsafe fn(&mut Warp, &Instr) -> u32;

/// No guard, no operand.
pub const NONE: u32 = u32::MAX;

/// Bytes of one register row: 32 lanes of 4 bytes.
pub const ROW: u32 = 128;

/// What the warp loop does with an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Call `f`, go on.
    Op,
    /// Branch to `x`, lanes meet again at `a`.
    Branch,
    /// Branch through a table: row `b` is the index, targets in `xs[..x]`, lanes meet again at `a`.
    Indexed,
    /// Lanes leave.
    Exit,
    /// Block barrier; see `exec::block`.
    Barrier,
}

/// Instruction classes of the counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum Class {
    Integer,
    Float32,
    Float64,
    Half,
    SpecialFunction,
    Convert,
    Move,
    Mma,
    LoadMatrix,
    GlobalLoad,
    GlobalStore,
    SharedLoad,
    SharedStore,
    LocalMemory,
    ConstantLoad,
    AsyncCopy,
    Atomic,
    Warp,
    Barrier,
    Control,
}

impl Class {
    /// All classes, in report order.
    pub const ALL: [Class; 20] = [
        Class::Integer,
        Class::Float32,
        Class::Float64,
        Class::Half,
        Class::SpecialFunction,
        Class::Convert,
        Class::Move,
        Class::Mma,
        Class::LoadMatrix,
        Class::GlobalLoad,
        Class::GlobalStore,
        Class::SharedLoad,
        Class::SharedStore,
        Class::LocalMemory,
        Class::ConstantLoad,
        Class::AsyncCopy,
        Class::Atomic,
        Class::Warp,
        Class::Barrier,
        Class::Control,
    ];

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Class::Integer => "integer",
            Class::Float32 => "float32",
            Class::Float64 => "float64",
            Class::Half => "half",
            Class::SpecialFunction => "special_function",
            Class::Convert => "convert",
            Class::Move => "move",
            Class::Mma => "mma",
            Class::LoadMatrix => "ldmatrix",
            Class::GlobalLoad => "global_load",
            Class::GlobalStore => "global_store",
            Class::SharedLoad => "shared_load",
            Class::SharedStore => "shared_store",
            Class::LocalMemory => "local_memory",
            Class::ConstantLoad => "constant_load",
            Class::AsyncCopy => "async_copy",
            Class::Atomic => "atomic",
            Class::Warp => "warp",
            Class::Barrier => "barrier",
            Class::Control => "control",
        }
    }
}

/// One executable instruction. Operand fields are byte offsets into the register file, or predicate numbers.
#[derive(Clone)]
pub struct Instr {
    /// The work.
    pub f: OpFn,
    /// Destination.
    pub d: u32,
    /// First source.
    pub a: u32,
    /// Second source.
    pub b: u32,
    /// Third source.
    pub c: u32,
    /// Immediate, flags, branch target or index of a `MemOp`: the function knows which.
    pub x: u32,
    /// First of the further operands in `Kernel::xs`.
    pub xs: u32,
    /// Guard predicate times two, plus one when negated; `NONE` for none.
    pub guard: u32,
    /// Control flow.
    pub kind: Kind,
    /// Class for the counters.
    pub class: Class,
}

/// A memory access.
#[derive(Clone, Copy, Debug)]
pub struct MemOp {
    /// State space as written.
    pub space: Space,
    /// Bytes of one element: 1, 2, 4, 8 or 16.
    pub size: u32,
    /// Elements a lane: 1, 2, 4 or 8.
    pub count: u32,
    /// Loads sign-extend.
    pub signed: bool,
    /// Registers are 64 bits wide.
    pub wide: bool,
    /// The address register is 64 bits wide.
    pub wide_address: bool,
    /// Constant byte offset.
    pub offset: i64,
    /// `.volatile`, `.relaxed`, `.acquire`, `.release`: ordered by more than barriers.
    pub strong: bool,
}

/// A kernel parameter's place in the parameter buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    /// Byte offset.
    pub offset: u32,
    /// Size in bytes.
    pub bytes: u32,
}

/// A special register that has a row of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[allow(missing_docs)]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NumWarps,
    SmId,
    NumSms,
    GridId,
    LaneMask(LaneMask),
    DynamicShared,
    TotalShared,
    /// 64-bit forms of the 32-bit registers do not exist; this is a zero row (cluster registers).
    Zero,
    /// A row of ones (cluster sizes).
    One,
}

/// `%lanemask_*`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[allow(missing_docs)]
pub enum LaneMask {
    Eq,
    Le,
    Lt,
    Ge,
    Gt,
}

/// A kernel ready to run.
pub struct Kernel {
    /// Name as in the PTX.
    pub name: String,
    /// Parameters in order.
    pub params: Vec<Param>,
    /// Size of the parameter buffer.
    pub param_bytes: u32,
    /// Shared memory known at compile time.
    pub static_shared: u32,
    /// Local memory of one thread.
    pub local_bytes: u32,
    /// Bytes of it that variables take; behind them is only padding to the next thread's.
    pub local_used: u32,
    /// `.maxntid`, or the product of `.reqntid`; 0 when not given.
    pub max_threads: u32,
    /// `.reqntid`.
    pub required_threads: Option<[u32; 3]>,
    /// `.minnctapersm`.
    pub min_blocks: u32,
    /// Most 32-bit registers live at once after allocation; stands in for ptxas' count when no report is given.
    pub registers: u32,
    /// `.maxnreg`; 0 when absent.
    pub max_registers: u32,
    /// Instructions.
    pub code: Vec<Instr>,
    /// Further operands.
    pub xs: Vec<u32>,
    /// Memory accesses.
    pub mems: Vec<MemOp>,
    /// Origin of each instruction.
    pub locs: Vec<Loc>,
    /// Opcode of each instruction as written.
    pub ops: Vec<String>,
    /// Rows of a warp's register file.
    pub rows: u32,
    /// Predicates of a warp.
    pub preds: u32,
    /// Constant rows: row, bits, 64-bit.
    pub constants: Vec<(u32, u64, bool)>,
    /// Special rows.
    pub specials: Vec<(u32, Special)>,
    /// Smallest access to shared memory, log2 bytes: the grain of race and initialisation records.
    pub shared_grain: u32,
    /// Source files of `.loc`.
    pub files: std::collections::BTreeMap<u32, String>,
    /// mma FLOPs of each instruction (0 for others).
    pub flops: Vec<u32>,
    /// Static shared variables: name, offset, bytes.
    pub shared_vars: Vec<(String, u32, u32)>,
}
