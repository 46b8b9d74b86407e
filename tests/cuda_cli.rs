//! The program with `--device cuda` against itself on the CPU: the golden cases of each tiny model in one file of
//! requests, in bf16 and f16; the built-in model's answers and captions. On a machine without a GPU:
//! `tools/softgpu/run.sh cargo test --release --workspace --test cuda_cli`. Without a driver or without kernels the
//! tests check that this is said.
//!
//! The CPU is exact in f32 arithmetic (tests/cli_requests.rs), here from the same rounded weights. Activations of 16 bits
//! move a log-probability by up to `limit`, so a token may differ where the CPU's best two are nearer than twice that.

mod cli_support;
#[path = "cuda_ops/device.rs"]
mod device;

use std::collections::BTreeMap;
use std::process::Command;

use cli_support::{data, engine, finish, golden_line, path};
use serde_json::{Value, json};

/// The binary, which shall find the driver that this test found.
fn with_driver() -> Command {
    let mut c = engine();
    if let Some(value) = std::env::var_os("LD_LIBRARY_PATH") {
        c.env("LD_LIBRARY_PATH", value);
    }
    c
}

fn answers(lines: &[Value], args: &[&str]) -> Vec<Value> {
    let mut c = with_driver();
    c.args(["run", "--requests", "-", "--json"]).args(args);
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    let out = finish(c, lines.join("\n").as_bytes());
    assert_eq!(out.code, Some(0), "{args:?}: {out:?}");
    out.json_lines()
}

/// Steps on which both agree, and all steps up to the first near tie that fell the other way.
fn agreement(got: &Value, want: &Value, limit: f64) -> (usize, usize) {
    let name = &want["id"];
    for key in ["id", "prompt_token_ids", "image_tokens"] {
        assert_eq!(got[key], want[key], "{name}: {key}");
    }
    let steps = |answer: &Value| answer["logprobs"].as_array().unwrap().clone();
    let (got_steps, want_steps) = (steps(got), steps(want));
    for (i, (g, w)) in got_steps.iter().zip(&want_steps).enumerate() {
        if g["token_id"] != w["token_id"] {
            let top = w["top"].as_array().unwrap();
            let margin = top[0]["logprob"].as_f64().unwrap() - top[1]["logprob"].as_f64().unwrap();
            assert!(
                margin <= 2.0 * limit,
                "{name}: step {i}: {} for {}, margin {margin}",
                g["token_id"],
                w["token_id"]
            );
            return (i, want_steps.len());
        }
        let difference = g["logprob"].as_f64().unwrap() - w["logprob"].as_f64().unwrap();
        assert!(difference.abs() <= limit, "{name}: step {i}: log-probabilities differ by {difference}");
    }
    assert_eq!((&got["text"], &got["finish_reason"]), (&want["text"], &want["finish_reason"]), "{name}");
    (want_steps.len(), want_steps.len())
}

/// Every golden case in `dtype`; at least `least` percent of the tokens must be compared and equal.
fn golden(dtype: &str, limit: f64, least: usize) {
    if device::open().is_none() {
        return;
    }
    let text = std::fs::read(data().join("golden/idefics2/cases.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_slice(&text).unwrap();
    let mut models: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for case in &cases {
        models.entry(case["model"].as_str().unwrap()).or_default().push(golden_line(case, 5));
    }
    assert!(models.len() >= 2, "{models:?}");
    let (mut equal, mut all) = (0, 0);
    for (model, lines) in models {
        let on = |device| answers(&lines, &["--device", device, "--dtype", dtype, "--model", &path(model)]);
        let (got, want) = (on("cuda"), on("cpu"));
        assert_eq!((got.len(), want.len()), (lines.len(), lines.len()));
        for (got, want) in got.iter().zip(&want) {
            let (steps, of) = agreement(got, want, limit);
            (equal, all) = (equal + steps, all + of);
        }
    }
    assert!(equal * 100 >= all * least, "{equal} of {all}");
}

#[test]
fn golden_cases_in_one_file_agree_with_the_cpu_in_bf16() {
    golden("bf16", 0.3, 55);
}

#[test]
fn golden_cases_in_one_file_agree_with_the_cpu_in_f16() {
    golden("f16", 0.04, 95);
}

/// The sample pictures' questions, to the built-in model.
#[test]
fn the_built_in_model_answers_as_on_the_cpu() {
    if device::open().is_none() {
        return;
    }
    let expected: Value = serde_json::from_slice(&std::fs::read(data().join("scenes/expected.json")).unwrap()).unwrap();
    let mut lines = Vec::new();
    for picture in expected.as_array().unwrap() {
        let file = path(&format!("scenes/{}", picture["image"].as_str().unwrap()));
        for q in picture["questions"].as_array().unwrap() {
            lines.push(json!({"prompt": q["question"], "images": [file], "max_tokens": 48}));
        }
    }
    assert!(lines.len() >= 20);
    let tokens = |device| -> Vec<Value> {
        answers(&lines, &["--device", device]).into_iter().map(|mut a| a["token_ids"].take()).collect()
    };
    assert_eq!(tokens("cuda"), tokens("cpu"));
}

#[test]
fn the_built_in_model_captions_as_on_the_cpu() {
    if device::open().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let captions = |device: &str| -> BTreeMap<String, String> {
        let out = folder.path().join(format!("{device}.jsonl"));
        let mut c = with_driver();
        c.args(["caption", &path("scenes"), "--glob", "*.png", "--device", device, "--out"]).arg(&out);
        let done = finish(c, b"");
        assert_eq!(done.code, Some(0), "{done:?}");
        let lines = std::fs::read_to_string(&out).unwrap();
        let field = |l: &Value, key: &str| l[key].as_str().unwrap().to_string();
        lines
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .map(|l| (field(&l, "path"), field(&l, "caption")))
            .collect()
    };
    let (got, want) = (captions("cuda"), captions("cpu"));
    assert!(want.len() >= 5, "{want:?}");
    assert_eq!(got, want);
}

#[test]
fn benchmarks_run_on_the_gpu() {
    let Some(cuda) = device::open() else { return };
    let soft = cuda.device().name().contains("softgpu");
    let run = |args: &[&str]| {
        let mut c = with_driver();
        c.args(["bench"]).args(args);
        finish(c, b"").ok().stdout
    };
    let out = run(&["kernels", "--device", "cuda:0", "rmsnorm"]);
    let rows: Vec<&str> = out.lines().filter(|l| l.starts_with("rmsnorm ")).collect();
    assert!(rows.len() > 10 && rows.iter().any(|r| r.contains("Llama-3.1-8B")), "{out}");
    assert!(!out.contains("layernorm") && !out.contains("PREDICTED"), "{out}");
    if soft {
        // One launch, and every sector asked for is needed.
        let words: Vec<&str> = rows[0].split_whitespace().rev().collect();
        assert_eq!((words[8], words[4]), ("1", "1.000"), "{}", rows[0]);
    }
    let out = run(&[
        "model",
        "--model",
        "demo",
        "--device",
        "cuda:0",
        "-n",
        "3",
        "--max-model-len",
        "128",
        "--max-num-seqs",
        "1",
    ]);
    assert!(out.contains("| device | cuda:0 |") && out.contains("| new tokens | 3 |"), "{out}");
    assert!(!out.contains("bandwidth"), "the host's memory says nothing of the GPU's: {out}");
}
