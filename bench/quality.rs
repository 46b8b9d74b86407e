//! How often the built-in model is right, by `engine run --requests`: the gate of every change of arithmetic.
//!
//! In: the held-out pictures and questions of `bench/quality/` (`tools/demo/make_eval.py` makes them);
//! `cargo bench --bench quality [-- --model DIR] [--limit N] [--record] [VARIANT...]`, a variant being engine
//! arguments as one word (`"--dtype bf16"`, the default ones: `""`, `--dtype f16`, `--dtype bf16`, `--quant int8`,
//! `--quant int4`). `--limit` asks every set's first N questions only.
//! Out: a table of exact-match accuracies on stdout; exit code 1 when a full set got worse than `bench/quality/baseline.tsv`
//! by more than half a percent point. `--record` writes that file. A variant that this build refuses is left out with its reason.
//! Not here: speed (`engine bench model`).

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use image::GenericImageView;
use serde_json::{Value, json};

/// Pictures in a row of a sheet, and their side in pixels.
const COLUMNS: u32 = 32;
const SIDE: u32 = 64;
/// What a set may lose against the baseline, in questions of a hundred.
const TOLERANCE: f64 = 0.5;
const VARIANTS: [&str; 5] = ["", "--dtype f16", "--dtype bf16", "--quant int8", "--quant int4"];

struct Question {
    set: String,
    picture: PathBuf,
    question: String,
    answer: String,
}

/// Right answers and questions of each set.
type Score = BTreeMap<String, (usize, usize)>;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut model = root.join("assets/demo-model").display().to_string();
    let (mut limit, mut record, mut variants) = (usize::MAX, false, Vec::new());
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench"); // cargo adds --bench
    while let Some(a) = args.next() {
        match a.as_str() {
            "--model" => model = args.next().expect("--model DIR"),
            "--limit" => limit = args.next().and_then(|n| n.parse().ok()).expect("--limit N"),
            "--record" => record = true,
            _ => variants.push(a),
        }
    }
    if variants.is_empty() {
        variants = VARIANTS.map(String::from).to_vec();
    }

    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("quality");
    let questions = questions(&root.join("bench/quality"), &folder, limit);
    let requests = folder.join("requests.jsonl");
    let lines: Vec<String> = questions.iter().enumerate().map(|(k, q)| request(k, q).to_string()).collect();
    std::fs::write(&requests, lines.join("\n")).expect("the requests are written");

    let mut scores = Vec::new();
    for variant in &variants {
        match answers(&model, &requests, variant) {
            Ok(answers) => scores.push((variant.as_str(), score(&questions, &answers))),
            Err(why) => eprintln!("{}: left out: {why}", named(variant)),
        }
    }
    print!("{}", table(&scores));

    let baseline = root.join("bench/quality/baseline.tsv");
    if record {
        assert_eq!(limit, usize::MAX, "--record needs whole sets");
        std::fs::write(&baseline, recorded(&scores)).expect("the baseline is written");
    }
    let worse = compare(&scores, &std::fs::read_to_string(&baseline).unwrap_or_default());
    worse.iter().for_each(|w| eprintln!("worse than the baseline: {w}"));
    if worse.is_empty() && !scores.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn named(variant: &str) -> &str {
    if variant.is_empty() { "as stored" } else { variant }
}

/// The questions, their pictures cut from the sheets into `folder`.
fn questions(quality: &Path, folder: &Path, limit: usize) -> Vec<Question> {
    std::fs::create_dir_all(folder).expect("a folder for pictures");
    let text = std::fs::read_to_string(quality.join("questions.tsv")).expect("bench/quality/questions.tsv");
    let (mut sheets, mut cut, mut asked) = (HashMap::new(), HashMap::new(), HashMap::new());
    let mut questions = Vec::new();
    for line in text.lines() {
        let [set, sheet, number, question, answer] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("five fields: {line:?}");
        };
        let count: &mut usize = asked.entry(set.to_string()).or_default();
        *count += 1;
        if *count > limit {
            continue;
        }
        let pixels = sheets.entry(sheet.to_string()).or_insert_with(|| {
            let path = quality.join(format!("{sheet}.webp"));
            image::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).into_rgb8()
        });
        let picture = cut.entry((sheet.to_string(), number.to_string())).or_insert_with(|| {
            let k: u32 = number.parse().expect("the number of a picture");
            let path = folder.join(format!("{sheet}-{number}.png"));
            let one = pixels.view(k % COLUMNS * SIDE, k / COLUMNS * SIDE, SIDE, SIDE).to_image();
            one.save(&path).expect("the picture is written");
            path
        });
        let (set, question, answer) = (set.to_string(), question.to_string(), answer.to_string());
        questions.push(Question { set, picture: picture.clone(), question, answer });
    }
    questions
}

fn request(k: usize, q: &Question) -> Value {
    json!({"id": k.to_string(), "prompt": q.question, "images": [q.picture], "max_tokens": 48, "temperature": 0})
}

/// The text of every answer, in the order of the questions; the error line when this build refuses the variant.
fn answers(model: &str, requests: &Path, variant: &str) -> Result<Vec<String>, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
    command.args(["run", "--model", model, "--json", "--requests"]).arg(requests).args(variant.split_whitespace());
    let out = command.stderr(Stdio::piped()).output().expect("the engine starts");
    let stdout = String::from_utf8(out.stdout).expect("UTF-8");
    if !out.status.success() {
        let stderr = String::from_utf8_lossy(&out.stderr);
        return Err(stderr.lines().find(|l| l.starts_with("error")).unwrap_or("no error line").to_string());
    }
    let answer = |line: &str| {
        let value: Value = serde_json::from_str(line).expect("a JSON object a line");
        value["text"].as_str().unwrap_or_else(|| panic!("no text: {line}")).to_string()
    };
    Ok(stdout.lines().map(answer).collect())
}

fn score(questions: &[Question], answers: &[String]) -> Score {
    assert_eq!(questions.len(), answers.len(), "an answer a question");
    let mut score = Score::new();
    for (q, answer) in questions.iter().zip(answers) {
        let (right, total) = score.entry(q.set.clone()).or_default();
        *right += usize::from(answer.trim() == q.answer);
        *total += 1;
    }
    score
}

fn percent((right, total): (usize, usize)) -> f64 {
    100.0 * right as f64 / total as f64
}

fn table(scores: &[(&str, Score)]) -> String {
    let mut out = "| set | questions |".to_string();
    scores.iter().for_each(|(variant, _)| write!(out, " {} |", named(variant)).unwrap());
    out += "\n|---|---|";
    out += &"---|".repeat(scores.len());
    for (set, &(_, total)) in scores.first().map(|(_, s)| s).into_iter().flatten() {
        write!(out, "\n| {set} | {total} |").unwrap();
        scores.iter().for_each(|(_, s)| write!(out, " {:.1} % |", percent(s[set])).unwrap());
    }
    out + "\n"
}

/// `variant, set, right, total` a line.
fn recorded(scores: &[(&str, Score)]) -> String {
    let mut out = String::new();
    for (variant, score) in scores {
        for (set, (right, total)) in score {
            writeln!(out, "{variant}\t{set}\t{right}\t{total}").unwrap();
        }
    }
    out
}

/// What got worse than the baseline says. Sets of another size are not compared.
fn compare(scores: &[(&str, Score)], baseline: &str) -> Vec<String> {
    let mut worse = Vec::new();
    for line in baseline.lines() {
        let [variant, set, right, total] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("baseline.tsv: four fields: {line:?}");
        };
        let before = (right.parse().expect("a number"), total.parse().expect("a number"));
        let Some(now) = scores.iter().find(|(v, _)| *v == variant).and_then(|(_, s)| s.get(set)) else { continue };
        if now.1 == before.1 && percent(*now) < percent(before) - TOLERANCE {
            worse.push(format!("{} {set}: {:.1} % after {:.1} %", named(variant), percent(*now), percent(before)));
        }
    }
    worse
}
