//! Floating-point instructions: exact ones against exact arithmetic or the IEEE operations of the host (nearest), directed
//! roundings against their definition, approximate ones against the ISA's error bounds.

mod common;
use common::{check, exact, exact32, width};
use half::{bf16, f16};

fn f(v: u64) -> f32 {
    f32::from_bits(v as u32)
}

fn d(v: u64) -> f64 {
    f64::from_bits(v)
}

/// Flushes subnormals as the ISA says: to zero of the same sign.
fn z(v: f32) -> f32 {
    if v.is_subnormal() { 0f32.copysign(v) } else { v }
}

/// True when `r` is the directed rounding of the exact value that `cmp` compares candidates with (exact minus candidate's sign).
fn directed(mode: &str, r: f32, cmp: impl Fn(f32) -> std::cmp::Ordering) -> bool {
    use std::cmp::Ordering::*;
    let (up, down) = (r.next_up(), r.next_down());
    match cmp(r) {
        Equal => true,
        // The exact value lies above r: r must be the largest float below it, and the mode must round down here.
        Greater => cmp(up) != Greater && (mode == "rm" || mode == "rz" && r >= 0.0) && (cmp(up) == Less),
        Less => (cmp(down) == Greater) && (mode == "rp" || mode == "rz" && r <= 0.0),
    }
}

/// Sign of p + q - r for doubles whose sums are not exact: Shewchuk's exact expansion by repeated two-sums.
fn sign_of_sum(parts: &[f64]) -> std::cmp::Ordering {
    let mut e: Vec<f64> = Vec::new();
    for p in parts {
        let mut x = *p;
        let mut next = Vec::new();
        for y in &e {
            let s = x + y;
            let t = s - x;
            let low = (x - (s - t)) + (y - t);
            if low != 0.0 {
                next.push(low);
            }
            x = s;
        }
        next.push(x);
        e = next;
    }
    e.iter().rev().find(|v| **v != 0.0).copied().unwrap_or(0.0).partial_cmp(&0.0).unwrap()
}

#[test]
fn nearest_f32() {
    for (ftz, k) in [("", (|v| v) as fn(f32) -> f32), (".ftz", z)] {
        exact32(&format!("add{ftz}.f32 %d, %a0, %a1;"), &["f32", "f32"], |a| k(k(f(a[0])) + k(f(a[1]))));
        exact32(&format!("sub.rn{ftz}.f32 %d, %a0, %a1;"), &["f32", "f32"], |a| k(k(f(a[0])) - k(f(a[1]))));
        exact32(&format!("mul{ftz}.f32 %d, %a0, %a1;"), &["f32", "f32"], |a| k(k(f(a[0])) * k(f(a[1]))));
        exact32(&format!("fma.rn{ftz}.f32 %d, %a0, %a1, %a2;"), &["f32", "f32", "f32"], |a| {
            k(k(f(a[0])).mul_add(k(f(a[1])), k(f(a[2]))))
        });
        exact32(&format!("div.rn{ftz}.f32 %d, %a0, %a1;"), &["f32", "f32"], |a| k(k(f(a[0])) / k(f(a[1]))));
        exact32(&format!("rcp.rn{ftz}.f32 %d, %a0;"), &["f32"], |a| k(1.0 / k(f(a[0]))));
        exact32(&format!("sqrt.rn{ftz}.f32 %d, %a0;"), &["f32"], |a| k(k(f(a[0])).sqrt()));
        exact32(&format!("add.sat{ftz}.f32 %d, %a0, %a1;"), &["f32", "f32"], |a| {
            let v = k(k(f(a[0])) + k(f(a[1])));
            if v.is_nan() { 0.0 } else { v.clamp(0.0, 1.0) + 0.0 }
        });
        for (op, first) in [("min", true), ("max", false)] {
            exact32(&format!("{op}{ftz}.f32 %d, %a0, %a1;"), &["f32", "f32"], |a| {
                let (x, y) = (k(f(a[0])), k(f(a[1])));
                if x.is_nan() || y.is_nan() {
                    return if x.is_nan() { y } else { x };
                }
                // -0 is below +0.
                let less = x < y || x == y && x.is_sign_negative() && y.is_sign_positive();
                if less == first { x } else { y }
            });
            exact32(&format!("{op}.NaN{ftz}.f32 %d, %a0, %a1;"), &["f32", "f32"], |a| {
                let (x, y) = (k(f(a[0])), k(f(a[1])));
                if x.is_nan() || y.is_nan() {
                    return f32::NAN;
                }
                let less = x < y || x == y && x.is_sign_negative() && y.is_sign_positive();
                if less == first { x } else { y }
            });
        }
    }
    exact("neg.f32 %d, %a0;", &["f32"], "f32", |a| a[0] ^ 1 << 31);
    exact("abs.f32 %d, %a0;", &["f32"], "f32", |a| a[0] & !(1 << 31));
    exact("copysign.f32 %d, %a0, %a1;", &["f32", "f32"], "f32", |a| a[0] & 1 << 31 | a[1] & !(1 << 31));
    for (p, t) in [
        ("finite", f32::is_finite as fn(f32) -> bool),
        ("infinite", f32::is_infinite),
        ("number", |v| !v.is_nan()),
        ("notanumber", f32::is_nan),
        ("normal", f32::is_normal),
        ("subnormal", f32::is_subnormal),
    ] {
        exact(&format!("testp.{p}.f32 %d, %a0;"), &["f32"], "pred", |a| u64::from(t(f(a[0]))));
    }
}

#[test]
fn directed_f32() {
    for mode in ["rz", "rm", "rp"] {
        let ok = |r: u64, parts: &dyn Fn(f32) -> Option<Vec<f64>>| -> Result<(), String> {
            let r = f(r);
            if r.is_infinite() || r.is_nan() || parts(r).is_none() {
                return Ok(());
            }
            let good = directed(mode, r, |c| {
                if c.is_infinite() {
                    return if c > 0.0 { std::cmp::Ordering::Less } else { std::cmp::Ordering::Greater };
                }
                sign_of_sum(&parts(c).unwrap())
            });
            if good { Ok(()) } else { Err(format!("{r:e} is not the {mode} rounding")) }
        };
        let finite = |a: &[u64]| a.iter().all(|v| f(*v).is_finite());
        check(&format!("add.{mode}.f32 %d, %a0, %a1;"), &["f32", "f32"], "f32", |a, r| {
            ok(r, &|c| finite(a).then(|| vec![f64::from(f(a[0])), f64::from(f(a[1])), -f64::from(c)]))
        });
        check(&format!("sub.{mode}.f32 %d, %a0, %a1;"), &["f32", "f32"], "f32", |a, r| {
            ok(r, &|c| finite(a).then(|| vec![f64::from(f(a[0])), -f64::from(f(a[1])), -f64::from(c)]))
        });
        check(&format!("mul.{mode}.f32 %d, %a0, %a1;"), &["f32", "f32"], "f32", |a, r| {
            ok(r, &|c| finite(a).then(|| vec![f64::from(f(a[0])) * f64::from(f(a[1])), -f64::from(c)]))
        });
        check(&format!("fma.{mode}.f32 %d, %a0, %a1, %a2;"), &["f32", "f32", "f32"], "f32", |a, r| {
            ok(r, &|c| {
                finite(a).then(|| vec![f64::from(f(a[0])) * f64::from(f(a[1])), f64::from(f(a[2])), -f64::from(c)])
            })
        });
        // a / b against c: the sign of a - c b, times the sign of b; c b is exact in f64.
        check(&format!("div.{mode}.f32 %d, %a0, %a1;"), &["f32", "f32"], "f32", |a, r| {
            let s = f64::from(f(a[1]).signum());
            ok(r, &|c| {
                let usable = finite(a) && f(a[1]) != 0.0;
                usable.then(|| vec![s * f64::from(f(a[0])), -s * f64::from(c) * f64::from(f(a[1]))])
            })
        });
        check(&format!("sqrt.{mode}.f32 %d, %a0;"), &["f32"], "f32", |a, r| {
            let usable = f(a[0]).is_finite() && f(a[0]) >= 0.0;
            ok(r, &|c| {
                (usable && c >= 0.0)
                    .then(|| vec![f64::from(f(a[0])), -f64::from(c) * f64::from(c)])
                    .or(usable.then(|| vec![1.0]))
            })
        });
        // Overflow stops at the largest finite value where the mode rounds toward zero.
        check(&format!("mul.{mode}.f32 %d, %a0, %a1;"), &["f32", "f32"], "f32", |a, r| {
            let exact = f64::from(f(a[0])) * f64::from(f(a[1]));
            if finite(a) && exact > f64::from(f32::MAX) {
                let want = if mode == "rp" { f32::INFINITY } else { f32::MAX };
                if f(r) != want {
                    return Err(format!("expected {want:e}"));
                }
            }
            Ok(())
        });
    }
}

#[test]
fn f64_arithmetic() {
    let same = |text: &str, n: usize, want: &dyn Fn(&[u64]) -> f64| {
        check(text, &vec!["f64"; n], "f64", |a, got| {
            let (w, g) = (want(a), d(got));
            if w.to_bits() == g.to_bits() || w.is_nan() && g.is_nan() {
                Ok(())
            } else {
                Err(format!("expected {w:e}, got {g:e}"))
            }
        });
    };
    same("add.f64 %d, %a0, %a1;", 2, &|a| d(a[0]) + d(a[1]));
    same("sub.rn.f64 %d, %a0, %a1;", 2, &|a| d(a[0]) - d(a[1]));
    same("mul.f64 %d, %a0, %a1;", 2, &|a| d(a[0]) * d(a[1]));
    same("fma.rn.f64 %d, %a0, %a1, %a2;", 3, &|a| d(a[0]).mul_add(d(a[1]), d(a[2])));
    same("div.rn.f64 %d, %a0, %a1;", 2, &|a| d(a[0]) / d(a[1]));
    same("sqrt.rn.f64 %d, %a0;", 1, &|a| d(a[0]).sqrt());
    same("rcp.rn.f64 %d, %a0;", 1, &|a| 1.0 / d(a[0]));
    for mode in ["rz", "rm", "rp"] {
        check(&format!("add.{mode}.f64 %d, %a0, %a1;"), &["f64", "f64"], "f64", |a, got| {
            let (x, y, r) = (d(a[0]), d(a[1]), d(got));
            if ![x, y, r, r.next_up(), r.next_down()].iter().all(|v| v.is_finite() && v.abs() < 1e300) {
                return Ok(());
            }
            use std::cmp::Ordering::*;
            let at = |c: f64| sign_of_sum(&[x, y, -c]);
            let good = match at(r) {
                Equal => true,
                Greater => at(r.next_up()) == Less && (mode == "rm" || mode == "rz" && r >= 0.0),
                Less => at(r.next_down()) == Greater && (mode == "rp" || mode == "rz" && r <= 0.0),
            };
            if good { Ok(()) } else { Err(format!("{r:e}")) }
        });
    }
}

#[test]
fn float_comparisons() {
    type Test = fn(f64, f64) -> bool;
    let all: [(&str, Test); 14] = [
        ("eq", |x, y| x == y),
        ("ne", |x, y| x < y || x > y),
        ("lt", |x, y| x < y),
        ("le", |x, y| x <= y),
        ("gt", |x, y| x > y),
        ("ge", |x, y| x >= y),
        ("equ", |x, y| x == y || x.is_nan() || y.is_nan()),
        ("neu", |x, y| x != y),
        ("ltu", |x, y| x < y || x.is_nan() || y.is_nan()),
        ("leu", |x, y| x <= y || x.is_nan() || y.is_nan()),
        ("gtu", |x, y| x > y || x.is_nan() || y.is_nan()),
        ("geu", |x, y| x >= y || x.is_nan() || y.is_nan()),
        ("num", |x, y| !(x.is_nan() || y.is_nan())),
        ("nan", |x, y| x.is_nan() || y.is_nan()),
    ];
    for (c, t) in all {
        exact(&format!("setp.{c}.f32 %d, %a0, %a1;"), &["f32", "f32"], "pred", |a| {
            u64::from(t(f64::from(f(a[0])), f64::from(f(a[1]))))
        });
        exact(&format!("setp.{c}.ftz.f32 %d, %a0, %a1;"), &["f32", "f32"], "pred", |a| {
            u64::from(t(f64::from(z(f(a[0]))), f64::from(z(f(a[1])))))
        });
        exact(&format!("setp.{c}.f64 %d, %a0, %a1;"), &["f64", "f64"], "pred", |a| u64::from(t(d(a[0]), d(a[1]))));
        exact(&format!("setp.{c}.f16 %d, %a0, %a1;"), &["f16", "f16"], "pred", |a| u64::from(t(h(a[0]), h(a[1]))));
        exact(&format!("setp.{c}.bf16 %d, %a0, %a1;"), &["bf16", "bf16"], "pred", |a| u64::from(t(b(a[0]), b(a[1]))));
    }
}

fn h(v: u64) -> f64 {
    f16::from_bits(v as u16).to_f64()
}

fn b(v: u64) -> f64 {
    bf16::from_bits(v as u16).to_f64()
}

/// Checks one rounding of an exact sum of doubles to a 16-bit format: no neighbour is nearer, ties are even.
fn nearest16(got: u16, parts: &[f64], value: fn(u64) -> f64, max: u16) -> Result<(), String> {
    let exact: f64 = parts.iter().sum();
    if parts.iter().any(|p| !p.is_finite()) {
        let same = if exact.is_nan() { value(u64::from(got)).is_nan() } else { value(u64::from(got)) == exact };
        return if same { Ok(()) } else { Err(format!("expected {exact}")) };
    }
    // Overflow: half a step above the largest finite value.
    let top = value(u64::from(max));
    let step = top - value(u64::from(max - 1));
    let infinite = got & 0x7fff == max + 1;
    let beyond = |limit: f64| {
        sign_of_sum(&[&parts.iter().map(|p| p * exact.signum()).collect::<Vec<_>>()[..], &[-limit]].concat())
    };
    if infinite {
        return if beyond(top + step / 2.0) != std::cmp::Ordering::Less { Ok(()) } else { Err("overflow".into()) };
    }
    let r = value(u64::from(got));
    let side = |c: f64| sign_of_sum(&[parts, &[-c]].concat());
    use std::cmp::Ordering::*;
    let way = side(r);
    if way == Equal {
        return Ok(());
    }
    // The neighbour on the exact value's side, and the midpoint, which f64 holds exactly.
    let magnitude = got & 0x7fff;
    let away = (way == Greater) == (got & 0x8000 == 0);
    let next = if away {
        got + 1
    } else if magnitude == 0 {
        (got ^ 0x8000) + 1
    } else {
        got - 1
    };
    let neighbour = if next & 0x7fff == max + 1 { (top + step).copysign(r) } else { value(u64::from(next)) };
    let middle = (r + neighbour) / 2.0;
    let good = match side(middle) {
        Equal => got & 1 == 0,
        past => past != way,
    };
    if good { Ok(()) } else { Err(format!("{r:e} is not nearest to {exact:e}")) }
}

#[test]
fn half_arithmetic() {
    let formats: [(&str, fn(u64) -> f64, u16); 2] = [("f16", h, 0x7bff), ("bf16", b, 0x7f7f)];
    for (t, v, max) in formats {
        for (op, parts) in [
            ("add", (|x, y| vec![x, y]) as fn(f64, f64) -> Vec<f64>),
            ("sub", |x, y| vec![x, -y]),
            ("mul", |x, y| vec![x * y]),
        ] {
            check(&format!("{op}.{t} %d, %a0, %a1;"), &[t, t], t, |a, r| {
                nearest16(r as u16, &parts(v(a[0]), v(a[1])), v, max)
            });
            let packed = format!("{op}.{t}x2 %d, %a0, %a1;");
            check(&packed, &["b32", "b32"], "b32", |a, r| {
                nearest16(r as u16, &parts(v(a[0] & 0xffff), v(a[1] & 0xffff)), v, max)?;
                nearest16((r >> 16) as u16, &parts(v(a[0] >> 16), v(a[1] >> 16)), v, max)
            });
        }
        check(&format!("fma.rn.{t} %d, %a0, %a1, %a2;"), &[t, t, t], t, |a, r| {
            nearest16(r as u16, &[v(a[0]) * v(a[1]), v(a[2])], v, max)
        });
        check(&format!("fma.rn.{t}x2 %d, %a0, %a1, %a2;"), &["b32", "b32", "b32"], "b32", |a, r| {
            nearest16(r as u16, &[v(a[0] & 0xffff) * v(a[1] & 0xffff), v(a[2] & 0xffff)], v, max)?;
            nearest16((r >> 16) as u16, &[v(a[0] >> 16) * v(a[1] >> 16), v(a[2] >> 16)], v, max)
        });
        check(&format!("fma.rn.relu.{t} %d, %a0, %a1, %a2;"), &[t, t, t], t, |a, r| {
            let exact = v(a[0]) * v(a[1]) + v(a[2]);
            if exact.is_nan() {
                return if v(r).is_nan() { Ok(()) } else { Err("NaN stays NaN".into()) };
            }
            if exact < 0.0 {
                if r == 0 { Ok(()) } else { Err("expected +0".into()) }
            } else {
                nearest16(r as u16, &[v(a[0]) * v(a[1]), v(a[2])], v, max)
            }
        });
        for op in ["min", "max"] {
            exact(&format!("{op}.{t} %d, %a0, %a1;"), &[t, t], t, |a| {
                let (x, y) = (v(a[0]), v(a[1]));
                if x.is_nan() || y.is_nan() {
                    return if x.is_nan() && y.is_nan() {
                        0x7fff
                    } else if x.is_nan() {
                        a[1]
                    } else {
                        a[0]
                    };
                }
                let less = x < y || x == y && a[0] >> 15 == 1 && a[1] >> 15 == 0;
                if less == (op == "min") { a[0] } else { a[1] }
            });
        }
        exact(&format!("neg.{t}x2 %d, %a0;"), &["b32"], "b32", |a| a[0] ^ 0x8000_8000);
        exact(&format!("abs.{t} %d, %a0;"), &[t], t, |a| a[0] & 0x7fff);
    }
    exact(
        "{ .reg .pred %q, %p; setp.lt.f16x2 %p|%q, %a0, %a1; selp.b32 %d, 1, 0, %p; @%q add.u32 %d, %d, 2; }",
        &["b32", "b32"],
        "b32",
        |a| u64::from(h(a[0] & 0xffff) < h(a[1] & 0xffff)) | u64::from(h(a[0] >> 16) < h(a[1] >> 16)) << 1,
    );
}

#[test]
fn conversions() {
    // 16-bit formats from f32, through the definition of nearest.
    let formats: [(&str, fn(u64) -> f64, u16); 2] = [("f16", h, 0x7bff), ("bf16", b, 0x7f7f)];
    for (t, v, max) in formats {
        check(&format!("cvt.rn.{t}.f32 %d, %a0;"), &["f32"], t, |a, r| {
            nearest16(r as u16, &[f64::from(f(a[0]))], v, max)
        });
        check(&format!("cvt.rn.{t}x2.f32 %d, %a0, %a1;"), &["f32", "f32"], "b32", |a, r| {
            nearest16((r >> 16) as u16, &[f64::from(f(a[0]))], v, max)?;
            nearest16(r as u16, &[f64::from(f(a[1]))], v, max)
        });
        check(&format!("cvt.f32.{t} %d, %a0;"), &[t], "f32", |a, r| {
            let (w, g) = (v(a[0]), f64::from(f(r)));
            if w == g || w.is_nan() && g.is_nan() { Ok(()) } else { Err(format!("expected {w}")) }
        });
        check(&format!("cvt.rz.{t}.f32 %d, %a0;"), &["f32"], t, |a, r| {
            let x = f64::from(f(a[0]));
            let (r, m) = (v(r), r as u16 & 0x7fff);
            if x.is_nan() {
                return if r.is_nan() { Ok(()) } else { Err("NaN".into()) };
            }
            if x.is_infinite() {
                return if r == x { Ok(()) } else { Err("infinity".into()) };
            }
            let next = if m >= max { f64::INFINITY } else { v(u64::from(m + 1)) };
            if r.abs() <= x.abs() && x.abs() < next { Ok(()) } else { Err(format!("{r} of {x}")) }
        });
    }
    // Floats to integers: round as the mode says, clamp, NaN to 0 (to the middle for f64 and 64-bit results).
    let modes: [(&str, fn(f64) -> f64); 4] =
        [("rni", f64::round_ties_even), ("rzi", f64::trunc), ("rmi", f64::floor), ("rpi", f64::ceil)];
    for from in ["f32", "f64"] {
        let value = |v: u64| if from == "f32" { f64::from(f(v)) } else { d(v) };
        for (m, round) in modes {
            for to in ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"] {
                let n = width(to);
                exact(&format!("cvt.{m}.{to}.{from} %d, %a0;"), &[from], to, |a| {
                    let x = value(a[0]);
                    if x.is_nan() {
                        return if from == "f64" || n == 64 { 1 << (n - 1) } else { 0 };
                    }
                    let (lo, hi) = if to.starts_with('s') {
                        (-(1i128 << (n - 1)), (1i128 << (n - 1)) - 1)
                    } else {
                        (0, (1i128 << n) - 1)
                    };
                    (round(x) as i128).clamp(lo, hi) as u64
                });
            }
            check(&format!("cvt.{m}.{from}.{from} %d, %a0;"), &[from], from, |a, r| {
                let (w, g) = (round(value(a[0])), value(r));
                if w == g && w.is_sign_negative() == g.is_sign_negative() || w.is_nan() && g.is_nan() {
                    Ok(())
                } else {
                    Err(format!("expected {w}"))
                }
            });
        }
    }
    // Integers to floats: nearest by the host, directed by definition.
    exact32("cvt.rn.f32.s32 %d, %a0;", &["s32"], |a| a[0] as u32 as i32 as f32);
    exact32("cvt.rn.f32.u64 %d, %a0;", &["u64"], |a| a[0] as f32);
    exact32("cvt.rn.f32.s64 %d, %a0;", &["s64"], |a| a[0] as i64 as f32);
    exact("cvt.rn.f64.s64 %d, %a0;", &["s64"], "f64", |a| (a[0] as i64 as f64).to_bits());
    exact("cvt.rn.f64.u32 %d, %a0;", &["u32"], "f64", |a| (a[0] as f64).to_bits());
    for (mode, down) in [("rm", true), ("rp", false)] {
        check(&format!("cvt.{mode}.f32.s64 %d, %a0;"), &["s64"], "f32", |a, r| {
            let (x, r) = (a[0] as i64 as i128, f(r));
            let (at, up, low) = (r as i128, r.next_up() as i128, r.next_down() as i128);
            let good = if down { at <= x && (x < up || at == x) } else { at >= x && (x > low || at == x) };
            if good { Ok(()) } else { Err(format!("{r} of {x}")) }
        });
    }
    exact32("cvt.rn.f32.f64 %d, %a0;", &["f64"], |a| d(a[0]) as f32);
    exact32("cvt.rz.f32.f64 %d, %a0;", &["f64"], |a| {
        let (x, r) = (d(a[0]), d(a[0]) as f32);
        if f64::from(r).abs() > x.abs() { if r > 0.0 { r.next_down() } else { r.next_up() } } else { r }
    });
    exact("cvt.f64.f32 %d, %a0;", &["f32"], "f64", |a| f64::from(f(a[0])).to_bits());
    exact32("cvt.sat.f32.f32 %d, %a0;", &["f32"], |a| {
        let x = f(a[0]);
        if x.is_nan() || x <= 0.0 { 0.0 } else { x.min(1.0) }
    });
    // tf32: nearest, ties away, 10 mantissa bits.
    check("cvt.rna.tf32.f32 %d, %a0;", &["f32"], "b32", |a, r| {
        let (x, y) = (f(a[0]), f(r));
        if x.is_nan() {
            return if y.is_nan() { Ok(()) } else { Err("NaN".into()) };
        }
        let magnitude = (a[0] as u32 & 0x7fff_ffff).saturating_add(0x1000) & 0xffff_e000;
        let want = if x.is_infinite() { a[0] as u32 } else { magnitude | a[0] as u32 & 0x8000_0000 };
        if r as u32 == want { Ok(()) } else { Err(format!("expected {want:#x}")) }
    });
}

#[test]
fn approximations_are_within_the_documented_error() {
    let near = |text: &str, want: &dyn Fn(f64) -> f64, relative: f64, absolute: f64, domain: &dyn Fn(f64) -> bool| {
        check(text, &["f32"], "f32", |a, r| {
            let x = f64::from(f(a[0]));
            if x.is_nan() {
                return if f(r).is_nan() { Ok(()) } else { Err("NaN stays NaN".into()) };
            }
            if !domain(x) {
                return Ok(());
            }
            let (w, g) = (want(x), f64::from(f(r)));
            let wide = w.abs() > f64::from(f32::MAX);
            let good = w.is_nan() && g.is_nan()
                || w == g
                || wide && g.is_infinite()
                || (g - w).abs() <= relative * w.abs() + absolute;
            if good { Ok(()) } else { Err(format!("expected {w:e}, got {g:e}")) }
        });
    };
    let ulp = 2f64.powi(-23);
    let normal = |x: f64| x == 0.0 || x.abs() >= f64::from(f32::MIN_POSITIVE);
    near("ex2.approx.f32 %d, %a0;", &f64::exp2, 2.0 * ulp, 2f64.powi(-148), &|_| true);
    near("ex2.approx.ftz.f32 %d, %a0;", &f64::exp2, 2.0 * ulp, 0.0, &|x| x > -126.0);
    near("lg2.approx.f32 %d, %a0;", &f64::log2, 2f64.powi(-22), 2f64.powi(-22), &|x| x >= 0.0);
    near("rcp.approx.f32 %d, %a0;", &|x| 1.0 / x, ulp, 2f64.powi(-149), &|_| true);
    near("rsqrt.approx.f32 %d, %a0;", &|x| 1.0 / x.sqrt(), 2f64.powf(-22.9), 0.0, &|x| x > 0.0);
    near("sqrt.approx.f32 %d, %a0;", &f64::sqrt, ulp, 0.0, &|x| x >= 0.0);
    near("sin.approx.f32 %d, %a0;", &f64::sin, 0.0, 2f64.powf(-20.5), &|x| x.abs() <= std::f64::consts::PI);
    near("cos.approx.f32 %d, %a0;", &f64::cos, 0.0, 2f64.powf(-20.5), &|x| x.abs() <= std::f64::consts::PI);
    near("tanh.approx.f32 %d, %a0;", &f64::tanh, 2f64.powi(-11), 0.0, &|_| true);
    near("rcp.approx.ftz.f32 %d, %a0;", &|x| 1.0 / x, ulp, 0.0, &|x| normal(x) && x.abs() < 1e37 && x != 0.0);
    check("div.full.f32 %d, %a0, %a1;", &["f32", "f32"], "f32", |a, r| {
        let (x, y) = (f64::from(f(a[0])), f64::from(f(a[1])));
        let w = x / y;
        if !w.is_finite() || w.abs() > 1e38 || w.abs() < 1e-37 {
            return Ok(());
        }
        if (f64::from(f(r)) - w).abs() <= 2.0 * ulp * w.abs() { Ok(()) } else { Err(format!("expected {w}")) }
    });
    for (t, v, bits) in [("f16", h as fn(u64) -> f64, 10), ("bf16", b, 7)] {
        let ftz = if t == "bf16" { ".ftz" } else { "" };
        check(&format!("ex2.approx{ftz}.{t} %d, %a0;"), &[t], t, |a, r| {
            let w = v(a[0]).exp2();
            let g = v(r);
            let limit = if t == "f16" { 65504.0 } else { 3.3e38 };
            let good = w.is_nan() && g.is_nan()
                || w > limit
                || w < 1e-30
                || (g - w).abs() <= 2f64.powi(-bits) * w + 6e-8 * f64::from(t == "f16");
            if good { Ok(()) } else { Err(format!("expected {w}, got {g}")) }
        });
        check(&format!("tanh.approx.{t} %d, %a0;"), &[t], t, |a, r| {
            let (w, g) = (v(a[0]).tanh(), v(r));
            let good = w.is_nan() && g.is_nan() || (g - w).abs() <= 2f64.powi(-bits) * w.abs() + 6e-8;
            if good { Ok(()) } else { Err(format!("expected {w}, got {g}")) }
        });
    }
}
