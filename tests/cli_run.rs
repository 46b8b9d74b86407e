//! `engine run`: what stdout holds, flags and environment, sources of prompts and images, outputs that cannot be
//! written, signals.

mod cli_support;

use std::fs::File;
use std::io::Read;
use std::process::{Child, ChildStdout, Command, Stdio};

use cli_support::{Copy, data, engine, engine_with, finish, model, path, png, run_model};
use serde_json::{Value, json};

fn case(name: &str) -> Value {
    let text = std::fs::read(data().join("golden/idefics2/cases.json")).unwrap();
    let all: Vec<Value> = serde_json::from_slice(&text).unwrap();
    all.into_iter().find(|c| c["name"] == name).unwrap()
}

fn keys(v: &Value) -> Vec<&str> {
    v.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn json_is_one_object_with_the_fields_of_the_contract() {
    let case = case("landscape_jpeg");
    let (m, image) = (model(), path("photos/coffee.jpg"));
    let args = ["run", "--model", &m, "--image", &image, "--prompt", "What is in this picture?", "-n", "32", "--json"];
    let answer = engine_with(&args).ok().json();
    let fields = ["text", "token_ids", "finish_reason", "prompt_tokens", "image_tokens", "prompt_token_ids"];
    assert_eq!(keys(&answer), [&fields[..], &["timings", "device", "model"]].concat());
    assert_eq!(keys(&answer["timings"]), ["load_s", "image_s", "prefill_s", "decode_s", "tokens_per_s"]);
    assert!(answer["timings"].as_object().unwrap().values().all(|t| t.as_f64().unwrap() >= 0.0));
    assert_eq!((&answer["device"], &answer["model"]), (&json!("cpu"), &json!(m)));
    for field in fields {
        assert_eq!(answer[field], case[field], "{field}");
    }
    let with = engine_with(&[&args[..], &["--logprobs", "3"]].concat()).ok().json();
    let positions = with["logprobs"].as_array().unwrap();
    assert_eq!((positions.len(), &with["token_ids"]), (32, &case["token_ids"]));
    for (p, want) in positions.iter().zip(case["logprobs"].as_array().unwrap()) {
        assert_eq!(keys(p), ["token_id", "logprob", "top"]);
        assert_eq!((p["top"].as_array().unwrap().len(), &p["top"][0]["token_id"]), (3, &want["top"][0]["token_id"]));
        assert!((p["logprob"].as_f64().unwrap() - want["logprob"].as_f64().unwrap()).abs() <= 1e-3);
    }
    let none = engine_with(&[&args[..], &["--logprobs", "0"]].concat()).ok().json();
    assert_eq!(none["logprobs"][0]["top"], json!([]));
}

#[test]
fn text_is_the_answer_and_a_newline() {
    let case = case("landscape_jpeg");
    let (model, image) = (model(), path("photos/coffee.jpg"));
    let args = ["run", "-m", &model, "--image", &image, "-p", "What is in this picture?", "-n", "3"];
    // Of a flag given twice the last one holds.
    let out = engine_with(&[&args[..], &["--max-new-tokens", "32"]].concat()).ok();
    assert_eq!(out.stdout, format!("{}\n", case["text"].as_str().unwrap()));
    // A stop string ends the answer before itself.
    let out = engine_with(&[&args[..], &["-n", "32", "--stop", " temp", "--stop", "zzz", "--json"]].concat()).ok();
    let answer = out.json();
    assert_eq!(answer["finish_reason"], "stop");
    let text = case["text"].as_str().unwrap();
    assert_eq!(answer["text"], text[..text.find(" temp").unwrap()]);
}

#[test]
fn usage_at_fault() {
    let of = |args: &[&str]| run_model(&model(), &[&["--prompt", "hi"], args].concat());
    of(&["--bogus"]).refused(2, &["unexpected argument '--bogus'"]);
    for (flag, value, expected) in [
        ("--device", "tpu", "expected auto, cpu, cuda or cuda:N"),
        ("--device", "cuda:x", "expected auto, cpu, cuda or cuda:N"),
        ("--dtype", "int3", "auto, bf16, f16, f32"),
        ("--quant", "q9", "none, int8, int4, nf4"),
        ("--temperature", "nan", "temperature: expected a number of 0 or more, got NaN"),
        ("--temperature", "-1", "temperature: expected a number of 0 or more, got -1"),
        ("--temperature", "warm", "--temperature"),
        ("--top-p", "2", "top_p: expected a number above 0 and at most 1, got 2"),
        ("--top-p", "0", "top_p: expected a number above 0 and at most 1, got 0"),
        ("--top-k", "-2", "expected -1, 0 or more"),
        ("--min-p", "2", "min_p: expected a number from 0 to 1, got 2"),
        ("--repetition-penalty", "0", "repetition_penalty: expected a number above 0, got 0"),
        ("--logprobs", "100000", "logprobs: expected 0 to 1024, got 100000"),
        ("--stop", "", "stop[0]: number of bytes: expected 1 to 4096, got 0"),
        ("--num-beams", "3", "num_beams 3: expected 1; beam search is not built in (--num-beams 1"),
        ("--num-beams", "0", "num_beams: expected 1 to 256, got 0"),
        ("--max-model-len", "0", "expected a whole number from 1"),
        ("--max-model-len", "999999", "--max-model-len 999999: expected at most the model's 2048 positions"),
        ("--max-num-seqs", "0", "expected a whole number from 1"),
        ("--max-num-batched-tokens", "0", "expected a whole number from 1"),
        ("--num-pages", "0", "expected a whole number from 1"),
        ("--threads", "0", "expected a whole number from 1 to 1024"),
        ("--gpu-memory-utilization", "0", "expected a number above 0 and at most 1"),
        ("--background", "nocolour", "\"nocolour\": expected #rrggbb"),
        ("--dump", "nope", "build, fuse, plan"),
    ] {
        let out = of(&[flag, value]);
        out.refused(2, &[]);
        let said = out.stderr.replace("\n  ", " ");
        assert!(said.contains(expected), "{flag} {value}: {expected:?} is not in {said:?}");
    }
    let of = |args: &[&str]| engine_with(&[&["run", "--model", &model(), "--prompt", "hi"], args].concat());
    of(&["--max-tokens", "0"]).refused(2, &["max_tokens: expected 1 to", "got 0"]);
    of(&["--max-tokens", "99999999999999999999"]).refused(2, &["99999999999999999999"]);
    of(&["--messages", "x.json"]).refused(2, &["--messages", "--prompt"]);
    assert_eq!(engine_with(&[]).code, Some(2));
    assert_eq!(engine_with(&["--help"]).code, Some(0));
    assert!(engine_with(&["--version"]).ok().stdout.starts_with("engine "));
}

#[test]
fn sizes_that_do_not_fit() {
    let of = |args: &[&str]| run_model(&model(), &[&["--prompt", "hi"], args].concat());
    of(&["--device", "cuda"]).refused(6, &["device: cuda", "--device cpu"]);
    for flag in ["--num-pages", "--max-num-seqs", "--max-num-batched-tokens"] {
        of(&[flag, "2147483647"]).refused(5, &["out of memory", "need", "free", flag]);
    }
    let long = Copy::new().replace("config.json", ": 2048", ": 2000000000");
    let out = run_model(long.path(), &["--prompt", "hi", "--max-model-len", "2000000000"]);
    out.refused(5, &["out of memory: KV cache of --max-model-len 2000000000", "tokens fit", "bytes"]);
}

#[test]
fn the_environment_says_what_flags_do_not() {
    let with = |vars: &[(&str, &str)], args: &[&str]| {
        let mut c = engine();
        c.env("ENGINE_MODEL", model()).env("ENGINE_PROMPT", "a").envs(vars.iter().copied()).arg("run").args(args);
        finish(c, b"")
    };
    let tokens = |v: Value| v["token_ids"].as_array().unwrap().len();
    let vars = [("ENGINE_MAX_TOKENS", "3"), ("ENGINE_IGNORE_EOS", "1"), ("ENGINE_JSON", "true")];
    assert_eq!(tokens(with(&vars, &[]).ok().json()), 3);
    assert_eq!(tokens(with(&vars, &["--max-tokens", "5"]).ok().json()), 5);
    let other = with(&vars, &["--model", &path("idefics2-tiny-nosplit")]).ok().json();
    assert_eq!(other["model"], path("idefics2-tiny-nosplit"));
    let image = path("photos/tiny-5x3.png");
    assert_eq!(with(&[("ENGINE_IMAGE", &image)], &["--json", "-n", "1"]).ok().json()["image_tokens"], 35);
    for off in ["0", "false", ""] {
        let out = with(&[("ENGINE_JSON", off), ("ENGINE_MAX_TOKENS", "1")], &[]).ok();
        assert!(serde_json::from_str::<Value>(&out.stdout).is_err(), "{off:?}: {out:?}");
    }
    with(&[("ENGINE_JSON", "maybe")], &[]).refused(2, &["maybe", "expected 1, true, 0 or false"]);
    with(&[("ENGINE_TEMPERATURE", "-3")], &[]).refused(2, &["temperature: expected a number of 0 or more, got -3"]);
    with(&[("ENGINE_DEVICE", "tpu")], &[]).refused(2, &["tpu"]);
    with(&[("ENGINE_MAX_NUM_SEQS", "none")], &[]).refused(2, &["none", "--max-num-seqs"]);
}

/// The same picture and words by every way give the same tokens.
#[test]
fn sources_of_prompts_and_images() {
    let case = case("odd_sides");
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let bytes = std::fs::read(data().join("photos/chelsea-eye.png")).unwrap();
    let image = path("photos/chelsea-eye.png");
    let uri = {
        let hex: String = bytes.iter().map(|b| format!("%{b:02x}")).collect();
        format!("data:image/png,{hex}")
    };
    let prompt_file = file("prompt.txt", "Explain.");
    let part = |image: Value| json!([{"role": "user", "content": [image, {"type": "text", "text": "Explain."}]}]);
    let next = file("next.json", &part(json!({"type": "image"})).to_string());
    let own = file("own.json", &part(json!({"type": "image", "path": image})).to_string());
    let url = file("url.json", &part(json!({"type": "image_url", "image_url": {"url": uri}})).to_string());
    let same: [(&[&str], &[u8]); 9] = [
        (&["--prompt", "Explain.", "--image", &image], b""),
        (&["--prompt", "Explain.", "--image", &uri], b""),
        (&["--prompt", "Explain.", "--image", &format!("file://{image}")], b""),
        (&["--prompt", "Explain.", "--image", "-"], &bytes),
        (&["--prompt-file", &prompt_file, "--image", &image], b""),
        (&["--prompt-file", "-", "--image", &image], b"Explain."),
        (&["--messages", &next, "--image", &image], b""),
        (&["--messages", &own], b""),
        (&["--messages", &url], b""),
    ];
    for (args, stdin) in same {
        let mut c = engine();
        c.args(["run", "--model", &model(), "-n", "32", "--json"]).args(args);
        let answer = finish(c, stdin).ok().json();
        for field in ["prompt_token_ids", "token_ids", "text"] {
            assert_eq!(answer[field], case[field], "{:?} {field}", args[0]);
        }
    }
}

#[test]
fn a_system_turn_and_a_background() {
    let c = case("nosplit_two_images");
    let images: Vec<String> = c["images"].as_array().unwrap().iter().map(|i| path(i.as_str().unwrap())).collect();
    let args = ["--image", &images[0], "--image", &images[1], "--prompt", "Compare them.", "--json"];
    let m = path("idefics2-tiny-nosplit");
    let answer = run_model(&m, &[&args[..], &["--system", "You are a helpful assistant."]].concat()).ok().json();
    assert_eq!(answer["prompt_token_ids"], c["prompt_token_ids"]);
    assert_eq!(answer["token_ids"][0], c["token_ids"][0]);

    // Of a picture with alpha the reference takes the colours as they are; a background shows through.
    let of = |args: &[&str]| {
        let image = path("photos/chelsea-rgba.png");
        let args = [&["--image", &image, "--prompt", "a", "--json", "--logprobs", "1"], args].concat();
        run_model(&model(), &args).ok().json()["logprobs"].clone()
    };
    let (plain, white, black) = (of(&[]), of(&["--background", "white"]), of(&["--background", "#000000"]));
    assert!(plain != white && white != black, "{plain} {white} {black}");
}

#[test]
fn outputs_that_cannot_be_written() {
    let of = |args: &[&str]| run_model(&model(), &[&["--prompt", "hi"], args].concat());
    of(&["--probe", "*", "--probe-out", "/nonexistent/x.safetensors"]).refused(7, &["output: /nonexistent/x"]);
    of(&["--probe", "*", "--probe-out", "/"]).refused(7, &["output: /"]);
    for args in [&["--json"][..], &[], &["--dump", "plan"]] {
        let mut c = engine();
        c.args(["run", "--model", &model(), "--prompt", "hi", "-n", "3"]).args(args);
        let out = c.stdout(full()).stderr(Stdio::piped()).output().unwrap();
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(7), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.starts_with("error: output: stdout: No space left"), "{stderr}");
    }
    // Errors that cannot be said still end with their code.
    for (stderr, code) in [(Some(full()), 2), (None, 2)] {
        let mut c = match stderr {
            Some(f) => {
                let mut c = engine();
                c.stderr(f);
                c
            }
            None => without_stderr(),
        };
        c.args(["run", "--model", &model(), "--prompt", "hi", "--max-tokens", "0"]);
        assert_eq!(c.status().unwrap().code(), Some(code));
    }
    let mut c = without_stderr();
    c.args(["run", "--model", &model(), "--prompt", "hi", "-n", "2", "-vv"]);
    assert_eq!(c.stdout(Stdio::null()).status().unwrap().code(), Some(0));
}

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

/// The binary started with its stderr closed.
fn without_stderr() -> Command {
    let mut c = Command::new("/bin/sh");
    c.args(["-c", "exec \"$0\" \"$@\" 2>&-", env!("CARGO_BIN_EXE_engine")]);
    c.env_clear().env("ENGINE_THREADS", "2");
    c
}

/// A long answer in progress: its first byte has been read.
fn streaming() -> (Child, ChildStdout) {
    let mut c = engine();
    c.args(["run", "--model", &model(), "--prompt", "a", "--ignore-eos", "-n", "2000"]);
    let mut child = c.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    (child, stdout)
}

#[test]
fn signals_end_an_answer_in_progress() {
    for (signal, code) in [(libc::SIGINT, 130), (libc::SIGTERM, 143)] {
        let (child, mut stdout) = streaming();
        // SAFETY: the child is ours and has not been waited for.
        assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
        let mut rest = Vec::new();
        stdout.read_to_end(&mut rest).unwrap();
        let out = child.wait_with_output().unwrap();
        assert_eq!((out.status.code(), String::from_utf8(out.stderr).unwrap()), (Some(code), String::new()));
        assert!(!rest.ends_with(b"\n"), "it ended before the signal");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let (child, stdout) = streaming();
    drop(stdout);
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.status.code(), String::from_utf8(out.stderr).unwrap()), (Some(0), String::new()));
}

#[test]
fn a_picture_of_one_colour_needs_no_photograph() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("plain.png");
    std::fs::write(&file, png((9, 7), 9, 7)).unwrap();
    let out = run_model(&model(), &["--prompt", "a", "--image", file.to_str().unwrap(), "--json"]).ok();
    assert_eq!(out.json()["image_tokens"], 35);
}
