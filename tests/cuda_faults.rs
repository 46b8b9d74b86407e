//! Every call site of the driver fails in turn: the message says what and what next, the exit code is that of the
//! contract, nothing hangs, nothing leaks. The software GPU fails on request, so this runs on it alone:
//! `tools/softgpu/run.sh cargo test --release --workspace --test cuda_faults`. A call site is the few functions that led
//! to a call; with FAULTS_EVERY_SITE=1 every whole stack, about four times as many runs.

mod cli_support;
#[path = "cuda_ops/device.rs"]
mod device;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use cli_support::{Output, engine, finish, path};
use serde_json::Value;

/// `engine ARGS` with the software GPU's `variables`.
fn gpu(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut c = with_driver(args);
    c.envs(variables.iter().copied()).env("SOFTGPU_LEAKS", "1").env("SOFTGPU_THREADS", "1");
    finish(c, b"")
}

fn with_driver(args: &[&str]) -> Command {
    let mut c = engine();
    c.args(args).envs(["LD_LIBRARY_PATH", "LD_PRELOAD"].into_iter().filter_map(|v| Some((v, std::env::var_os(v)?))));
    c
}

/// Whether the driver is the software GPU's; without one, a check that this is said.
fn softgpu() -> bool {
    let Some(cuda) = device::open() else {
        let out = finish(with_driver(&["doctor", "--device", "cuda"]), b"");
        assert_eq!(out.code, Some(6), "{out:?}");
        return false;
    };
    cuda.device().name().contains("softgpu")
}

/// A short run that uses everything: an image, a prefill, recorded steps.
fn run_args(model: &str) -> [&str; 12] {
    ["run", "--device", "cuda", "--model", model, "--raw", "--prompt", "A cat", "-n", "3", "--max-num-seqs", "1"]
}

/// Calls of each entry point, without the sum.
fn calls(file: &Path) -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(file).unwrap();
    let lines = text.lines().filter_map(|l| l.rsplit_once(' '));
    lines.filter(|(name, _)| *name != "*").map(|(name, n)| (name.to_string(), n.parse().unwrap())).collect()
}

/// Some calls of one entry point, made in one place.
struct Site {
    entry: String,
    /// As SOFTGPU_FAIL counts, in order.
    calls: Vec<u64>,
    /// Functions on the stack, innermost first.
    stack: Vec<String>,
}

impl Site {
    fn read(file: &Path) -> Vec<Site> {
        let text = std::fs::read_to_string(file).unwrap();
        let site = |line: &str| {
            let parts: Vec<&str> = line.splitn(3, ' ').collect();
            let calls = parts[1].split(',').map(|n| n.parse().unwrap()).collect();
            let stack = parts[2].split(" < ").map(str::to_string).collect();
            Site { entry: parts[0].to_string(), calls, stack }
        };
        text.lines().map(site).collect()
    }

    fn weight(&self) -> Weight {
        if ["Free", "Destroy", "Unload", "Release"].iter().any(|w| self.entry.contains(w)) {
            Weight::GivesBack
        } else if self.entry.contains("GetError")
            || self.stack.iter().any(|f| f.starts_with("drop_in_place<") || f.contains("::drop_in_place<"))
        {
            Weight::Nothing
        } else {
            Weight::Run
        }
    }
}

/// What hangs on a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    /// The run ends with an error.
    Run,
    /// The run does not hear of it, and what was not given back stays.
    GivesBack,
    /// Nobody hears of it: a call that describes another error, or one within a drop, where there is nobody to tell and
    /// everything of the run has been waited for before.
    Nothing,
}

/// Functions of a stack that make a call site, from the binding outwards: that, two or three of driver.rs, its caller.
const SITE_FUNCTIONS: usize = 5;

#[test]
fn every_failing_call_site_is_told_and_nothing_leaks() {
    if !softgpu() {
        return;
    }
    let model = path("idefics2-tiny-nosplit");
    let args = run_args(&model);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sites");
    let good = gpu(&args, &[("SOFTGPU_SITES", file.to_str().unwrap())]);
    assert_eq!((good.code, good.stderr.as_str()), (Some(0), ""), "{good:?}");
    let sites = Site::read(&file);
    let entries: BTreeSet<&str> = sites.iter().map(|s| s.entry.as_str()).collect();
    assert!(entries.len() > 25, "{entries:?}");
    // Were stacks not told, a failure that nobody hears of would pass for one in a drop, or all would be one place.
    assert!(sites.len() > 100 && sites.iter().any(|s| s.entry == "cuStreamSynchronize" && s.weight() == Weight::Run));

    let depth = if std::env::var_os("FAULTS_EVERY_SITE").is_some() { usize::MAX } else { SITE_FUNCTIONS };
    let mut places: BTreeMap<(&str, Weight, &[String]), Vec<u64>> = BTreeMap::new();
    for site in &sites {
        let stack = &site.stack[..site.stack.len().min(depth)];
        places.entry((&site.entry, site.weight(), stack)).or_default().extend(&site.calls);
    }
    let mut cases = Vec::new();
    for ((entry, weight, _), calls) in places.iter_mut() {
        calls.sort_unstable();
        // 2 is out of memory, 719 a fault that the GPU keeps, 999 one that nobody knows.
        let code = if entry.contains("Launch") { 719 } else { 999 };
        cases.push((format!("{entry}:{}:2", calls[calls.len() / 2]), *weight, 2));
        cases.push((format!("{entry}:{}:{code}", calls[calls.len() - 1]), *weight, code));
    }
    let failures = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((rule, weight, code)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let out = gpu(&args, &[("SOFTGPU_FAIL", rule)]);
                    if let Err(why) = judge(&out, *weight, *code, &good) {
                        failures.lock().unwrap().push(format!("{rule}: {why}: {out:?}"));
                    }
                }
            });
        }
    });
    println!("{} stacks, {} call sites, {} runs", sites.len(), places.len(), cases.len());
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

/// What is wrong with the outcome of a run with one failing call.
fn judge(out: &Output, weight: Weight, code: u32, good: &Output) -> Result<(), String> {
    if out.stderr.contains("panicked") {
        return Err("a panic".into());
    }
    // After a fault that the GPU keeps nothing can be given back but the whole context.
    if out.stderr.contains("not freed") && weight != Weight::GivesBack && code != 719 {
        return Err("a leak".into());
    }
    let errors: Vec<&str> = out.stderr.lines().filter(|l| l.starts_with("error: ")).collect();
    match out.code {
        // A smaller cache, a smaller step, or nothing that matters: the answer is the same.
        Some(0) if out.stdout == good.stdout && (weight != Weight::Run || code == 2) => Ok(()),
        Some(0) => Err("it ended well".into()),
        Some(5) if code == 2 && errors.len() == 1 && errors[0].contains("out of memory") => Ok(()),
        Some(6) if code != 2 && errors.len() == 1 && errors[0].contains("cuda: ") => Ok(()),
        _ => Err("expected one error line and exit code 5 or 6".into()),
    }
}

#[test]
fn every_entry_point_in_use_is_looked_for_at_the_start() {
    if !softgpu() {
        return;
    }
    let model = path("idefics2-tiny-nosplit");
    let image = path("photos/coffee.jpg");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("calls");
    let mut args = run_args(&model).to_vec();
    args.extend(["--image", &image]);
    args.retain(|a| *a != "--raw");
    let good = gpu(&args, &[("SOFTGPU_CALLS", file.to_str().unwrap())]);
    assert_eq!(good.code, Some(0), "{good:?}");
    // run.sh takes names out of a copy of the library, so it has to start the program.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = std::env::var("LD_LIBRARY_PATH").unwrap();
    let library = folders.split(':').map(|f| Path::new(f).join("libcuda.so.1")).find(|l| l.exists()).unwrap();
    for entry in calls(&file).keys() {
        let mut c = Command::new("bash");
        c.arg(root.join("tools/softgpu/run.sh")).arg(env!("CARGO_BIN_EXE_engine")).args(&args);
        c.env("SOFTGPU_HIDE", entry).env("SOFTGPU_LIBRARY", library.canonicalize().unwrap());
        c.env("CARGO_TARGET_DIR", folder.path());
        let out = finish(c, b"");
        out.refused(6, &["the driver library has no", "install driver 525", "--device cpu"]);
    }
}

#[test]
fn machines_without_a_usable_gpu_are_told_apart() {
    if !softgpu() {
        return;
    }
    let model = path("idefics2-tiny-nosplit");
    let args = run_args(&model);
    gpu(&args, &[("SOFTGPU_FAIL", "cuInit:1:100")]).refused(6, &["0 usable GPUs", "--device cpu"]);
    gpu(&args, &[("SOFTGPU_DRIVER_VERSION", "11040")]).refused(6, &["driver of 525 or later", "--device cpu"]);
    let mut none = with_driver(&args);
    none.env_remove("LD_LIBRARY_PATH").env_remove("LD_PRELOAD");
    // A machine with a driver of its own has no case of this.
    if !Path::new("/usr/lib/x86_64-linux-gnu/libcuda.so.1").exists() {
        finish(none, b"").refused(6, &["no NVIDIA driver", "libcuda.so.1", "--device cpu"]);
    }
    gpu(&args, &[("SOFTGPU_MEMORY", "2M")]).refused(5, &["out of memory", "--device cpu"]);
    // So much that everything but half of the KV cache of 2048 tokens (336 bytes each) fits.
    let table = gpu(&[&args[..], &["-v"]].concat(), &[]).stderr;
    let number = |name: &str| {
        let rest = table.split(&format!("{name} ")).nth(1).unwrap_or_else(|| panic!("{name} in {table}"));
        rest.split(',').next().unwrap().trim().parse::<f64>().unwrap()
    };
    let fixed = number("MiB: weights") + number("vision") + number("workspace");
    let part = (fixed + 0.33) / f64::from(80 << 10);
    let (part, long) = (part.to_string(), ["--max-model-len", "2048", "--gpu-memory-utilization"]);
    let long = [&args[..], &long, &[&part]].concat();
    gpu(&long, &[]).refused(5, &["--max-model-len 2048", "336 bytes a token", "tokens fit"]);
    // Without the wish for a length, what fits is taken.
    let some = [&args[..], &["--gpu-memory-utilization", &part]].concat();
    assert_eq!(gpu(&some, &[]).code, Some(0));
    let mut f32 = args.to_vec();
    f32.extend(["--dtype", "f32"]);
    gpu(&f32, &[]).refused(2, &["--dtype f32", "bf16 or f16", "--device cpu"]);
    gpu(&["run", "--device", "cuda:7", "--model", &model, "--prompt", "x"], &[]).refused(6, &["cuda:7", "1 GPUs"]);
}

#[test]
fn out_of_memory_within_a_step_goes_on_with_smaller_ones() {
    if !softgpu() {
        return;
    }
    let model = path("idefics2-tiny-nosplit");
    let args = [&run_args(&model)[..], &["--enforce-eager"]].concat();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("calls");
    let good = gpu(&args, &[("SOFTGPU_CALLS", file.to_str().unwrap())]);
    // The first launch of all is that of the first step: recording is off, so loading launches nothing.
    let out = gpu(&args, &[("SOFTGPU_FAIL", "cuLaunchKernel:1:2")]);
    assert_eq!((out.code, &out.stdout), (Some(0), &good.stdout), "{out:?}");
    assert!(
        out.stderr.contains("from now on steps of at most 1 tokens") || out.stderr.contains("of at most"),
        "{out:?}"
    );
}

/// Call sites that a plain run does not come to: the copies of a probe, and the question for free memory beside the
/// error that tells of too little.
#[test]
fn calls_beside_those_of_a_run_fail_as_well() {
    if !softgpu() {
        return;
    }
    let model = path("idefics2-tiny-nosplit");
    let args = run_args(&model);
    let folder = tempfile::tempdir().unwrap();
    let [file, values] = ["calls", "values.safetensors"].map(|name| folder.path().join(name));
    let probed = [&args[..], &["--probe", "lm_head", "--probe-out", values.to_str().unwrap()]].concat();
    let good = gpu(&probed, &[("SOFTGPU_CALLS", file.to_str().unwrap())]);
    assert_eq!(good.code, Some(0), "{good:?}");
    let copies = calls(&file)["cuMemcpyDtoHAsync_v2"];
    for (n, code) in [(1, 999), (copies / 2, 719), (copies - 1, 999)] {
        gpu(&probed, &[("SOFTGPU_FAIL", &format!("cuMemcpyDtoHAsync_v2:{n}:{code}"))]).refused(6, &["cuda: "]);
    }
    gpu(&args, &[("SOFTGPU_CALLS", file.to_str().unwrap())]);
    let (asked, allocated) = (calls(&file)["cuMemGetInfo_v2"], calls(&file)["cuMemAlloc_v2"]);
    let rule = format!("cuMemAlloc_v2:1+:2,cuMemGetInfo_v2:{}:999", asked + 1);
    assert!(asked > 0 && allocated > 3);
    gpu(&args, &[("SOFTGPU_FAIL", &rule)]).refused(5, &["out of memory", "lower --max-model-len"]);
    // A launch that cannot be recorded: the recording ends, its graph is destroyed, and where that fails too the first
    // error is the one that is told.
    let sites = folder.path().join("sites");
    gpu(&args, &[("SOFTGPU_SITES", sites.to_str().unwrap())]);
    let recorded = Site::read(&sites).into_iter().filter(|s| s.entry == "cuLaunchKernel");
    let recorded = recorded.filter(|s| s.stack.iter().any(|f| f.contains("capture"))).flat_map(|s| s.calls);
    let n = recorded.max().expect("a recorded launch");
    for rule in [format!("cuLaunchKernel:{n}:999"), format!("cuLaunchKernel:{n}:999,cuGraphDestroy:1+:998")] {
        let out = gpu(&args, &[("SOFTGPU_FAIL", &rule), ("SOFTGPU_CALLS", file.to_str().unwrap())]);
        assert!(out.stderr.contains("cuda: launching "), "{rule}: {out:?}");
        assert!(calls(&file)["cuGraphDestroy"] > 0, "{rule}: the graph is destroyed");
        out.refused(6, &["cuda: launching "]);
    }
}

#[test]
fn the_doctor_says_what_is_there() {
    if !softgpu() {
        return;
    }
    let out = gpu(&["doctor"], &[]);
    assert_eq!(out.code, Some(0), "{out:?}");
    for word in [
        "driver    CUDA 13.",
        "softgpu",
        "compute capability 8.0",
        "PTX for compute_80",
        "auto      --device auto runs on cuda:0",
    ] {
        assert!(out.stdout.contains(word), "{word}: {out:?}");
    }
    let json: Value = serde_json::from_str(&gpu(&["doctor", "--json"], &[]).stdout).unwrap();
    assert!(json["driver"]["cuda"].as_str().is_some_and(|v| v.starts_with("13.")), "{json}");
    assert_eq!(json["auto"], "cuda:0");
    assert_eq!(json["gpus"][0]["memory_bytes"].as_u64().map(|n| n >> 30), Some(80));
    assert!(json["kernels"]["files"].as_u64().unwrap() >= 9);
    // Asked for a GPU that is not usable, it says so by its exit code too.
    let out = gpu(&["doctor", "--device", "cuda"], &[("SOFTGPU_FAIL", "cuInit:1+:100")]);
    assert!(out.code == Some(6) && out.stdout.contains("auto      --device auto runs on cpu"), "{out:?}");
}
