//! A folder captioned by the program itself: is the model kept busy, does memory stay flat, how soon does a large folder
//! begin?
//!
//! In: `cargo bench --bench caption -- [NUM [MODEL]]`, 2000 pictures and the built-in model where nothing is said. Pictures
//! are made from those in tests/data, as JPEG of 512 pixels. Out: a table of memory over the run, the summary of the run, the
//! time to the first caption of a folder of 50,000 files. Needs /proc for memory.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use engine::input::image::{DecodeOptions, Filter, RgbImage, decode, resize};
use serde_json::Value;

const SIDE: usize = 512;
const MANY: usize = 50_000;

fn main() {
    // Cargo adds a flag of its own.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let num: usize = args.first().map_or(2000, |n| n.parse().expect("a number of pictures"));
    let model = args.get(1).map(String::as_str);
    let dir = tempfile::tempdir().expect("a folder");
    make_pictures(&dir.path().join("in"), num);
    memory_over_a_run(dir.path(), model, num);
    first_of_many(dir.path(), model);
}

/// Pictures of tests/data, each in colours of its own.
fn make_pictures(dir: &Path, num: usize) {
    std::fs::create_dir_all(dir).expect("a folder");
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let names = ["scenes/circle-above-square.png", "scenes/three-shapes.png", "scenes/number.png", "photos/coffee.jpg"];
    let sources: Vec<RgbImage> = names
        .iter()
        .map(|name| {
            let bytes = std::fs::read(data.join(name)).expect("a picture of the tests");
            let image = decode(&bytes, &DecodeOptions::default()).expect("a picture");
            resize(&image, SIDE, SIDE, Filter::Bicubic)
        })
        .collect();
    for i in 0..num {
        let source = &sources[i % sources.len()];
        let change = [i % 31, i / 31 % 29, i / 899 % 23];
        let pixels =
            source.pixels.chunks_exact(3).flat_map(|p| [0, 1, 2].map(|c| p[c].saturating_add(change[c] as u8)));
        let picture = image::RgbImage::from_raw(SIDE as u32, SIDE as u32, pixels.collect()).expect("its size");
        picture.save(dir.join(format!("{i:05}.jpg"))).expect("written");
    }
}

fn caption(dir: &Path, model: Option<&str>, args: &[&str]) -> Child {
    let mut c = Command::new(env!("CARGO_BIN_EXE_engine"));
    c.current_dir(dir).arg("caption").args(model.into_iter().flat_map(|m| ["--model", m])).args(args);
    c.args(["--log-format", "json", "--log-interval", "1"]).stderr(Stdio::piped()).stdout(Stdio::null());
    c.spawn().expect("the program starts")
}

/// Resident and private memory in MiB.
fn memory(id: u32) -> Option<(f64, f64)> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name))?;
        Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
    };
    Some((field("VmRSS:")?, field("RssAnon:")?))
}

fn memory_over_a_run(dir: &Path, model: Option<&str>, num: usize) {
    let model = model.map(|m| std::fs::canonicalize(m).unwrap_or_else(|_| PathBuf::from(m)).display().to_string());
    let mut child = caption(dir, model.as_deref(), &["in", "--sidecar", "txt"]);
    let said = BufReader::new(child.stderr.take().expect("piped"));
    println!("{num} pictures of {SIDE}x{SIDE} pixels");
    println!("| s | captioned | images/s | resident MiB | of it private MiB | bottleneck |");
    println!("|---|---|---|---|---|---|");
    for line in said.lines() {
        let event: Value = serde_json::from_str(&line.expect("text")).expect("JSON");
        match event["event"].as_str() {
            Some("progress") => {
                let Some((resident, private)) = memory(child.id()) else { continue };
                let rate = event["images_per_s"].as_f64().unwrap_or(0.0);
                let (s, ok) = (event["elapsed_s"].as_f64().unwrap_or(0.0), &event["ok"]);
                let bottleneck = event["bottleneck"].as_str().unwrap_or("");
                println!("| {s:.0} | {ok} | {rate:.1} | {resident:.1} | {private:.1} | {bottleneck} |");
            }
            Some("summary") => println!("\nsummary: {event}"),
            _ => {}
        }
    }
    assert!(child.wait().expect("an end").success());
}

fn first_of_many(dir: &Path, model: Option<&str>) {
    let many = dir.join("many");
    std::fs::create_dir_all(&many).expect("a folder");
    let picture = dir.join("in/00000.jpg");
    for i in 0..MANY {
        std::fs::hard_link(&picture, many.join(format!("{i:05}.jpg"))).expect("a link");
    }
    let start = Instant::now();
    let model = model.map(|m| std::fs::canonicalize(m).unwrap_or_else(|_| PathBuf::from(m)).display().to_string());
    let mut child = caption(dir, model.as_deref(), &["many", "--out", "many.jsonl"]);
    while std::fs::metadata(dir.join("many.jsonl")).map_or(0, |m| m.len()) == 0 {
        assert!(start.elapsed() < Duration::from_secs(120) && child.try_wait().expect("a state").is_none());
        std::thread::sleep(Duration::from_millis(2));
    }
    println!("first caption of {MANY} files: {:.2} s after the start of the program", start.elapsed().as_secs_f64());
    child.kill().expect("ended");
    child.wait().expect("an end");
}
