//! A kernel and all functions it calls as one list of instructions.
//! In: functions. Out: `Lower::out` through `ops`. Owns: inlining, places of variables, labels, operands.
//! Not here: instructions (`ops`), registers (`regs`).
//!
//! Calls are inlined: each call site gets its own registers and its own slots of local memory for parameters. A function that
//! calls itself has no end under this scheme and is refused.

use super::{Context, Lower, Place, Val};
use crate::ir::{LaneMask, Param, Special};
use crate::memory::{LOCAL_WINDOW, SHARED_WINDOW};
use crate::ptx::{Function, Inst, Operand, PtxError, Result, Space, Stmt, Ty, Var};
use std::collections::{HashMap, HashSet};

/// Deepest nesting of calls.
const MAX_DEPTH: u32 = 64;

impl<'a> Lower<'a> {
    /// An error at the instruction being lowered.
    pub fn error<T>(&self, message: impl Into<String>) -> Result<T> {
        let op = self.ops.get(self.op as usize).map(|o| format!("`{o}`: ")).unwrap_or_default();
        Err(PtxError { line: self.loc.ptx_line, message: op + &message.into() })
    }

    /// Gives every shared variable the kernel can reach its offset: those of the module it names, and those inside functions.
    pub fn place_shared(&mut self, kernel: &'a Function) -> Result<()> {
        let (mut seen, mut todo) = (HashSet::new(), vec![kernel]);
        let mut names: Vec<&Var> = Vec::new();
        let mut dynamic: Vec<&Var> = Vec::new();
        while let Some(f) = todo.pop() {
            if !seen.insert(&f.name) {
                continue;
            }
            let mut local: Vec<&Var> = f.vars.iter().filter(|v| v.space == Space::Shared).collect();
            for s in f.body.iter().flatten() {
                if let Stmt::Inst(i) = s {
                    self.named(&i.operands, &mut |n| {
                        if let Some(v) = self.module.vars.iter().find(|v| v.name == n && v.space == Space::Shared) {
                            local.push(v);
                        }
                        if let Some(g) = self.module.functions.iter().find(|g| g.name == n && !g.entry) {
                            todo.push(g);
                        }
                    });
                }
            }
            for v in local {
                if v.external || v.bytes == 0 {
                    dynamic.push(v);
                } else if !names.iter().any(|o| o.name == v.name) {
                    names.push(v);
                }
            }
        }
        for v in names {
            let at = u64::from(self.static_shared).next_multiple_of(u64::from(v.align.max(1)));
            let end = at + v.bytes;
            if end > 1 << 20 {
                return Err(PtxError {
                    line: kernel.line,
                    message: format!("shared variable `{}` does not fit", v.name),
                });
            }
            self.shared.insert(v.name.clone(), (at as u32, v.bytes as u32));
            self.static_shared = end as u32;
        }
        if !dynamic.is_empty() {
            // All arrays without a length are the same memory, behind the rest.
            let align = dynamic.iter().map(|v| v.align).max().unwrap_or(16).max(16);
            self.static_shared = self.static_shared.next_multiple_of(align);
            for v in dynamic {
                self.shared.insert(v.name.clone(), (self.static_shared, 0));
            }
        }
        Ok(())
    }

    fn named(&self, operands: &[Operand], f: &mut dyn FnMut(&str)) {
        for o in operands {
            match o {
                Operand::Name(n, ..) => f(n),
                Operand::Vector(v) | Operand::List(v) => self.named(v, f),
                Operand::Address(b, _) | Operand::Not(b) => self.named(std::slice::from_ref(b), f),
                Operand::Pair(a, b) => {
                    self.named(std::slice::from_ref(a), f);
                    self.named(std::slice::from_ref(b), f);
                }
                _ => {}
            }
        }
    }

    fn local_slot(&mut self, v: &Var) -> Result<u32> {
        let at = u64::from(self.local_bytes).next_multiple_of(u64::from(v.align.clamp(4, 16)));
        let end = at + v.bytes;
        if end > 512 << 10 {
            return self.error(format!("local variable `{}` does not fit 512 KiB of local memory", v.name));
        }
        self.local_bytes = end as u32;
        Ok(at as u32)
    }

    /// Lowers a function: the kernel (`params` its parameter places), or a call whose parameter places are already in `places`.
    pub fn function(
        &mut self,
        f: &'a Function,
        places: Option<HashMap<(u32, String), Place>>,
        params: &[Param],
    ) -> Result<()> {
        let called = places.is_some();
        let mut places = places.unwrap_or_default();
        if !called {
            for (v, p) in f.params.iter().zip(params) {
                places.insert((1, v.name.clone()), Place::Param(p.offset));
            }
        }
        for v in &f.vars {
            let place = match v.space {
                Space::Shared => Place::Shared(self.shared.get(&v.name).map_or(0, |s| s.0)),
                Space::Local | Space::Param => Place::Local(self.local_slot(v)?),
                _ => match self.globals.get(&v.name) {
                    Some(a) => Place::Global(*a),
                    None => return self.error(format!("variable `{}` has no address", v.name)),
                },
            };
            places.insert((v.scope, v.name.clone()), place);
        }
        let reg_base = self.types.len() as u32;
        self.types.extend(&f.regs);
        if self.types.len() > 1 << 20 {
            return self.error("more than a million registers after inlining");
        }
        let end = called.then(|| self.new_label());
        let (mut labels, mut tables) = (HashMap::new(), HashMap::new());
        for s in f.body.iter().flatten() {
            match s {
                Stmt::Label(n, scope) => {
                    let l = self.new_label();
                    labels.insert((*scope, n.clone()), l);
                }
                Stmt::Targets(n, scope, t) => {
                    tables.insert((*scope, n.clone()), t.clone());
                }
                Stmt::Inst(_) => {}
            }
        }
        self.contexts.push(Context { function: f, reg_base, places, labels, tables, end });
        for s in f.body.iter().flatten() {
            match s {
                Stmt::Label(n, scope) => {
                    let l = self.context().labels[&(*scope, n.clone())];
                    self.bind(l);
                }
                Stmt::Inst(i) => self.instruction(i)?,
                Stmt::Targets(..) => {}
            }
        }
        self.contexts.pop();
        if let Some(e) = end {
            self.bind(e);
        }
        Ok(())
    }

    /// One instruction: its place and guard, then its meaning.
    fn instruction(&mut self, i: &'a Inst) -> Result<()> {
        // Inlined calls keep the place of the code itself; a call without its own source line shows its caller's.
        self.loc = if i.loc.file == 0 && self.contexts.len() > 1 {
            crate::ptx::Loc { ptx_line: i.loc.ptx_line, ..self.loc }
        } else {
            i.loc
        };
        self.guard = i.guard.map(|(r, n)| (r + self.context().reg_base, n));
        self.op = match self.op_numbers.get(i.op.as_str()) {
            Some(n) => *n,
            None => {
                self.op = self.ops.len() as u32;
                self.ops.push(i.op.clone());
                self.op_numbers.insert(&i.op, self.op);
                if let Err(e) = super::forms::check(&i.op) {
                    return self.error(e);
                }
                self.op
            }
        };
        if i.op == "call" || i.op.starts_with("call.") {
            return self.call(i);
        }
        self.lower(i)
    }

    fn call(&mut self, i: &'a Inst) -> Result<()> {
        let mut operands = i.operands.iter().peekable();
        let mut returns: &[Operand] = &[];
        if let Some(Operand::List(l)) = operands.peek() {
            returns = l;
            operands.next();
        }
        let Some(Operand::Name(name, ..)) = operands.next() else {
            return self.error("indirect calls are not supported; only calls of named functions");
        };
        let arguments: &[Operand] = match operands.next() {
            Some(Operand::List(l)) => l,
            _ => &[],
        };
        if matches!(name.as_str(), "vprintf" | "__assertfail" | "__assert_fail") {
            return self.system_call(name, returns, arguments);
        }
        let module = self.module;
        let Some(f) = module.functions.iter().find(|f| f.name == *name && f.body.is_some()) else {
            return self.error(format!("function `{name}` has no body in this module"));
        };
        if self.depth >= MAX_DEPTH || self.contexts.iter().any(|c| c.function.name == f.name) {
            return self.error(format!("`{name}` calls itself; recursion is not supported"));
        }
        let mut places = HashMap::new();
        for (formals, actuals, what) in [(&f.params, arguments, "arguments"), (&f.returns, returns, "results")] {
            if formals.len() != actuals.len() {
                return self.error(format!("`{name}` has {} {what}, the call names {}", formals.len(), actuals.len()));
            }
            for (formal, actual) in formals.iter().zip(actuals) {
                let Operand::Name(n, scope, _) = actual else {
                    return self.error("arguments of calls must be .param variables");
                };
                let Some(place) = self.find_place(n, *scope) else {
                    return self.error(format!("unknown variable `{n}`"));
                };
                places.insert((1, formal.name.clone()), place);
            }
        }
        // A guarded call is a branch around it.
        let skip = self.new_label();
        if let Some((p, negated)) = self.guard.take() {
            self.branch(skip, Some((p, !negated)));
        }
        let (loc, op, depth) = (self.loc, self.op, self.depth);
        self.depth += 1;
        self.function(f, Some(places), &[])?;
        (self.loc, self.op, self.depth) = (loc, op, depth);
        self.bind(skip);
        Ok(())
    }

    /// The innermost function being lowered.
    pub fn context(&self) -> &Context<'a> {
        // `function` pushes a context before any instruction is lowered.
        &self.contexts[self.contexts.len() - 1]
    }

    /// A label without a place yet.
    pub fn new_label(&mut self) -> u32 {
        self.labels.push(None);
        self.labels.len() as u32 - 1
    }

    /// Puts a label before the next instruction.
    pub fn bind(&mut self, l: u32) {
        self.labels[l as usize] = Some(self.out.len());
    }

    /// The label `name` seen from `scope`.
    pub fn find_label(&self, name: &str, scope: u32) -> Result<u32> {
        let mut s = scope;
        loop {
            if let Some(l) = self.context().labels.get(&(s, name.to_string())) {
                return Ok(*l);
            }
            if s == 0 {
                return self.error(format!("unknown label `{name}`"));
            }
            s = self.context().function.scopes[s as usize];
        }
    }

    /// The table of targets `name` seen from `scope`.
    pub fn find_table(&self, name: &str, scope: u32) -> Option<&Vec<String>> {
        let mut s = scope;
        loop {
            if let Some(t) = self.context().tables.get(&(s, name.to_string())) {
                return Some(t);
            }
            if s == 0 {
                return None;
            }
            s = self.context().function.scopes[s as usize];
        }
    }

    /// The place of a variable seen from `scope`.
    pub fn find_place(&self, name: &str, scope: u32) -> Option<Place> {
        let mut s = scope;
        while s != 0 {
            if let Some(p) = self.context().places.get(&(s, name.to_string())) {
                return Some(*p);
            }
            s = self.context().function.scopes[s as usize];
        }
        if let Some((at, _)) = self.shared.get(name) {
            return Some(Place::Shared(*at));
        }
        self.globals.get(name).map(|a| Place::Global(*a))
    }

    /// A register operand.
    pub fn reg(&self, o: &Operand) -> Result<u32> {
        match o {
            Operand::Reg(r) => Ok(r + self.context().reg_base),
            o => self.error(format!("expected a register, found {o:?}")),
        }
    }

    /// A destination: a register, or none for `_`.
    pub fn dest(&self, o: &Operand) -> Result<Val> {
        if *o == Operand::Sink { Ok(Val::None) } else { Ok(Val::Reg(self.reg(o)?)) }
    }

    /// The type a register was declared with.
    pub fn reg_type(&self, v: Val) -> Ty {
        match v {
            Val::Reg(r) => self.types[r as usize],
            Val::C64(_) => Ty::B64,
            _ => Ty::B32,
        }
    }

    /// A source of type `ty`: a register, literal, special register or address of a variable.
    pub fn src(&self, o: &Operand, ty: Ty) -> Result<Val> {
        let wide = ty.bytes() == 8;
        let constant = |v: u64| match ty.bytes() {
            8 => Val::C64(v),
            2 => Val::C32(v as u32 & 0xffff),
            _ => Val::C32(v as u32),
        };
        Ok(match o {
            Operand::Reg(r) => Val::Reg(r + self.context().reg_base),
            Operand::Int(v) => constant(*v),
            Operand::F32(v) if wide => Val::C64(f64::from(f32::from_bits(*v)).to_bits()),
            Operand::F32(v) => Val::C32(*v),
            Operand::F64(v) if wide => Val::C64(*v),
            Operand::F64(v) => Val::C32((f64::from_bits(*v) as f32).to_bits()),
            Operand::Special(name) => match special(name) {
                Some(s) => Val::Special(s),
                None => return self.error(format!("special register `{name}` is not supported")),
            },
            Operand::Name(n, scope, off) => match self.find_place(n, *scope) {
                Some(Place::Global(a)) => constant(a.wrapping_add(*off as u64)),
                Some(Place::Shared(a) | Place::Local(a) | Place::Param(a)) => {
                    constant(u64::from(a).wrapping_add(*off as u64))
                }
                None => return self.error(format!("unknown name `{n}`")),
            },
            o => return self.error(format!("expected a value, found {o:?}")),
        })
    }

    /// A source predicate and whether it is negated.
    pub fn pred(&self, o: &Operand) -> Result<(Val, bool)> {
        match o {
            Operand::Not(o) => Ok((Val::Reg(self.reg(o)?), true)),
            o => Ok((Val::Reg(self.reg(o)?), false)),
        }
    }

    /// Offset to add to an address of `space` so that it becomes generic.
    pub fn window(space: Space) -> u64 {
        match space {
            Space::Shared => SHARED_WINDOW,
            Space::Local => LOCAL_WINDOW,
            Space::Param => crate::memory::PARAM_WINDOW,
            _ => 0,
        }
    }
}

fn special(name: &str) -> Option<Special> {
    let (base, axis) = match name.rsplit_once('.') {
        Some((b, "x")) => (b, 0),
        Some((b, "y")) => (b, 1),
        Some((b, "z")) => (b, 2),
        _ => (name, 0),
    };
    Some(match base {
        "%tid" => Special::Tid(axis),
        "%ntid" => Special::Ntid(axis),
        "%ctaid" => Special::Ctaid(axis),
        "%nctaid" => Special::Nctaid(axis),
        // A launch without clusters is clusters of one block.
        "%clusterid" => Special::Ctaid(axis),
        "%nclusterid" => Special::Nctaid(axis),
        "%cluster_ctaid" | "%cluster_ctarank" | "%is_explicit_cluster" => Special::Zero,
        "%cluster_nctaid" | "%cluster_nctarank" => Special::One,
        "%laneid" => Special::LaneId,
        "%warpid" => Special::WarpId,
        "%nwarpid" => Special::NumWarps,
        "%smid" => Special::SmId,
        "%nsmid" => Special::NumSms,
        "%gridid" => Special::GridId,
        "%lanemask_eq" => Special::LaneMask(LaneMask::Eq),
        "%lanemask_le" => Special::LaneMask(LaneMask::Le),
        "%lanemask_lt" => Special::LaneMask(LaneMask::Lt),
        "%lanemask_ge" => Special::LaneMask(LaneMask::Ge),
        "%lanemask_gt" => Special::LaneMask(LaneMask::Gt),
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        _ => return None,
    })
}
