//! The syntax tree of a PTX module.
//! In: nothing. Out: types filled by `parser`, read by `lower`. Owns: names of types, state spaces and operands.
//! Not here: meaning of instructions (`lower`), execution (`exec`).

use std::collections::BTreeMap;

/// A PTX fundamental or packed type.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[allow(missing_docs)]
pub enum Ty {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F64,
}

impl Ty {
    /// Reads a type suffix (without the dot), `None` when the word is no type.
    pub fn parse(word: &str) -> Option<Ty> {
        Some(match word {
            "pred" => Ty::Pred,
            "b8" => Ty::B8,
            "b16" => Ty::B16,
            "b32" => Ty::B32,
            "b64" => Ty::B64,
            "b128" => Ty::B128,
            "u8" => Ty::U8,
            "u16" => Ty::U16,
            "u32" => Ty::U32,
            "u64" => Ty::U64,
            "s8" => Ty::S8,
            "s16" => Ty::S16,
            "s32" => Ty::S32,
            "s64" => Ty::S64,
            "f16" => Ty::F16,
            "f16x2" => Ty::F16x2,
            "bf16" => Ty::Bf16,
            "bf16x2" => Ty::Bf16x2,
            "tf32" => Ty::Tf32,
            "f32" => Ty::F32,
            "f64" => Ty::F64,
            _ => return None,
        })
    }

    /// Size in bytes; a predicate counts as one.
    pub fn bytes(self) -> u32 {
        match self {
            Ty::Pred | Ty::B8 | Ty::U8 | Ty::S8 => 1,
            Ty::B16 | Ty::U16 | Ty::S16 | Ty::F16 | Ty::Bf16 => 2,
            Ty::B32 | Ty::U32 | Ty::S32 | Ty::F32 | Ty::F16x2 | Ty::Bf16x2 | Ty::Tf32 => 4,
            Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64 => 8,
            Ty::B128 => 16,
        }
    }

    /// A two's complement integer type.
    pub fn signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }

    /// A floating-point type, packed or not.
    pub fn float(self) -> bool {
        matches!(self, Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2 | Ty::Tf32 | Ty::F32 | Ty::F64)
    }
}

/// A state space. `Generic` is an address that carries its space in its value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[allow(missing_docs)]
pub enum Space {
    Generic,
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// A register of a function, an index into `Function::regs`.
pub type RegId = u32;

/// Where an instruction came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Loc {
    /// Line of the PTX text, from 1.
    pub ptx_line: u32,
    /// File number and line of the source named by `.loc`; file 0 when there was none.
    pub file: u32,
    /// Source line.
    pub line: u32,
    /// File and line of the outermost call site when the code was inlined there; file 0 when it was not.
    pub outer: (u32, u32),
}

/// One operand as written.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// A register declared in the function.
    Reg(RegId),
    /// A special register, with its component: `%tid.x`.
    Special(String),
    /// An integer literal, two's complement.
    Int(u64),
    /// `0fXXXXXXXX`.
    F32(u32),
    /// `0dXXXXXXXXXXXXXXXX`, or a decimal literal with a point.
    F64(u64),
    /// A variable, function or label, with the scope it was named in and a byte offset.
    Name(String, u32, i64),
    /// `{a, b, ...}`.
    Vector(Vec<Operand>),
    /// `[base + offset]`.
    Address(Box<Operand>, i64),
    /// `p|q`.
    Pair(Box<Operand>, Box<Operand>),
    /// `!p`.
    Not(Box<Operand>),
    /// `-x` of a register is not PTX; kept out. `(a, b)` of a call.
    List(Vec<Operand>),
    /// `_`.
    Sink,
}

/// One instruction.
#[derive(Clone, Debug)]
pub struct Inst {
    /// Predicate guard and whether it is negated.
    pub guard: Option<(RegId, bool)>,
    /// The whole opcode with its modifiers, `ld.global.v4.u32`.
    pub op: String,
    /// Operands in order.
    pub operands: Vec<Operand>,
    /// Origin.
    pub loc: Loc,
}

/// A statement of a function body.
#[derive(Clone, Debug)]
pub enum Stmt {
    /// A label, unique within its scope.
    Label(String, u32),
    /// An instruction.
    Inst(Inst),
    /// `.branchtargets` or `.calltargets`: label, scope, and the targets.
    Targets(String, u32, Vec<String>),
}

/// One element of an initialiser.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// Literal bits, truncated to the element's size.
    Bits(u64),
    /// The address of a symbol plus an offset.
    Symbol(String, i64),
}

/// A variable outside registers.
#[derive(Clone, Debug)]
pub struct Var {
    /// Name as written.
    pub name: String,
    /// Scope it was declared in; 0 is the module.
    pub scope: u32,
    /// State space.
    pub space: Space,
    /// Alignment in bytes.
    pub align: u32,
    /// Element type.
    pub ty: Ty,
    /// Size in bytes; 0 for an array without a length.
    pub bytes: u64,
    /// Initialiser, empty for none.
    pub init: Vec<Init>,
    /// Declared `.extern`.
    pub external: bool,
}

/// A kernel or device function.
#[derive(Clone, Debug, Default)]
pub struct Function {
    /// Name.
    pub name: String,
    /// A kernel, `.entry`.
    pub entry: bool,
    /// Return parameters.
    pub returns: Vec<Var>,
    /// Parameters.
    pub params: Vec<Var>,
    /// Types of the registers.
    pub regs: Vec<Ty>,
    /// Names of the registers, for messages.
    pub reg_names: Vec<String>,
    /// Variables declared inside.
    pub vars: Vec<Var>,
    /// Parent of each scope; scope 0 is the module, 1 the body.
    pub scopes: Vec<u32>,
    /// The body; `None` for a declaration.
    pub body: Option<Vec<Stmt>>,
    /// `.maxntid`, the product; 0 when absent.
    pub max_threads: u32,
    /// `.reqntid`.
    pub required_threads: Option<[u32; 3]>,
    /// `.minnctapersm`.
    pub min_blocks: u32,
    /// `.maxnreg`; 0 when absent.
    pub max_registers: u32,
    /// Line of the PTX text.
    pub line: u32,
}

/// A module.
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// `.version`.
    pub version: (u32, u32),
    /// `.target sm_NN`.
    pub target: u32,
    /// Module-level variables.
    pub vars: Vec<Var>,
    /// Functions, kernels included.
    pub functions: Vec<Function>,
    /// `.file` table.
    pub files: BTreeMap<u32, String>,
}
