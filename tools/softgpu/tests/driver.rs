//! The driver library as programs use it: a cudarc program and a ctypes program under run.sh, reports, errors.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The folder of this build's artefacts.
fn build() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.parent().unwrap().parent().unwrap().to_path_buf()
}

/// The library this test was built with.
fn library() -> PathBuf {
    let places = [build().join("deps/libsoftgpu.so"), build().join("libsoftgpu.so")];
    let newest = places.into_iter().filter_map(|p| Some((p.metadata().ok()?.modified().ok()?, p))).max();
    newest.expect("cargo builds the cdylib beside the tests").1
}

fn guest() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guest")
}

fn run(command: &[&str], env: &[(&str, &str)]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("run.sh");
    let mut c = Command::new(script);
    c.args(command).env("SOFTGPU_LIBRARY", library()).env("SOFTGPU_THREADS", "2");
    for (k, v) in env {
        c.env(k, v);
    }
    c.output().unwrap()
}

fn cudarc_program(args: &[&str], env: &[(&str, &str)]) -> Output {
    let exe = build().join("examples/guest_cudarc");
    let guest = guest();
    let mut command = vec![exe.to_str().unwrap(), guest.to_str().unwrap()];
    command.extend(args);
    run(&command, env)
}

fn text(o: &Output) -> String {
    format!("{}\n{}\n{}", o.status, String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr))
}

#[test]
fn cudarc_program_runs_unmodified() {
    let o = cudarc_program(&[], &[]);
    assert!(o.status.success() && text(&o).contains("all right"), "{}", text(&o));
    for arch in ["86", "89", "90"] {
        let o = cudarc_program(&[], &[("SOFTGPU_ARCH", arch), ("SOFTGPU_SHUFFLE", "5")]);
        assert!(o.status.success() && text(&o).contains("all right"), "sm_{arch}: {}", text(&o));
    }
}

#[test]
fn ctypes_program_runs_foreign_kernels() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest_driver.py");
    if Command::new("python3").arg("-c").arg("import ctypes").output().is_ok_and(|o| o.status.success()) {
        let guest = guest();
        let o = run(&["python3", script.to_str().unwrap(), guest.to_str().unwrap()], &[]);
        let t = text(&o);
        assert!(o.status.success() && t.contains("all right"), "{t}");
        for want in [
            "ok Triton matmul",
            "ok Triton attention",
            "ok Triton layernorm",
            "ok Triton sort",
            "ok cooperative groups' tiles",
        ] {
            assert!(t.contains(want), "{want} is missing: {t}");
        }
        assert!(t.contains("thread 1 of block 0 says hello 1.500 ff"), "{t}");
    } else {
        eprintln!("python3 with ctypes is not here: the ctypes program was not run");
    }
}

#[test]
fn report_of_the_gemm_matches_the_hand_count() {
    let path = build().join(format!("softgpu-report-{}.json", std::process::id()));
    let o = cudarc_program(&["gemm", "256"], &[("SOFTGPU_REPORT", path.to_str().unwrap())]);
    assert!(o.status.success(), "{}", text(&o));
    let report: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let table = std::fs::read_to_string(path.with_extension("txt")).unwrap();
    let _ = (std::fs::remove_file(&path), std::fs::remove_file(path.with_extension("txt")));
    let k = &report["kernels"][0];
    let (m, n, kk) = (256u64, 256u64, 256u64);
    let blocks = (m / 128) * (n / 128);
    let steps = kk / 32;
    // One mma is 16 x 8 x 16.
    assert_eq!(k["mma"], m * n * kk / (16 * 8 * 16));
    assert_eq!(k["mma_flops"], 2 * m * n * kk);
    // A block reads a 128 x 32 tile of each operand a step: rows of 64 bytes, two sectors each, all full.
    assert_eq!(k["global"]["load_sectors"], blocks * steps * 2 * 128 * 2);
    assert_eq!(k["global"]["load_sectors_min"], k["global"]["load_sectors"]);
    assert_eq!(k["global"]["load_requests"], blocks * steps * 2 * 128 * 4 / 32);
    // Each thread writes 64 float2 pairs; a warp's store covers 8 rows of 32 bytes.
    assert_eq!(k["global"]["store_requests"], blocks * 4 * 64);
    assert_eq!(k["global"]["store_sectors"], m * n * 4 / 32);
    assert_eq!(k["global"]["unique_read_bytes"], (m + n) * kk * 2);
    assert_eq!(k["global"]["unique_written_bytes"], m * n * 4);
    // Shared memory: cp.async writes 512 bytes a warp request, 4 passes; ldmatrix.x4 reads 4 matrices, 4 passes; the swizzle
    // leaves no conflict. 8 cp.async a thread and 2 * 8 ldmatrix a warp for each step.
    let waves = blocks * steps * 4 * (8 * 4 + 16 * 4);
    assert_eq!(k["shared"]["wavefronts"], waves);
    assert_eq!(k["shared"]["wavefronts_min"], waves);
    assert_eq!(k["barriers"], blocks * 4 * steps);
    assert_eq!(k["atomic_lanes"], 0);
    assert_eq!(report["h2d_bytes"], (m + n) * kk * 2);
    assert_eq!(report["d2h_bytes"], m * n * 4);
    assert_eq!(report["num_launches"], 1);
    assert!(k["time_model"]["note"].as_str().unwrap().contains("not a measurement"));
    assert!(table.contains("gemm_bf16") && table.contains("not a measurement"), "{table}");
    let lines = k["lines"].as_array().unwrap();
    let mma: u64 = lines
        .iter()
        .filter(|l| l["op"].as_str().unwrap().starts_with("mma.sync"))
        .map(|l| l["issued"].as_u64().unwrap())
        .sum();
    assert_eq!(mma, m * n * kk / 2048);
    assert!(lines.iter().any(|l| l["source"].as_str().is_some_and(|s| s.starts_with("gemm.cu:"))));
}

/// Small C-like calls through ctypes: what fails, fails with the right code and text.
const ERRORS: &str = r#"
import ctypes
c = ctypes.CDLL("libcuda.so.1")
P, U64, B = ctypes.c_void_p, ctypes.c_uint64, ctypes.byref
p, q, f, ctx, mod = U64(), U64(), U64(), P(), P()
assert c.cuMemAlloc_v2(B(p), ctypes.c_size_t(4)) == 3
assert c.cuInit(0) == 0 and c.cuDevicePrimaryCtxRetain(B(ctx), 0) == 0 and c.cuCtxSetCurrent(ctx) == 0
free, total = ctypes.c_size_t(), ctypes.c_size_t()
assert c.cuMemGetInfo_v2(B(free), B(total)) == 0 and total.value == 64 << 20, total.value
assert c.cuMemAlloc_v2(B(p), ctypes.c_size_t(60 << 20)) == 0
assert c.cuMemAlloc_v2(B(q), ctypes.c_size_t(5 << 20)) == 2
assert c.cuMemFree_v2(p) == 0 and c.cuMemFree_v2(p) == 1
assert c.cuMemAlloc_v2(B(q), ctypes.c_size_t(100)) == 0
assert c.cuMemcpyHtoD_v2(q, bytes(101), ctypes.c_size_t(101)) == 1
assert c.cuModuleLoadData(B(mod), b"\x7fELF" + bytes(64)) == 209
log = ctypes.create_string_buffer(500)
opts, vals = (ctypes.c_int * 2)(5, 6), (P * 2)(ctypes.cast(log, P), 500)
bad = b".version 8.0\n.target sm_80\n.address_size 64\n.entry k() { foo.bar; }\0"
assert c.cuModuleLoadDataEx(B(mod), bad, 2, opts, vals) == 218 and b"PTX line 4" in log.value, log.value
new = b".version 8.0\n.target sm_90\n.address_size 64\n.entry k() { ret; }\0"
assert c.cuModuleLoadData(B(mod), new) == 209
text = b".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 a) { .reg .b64 %r<2>; ld.param.u64 %r1, [a]; st.global.u32 [%r1], 7; ret; }\0"
assert c.cuModuleLoadData(B(mod), text) == 0 and c.cuModuleGetFunction(B(f), mod, b"no") == 500
assert c.cuModuleGetFunction(B(f), mod, b"k") == 0
args = (P * 1)(ctypes.cast(ctypes.pointer(q), P))
run = lambda shared, threads=1: c.cuLaunchKernel(f, 1, 1, 1, threads, 1, 1, shared, None, args, None)
assert run(50000) == 1 and c.cuFuncSetAttribute(f, 8, 60000) == 0 and run(50000) == 0
assert c.cuFuncSetAttribute(f, 8, 200000) == 1 and run(0, 1025) == 1
v, n = ctypes.c_uint32(), ctypes.c_size_t(4)
assert c.cuMemcpyDtoH_v2(B(v), q, n) == 0 and v.value == 7
# Through cuGetProcAddress; names mean their newest version.
a, st = P(), ctypes.c_int()
assert c.cuGetProcAddress_v2(b"cuMemAlloc", B(a), 12080, U64(0), B(st)) == 0 and st.value == 0
assert a.value == ctypes.cast(c.cuMemAlloc_v2, P).value
assert c.cuGetProcAddress_v2(b"cuNonsense", B(a), 12080, U64(0), B(st)) == 500 and st.value == 1
assert c.cuTexObjectCreate(None, None, None, None) == 801
# Graph: capture, launch, update with new arguments.
s, g, g2, e = P(), P(), P(), P()
assert c.cuStreamCreate(B(s), 0) == 0 and c.cuStreamBeginCapture_v2(s, 0) == 0
assert c.cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, s, args, None) == 0 and c.cuStreamEndCapture(s, B(g)) == 0
assert c.cuGraphInstantiateWithFlags(B(e), g, U64(0)) == 0
r = U64()
assert c.cuMemAlloc_v2(B(r), ctypes.c_size_t(4)) == 0 and c.cuMemsetD32_v2(r, 1, n) == 1 and c.cuMemsetD32_v2(r, 1, ctypes.c_size_t(1)) == 0
other = (P * 1)(ctypes.cast(ctypes.pointer(r), P))
assert c.cuStreamBeginCapture_v2(s, 0) == 0 and c.cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, s, other, None) == 0
assert c.cuStreamEndCapture(s, B(g2)) == 0 and c.cuGraphExecUpdate_v2(e, g2, None) == 0
assert c.cuGraphLaunch(e, s) == 0 and c.cuStreamSynchronize(s) == 0
assert c.cuMemcpyDtoH_v2(B(v), r, n) == 0 and v.value == 7
a, b, ms = P(), P(), ctypes.c_float()
assert c.cuEventCreate(B(a), 0) == 0 and c.cuEventCreate(B(b), 0) == 0
assert c.cuEventRecord(a, s) == 0 and c.cuEventRecord(b, s) == 0 and c.cuEventElapsedTime(B(ms), a, b) == 0 and ms.value >= 0
blocks = ctypes.c_int()
assert c.cuOccupancyMaxActiveBlocksPerMultiprocessor(B(blocks), f, 256, ctypes.c_size_t(0)) == 0 and blocks.value == 8
assert c.cuOccupancyMaxActiveBlocksPerMultiprocessor(B(blocks), f, 256, ctypes.c_size_t(60000)) == 0 and blocks.value == 2
# A fault is returned by the launch and by everything after it.
q.value = 4096
assert run(0) == 700 and c.cuCtxSynchronize() == 700 and c.cuMemAlloc_v2(B(p), n) == 700
name = ctypes.c_char_p()
assert c.cuGetErrorName(700, B(name)) == 0 and name.value == b"CUDA_ERROR_ILLEGAL_ADDRESS"
print("all right")
"#;

#[test]
fn errors_have_their_codes() {
    if !Command::new("python3").arg("-c").arg("import ctypes").output().is_ok_and(|o| o.status.success()) {
        eprintln!("python3 with ctypes is not here: the error codes were not checked");
        return;
    }
    let o = run(&["python3", "-c", ERRORS], &[("SOFTGPU_MEMORY", "64M"), ("SOFTGPU_LEAKS", "1")]);
    let t = text(&o);
    assert!(o.status.success() && t.contains("all right"), "{t}");
    assert!(
        t.contains(
            "out-of-bounds access in kernel k, PTX line 4 `st.global.u32`, block (0,0,0) thread (0,0,0), address 0x1000"
        ),
        "{t}"
    );
    assert!(t.contains("cuTexObjectCreate is not supported") && t.contains("double free"), "{t}");
    assert!(t.contains("allocations were not freed"), "{t}");
}
