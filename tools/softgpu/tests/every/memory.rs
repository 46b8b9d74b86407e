//! Loads, stores, atomics, address conversions, hints.

use crate::case::{Case, THREADS, noise, slot, slots};
use crate::common::{Random, bytes, width};
use crate::integers::num;
use half::{bf16, f16};

const NARROW: [&str; 10] = ["b8", "b16", "b32", "u8", "u16", "u32", "s8", "s16", "s32", "f32"];
const WIDE: [&str; 4] = ["b64", "u64", "s64", "f64"];

/// Bits of a memory type.
fn size(ty: &str) -> u32 {
    if ty == "b8" { 8 } else { width(ty) }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for vec in ["", ".v2", ".v4"] {
        for ty in NARROW.iter().chain(if vec == ".v4" { &[][..] } else { &WIDE }) {
            for space in [
                "",
                ".global",
                ".shared",
                ".shared::cta",
                ".local",
                ".param",
                ".param::entry",
                ".param::func",
                ".const",
            ] {
                cases.push(load(&format!("ld{space}{vec}.{ty}"), space, vec, ty));
                if !matches!(space, ".const" | ".param::entry") {
                    cases.push(store(&format!("st{space}{vec}.{ty}"), space, vec, ty));
                }
            }
            cases.push(load(&format!("ldu{vec}.{ty}"), "", vec, ty));
            cases.push(load(&format!("ldu.global{vec}.{ty}"), ".global", vec, ty));
        }
    }
    // Hints and orders change no value: one load and one store with each.
    for hints in [
        ".nc.L1::no_allocate.L2::128B",
        ".nc",
        ".L1::evict_last",
        ".ca",
        ".cg",
        ".cs",
        ".lu",
        ".cv",
        ".L2::64B",
        ".L2::256B",
        ".L1::evict_first.L2::evict_last",
    ] {
        cases.push(load(&format!("ld.global{hints}.v4.b32"), ".global", ".v4", "b32"));
    }
    for order in [".weak", ".volatile", ".relaxed.gpu", ".acquire.sys", ".relaxed.cta"] {
        cases.push(load(&format!("ld{order}.global.b32"), ".global", "", "b32"));
    }
    for order in [".weak", ".volatile", ".relaxed.gpu", ".release.sys", ".wb", ".cg", ".cs", ".wt"] {
        cases.push(store(&format!("st{order}.global.b32"), ".global", "", "b32"));
    }
    atomics(&mut cases);
    addresses(&mut cases);
    hints(&mut cases);
    cases
}

fn count(vec: &str) -> usize {
    match vec {
        ".v2" => 2,
        ".v4" => 4,
        _ => 1,
    }
}

fn list(names: &[String]) -> String {
    if names.len() == 1 { names[0].clone() } else { format!("{{{}}}", names.join(", ")) }
}

/// Registers of `n` elements: halves and words in 32-bit registers.
fn registers(ty: &str, n: usize) -> Vec<String> {
    let name = match ty {
        "f32" => "%f",
        "f64" => "%e",
        _ if size(ty) == 64 => "%l",
        _ => "%r",
    };
    (0..n).map(|k| format!("{name}{k}")).collect()
}

/// Puts the thread's slot where a space is, and says how to name it.
fn place(space: &str) -> (&'static str, String, &'static str) {
    let copy = "ld.global.v4.u32 {%r8, %r9, %r10, %r11}, [%me];";
    match space {
        "" | ".global" => ("", String::new(), "%me"),
        ".shared" | ".shared::cta" => (
            ".shared .align 16 .b8 s[512];",
            format!(
                "{copy} mov.u32 %s, s; mad.lo.u32 %s, %t, 16, %s; st.shared.v4.u32 [%s], {{%r8, %r9, %r10, %r11}};"
            ),
            "%s",
        ),
        ".local" => (
            "",
            format!(
                ".local .align 16 .b8 l[16]; {copy} mov.u64 %x, l; st.local.v4.u32 [%x], {{%r8, %r9, %r10, %r11}};"
            ),
            "%x",
        ),
        ".const" => ("CONST", "mov.u64 %x, c;".into(), "%x"),
        _ => ("", String::new(), "p2"),
    }
}

/// The slot of thread `t` in a space: parameters and constants are one for all.
fn bytes_of(space: &str, t: u32) -> Vec<u8> {
    if space.starts_with(".param") || space == ".const" { slot(7) } else { slot(1000 + u64::from(t)) }
}

fn element(slot: &[u8], ty: &str, n: usize) -> u64 {
    let b = size(ty) as usize / 8;
    let mut v = [0; 8];
    v[..b].copy_from_slice(&slot[n * b..n * b + b]);
    u64::from_le_bytes(v)
}

/// A load into registers of 32 or 64 bits, and for narrow types into 16 bits too; each register is stored as a word of 64.
fn load(op: &str, space: &str, vec: &str, ty: &'static str) -> Case {
    let n = count(vec);
    let (module, before, at) = place(space);
    let regs = registers(ty, n);
    let mut body = format!("{before}\n{op} {}, [{at}];\n", list(&regs));
    for (k, r) in regs.iter().enumerate() {
        body += &match size(ty) {
            64 => format!("st.global.b64 [%mine+{}], {r};\n", 8 * k),
            _ => format!("mov.b32 %v, {r}; cvt.u64.u32 %y, %v; st.global.b64 [%mine+{}], %y;\n", 8 * k),
        };
    }
    let half = size(ty) <= 16;
    if half {
        let regs: Vec<String> = (0..n).map(|k| format!("%h{k}")).collect();
        body += &format!("{op} {}, [{at}];\n", list(&regs));
        for (k, r) in regs.iter().enumerate() {
            body += &format!("cvt.u64.u16 %y, {r}; st.global.b64 [%mine+{}], %y;\n", 32 + 8 * k);
        }
    }
    let mut want = Vec::new();
    for t in 0..THREADS {
        let slot = bytes_of(space, t);
        let mut out = [0u64; 8];
        for k in 0..n {
            let v = element(&slot, ty, k);
            // Extended by the type to the register.
            let extended = if ty.starts_with('s') { num(v, ty) as u64 } else { v };
            out[k] = if size(ty) == 64 { v } else { extended & 0xffff_ffff };
            out[4 + k] = if half { extended & 0xffff } else { 0 };
        }
        want.extend(bytes(&out));
    }
    let mut case = Case::new(op, body, slots(), want);
    case.module = constant(module);
    if space == ".param::func" {
        in_function(&mut case, op);
    }
    case
}

fn constant(module: &str) -> String {
    if module != "CONST" {
        return module.to_string();
    }
    let list: Vec<String> = slot(7).iter().map(|b| b.to_string()).collect();
    format!(".const .align 16 .b8 c[16] = {{{}}};", list.join(", "))
}

/// Moves the load into a device function that has the slot as its parameter.
fn in_function(case: &mut Case, op: &str) {
    let body = case.body.replace("[p2]", "[a]");
    case.module = format!(
        ".func f(.param .align 16 .b8 a[16], .param .b64 o)\n{{\n.reg .b64 %mine, %y, %l<8>; .reg .b32 %v, %r<12>; .reg .b16 %h<8>; .reg .f32 %f<4>; .reg .f64 %e<4>;\n\
        ld.param.b64 %mine, [o];\n{body}\nret;\n}}\n"
    );
    assert!(case.module.contains(op));
    case.body = "ld.param.v4.b32 {%r0, %r1, %r2, %r3}, [p2]; { .param .align 16 .b8 q0[16]; .param .b64 q1;\n\
        st.param.v4.b32 [q0], {%r0, %r1, %r2, %r3}; st.param.b64 [q1], %mine; call.uni f, (q0, q1); }"
        .into();
}

/// Elements of the thread's slot stored over a filled one; the 16 bytes read back.
fn store(op: &str, space: &str, vec: &str, ty: &'static str) -> Case {
    let n = count(vec);
    let regs = registers(ty, n);
    let fill = 0xa5a5_a5a5u32;
    let mut body = format!("mov.u32 %v, {fill};\n");
    let b = size(ty) / 8;
    for (k, r) in regs.iter().enumerate() {
        let raw = if b <= 2 { format!("u{}", 8 * b) } else { format!("b{}", 8 * b) };
        body += &format!("ld.global.{raw} {r}, [%me+{}];\n", k as u32 * b);
    }
    let values = list(&regs);
    let read = |at: &str, space: &str| {
        format!("ld{space}.v4.b32 {{%r4, %r5, %r6, %r7}}, [{at}]; st.global.v4.b32 [%mine], {{%r4, %r5, %r6, %r7}};")
    };
    let mut module = String::new();
    let (v, s) = ("{%v, %v, %v, %v}", space.trim_end_matches("::cta"));
    body += &match space {
        "" | ".global" => format!("st.global.v4.b32 [%me], {v}; {op} [%me], {values}; {}", read("%me", ".global")),
        ".shared" | ".shared::cta" => {
            module = ".shared .align 16 .b8 s[512];".into();
            let at = "mov.u32 %s, s; mad.lo.u32 %s, %t, 16, %s;";
            format!("{at} st.shared.v4.b32 [%s], {v}; {op} [%s], {values}; {}", read("%s", s))
        }
        ".local" => {
            let at = ".local .align 16 .b8 l[16]; mov.u64 %x, l;";
            format!("{at} st.local.v4.b32 [%x], {v}; {op} [%x], {values}; {}", read("%x", s))
        }
        _ => {
            module = ".func f(.param .align 16 .b8 a[16], .param .b64 o)\n{\n.reg .b64 %mine; .reg .b32 %r<8>;\nld.param.b64 %mine, [o];\n"
                .to_string()
                + &read("a", ".param")
                + "\nret;\n}\n";
            format!(
                "{{ .param .align 16 .b8 q0[16]; .param .b64 q1; st.param.v4.b32 [q0], {v}; {op} [q0], {values}; st.param.b64 [q1], %mine; call.uni f, (q0, q1); }}"
            )
        }
    };
    let mut want = Vec::new();
    for t in 0..THREADS {
        let mut out = [0xa5u8; 16];
        let from = slot(1000 + u64::from(t));
        out[..n * b as usize].copy_from_slice(&from[..n * b as usize]);
        want.extend([&out[..], &[0; 48]].concat());
    }
    let mut case = Case::new(op, body, slots(), want);
    case.module = module;
    case
}

/// Thirty-two lanes on one word, one after the other.
fn atomics(cases: &mut Vec<Case>) {
    let mut ops: Vec<(String, &'static str)> = Vec::new();
    for ty in ["b32", "b64"] {
        ops.extend(["and", "or", "xor", "exch", "cas"].map(|op| (op.to_string(), ty)));
    }
    ops.push(("cas".into(), "b16"));
    for ty in ["u32", "s32", "u64", "s64"] {
        ops.extend(["add", "min", "max"].map(|op| (op.to_string(), ty)));
    }
    ops.extend([("inc".to_string(), "u32"), ("dec".into(), "u32"), ("add".into(), "f32"), ("add".into(), "f64")]);
    ops.extend(["f16", "f16x2", "bf16", "bf16x2"].map(|ty| ("add.noftz".to_string(), ty)));
    for (op, ty) in ops {
        for space in ["", ".global", ".shared", ".shared::cta"] {
            let name = format!("atom{space}.{op}.{ty}");
            cases.push(atomic(&name, space, &op, ty, true));
            if op != "exch" && op != "cas" {
                cases.push(atomic(&format!("red{space}.{op}.{ty}"), space, &op, ty, false));
            }
        }
    }
    cases.push(atomic("atom.acq_rel.gpu.global.add.u32", ".global", "add", "u32", true));
    cases.push(atomic("red.relaxed.gpu.global.add.u32", ".global", "add", "u32", false));
    cases.push(atomic("atom.global.sys.add.u32", ".global", "add", "u32", true));
}

fn atomic(name: &str, space: &str, op: &str, ty: &'static str, result: bool) -> Case {
    let bits = width(ty);
    let mut r = Random(31);
    let mask = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    // Floats of moderate size: sums stay finite.
    let float = |r: &mut Random| {
        let v = f64::from(r.unit()) * 8.0;
        match ty {
            "f64" => v.to_bits(),
            "f32" => u64::from((v as f32).to_bits()),
            "f16" => u64::from(f16::from_f64(v).to_bits()),
            "bf16" => u64::from(bf16::from_f64(v).to_bits()),
            "f16x2" => u64::from(f16::from_f64(v).to_bits()) | u64::from(f16::from_f64(v / 3.0).to_bits()) << 16,
            _ => u64::from(bf16::from_f64(v).to_bits()) | u64::from(bf16::from_f64(v / 3.0).to_bits()) << 16,
        }
    };
    let value = |r: &mut Random| if ty.contains('f') { float(r) } else { r.bits() & mask };
    let operands: Vec<u64> = (0..32).map(|_| value(&mut r)).collect();
    let start = value(&mut r);
    // A compare-and-swap that succeeds on every other lane: it expects what the lane before left.
    let (mut m, mut olds, mut expected) = (start, Vec::new(), Vec::new());
    for (l, b) in operands.iter().enumerate() {
        olds.push(m);
        expected.push(if l % 2 == 0 { m } else { m ^ 1 });
        m = match op {
            "cas" => {
                if l % 2 == 0 {
                    *b
                } else {
                    m
                }
            }
            op => apply(op, ty, m, *b) & mask,
        };
    }
    let (reg, at) = match bits {
        16 => ("%h", "b16"),
        64 => ("%l", "b64"),
        _ => ("%r", "b32"),
    };
    // Each lane's slot is its operand and the value it expects; the word itself is behind all of them.
    let mut input: Vec<u64> = (0..32).flat_map(|l| [operands[l], expected[l]]).collect();
    input.extend([start, 0]);
    let mut body = format!("ld.global.{at} {reg}0, [%me]; ld.global.{at} {reg}1, [%me+8];\n");
    let mut module = String::new();
    let target = if space.starts_with(".shared") {
        module = ".shared .align 8 .b8 s[8];".into();
        body += &format!(
            "ld.global.{at} {reg}2, [%in+512]; st.shared.{at} [s], {reg}2; bar.warp.sync -1; mov.u32 %s, s;\n"
        );
        "[%s]"
    } else {
        "[%in+512]"
    };
    let list = if op == "cas" { format!("{reg}1, {reg}0") } else { format!("{reg}0") };
    body += &if result {
        format!("{name} {reg}3, {target}, {list}; st.global.{at} [%mine], {reg}3;\n")
    } else {
        format!("{name} {target}, {list};\n")
    };
    body += "bar.warp.sync -1;\n";
    let from = if space.starts_with(".shared") { "ld.shared" } else { "ld.global" };
    body += &format!("{from}.{at} {reg}4, {target}; st.global.{at} [%mine+8], {reg}4;");
    let mut want = Vec::new();
    for old in &olds {
        want.extend(bytes(&[if result { *old } else { 0 }, m, 0, 0, 0, 0, 0, 0]));
    }
    let mut case = Case::new(name, body, bytes(&input), want);
    case.module = module;
    case
}

fn apply(op: &str, ty: &str, old: u64, b: u64) -> u64 {
    let half = |v: u64| f16::from_bits(v as u16).to_f64();
    let brain = |v: u64| bf16::from_bits(v as u16).to_f64();
    // Sums of two 16-bit floats are exact in f64.
    let h = |x: u64, y: u64| u64::from(f16::from_f64(half(x) + half(y)).to_bits());
    let g = |x: u64, y: u64| u64::from(bf16::from_f64(brain(x) + brain(y)).to_bits());
    match (op, ty) {
        ("and", _) => old & b,
        ("or", _) => old | b,
        ("xor", _) => old ^ b,
        ("exch", _) => b,
        ("inc", _) => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        ("dec", _) => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
        ("min", _) => {
            if num(old, ty) < num(b, ty) {
                old
            } else {
                b
            }
        }
        ("max", _) => {
            if num(old, ty) > num(b, ty) {
                old
            } else {
                b
            }
        }
        (_, "f32") => u64::from((f32::from_bits(old as u32) + f32::from_bits(b as u32)).to_bits()),
        (_, "f64") => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        (_, "f16") => h(old, b),
        (_, "bf16") => g(old, b),
        (_, "f16x2") => h(old & 0xffff, b & 0xffff) | h(old >> 16, b >> 16) << 16,
        (_, "bf16x2") => g(old & 0xffff, b & 0xffff) | g(old >> 16, b >> 16) << 16,
        _ => old.wrapping_add(b),
    }
}

/// An address of a space made generic reads the same value, is in its space, and comes back.
fn addresses(cases: &mut Vec<Case>) {
    for space in ["global", "shared", "shared::cta", "local", "const", "param"] {
        let dotted = format!(".{space}");
        let (module, before, at) = place(&dotted);
        let address = match at {
            "%s" => "cvt.u64.u32 %x, %s;",
            "%me" => "mov.u64 %x, %me;",
            "p2" => "mov.b64 %x, p2;",
            _ => "",
        };
        let (to, back) = (format!("cvta.{space}.u64"), format!("cvta.to.{space}.u64"));
        // Constants are global memory here, and have no test of their own space.
        let asked = if space == "const" { "global" } else { space };
        let other = if space == "local" { "shared" } else { "local" };
        let read = if space == "param" { "ld.param.b32 %w, [p2];" } else { &format!("ld.{space}.b32 %w, [%y];") };
        let body = format!(
            "{before}\n{address} {to} %y, %x; ld.b32 %d, [%y]; isspacep.{asked} %p, %y; isspacep.{other} %q, %y;\n\
            {back} %y, %y; {read} setp.ne.u64 %q|%p, %x, %y, !%p; selp.b32 %v, 1, 0, %q;\n\
            st.global.v4.b32 [%mine], {{%d, %w, %v, %v}};"
        );
        // setp gives q = (x != y) without a combination; the predicates are looked at one by one below.
        let body = body.replace(
            "setp.ne.u64 %q|%p, %x, %y, !%p; selp.b32 %v, 1, 0, %q;",
            "selp.b32 %v, 1, 0, %p; @%q add.u32 %v, %v, 2; setp.ne.u64 %p, %x, %y; @%p add.u32 %v, %v, 4;",
        );
        let mut want = Vec::new();
        for t in 0..THREADS {
            let v = element(&bytes_of(&dotted, t), "u32", 0) as u32;
            want.extend(bytes(&[[v, v, 1, 1].as_slice(), &[0; 12]].concat()));
        }
        let mut case = Case::new(&to, body, slots(), want);
        case.about.push(back);
        case.about.push(format!("isspacep.{asked}"));
        case.module = constant(module);
        cases.push(case);
    }
    let body = "mov.b64 %x, p2; cvta.param.u64 %y, %x; isspacep.param::entry %p, %y; selp.b32 %d, 1, 0, %p; isspacep.param::entry %p, %in; @%p mov.u32 %d, 5;";
    cases.push(Case::word("isspacep.param::entry", body, &noise(128), |_| 1));
}

/// Instructions that only advise or order: the value around them stays.
fn hints(cases: &mut Vec<Case>) {
    let data = noise(128);
    for text in [
        "prefetch.global.L2 [%me];",
        "prefetch.global.L1 [%me];",
        "prefetch.global.L2::evict_last [%me];",
        "prefetchu.L1 [%me];",
        "applypriority.global.L2::evict_normal [%in], 128;",
        "createpolicy.fractional.L2::evict_last.b64 %l0, 1.0;",
        "createpolicy.fractional.L2::evict_first.L2::evict_unchanged.b64 %l0, 0.5;",
        "createpolicy.range.global.L2::evict_last.L2::evict_first.b64 %l0, [%in], 64, 128;",
        "membar.cta;",
        "membar.gl;",
        "membar.sys;",
        "fence.acq_rel.gpu;",
        "fence.sc.sys;",
        "fence.proxy.async;",
        "fence.proxy.async.shared::cta;",
        "fence.mbarrier_init.release.cluster;",
        "nanosleep.u32 20;",
        "pmevent 3;",
        "pmevent.mask 3;",
        "griddepcontrol.wait;",
        "griddepcontrol.launch_dependents;",
        "setmaxnreg.inc.sync.aligned.u32 232;",
        "setmaxnreg.dec.sync.aligned.u32 40;",
        "brkpt;",
    ] {
        let op = text.split([' ', ';']).next().unwrap();
        let data = data.clone();
        let body = format!("ld.global.u32 %d, [%me]; {text} add.u32 %d, %d, 1;");
        cases.push(Case::word(op, &body, &data.clone(), move |t| data[4 * t].wrapping_add(1)));
    }
    // What is discarded has no value until it is written again.
    let body = "discard.global.L2 [%in], 128; st.global.u32 [%me], %t; ld.global.u32 %d, [%me];";
    cases.push(Case::word("discard.global.L2", body, &data, |t| t as u32));
    // A load with a cache policy as its last operand.
    let body =
        "createpolicy.fractional.L2::evict_first.b64 %l0; ld.global.L1::no_allocate.L2::cache_hint.b32 %d, [%me], %l0;";
    let want = data.clone();
    cases.push(Case::word("ld.global.L1::no_allocate.L2::cache_hint.b32", body, &data, move |t| want[4 * t]));
}
