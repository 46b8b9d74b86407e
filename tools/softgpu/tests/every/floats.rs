//! Floating-point arithmetic in every rounding, flushing and saturation, and the approximate instructions within the error
//! that the ISA documents.

use crate::common::width;
use crate::harness::{Definition, Row, equal, row};
use crate::number::{Format, Mode, Num, format};

/// The name of a format's element and its halves in a register.
fn halves(ty: &str) -> u32 {
    if ty.ends_with("x2") { 2 } else { 1 }
}

/// A definition on numbers as one on bits: operands read and flushed, the result rounded, flushed and clamped.
/// Any NaN stands for a NaN of f64; the other formats have one.
fn arithmetic(
    ty: &'static str,
    mode: Mode,
    (ftz, sat, relu): (bool, bool, bool),
    f: impl Fn(&[Num], Mode) -> Num + 'static,
) -> Definition {
    let form = format(ty);
    Box::new(move |a, got| {
        for half in 0..halves(ty) {
            let part = |v: u64| if halves(ty) == 2 { v >> (16 * half) & 0xffff } else { v };
            let read = |v: &u64| {
                let n = Num::read(part(*v), form);
                if ftz { n.flushed(form) } else { n }
            };
            let args: Vec<Num> = a.iter().map(read).collect();
            let want = finish(f(&args, mode), form, mode, ftz, sat, relu);
            let got = part(got);
            if want != got
                && !(form == Format(11, 52) && Num::read(want, form).is_nan() && Num::read(got, form).is_nan())
            {
                return Err(format!("expected {want:#x}, got {got:#x}"));
            }
        }
        Ok(())
    })
}

fn finish(v: Num, form: Format, mode: Mode, ftz: bool, sat: bool, relu: bool) -> u64 {
    let one = (((1u64 << (form.0 - 1)) - 1) << form.1, 0u64);
    let mut r = v.round(form, mode);
    if ftz {
        r = Num::read(r, form).flushed(form).round(form, "rn");
    }
    let n = Num::read(r, form);
    if sat {
        return if n.is_nan() || n.negative() { one.1 } else { r.min(one.0) };
    }
    if relu && n.negative() { 0 } else { r }
}

const MODES: [Mode; 4] = ["rn", "rz", "rm", "rp"];

fn add(a: &[Num], mode: Mode) -> Num {
    a[0].add(&a[1], mode)
}
fn sub(a: &[Num], mode: Mode) -> Num {
    a[0].add(&a[1].neg(), mode)
}
fn mul(a: &[Num], _: Mode) -> Num {
    a[0].mul(&a[1])
}
fn fma(a: &[Num], mode: Mode) -> Num {
    a[0].mul(&a[1]).add(&a[2], mode)
}
fn div(a: &[Num], _: Mode) -> Num {
    a[0].div(&a[1])
}
fn rcp(a: &[Num], _: Mode) -> Num {
    Num::integer(1).div(&a[0])
}
fn sqrt(a: &[Num], _: Mode) -> Num {
    a[0].sqrt()
}

type Exact = fn(&[Num], Mode) -> Num;

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let with = |on: bool, word: &'static str| if on { word } else { "" };
    for mode in ["", "rn", "rz", "rm", "rp"] {
        let m: Mode = if mode.is_empty() { "rn" } else { mode };
        let dot = if mode.is_empty() { String::new() } else { format!(".{mode}") };
        for (op, f, n) in [("add", add as Exact, 2), ("sub", sub, 2), ("mul", mul, 2), ("fma", fma, 3), ("mad", fma, 3)]
        {
            if n == 3 && mode.is_empty() {
                continue;
            }
            rows.push(row(
                format!("{op}{dot}.f64"),
                &["f64"; 3][..n],
                "f64",
                arithmetic("f64", m, (false, false, false), f),
            ));
            for (ftz, sat) in [(false, false), (true, false), (false, true), (true, true)] {
                let name = format!("{op}{dot}{}{}.f32", with(ftz, ".ftz"), with(sat, ".sat"));
                rows.push(row(name, &["f32"; 3][..n], "f32", arithmetic("f32", m, (ftz, sat, false), f)));
            }
        }
    }
    for mode in MODES {
        for (op, f, n) in [("div", div as Exact, 2), ("rcp", rcp, 1), ("sqrt", sqrt, 1)] {
            rows.push(row(
                format!("{op}.{mode}.f64"),
                &["f64"; 2][..n],
                "f64",
                arithmetic("f64", mode, (false, false, false), f),
            ));
            for ftz in [false, true] {
                let name = format!("{op}.{mode}{}.f32", with(ftz, ".ftz"));
                rows.push(row(name, &["f32"; 2][..n], "f32", arithmetic("f32", mode, (ftz, false, false), f)));
            }
        }
    }
    half(&mut rows);
    choices(&mut rows);
    signs(&mut rows);
    approximate(&mut rows);
    rows
}

fn half(rows: &mut Vec<Row>) {
    let with = |on: bool, word: &'static str| if on { word } else { "" };
    for ty in ["f16", "f16x2", "bf16", "bf16x2"] {
        let brain = ty.starts_with('b');
        for (op, f) in [("add", add as Exact), ("sub", sub), ("mul", mul)] {
            for rn in ["", ".rn"] {
                for (ftz, sat) in [(false, false), (true, false), (false, true), (true, true)] {
                    if !brain || !ftz && !sat {
                        let name = format!("{op}{rn}{}{}.{ty}", with(ftz, ".ftz"), with(sat, ".sat"));
                        rows.push(row(name, &[ty; 2], ty, arithmetic(ty, "rn", (ftz, sat, false), f)));
                    }
                }
            }
        }
        for ftz in [false, true] {
            for (word, sat, relu) in [("", false, false), (".sat", true, false), (".relu", false, true)] {
                if !brain || !ftz && !sat {
                    let name = format!("fma.rn{}{word}.{ty}", with(ftz, ".ftz"));
                    rows.push(row(name, &[ty; 3], ty, arithmetic(ty, "rn", (ftz, sat, relu), fma)));
                }
            }
        }
    }
}

/// min and max: a NaN loses unless `.NaN`; -0 is below +0; `.xorsign.abs` takes magnitudes and the exclusive or of the signs.
fn choices(rows: &mut Vec<Row>) {
    for ty in ["f16", "f16x2", "bf16", "bf16x2", "f32", "f64"] {
        for (op, max) in [("min", false), ("max", true)] {
            for ftz in ["", ".ftz"] {
                for nan in ["", ".NaN"] {
                    for xorsign in ["", ".xorsign.abs"] {
                        let plain = ftz.is_empty() && nan.is_empty() && xorsign.is_empty();
                        if ty == "f64" && !plain || ty.starts_with('b') && !ftz.is_empty() {
                            continue;
                        }
                        let form = format(ty);
                        let sign = 1u64 << (form.0 + form.1);
                        let one = move |a: u64, b: u64| -> u64 {
                            let tiny = |v: u64| v >> form.1 & ((1 << form.0) - 1) == 0;
                            let f = |v: u64| if !ftz.is_empty() && tiny(v) { v & sign } else { v };
                            let (a, b) = (f(a), f(b));
                            let s = if xorsign.is_empty() { 0 } else { (a ^ b) & sign };
                            let (a, b) = if xorsign.is_empty() { (a, b) } else { (a & !sign, b & !sign) };
                            let bad = |v: u64| Num::read(v, form).is_nan();
                            let key = |v: u64| if v & sign != 0 { -((v ^ sign) as i128) - 1 } else { v as i128 };
                            match (bad(a), bad(b)) {
                                (true, true) => sign - 1,
                                (true, false) | (false, true) if !nan.is_empty() => sign - 1,
                                (true, false) => b | s,
                                (false, true) => a | s,
                                _ => (if (key(a) > key(b)) == max { a } else { b }) | s,
                            }
                        };
                        let right = move |a: &[u64], got: u64| {
                            for h in 0..halves(ty) {
                                let part = |v: u64| if halves(ty) == 2 { v >> (16 * h) & 0xffff } else { v };
                                let (w, g) = (one(part(a[0]), part(a[1])), part(got));
                                let nan = |v: u64| Num::read(v, form).is_nan();
                                if w != g && !(nan(w) && nan(g)) {
                                    return Err(format!("expected {w:#x}, got {g:#x}"));
                                }
                            }
                            Ok(())
                        };
                        let name = format!("{op}{ftz}{nan}{xorsign}.{ty}");
                        rows.push(row(name, &[ty, ty], ty, Box::new(right)));
                    }
                }
            }
        }
    }
}

fn signs(rows: &mut Vec<Row>) {
    for ty in ["f16", "f16x2", "bf16", "bf16x2", "f32", "f64"] {
        let form = format(ty);
        for ftz in ["", ".ftz"] {
            if !ftz.is_empty() && matches!(ty, "f64" | "bf16" | "bf16x2") {
                continue;
            }
            for op in ["neg", "abs"] {
                let sign = 1u64 << (form.0 + form.1);
                let one = move |v: u64| {
                    let v = if op == "neg" { v ^ sign } else { v & !sign };
                    // Exponent bits all zero: zero or subnormal.
                    let tiny = v >> form.1 & ((1 << form.0) - 1) == 0;
                    if !ftz.is_empty() && tiny { v & sign } else { v }
                };
                let want = move |a: &[u64]| {
                    if halves(ty) == 2 { one(a[0] & 0xffff) | one(a[0] >> 16) << 16 } else { one(a[0]) }
                };
                rows.push(row(format!("{op}{ftz}.{ty}"), &[ty], ty, equal(ty, want)));
            }
        }
    }
    for ty in ["f32", "f64"] {
        let form = format(ty);
        let sign = 1u64 << (width(ty) - 1);
        let mixed = equal(ty, move |a| a[0] & sign | a[1] & (sign - 1));
        rows.push(row(format!("copysign.{ty}"), &[ty, ty], ty, mixed));
        for property in ["finite", "infinite", "number", "notanumber", "normal", "subnormal"] {
            let want = move |a: &[u64]| {
                let (e, m) = (a[0] >> form.1 & ((1 << form.0) - 1), a[0] & ((1 << form.1) - 1));
                let top = (1 << form.0) - 1;
                u64::from(match property {
                    "finite" => e != top,
                    "infinite" => e == top && m == 0,
                    "number" => e != top || m == 0,
                    "notanumber" => e == top && m != 0,
                    "normal" => e != top && e != 0,
                    _ => e == 0 && m != 0,
                })
            };
            rows.push(row(format!("testp.{property}.{ty}"), &[ty], "pred", equal("pred", want)));
        }
    }
}

fn value(v: u64, ty: &str) -> f64 {
    match ty {
        "f64" => f64::from_bits(v),
        "f32" => f64::from(f32::from_bits(v as u32)),
        "f16" => half::f16::from_bits(v as u16).to_f64(),
        _ => half::bf16::from_bits(v as u16).to_f64(),
    }
}

/// Within a relative and an absolute error of a function of the host, which works in f64. Flushed forms may give zero where
/// operand or result is subnormal. Outside `domain` the ISA promises nothing but that NaN stays NaN.
fn near(
    ty: &'static str,
    ftz: bool,
    (relative, absolute): (f64, f64),
    domain: fn(&[f64]) -> bool,
    f: fn(&[f64]) -> f64,
) -> Definition {
    let element = if halves(ty) == 2 { &ty[..ty.len() - 2] } else { ty };
    let form = format(ty);
    let largest = 2f64.powi(1 << (form.0 - 1)) * (1.0 - 2f64.powi(-1 - form.1 as i32));
    let smallest = 2f64.powi(2 - (1 << (form.0 - 1)));
    Box::new(move |a, got| {
        for h in 0..halves(ty) {
            let part = |v: u64| if halves(ty) == 2 { v >> (16 * h) & 0xffff } else { v };
            let flush = |x: f64| if ftz && x.abs() < smallest { 0f64.copysign(x) } else { x };
            let x: Vec<f64> = a.iter().map(|v| flush(value(part(*v), element))).collect();
            let g = value(part(got), element);
            if x.iter().any(|x| x.is_nan()) {
                if !g.is_nan() {
                    return Err("NaN stays NaN".into());
                }
                continue;
            }
            if !domain(&x) {
                continue;
            }
            let w = f(&x);
            let good = w.is_nan() && g.is_nan()
                || w == g
                || w.abs() > largest && g.is_infinite() && w.signum() == g.signum()
                || ftz && w.abs() < smallest && g == 0.0
                || (g - w).abs() <= relative * w.abs() + absolute;
            if !good {
                return Err(format!("of {x:?}: expected {w:e}, got {g:e}"));
            }
        }
        Ok(())
    })
}

fn approximate(rows: &mut Vec<Row>) {
    let p = |n: i32| 2f64.powi(n);
    let always: fn(&[f64]) -> bool = |_| true;
    for (ftz, dot) in [(false, ""), (true, ".ftz")] {
        let mut one = |op: &str, error: (f64, f64), domain: fn(&[f64]) -> bool, f: fn(&[f64]) -> f64| {
            rows.push(row(format!("{op}.approx{dot}.f32"), &["f32"], "f32", near("f32", ftz, error, domain, f)));
        };
        one("ex2", (p(-22), p(-148)), always, |x| x[0].exp2());
        one("lg2", (p(-22), p(-22)), |x| x[0] >= 0.0, |x| x[0].log2());
        one("rcp", (p(-23), p(-149)), always, |x| 1.0 / x[0]);
        one("sqrt", (p(-23), p(-149)), |x| x[0] >= 0.0, |x| x[0].sqrt());
        one("rsqrt", (2f64.powf(-22.9), 0.0), |x| x[0] > 0.0, |x| 1.0 / x[0].sqrt());
        one("sin", (0.0, 2f64.powf(-20.5)), |x| x[0].abs() <= std::f64::consts::PI, |x| x[0].sin());
        one("cos", (0.0, 2f64.powf(-20.5)), |x| x[0].abs() <= std::f64::consts::PI, |x| x[0].cos());
        // div.approx: 2 ulp for divisors of 2^-126 to 2^126; div.full: 2 ulp over the full range.
        let usual: fn(&[f64]) -> bool = |x| (2f64.powi(-126)..2f64.powi(126)).contains(&x[1].abs()) && x[0].is_finite();
        for op in ["approx", "full"] {
            let right = near("f32", ftz, (p(-22), p(-148)), usual, |x| x[0] / x[1]);
            rows.push(row(format!("div.{op}{dot}.f32"), &["f32", "f32"], "f32", right));
        }
    }
    // f64: the result's upper word; about 20 bits.
    let positive: fn(&[f64]) -> bool = |x| x[0] > 0.0;
    rows.push(row(
        "rcp.approx.ftz.f64".into(),
        &["f64"],
        "f64",
        near("f64", true, (p(-19), 0.0), always, |x| 1.0 / x[0]),
    ));
    for (ftz, dot) in [(false, ""), (true, ".ftz")] {
        let right = near("f64", ftz, (p(-19), 0.0), positive, |x| 1.0 / x[0].sqrt());
        rows.push(row(format!("rsqrt.approx{dot}.f64"), &["f64"], "f64", right));
    }
    rows.push(row(
        "tanh.approx.f32".into(),
        &["f32"],
        "f32",
        near("f32", false, (p(-11), 0.0), always, |x| x[0].tanh()),
    ));
    for (ty, bits) in [("f16", -10), ("f16x2", -10), ("bf16", -7), ("bf16x2", -7)] {
        let ftz = ty.starts_with('b');
        let smallest = if ftz { p(-133) } else { p(-24) };
        let dot = if ftz { ".ftz" } else { "" };
        let exp = near(ty, ftz, (p(bits), smallest), always, |x| x[0].exp2());
        rows.push(row(format!("ex2.approx{dot}.{ty}"), &[ty], ty, exp));
        let tanh = near(ty, false, (p(bits), smallest), always, |x| x[0].tanh());
        rows.push(row(format!("tanh.approx.{ty}"), &[ty], ty, tanh));
    }
}
