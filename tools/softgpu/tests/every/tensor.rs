//! mma and ldmatrix against matrix-level definitions; the fragment positions are the formulas of the PTX ISA, one table a shape.

use crate::common::{Random, bytes, words};
use half::{bf16, f16};
use softgpu::gpu::{Gpu, Shape};
use softgpu::memory::Use;

/// Positions of element `i` of lane `l`, (row, column), as the ISA's section for each shape writes them.
type Place = fn(usize, usize) -> (usize, usize);

struct Case {
    op: String,
    k: usize,
    /// Bits of an element of A and B.
    bits: usize,
    a: Place,
    b: Place,
    half_c: bool,
}

fn g(l: usize) -> usize {
    l >> 2
}
fn t(l: usize) -> usize {
    l % 4
}
/// c0, c1 in row groupID, c2, c3 in row groupID + 8; column threadID_in_group * 2 + (i & 1).
fn place_c(l: usize, i: usize) -> (usize, usize) {
    (if i < 2 { g(l) } else { g(l) + 8 }, t(l) * 2 + (i & 1))
}

fn cases() -> Vec<Case> {
    let float = |op: &'static str, k, bits, a, b, half_c| Case { op: op.to_string(), k, bits, a, b, half_c };
    let mut cases = vec![
        float("m16n8k16.row.col.f32.bf16.bf16.f32", 16, 16, a_k16 as Place, b_k16 as Place, false),
        float("m16n8k16.row.col.f32.f16.f16.f32", 16, 16, a_k16, b_k16, false),
        float("m16n8k16.row.col.f16.f16.f16.f16", 16, 16, a_k16, b_k16, true),
        float("m16n8k8.row.col.f32.bf16.bf16.f32", 8, 16, a_k8, b_k8, false),
        float("m16n8k8.row.col.f32.f16.f16.f32", 8, 16, a_k8, b_k8, false),
        float("m16n8k8.row.col.f16.f16.f16.f16", 8, 16, a_k8, b_k8, true),
        float("m16n8k8.row.col.f32.tf32.tf32.f32", 8, 32, a_tf, b_tf, false),
        float("m16n8k4.row.col.f32.tf32.tf32.f32", 4, 32, a_tf, b_tf, false),
    ];
    let integers: [(usize, usize, Place, Place); 4] =
        [(16, 8, a_i8_16, b_i8), (32, 8, a_i8_32, b_i8), (32, 4, a_i4_32, b_i4), (64, 4, a_i4_64, b_i4)];
    for (k, bits, a, b) in integers {
        for saturate in ["", "satfinite."] {
            for (p, q) in [("s", "s"), ("s", "u"), ("u", "s"), ("u", "u")] {
                let op = format!("m16n8k{k}.row.col.{saturate}s32.{p}{bits}.{q}{bits}.s32");
                cases.push(Case { op, k, bits, a, b, half_c: false });
            }
        }
    }
    cases
}

/// The opcodes tested here.
pub fn ops() -> Vec<String> {
    let mut ops: Vec<String> = cases().into_iter().map(|c| format!("mma.sync.aligned.{}", c.op)).collect();
    for root in ["ldmatrix", "stmatrix"] {
        for n in ["x1", "x2", "x4"] {
            for space in SPACES {
                ops.extend(["", ".trans"].map(|t| format!("{root}.sync.aligned.m8n8.{n}{t}{space}.b16")));
            }
        }
    }
    ops.push("movmatrix.sync.aligned.m8n8.trans.b16".into());
    ops
}

/// Spaces of ldmatrix and stmatrix; none is a generic address.
const SPACES: [&str; 3] = ["", ".shared", ".shared::cta"];

// m16n8k16, 16-bit: row g for i in 0..2 and 4..6, else g + 8; column t * 2 + (i & 1), plus 8 for i >= 4.
fn a_k16(l: usize, i: usize) -> (usize, usize) {
    (if i < 2 || (4..6).contains(&i) { g(l) } else { g(l) + 8 }, t(l) * 2 + (i & 1) + if i < 4 { 0 } else { 8 })
}
fn b_k16(l: usize, i: usize) -> (usize, usize) {
    (t(l) * 2 + (i & 1) + if i < 2 { 0 } else { 8 }, g(l))
}
fn a_k8(l: usize, i: usize) -> (usize, usize) {
    (if i < 2 { g(l) } else { g(l) + 8 }, t(l) * 2 + (i & 1))
}
fn b_k8(l: usize, i: usize) -> (usize, usize) {
    (t(l) * 2 + i, g(l))
}
// tf32: row g for a0, a2, g + 8 for a1, a3; column t for a0, a1, t + 4 for a2, a3.
fn a_tf(l: usize, i: usize) -> (usize, usize) {
    (if i % 2 == 0 { g(l) } else { g(l) + 8 }, if i < 2 { t(l) } else { t(l) + 4 })
}
fn b_tf(l: usize, i: usize) -> (usize, usize) {
    (if i == 0 { t(l) } else { t(l) + 4 }, g(l))
}
fn a_i8_16(l: usize, i: usize) -> (usize, usize) {
    (if i < 4 { g(l) } else { g(l) + 8 }, t(l) * 4 + (i & 3))
}
fn a_i8_32(l: usize, i: usize) -> (usize, usize) {
    (if i < 4 || (8..12).contains(&i) { g(l) } else { g(l) + 8 }, t(l) * 4 + (i & 3) + if i < 8 { 0 } else { 16 })
}
fn b_i8(l: usize, i: usize) -> (usize, usize) {
    (t(l) * 4 + (i & 3) + if i < 4 { 0 } else { 16 }, g(l))
}
fn a_i4_32(l: usize, i: usize) -> (usize, usize) {
    (if i < 8 { g(l) } else { g(l) + 8 }, t(l) * 8 + (i & 7))
}
fn a_i4_64(l: usize, i: usize) -> (usize, usize) {
    (if i < 8 || (16..24).contains(&i) { g(l) } else { g(l) + 8 }, t(l) * 8 + (i & 7) + if i < 16 { 0 } else { 32 })
}
fn b_i4(l: usize, i: usize) -> (usize, usize) {
    (t(l) * 8 + (i & 7) + if i < 8 { 0 } else { 32 }, g(l))
}

/// A value of format `ty` as bits and as a number.
fn element(ty: &str, r: &mut Random) -> (u64, f64) {
    match ty {
        "bf16" => {
            let v = bf16::from_f32(r.unit());
            (u64::from(v.to_bits()), v.to_f64())
        }
        "f16" => {
            let v = f16::from_f32(r.unit());
            (u64::from(v.to_bits()), v.to_f64())
        }
        "tf32" => {
            let v = r.unit().to_bits() & 0xffff_e000;
            (u64::from(v), f64::from(f32::from_bits(v)))
        }
        _ => {
            let bits = ty[1..].parse::<u32>().unwrap();
            let v = r.bits() & ((1 << bits) - 1);
            let signed = (v << (64 - bits)) as i64 >> (64 - bits);
            (v, if ty.starts_with('s') { signed as f64 } else { v as f64 })
        }
    }
}

#[test]
fn every_shape_multiplies_matrices() {
    for case in &cases() {
        let types: Vec<&str> = case.op.split('.').rev().take(4).collect();
        let (a_ty, b_ty, int) = (types[2], types[1], case.op.contains("s32"));
        let mut r = Random(case.k as u64 * 31 + case.bits as u64);
        let matrix = |rows: usize, cols: usize, ty: &str, r: &mut Random| -> Vec<Vec<(u64, f64)>> {
            (0..rows).map(|_| (0..cols).map(|_| element(ty, r)).collect()).collect()
        };
        let (a, b) = (matrix(16, case.k, a_ty, &mut r), matrix(case.k, 8, b_ty, &mut r));
        let c: Vec<Vec<f64>> = (0..16)
            .map(|_| {
                (0..8)
                    .map(|_| if int { (r.bits() as i32 >> 8) as f64 } else { f16::from_f32(r.unit()).to_f64() })
                    .collect()
            })
            .collect();
        // Registers of each lane: elements from the low bits up.
        let per = 32 / case.bits;
        let (na, nb) = (16 * case.k / 32 / per, 8 * case.k / 32 / per);
        let nc = if case.half_c { 2 } else { 4 };
        let mut data = Vec::new();
        for l in 0..32 {
            for reg in 0..na {
                let bits = (0..per)
                    .map(|j| {
                        let (x, y) = (case.a)(l, reg * per + j);
                        a[x][y].0 << (j * case.bits)
                    })
                    .fold(0, |p, q| p | q);
                data.push(bits as u32);
            }
            for reg in 0..nb {
                let bits = (0..per)
                    .map(|j| {
                        let (x, y) = (case.b)(l, reg * per + j);
                        b[x][y].0 << (j * case.bits)
                    })
                    .fold(0, |p, q| p | q);
                data.push(bits as u32);
            }
            let at = |i: usize| {
                let (x, y) = place_c(l, i);
                c[x][y]
            };
            for reg in 0..nc {
                data.push(if int {
                    at(reg) as i32 as u32
                } else if case.half_c {
                    u32::from(f16::from_f64(at(2 * reg)).to_bits())
                        | u32::from(f16::from_f64(at(2 * reg + 1)).to_bits()) << 16
                } else {
                    (at(reg) as f32).to_bits()
                });
            }
        }
        let total = na + nb + nc;
        let list = |name: &str, n: usize| {
            format!("{{{}}}", (0..n).map(|i| format!("%{name}{i}")).collect::<Vec<_>>().join(", "))
        };
        let mut ptx = format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p0, .param .u64 p1)\n{{\n.reg .b32 %a<8>, %b<8>, %c<8>, %d<8>, %t;\n.reg .b64 %x, %y, %o;\n\
            mov.u32 %t, %tid.x; ld.param.u64 %x, [p0]; ld.param.u64 %y, [p1]; mul.wide.u32 %o, %t, {}; add.u64 %x, %x, %o; mul.wide.u32 %o, %t, {}; add.u64 %y, %y, %o;\n",
            total * 4,
            nc * 4
        );
        for (name, n, first) in [("a", na, 0), ("b", nb, na), ("c", nc, na + nb)] {
            for i in 0..n {
                ptx += &format!("ld.global.u32 %{name}{i}, [%x+{}];\n", (first + i) * 4);
            }
        }
        ptx += &format!(
            "mma.sync.aligned.{} {}, {}, {}, {};\n",
            case.op,
            list("d", nc),
            list("a", na),
            list("b", nb),
            list("c", nc)
        );
        for i in 0..nc {
            ptx += &format!("st.global.u32 [%y+{}], %d{i};\n", i * 4);
        }
        ptx += "ret;\n}\n";
        let mut gpu = Gpu::new(1 << 22).unwrap();
        let m = gpu.load(&ptx).unwrap_or_else(|e| panic!("{}: {e}", case.op));
        let x = gpu.upload(&bytes(&data)).unwrap();
        let y = gpu.memory.alloc(32 * nc as u64 * 4, Use::Device).unwrap();
        let shape = Shape { grid: [1; 3], block: [32, 1, 1], shared: 0 };
        gpu.launch(&m.kernels["k"], shape, &[&x.to_le_bytes(), &y.to_le_bytes()]).unwrap();
        let out = words(&gpu.download(y, 32 * nc * 4));
        for l in 0..32 {
            for i in 0..4 {
                let (row, col) = place_c(l, i);
                let sum: f64 = (0..case.k).map(|n| a[row][n].1 * b[n][col].1).sum::<f64>() + c[row][col];
                let got = if int {
                    f64::from(out[l * nc + i] as i32)
                } else if case.half_c {
                    f16::from_bits((out[l * nc + i / 2] >> (16 * (i % 2))) as u16).to_f64()
                } else {
                    f64::from(f32::from_bits(out[l * nc + i]))
                };
                let limit = if int {
                    0.0
                } else if case.half_c {
                    4e-3
                } else {
                    2e-6
                };
                assert!(
                    (got - sum).abs() <= limit * (1.0 + sum.abs()),
                    "{}: d[{row}][{col}] is {got}, expected {sum}",
                    case.op
                );
            }
        }
    }
}

#[test]
fn ldmatrix_gives_each_lane_its_elements() {
    for (n, trans, space) in forms() {
        let (x, tr) = (["", "x1", "x2", "", "x4"][n], if trans { ".trans" } else { "" });
        let regs = format!("{{{}}}", (0..n).map(|i| format!("%r{i}")).collect::<Vec<_>>().join(", "));
        let mut ptx = format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p0)\n{{\n.shared .align 16 .b8 s[1024];\n.reg .b32 %r<4>, %t, %i, %v, %p; .reg .pred %q; .reg .b64 %y, %o, %g; .reg .b16 %h;\n\
            mov.u32 %t, %tid.x; mov.u32 %i, %t;\nFILL: shl.b32 %p, %i, 1; mov.u32 %v, s; add.u32 %p, %p, %v; cvt.u16.u32 %h, %i; st.shared.u16 [%p], %h; add.u32 %i, %i, 32; setp.lt.u32 %q, %i, 512; @%q bra FILL;\n\
            bar.sync 0;\n"
        );
        // Rows of the matrices are scattered: row l of the instruction lies at 16 * (5 l mod 64).
        ptx += "mul.lo.u32 %p, %t, 5; and.b32 %p, %p, 63; shl.b32 %p, %p, 4; mov.u32 %v, s; add.u32 %p, %p, %v;\n";
        ptx += generic(space);
        ptx += &format!(
            "ldmatrix.sync.aligned.m8n8.{x}{tr}{space}.b16 {regs}, [{}];\n",
            if space.is_empty() { "%g" } else { "%p" }
        );
        ptx += &format!("ld.param.u64 %y, [p0]; mul.wide.u32 %o, %t, {}; add.u64 %y, %y, %o;\n", 4 * n);
        for i in 0..n {
            ptx += &format!("st.global.u32 [%y+{}], %r{i};\n", 4 * i);
        }
        ptx += "ret;\n}\n";
        let mut gpu = Gpu::new(1 << 22).unwrap();
        let m = gpu.load(&ptx).unwrap();
        let y = gpu.memory.alloc(128 * n as u64, Use::Device).unwrap();
        gpu.launch(&m.kernels["k"], Shape { grid: [1; 3], block: [32, 1, 1], shared: 0 }, &[&y.to_le_bytes()])
            .unwrap_or_else(|f| panic!("{f}"));
        let out = words(&gpu.download(y, 128 * n));
        // Element (r, c) of matrix q: memory holds its own index.
        let value = |q: usize, r: usize, c: usize| ((8 * q + r) * 5 % 64 * 8 + c) as u32;
        for l in 0..32 {
            for q in 0..n {
                let (r, c) = (l / 4, 2 * (l % 4));
                let want = if trans {
                    value(q, c, r) | value(q, c + 1, r) << 16
                } else {
                    value(q, r, c) | value(q, r, c + 1) << 16
                };
                assert_eq!(out[l * n + q], want, "x{n} trans {trans} {space} lane {l} matrix {q}");
            }
        }
    }
}

/// Counts, transposition and spaces of ldmatrix and stmatrix.
fn forms() -> impl Iterator<Item = (usize, bool, &'static str)> {
    [1, 2, 4].into_iter().flat_map(|n| [false, true].into_iter().flat_map(move |t| SPACES.map(move |s| (n, t, s))))
}

/// The row's address `%p` as a generic one in `%g`.
fn generic(space: &str) -> &'static str {
    if space.is_empty() { "cvt.u64.u32 %g, %p; cvta.shared.u64 %g, %g;\n" } else { "" }
}

/// The head of a kernel with `%t` the lane and `%y` its 16 bytes of the buffer.
const HEAD: &str = ".version 8.8\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 p0)\n{\n.shared .align 16 .b8 s[1024];\n\
    .reg .b32 %r<4>, %t, %p, %v; .reg .b64 %x, %y, %g;\n\
    mov.u32 %t, %tid.x; ld.param.u64 %x, [p0]; mad.wide.u32 %y, %t, 16, %x;\n";

fn warp(ptx: &str, data: &[u32]) -> Vec<u32> {
    let mut gpu = Gpu::new(1 << 22).unwrap();
    let m = gpu.load(ptx).unwrap_or_else(|e| panic!("{e}"));
    let x = gpu.upload(&bytes(data)).unwrap();
    gpu.launch(&m.kernels["k"], Shape { grid: [1; 3], block: [32, 1, 1], shared: 0 }, &[&x.to_le_bytes()])
        .unwrap_or_else(|f| panic!("{f}"));
    words(&gpu.download(x, data.len() * 4))
}

#[test]
fn stmatrix_puts_each_element_in_its_place() {
    for (n, trans, space) in forms() {
        let (x, tr) = (["", "x1", "x2", "", "x4"][n], if trans { ".trans" } else { "" });
        let regs = format!("{{{}}}", (0..n).map(|i| format!("%r{i}")).collect::<Vec<_>>().join(", "));
        let mut ptx = HEAD.to_string();
        // The rows lie one behind the other; lane l names row l, and reads it back.
        ptx += "ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%y]; mov.u32 %v, s; mad.lo.u32 %p, %t, 16, %v; mov.u32 %v, 0; st.shared.v4.u32 [%p], {%v, %v, %v, %v}; bar.sync 0;\n";
        ptx += generic(space);
        let at = if space.is_empty() { "%g" } else { "%p" };
        ptx += &format!("stmatrix.sync.aligned.m8n8.{x}{tr}{space}.b16 [{at}], {regs};\nbar.sync 0;\n");
        ptx += "ld.shared.v4.u32 {%r0, %r1, %r2, %r3}, [%p]; st.global.v4.u32 [%y], {%r0, %r1, %r2, %r3};\nret;\n}\n";
        let mut r = Random(5);
        let data: Vec<u32> = (0..128).map(|_| r.bits() as u32).collect();
        let out = warp(&ptx, &data);
        for q in 0..n {
            for row in 0..8 {
                for col in 0..8 {
                    // Element (i, j) is half j % 2 of lane 4 i + j / 2, for the transposed matrix with i and j exchanged.
                    let (i, j) = if trans { (col, row) } else { (row, col) };
                    let want = data[4 * (4 * i + j / 2) + q] >> (16 * (j % 2)) & 0xffff;
                    let got = out[4 * (8 * q + row) + col / 2] >> (16 * (col % 2)) & 0xffff;
                    assert_eq!(got, want, "x{n} trans {trans} {space} matrix {q} row {row} column {col}");
                }
            }
        }
    }
}

#[test]
fn movmatrix_transposes() {
    let ptx = format!(
        "{HEAD}ld.global.u32 %r0, [%y]; movmatrix.sync.aligned.m8n8.trans.b16 %r1, %r0; st.global.u32 [%y], %r1;\nret;\n}}\n"
    );
    let mut r = Random(6);
    let data: Vec<u32> = (0..128).map(|_| r.bits() as u32).collect();
    let out = warp(&ptx, &data);
    let element = |d: &[u32], i: usize, j: usize| d[4 * (4 * i + j / 2)] >> (16 * (j % 2)) & 0xffff;
    for i in 0..8 {
        for j in 0..8 {
            assert_eq!(element(&out, i, j), element(&data, j, i), "row {i} column {j}");
        }
    }
}
