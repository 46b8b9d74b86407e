//! Loads, stores, atomics, asynchronous copies, mbarriers, fences.
//! In: `ptx::Inst`. Out: `Virtual`s with `MemOp`s. Owns: reading state spaces, vectors and hints from opcodes.
//! Not here: execution (`exec::memory`, `exec::atomics`, `exec::asynchronous`).

use super::ops::Words;
use super::{Lower, Place, Role, Val, nothing};
use crate::exec::asynchronous::{self, MBARRIER_OPS, MbarrierOp};
use crate::exec::atomics::{ATOM_OPS, ATOM_TYPES, AtomOp, atomic};
use crate::exec::memory::{is_space, load, store};
use crate::ir::{Class, MemOp};
use crate::ptx::{Inst, Operand, Result, Space, Ty};

/// The state space an opcode names.
fn space_of(w: &Words) -> Option<Space> {
    w.mods.iter().find_map(|m| {
        Some(match *m {
            "global" => Space::Global,
            "const" => Space::Const,
            "shared" | "shared::cta" | "shared::cluster" => Space::Shared,
            "local" => Space::Local,
            "param" | "param::entry" | "param::func" => Space::Param,
            _ => return None,
        })
    })
}

/// A read address operand: row, 64-bit, constant offset, and the space when the name decides it.
pub(super) struct Address {
    pub row: Val,
    pub wide: bool,
    pub offset: i64,
    pub space: Option<Space>,
}

impl Lower<'_> {
    /// Reads `[base + offset]`.
    pub(super) fn address(&mut self, o: &Operand) -> Result<Address> {
        let Operand::Address(base, offset) = o else { return self.error("expected an address in brackets") };
        match &**base {
            Operand::Name(n, scope, extra) => {
                let Some(place) = self.find_place(n, *scope) else { return self.error(format!("unknown name `{n}`")) };
                let offset = offset + extra;
                let (at, space) = match place {
                    Place::Global(a) => (a, Space::Global),
                    Place::Shared(a) => (u64::from(a), Space::Shared),
                    Place::Local(a) => (u64::from(a), Space::Local),
                    Place::Param(a) => (u64::from(a), Space::Param),
                };
                Ok(Address { row: Val::C64(at.wrapping_add(offset as u64)), wide: true, offset: 0, space: Some(space) })
            }
            Operand::Int(v) => {
                Ok(Address { row: Val::C64(v.wrapping_add(*offset as u64)), wide: true, offset: 0, space: None })
            }
            base => {
                let row = Val::Reg(self.reg(base)?);
                Ok(Address { row, wide: self.reg_type(row).bytes() == 8, offset: *offset, space: None })
            }
        }
    }

    fn mem(&mut self, m: MemOp) -> u32 {
        self.mems.push(m);
        self.mems.len() as u32 - 1
    }

    /// Loads a call parameter from its local slot.
    pub(super) fn load_local(&mut self, d: Val, at: u32, ty: Ty) {
        let m = MemOp {
            space: Space::Local,
            size: ty.bytes(),
            count: 1,
            signed: false,
            wide: ty.bytes() == 8,
            wide_address: true,
            offset: 0,
            strong: false,
        };
        let x = self.mem(m);
        self.emit(load(), Class::LocalMemory, d, [Val::C64(u64::from(at)), Val::None, Val::None]).x = x;
    }

    /// Stores a call result to its local slot.
    pub(super) fn store_local(&mut self, s: Val, at: u32, ty: Ty) {
        let m = MemOp {
            space: Space::Local,
            size: ty.bytes(),
            count: 1,
            signed: false,
            wide: ty.bytes() == 8,
            wide_address: true,
            offset: 0,
            strong: false,
        };
        let x = self.mem(m);
        self.emit(store(), Class::LocalMemory, Val::None, [Val::C64(u64::from(at)), s, Val::None]).x = x;
    }

    /// Lowers a memory instruction.
    pub(super) fn memory(&mut self, i: &Inst, w: &Words) -> Result<()> {
        match w.root {
            "ld" | "ldu" | "st" => self.load_store(i, w),
            "atom" | "red" => self.atomic(i, w),
            "cvta" => self.cvta(i, w),
            "isspacep" => {
                let [d, a] = self.operands::<2>(i)?;
                let (d, a) = (self.dest(d)?, self.src(a, Ty::U64)?);
                let x = match w.mods.first().copied().unwrap_or("").split("::").next() {
                    Some("shared") => 0,
                    Some("local") => 1,
                    Some("global") => 2,
                    Some("const") => 3,
                    Some("param") => 4,
                    _ => return self.error("unknown state space"),
                };
                self.emit(is_space, Class::Integer, d, [a, Val::None, Val::None]).x = x;
                Ok(())
            }
            // Hints and orderings: one thread's accesses happen in order, and block barriers order the rest.
            "prefetch" | "prefetchu" | "applypriority" | "discard" | "fence" | "membar" => {
                self.emit(nothing, Class::Control, Val::None, [Val::None; 3]);
                Ok(())
            }
            "createpolicy" => {
                let Some(d) = i.operands.first() else { return self.error("expected a destination") };
                let d = self.dest(d)?;
                let f = crate::exec::lanes::op1::<u64, u64, _>(|a| a);
                self.emit(f, Class::Move, d, [Val::C64(0), Val::None, Val::None]);
                Ok(())
            }
            "cp" => self.copy(i, w),
            _ => self.mbarrier(i, w),
        }
    }

    fn load_store(&mut self, i: &Inst, w: &Words) -> Result<()> {
        let store_op = w.root == "st";
        let Some(ty) = w.types().last().copied() else { return self.error("no type") };
        let count = if w.has("v2") {
            2
        } else if w.has("v4") {
            4
        } else {
            1
        };
        // A cache-policy operand may follow; it changes nothing.
        let n = i.operands.len();
        if n != 2 && !(n == 3 && w.mods.iter().any(|m| m.starts_with("L2::cache_hint"))) {
            return self.error("expected two operands");
        }
        let (value, address) =
            if store_op { (&i.operands[1], &i.operands[0]) } else { (&i.operands[0], &i.operands[1]) };
        let a = self.address(address)?;
        let named = space_of(w);
        // `.param` of a device function is a slot of local memory; the name decides.
        let space = match (named, a.space) {
            (Some(Space::Param), Some(s)) => s,
            (Some(s), _) => s,
            (None, Some(s @ (Space::Global | Space::Const))) => s,
            (None, _) => Space::Generic,
        };
        if named.is_none() && a.space.is_some_and(|s| !matches!(s, Space::Global | Space::Const)) {
            return self.error("a generic access needs a generic address (cvta)");
        }
        let parts: Vec<&Operand> = match value {
            Operand::Vector(v) => v.iter().collect(),
            v => vec![v],
        };
        if parts.len() != count as usize {
            return self.error(format!("expected {count} registers, found {}", parts.len()));
        }
        let mut rows = Vec::new();
        for p in parts {
            rows.push(if store_op { self.src(p, ty)? } else { self.dest(p)? });
        }
        let first = rows.iter().find(|r| **r != Val::None).copied();
        let wide = first.is_some_and(|r| self.reg_type(r).bytes() == 8);
        if rows.iter().any(|r| *r != Val::None && (self.reg_type(*r).bytes() == 8) != wide) {
            return self.error("registers of one vector must have one width");
        }
        let m = MemOp {
            space,
            size: ty.bytes(),
            count,
            signed: ty.signed(),
            wide,
            wide_address: a.wide,
            offset: a.offset,
            strong: ["volatile", "relaxed", "acquire", "release"].iter().any(|s| w.has(s)),
        };
        let x = self.mem(m);
        let class = match (space, store_op) {
            (Space::Global | Space::Generic, false) => Class::GlobalLoad,
            (Space::Global | Space::Generic, true) => Class::GlobalStore,
            (Space::Shared, false) => Class::SharedLoad,
            (Space::Shared, true) => Class::SharedStore,
            (Space::Local, _) => Class::LocalMemory,
            (Space::Const | Space::Param, _) => Class::ConstantLoad,
        };
        let f = if store_op { store() } else { load() };
        let (d, b) = match (count, store_op) {
            (1, true) => (Val::None, rows[0]),
            (1, false) => (rows[0], Val::None),
            _ => (Val::None, Val::None),
        };
        let role = if store_op { Role::Use } else { Role::Def };
        let v = self.emit(f, class, d, [a.row, b, Val::None]);
        v.x = x;
        if count > 1 {
            v.xs = rows.into_iter().map(|r| (role, r)).collect();
        }
        Ok(())
    }

    fn atomic(&mut self, i: &Inst, w: &Words) -> Result<()> {
        let red = w.root == "red";
        let Some(op) = w.mods.iter().find_map(|m| ATOM_OPS.iter().position(|(n, _)| n == m)) else {
            return self.error("unknown atomic operation");
        };
        let Some(ty) = w.types().last().copied() else { return self.error("no type") };
        let Some(number) = ATOM_TYPES.iter().position(|t| *t == ty) else {
            return self.error(format!("atomics of {ty:?} are not supported"));
        };
        if w.has("v2") || w.has("v4") || w.has("v8") {
            return self.error("vector atomics are not supported");
        }
        let kind = ATOM_OPS[op].1;
        let float_ok = matches!(kind, AtomOp::Add | AtomOp::Exch | AtomOp::Cas);
        if ty.float() && !float_ok {
            return self.error("this operation does not exist for floats");
        }
        let first = usize::from(!red);
        let operands = 2 + usize::from(kind == AtomOp::Cas);
        if i.operands.len() < first + operands || i.operands.len() > first + operands + 1 {
            return self.error("wrong number of operands");
        }
        let d = if red { Val::None } else { self.dest(&i.operands[0])? };
        let a = self.address(&i.operands[first])?;
        let b = self.src(&i.operands[first + 1], ty)?;
        let c = if kind == AtomOp::Cas { self.src(&i.operands[first + 2], ty)? } else { Val::None };
        let space = match (space_of(w), a.space) {
            (Some(s), _) => s,
            (None, Some(Space::Global)) => Space::Global,
            _ => Space::Generic,
        };
        let m = MemOp {
            space,
            size: ty.bytes(),
            count: 1,
            signed: false,
            wide: ty.bytes() == 8,
            wide_address: a.wide,
            offset: a.offset,
            strong: true,
        };
        let x = self.mem(m);
        let v = self.emit(atomic, Class::Atomic, d, [a.row, b, c]);
        (v.x, v.xs) = (x, vec![(Role::Use, Val::Raw(op as u32 | (number as u32) << 8))]);
        Ok(())
    }

    /// cp.async, its groups, and 1-D cp.async.bulk.
    fn copy(&mut self, i: &Inst, w: &Words) -> Result<()> {
        if !w.has("async") {
            return self.error("unknown opcode");
        }
        let class = Class::AsyncCopy;
        let bulk = w.has("bulk");
        if w.has("tensor") || w.has("reduce") || w.has("mbarrier") && !bulk || w.has("multicast::cluster") {
            return self.error("this form of cp.async is not supported");
        }
        if w.has("commit_group") {
            let f = if bulk { nothing } else { asynchronous::commit };
            self.emit(f, class, Val::None, [Val::None; 3]);
            return Ok(());
        }
        if w.has("wait_all") || w.has("wait_group") {
            let n = match i.operands.first() {
                Some(Operand::Int(n)) => *n as u32,
                None if w.has("wait_all") => crate::ir::NONE,
                _ => return self.error("expected a literal number of groups"),
            };
            let f = if bulk { nothing } else { asynchronous::wait() };
            self.emit(f, class, Val::None, [Val::None; 3]).x = n;
            return Ok(());
        }
        if bulk {
            return self.bulk(i, w);
        }
        let n = i.operands.len();
        let hint = usize::from(w.mods.iter().any(|m| m.starts_with("L2::cache_hint")));
        if !(3..=4).contains(&(n - hint.min(n))) {
            return self.error("wrong number of operands");
        }
        let (to, from) = (self.address(&i.operands[0])?, self.address(&i.operands[1])?);
        let Operand::Int(size @ (4 | 8 | 16)) = i.operands[2] else { return self.error("cp-size must be 4, 8 or 16") };
        let source = if n - hint == 4 { self.src(&i.operands[3], Ty::U32)? } else { Val::None };
        if let Val::Reg(r) = source
            && self.types[r as usize] == Ty::Pred
        {
            return self.error("the ignore-src form is not supported");
        }
        if !from.wide {
            return self.error("global addresses are 64 bits wide");
        }
        let m = MemOp {
            space: Space::Shared,
            size: size as u32,
            count: 1,
            signed: false,
            wide: false,
            wide_address: to.wide,
            offset: to.offset,
            strong: false,
        };
        let x = self.mem(m);
        let v = self.emit(asynchronous::copy(), class, Val::None, [to.row, from.row, source]);
        (v.x, v.xs) = (x, vec![(Role::Use, Val::Raw(from.offset as u32))]);
        Ok(())
    }

    fn bulk(&mut self, i: &Inst, w: &Words) -> Result<()> {
        if w.has("prefetch") {
            self.emit(nothing, Class::Control, Val::None, [Val::None; 3]);
            return Ok(());
        }
        let to_shared =
            w.mods.iter().position(|m| m.starts_with("shared")) < w.mods.iter().position(|m| *m == "global");
        let m = MemOp {
            space: Space::Shared,
            size: 16,
            count: 1,
            signed: false,
            wide: false,
            wide_address: false,
            offset: 0,
            strong: false,
        };
        let x = self.mem(m);
        let raw = |v: u32| (Role::Use, Val::Raw(v));
        if i.operands.len() < 3 + usize::from(to_shared) {
            return self.error("wrong number of operands");
        }
        let (to, from) = (self.address(&i.operands[0])?, self.address(&i.operands[1])?);
        let size = self.src(&i.operands[2], Ty::U32)?;
        if to_shared {
            let bar = self.address(&i.operands[3])?;
            if bar.offset != 0 || !from.wide {
                return self.error("the mbarrier of a bulk copy must be named without an offset");
            }
            let v = self.emit(asynchronous::bulk_load, Class::AsyncCopy, Val::None, [to.row, from.row, size]);
            v.x = x;
            v.xs = vec![
                raw(u32::from(to.wide)),
                raw(to.offset as u32),
                (Role::Use, bar.row),
                raw(u32::from(bar.wide)),
                raw(from.offset as u32),
            ];
        } else {
            if from.offset != 0 {
                return self.error("the shared source of a bulk copy must be named without an offset");
            }
            let v = self.emit(asynchronous::bulk_store, Class::AsyncCopy, Val::None, [to.row, from.row, size]);
            v.x = x;
            v.xs = vec![raw(1), raw(to.offset as u32), raw(u32::from(from.wide))];
        }
        Ok(())
    }

    fn mbarrier(&mut self, i: &Inst, w: &Words) -> Result<()> {
        let parity = w.has("parity");
        let op = match (w.mods.first().copied().unwrap_or(""), w.has("expect_tx")) {
            ("init", _) => MbarrierOp::Init,
            ("inval", _) => MbarrierOp::Invalidate,
            ("arrive", true) => MbarrierOp::ArriveExpect,
            ("arrive", false) => MbarrierOp::Arrive,
            ("arrive_drop", true) => MbarrierOp::DropExpect,
            ("arrive_drop", false) => MbarrierOp::ArriveDrop,
            ("expect_tx", _) => MbarrierOp::Expect,
            ("complete_tx", _) => MbarrierOp::Complete,
            ("test_wait", _) if parity => MbarrierOp::TestParity,
            ("test_wait", _) => MbarrierOp::TestState,
            ("try_wait", _) if parity => MbarrierOp::TryParity,
            ("try_wait", _) => MbarrierOp::TryState,
            (other, _) => return self.error(format!("mbarrier.{other} is not supported")),
        };
        let mut operands = i.operands.iter();
        let first = i.operands.first();
        let d = if matches!(first, Some(Operand::Address(..))) {
            Val::None
        } else {
            operands.next();
            match first {
                Some(o) => self.dest(o)?,
                None => return self.error("no operands"),
            }
        };
        let Some(at) = operands.next() else { return self.error("expected an address") };
        let a = self.address(at)?;
        let state = matches!(op, MbarrierOp::TestState | MbarrierOp::TryState);
        let b = match operands.next() {
            Some(o) => self.src(o, if state { Ty::U64 } else { Ty::U32 })?,
            None => Val::None,
        };
        let number = MBARRIER_OPS.iter().position(|o| *o == op).unwrap_or(0) as u32;
        let v = self.emit(asynchronous::mbarrier, Class::Barrier, d, [a.row, b, Val::None]);
        v.x = number;
        v.xs = vec![(Role::Use, Val::Raw(u32::from(a.wide))), (Role::Use, Val::Raw(a.offset as u32))];
        Ok(())
    }
}
