//! setp and set in all their forms.

use crate::common::width;
use crate::harness::{Row, equal, row};
use crate::integers::{INTS, num};
use crate::number::{Num, format, order};
use std::cmp::Ordering;

const FLOAT_WORDS: [&str; 14] =
    ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"];

/// What a comparison says of an order; `None` is a NaN.
fn says(word: &str, o: Option<Ordering>) -> bool {
    let Some(o) = o else { return word == "nan" || word.ends_with('u') };
    match word.trim_end_matches('u') {
        "eq" => o.is_eq(),
        "ne" => o.is_ne(),
        "lt" | "lo" => o.is_lt(),
        "le" | "ls" => o.is_le(),
        "gt" | "hi" => o.is_gt(),
        "ge" | "hs" => o.is_ge(),
        // `num` without its u is still `num`; `nan` is false here.
        _ => word == "num",
    }
}

/// The order of two operands of a type; subnormal floats count as zeros with `ftz`.
fn compared(a: u64, b: u64, ty: &str, ftz: bool) -> Option<Ordering> {
    if !ty.contains('f') {
        return Some(num(a, ty).cmp(&num(b, ty)));
    }
    let f = format(ty);
    let flush = |v: u64| if ftz { Num::read(v, f).flushed(f).round(f, "rn") } else { v };
    order(flush(a), flush(b), f)
}

fn combined(bool_op: &str, x: bool, c: bool) -> bool {
    match bool_op {
        ".and" => x && c,
        ".or" => x || c,
        ".xor" => x != c,
        _ => x,
    }
}

/// Comparison words of a type.
fn words(ty: &str) -> Vec<&'static str> {
    match ty.as_bytes()[0] {
        b'f' => FLOAT_WORDS.to_vec(),
        b'b' if ty.starts_with("bf") => FLOAT_WORDS.to_vec(),
        b'b' => vec!["eq", "ne"],
        b's' => vec!["eq", "ne", "lt", "le", "gt", "ge"],
        _ => vec!["eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs"],
    }
}

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let types = [&INTS[..], &["b16", "b32", "b64", "f16", "bf16", "f32", "f64", "f16x2", "bf16x2"]].concat();
    for ty in types {
        let packed = ty.ends_with("x2");
        let flushes = matches!(ty, "f16" | "f16x2" | "f32");
        for word in words(ty) {
            for bool_op in ["", ".and", ".or", ".xor"] {
                for ftz in if flushes { &["", ".ftz"][..] } else { &[""] } {
                    let one = move |a: &[u64], high: u32, negated: bool| {
                        let element = if packed { &ty[..ty.len() - 2] } else { ty };
                        let mask = if packed { 0xffff } else { u64::MAX };
                        let o = compared(a[0] >> high & mask, a[1] >> high & mask, element, !ftz.is_empty());
                        combined(bool_op, says(word, o) != negated, a.get(2).is_some_and(|c| c & 1 == 1))
                    };
                    let op = format!("setp.{word}{bool_op}{ftz}.{ty}");
                    let inputs: &[&'static str] = if bool_op.is_empty() { &[ty, ty] } else { &[ty, ty, "pred"] };
                    let c = if bool_op.is_empty() { "" } else { ", %a2" };
                    if packed {
                        let text = format!("{op} %q|%z, %a0, %a1{c}; selp.b32 %d, 1, 0, %q; @%z or.b32 %d, %d, 2;");
                        let want = move |a: &[u64]| u64::from(one(a, 0, false)) | u64::from(one(a, 16, false)) << 1;
                        rows.push(Row { op, text, inputs: inputs.to_vec(), out: "b32", right: equal("b32", want) });
                    } else {
                        // The second predicate is the combination of the opposite.
                        let text = format!("{op} %q|%z, %a0, %a1{c}; selp.b32 %d, 1, 0, %q; @%z or.b32 %d, %d, 2;");
                        let want = move |a: &[u64]| u64::from(one(a, 0, false)) | u64::from(one(a, 0, true)) << 1;
                        rows.push(Row { op, text, inputs: inputs.to_vec(), out: "b32", right: equal("b32", want) });
                    }
                    for dtype in results(ty) {
                        let yes: u64 = match *dtype {
                            "f32" => 0x3f80_0000,
                            "f16" | "f16x2" => 0x3c00,
                            "bf16" | "bf16x2" => 0x3f80,
                            _ if packed => 0xffff,
                            d => (1 << width(d)) - 1,
                        };
                        let want = move |a: &[u64]| {
                            let low = u64::from(one(a, 0, false)) * yes;
                            low | if packed { (u64::from(one(a, 16, false)) * yes) << 16 } else { 0 }
                        };
                        rows.push(row(
                            format!("set.{word}{bool_op}{ftz}.{dtype}.{ty}"),
                            inputs,
                            dtype,
                            equal(dtype, want),
                        ));
                    }
                }
            }
        }
    }
    rows
}

/// Result types of `set` by operand type.
fn results(ty: &str) -> &'static [&'static str] {
    match ty {
        "f16" => &["f16", "u16", "s16", "u32", "s32"],
        "bf16" => &["bf16", "u16", "s16", "u32", "s32"],
        "f16x2" => &["f16x2", "u32", "s32"],
        "bf16x2" => &["bf16x2", "u32", "s32"],
        _ => &["u32", "s32", "f32"],
    }
}
