//! mma.sync, ldmatrix, stmatrix, movmatrix.
//! In: `ptx::Inst`. Out: `Virtual`s. Owns: shapes, register counts, FLOPs. Not here: fragments and arithmetic (`exec::tensor`).

use super::ops::Words;
use super::{Lower, Role, Val};
use crate::exec::tensor::{ldmatrix, mma, movmatrix, stmatrix};
use crate::ir::{Class, MemOp, OpFn};
use crate::ptx::{Inst, Operand, Result, Space, Ty};

impl Lower<'_> {
    /// Lowers a tensor-core instruction.
    pub(super) fn tensor(&mut self, i: &Inst, w: &Words) -> Result<()> {
        match w.root {
            "mma" => self.mma(i, w),
            "ldmatrix" | "stmatrix" => self.matrices(i, w),
            "movmatrix" => self.emit1(i, movmatrix, Class::LoadMatrix, Ty::B32),
            other => self.error(format!("`{other}` is not supported")),
        }
    }

    /// `mma.sync.aligned.m16n8kK.row.col[.satfinite].dtype.atype.btype.ctype d, a, b, c`.
    fn mma(&mut self, i: &Inst, w: &Words) -> Result<()> {
        let shape = w.mods.iter().find_map(|m| m.strip_prefix("m16n8k"));
        let Some(k) = shape.and_then(|k| k.parse::<u32>().ok()) else {
            return self.error("only the shapes m16n8k* are supported");
        };
        if !w.has("row") || !w.has("col") || w.has("sp") || w.mods.iter().any(|m| m.starts_with("sp::")) {
            return self.error("only dense .row.col is supported");
        }
        let col = w.mods.iter().position(|m| *m == "col").unwrap_or(0);
        let mut rest: Vec<&str> = w.mods[col + 1..].to_vec();
        let saturate = rest.first() == Some(&"satfinite");
        if saturate {
            rest.remove(0);
        }
        let [d_ty, a_ty, b_ty, c_ty] = rest[..] else { return self.error("expected four types") };
        let signed = |t: &str| t.starts_with('s');
        let same_kind = a_ty == b_ty || a_ty[1..] == b_ty[1..] && !matches!(a_ty, "f16" | "bf16" | "tf32");
        let found = if same_kind && d_ty == c_ty { mma(k, a_ty, d_ty) } else { None };
        let Some(found) = found else { return self.error("this combination of shape and types is not supported") };
        let [d, a, b, c] = self.operands::<4>(i)?;
        let mut xs = Vec::new();
        let [num_c, num_a, num_b] = found.registers;
        for (o, n, role) in [(d, num_c, Role::Def), (a, num_a, Role::Use), (b, num_b, Role::Use), (c, num_c, Role::Use)]
        {
            // A fragment of one register may be written without braces.
            let parts = match o {
                Operand::Vector(v) => &v[..],
                o => std::slice::from_ref(o),
            };
            if parts.len() != n {
                return self.error(format!("a fragment has {n} registers, found {}", parts.len()));
            }
            for p in parts {
                let v = if role == Role::Def { self.dest(p)? } else { self.src(p, Ty::B32)? };
                // A result no one wants still needs a place.
                let v = if v == Val::None { self.scratch(Ty::B32) } else { v };
                xs.push((role, v));
            }
        }
        let x = u32::from(signed(a_ty)) | u32::from(signed(b_ty)) << 1 | u32::from(saturate) << 2;
        let v = self.emit(found.f, Class::Mma, Val::None, [Val::None; 3]);
        (v.x, v.xs, v.flops) = (x, xs, 2 * 16 * 8 * k);
        Ok(())
    }

    /// `ldmatrix.sync.aligned.m8n8.x{1,2,4}[.trans][.shared].b16 {r..}, [address]`, and `stmatrix` with its operands swapped.
    fn matrices(&mut self, i: &Inst, w: &Words) -> Result<()> {
        let n = if w.has("x4") {
            4
        } else if w.has("x2") {
            2
        } else {
            1
        };
        let store = w.root == "stmatrix";
        let [first, second] = self.operands::<2>(i)?;
        let (registers, address) = if store { (second, first) } else { (first, second) };
        let parts = match registers {
            Operand::Vector(v) => &v[..],
            o => std::slice::from_ref(o),
        };
        if parts.len() != n {
            return self.error(format!("expected {n} registers, found {}", parts.len()));
        }
        let mut xs = Vec::new();
        for p in parts {
            if store {
                xs.push((Role::Use, self.src(p, Ty::B32)?));
                continue;
            }
            let v = self.dest(p)?;
            xs.push((Role::Def, if v == Val::None { self.scratch(Ty::B32) } else { v }));
        }
        let a = self.address(address)?;
        self.mems.push(MemOp {
            space: Space::Shared,
            size: 16,
            count: n as u32,
            signed: false,
            wide: false,
            wide_address: a.wide,
            offset: a.offset,
            strong: false,
        });
        let x = self.mems.len() as u32 - 1 | u32::from(w.has("trans")) << 31;
        let f: OpFn = if store { stmatrix } else { ldmatrix() };
        let class = if store { Class::SharedStore } else { Class::LoadMatrix };
        let v = self.emit(f, class, Val::None, [a.row, Val::None, Val::None]);
        (v.x, v.xs) = (x, xs);
        Ok(())
    }
}
