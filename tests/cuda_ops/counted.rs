//! What the software GPU counts while an op's shapes run.
//!
//! In: an op and a shape, or all of them. Out: counts by kernel. The counters are written when a process ends, so each
//! run is one of its own: this program again. Not here: which counts are good (tests/cuda_scorecard.rs).
//!
//! Whoever includes this has `list.rs` beside it as the module `list`.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use super::list::OPS;
use super::list::harness::{Case, Gpu, Op, Work};

/// Shapes above either limit take the software GPU too long.
const MOST_BYTES: u64 = 24 << 20;
const MOST_FLOPS: u64 = 2_500_000_000;

/// Counts of one kernel.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    pub kernel: String,
    pub launches: u64,
    pub threads: u64,
    /// Of a block, static and dynamic.
    pub shared_bytes: u64,
    pub warp_instructions: u64,
    pub mma: u64,
    pub sectors: u64,
    pub sectors_least: u64,
    pub passes: u64,
    pub passes_least: u64,
    /// First touched by a launch: what device memory must move.
    pub unique_bytes: u64,
    /// A100, RTX 4090, H100: a roofline model's.
    pub model_seconds: [f64; 3],
}

fn fits(work: Work) -> bool {
    work.bytes <= MOST_BYTES && work.flops <= MOST_FLOPS
}

/// Runs one shape of an op: what a child process does.
pub fn run_shape(op: &str, index: &str) -> Result<(), String> {
    let op = OPS.iter().find(|o| o.name == op).ok_or("no such op")?;
    let index: usize = index.parse().map_err(|_| "no such shape")?;
    let gpu = Gpu::open().ok_or("no device")?;
    run(&gpu, (op.shapes)().get(index).ok_or("no such shape")?)
}

/// Runs every shape that is small enough, where the parent process wants it counted.
pub fn run_all_as_child() -> Result<(), String> {
    if std::env::var_os("SOFTGPU_REPORT").is_none() {
        return Ok(());
    }
    let gpu = Gpu::open().ok_or("no device")?;
    for op in OPS {
        for case in (op.shapes)() {
            run(&gpu, &case).map_err(|e| format!("{} {}: {e}", op.name, case.name))?;
            gpu.free();
        }
    }
    Ok(())
}

/// Says the work of a case, and does it where it is small enough.
fn run(gpu: &Gpu, case: &Case) -> Result<(), String> {
    let text = |e: engine::Error| e.to_string();
    let say = |work: Work| println!("work {} {}", work.bytes, work.flops);
    if let Some(work) = case.work.filter(|work| !fits(*work)) {
        say(work);
        return Ok(());
    }
    let instance = (case.build)(gpu).map_err(text)?;
    say(instance.work);
    if !fits(instance.work) {
        return Ok(());
    }
    for launch in &instance.launches {
        launch.enqueue(&gpu.stream).map_err(text)?;
    }
    gpu.stream.synchronize().map_err(text)
}

/// Counts of one of an op's shapes on the software GPU, and the least work; none for a shape that is too large for it.
/// `again` are the arguments by which this program takes `--count OP INDEX` to [`run_shape`].
pub fn shape(op: &Op, index: usize, again: &[&str]) -> Result<Option<(Vec<Counts>, Work)>, String> {
    let (output, counts) = child(&[again, &["--count", op.name, &index.to_string()]].concat())?;
    let mut figures = output.lines().find_map(|l| l.strip_prefix("work ")).unwrap_or_default().split(' ');
    let mut figure = || figures.next().and_then(|f| f.parse().ok()).ok_or("the run does not say its work");
    let work = Work { bytes: figure()?, flops: figure()? };
    Ok(fits(work).then_some((counts, work)))
}

/// Counts of every shape that is small enough, by kernel and grid. The arguments make this program call
/// [`run_all_as_child`].
pub fn everything(arguments: &[&str]) -> Result<Vec<Counts>, String> {
    Ok(child(arguments)?.1)
}

/// Runs this program again with counters on: what it printed, and what was counted.
fn child(arguments: &[&str]) -> Result<(String, Vec<Counts>), String> {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    let report = std::env::temp_dir().join(format!("counts.{}.{run}.json", std::process::id()));
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let done =
        Command::new(program).args(arguments).env("SOFTGPU_REPORT", &report).output().map_err(|e| e.to_string())?;
    let text = std::fs::read_to_string(&report);
    for leftover in [report.clone(), report.with_extension("txt")] {
        // A file that stays does no harm.
        let _ = std::fs::remove_file(leftover);
    }
    if !done.status.success() {
        let both = [done.stdout, done.stderr].concat();
        return Err(String::from_utf8_lossy(&both).trim().to_string());
    }
    let text = text.map_err(|e| format!("no counters ({e}); only the software GPU writes them"))?;
    let json: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let kernels = json["kernels"].as_array().ok_or("a report without kernels")?;
    Ok((String::from_utf8_lossy(&done.stdout).into_owned(), kernels.iter().map(counts).collect()))
}

fn counts(kernel: &Value) -> Counts {
    let int = |value: &Value| value.as_u64().unwrap_or(0);
    let (global, shared) = (&kernel["global"], &kernel["shared"]);
    let seconds = |name: &str| {
        let parts = kernel["time_model"]["parts"].as_object();
        let part = parts.and_then(|p| p.iter().find(|(key, _)| key.contains(name)));
        part.and_then(|(_, model)| model["seconds"].as_f64()).unwrap_or(f64::NAN)
    };
    let block = kernel["block"].as_array();
    Counts {
        kernel: kernel["kernel"].as_str().unwrap_or_default().to_string(),
        launches: int(&kernel["launches"]),
        threads: block.map_or(0, |b| b.iter().map(int).product()),
        shared_bytes: int(&kernel["shared_bytes"]),
        warp_instructions: int(&kernel["warp_instructions"]),
        mma: int(&kernel["mma"]),
        sectors: int(&global["load_sectors"]) + int(&global["store_sectors"]),
        sectors_least: int(&global["load_sectors_min"]) + int(&global["store_sectors_min"]),
        passes: int(&shared["wavefronts"]),
        passes_least: int(&shared["wavefronts_min"]),
        unique_bytes: int(&global["unique_read_bytes"]) + int(&global["unique_written_bytes"]),
        model_seconds: ["A100", "4090", "H100"].map(seconds),
    }
}
