//! `engine chat` through a pipe, `engine inspect`, dumps, probes and comparisons.

mod cli_support;

use cli_support::{Output, data, engine, engine_with, finish, model, path, run_model};
use serde_json::{Value, json};

fn chat(lines: &[&str], args: &[&str]) -> Output {
    let mut c = engine();
    c.args(["chat", "--model", &model(), "-n", "4", "--ignore-eos"]).args(args);
    finish(c, lines.join("\n").as_bytes())
}

/// The answer of `run` to these messages.
fn answer(messages: &Value) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.json");
    std::fs::write(&file, messages.to_string()).unwrap();
    let out =
        engine_with(&["run", "--model", &model(), "-n", "4", "--ignore-eos", "--messages", file.to_str().unwrap()]);
    out.ok().stdout.trim_end_matches('\n').to_string()
}

#[test]
fn chat_remembers_and_forgets() {
    let eye = path("photos/chelsea-eye.png");
    let image = format!("/image {eye}");
    let first = answer(
        &json!([{"role": "user", "content": [{"type": "image", "path": eye}, {"type": "text", "text": "Explain."}]}]),
    );
    let second = answer(&json!([
        {"role": "user", "content": [{"type": "image", "path": eye}, {"type": "text", "text": "Explain."}]},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "And then?"},
    ]));
    let fresh = answer(&json!([{"role": "user", "content": "And then?"}]));
    assert!(second != fresh);
    let out = chat(&[&image, "Explain.", "And then?", "/reset", "And then?"], &[]).ok();
    assert_eq!(out.stdout, format!("{first}\n{second}\n{fresh}\n"));
    assert_eq!(chat(&["And then?", "/exit", "More"], &[]).ok().stdout, format!("{fresh}\n"));
}

#[test]
fn chat_goes_on_after_a_mistake() {
    let fresh = answer(&json!([{"role": "user", "content": "Hello"}]));
    for (line, words) in [
        ("/wizard", "error: /wizard: not a command"),
        ("/image", "error: /image: expected a path or URL"),
        ("/image -", "error: /image -: expected a path or URL"),
        ("/image /nonexistent.png\nHello", "error: request: image /nonexistent.png: No such file"),
    ] {
        let out = chat(&[line, "Hello"], &[]);
        assert_eq!((out.code, &out.stdout), (Some(0), &format!("{fresh}\n")), "{line}: {out:?}");
        assert!(out.stderr.starts_with(words), "{line}: {out:?}");
    }
    assert_eq!(chat(&[], &[]).ok().stdout, "");
}

#[test]
fn inspect_says_what_a_checkpoint_holds() {
    let text = engine_with(&["inspect", &model()]).ok().stdout;
    for words in ["family        idefics2", "f32", "text          3 layers of 48, vocabulary 1153", "fits"] {
        assert!(text.to_lowercase().contains(words), "{words:?}: {text}");
    }
    let value = engine_with(&["inspect", &model(), "--json"]).ok().json();
    let file = std::fs::metadata(data().join("idefics2-tiny/model.safetensors")).unwrap().len();
    let bytes = value["weight_bytes"].as_u64().unwrap();
    assert!(bytes < file && bytes + 20_000 > file, "{bytes} of {file}");
    assert_eq!(value["parameters"].as_u64().unwrap() * 4, bytes);
    assert_eq!((&value["missing"], &value["unused"]), (&json!([]), &json!([])));
    let parts: u64 = value["parts"].as_array().unwrap().iter().map(|p| p["bytes"].as_u64().unwrap()).sum();
    assert_eq!(parts, bytes);
    assert!(engine_with(&["inspect", "--list"]).ok().stdout.contains("HuggingFaceM4/idefics2-8b"));
}

#[test]
fn graphs_can_be_printed() {
    for stage in ["build", "fuse", "plan"] {
        let out = run_model(&model(), &["--dump", stage]).ok();
        assert!(out.stdout.contains("model.text_model.layers.2.mlp.product"), "{stage}: {}", out.stdout);
        assert!(out.stdout.contains("model.vision_model.encoder.layers.1"), "{stage}: {}", out.stdout);
    }
}

#[test]
fn probes_and_comparisons_agree_and_name_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("values.safetensors");
    let name = file.to_str().unwrap();
    let image = path("photos/chelsea-eye.png");
    let of = |args: &[&str]| run_model(&model(), &[&["--prompt", "Explain.", "--image", &image], args].concat());

    let out = of(&["--probe", "*", "--probe-out", name]);
    assert_eq!(out.code, Some(0), "{out:?}");
    assert!(out.stderr.contains(&format!("tensors written to {name}")), "{out:?}");
    let out = of(&["--compare-to", name]);
    assert_eq!(out.code, Some(0), "{out:?}");
    assert!(out.stderr.contains("none differs") && !out.stderr.contains("not seen"), "{out:?}");

    // The reference's own values, by transformers. It names two modules whose value has another name here, too: that
    // of their last operation.
    let golden = path("golden/idefics2/activations.safetensors");
    let out = of(&["--compare-to", &golden]);
    assert_eq!(out.code, Some(0), "{out:?}");
    assert!(out.stderr.contains("24 nodes compared, none differs"), "{out:?}");

    // A planted difference: one float in the middle of two nodes; the earlier one is named.
    let mut bytes = std::fs::read(&golden).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    let nodes = ["model.text_model.layers.0.mlp.down_proj", "model.text_model.layers.0.self_attn.o_proj"];
    for node in nodes {
        let offsets = &header[node]["data_offsets"];
        let middle = (offsets[0].as_u64().unwrap() + offsets[1].as_u64().unwrap()) / 8 * 4;
        let at = 8 + len + middle as usize;
        bytes[at..at + 4].copy_from_slice(&9e3f32.to_le_bytes());
    }
    std::fs::write(&file, bytes).unwrap();
    let out = of(&["--compare-to", name]);
    assert_eq!(out.code, Some(1), "{out:?}");
    assert!(out.stderr.contains(&format!("first difference: {}", nodes[1])), "{out:?}");
    assert!(out.stderr.contains("expected 9000"), "{out:?}");
    assert!(!out.stderr.contains("panicked"), "{out:?}");

    of(&["--probe", "nothing.*", "--probe-out", name]).refused(2, &["--probe nothing.*: no node matches"]);
    of(&["--compare-to", "/nonexistent"]).refused(2, &["--compare-to: /nonexistent: No such file"]);
    of(&["--compare-to", &image]).refused(2, &["--compare-to", "header length"]);
    of(&["--probe", "*"]).refused(2, &["--probe-out"]);
}
