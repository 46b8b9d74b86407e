//! Cases: a kernel around one instruction that is no function of a lane's registers, and what its output must be.

use crate::common::{Random, bytes};
use softgpu::gpu::{Gpu, Shape};
use softgpu::memory::Use;

/// Threads of a case's block, unless it says otherwise.
pub const THREADS: u32 = 32;

/// One kernel: `%in`, `%out` its buffers, `%t` the thread, `%me` and `%mine` the thread's 16 bytes of input and 64 of output.
pub struct Case {
    /// Opcodes this case is a test of; its text must hold them.
    pub about: Vec<String>,
    /// Module-level text.
    pub module: String,
    pub body: String,
    pub threads: u32,
    pub input: Vec<u8>,
    pub right: Box<dyn Fn(&[u8]) -> Result<(), String>>,
}

impl Case {
    /// A case with this output.
    pub fn new(op: &str, body: String, input: Vec<u8>, want: Vec<u8>) -> Case {
        let right = move |got: &[u8]| match (0..want.len()).find(|n| want[*n] != got[*n]) {
            None => Ok(()),
            Some(n) => {
                let (w, g) = (&want[n / 8 * 8..], &got[n / 8 * 8..]);
                Err(format!("byte {n}: expected {:02x?}, got {:02x?}", &w[..w.len().min(8)], &g[..g.len().min(8)]))
            }
        };
        let about = vec![op.to_string()];
        Case { about, module: String::new(), body, threads: THREADS, input, right: Box::new(right) }
    }

    /// A case whose output is one 32-bit word a thread.
    pub fn word(op: &str, body: &str, input: &[u32], want: impl Fn(usize) -> u32) -> Case {
        let out: Vec<u32> = (0..THREADS as usize).flat_map(|t| [&[want(t)][..], &[0; 15]].concat()).collect();
        Case::new(op, format!("{body}\nst.global.u32 [%mine], %d;"), bytes(input), bytes(&out))
    }

    fn run(&self) -> Result<(), String> {
        for op in &self.about {
            let there = |text: &str| text.split([' ', ';', '\n']).any(|w| w == op);
            assert!(there(&self.body) || there(&self.module), "{op} is not in its own case");
        }
        let ptx = format!(
            ".version 8.8\n.target sm_90\n.address_size 64\n{}\n.visible .entry k(.param .u64 p0, .param .u64 p1, .param .align 16 .b8 p2[16])\n{{\n\
            .reg .b64 %in, %out, %me, %mine, %x, %y, %l<8>; .reg .b32 %t, %d, %v, %w, %s, %r<12>; .reg .pred %p, %q; .reg .b16 %h<8>; .reg .f32 %f<4>; .reg .f64 %e<4>;\n\
            ld.param.u64 %in, [p0]; ld.param.u64 %out, [p1]; mov.u32 %t, %tid.x;\n\
            mad.wide.u32 %me, %t, 16, %in; mad.wide.u32 %mine, %t, 64, %out;\n{}\nret;\n}}\n",
            self.module, self.body
        );
        let mut gpu = Gpu::new(1 << 24).unwrap();
        gpu.options.threads = 1;
        let module = gpu.load(&ptx).map_err(|e| format!("{e}"))?;
        let input = gpu.upload(&self.input).unwrap();
        let n = self.threads as usize * 64;
        let out = gpu.memory.alloc(n as u64, Use::Device).unwrap();
        gpu.memory.write(out, &vec![0; n]);
        let shape = Shape { grid: [1; 3], block: [self.threads, 1, 1], shared: 0 };
        let p: [&[u8]; 3] = [&input.to_le_bytes(), &out.to_le_bytes(), &slot(7)];
        gpu.launch(&module.kernels["k"], shape, &p).map_err(|f| format!("{f}"))?;
        (self.right)(&gpu.download(out, n))
    }
}

/// 16 bytes, the same on every run.
pub fn slot(seed: u64) -> Vec<u8> {
    let mut r = Random(seed);
    bytes(&[r.bits(), r.bits()])
}

/// A slot for each thread.
pub fn slots() -> Vec<u8> {
    (0..u64::from(THREADS)).flat_map(|t| slot(1000 + t)).collect()
}

/// Random words.
pub fn noise(n: usize) -> Vec<u32> {
    let mut r = Random(9);
    (0..n).map(|_| r.bits() as u32).collect()
}

/// Runs cases and tells of all that are wrong.
pub fn check(cases: &[Case]) {
    let wrong: Vec<String> =
        cases.iter().filter_map(|c| c.run().err().map(|e| format!("{}: {e}", c.about.join(", ")))).collect();
    assert!(wrong.is_empty(), "{} of {} are wrong:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
