//! From virtual instructions to a kernel: liveness, register rows, assembly.
//! In: `Lower::out`. Out: `ir::Kernel`. Owns: the register file's layout.
//! Not here: post-dominators (`cfg`).
//!
//! Liveness is that of one thread. Lanes of a warp may be at different places, but every write is masked by lane, so two
//! registers of which no thread needs both share a row safely.

use super::cfg::post_dominators;
use super::{Lower, Role, Val, Virtual, nothing};
use crate::ir::{Class, Instr, Kernel, Kind, NONE, Param, ROW, Special};
use crate::ptx::{Function, Loc, Result, Space, Ty};
use std::collections::HashMap;

struct Block {
    from: usize,
    to: usize,
    next: Vec<usize>,
}

/// Uses and definitions of an instruction. A guarded definition keeps the old value in some lanes, so it is a use too.
fn visit(v: &Virtual, mut f: impl FnMut(u32, Role)) {
    for s in [v.a, v.b, v.c] {
        if let Val::Reg(r) = s {
            f(r, Role::Use);
        }
    }
    if let Some((g, _)) = v.guard {
        f(g, Role::Use);
    }
    for (role, x) in &v.xs {
        if let Val::Reg(r) = x {
            f(*r, if *role == Role::Def && v.guard.is_some() { Role::Both } else { *role });
        }
    }
    if let Val::Reg(r) = v.d {
        let role = if !v.d_is_def {
            Role::Use
        } else if v.guard.is_some() {
            Role::Both
        } else {
            Role::Def
        };
        f(r, role);
    }
}

fn blocks(out: &[Virtual], labels: &[Option<usize>]) -> (Vec<Block>, Vec<usize>) {
    let mut first = vec![false; out.len() + 1];
    first[0] = true;
    let at = |l: u32| labels[l as usize].unwrap_or(out.len());
    for (n, v) in out.iter().enumerate() {
        match v.kind {
            Kind::Branch | Kind::Indexed => {
                v.targets.iter().for_each(|t| first[at(*t)] = true);
                first[n + 1] = true;
            }
            Kind::Exit => first[n + 1] = true,
            _ => {}
        }
    }
    let starts: Vec<usize> = (0..out.len()).filter(|n| first[*n]).collect();
    let mut of = vec![0; out.len()];
    for (b, from) in starts.iter().enumerate() {
        let to = starts.get(b + 1).copied().unwrap_or(out.len());
        of[*from..to].fill(b);
    }
    let blocks = starts
        .iter()
        .enumerate()
        .map(|(b, from)| {
            let to = starts.get(b + 1).copied().unwrap_or(out.len());
            let last = &out[to - 1];
            let mut next: Vec<usize> = Vec::new();
            let falls = match last.kind {
                Kind::Exit | Kind::Branch => last.guard.is_some(),
                Kind::Indexed => last.guard.is_some(),
                _ => true,
            };
            if falls && to < out.len() {
                next.push(b + 1);
            }
            if matches!(last.kind, Kind::Branch | Kind::Indexed) {
                next.extend(last.targets.iter().map(|t| of[at(*t)]));
            }
            next.sort_unstable();
            next.dedup();
            Block { from: *from, to, next }
        })
        .collect();
    (blocks, of)
}

/// First and last position at which each register holds a value that matters.
fn intervals(out: &[Virtual], blocks: &[Block], regs: usize) -> Vec<Option<(usize, usize)>> {
    let words = regs.div_ceil(64);
    let (mut uses, mut defs) = (vec![vec![0u64; words]; blocks.len()], vec![vec![0u64; words]; blocks.len()]);
    for (b, block) in blocks.iter().enumerate() {
        for v in &out[block.from..block.to] {
            visit(v, |r, role| {
                let (w, bit) = (r as usize / 64, 1u64 << (r % 64));
                if role != Role::Def && defs[b][w] & bit == 0 {
                    uses[b][w] |= bit;
                }
            });
            visit(v, |r, role| {
                let (w, bit) = (r as usize / 64, 1u64 << (r % 64));
                if role == Role::Def {
                    defs[b][w] |= bit;
                }
            });
        }
    }
    let mut live_in = uses.clone();
    let mut live_out = vec![vec![0u64; words]; blocks.len()];
    loop {
        let mut changed = false;
        for b in (0..blocks.len()).rev() {
            for w in 0..words {
                let o = blocks[b].next.iter().fold(0, |o, s| o | live_in[*s][w]);
                let i = uses[b][w] | (o & !defs[b][w]);
                changed |= o != live_out[b][w] || i != live_in[b][w];
                (live_out[b][w], live_in[b][w]) = (o, i);
            }
        }
        if !changed {
            break;
        }
    }
    let mut range: Vec<Option<(usize, usize)>> = vec![None; regs];
    let mut touch = |r: usize, at: usize| {
        let e = range[r].get_or_insert((at, at));
        *e = (e.0.min(at), e.1.max(at));
    };
    for (b, block) in blocks.iter().enumerate() {
        for w in 0..words {
            for (set, at) in [(live_in[b][w], block.from), (live_out[b][w], block.to)] {
                let mut bits = set;
                while bits != 0 {
                    touch(w * 64 + bits.trailing_zeros() as usize, at);
                    bits &= bits - 1;
                }
            }
        }
        for (n, v) in out[block.from..block.to].iter().enumerate() {
            visit(v, |r, _| touch(r as usize, block.from + n));
        }
    }
    range
}

/// Linear scan: each register gets a slot of its kind; a slot is free again after its last position.
fn scan(order: &[(usize, usize, usize)]) -> (HashMap<usize, u32>, u32) {
    let mut slots = HashMap::new();
    let mut free: Vec<u32> = Vec::new();
    let mut busy: std::collections::BinaryHeap<std::cmp::Reverse<(usize, u32)>> = Default::default();
    let mut count = 0;
    for (from, to, r) in order {
        // A row whose last reader is the instruction that defines this register is not reused: some operations write their
        // first result before they have read all operands.
        while let Some(std::cmp::Reverse((end, slot))) = busy.peek().copied() {
            if end >= *from {
                break;
            }
            busy.pop();
            free.push(slot);
        }
        let slot = free.pop().unwrap_or_else(|| {
            count += 1;
            count - 1
        });
        slots.insert(*r, slot);
        busy.push(std::cmp::Reverse((*to, slot)));
    }
    (slots, count)
}

/// Finishes a kernel.
pub(super) fn assemble(mut l: Lower, f: &Function, params: Vec<Param>, param_bytes: u32) -> Result<Kernel> {
    // Every path ends: falling off the end leaves.
    l.guard = None;
    l.out.push(Virtual {
        f: nothing,
        d: Val::None,
        a: Val::None,
        b: Val::None,
        c: Val::None,
        x: 0,
        xs: Vec::new(),
        kind: Kind::Exit,
        class: Class::Control,
        guard: None,
        loc: l.loc,
        op: l.op,
        targets: Vec::new(),
        flops: 0,
        d_is_def: true,
    });
    let out = &l.out;
    for (n, place) in l.labels.iter().enumerate() {
        debug_assert!(place.is_some() || !out.iter().any(|v| v.targets.contains(&(n as u32))));
    }
    let (blocks, of) = blocks(out, &l.labels);
    let ranges = intervals(out, &blocks, l.types.len());
    let class_of = |r: usize| match l.types[r] {
        Ty::Pred => 0,
        t if t.bytes() == 8 => 2,
        _ => 1,
    };
    let mut kinds: [Vec<(usize, usize, usize)>; 3] = Default::default();
    for (r, range) in ranges.iter().enumerate() {
        if let Some((from, to)) = range {
            kinds[class_of(r)].push((*from, *to, r));
        }
    }
    kinds.iter_mut().for_each(|k| k.sort_unstable());
    let [(preds, num_preds), (narrow, num_narrow), (wide, num_wide)] = [0, 1, 2].map(|k| scan(&kinds[k]));

    // Rows: specials, constants, 64-bit registers, 32-bit registers.
    let mut specials: Vec<(u32, Special)> = Vec::new();
    let mut constants: Vec<(u32, u64, bool)> = Vec::new();
    let (mut special_row, mut constant_row) = (HashMap::new(), HashMap::new());
    let mut row = 0u32;
    for v in out {
        for val in [v.a, v.b, v.c].into_iter().chain(v.xs.iter().map(|x| x.1)) {
            if let Val::Special(s) = val {
                special_row.entry(s).or_insert_with(|| {
                    specials.push((row, s));
                    row += 1;
                    row - 1
                });
            }
        }
    }
    for v in out {
        for val in [v.a, v.b, v.c].into_iter().chain(v.xs.iter().map(|x| x.1)) {
            let (bits, wide) = match val {
                Val::C32(b) => (u64::from(b), false),
                Val::C64(b) => (b, true),
                _ => continue,
            };
            constant_row.entry((bits, wide)).or_insert_with(|| {
                constants.push((row, bits, wide));
                row += if wide { 2 } else { 1 };
                row - if wide { 2 } else { 1 }
            });
        }
    }
    let wide_base = row;
    let narrow_base = wide_base + 2 * num_wide;
    let rows = narrow_base + num_narrow;
    let place = |v: Val| -> u32 {
        match v {
            Val::None => NONE,
            Val::Raw(x) => x,
            Val::Special(s) => special_row[&s] * ROW,
            Val::C32(b) => constant_row[&(u64::from(b), false)] * ROW,
            Val::C64(b) => constant_row[&(b, true)] * ROW,
            Val::Reg(r) => {
                let r = r as usize;
                match class_of(r) {
                    0 => preds[&r],
                    1 => (narrow_base + narrow[&r]) * ROW,
                    _ => (wide_base + 2 * wide[&r]) * ROW,
                }
            }
        }
    };
    let meet = post_dominators(&blocks.iter().map(|b| b.next.clone()).collect::<Vec<_>>());
    let at = |label: u32| l.labels[label as usize].unwrap_or(out.len() - 1) as u32;
    let (mut code, mut xs) = (Vec::with_capacity(out.len()), vec![NONE]);
    for (n, v) in out.iter().enumerate() {
        let first = xs.len() as u32;
        xs.extend(v.xs.iter().map(|x| place(x.1)));
        let mut i = Instr {
            f: v.f,
            d: place(v.d),
            a: place(v.a),
            b: place(v.b),
            c: place(v.c),
            x: v.x,
            // Element 0 is NONE: instructions without extra operands may look for an optional one.
            xs: if v.xs.is_empty() { 0 } else { first },
            guard: v.guard.map_or(NONE, |(g, n)| place(Val::Reg(g)) * 2 + u32::from(n)),
            kind: v.kind,
            class: v.class,
        };
        if matches!(v.kind, Kind::Branch | Kind::Indexed) {
            i.a = meet[of[n]].map_or(NONE, |b| blocks[b].from as u32);
            if v.kind == Kind::Branch {
                i.x = at(v.targets[0]);
            } else {
                i.x = v.targets.len() as u32;
                i.xs = xs.len() as u32;
                xs.extend(v.targets.iter().map(|t| at(*t)));
            }
        }
        code.push(i);
    }
    let grain =
        l.mems.iter().filter(|m| matches!(m.space, Space::Shared | Space::Generic)).map(|m| m.size.min(4)).min();
    let mut shared_vars: Vec<_> = l.shared.iter().map(|(n, (o, b))| (n.clone(), *o, *b)).collect();
    shared_vars.sort_by_key(|v| v.1);
    let required = f.required_threads;
    Ok(Kernel {
        name: f.name.clone(),
        params,
        param_bytes,
        static_shared: l.static_shared,
        local_bytes: l.local_bytes.next_multiple_of(16),
        local_used: l.local_bytes,
        max_threads: required.map_or(f.max_threads, |r| r.iter().product()),
        required_threads: required,
        min_blocks: f.min_blocks,
        registers: num_narrow + 2 * num_wide + 4,
        max_registers: f.max_registers,
        ops: out.iter().map(|v| l.ops.get(v.op as usize).cloned().unwrap_or_else(|| "exit".into())).collect(),
        locs: out
            .iter()
            .map(|v| if v.loc == Loc::default() { Loc { ptx_line: f.line, ..v.loc } } else { v.loc })
            .collect(),
        flops: out.iter().map(|v| v.flops).collect(),
        code,
        xs,
        mems: l.mems,
        rows,
        preds: num_preds,
        constants,
        specials,
        shared_grain: grain.unwrap_or(4).trailing_zeros(),
        files: l.module.files.clone(),
        shared_vars,
    })
}
