//! Shared by the tests: one-instruction kernels, special values, byte views.
#![allow(dead_code)]

use softgpu::gpu::{Gpu, Shape};
use softgpu::memory::Use;

/// Bytes of plain numbers.
pub fn bytes<T: Copy>(v: &[T]) -> Vec<u8> {
    // SAFETY: the tests pass slices of plain numbers, which have no padding.
    unsafe { std::slice::from_raw_parts(v.as_ptr().cast(), size_of_val(v)) }.to_vec()
}

/// Bytes as f32.
pub fn floats(b: &[u8]) -> Vec<f32> {
    b.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect()
}

/// Bytes as u32.
pub fn words(b: &[u8]) -> Vec<u32> {
    b.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect()
}

/// A random number generator, the same on every run.
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// In [-1, 1).
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Bits of a register type.
pub fn width(ty: &str) -> u32 {
    match ty {
        "u8" | "s8" => 8,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 16,
        "b64" | "u64" | "s64" | "f64" => 64,
        "pred" => 1,
        _ => 32,
    }
}

/// Values that break things, and random ones, for a type.
pub fn values(ty: &str, n: usize, seed: u64) -> Vec<u64> {
    if let Some(half) = ty.strip_suffix("x2") {
        let (low, high) = (values(half, n, seed), values(half, n, seed + 5));
        return low.iter().zip(high).map(|(l, h)| l | h << 16).collect();
    }
    let special: Vec<u64> = match ty {
        "f32" => [
            0.0f32,
            -0.0,
            1.0,
            -1.0,
            0.5,
            1.5,
            2.5,
            -2.5,
            std::f32::consts::PI,
            1e-45,
            -1e-40,
            f32::MIN_POSITIVE,
            3.4028235e38,
            -3.4028235e38,
            65504.0,
            65520.0,
            1e-7,
            5.9604645e-8,
            8388608.5,
            16777217.0,
            2147483648.0,
            -2147483904.0,
            4294967296.0,
            1e20,
            255.5,
            127.5,
            -128.5,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
        ]
        .map(|v| u64::from(v.to_bits()))
        .to_vec(),
        "f64" => [
            0.0f64,
            -0.0,
            1.0,
            -1.0,
            0.5,
            1.5,
            2.5,
            -3.5,
            1e-310,
            2.2250738585072014e-308,
            1.7976931348623157e308,
            9007199254740993.0,
            9.3e18,
            -9.3e18,
            4294967295.5,
            1e-45,
            1e40,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
        ]
        .map(f64::to_bits)
        .to_vec(),
        "f16" | "bf16" => vec![
            0, 0x8000, 1, 0x8001, 0x3ff, 0x400, 0x3c00, 0xbc00, 0x3f80, 0x7bff, 0x7c00, 0xfc00, 0x7e00, 0x7f80, 0xff80,
            0x7fc0,
        ],
        _ => {
            let w = width(ty);
            let top = 1u64 << (w - 1);
            vec![
                0,
                1,
                2,
                3,
                5,
                7,
                31,
                32,
                33,
                63,
                64,
                255,
                256,
                top - 1,
                top,
                top + 1,
                u64::MAX,
                u64::MAX - 1,
                u64::MAX - 4,
            ]
        }
    };
    let mut r = Random(seed);
    let mask = if width(ty) == 64 { u64::MAX } else { (1u64 << width(ty)) - 1 };
    let mut out: Vec<u64> = Vec::with_capacity(n);
    // Specials against specials first: each seed walks them with its own stride.
    let stride = 1 + (seed as usize * 7) % special.len().max(2);
    for i in 0..n {
        let v = if i < n / 2 {
            special[(i * stride + i / special.len() * (1 + seed as usize)) % special.len()]
        } else if ty == "f32" && i % 2 == 0 {
            // Moderate magnitudes, where rounding shows.
            u64::from((r.unit() * (r.bits() as u32 as f32 / 1e8).exp2()).to_bits())
        } else if ty == "f64" && i % 2 == 0 {
            f64::from_bits(r.bits() & !(0x7ff << 52) | (1003 + r.bits() % 40) << 52).to_bits()
        } else {
            r.bits()
        };
        out.push(v & mask);
    }
    out
}

fn register(ty: &str) -> &'static str {
    match width(ty) {
        1 => "pred",
        8 | 16 => "b16",
        64 => "b64",
        _ => "b32",
    }
}

/// Runs `text` (it uses `%a0..`, `%d`) for each row of inputs; one thread a row. Inputs and result travel as 64-bit words.
pub fn run_instruction(text: &str, inputs: &[(&str, Vec<u64>)], out: &str) -> Vec<u64> {
    let n = inputs[0].1.len();
    let mut ptx = String::from(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p0, .param .u64 p1, .param .u32 p2)\n{\n",
    );
    ptx += ".reg .pred %in; .reg .b32 %t<6>; .reg .b64 %base, %o, %w, %x;\n";
    for (i, (ty, _)) in inputs.iter().enumerate() {
        ptx += &format!(".reg .{} %a{i};\n", register(ty));
    }
    ptx += &format!(".reg .{} %d;\n", register(out));
    ptx += "mov.u32 %t0, %ctaid.x; mov.u32 %t1, %ntid.x; mov.u32 %t2, %tid.x; mad.lo.u32 %t3, %t0, %t1, %t2;\n";
    ptx += "ld.param.u32 %t4, [p2]; setp.ge.u32 %in, %t3, %t4; @%in bra DONE;\n";
    for (i, (ty, v)) in inputs.iter().enumerate() {
        ptx += &format!(
            "ld.param.u64 %base, [p0]; mul.wide.u32 %o, %t3, 8; add.u64 %base, %base, %o; ld.global.u64 %w, [%base+{}];\n",
            i * n * 8
        );
        assert_eq!(v.len(), n);
        ptx += &match register(ty) {
            "pred" => format!("setp.ne.u64 %a{i}, %w, 0;\n"),
            "b16" => format!("cvt.u16.u64 %a{i}, %w;\n"),
            "b64" => format!("mov.b64 %a{i}, %w;\n"),
            _ => format!("cvt.u32.u64 %a{i}, %w;\n"),
        };
    }
    ptx += text;
    ptx += &match register(out) {
        "pred" => "\nselp.u64 %w, 1, 0, %d;\n".to_string(),
        "b16" => "\ncvt.u64.u16 %w, %d;\n".to_string(),
        "b64" => "\nmov.b64 %w, %d;\n".to_string(),
        _ => "\ncvt.u64.u32 %w, %d;\n".to_string(),
    };
    ptx += "ld.param.u64 %base, [p1]; add.u64 %base, %base, %o; st.global.u64 [%base], %w;\nDONE: ret;\n}\n";
    let mut gpu = Gpu::new(1 << 24).unwrap();
    gpu.options.threads = 1;
    let m = gpu.load(&ptx).unwrap_or_else(|e| panic!("{text}: {e}\n{ptx}"));
    let all: Vec<u64> = inputs.iter().flat_map(|i| i.1.iter().copied()).collect();
    let a = gpu.upload(&bytes(&all)).unwrap();
    let o = gpu.memory.alloc((n * 8) as u64, Use::Device).unwrap();
    let shape = Shape { grid: [n.div_ceil(64) as u32, 1, 1], block: [64, 1, 1], shared: 0 };
    let p: [&[u8]; 3] = [&a.to_le_bytes(), &o.to_le_bytes(), &(n as u32).to_le_bytes()];
    gpu.launch(&m.kernels["k"], shape, &p).unwrap_or_else(|f| panic!("{text}: {f}"));
    gpu.download(o, n * 8).chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect()
}

/// Checks an instruction against a definition over special and random values.
pub fn check(text: &str, types: &[&str], out: &str, same: impl Fn(&[u64], u64) -> Result<(), String>) {
    let n = 1600;
    let inputs: Vec<_> = types.iter().enumerate().map(|(i, t)| (*t, values(t, n, i as u64 * 3 + 1))).collect();
    let got = run_instruction(text, &inputs, out);
    for row in 0..n {
        let args: Vec<u64> = inputs.iter().map(|i| i.1[row]).collect();
        if let Err(e) = same(&args, got[row]) {
            panic!("{text}: row {row}, inputs {args:x?}, got {:#x}: {e}", got[row]);
        }
    }
}

/// Exact equality with a definition.
pub fn exact(text: &str, types: &[&str], out: &str, want: impl Fn(&[u64]) -> u64) {
    let mask = match width(out) {
        64 => u64::MAX,
        w => (1u64 << w) - 1,
    };
    check(text, types, out, |a, got| {
        let w = want(a) & mask;
        if w == got & mask { Ok(()) } else { Err(format!("expected {w:#x}")) }
    });
}

/// f32 equality by bits, any NaN for a NaN.
pub fn exact32(text: &str, types: &[&str], want: impl Fn(&[u64]) -> f32) {
    check(text, types, "f32", |a, got| {
        let (w, g) = (want(a), f32::from_bits(got as u32));
        if w.to_bits() == g.to_bits() || w.is_nan() && g.is_nan() {
            Ok(())
        } else {
            Err(format!("expected {w:e}, got {g:e}"))
        }
    });
}
