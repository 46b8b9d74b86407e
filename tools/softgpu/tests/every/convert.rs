//! cvt between all types, and cvt.pack.

use crate::common::width;
use crate::harness::{Row, equal, row};
use crate::integers::{limits, num};
use crate::number::{F32, Format, Mode, Num, TF32, format};

const INTS: [&str; 8] = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"];
const FLOATS: [&str; 4] = ["f16", "bf16", "f32", "f64"];
const MODES: [Mode; 4] = ["rn", "rz", "rm", "rp"];

/// A number in a float type, with what the modifiers ask for. The one of f64 may be any NaN.
fn store(v: Num, form: Format, mode: Mode, ftz: bool, sat: bool, relu: bool) -> u64 {
    let mut r = v.round(form, mode);
    if ftz && form == F32 {
        r = Num::read(r, form).flushed(form).round(form, "rn");
    }
    let n = Num::read(r, form);
    let one = ((1u64 << (form.0 - 1)) - 1) << form.1;
    match (sat, relu) {
        (true, _) => {
            if n.is_nan() || n.negative() {
                0
            } else {
                r.min(one)
            }
        }
        (_, true) if n.negative() => 0,
        _ => r,
    }
}

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let flag = |on: bool, word: &'static str| if on { word } else { "" };
    for to in INTS {
        let (low, high) = limits(to);
        for sat in ["", ".sat"] {
            for from in INTS {
                let want = move |a: &[u64]| {
                    let v = num(a[0], from);
                    (if sat.is_empty() { v } else { v.clamp(low, high) }) as u64
                };
                rows.push(row(format!("cvt{sat}.{to}.{from}"), &[from], to, equal(to, want)));
            }
            for from in FLOATS {
                for ftz in [false, true] {
                    if ftz && from != "f32" {
                        continue;
                    }
                    for mode in MODES {
                        let want = move |a: &[u64]| {
                            let v = Num::read(a[0], format(from));
                            let v = if ftz { v.flushed(F32) } else { v };
                            // NaN is 0, and the middle of the range from f64 and into 64 bits.
                            if v.is_nan() && (from == "f64" || width(to) == 64) {
                                return 1 << (width(to) - 1);
                            }
                            v.clamped(mode, low, high) as u64
                        };
                        let name = format!("cvt.{mode}i{}{sat}.{to}.{from}", flag(ftz, ".ftz"));
                        rows.push(row(name, &[from], to, equal(to, want)));
                    }
                }
            }
            for float in FLOATS {
                for mode in MODES {
                    let want = move |a: &[u64]| {
                        store(Num::integer(num(a[0], to)), format(float), mode, false, !sat.is_empty(), false)
                    };
                    rows.push(row(format!("cvt.{mode}{sat}.{float}.{to}"), &[to], float, equal(float, want)));
                }
            }
        }
    }
    let mut float = |mods: String, to: &'static str, from: &'static str, mode: Mode, whole: bool| {
        let (ftz, sat, relu) = (mods.contains("ftz"), mods.contains("sat"), mods.contains("relu"));
        let (target, source) = (format(to), format(from));
        let right = move |a: &[u64], got: u64| {
            let v = Num::read(a[0], source);
            let v = if ftz && source == F32 { v.flushed(F32) } else { v };
            let v = if whole { v.integral(mode) } else { v };
            let mut want = store(v, target, mode, ftz, sat, relu);
            let mut got = got & if width(to) == 64 { u64::MAX } else { (1 << width(to)) - 1 };
            if to == "tf32" {
                // A tf32 number is an f32 whose lower 13 bits do not count.
                got >>= 13;
                want &= 0x7ffff;
            }
            let nan = |v: u64| Num::read(v, target).is_nan();
            if want == got || nan(want) && nan(got) { Ok(()) } else { Err(format!("expected {want:#x}, got {got:#x}")) }
        };
        rows.push(row(format!("cvt{mods}.{to}.{from}"), &[from], to, Box::new(right)));
    };
    for sat in ["", ".sat"] {
        for ty in FLOATS {
            for ftz in ["", ".ftz"] {
                if !ftz.is_empty() && ty != "f32" {
                    continue;
                }
                float(format!("{ftz}{sat}"), ty, ty, "rn", false);
                for mode in MODES {
                    float(format!(".{mode}i{ftz}{sat}"), ty, ty, mode, true);
                }
            }
        }
        for ftz in ["", ".ftz"] {
            for (to, from) in [("f32", "f16"), ("f32", "bf16"), ("f64", "f32")] {
                float(format!("{ftz}{sat}"), to, from, "rn", false);
            }
            for mode in MODES {
                for (to, from) in [("f32", "f64"), ("f16", "f32")] {
                    float(format!(".{mode}{ftz}{sat}"), to, from, mode, false);
                }
            }
        }
        for from in ["f16", "bf16"] {
            float(sat.to_string(), "f64", from, "rn", false);
        }
        for mode in MODES {
            for (to, from) in [("f16", "f64"), ("bf16", "f64"), ("bf16", "f32"), ("bf16", "f16"), ("f16", "bf16")] {
                float(format!(".{mode}{sat}"), to, from, mode, false);
            }
        }
    }
    for mode in ["rn", "rz"] {
        float(format!(".{mode}.relu"), "f16", "f32", mode, false);
        float(format!(".{mode}.relu"), "bf16", "f32", mode, false);
        float(format!(".{mode}"), "tf32", "f32", mode, false);
        float(format!(".{mode}.relu"), "tf32", "f32", mode, false);
    }
    float(".rna".into(), "tf32", "f32", "rna", false);
    assert_eq!(TF32, format("tf32"));
    pairs(&mut rows);
    rows
}

fn pairs(rows: &mut Vec<Row>) {
    for to in ["f16x2", "bf16x2"] {
        for mode in ["rn", "rz"] {
            for relu in ["", ".relu"] {
                // The first operand becomes the upper half.
                let half = move |v: u64| store(Num::read(v, F32), format(to), mode, false, false, !relu.is_empty());
                let want = equal("b32", move |a| half(a[1]) | half(a[0]) << 16);
                rows.push(row(format!("cvt.{mode}{relu}.{to}.f32"), &["f32", "f32"], "b32", want));
            }
        }
    }
    for to in ["u8", "s8", "u16", "s16"] {
        let (low, high) = limits(to);
        let b = width(to);
        let part = move |v: u64| num(v, "s32").clamp(low, high) as u64 & ((1 << b) - 1);
        if b == 8 {
            let want = equal("b32", move |a| part(a[1]) | part(a[0]) << 8 | (a[2] & 0xffff) << 16);
            rows.push(row(format!("cvt.pack.sat.{to}.s32.b32"), &["s32", "s32", "b32"], "b32", want));
        } else {
            let want = equal("b32", move |a| part(a[1]) | part(a[0]) << 16);
            rows.push(row(format!("cvt.pack.sat.{to}.s32"), &["s32", "s32"], "b32", want));
        }
    }
}
