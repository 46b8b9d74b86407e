//! `engine run --requests`: the golden cases of a model in one file, with many and few seats and with too few pages;
//! bad lines among good ones; standard input. Expected values: tests/data/golden/idefics2, from transformers.

mod cli_support;

use cli_support::{Output, data, engine, finish, golden_line, model, path};
use serde_json::{Value, json};

fn cases(model: &str) -> Vec<Value> {
    let text = std::fs::read(data().join("golden/idefics2/cases.json")).unwrap();
    let all: Vec<Value> = serde_json::from_slice(&text).unwrap();
    all.into_iter().filter(|c| c["model"] == model).collect()
}

/// `run --requests - --json` with these lines on standard input.
fn run(model: &str, lines: &[String], args: &[&str]) -> Output {
    let mut c = engine();
    c.args(["run", "--model", model, "--requests", "-", "--json"]).args(args);
    finish(c, lines.join("\n").as_bytes())
}

#[track_caller]
fn check(case: &Value, got: &Value) {
    assert_eq!(got["id"], case["name"]);
    for key in ["prompt_token_ids", "prompt_tokens", "image_tokens", "token_ids", "text", "finish_reason"] {
        assert_eq!(got[key], case[key], "{}: {key}", case["name"]);
    }
    let (got, want) = (got["logprobs"].as_array().unwrap(), case["logprobs"].as_array().unwrap());
    assert_eq!(got.len(), want.len(), "{}", case["name"]);
    for (g, w) in got.iter().zip(want) {
        assert_eq!((&g["token_id"], g["top"].as_array().unwrap().len()), (&w["token_id"], 2));
        let difference = g["logprob"].as_f64().unwrap() - w["logprob"].as_f64().unwrap();
        assert!(difference.abs() <= 1e-3, "{}: {difference}", case["name"]);
    }
}

#[test]
fn golden_cases_in_one_file_are_exact() {
    for name in ["idefics2-tiny", "idefics2-tiny-nosplit"] {
        let cases = cases(name);
        assert!(cases.len() >= 3);
        let lines: Vec<String> = cases.iter().map(|c| golden_line(c, 2).to_string()).collect();
        let longest = cases.iter().map(|c| c["prompt_tokens"].as_u64().unwrap() + 32).max().unwrap();
        // As many pages as the longest sequence takes, and two: all at once they do not fit, and some are preempted.
        let pages = (longest.div_ceil(16) + 2).to_string();
        for args in [&[][..], &["--max-num-seqs", "3"], &["--num-pages", &pages, "--max-num-batched-tokens", "64"]] {
            let results = run(&path(name), &lines, args).ok().json_lines();
            assert_eq!(results.len(), cases.len(), "{name} {args:?}");
            cases.iter().zip(&results).for_each(|(c, r)| check(c, r));
        }
    }
}

#[test]
fn bad_lines_fail_in_their_place() {
    let cases = cases("idefics2-tiny");
    let (first, last) = (&cases[0], &cases[5]);
    let broken = [
        ("{\"id\": 1, \"prompt\"", Value::Null, "-:2: EOF"),
        ("{\"id\": 2}", json!(2), "expected prompt or messages, got neither"),
        ("{\"id\": \"x\", \"prompt\": \"a\", \"tempreature\": 1}", json!("x"), "tempreature: not a field of a request"),
        ("{\"id\": 4, \"prompt\": \"a\", \"images\": [\"/nonexistent.png\"]}", json!(4), "/nonexistent.png: No such"),
        (
            "{\"id\": 5, \"prompt\": \"a\", \"temperature\": -1}",
            json!(5),
            "temperature: expected a number of 0 or more",
        ),
        ("{\"id\": 6, \"prompt\": \"a\", \"max_tokens\": \"many\"}", json!(6), "max_tokens: expected a whole number"),
        ("{\"id\": 7, \"prompt\": \"a\", \"max_tokens\": 0}", json!(7), "max_tokens: expected 1 to"),
        ("{\"id\": 8, \"prompt\": \"a\", \"images\": [\"-\"]}", json!(8), "standard input holds the requests"),
        ("{\"id\": 9, \"messages\": [{\"role\": \"user\", \"content\": 5}]}", json!(9), "messages[0]"),
        ("{\"id\": 10, \"prompt\": \"a\", \"num_beams\": 3}", json!(10), "num_beams 3: expected 1"),
        ("\"just text\"", Value::Null, "expected a JSON object"),
    ];
    let long = json!({"id": "long", "prompt": "word ".repeat(4000)}).to_string();
    let mut lines = vec![golden_line(first, 2).to_string()];
    lines.extend(broken.iter().map(|b| b.0.to_string()));
    lines.extend([String::new(), long, golden_line(last, 2).to_string()]);
    let out = run(&model(), &lines, &[]);
    assert_eq!((out.code, out.stderr.as_str()), (Some(3), "12 requests failed\n"), "{out:?}");
    let results = out.json_lines();
    assert_eq!(results.len(), broken.len() + 3);
    check(first, &results[0]);
    check(last, &results[broken.len() + 2]);
    for ((_, id, message), got) in broken.iter().zip(&results[1..]) {
        assert_eq!((&got["id"], &got["error"]["code"]), (id, &json!(2)), "{got}");
        let text = got["error"]["message"].as_str().unwrap();
        assert!(text.contains(message), "{message:?} is not in {text:?}");
        assert!(got.get("text").is_none());
    }
    let long = &results[broken.len() + 1];
    assert!(long["id"] == "long" && long["error"]["message"].as_str().unwrap().contains("8010 text"), "{long}");
}

#[test]
fn nothing_to_do_is_fine() {
    for lines in [vec![], vec!["  ".to_string(), String::new()]] {
        assert_eq!(run(&model(), &lines, &[]).ok().stdout, "");
    }
    let mut c = engine();
    c.args(["run", "--model", &model(), "--requests", "/nonexistent.jsonl", "--json"]);
    finish(c, b"").refused(2, &["--requests /nonexistent.jsonl: No such file"]);
    let mut c = engine();
    c.args(["run", "--model", &model(), "--requests", "-"]);
    finish(c, b"").refused(2, &["--json"]);
    let out = run(&model(), &["{\"prompt\": \"\u{e9}\"}".to_string()], &["-n", "2"]).ok();
    assert_eq!(out.json()["token_ids"].as_array().unwrap().len(), 2);
    let mut c = engine();
    c.args(["run", "--model", &model(), "--requests", "-", "--json", "-n", "1"]);
    let out = finish(c, b"{\"prompt\": \"\xff\"}\n{\"id\": 2, \"prompt\": \"a\"}\n");
    assert_eq!(out.code, Some(3), "{out:?}");
    let lines = out.json_lines();
    assert!(lines[0]["error"]["message"].as_str().unwrap().contains("not UTF-8") && lines[1]["id"] == 2, "{out:?}");
}

/// A line's own settings win over the flags, and what the flags say holds for the others.
#[test]
fn flags_are_defaults_of_the_lines() {
    let lines =
        ["{\"id\": 1, \"prompt\": \"a\", \"max_tokens\": 3}", "{\"id\": 2, \"prompt\": \"a\"}"].map(String::from);
    let results = run(&model(), &lines, &["-n", "5", "--ignore-eos"]).ok().json_lines();
    let counts: Vec<usize> = results.iter().map(|r| r["token_ids"].as_array().unwrap().len()).collect();
    assert_eq!(counts, [3, 5]);
    assert!(results.iter().all(|r| r.get("logprobs").is_none()));
}
