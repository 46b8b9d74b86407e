//! Integer, logic, comparison and move instructions against the text of the PTX ISA, bit by bit where the ISA does so.

mod common;
use common::{exact, run_instruction, values};

fn sign(v: u64, bits: u32) -> i128 {
    let v = i128::from(v) & ((1 << bits) - 1);
    if v >> (bits - 1) & 1 == 1 { v - (1 << bits) } else { v }
}

fn plain(v: u64, bits: u32) -> i128 {
    i128::from(v) & ((1 << bits) - 1)
}

/// The value of an operand of type `ty`.
fn num(v: u64, ty: &str) -> i128 {
    let bits = common::width(ty);
    if ty.starts_with('s') { sign(v, bits) } else { plain(v, bits) }
}

const TYPES: [&str; 6] = ["u16", "s16", "u32", "s32", "u64", "s64"];

#[test]
fn arithmetic() {
    for t in TYPES {
        let b = common::width(t);
        exact(&format!("add.{t} %d, %a0, %a1;"), &[t, t], t, |a| (num(a[0], t) + num(a[1], t)) as u64);
        exact(&format!("sub.{t} %d, %a0, %a1;"), &[t, t], t, |a| (num(a[0], t) - num(a[1], t)) as u64);
        exact(&format!("mul.lo.{t} %d, %a0, %a1;"), &[t, t], t, |a| num(a[0], t).wrapping_mul(num(a[1], t)) as u64);
        let high = |a: &[u64]| -> i128 {
            if b == 64 && t == "u64" {
                (((a[0] as u128) * (a[1] as u128)) >> 64) as i128
            } else {
                num(a[0], t) * num(a[1], t) >> b
            }
        };
        exact(&format!("mul.hi.{t} %d, %a0, %a1;"), &[t, t], t, |a| high(a) as u64);
        exact(&format!("mad.lo.{t} %d, %a0, %a1, %a2;"), &[t, t, t], t, |a| {
            num(a[0], t).wrapping_mul(num(a[1], t)).wrapping_add(num(a[2], t)) as u64
        });
        exact(&format!("mad.hi.{t} %d, %a0, %a1, %a2;"), &[t, t, t], t, |a| (high(a) + num(a[2], t)) as u64);
        exact(&format!("min.{t} %d, %a0, %a1;"), &[t, t], t, |a| num(a[0], t).min(num(a[1], t)) as u64);
        exact(&format!("max.{t} %d, %a0, %a1;"), &[t, t], t, |a| num(a[0], t).max(num(a[1], t)) as u64);
        exact(&format!("sad.{t} %d, %a0, %a1, %a2;"), &[t, t, t], t, |a| {
            ((num(a[0], t) - num(a[1], t)).abs() + num(a[2], t)) as u64
        });
        // Division where it is defined: no zero divisor, no overflow.
        let safe = |a: &[u64]| num(a[1], t) != 0;
        common::check(&format!("div.{t} %d, %a0, %a1;"), &[t, t], t, |a, got| {
            let same = !safe(a) || (num(a[0], t) / num(a[1], t)) as u64 & mask(b) == got & mask(b);
            if same { Ok(()) } else { Err("quotient".into()) }
        });
        common::check(&format!("rem.{t} %d, %a0, %a1;"), &[t, t], t, |a, got| {
            let same = !safe(a) || (num(a[0], t) % num(a[1], t)) as u64 & mask(b) == got & mask(b);
            if same { Ok(()) } else { Err("remainder".into()) }
        });
        if t.starts_with('s') {
            exact(&format!("neg.{t} %d, %a0;"), &[t], t, |a| (-num(a[0], t)) as u64);
            exact(&format!("abs.{t} %d, %a0;"), &[t], t, |a| num(a[0], t).abs() as u64);
        }
        if b < 64 {
            let wide = match t {
                "u16" => "u32",
                "s16" => "s32",
                "u32" => "u64",
                _ => "s64",
            };
            exact(&format!("mul.wide.{t} %d, %a0, %a1;"), &[t, t], wide, |a| (num(a[0], t) * num(a[1], t)) as u64);
            exact(&format!("mad.wide.{t} %d, %a0, %a1, %a2;"), &[t, t, wide], wide, |a| {
                (num(a[0], t) * num(a[1], t) + num(a[2], wide)) as u64
            });
        }
    }
    exact("add.sat.s32 %d, %a0, %a1;", &["s32", "s32"], "s32", |a| {
        (num(a[0], "s32") + num(a[1], "s32")).clamp(-(1 << 31), (1 << 31) - 1) as u64
    });
    for (t, m) in [("u32", 0xff_ffffu64), ("s32", 0xff_ffff)] {
        let v = move |x: u64| if t == "s32" { sign(x & m, 24) } else { (x & m) as i128 };
        exact(&format!("mul24.lo.{t} %d, %a0, %a1;"), &[t, t], t, |a| (v(a[0]) * v(a[1])) as u64);
        exact(&format!("mul24.hi.{t} %d, %a0, %a1;"), &[t, t], t, |a| (v(a[0]) * v(a[1]) >> 16) as u64);
    }
}

fn mask(bits: u32) -> u64 {
    if bits == 64 { u64::MAX } else { (1 << bits) - 1 }
}

#[test]
fn carries() {
    // 128-bit sums and products from 32-bit pieces.
    let both = |text: &str, out: &str, want: &dyn Fn(u64, u64) -> u128| {
        exact(text, &["u64", "u64"], out, |a| {
            if text.contains("high") { (want(a[0], a[1]) >> 64) as u64 } else { want(a[0], a[1]) as u64 }
        });
    };
    let split = "{ .reg .b32 %l0, %h0, %l1, %h1, %r0, %r1, %r2; mov.b64 {%l0, %h0}, %a0; mov.b64 {%l1, %h1}, %a1;";
    let add = format!("{split} add.cc.u32 %r0, %l0, %l1; addc.cc.u32 %r1, %h0, %h1; addc.u32 %r2, 0, 0;");
    both(&format!("{add} mov.b64 %d, {{%r0, %r1}}; }}"), "u64", &|a, b| u128::from(a) + u128::from(b));
    both(&format!("/*high*/ {add} cvt.u64.u32 %d, %r2; }}"), "u64", &|a, b| u128::from(a) + u128::from(b));
    let sub = format!("{split} sub.cc.u32 %r0, %l0, %l1; subc.u32 %r1, %h0, %h1;");
    both(&format!("{sub} mov.b64 %d, {{%r0, %r1}}; }}"), "u64", &|a, b| u128::from(a.wrapping_sub(b)));
    // Schoolbook product, upper 64 bits.
    let mad = "{ .reg .b32 %l0, %h0, %l1, %h1, %p0, %p1, %p2, %p3; mov.b64 {%l0, %h0}, %a0; mov.b64 {%l1, %h1}, %a1; \
        mul.lo.u32 %p0, %l0, %l1; mul.hi.u32 %p1, %l0, %l1; mad.lo.cc.u32 %p1, %l0, %h1, %p1; madc.hi.u32 %p2, %l0, %h1, 0; \
        mad.lo.cc.u32 %p1, %h0, %l1, %p1; madc.hi.cc.u32 %p2, %h0, %l1, %p2; addc.u32 %p3, 0, 0; \
        mad.lo.cc.u32 %p2, %h0, %h1, %p2; madc.hi.u32 %p3, %h0, %h1, %p3; mov.b64 %d, {%p2, %p3}; } //high";
    both(mad, "u64", &|a, b| u128::from(a) * u128::from(b));
    exact("{ .reg .b64 %q; add.cc.u64 %q, %a0, %a1; addc.u64 %d, 0, 0; }", &["u64", "u64"], "u64", |a| {
        u64::from(a[0].checked_add(a[1]).is_none())
    });
}

#[test]
fn logic_and_shifts() {
    for t in ["b16", "b32", "b64"] {
        let b = common::width(t);
        exact(&format!("and.{t} %d, %a0, %a1;"), &[t, t], t, |a| a[0] & a[1]);
        exact(&format!("or.{t} %d, %a0, %a1;"), &[t, t], t, |a| a[0] | a[1]);
        exact(&format!("xor.{t} %d, %a0, %a1;"), &[t, t], t, |a| a[0] ^ a[1]);
        exact(&format!("not.{t} %d, %a0;"), &[t], t, |a| !a[0]);
        exact(&format!("cnot.{t} %d, %a0;"), &[t], t, |a| u64::from(a[0] == 0));
        // Shift amounts beyond the width are clamped to it.
        exact(
            &format!("shl.{t} %d, %a0, %a1;"),
            &[t, "u32"],
            t,
            |a| if a[1] >= u64::from(b) { 0 } else { a[0] << a[1] },
        );
        exact(
            &format!("shr.u{b} %d, %a0, %a1;"),
            &[t, "u32"],
            t,
            |a| if a[1] >= u64::from(b) { 0 } else { a[0] >> a[1] },
        );
        exact(&format!("shr.s{b} %d, %a0, %a1;"), &[t, "u32"], t, |a| (sign(a[0], b) >> a[1].min(127)) as u64);
    }
    for (dir, mode) in [("l", "wrap"), ("l", "clamp"), ("r", "wrap"), ("r", "clamp")] {
        exact(&format!("shf.{dir}.{mode}.b32 %d, %a0, %a1, %a2;"), &["b32", "b32", "u32"], "b32", |a| {
            let n = if mode == "wrap" { a[2] & 31 } else { a[2].min(32) };
            let v = u128::from(a[1]) << 32 | u128::from(a[0]);
            (if dir == "l" { (v << n) >> 32 } else { v >> n }) as u64
        });
    }
    for lut in [0x80u64, 0xc0, 0xea, 0xf8, 0x96, 0xca, 0x6a, 0xfe, 0x3c, 0xfc, 0x1b, 0xe2, 0x00, 0xff] {
        exact(&format!("lop3.b32 %d, %a0, %a1, %a2, {lut};"), &["b32", "b32", "b32"], "b32", |a| {
            (0..32)
                .map(|i| {
                    let index = (a[0] >> i & 1) << 2 | (a[1] >> i & 1) << 1 | (a[2] >> i & 1);
                    (lut >> index & 1) << i
                })
                .sum()
        });
    }
    for op in ["and", "or", "xor"] {
        exact(&format!("{op}.pred %d, %a0, %a1;"), &["pred", "pred"], "pred", |a| match op {
            "and" => a[0] & a[1] & 1,
            "or" => (a[0] | a[1]) & 1,
            _ => (a[0] ^ a[1]) & 1,
        });
    }
    exact("not.pred %d, %a0;", &["pred"], "pred", |a| !a[0] & 1);
}

#[test]
fn bits_and_bytes() {
    for (t, b) in [("b32", 32), ("b64", 64)] {
        exact(&format!("popc.{t} %d, %a0;"), &[t], "u32", |a| (0..b).map(|i| a[0] >> i & 1).sum());
        exact(&format!("clz.{t} %d, %a0;"), &[t], "u32", |a| {
            (0..b).rev().take_while(|i| a[0] >> i & 1 == 0).count() as u64
        });
        exact(&format!("brev.{t} %d, %a0;"), &[t], t, |a| (0..b).map(|i| (a[0] >> i & 1) << (b - 1 - i)).sum());
    }
    for t in ["u32", "s32", "u64", "s64"] {
        let b = common::width(t);
        for shift in ["", ".shiftamt"] {
            exact(&format!("bfind{shift}.{t} %d, %a0;"), &[t], "u32", |a| {
                let v = if t.starts_with('s') && a[0] >> (b - 1) & 1 == 1 { !a[0] & mask(b) } else { a[0] };
                match (0..b).rev().find(|i| v >> i & 1 == 1) {
                    None => u64::from(u32::MAX),
                    Some(i) => u64::from(if shift.is_empty() { i } else { b - 1 - i }),
                }
            });
        }
        // bfe and bfi as the ISA writes them, a loop over bits.
        exact(&format!("bfe.{t} %d, %a0, %a1, %a2;"), &[t, "u32", "u32"], t, |a| {
            let msb = b - 1;
            let (pos, len) = ((a[1] & 0xff) as u32, (a[2] & 0xff) as u32);
            let s = if t.starts_with('u') || len == 0 { 0 } else { a[0] >> (pos + len - 1).min(msb) & 1 };
            (0..b)
                .map(|i| (if i < len && pos + i <= msb { a[0] >> (pos + i) & 1 } else { s }) << i)
                .fold(0, |x, y| x | y)
        });
    }
    for (t, b) in [("b32", 32), ("b64", 64)] {
        exact(&format!("bfi.{t} %d, %a0, %a1, %a2, %a3;"), &[t, t, "u32", "u32"], t, |a| {
            let (pos, len) = (a[2] & 0xff, a[3] & 0xff);
            let mut f = a[1];
            let mut i = 0;
            while i < len && pos + i < b {
                f = f & !(1 << (pos + i)) | (a[0] >> i & 1) << (pos + i);
                i += 1;
            }
            f
        });
    }
    for mode in ["", ".f4e", ".b4e", ".rc8", ".ecl", ".ecr", ".rc16"] {
        exact(&format!("prmt.b32{mode} %d, %a0, %a1, %a2;"), &["b32", "b32", "b32"], "b32", |a| {
            let byte = |n: u64| (if n < 4 { a[0] >> (8 * n) } else { a[1] >> (8 * (n - 4)) }) & 0xff;
            let s = a[2] & 3;
            let pick: [u64; 4] = match mode {
                "" => {
                    let sel = |n: u64| {
                        let k = a[2] >> (4 * n) & 15;
                        let v = byte(k & 7);
                        if k & 8 == 0 {
                            v
                        } else if v & 0x80 != 0 {
                            0xff
                        } else {
                            0
                        }
                    };
                    [sel(0), sel(1), sel(2), sel(3)]
                }
                ".f4e" => [byte(s), byte(s + 1), byte(s + 2), byte(s + 3)],
                ".b4e" => [byte(s), byte((s + 7) & 7), byte((s + 6) & 7), byte((s + 5) & 7)],
                ".rc8" => [byte(s); 4],
                ".ecl" => [0, 1, 2, 3].map(|n| byte(s.max(n))),
                ".ecr" => [0, 1, 2, 3].map(|n| byte(s.min(n))),
                _ => {
                    if s & 1 == 0 {
                        [byte(0), byte(1), byte(0), byte(1)]
                    } else {
                        [byte(2), byte(3), byte(2), byte(3)]
                    }
                }
            };
            pick[0] | pick[1] << 8 | pick[2] << 16 | pick[3] << 24
        });
    }
    for (p, q) in [("s32", "s32"), ("u32", "u32"), ("s32", "u32"), ("u32", "s32")] {
        let part = |v: u64, n: u32, bits: u32, t: &str| {
            let v = v >> (n * bits) & mask(bits);
            if t == "s32" { sign(v, bits) } else { v as i128 }
        };
        exact(&format!("dp4a.{p}.{q} %d, %a0, %a1, %a2;"), &["b32", "b32", "b32"], "b32", |a| {
            ((0..4).map(|n| part(a[0], n, 8, p) * part(a[1], n, 8, q)).sum::<i128>() + i128::from(a[2])) as u64
        });
        for (half, first) in [("lo", 0), ("hi", 2)] {
            exact(&format!("dp2a.{half}.{p}.{q} %d, %a0, %a1, %a2;"), &["b32", "b32", "b32"], "b32", |a| {
                ((0..2).map(|n| part(a[0], n, 16, p) * part(a[1], first + n, 8, q)).sum::<i128>() + i128::from(a[2]))
                    as u64
            });
        }
    }
    exact("bmsk.clamp.b32 %d, %a0, %a1;", &["u32", "u32"], "b32", |a| {
        (0..32).filter(|i| *i >= a[0] && *i - a[0] < a[1]).map(|i| 1 << i).sum()
    });
    exact("fns.b32 %d, %a0, %a1, %a2;", &["b32", "u32", "s32"], "u32", |a| {
        let n = num(a[2], "s32");
        let base = i128::from(a[1]);
        let on = |i: i128| (0..32).contains(&i) && a[0] >> i & 1 == 1;
        let found = if n == 0 {
            on(base).then_some(base)
        } else if n > 0 {
            (base..32.max(base)).filter(|i| on(*i)).nth(n as usize - 1)
        } else {
            (0..=base.min(31)).rev().filter(|i| on(*i) && base < 32).nth((-n) as usize - 1)
        };
        found.map_or(u64::from(u32::MAX), |v| v as u64)
    });
}

#[test]
fn comparisons_and_selection() {
    for t in TYPES {
        for c in ["eq", "ne", "lt", "le", "gt", "ge"] {
            exact(&format!("setp.{c}.{t} %d, %a0, %a1;"), &[t, t], "pred", |a| {
                let (x, y) = (num(a[0], t), num(a[1], t));
                u64::from(match c {
                    "eq" => x == y,
                    "ne" => x != y,
                    "lt" => x < y,
                    "le" => x <= y,
                    "gt" => x > y,
                    _ => x >= y,
                })
            });
        }
    }
    // The combined forms: p = (a < b) op c, q = !(a < b) op c.
    for op in ["and", "or", "xor"] {
        let apply = move |x: bool, c: bool| match op {
            "and" => x && c,
            "or" => x || c,
            _ => x != c,
        };
        let text = |n: &str| {
            format!("{{ .reg .pred %q, %z; setp.lt.{op}.s32 %z|%q, %a0, %a1, {n}%a2; xor.pred %d, %z, %q; }}")
        };
        for n in ["", "!"] {
            exact(&text(n), &["s32", "s32", "pred"], "pred", |a| {
                let (x, c) = (num(a[0], "s32") < num(a[1], "s32"), (a[2] & 1 == 1) != (n == "!"));
                u64::from(apply(x, c) != apply(!x, c))
            });
        }
    }
    exact("set.lt.u32.s32 %d, %a0, %a1;", &["s32", "s32"], "u32", |a| {
        if num(a[0], "s32") < num(a[1], "s32") { u64::MAX } else { 0 }
    });
    exact("selp.b64 %d, %a0, %a1, %a2;", &["b64", "b64", "pred"], "b64", |a| if a[2] & 1 == 1 { a[0] } else { a[1] });
    exact("slct.u32.s32 %d, %a0, %a1, %a2;", &["u32", "u32", "s32"], "u32", |a| {
        if num(a[2], "s32") >= 0 { a[0] } else { a[1] }
    });
    exact("{ mov.b32 %d, %a0; @%a2 mov.b32 %d, %a1; }", &["b32", "b32", "pred"], "b32", |a| {
        if a[2] & 1 == 1 { a[1] } else { a[0] }
    });
}

#[test]
fn conversions_between_integers() {
    for from in ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"] {
        for to in ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"] {
            let b = common::width(to);
            for sat in ["", ".sat"] {
                // The source register may be wider than the type; only the low part counts.
                exact(&format!("cvt{sat}.{to}.{from} %d, %a0;"), &[from], to, |a| {
                    let v = num(a[0], from);
                    let (lo, hi) = if to.starts_with('s') {
                        (-(1i128 << (b - 1)), (1i128 << (b - 1)) - 1)
                    } else {
                        (0, (1i128 << b) - 1)
                    };
                    (if sat.is_empty() { v } else { v.clamp(lo, hi) }) as u64
                });
            }
        }
    }
    for (t, lo, hi) in [("s8", -128i128, 127i128), ("u8", 0, 255)] {
        exact(&format!("cvt.pack.sat.{t}.s32.b32 %d, %a0, %a1, %a2;"), &["s32", "s32", "b32"], "b32", |a| {
            let c = |v: u64| (num(v, "s32").clamp(lo, hi) as u64) & 0xff;
            c(a[1]) | c(a[0]) << 8 | (a[2] & 0xffff) << 16
        });
    }
}

#[test]
fn unknown_opcodes_fail_the_load_with_their_line() {
    let mut gpu = softgpu::gpu::Gpu::new(1 << 22).unwrap();
    let e = gpu.load(".version 8.0\n.target sm_80\n.address_size 64\n.entry k()\n{\n.reg .b32 %r<3>;\nfrobnicate.u32 %r1, %r2;\nret;\n}").err().unwrap();
    assert_eq!(e.to_string(), "PTX line 7: `frobnicate.u32`: unknown opcode `frobnicate`");
    assert_eq!(run_instruction("mov.b32 %d, %a0;", &[("b32", values("b32", 64, 1))], "b32"), values("b32", 64, 1));
}
