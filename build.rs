//! Compiles the CUDA kernels and embeds them, and the built-in model.
//!
//! In: kernels/*.cu with their headers, and nvcc: NVCC, CUDA_HOME, CUDA_PATH, PATH, or the toolchain that
//! tools/cuda-toolchain.sh puts beside the build. Out: `kernels.rs` in OUT_DIR, a table of PTX and cubins with
//! ptxas' reports; `demo_model.rs`, the files of assets/demo-model, none where that is missing. Without nvcc the table is empty, a warning says so and the build goes on; `NVCC=` (empty) asks
//! for that. Not here: loading and launching (engine/backend/cuda).
//!
//! A file is compiled again only when it, one of its headers, the flags or the compiler have changed; results lie in
//! TARGET/cuda-kernels under a hash of all these, so that every profile and every cargo command shares them.
//! ENGINE_CUDA_ARCHS limits the cubins (`80,90`); every other part runs the PTX through the driver's own compiler.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::{env, fs, thread};

/// Cubins, where nvcc knows the part and ENGINE_CUDA_ARCHS does not say otherwise.
const CUBIN_ARCHS: &[&str] = &["80", "86", "89", "90", "100", "120"];
/// Drivers refuse PTX of a language version that they do not know. nvcc writes its own newest; this one, of CUDA
/// 12.0 (driver 525), is written instead where ptxas accepts the kernel under it.
const PTX_VERSION: &str = "8.0";
const FLAGS: &[&str] = &["-O3", "-std=c++17", "-Xptxas=-v", "-Ikernels"];
/// Line tables are kept in the PTX, for the software GPU and for profilers; in cubins they take twice the code's room.
const PTX_FLAGS: &[&str] = &["-ptx", "-arch=compute_80", "-lineinfo"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-changed=assets");
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "ENGINE_CUDA_ARCHS"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let target = target_dir(&out);
    let toolchain = target.join("cuda-toolchain");
    watch(&toolchain.join("stamp"));
    let table = match find_nvcc(&toolchain) {
        Some(nvcc) => build_kernels(&nvcc, &target.join("cuda-kernels")),
        None => {
            println!(
                "cargo:warning=no nvcc found: built without CUDA kernels, --device cuda will not work; run \
                 tools/cuda-toolchain.sh (or set CUDA_HOME) and build again"
            );
            table(None, &[])
        }
    };
    write_if_changed(&out.join("kernels.rs"), table.as_bytes());
    let model = Path::new("assets").join("demo-model");
    write_if_changed(&out.join("demo_model.rs"), model_table(&model).as_bytes());
}

/// The files of the built-in model as a generated source; its types are in engine/checkpoint/built_in.rs.
fn model_table(folder: &Path) -> String {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|e| e.path().is_file())
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|n| n.ends_with(".json") || n.ends_with(".jinja") || n.ends_with(".safetensors"))
        .collect();
    names.sort();
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let mut text = String::from("static FILES: &[(&str, &[u8])] = &[\n");
    for name in &names {
        let path = root.join(folder).join(name);
        let length = fs::metadata(&path).map(|m| m.len()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        // A constant beside the table, as only a named static keeps the alignment of its type.
        let _ = writeln!(
            text,
            "    ({name:?}, {{ static BYTES: Aligned<[u8; {length}]> = Aligned(*include_bytes!({path:?})); &BYTES.0 }}),"
        );
    }
    text.push_str("];\n");
    text
}

/// The target directory, wherever that is: OUT_DIR is TARGET[/triple]/profile/build/engine-x/out.
fn target_dir(out: &Path) -> PathBuf {
    let mut target = out.ancestors().nth(4).unwrap_or(out).to_path_buf();
    if target.file_name().is_some_and(|n| n.to_str() == env::var("TARGET").ok().as_deref()) {
        target.pop();
    }
    target
}

/// Has cargo run this script again when the toolchain is installed. The file must exist to be watched, and be old
/// so that making it is no change.
fn watch(stamp: &Path) {
    if !stamp.exists()
        && let Some(dir) = stamp.parent()
        && fs::create_dir_all(dir).is_ok()
        && let Ok(file) = fs::File::create(stamp)
    {
        // Where this fails the script runs once more than needed.
        let _ = file.set_modified(std::time::SystemTime::UNIX_EPOCH);
    }
    println!("cargo:rerun-if-changed={}", stamp.display());
}

/// The compiler, by precedence. An NVCC that does not run is an error; the other places are tried in turn.
fn find_nvcc(toolchain: &Path) -> Option<PathBuf> {
    if let Some(nvcc) = env::var_os("NVCC") {
        if nvcc.is_empty() {
            return None;
        }
        let nvcc = PathBuf::from(nvcc);
        assert!(runs(&nvcc), "NVCC={}: expected a compiler that answers --version", nvcc.display());
        return Some(nvcc);
    }
    let name = format!("nvcc{}", env::consts::EXE_SUFFIX);
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(|h| PathBuf::from(h).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    homes
        .chain(env::split_paths(&path))
        .chain([toolchain.join("bin")])
        .map(|dir| dir.join(&name))
        .find(|nvcc| nvcc.is_file() && runs(nvcc))
}

fn runs(nvcc: &Path) -> bool {
    Command::new(nvcc).arg("--version").output().is_ok_and(|o| o.status.success())
}

/// One output of one kernel file.
struct Job {
    kernel: String,
    /// None for PTX.
    arch: Option<String>,
    /// Its name says all that it was made from.
    result: PathBuf,
}

/// Compiles what has changed into `cache` and returns the table.
fn build_kernels(nvcc: &Path, cache: &Path) -> String {
    fs::create_dir_all(cache).unwrap_or_else(|e| panic!("{}: {e}", cache.display()));
    let version = first_line_with(&output(Command::new(nvcc).arg("--version")), "release");
    let archs: Vec<String> = match env::var("ENGINE_CUDA_ARCHS") {
        Ok(list) => list.split(',').map(|a| a.trim().to_string()).filter(|a| !a.is_empty()).collect(),
        Err(_) => {
            let known = output(Command::new(nvcc).arg("--list-gpu-code"));
            let known: BTreeSet<&str> = known.split_whitespace().filter_map(|a| a.strip_prefix("sm_")).collect();
            CUBIN_ARCHS.iter().filter(|a| known.contains(*a)).map(|a| a.to_string()).collect()
        }
    };
    let mut kernels: Vec<String> = fs::read_dir("kernels")
        .expect("the folder kernels")
        .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".cu")?.to_string()))
        .collect();
    kernels.sort();
    let mut jobs = Vec::new();
    for kernel in &kernels {
        let hash = hash_sources(kernel, &version).unwrap_or_else(|e| panic!("{e}"));
        jobs.push(Job { kernel: kernel.clone(), arch: None, result: cache.join(format!("{kernel}.{hash}.ptx")) });
        for arch in &archs {
            let result = cache.join(format!("{kernel}.{hash}.sm_{arch}.cubin"));
            jobs.push(Job { kernel: kernel.clone(), arch: Some(arch.clone()), result });
        }
    }
    run_all(&jobs, |job| compile(nvcc, job));
    table(Some(&version), &jobs)
}

/// Of a kernel, its headers, the flags and the compiler.
fn hash_sources(kernel: &str, version: &str) -> Result<String, String> {
    let mut hash = DefaultHasher::new();
    (version, FLAGS, PTX_FLAGS, PTX_VERSION).hash(&mut hash);
    for file in with_headers(&PathBuf::from("kernels").join(format!("{kernel}.cu")))? {
        (&file, fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?).hash(&mut hash);
    }
    Ok(format!("{:016x}", hash.finish()))
}

/// Runs the jobs on as many threads as cargo gives; the first failure ends the build with its message.
fn run_all(jobs: &[Job], work: impl Fn(&Job) -> Result<(), String> + Sync) {
    let threads = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize).clamp(1, 16);
    let next = Mutex::new(jobs.iter());
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let job = next.lock().expect("no thread panics").next();
                    let Some(job) = job else { return };
                    if let Err(message) = work(job) {
                        failures.lock().expect("no thread panics").push(message);
                        return;
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no thread panics");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Makes one output, unless an earlier build has.
fn compile(nvcc: &Path, job: &Job) -> Result<(), String> {
    if job.result.exists() {
        return Ok(());
    }
    let source = format!("kernels/{}.cu", job.kernel);
    let target: Vec<String> = match &job.arch {
        None => PTX_FLAGS.iter().map(|f| f.to_string()).collect(),
        Some(arch) => vec!["-cubin".into(), format!("-arch=sm_{arch}")],
    };
    // Another build may be at the same file, so each makes its own and moves it into place.
    let temporary = beside(&job.result, &format!("{}.tmp", std::process::id()));
    let done = Command::new(nvcc).args(&target).args(FLAGS).arg(&source).arg("-o").arg(&temporary).output();
    let done = done.map_err(|e| format!("{}: {e}", nvcc.display()))?;
    let report = String::from_utf8_lossy(&done.stderr).into_owned() + &String::from_utf8_lossy(&done.stdout);
    if !done.status.success() {
        return Err(format!("nvcc {} {source} failed:\n{report}", target.join(" ")));
    }
    match job.arch {
        None => finish_ptx(nvcc, &temporary)?,
        Some(_) => fs::write(report_path(&job.result), report).map_err(|e| e.to_string())?,
    }
    fs::rename(&temporary, &job.result).map_err(|e| format!("{}: {e}", job.result.display()))
}

/// Where ptxas' words on a cubin are kept.
fn report_path(cubin: &Path) -> PathBuf {
    beside(cubin, "txt")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}.{suffix}", path.display()))
}

/// Makes source paths relative, lowers the language version where ptxas accepts that, and ends the text with the zero
/// byte that drivers want.
fn finish_ptx(nvcc: &Path, path: &Path) -> Result<(), String> {
    let fail = |e: std::io::Error| format!("{}: {e}", path.display());
    let here = format!("{}/", env::var("CARGO_MANIFEST_DIR").unwrap_or_default());
    let text = fs::read_to_string(path).map_err(fail)?.replace(&here, "");
    let lowered: String = text
        .lines()
        .map(
            |line| {
                if line.starts_with(".version ") { format!(".version {PTX_VERSION}\n") } else { format!("{line}\n") }
            },
        )
        .collect();
    let (trial, trial_result) = (beside(path, "trial"), beside(path, "trial.cubin"));
    fs::write(&trial, &lowered).map_err(fail)?;
    let ptxas = nvcc.with_file_name(format!("ptxas{}", env::consts::EXE_SUFFIX));
    let accepted = Command::new(ptxas).arg("-arch=sm_80").arg(&trial).arg("-o").arg(&trial_result).output();
    let accepted = accepted.is_ok_and(|o| o.status.success());
    for leftover in [trial, trial_result] {
        // Of no use to anyone; one that stays does no harm.
        let _ = fs::remove_file(leftover);
    }
    let mut bytes = if accepted { lowered } else { text }.into_bytes();
    bytes.push(0);
    fs::write(path, bytes).map_err(fail)
}

/// A source file and everything that it includes from its own folder, each once.
fn with_headers(source: &Path) -> Result<Vec<PathBuf>, String> {
    let mut files = vec![source.to_path_buf()];
    let mut at = 0;
    while at < files.len() {
        let text = fs::read_to_string(&files[at]).map_err(|e| format!("{}: {e}", files[at].display()))?;
        for line in text.lines() {
            let Some(rest) = line.trim_start().strip_prefix("#include \"") else { continue };
            let header = Path::new("kernels").join(rest.split('"').next().unwrap_or_default());
            if header.exists() && !files.contains(&header) {
                files.push(header);
            }
        }
        at += 1;
    }
    Ok(files)
}

/// The generated source; its types are in engine/backend/cuda/kernels.rs.
fn table(version: Option<&str>, jobs: &[Job]) -> String {
    let mut text = format!("pub static TOOLCHAIN: Option<&str> = {version:?};\npub static KERNELS: &[Kernel] = &[\n");
    for ptx in jobs.iter().filter(|j| j.arch.is_none()) {
        let _ =
            writeln!(text, "    Kernel {{ name: {:?}, ptx: include_bytes!({:?}), cubins: &[", ptx.kernel, ptx.result);
        for job in jobs.iter().filter(|j| j.kernel == ptx.kernel) {
            let Some(arch) = &job.arch else { continue };
            let (image, report) = (&job.result, report_path(&job.result));
            let _ = writeln!(
                text,
                "        Cubin {{ arch: {arch:?}, image: include_bytes!({image:?}), report: include_str!({report:?}) }},"
            );
        }
        text.push_str("    ] },\n");
    }
    text.push_str("];\n");
    text
}

fn output(command: &mut Command) -> String {
    command.output().map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default()
}

fn first_line_with(text: &str, word: &str) -> String {
    text.lines().find(|l| l.contains(word)).unwrap_or("an unknown version").trim().to_string()
}

/// An unchanged table must not look new, or the crate is compiled again.
fn write_if_changed(path: &Path, bytes: &[u8]) {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return;
    }
    fs::write(path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
