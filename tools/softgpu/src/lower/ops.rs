//! One instruction: which family lowers it.
//! In: `ptx::Inst`. Out: `Virtual`s. Owns: splitting an opcode into its words, emitting, moves and branches.
//! Not here: the families (`integer`, `float`, `half`, `compare`, `convert`, `memory`, `sync`, `tensor`).

use super::{Lower, Place, Role, Val, Virtual, nothing};
use crate::exec::lanes::{Lane, op1, pick_select};
use crate::exec::warp::Warp;
use crate::ir::{Class, Instr, Kind, OpFn};
use crate::ptx::{Inst, Operand, Result, Space, Ty};

/// An opcode split at its dots.
pub(crate) struct Words<'a> {
    /// First word.
    pub root: &'a str,
    /// The modifiers.
    pub mods: Vec<&'a str>,
}

impl<'a> Words<'a> {
    fn new(op: &'a str) -> Self {
        let mut w = op.split('.');
        Words { root: w.next().unwrap_or(""), mods: w.collect() }
    }

    /// True when the modifier is present.
    pub fn has(&self, m: &str) -> bool {
        self.mods.contains(&m)
    }

    /// The types named, in order.
    pub fn types(&self) -> Vec<Ty> {
        self.mods.iter().filter_map(|m| Ty::parse(m)).collect()
    }
}

impl Lower<'_> {
    /// A plain instruction at the current place.
    pub fn emit(&mut self, f: OpFn, class: Class, d: Val, s: [Val; 3]) -> &mut Virtual {
        let v = Virtual {
            f,
            d,
            a: s[0],
            b: s[1],
            c: s[2],
            x: 0,
            xs: Vec::new(),
            kind: Kind::Op,
            class,
            guard: self.guard,
            loc: self.loc,
            op: self.op,
            targets: Vec::new(),
            flops: 0,
            d_is_def: true,
        };
        self.out.push(v);
        let n = self.out.len() - 1;
        &mut self.out[n]
    }

    /// `d = f(a)`, operands of these types.
    pub fn emit1(&mut self, i: &Inst, f: OpFn, class: Class, a: Ty) -> Result<()> {
        let [d, s] = self.operands::<2>(i)?;
        let (d, a) = (self.dest(d)?, self.src(s, a)?);
        self.emit(f, class, d, [a, Val::None, Val::None]);
        Ok(())
    }

    /// `d = f(a, b)`.
    pub fn emit2(&mut self, i: &Inst, f: OpFn, class: Class, t: [Ty; 2]) -> Result<()> {
        let [d, a, b] = self.operands::<3>(i)?;
        let (d, a, b) = (self.dest(d)?, self.src(a, t[0])?, self.src(b, t[1])?);
        self.emit(f, class, d, [a, b, Val::None]);
        Ok(())
    }

    /// `d = f(a, b, c)`.
    pub fn emit3(&mut self, i: &Inst, f: OpFn, class: Class, t: [Ty; 3]) -> Result<()> {
        let [d, a, b, c] = self.operands::<4>(i)?;
        let (d, s) = (self.dest(d)?, [self.src(a, t[0])?, self.src(b, t[1])?, self.src(c, t[2])?]);
        self.emit(f, class, d, s);
        Ok(())
    }

    /// Exactly `N` operands.
    pub fn operands<'i, const N: usize>(&self, i: &'i Inst) -> Result<[&'i Operand; N]> {
        if i.operands.len() != N {
            return self.error(format!("expected {N} operands, found {}", i.operands.len()));
        }
        Ok(std::array::from_fn(|n| &i.operands[n]))
    }

    /// A branch to a label.
    pub fn branch(&mut self, label: u32, guard: Option<(u32, bool)>) {
        let keep = std::mem::replace(&mut self.guard, guard);
        let v = self.emit(nothing, Class::Control, Val::None, [Val::None; 3]);
        v.kind = Kind::Branch;
        v.targets = vec![label];
        self.guard = keep;
    }

    /// Lowers one instruction that is no call.
    pub fn lower(&mut self, i: &Inst) -> Result<()> {
        let w = Words::new(&i.op);
        match w.root {
            "mov" => self.mov(i, &w),
            "bra" => {
                let [Operand::Name(n, scope, _)] = self.operands::<1>(i)? else {
                    return self.error("expected a label");
                };
                let label = self.find_label(n, *scope)?;
                self.branch(label, self.guard);
                Ok(())
            }
            "brx" => self.brx(i),
            "ret" => {
                match self.context().end {
                    Some(end) => self.branch(end, self.guard),
                    None => self.leave(),
                }
                Ok(())
            }
            "exit" => {
                self.leave();
                Ok(())
            }
            "selp" => self.selp(i, &w),
            "add" | "min" | "max" if w.has("u16x2") || w.has("s16x2") => self.integer_pair(i, &w),
            "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "neg" | "abs" => {
                match w.types().last() {
                    Some(Ty::F32 | Ty::F64) => self.float(i, &w),
                    Some(Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2) => self.half(i, &w),
                    Some(_) => self.integer(i, &w),
                    None => self.error("no type"),
                }
            }
            "ex2" | "tanh" if !matches!(w.types().last(), Some(Ty::F32 | Ty::F64)) => self.half(i, &w),
            "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh" | "copysign" | "testp" => {
                self.float(i, &w)
            }
            "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "shf" | "lop3" | "prmt" | "popc" | "clz"
            | "bfind" | "brev" | "bfe" | "bfi" | "fns" | "bmsk" | "szext" | "sad" | "dp4a" | "dp2a" | "mul24"
            | "mad24" | "addc" | "subc" | "madc" => self.integer(i, &w),
            "setp" | "set" | "slct" => self.compare(i, &w),
            "cvt" => self.convert(i, &w),
            "ld" | "ldu" | "st" | "atom" | "red" | "cvta" | "isspacep" | "prefetch" | "prefetchu" | "applypriority"
            | "discard" | "createpolicy" | "cp" | "mbarrier" | "fence" | "membar" => self.memory(i, &w),
            "bar" | "barrier" | "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" | "trap" | "brkpt"
            | "nanosleep" | "griddepcontrol" | "setmaxnreg" | "pmevent" => self.sync(i, &w),
            "mma" | "ldmatrix" | "stmatrix" | "movmatrix" => self.tensor(i, &w),
            other => self.error(format!("unknown opcode `{other}`")),
        }
    }

    fn leave(&mut self) {
        self.emit(nothing, Class::Control, Val::None, [Val::None; 3]).kind = Kind::Exit;
    }

    /// `brx.idx index, table;`
    fn brx(&mut self, i: &Inst) -> Result<()> {
        let [index, table] = self.operands::<2>(i)?;
        let index = self.src(index, Ty::U32)?;
        let Operand::Name(n, scope, _) = table else { return self.error("expected a table of branch targets") };
        let Some(names) = self.find_table(n, *scope).cloned() else {
            return self.error(format!("unknown table `{n}`"));
        };
        let mut targets = Vec::new();
        for t in &names {
            targets.push(self.find_label(t, *scope)?);
        }
        let v = self.emit(nothing, Class::Control, Val::None, [Val::None, index, Val::None]);
        v.kind = Kind::Indexed;
        v.targets = targets;
        Ok(())
    }

    fn mov(&mut self, i: &Inst, w: &Words) -> Result<()> {
        let [d, s] = self.operands::<2>(i)?;
        let Some(ty) = w.types().last().copied() else { return self.error("no type") };
        if ty == Ty::Pred {
            let d = self.dest(d)?;
            // `mov.pred p, 1` and `mov.pred p, q`.
            let (a, x) = match s {
                Operand::Int(v) => (Val::None, if *v != 0 { 2 } else { 3 }),
                s => {
                    let (v, n) = self.pred(s)?;
                    (v, u32::from(n))
                }
            };
            self.emit(move_pred, Class::Move, d, [a, Val::None, Val::None]).x = x;
            return Ok(());
        }
        if let Operand::Vector(parts) = d {
            return self.unpack(parts, s, ty);
        }
        if let Operand::Vector(parts) = s {
            return self.pack(d, parts, ty);
        }
        if let Operand::Special(name) = s
            && matches!(
                name.as_str(),
                "%clock" | "%clock64" | "%clock_hi" | "%globaltimer" | "%globaltimer_lo" | "%globaltimer_hi"
            )
        {
            let d = self.dest(d)?;
            let x = u32::from(ty.bytes() == 8) | u32::from(name.ends_with("_hi")) << 1;
            self.emit(read_clock, Class::Move, d, [Val::None; 3]).x = x;
            return Ok(());
        }
        let (d, a) = (self.dest(d)?, self.src(s, ty)?);
        let f = if ty.bytes() == 8 { op1::<u64, u64, _>(|a| a) } else { op1::<u32, u32, _>(|a| a) };
        self.emit(f, Class::Move, d, [a, Val::None, Val::None]);
        Ok(())
    }

    /// `mov.b32 {lo, hi}, a`, `mov.b64 {..2 or 4..}, a`.
    fn unpack(&mut self, parts: &[Operand], s: &Operand, ty: Ty) -> Result<()> {
        if parts.len() < 2 || parts.len() > 4 || ty.bytes() as usize % parts.len() != 0 {
            return self.error(format!("cannot split {} bytes into {}", ty.bytes(), parts.len()));
        }
        let a = self.src(s, ty)?;
        let mut xs = vec![(Role::Use, Val::Raw(parts.len() as u32))];
        for p in parts {
            xs.push((Role::Def, self.dest(p)?));
        }
        let x = ty.bytes() / parts.len() as u32 | u32::from(ty.bytes() == 8) << 8;
        let v = self.emit(unpack, Class::Move, Val::None, [a, Val::None, Val::None]);
        (v.x, v.xs) = (x, xs);
        Ok(())
    }

    fn pack(&mut self, d: &Operand, parts: &[Operand], ty: Ty) -> Result<()> {
        if parts.len() < 2 || parts.len() > 4 || ty.bytes() as usize % parts.len() != 0 {
            return self.error(format!("cannot join {} parts into {} bytes", parts.len(), ty.bytes()));
        }
        let part = match ty.bytes() as usize / parts.len() {
            1 => Ty::B8,
            2 => Ty::B16,
            _ => Ty::B32,
        };
        let mut xs = vec![(Role::Use, Val::Raw(parts.len() as u32))];
        for p in parts {
            xs.push((Role::Use, self.src(p, part)?));
        }
        let d = self.dest(d)?;
        let v = self.emit(pack, Class::Move, d, [Val::None; 3]);
        (v.x, v.xs) = (part.bytes() | u32::from(ty.bytes() == 8) << 8, xs);
        Ok(())
    }

    fn selp(&mut self, i: &Inst, w: &Words) -> Result<()> {
        let [d, a, b, p] = self.operands::<4>(i)?;
        let Some(ty) = w.types().last().copied() else { return self.error("no type") };
        let (d, a, b) = (self.dest(d)?, self.src(a, ty)?, self.src(b, ty)?);
        let (p, negated) = self.pred(p)?;
        let f = if ty.bytes() == 8 { pick_select::<u64>() } else { pick_select::<u32>() };
        self.emit(f, Class::Integer, d, [a, b, p]).x = u32::from(negated);
        Ok(())
    }

    /// `cvta`: generic to a space or back; also the address of a variable.
    pub fn cvta(&mut self, i: &Inst, w: &Words) -> Result<()> {
        let [d, a] = self.operands::<2>(i)?;
        let space = match w.mods.iter().find_map(|m| match m.split("::").next() {
            Some("global") => Some(Space::Global),
            Some("shared") => Some(Space::Shared),
            Some("local") => Some(Space::Local),
            Some("const") => Some(Space::Const),
            Some("param") => Some(Space::Param),
            _ => None,
        }) {
            Some(s) => s,
            None => return self.error("no state space"),
        };
        let wide = w.types().last().is_none_or(|t| t.bytes() == 8);
        let ty = if wide { Ty::U64 } else { Ty::U32 };
        let (d, a) = (self.dest(d)?, self.src(a, ty)?);
        let base = Self::window(space);
        let by = if wide { Val::C64(base) } else { Val::C32(base as u32) };
        let f = match (w.has("to"), wide) {
            (true, true) => crate::exec::lanes::op2::<u64, u64, u64, _>(|a, b| a.wrapping_sub(b)),
            (true, false) => crate::exec::lanes::op2::<u32, u32, u32, _>(|a, b| a.wrapping_sub(b)),
            (false, true) => crate::exec::lanes::op2::<u64, u64, u64, _>(|a, b| a.wrapping_add(b)),
            (false, false) => crate::exec::lanes::op2::<u32, u32, u32, _>(|a, b| a.wrapping_add(b)),
        };
        self.emit(f, Class::Integer, d, [a, by, Val::None]);
        Ok(())
    }

    /// printf and assert.
    pub fn system_call(&mut self, name: &str, returns: &[Operand], arguments: &[Operand]) -> Result<()> {
        let mut values = Vec::new();
        for a in arguments {
            let Operand::Name(n, scope, _) = a else {
                return self.error("arguments of calls must be .param variables");
            };
            let Some(Place::Local(at)) = self.find_place(n, *scope) else {
                return self.error(format!("unknown argument `{n}`"));
            };
            values.push(at);
        }
        let wanted = if name == "vprintf" { 2 } else { 5 };
        if values.len() != wanted {
            return self.error(format!("`{name}` takes {wanted} arguments"));
        }
        let load = |l: &mut Self, at: u32, ty: Ty| {
            let r = l.types.len() as u32;
            l.types.push(ty);
            l.load_local(Val::Reg(r), at, ty);
            Val::Reg(r)
        };
        if name == "vprintf" {
            let (a, b) = (load(self, values[0], Ty::B64), load(self, values[1], Ty::B64));
            let r = self.types.len() as u32;
            self.types.push(Ty::B32);
            self.emit(crate::exec::text::print, Class::Control, Val::Reg(r), [a, b, Val::None]);
            if let Some(Operand::Name(n, scope, _)) = returns.first()
                && let Some(Place::Local(at)) = self.find_place(n, *scope)
            {
                self.store_local(Val::Reg(r), at, Ty::B32);
            }
            return Ok(());
        }
        let (m, f) = (load(self, values[0], Ty::B64), load(self, values[1], Ty::B64));
        let (line, function) = (load(self, values[2], Ty::B32), load(self, values[3], Ty::B64));
        let v = self.emit(crate::exec::text::assert_fail, Class::Control, Val::None, [m, f, line]);
        v.xs = vec![(Role::Use, function)];
        Ok(())
    }
}

unsafe fn move_pred(w: &mut Warp, i: &Instr) -> u32 {
    unsafe {
        let v = match i.x {
            0 => *w.preds.add(i.a as usize),
            1 => !*w.preds.add(i.a as usize),
            2 => u32::MAX,
            _ => 0,
        };
        let d = &mut *w.preds.add(i.d as usize);
        *d = (*d & !w.m) | (v & w.m);
    }
    0
}

/// Clocks count this warp's instructions: they grow, and that is all a kernel may rely on.
unsafe fn read_clock(w: &mut Warp, i: &Instr) -> u32 {
    let v = if i.x & 2 != 0 { w.steps >> 32 } else { w.steps };
    unsafe {
        let p = w.regs.add(i.d as usize);
        if i.x & 1 != 0 {
            u64::store(p, &[v; 32], w.m);
        } else {
            u32::store(p, &[v as u32; 32], w.m);
        }
    }
    0
}

unsafe fn unpack(w: &mut Warp, i: &Instr) -> u32 {
    unsafe {
        let p = w.regs.add(i.a as usize);
        let wide = i.x >> 8 != 0;
        let bits = (i.x & 0xff) * 8;
        let a = if wide { u64::load(p) } else { u32::load(p).map(u64::from) };
        let n = *w.xs.add(i.xs as usize);
        for k in 0..n {
            let d = *w.xs.add((i.xs + 1 + k) as usize);
            if d != crate::ir::NONE {
                let mask = (1u64 << bits) - 1;
                u32::store(w.regs.add(d as usize), &a.map(|v| (v >> (bits * k) & mask) as u32), w.m);
            }
        }
    }
    0
}

unsafe fn pack(w: &mut Warp, i: &Instr) -> u32 {
    unsafe {
        let wide = i.x >> 8 != 0;
        let bits = (i.x & 0xff) * 8;
        let mask = (1u64 << bits) - 1;
        let n = *w.xs.add(i.xs as usize);
        let mut r = [0u64; 32];
        for k in 0..n {
            let s = u32::load(w.regs.add(*w.xs.add((i.xs + 1 + k) as usize) as usize));
            for l in 0..32 {
                r[l] |= (u64::from(s[l]) & mask) << (bits * k);
            }
        }
        let d = w.regs.add(i.d as usize);
        if wide {
            u64::store(d, &r, w.m);
        } else {
            u32::store(d, &r.map(|v| v as u32), w.m);
        }
    }
    0
}
