//! Barriers, shuffles, votes and other warp instructions.
//! In: `ptx::Inst`. Out: `Virtual`s. Owns: their operand forms. Not here: execution (`exec::collective`).

use super::ops::Words;
use super::{Lower, Role, Val, nothing};
use crate::exec::collective;
use crate::exec::text::trap;
use crate::ir::{Class, Kind};
use crate::ptx::{Inst, Operand, Result, Ty};

impl Lower<'_> {
    /// Lowers a synchronisation or warp instruction.
    pub(super) fn sync(&mut self, i: &Inst, w: &Words) -> Result<()> {
        match w.root {
            "bar" if w.has("warp") => {
                let [m] = self.operands::<1>(i)?;
                let m = self.src(m, Ty::B32)?;
                self.emit(collective::warp_barrier, Class::Warp, Val::None, [m, Val::None, Val::None]);
                Ok(())
            }
            "barrier" if w.has("cluster") => {
                // A cluster is one block here, so its barrier is the block's.
                if w.has("arrive") {
                    self.emit(nothing, Class::Barrier, Val::None, [Val::None; 3]);
                } else {
                    let v =
                        self.emit(collective::barrier, Class::Barrier, Val::None, [Val::C32(0), Val::None, Val::None]);
                    v.kind = Kind::Barrier;
                }
                Ok(())
            }
            "bar" | "barrier" => self.barrier(i, w),
            "shfl" => self.shuffle(i, w),
            "vote" => {
                let [d, p, m] = self.operands::<3>(i)?;
                let d = self.dest(d)?;
                let m = self.src(m, Ty::B32)?;
                let (p, negated) = match p {
                    Operand::Int(v) => {
                        // A literal predicate: make one.
                        let r = self.scratch(Ty::Pred);
                        let f = crate::exec::lanes::op_cmp::<u32, u32, _>(|a, b| a != b);
                        let guard = self.guard.take();
                        self.emit(f, Class::Warp, r, [Val::C32(*v as u32), Val::C32(0), Val::None]);
                        self.guard = guard;
                        (r, false)
                    }
                    p => self.pred(p)?,
                };
                let x = match w.mods.get(1).copied() {
                    Some("all") => 0,
                    Some("any") => 1,
                    Some("uni") => 2,
                    Some("ballot") => 3,
                    _ => return self.error("unknown vote"),
                };
                self.emit(collective::vote, Class::Warp, d, [p, m, Val::None]).x = x | u32::from(negated) << 4;
                Ok(())
            }
            "match" => {
                let [d, a, m] = self.operands::<3>(i)?;
                let wide = w.has("b64");
                let (d, p) = match d {
                    Operand::Pair(d, p) => (self.dest(d)?, self.dest(p)?),
                    d => (self.dest(d)?, Val::None),
                };
                let a = self.src(a, if wide { Ty::B64 } else { Ty::B32 })?;
                let m = self.src(m, Ty::B32)?;
                let v = self.emit(collective::matches, Class::Warp, d, [a, m, Val::None]);
                v.x = u32::from(wide) | u32::from(w.has("all")) << 1;
                v.xs = vec![(Role::Def, p)];
                Ok(())
            }
            "redux" => {
                let [d, a, m] = self.operands::<3>(i)?;
                let (d, a, m) = (self.dest(d)?, self.src(a, Ty::B32)?, self.src(m, Ty::B32)?);
                let signed = w.has("s32");
                let x = match w.mods.get(1).copied() {
                    Some("add") => 0,
                    Some("and") => 1,
                    Some("or") => 2,
                    Some("xor") => 3,
                    Some("min") => {
                        if signed {
                            6
                        } else {
                            4
                        }
                    }
                    Some("max") => {
                        if signed {
                            7
                        } else {
                            5
                        }
                    }
                    _ => return self.error("unknown reduction"),
                };
                if w.has("f32") {
                    return self.error("redux of f32 is not supported");
                }
                self.emit(collective::reduce, Class::Warp, d, [a, m, Val::None]).x = x;
                Ok(())
            }
            "activemask" => {
                let [d] = self.operands::<1>(i)?;
                let d = self.dest(d)?;
                self.emit(collective::active_mask, Class::Warp, d, [Val::None; 3]);
                Ok(())
            }
            "elect" => {
                let [d, m] = self.operands::<2>(i)?;
                let Operand::Pair(d, p) = d else { return self.error("expected d|p") };
                let (d, p, m) = (self.dest(d)?, self.dest(p)?, self.src(m, Ty::B32)?);
                let v = self.emit(collective::elect, Class::Warp, d, [Val::None, m, Val::None]);
                v.xs = vec![(Role::Def, p)];
                Ok(())
            }
            "trap" => {
                self.emit(trap, Class::Control, Val::None, [Val::None; 3]);
                Ok(())
            }
            // Breakpoints without a debugger, waits, register budgets, programmatic launches: nothing to do.
            _ => {
                self.emit(nothing, Class::Control, Val::None, [Val::None; 3]);
                Ok(())
            }
        }
    }

    fn shuffle(&mut self, i: &Inst, w: &Words) -> Result<()> {
        if !w.has("sync") {
            return self.error("shfl without .sync does not exist on sm_70 and later");
        }
        let [d, a, b, c, m] = self.operands::<5>(i)?;
        let (d, p) = match d {
            Operand::Pair(d, p) => (self.dest(d)?, self.dest(p)?),
            d => (self.dest(d)?, Val::None),
        };
        let s = [self.src(a, Ty::B32)?, self.src(b, Ty::B32)?, self.src(c, Ty::B32)?];
        let m = self.src(m, Ty::B32)?;
        let x = match w.mods.get(1).copied() {
            Some("up") => 0,
            Some("down") => 1,
            Some("bfly") => 2,
            Some("idx") => 3,
            _ => return self.error("unknown shuffle"),
        };
        let d = if d == Val::None { self.scratch(Ty::B32) } else { d };
        let v = self.emit(collective::shuffle, Class::Warp, d, s);
        (v.x, v.xs) = (x, vec![(Role::Def, p), (Role::Use, m)]);
        Ok(())
    }

    /// `bar.sync a{, b}`, `bar.arrive a, b`, `bar.red.op d, a{, b}, p`; `barrier` is the same with an optional `.aligned`.
    fn barrier(&mut self, i: &Inst, w: &Words) -> Result<()> {
        let red = w.has("red");
        let first = usize::from(red);
        let last = i.operands.len() - usize::from(red).min(i.operands.len());
        if i.operands.len() < 1 + 2 * first || last - first > 2 {
            return self.error("wrong number of operands");
        }
        let id = self.src(&i.operands[first], Ty::U32)?;
        let count = if last - first == 2 { self.src(&i.operands[first + 1], Ty::U32)? } else { Val::None };
        let (mut d, mut c, mut x) = (Val::None, Val::None, 0);
        if red {
            d = self.dest(&i.operands[0])?;
            let (p, negated) = self.pred(&i.operands[last])?;
            c = p;
            x = if w.has("popc") {
                2
            } else if w.has("and") {
                3
            } else {
                4
            } | u32::from(negated) << 3;
        } else if w.has("arrive") {
            x = 1;
            if count == Val::None {
                return self.error("bar.arrive needs a thread count");
            }
        }
        let v = self.emit(collective::barrier, Class::Barrier, d, [id, count, c]);
        (v.kind, v.x) = (Kind::Barrier, x);
        Ok(())
    }
}
