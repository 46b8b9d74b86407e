//! Compiles the CUDA kernels and embeds them, and the built-in model.
//!
//! In: kernels/*.cu with their headers, and nvcc: NVCC, CUDA_HOME, CUDA_PATH, PATH, or the toolchain that
//! tools/cuda-toolchain.sh puts beside the build. Out: `kernels.rs` in OUT_DIR, a table of PTX and cubins with
//! ptxas' reports; `demo_model.rs`, the files of assets/demo-model, none where that is missing. Without nvcc the table
//! is empty, a warning says so and the build goes on; `NVCC=` (empty) asks for that. Not here: loading and launching
//! (engine/backend/cuda).
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
const PTX_FLAGS: &[&str] = &["-ptx", "-arch=compute_80", "-O3", "-std=c++17", "-Ikernels", "-lineinfo"];
/// Every part's machine code is made from that one PTX: the C++ is compiled once, which is most of the work, and what
/// tests run on the software GPU is what runs on all parts.
const CUBIN_FLAGS: &[&str] = &["-cubin", "-O3", "-Xptxas=-v"];
/// Kernels that would spill on a part under their own launch bounds, and the blocks a multiprocessor that suit it.
const FEWER_BLOCKS: &[(&str, &[&str], &str)] =
    &[("gemv_norm", &["100", "120"], "4"), ("gemv_qkv", &["100", "120"], "4")];

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

/// One kernel file and what it becomes. The names of results say all that they were made from.
struct Job {
    kernel: String,
    ptx: PathBuf,
    /// Of each part.
    cubins: Vec<(String, PathBuf)>,
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
    let job = |kernel: &String| {
        let hash = hash_sources(kernel, &version).unwrap_or_else(|e| panic!("{e}"));
        let cubin = |arch: &String| (arch.clone(), cache.join(format!("{kernel}.{hash}.sm_{arch}.cubin")));
        Job {
            kernel: kernel.clone(),
            ptx: cache.join(format!("{kernel}.{hash}.ptx")),
            cubins: archs.iter().map(cubin).collect(),
        }
    };
    let jobs: Vec<Job> = kernels.iter().map(job).collect();
    run_all(jobs.iter().collect(), |job: &Job| make_ptx(nvcc, job));
    let cubins = jobs.iter().flat_map(|job| job.cubins.iter().map(move |cubin| (job, cubin))).collect();
    run_all(cubins, |(job, (arch, cubin))| make_cubin(nvcc, job, arch, cubin));
    table(Some(&version), &jobs)
}

/// Of a kernel, its headers, the flags and the compiler.
fn hash_sources(kernel: &str, version: &str) -> Result<String, String> {
    let mut hash = DefaultHasher::new();
    (version, PTX_FLAGS, PTX_VERSION, CUBIN_FLAGS, FEWER_BLOCKS).hash(&mut hash);
    for file in with_headers(&PathBuf::from("kernels").join(format!("{kernel}.cu")))? {
        (&file, fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?).hash(&mut hash);
    }
    Ok(format!("{:016x}", hash.finish()))
}

/// Runs the jobs on as many threads as cargo gives; the first failure ends the build with its message.
fn run_all<J: Send>(jobs: Vec<J>, work: impl Fn(J) -> Result<(), String> + Sync) {
    let threads = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize).clamp(1, 16);
    let next = Mutex::new(jobs.into_iter());
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

/// Makes the PTX, unless an earlier build has: with relative source paths, in an old language version where the compiler
/// accepts that for the first of the parts, and with the zero byte at its end that drivers want.
fn make_ptx(nvcc: &Path, job: &Job) -> Result<(), String> {
    if job.ptx.exists() {
        return Ok(());
    }
    let temporary = temporary(&job.ptx);
    let source = format!("kernels/{}.cu", job.kernel);
    run_nvcc(Command::new(nvcc).args(PTX_FLAGS).arg(&source).arg("-o").arg(&temporary), &source)?;
    let here = format!("{}/", env::var("CARGO_MANIFEST_DIR").unwrap_or_default());
    let text = fs::read_to_string(&temporary).map_err(|e| failed(&temporary, e))?.replace(&here, "");
    let lowered = lower_version(&text);
    let (arch, cubin) = match job.cubins.first() {
        Some((arch, cubin)) => (arch.as_str(), cubin.clone()),
        None => ("80", beside(&temporary, "cubin")),
    };
    let accepted = assemble(nvcc, &job.kernel, &lowered, arch, &cubin).is_ok();
    let text = if accepted { lowered } else { text };
    if job.cubins.is_empty() {
        // Of no use to anyone; one that stays does no harm.
        let _ = fs::remove_file(&cubin);
    }
    fs::write(&temporary, text + "\0").map_err(|e| failed(&temporary, e))?;
    fs::rename(&temporary, &job.ptx).map_err(|e| failed(&job.ptx, e))
}

/// The text in [`PTX_VERSION`], without the one remark on loads that is not in that language and changes nothing.
fn lower_version(text: &str) -> String {
    let mut lowered = String::with_capacity(text.len());
    for line in text.lines().filter(|l| !l.trim_start().starts_with(".pragma \"used_bytes_mask")) {
        match line.starts_with(".version ") {
            true => lowered.push_str(&format!(".version {PTX_VERSION}")),
            false => lowered.push_str(line),
        }
        lowered.push('\n');
    }
    lowered
}

/// Makes one part's machine code and ptxas' report on it, unless an earlier build has.
fn make_cubin(nvcc: &Path, job: &Job, arch: &str, cubin: &Path) -> Result<(), String> {
    if cubin.exists() {
        return Ok(());
    }
    let text = fs::read_to_string(&job.ptx).map_err(|e| failed(&job.ptx, e))?;
    assemble(nvcc, &job.kernel, text.trim_end_matches('\0'), arch, cubin)
}

fn assemble(nvcc: &Path, kernel: &str, ptx: &str, arch: &str, cubin: &Path) -> Result<(), String> {
    let (source, temporary) = (beside(&temporary(cubin), "ptx"), temporary(cubin));
    fs::write(&source, without_lines(ptx)).map_err(|e| failed(&source, e))?;
    let mut command = Command::new(nvcc);
    command.args(CUBIN_FLAGS).arg(format!("-arch=sm_{arch}")).arg(&source).arg("-o").arg(&temporary);
    if let Some((.., blocks)) = FEWER_BLOCKS.iter().find(|(k, archs, _)| *k == kernel && archs.contains(&arch)) {
        command.arg(format!("-Xptxas=--override-directive-values,--minnctapersm={blocks}"));
    }
    let report = run_nvcc(&mut command, &format!("{kernel} for sm_{arch}"));
    let _ = fs::remove_file(&source);
    let path = report_path(cubin);
    fs::write(&path, report?).map_err(|e| failed(&path, e))?;
    fs::rename(&temporary, cubin).map_err(|e| failed(cubin, e))
}

/// PTX without its line tables, which take twice the room of the code in a cubin.
fn without_lines(ptx: &str) -> String {
    let mut text = String::with_capacity(ptx.len());
    let mut in_section = false;
    for line in ptx.lines() {
        let word = line.split_whitespace().next().unwrap_or_default();
        in_section |= word == ".section";
        if !in_section && word != ".loc" && word != ".file" {
            text.push_str(line);
            text.push('\n');
        }
        in_section &= word != "}";
    }
    text
}

/// What nvcc says, on success.
fn run_nvcc(command: &mut Command, what: &str) -> Result<String, String> {
    let done = command.output().map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    let report = String::from_utf8_lossy(&done.stderr).into_owned() + &String::from_utf8_lossy(&done.stdout);
    if done.status.success() { Ok(report) } else { Err(format!("nvcc failed at {what}:\n{report}")) }
}

/// Another build may be at the same file, so each makes its own and moves it into place.
fn temporary(path: &Path) -> PathBuf {
    beside(path, &format!("{}.tmp", std::process::id()))
}

fn failed(path: &Path, error: std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// Where ptxas' words on a cubin are kept.
fn report_path(cubin: &Path) -> PathBuf {
    beside(cubin, "txt")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}.{suffix}", path.display()))
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
    for job in jobs {
        let _ = writeln!(text, "    Kernel {{ name: {:?}, ptx: include_bytes!({:?}), cubins: &[", job.kernel, job.ptx);
        for (arch, image) in &job.cubins {
            let report = report_path(image);
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
