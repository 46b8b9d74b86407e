//! What can go wrong inside a kernel, and how it is told.
//! In: the checks. Out: a `Fault` with its place, its text and its CUDA error. Owns: the wording.
//! Not here: the detection (`memory`, `shared`, `block`, ...).

use crate::ir::Kernel;

/// Kinds of fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[allow(missing_docs)]
pub enum FaultKind {
    OutOfBounds,
    UseAfterFree,
    Misaligned,
    Uninitialised,
    SharedRace,
    MissingAsyncWait,
    BarrierDivergence,
    WarpDivergence,
    Trap,
    Assert,
    BadOperand,
    NoProgress,
}

impl FaultKind {
    /// The `CUresult` of a launch that ends this way.
    pub fn cuda_error(self) -> u32 {
        match self {
            FaultKind::OutOfBounds | FaultKind::UseAfterFree => 700,
            FaultKind::Misaligned => 716,
            FaultKind::Assert => 710,
            FaultKind::BadOperand => 715,
            FaultKind::NoProgress => 702,
            _ => 719,
        }
    }

    /// Short name for messages and JSON.
    pub fn name(self) -> &'static str {
        match self {
            FaultKind::OutOfBounds => "out-of-bounds access",
            FaultKind::UseAfterFree => "use after free",
            FaultKind::Misaligned => "misaligned access",
            FaultKind::Uninitialised => "read of uninitialised memory",
            FaultKind::SharedRace => "shared-memory race",
            FaultKind::MissingAsyncWait => "missing cp.async wait",
            FaultKind::BarrierDivergence => "barrier divergence",
            FaultKind::WarpDivergence => "warp-level sync with absent lanes",
            FaultKind::Trap => "trap",
            FaultKind::Assert => "assertion failed",
            FaultKind::BadOperand => "illegal operand",
            FaultKind::NoProgress => "no progress",
        }
    }
}

/// One fault.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// Instruction number in `Kernel::code`.
    pub pc: u32,
    /// Block index.
    pub block: [u32; 3],
    /// Thread index.
    pub thread: [u32; 3],
    /// Address, when there is one.
    pub address: Option<u64>,
    /// Sizes, neighbours, the other side of a race.
    pub detail: String,
    /// Kernel name.
    pub kernel: String,
    /// PTX line.
    pub ptx_line: u32,
    /// Opcode.
    pub op: String,
    /// Source file and line of the user's code (the outermost call site of inlined code), when `-lineinfo` gave one.
    pub source: Option<(String, u32)>,
    /// Where inlined code was written, when that is elsewhere.
    pub inlined: Option<(String, u32)>,
}

impl Fault {
    /// Fills in the places an instruction number stands for.
    pub fn locate(&mut self, k: &Kernel) {
        self.kernel.clone_from(&k.name);
        let Some(loc) = k.locs.get(self.pc as usize) else { return };
        self.ptx_line = loc.ptx_line;
        self.op = k.ops.get(self.pc as usize).cloned().unwrap_or_default();
        let name = |file: u32| k.files.get(&file).cloned();
        let inner = name(loc.file).map(|f| (f, loc.line));
        let outer = name(loc.outer.0).map(|f| (f, loc.outer.1));
        match outer {
            Some(o) => {
                self.source = Some(o);
                self.inlined = inner;
            }
            None => self.source = inner,
        }
    }
}

/// "file.cu:12" of an instruction, or its PTX line when there is no source line.
pub fn place(k: &Kernel, pc: u32) -> String {
    let Some(loc) = k.locs.get(pc as usize) else { return "unknown place".into() };
    let (file, line) = if loc.outer.0 != 0 { loc.outer } else { (loc.file, loc.line) };
    match k.files.get(&file) {
        Some(f) => format!("{f}:{line} (PTX line {})", loc.ptx_line),
        None => format!("PTX line {}", loc.ptx_line),
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "softgpu: {} in kernel {}", self.kind.name(), self.kernel)?;
        if let Some((file, line)) = &self.source {
            write!(f, " at {file}:{line}")?;
        }
        if let Some((file, line)) = &self.inlined {
            write!(f, " (inlined from {file}:{line})")?;
        }
        write!(f, ", PTX line {} `{}`", self.ptx_line, self.op)?;
        let ([bx, by, bz], [tx, ty, tz]) = (self.block, self.thread);
        write!(f, ", block ({bx},{by},{bz}) thread ({tx},{ty},{tz})")?;
        if let Some(a) = self.address {
            write!(f, ", address {a:#x}")?;
        }
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        Ok(())
    }
}
