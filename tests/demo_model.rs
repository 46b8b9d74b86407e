//! The built-in model through the command line: the sample pictures' questions get exactly the expected answers, and a
//! sample of the held-out questions of `bench/quality/` stays above a floor.
//! Expected values: what `tools/demo` drew (`tests/data/scenes/expected.json`, `bench/quality/questions.tsv`), no model's output.

mod cli_support;

use std::collections::HashMap;
use std::path::Path;

use cli_support::{data, engine, finish};
use image::GenericImageView;
use serde_json::{Value, json};

/// Answers of the built-in model to (picture, question) pairs.
fn ask(questions: &[(String, String)]) -> Vec<String> {
    let line = |(picture, question): &(String, String)| {
        json!({"prompt": question, "images": [picture], "max_tokens": 48, "temperature": 0}).to_string()
    };
    let lines: Vec<String> = questions.iter().map(line).collect();
    let mut c = engine();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo-model");
    c.args(["run", "--device", "cpu", "--requests", "-", "--json", "--model"]).arg(model);
    let out = finish(c, lines.join("\n").as_bytes());
    assert_eq!(out.code, Some(0), "{}", out.stderr);
    let text = |l: &str| serde_json::from_str::<Value>(l).unwrap()["text"].as_str().unwrap().trim().to_string();
    let answers: Vec<String> = out.stdout.lines().map(text).collect();
    assert_eq!(answers.len(), questions.len());
    answers
}

#[test]
fn sample_pictures_are_answered_exactly() {
    let scenes = data().join("scenes");
    let expected: Value = serde_json::from_slice(&std::fs::read(scenes.join("expected.json")).unwrap()).unwrap();
    let (mut questions, mut answers) = (Vec::new(), Vec::new());
    for picture in expected.as_array().unwrap() {
        let path = scenes.join(picture["image"].as_str().unwrap()).display().to_string();
        for q in picture["questions"].as_array().unwrap() {
            questions.push((path.clone(), q["question"].as_str().unwrap().to_string()));
            answers.push(q["answer"].as_str().unwrap().to_string());
        }
    }
    assert!(questions.len() >= 20);
    for ((question, want), got) in questions.iter().zip(&answers).zip(ask(&questions)) {
        assert_eq!(got, *want, "{question:?}");
    }
}

/// The sheets hold pictures of 64x64 pixels, 32 in a row.
#[test]
fn held_out_questions_stay_above_the_floor() {
    const EACH: usize = 40;
    // Under what the committed model reaches by more than arithmetic in another order can change; the whole sets are measured
    // by `cargo bench --bench quality`.
    const FLOORS: [(&str, usize); 6] =
        [("captions", 34), ("counting", 36), ("colors", 38), ("relations", 37), ("reading", 38), ("easy-vqa", 38)];
    let quality = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/quality");
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(quality.join("questions.tsv")).unwrap();
    let (mut sheets, mut seen) = (HashMap::new(), HashMap::<&str, usize>::new());
    let (mut questions, mut wanted) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let [set, sheet, number, question, answer] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("five fields: {line:?}");
        };
        let count = seen.entry(set).or_default();
        *count += 1;
        if *count > EACH {
            continue;
        }
        let pixels = sheets
            .entry(sheet)
            .or_insert_with(|| image::open(quality.join(format!("{sheet}.webp"))).unwrap().into_rgb8());
        let (path, k) = (folder.path().join(format!("{sheet}-{number}.png")), number.parse::<u32>().unwrap());
        pixels.view(k % 32 * 64, k / 32 * 64, 64, 64).to_image().save(&path).unwrap();
        questions.push((path.display().to_string(), question.to_string()));
        wanted.push((set, answer));
    }
    let mut right = HashMap::<&str, usize>::new();
    for ((set, answer), got) in wanted.iter().zip(ask(&questions)) {
        *right.entry(set).or_default() += usize::from(got == *answer);
    }
    assert_eq!(seen.len(), 6);
    for set in seen.keys() {
        let floor = FLOORS.iter().find(|(name, _)| name == set).unwrap_or_else(|| panic!("a floor for {set}")).1;
        assert!(right[set] >= floor, "{set}: {} of {EACH}, floor {floor}", right[set]);
    }
}
