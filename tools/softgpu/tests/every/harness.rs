//! Rows: an instruction, its operand types, its definition. Runs them in kernels of one instruction each, many to a module.

use crate::common::{bytes, values, width};
use softgpu::gpu::{Gpu, Shape};
use softgpu::memory::Use;
use std::collections::HashMap;

/// Whether a result is right for these inputs.
pub type Definition = Box<dyn Fn(&[u64], u64) -> Result<(), String>>;

/// One form of a lane-wise instruction.
pub struct Row {
    /// The opcode with its modifiers.
    pub op: String,
    /// PTX around it; it reads `%a0..` and leaves its result in `%d`.
    pub text: String,
    /// Types of `%a0..`.
    pub inputs: Vec<&'static str>,
    /// Type of `%d`.
    pub out: &'static str,
    pub right: Definition,
}

/// `op %d, %a0, ...;`
pub fn row(op: String, inputs: &[&'static str], out: &'static str, right: Definition) -> Row {
    let operands: String = (0..inputs.len()).map(|n| format!(", %a{n}")).collect();
    Row { text: format!("{op} %d{operands};"), op, inputs: inputs.to_vec(), out, right }
}

/// Equality by bits with a definition.
pub fn equal(out: &'static str, want: impl Fn(&[u64]) -> u64 + 'static) -> Definition {
    let mask = if width(out) == 64 { u64::MAX } else { (1 << width(out)) - 1 };
    Box::new(move |a, got| {
        let w = want(a) & mask;
        if w == got & mask { Ok(()) } else { Err(format!("expected {w:#x}")) }
    })
}

fn register(ty: &str) -> &'static str {
    match width(ty) {
        1 => "pred",
        8 | 16 => "b16",
        64 => "b64",
        _ => "b32",
    }
}

const HEAD: &str = ".version 8.8\n.target sm_90\n.address_size 64\n";

fn kernel(name: usize, row: &Row, n: usize) -> String {
    let mut ptx = format!(".visible .entry k{name}(.param .u64 p0, .param .u64 p1)\n{{\n");
    ptx += ".reg .b32 %t<4>; .reg .b64 %base, %o, %w; .reg .pred %q, %z;\n";
    for (i, ty) in row.inputs.iter().enumerate() {
        ptx += &format!(".reg .{} %a{i};\n", register(ty));
    }
    ptx += &format!(".reg .{} %d;\n", register(row.out));
    ptx += "mov.u32 %t0, %ctaid.x; mov.u32 %t1, %ntid.x; mov.u32 %t2, %tid.x; mad.lo.u32 %t3, %t0, %t1, %t2;\n";
    ptx += "mul.wide.u32 %o, %t3, 8; ld.param.u64 %base, [p0]; add.u64 %base, %base, %o;\n";
    for (i, ty) in row.inputs.iter().enumerate() {
        ptx += &format!("ld.global.u64 %w, [%base+{}];", i * n * 8);
        ptx += &match register(ty) {
            "pred" => format!("setp.ne.u64 %a{i}, %w, 0;\n"),
            "b16" => format!("cvt.u16.u64 %a{i}, %w;\n"),
            "b64" => format!("mov.b64 %a{i}, %w;\n"),
            _ => format!("cvt.u32.u64 %a{i}, %w;\n"),
        };
    }
    ptx += &row.text;
    ptx += match register(row.out) {
        "pred" => "\nselp.u64 %w, 1, 0, %d;\n",
        "b16" => "\ncvt.u64.u16 %w, %d;\n",
        "b64" => "\nmov.b64 %w, %d;\n",
        _ => "\ncvt.u64.u32 %w, %d;\n",
    };
    ptx + "ld.param.u64 %base, [p1]; add.u64 %base, %base, %o; st.global.u64 [%base], %w;\nret;\n}\n"
}

/// Runs rows on `n` tuples of special and random values each, a multiple of 64, and tells of each wrong one its first wrong
/// tuple.
pub fn check(rows: &[Row], n: usize) {
    let mut wrong = Vec::new();
    let mut known: HashMap<(&str, usize), Vec<u64>> = HashMap::new();
    for part in rows.chunks(64) {
        let text: String = part.iter().enumerate().map(|(i, r)| kernel(i, r, n)).collect();
        let mut gpu = Gpu::new(1 << 26).unwrap();
        gpu.options.threads = 1;
        let module = gpu.load(&format!("{HEAD}{text}")).unwrap_or_else(|e| panic!("{e}: {}", part[0].op));
        let out = gpu.memory.alloc(n as u64 * 8, Use::Device).unwrap();
        for (i, row) in part.iter().enumerate() {
            let inputs: Vec<Vec<u64>> = (row.inputs.iter().enumerate())
                .map(|(k, ty)| known.entry((ty, k)).or_insert_with(|| values(ty, n, k as u64 * 3 + 1)).clone())
                .collect();
            let a = gpu.upload(&bytes(&inputs.concat())).unwrap();
            let shape = Shape { grid: [n as u32 / 64, 1, 1], block: [64, 1, 1], shared: 0 };
            gpu.launch(&module.kernels[&format!("k{i}")], shape, &[&a.to_le_bytes(), &out.to_le_bytes()])
                .unwrap_or_else(|f| panic!("{}: {f}", row.op));
            let got = gpu.download(out, n * 8);
            for t in 0..n {
                let args: Vec<u64> = inputs.iter().map(|v| v[t]).collect();
                let got = u64::from_le_bytes(got[t * 8..t * 8 + 8].try_into().unwrap());
                if let Err(e) = (row.right)(&args, got) {
                    wrong.push(format!("{}: inputs {args:x?}, got {got:#x}: {e}", row.op));
                    break;
                }
            }
            gpu.memory.free(a).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{} of {} are wrong:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}
