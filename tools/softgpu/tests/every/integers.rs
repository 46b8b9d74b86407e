//! Integer, logic, shift, bit and selection instructions, as the ISA defines them, bit by bit where it does so.

use crate::common::width;
use crate::harness::{Row, equal, row};

pub fn sign(v: u64, bits: u32) -> i128 {
    let v = i128::from(v) & ((1 << bits) - 1);
    if v >> (bits - 1) & 1 == 1 { v - (1 << bits) } else { v }
}

/// The value of an operand of type `ty`.
pub fn num(v: u64, ty: &str) -> i128 {
    let bits = width(ty);
    if ty.starts_with('s') { sign(v, bits) } else { i128::from(v) & ((1 << bits) - 1) }
}

/// The range of an integer type.
pub fn limits(ty: &str) -> (i128, i128) {
    let b = width(ty);
    if ty.starts_with('s') { (-(1i128 << (b - 1)), (1i128 << (b - 1)) - 1) } else { (0, (1i128 << b) - 1) }
}

fn mask(bits: u32) -> u64 {
    if bits == 64 { u64::MAX } else { (1 << bits) - 1 }
}

pub const INTS: [&str; 6] = ["u16", "s16", "u32", "s32", "u64", "s64"];
const S: &str = "s32";

/// The upper half of a product.
fn high(a: u64, b: u64, t: &str) -> i128 {
    let n = width(t);
    // Two u64 need all 128 bits.
    if t == "u64" { (u128::from(a) * u128::from(b) >> 64) as i128 } else { num(a, t) * num(b, t) >> n }
}

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    arithmetic(&mut rows);
    carries(&mut rows);
    pairs(&mut rows);
    logic(&mut rows);
    bits(&mut rows);
    selection(&mut rows);
    rows
}

fn arithmetic(rows: &mut Vec<Row>) {
    for t in INTS {
        let mut two = |op: String, f: fn(&[u64], &str) -> i128| {
            rows.push(row(op, &[t, t], t, equal(t, move |a| f(a, t) as u64)));
        };
        two(format!("add.{t}"), |a, t| num(a[0], t) + num(a[1], t));
        two(format!("sub.{t}"), |a, t| num(a[0], t) - num(a[1], t));
        two(format!("mul.lo.{t}"), |a, t| num(a[0], t).wrapping_mul(num(a[1], t)));
        two(format!("mul.hi.{t}"), |a, t| high(a[0], a[1], t));
        two(format!("min.{t}"), |a, t| num(a[0], t).min(num(a[1], t)));
        two(format!("max.{t}"), |a, t| num(a[0], t).max(num(a[1], t)));
        for (op, f) in [("div", (|a, b| a / b) as fn(i128, i128) -> i128), ("rem", |a, b| a % b)] {
            // By zero the ISA says nothing.
            let right = move |a: &[u64], got: u64| {
                let (x, y) = (num(a[0], t), num(a[1], t));
                let m = mask(width(t));
                if y == 0 || f(x, y) as u64 & m == got & m { Ok(()) } else { Err(format!("{op} of {x} and {y}")) }
            };
            rows.push(row(format!("{op}.{t}"), &[t, t], t, Box::new(right)));
        }
        let mut three = |op: String, f: fn(&[u64], &str) -> i128| {
            rows.push(row(op, &[t, t, t], t, equal(t, move |a| f(a, t) as u64)));
        };
        three(format!("mad.lo.{t}"), |a, t| num(a[0], t).wrapping_mul(num(a[1], t)).wrapping_add(num(a[2], t)));
        three(format!("mad.hi.{t}"), |a, t| high(a[0], a[1], t) + num(a[2], t));
        three(format!("sad.{t}"), |a, t| (num(a[0], t) - num(a[1], t)).abs() + num(a[2], t));
        if t.starts_with('s') {
            rows.push(row(format!("neg.{t}"), &[t], t, equal(t, move |a| (-num(a[0], t)) as u64)));
            rows.push(row(format!("abs.{t}"), &[t], t, equal(t, move |a| num(a[0], t).abs() as u64)));
        }
        let wide = match t {
            "u16" => "u32",
            "s16" => "s32",
            "u32" => "u64",
            "s32" => "s64",
            _ => continue,
        };
        let product = move |a: &[u64]| num(a[0], t) * num(a[1], t);
        rows.push(row(format!("mul.wide.{t}"), &[t, t], wide, equal(wide, move |a| product(a) as u64)));
        let sum = equal(wide, move |a| (product(a) + num(a[2], wide)) as u64);
        rows.push(row(format!("mad.wide.{t}"), &[t, t, wide], wide, sum));
    }
    let clamp = |v: i128| v.clamp(-(1 << 31), (1 << 31) - 1) as u64;
    rows.push(row("add.sat.s32".into(), &[S, S], S, equal(S, move |a| clamp(num(a[0], S) + num(a[1], S)))));
    rows.push(row("sub.sat.s32".into(), &[S, S], S, equal(S, move |a| clamp(num(a[0], S) - num(a[1], S)))));
    let sum = equal(S, move |a| clamp(high(a[0], a[1], S) + num(a[2], S)));
    rows.push(row("mad.hi.sat.s32".into(), &[S, S, S], S, sum));
    let product24 = |a: &[u64], t: &str| {
        let v = |x: u64| if t == S { sign(x & 0xff_ffff, 24) } else { (x & 0xff_ffff) as i128 };
        v(a[0]) * v(a[1])
    };
    for t in ["u32", S] {
        for (part, shift) in [("lo", 0), ("hi", 16)] {
            let p = equal(t, move |a| (product24(a, t) >> shift) as u64);
            rows.push(row(format!("mul24.{part}.{t}"), &[t, t], t, p));
            let p = equal(t, move |a| ((product24(a, t) >> shift) + num(a[2], t)) as u64);
            rows.push(row(format!("mad24.{part}.{t}"), &[t, t, t], t, p));
        }
    }
    // The upper part is 32 bits before the sum saturates.
    let sum = equal(S, move |a| clamp(sign((product24(a, S) >> 16) as u64, 32) + num(a[2], S)));
    rows.push(row("mad24.hi.sat.s32".into(), &[S, S, S], S, sum));
    for (op, min) in [("min", true), ("max", false)] {
        let pick = move |a: i128, b: i128| if min { a.min(b) } else { a.max(b) };
        let relu = equal(S, move |a| pick(num(a[0], S), num(a[1], S)).max(0) as u64);
        rows.push(row(format!("{op}.relu.s32"), &[S, S], S, relu));
    }
}

/// Carries: what `.cc` leaves is read with `addc` or `subc` of zeros; the flag before is set from the third operand.
fn carries(rows: &mut Vec<Row>) {
    for t in ["u32", "s32", "u64", "s64"] {
        let b = width(t);
        let one = move |v: u128| (v >> b & 1) as u64;
        let m = u128::from(mask(b));
        for (op, subtract) in [("add", false), ("sub", true)] {
            let value = move |a: &[u64], c: u64| {
                let (x, y, c) = (u128::from(a[0]), u128::from(a[1]), u128::from(c));
                // A borrow is the flag of a subtraction.
                if subtract { x.wrapping_sub(y).wrapping_sub(c) } else { x + y + c }
            };
            // -1 + 1 carries, 0 - 1 borrows; anything else clears the flag.
            let set = if subtract { format!("sub.cc.{t} %e, 0, %a2;") } else { format!("add.cc.{t} %e, %a2, -1;") };
            let flag =
                if subtract { format!("subc.{t} %f, 0, 0; neg.s{b} %f, %f;") } else { format!("addc.{t} %f, 0, 0;") };
            let flag_in = |a: &[u64]| u64::from(a[2] & 1 != 0);
            let scope = format!("and.b{b} %a2, %a2, 1; {{ .reg .b{b} %e, %f, %g;");
            let mut case = |op: String, before: &str, after: &str, want: Box<dyn Fn(&[u64]) -> u64>| {
                let text = format!("{scope} {before} {op} %g, %a0, %a1; {after} }}");
                rows.push(Row { op, text, inputs: vec![t; 3], out: t, right: equal(t, want) });
            };
            // Sum and flag in one number: 3 * sum + flag.
            let both = |flag: &str| format!("{flag} mad.lo.u{b} %d, %g, 3, %f;");
            let join = move |v: u128| ((v & m) * 3 + u128::from(one(v))) as u64;
            case(format!("{op}.cc.{t}"), "", &both(&flag), Box::new(move |a| join(value(a, 0))));
            case(format!("{op}c.cc.{t}"), &set, &both(&flag), Box::new(move |a| join(value(a, flag_in(a)))));
            case(
                format!("{op}c.{t}"),
                &set,
                &format!("mov.b{b} %d, %g;"),
                Box::new(move |a| value(a, flag_in(a)) as u64),
            );
        }
        for part in ["lo", "hi"] {
            let product = move |a: &[u64]| {
                let v = if part == "hi" { high(a[0], a[1], t) } else { num(a[0], t).wrapping_mul(num(a[1], t)) };
                u128::from(v as u64) & m
            };
            let scope = format!("{{ .reg .b{b} %e, %f, %g; and.b{b} %f, %a0, 1; add.cc.{t} %e, %f, -1;");
            let flag = format!("addc.{t} %f, 0, 0; mad.lo.u{b} %d, %g, 3, %f; }}");
            let join = move |v: u128| ((v & m) * 3 + u128::from(one(v))) as u64;
            let mut case = |op: String, text: String, want: Box<dyn Fn(&[u64]) -> u64>| {
                rows.push(Row { op, text, inputs: vec![t; 3], out: t, right: equal(t, want) });
            };
            let op = format!("mad.{part}.cc.{t}");
            let text = format!("{scope} {op} %g, %a0, %a1, %a2; {flag}");
            case(op, text, Box::new(move |a| join(product(a) + u128::from(a[2]))));
            let op = format!("madc.{part}.cc.{t}");
            let text = format!("{scope} {op} %g, %a0, %a1, %a2; {flag}");
            case(op, text, Box::new(move |a| join(product(a) + u128::from(a[2]) + u128::from(a[0] & 1))));
            let op = format!("madc.{part}.{t}");
            let text = format!("{scope} {op} %d, %a0, %a1, %a2; }}");
            case(op, text, Box::new(move |a| (product(a) + u128::from(a[2]) + u128::from(a[0] & 1)) as u64));
        }
    }
}

/// Two 16-bit integers in a register.
fn pairs(rows: &mut Vec<Row>) {
    let mut pair = |op: &str, t: &'static str, f: fn(i128, i128) -> i128| {
        let half = if t == "u16x2" { "u16" } else { "s16" };
        let want = move |a: &[u64]| {
            let one = |n: u32| f(num(a[0] >> n, half), num(a[1] >> n, half)) as u64 & 0xffff;
            one(0) | one(16) << 16
        };
        rows.push(row(format!("{op}.{t}"), &[t, t], "b32", equal("b32", want)));
    };
    for t in ["u16x2", "s16x2"] {
        pair("add", t, |a, b| a + b);
        pair("min", t, i128::min);
        pair("max", t, i128::max);
    }
    pair("min.relu", "s16x2", |a, b| a.min(b).max(0));
    pair("max.relu", "s16x2", |a, b| a.max(b).max(0));
}

fn logic(rows: &mut Vec<Row>) {
    for t in ["pred", "b16", "b32", "b64"] {
        rows.push(row(format!("and.{t}"), &[t, t], t, equal(t, |a| a[0] & a[1])));
        rows.push(row(format!("or.{t}"), &[t, t], t, equal(t, |a| a[0] | a[1])));
        rows.push(row(format!("xor.{t}"), &[t, t], t, equal(t, |a| a[0] ^ a[1])));
        rows.push(row(format!("not.{t}"), &[t], t, equal(t, |a| !a[0])));
    }
    for t in ["b16", "b32", "b64"] {
        let b = u64::from(width(t));
        rows.push(row(format!("cnot.{t}"), &[t], t, equal(t, |a| u64::from(a[0] == 0))));
        // Amounts beyond the width are clamped to it.
        let left = equal(t, move |a| if a[1] >= b { 0 } else { a[0] << a[1] });
        rows.push(row(format!("shl.{t}"), &[t, "u32"], t, left));
        for unsigned in [t.to_string(), t.replace('b', "u")] {
            let right = equal(t, move |a| if a[1] >= b { 0 } else { a[0] >> a[1] });
            rows.push(row(format!("shr.{unsigned}"), &[t, "u32"], t, right));
        }
        let right = equal(t, move |a| (sign(a[0], b as u32) >> a[1].min(127)) as u64);
        rows.push(row(format!("shr.s{b}"), &[t, "u32"], t, right));
    }
    for dir in ["l", "r"] {
        for mode in ["wrap", "clamp"] {
            let want = move |a: &[u64]| {
                let n = if mode == "wrap" { a[2] & 31 } else { a[2].min(32) };
                let v = u128::from(a[1]) << 32 | u128::from(a[0]);
                (if dir == "l" { (v << n) >> 32 } else { v >> n }) as u64
            };
            rows.push(row(format!("shf.{dir}.{mode}.b32"), &["b32", "b32", "u32"], "b32", equal("b32", want)));
        }
    }
    for lut in 0..256u64 {
        let want = move |a: &[u64]| {
            let one = |i: u32| lut >> ((a[0] >> i & 1) << 2 | (a[1] >> i & 1) << 1 | (a[2] >> i & 1)) & 1;
            (0..32).map(|i| one(i) << i).sum()
        };
        let text = format!("lop3.b32 %d, %a0, %a1, %a2, {lut};");
        rows.push(Row { op: "lop3.b32".into(), text, inputs: vec!["b32"; 3], out: "b32", right: equal("b32", want) });
    }
}

fn bits(rows: &mut Vec<Row>) {
    for (t, b) in [("b32", 32u32), ("b64", 64)] {
        let ones = equal("u32", move |a| (0..b).map(|i| a[0] >> i & 1).sum());
        rows.push(row(format!("popc.{t}"), &[t], "u32", ones));
        let zeros = equal("u32", move |a| (0..b).rev().take_while(|i| a[0] >> i & 1 == 0).count() as u64);
        rows.push(row(format!("clz.{t}"), &[t], "u32", zeros));
        let reversed = equal(t, move |a| (0..b).map(|i| (a[0] >> i & 1) << (b - 1 - i)).fold(0, |x, y| x | y));
        rows.push(row(format!("brev.{t}"), &[t], t, reversed));
        let insert = equal(t, move |a| {
            let (pos, len) = (a[2] & 0xff, a[3] & 0xff);
            (0..len)
                .take_while(|i| pos + i < u64::from(b))
                .fold(a[1], |f, i| f & !(1 << (pos + i)) | (a[0] >> i & 1) << (pos + i))
        });
        rows.push(row(format!("bfi.{t}"), &[t, t, "u32", "u32"], t, insert));
    }
    for t in ["u32", "s32", "u64", "s64"] {
        let b = width(t);
        for shift in ["", ".shiftamt"] {
            let want = move |a: &[u64]| {
                let v = if t.starts_with('s') && a[0] >> (b - 1) & 1 == 1 { !a[0] & mask(b) } else { a[0] };
                match (0..b).rev().find(|i| v >> i & 1 == 1) {
                    None => u64::from(u32::MAX),
                    Some(i) => u64::from(if shift.is_empty() { i } else { b - 1 - i }),
                }
            };
            rows.push(row(format!("bfind{shift}.{t}"), &[t], "u32", equal("u32", want)));
        }
        let extract = equal(t, move |a| {
            let msb = b - 1;
            let (pos, len) = ((a[1] & 0xff) as u32, (a[2] & 0xff) as u32);
            let s = if t.starts_with('u') || len == 0 { 0 } else { a[0] >> (pos + len - 1).min(msb) & 1 };
            let one = |i: u32| if i < len && pos + i <= msb { a[0] >> (pos + i) & 1 } else { s };
            (0..b).map(|i| one(i) << i).fold(0, |x, y| x | y)
        });
        rows.push(row(format!("bfe.{t}"), &[t, "u32", "u32"], t, extract));
    }
    for mode in ["", ".f4e", ".b4e", ".rc8", ".ecl", ".ecr", ".rc16"] {
        rows.push(row(format!("prmt.b32{mode}"), &["b32"; 3], "b32", equal("b32", move |a| permuted(a, mode))));
    }
    for (p, q) in [("s32", "s32"), ("u32", "u32"), ("s32", "u32"), ("u32", "s32")] {
        let part = |v: u64, n: u32, bits: u32, t: &str| {
            let v = v >> (n * bits) & mask(bits);
            if t == "s32" { sign(v, bits) } else { v as i128 }
        };
        let dot = move |a: &[u64]| {
            let s: i128 = (0..4).map(|n| part(a[0], n, 8, p) * part(a[1], n, 8, q)).sum();
            (s + i128::from(a[2])) as u64
        };
        rows.push(row(format!("dp4a.{p}.{q}"), &["b32"; 3], "b32", equal("b32", dot)));
        for (half, first) in [("lo", 0), ("hi", 2)] {
            let dot = move |a: &[u64]| {
                let s: i128 = (0..2).map(|n| part(a[0], n, 16, p) * part(a[1], first + n, 8, q)).sum();
                (s + i128::from(a[2])) as u64
            };
            rows.push(row(format!("dp2a.{half}.{p}.{q}"), &["b32"; 3], "b32", equal("b32", dot)));
        }
    }
    for mode in ["wrap", "clamp"] {
        let ones = move |a: &[u64]| {
            let n = |v: u64| if mode == "wrap" { v & 31 } else { v.min(32) };
            (0..32).filter(|i| *i >= n(a[0]) && *i - n(a[0]) < n(a[1])).map(|i| 1 << i).sum()
        };
        rows.push(row(format!("bmsk.{mode}.b32"), &["u32", "u32"], "b32", equal("b32", ones)));
        for t in ["u32", "s32"] {
            // The low n bits, and above them zeros or the field's top bit.
            let extend = move |a: &[u64]| {
                let n = if mode == "wrap" { a[1] & 31 } else { a[1].min(32) };
                let top = if t == "s32" && n > 0 { a[0] >> (n - 1) & 1 } else { 0 };
                (0..32).map(|i| (if i < n { a[0] >> i & 1 } else { top }) << i).fold(0, |x, y| x | y)
            };
            rows.push(row(format!("szext.{mode}.{t}"), &[t, "u32"], t, equal(t, extend)));
        }
    }
    let find = |a: &[u64]| {
        let (n, base) = (num(a[2], S), i128::from(a[1]));
        let on = |i: i128| (0..32).contains(&i) && a[0] >> i & 1 == 1;
        let found = if n == 0 {
            on(base).then_some(base)
        } else if n > 0 {
            (base..32.max(base)).filter(|i| on(*i)).nth(n as usize - 1)
        } else {
            (0..=base.min(31)).rev().filter(|i| on(*i) && base < 32).nth((-n) as usize - 1)
        };
        found.map_or(u64::from(u32::MAX), |v| v as u64)
    };
    rows.push(row("fns.b32".into(), &["b32", "u32", S], "u32", equal("u32", find)));
}

fn permuted(a: &[u64], mode: &str) -> u64 {
    let byte = |n: u64| (if n < 4 { a[0] >> (8 * n) } else { a[1] >> (8 * (n - 4)) }) & 0xff;
    let s = a[2] & 3;
    let pick: [u64; 4] = match mode {
        "" => [0, 1, 2, 3].map(|n| {
            let k = a[2] >> (4 * n) & 15;
            let v = byte(k & 7);
            if k & 8 == 0 { v } else { (v >> 7) * 0xff }
        }),
        ".f4e" => [byte(s), byte(s + 1), byte(s + 2), byte(s + 3)],
        ".b4e" => [byte(s), byte((s + 7) & 7), byte((s + 6) & 7), byte((s + 5) & 7)],
        ".rc8" => [byte(s); 4],
        ".ecl" => [0, 1, 2, 3].map(|n| byte(s.max(n))),
        ".ecr" => [0, 1, 2, 3].map(|n| byte(s.min(n))),
        _ => [0, 1, 0, 1].map(|n| byte(n + 2 * (s & 1))),
    };
    pick[0] | pick[1] << 8 | pick[2] << 16 | pick[3] << 24
}

/// mov, selp, slct.
fn selection(rows: &mut Vec<Row>) {
    let all =
        ["b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64", "f16", "f16x2", "bf16", "bf16x2", "f32", "f64"];
    rows.push(row("mov.pred".into(), &["pred"], "pred", equal("pred", |a| a[0])));
    for t in all {
        rows.push(row(format!("mov.{t}"), &[t], t, equal(t, |a| a[0])));
        let chosen = equal(t, |a| if a[2] & 1 == 1 { a[0] } else { a[1] });
        rows.push(row(format!("selp.{t}"), &[t, t, "pred"], t, chosen));
        if t.contains("f16") {
            continue;
        }
        let chosen = equal(t, |a| if num(a[2], S) >= 0 { a[0] } else { a[1] });
        rows.push(row(format!("slct.{t}.s32"), &[t, t, S], t, chosen));
        for ftz in ["", ".ftz"] {
            let at_least_zero = move |v: u64| {
                let f = f32::from_bits(v as u32);
                f >= 0.0 || !ftz.is_empty() && f.is_subnormal()
            };
            let chosen = equal(t, move |a| if at_least_zero(a[2]) { a[0] } else { a[1] });
            rows.push(row(format!("slct{ftz}.{t}.f32"), &[t, t, "f32"], t, chosen));
        }
    }
}
