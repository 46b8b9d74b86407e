//! Failures on request, counted calls, hidden entry points, old drivers: what programs need to test their error paths.
//!
//! The test program starts itself under run.sh as `guest`, which loads `libcuda.so.1` as any program would and prints the
//! result of each call.

use std::ffi::{CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const KERNEL: &str = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k() { ret; }\n";

/// The calls `guest` makes, in order.
const CALLS: [&str; 17] = [
    "cuInit",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDevicePrimaryCtxRetain",
    "cuCtxSetCurrent",
    "cuMemAlloc_v2",
    "cuMemAlloc_v2",
    "cuMemAlloc_v2",
    "cuMemHostAlloc",
    "cuMemAllocHost_v2",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuLaunchKernel",
    "cuCtxSynchronize",
    "cuMemFree_v2",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
];

type Entry = unsafe extern "C" fn(u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64) -> u32;

/// Runs the calls when the variable asks for it; as a test of its own it has nothing to check.
#[test]
fn guest() {
    if std::env::var_os("SOFTGPU_TEST_GUEST").is_none() {
        return;
    }
    // SAFETY: C calls with the arguments their signatures ask for; in C's conventions more arguments do no harm.
    unsafe {
        let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW);
        assert!(!library.is_null(), "{:?}", std::ffi::CStr::from_ptr(libc::dlerror()));
        let find = |name: &str| -> Option<Entry> {
            let name = CString::new(name).unwrap();
            let p = libc::dlsym(library, name.as_ptr());
            (!p.is_null()).then(|| std::mem::transmute::<*mut c_void, Entry>(p))
        };
        let (mut a, mut b, mut module, mut function) = (0u64, 0u64, 0u64, 0u64);
        let text = CString::new(KERNEL).unwrap();
        for name in CALLS {
            let Some(f) = find(name) else {
                println!("{name} hidden");
                continue;
            };
            let at = |p: &mut u64| std::ptr::from_mut(p) as u64;
            let args: [u64; 8] = match name {
                "cuInit" => [0; 8],
                "cuDevicePrimaryCtxRetain" | "cuDeviceGetCount" | "cuDeviceGet" => [at(&mut b), 0, 0, 0, 0, 0, 0, 0],
                "cuCtxSetCurrent" => [b, 0, 0, 0, 0, 0, 0, 0],
                "cuModuleLoadData" => [at(&mut module), text.as_ptr() as u64, 0, 0, 0, 0, 0, 0],
                "cuModuleGetFunction" => [at(&mut function), module, c"k".as_ptr() as u64, 0, 0, 0, 0, 0],
                "cuLaunchKernel" => [function, 1, 1, 1, 1, 1, 1, 0],
                "cuMemFree_v2" => [a, 0, 0, 0, 0, 0, 0, 0],
                "cuDevicePrimaryCtxRelease_v2" => [0; 8],
                _ => [at(&mut a), 64, 0, 0, 0, 0, 0, 0],
            };
            println!("{name} {}", f(args[0], args[1], args[2], args[3], args[4], args[5], args[6], args[7], 0, 0, 0));
        }
        let mut version = 0i32;
        if let Some(f) = find("cuDriverGetVersion") {
            f(std::ptr::from_mut(&mut version) as u64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
        }
        println!("version {version}");
        let (mut to, mut status) = (std::ptr::null::<c_char>(), -1i32);
        if let Some(f) = find("cuGetProcAddress_v2") {
            let asked = (c"cuGraphInstantiate".as_ptr() as u64, std::ptr::from_mut(&mut to) as u64);
            let r = f(asked.0, asked.1, 12080, 0, std::ptr::from_mut(&mut status) as u64, 0, 0, 0, 0, 0, 0);
            println!("cuGetProcAddress {r} {status} {}", to.is_null());
        }
    }
    println!("end");
}

fn build() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.parent().unwrap().parent().unwrap().to_path_buf()
}

fn run(env: &[(&str, &str)]) -> Output {
    let places = [build().join("deps/libsoftgpu.so"), build().join("libsoftgpu.so")];
    let library = places.into_iter().filter_map(|p| Some((p.metadata().ok()?.modified().ok()?, p))).max().unwrap().1;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("run.sh");
    let mut c = Command::new(script);
    c.arg(std::env::current_exe().unwrap()).args(["guest", "--exact", "--nocapture"]);
    c.env("SOFTGPU_LIBRARY", library).env("SOFTGPU_TEST_GUEST", "1").env("SOFTGPU_MEMORY", "64M");
    c.env("SOFTGPU_THREADS", "1").envs(env.iter().copied());
    c.output().unwrap()
}

/// What each call returned, and the rest of the lines.
fn results(env: &[(&str, &str)]) -> (Vec<String>, String) {
    let o = run(env);
    let out = String::from_utf8_lossy(&o.stdout).into_owned();
    assert!(o.status.success() && out.contains("\nend"), "{}{out}{}", o.status, String::from_utf8_lossy(&o.stderr));
    // The test harness writes before the first line, without an end of line.
    let out = out[out.find(CALLS[0]).unwrap()..].to_string();
    let lines: Vec<String> = out.lines().take(CALLS.len()).map(str::to_string).collect();
    let names: Vec<&str> = lines.iter().map(|l| l.split(' ').next().unwrap()).collect();
    assert_eq!(names, CALLS);
    (lines.iter().map(|l| l.split(' ').nth(1).unwrap().to_string()).collect(), out)
}

#[test]
fn calls_are_counted() {
    let path = build().join(format!("softgpu-calls-{}.txt", std::process::id()));
    let (r, _) = results(&[("SOFTGPU_CALLS", path.to_str().unwrap())]);
    let counts = std::fs::read_to_string(&path).unwrap();
    let _ = std::fs::remove_file(&path);
    assert!(r.iter().all(|r| r == "0"), "{r:?}");
    let mut want: Vec<String> = Vec::new();
    let mut names = CALLS.to_vec();
    names.extend(["cuDriverGetVersion", "cuGetProcAddress_v2"]);
    names.sort();
    names.dedup();
    for n in names {
        want.push(format!("{n} {}", CALLS.iter().filter(|c| **c == n).count().max(1)));
    }
    // cuMemAllocHost_v2 uses cuMemHostAlloc inside: one call of the program is one call.
    want.insert(0, format!("* {}", CALLS.len() + 2));
    assert_eq!(counts.lines().collect::<Vec<_>>(), want);
}

#[test]
fn places_of_calls_are_told() {
    let path = build().join(format!("softgpu-sites-{}.txt", std::process::id()));
    results(&[("SOFTGPU_SITES", path.to_str().unwrap())]);
    let text = std::fs::read_to_string(&path).unwrap();
    let _ = std::fs::remove_file(&path);
    let line = |entry: &str| -> Vec<&str> {
        let mut lines = text.lines().filter(|l| l.split(' ').next() == Some(entry));
        let line = lines.next().unwrap_or_else(|| panic!("{entry} in {text}"));
        assert!(lines.next().is_none(), "{entry} is called in one place: {text}");
        line.splitn(3, ' ').collect()
    };
    // All of the list come from one loop; the version is asked for after it.
    assert_eq!(line("cuMemAlloc_v2")[1], "1,2,3");
    assert_eq!(line("cuDevicePrimaryCtxRetain")[1], "1,2");
    assert_eq!(line("cuDriverGetVersion")[1], "1");
    let caller = line("cuMemAlloc_v2")[2].split(" < ").next().unwrap();
    assert!(caller == "guest" || caller.ends_with("::guest"), "{caller}");
    assert_ne!(line("cuMemAlloc_v2")[2], "", "{text}");
}

#[test]
fn every_call_can_fail_in_turn() {
    for n in 0..CALLS.len() {
        let (r, _) = results(&[("SOFTGPU_FAIL", &format!("*:{}:46", n + 1))]);
        assert_eq!(r[n], "46", "call {n}, {}: {r:?}", CALLS[n]);
        assert!(r[..n].iter().all(|r| r == "0"), "calls before {n}: {r:?}");
        // The call did nothing: without cuInit nothing works, without a context there is no memory.
        match CALLS[n] {
            "cuInit" => assert!(r[1..].iter().all(|r| r == "3"), "{r:?}"),
            "cuMemAlloc_v2" => assert!(r[n + 1..].iter().all(|r| r == "0"), "{r:?}"),
            "cuModuleLoadData" => assert_eq!(r[n + 1], "400", "{r:?}"),
            _ => {}
        }
    }
}

#[test]
fn one_entry_fails_at_its_nth_call() {
    let allocs = |fail: &str| results(&[("SOFTGPU_FAIL", fail)]).0[5..8].to_vec();
    assert_eq!(allocs("cuMemAlloc_v2:2:2"), ["0", "2", "0"]);
    assert_eq!(allocs("cuMemAlloc:2+:2"), ["0", "2", "2"], "the version may be left away");
    assert_eq!(allocs("cuMemAlloc:1:2, cuMemAlloc:3:1"), ["2", "0", "1"], "several rules");
    assert_eq!(allocs("cuMemAll:1:2"), ["0", "0", "0"], "a part of a name is no name");
}

#[test]
fn device_errors_stay_until_the_context_ends() {
    let (r, _) = results(&[("SOFTGPU_FAIL", "cuLaunchKernel:1:700")]);
    let want = ["0", "0", "0", "0", "0", "0", "0", "0", "0", "0", "0", "0", "700", "700", "700", "0", "0"];
    assert_eq!(r, want, "freeing says it too, releasing the context ends it");
    let (r, _) = results(&[("SOFTGPU_FAIL", "cuLaunchKernel:1:701")]);
    assert_eq!(r[12..], ["701", "0", "0", "0", "0"], "too many resources is the launch's own error");
}

#[test]
fn an_old_driver_has_its_version_and_refuses_newer_ptx() {
    let (r, out) = results(&[("SOFTGPU_DRIVER_VERSION", "11040")]);
    assert!(out.contains("version 11040"), "{out}");
    assert_eq!(r[10], "222", "PTX 8.0 is of CUDA 12.0: {r:?}");
    let (r, out) = results(&[("SOFTGPU_DRIVER_VERSION", "12000")]);
    assert!(out.contains("version 12000") && r[10] == "0", "{r:?}");
}

#[test]
fn hidden_entries_are_not_found() {
    let (r, out) = results(&[("SOFTGPU_HIDE", "cuGraphInstantiate,cuGraphInstantiateWithFlags,cuMemAllocHost")]);
    assert_eq!(r[9], "hidden", "{r:?}");
    assert!(r.iter().enumerate().all(|(n, r)| n == 9 || r == "0"), "{r:?}");
    assert!(out.contains("cuGetProcAddress 500 1 true"), "{out}");
    let (_, out) = results(&[]);
    assert!(out.contains("cuGetProcAddress 0 0 false"), "{out}");
}

#[test]
fn a_rule_that_cannot_be_read_ends_the_program() {
    for rule in ["cuMemAlloc", "cuMemAlloc:0:2", "cuMemAlloc:1:2:3", ":1:2", "cuMemAlloc:1:OOM"] {
        let o = run(&[("SOFTGPU_FAIL", rule)]);
        assert!(!o.status.success(), "{rule}");
        assert!(String::from_utf8_lossy(&o.stderr).contains(rule), "{rule}");
    }
}
