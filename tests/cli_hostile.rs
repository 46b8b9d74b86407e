//! Damaged checkpoints, images that are none, prompts that do not fit: each ends with the exit code of who must act and
//! one line that says what to do; nothing panics, nothing takes the memory that a header announces.

mod cli_support;

use std::process::Stdio;

use cli_support::{Copy, data, engine, engine_with, model, path, png, run_model};
use serde_json::{Value, json};

/// `run --prompt hi` on a damaged checkpoint.
#[track_caller]
fn damaged(copy: &Copy, code: i32, words: &[&str]) {
    run_model(copy.path(), &["--prompt", "hi"]).refused(code, words);
}

#[test]
fn models_that_are_not_there() {
    for name in ["/nonexistent/model", "no-such-alias", "a/b/c", &path("photos/coffee.jpg")] {
        run_model(name, &["--prompt", "hi"]).refused(4, &["model: ", name, "expected", "hub id"]);
    }
    // An alias of the table: the hub is asked, or would be.
    run_model("idefics2", &["--prompt", "hi"]).refused(4, &["HuggingFaceM4/idefics2-8b@main", "offline"]);
    engine_with(&["inspect", "/nonexistent/model"]).refused(4, &["/nonexistent/model"]);
    let empty = tempfile::tempdir().unwrap();
    let dir = empty.path().to_str().unwrap();
    run_model(dir, &["--prompt", "hi"]).refused(4, &["config.json", "not found; is this a checkpoint directory?"]);
}

#[test]
fn weights_that_are_damaged() {
    let file = std::fs::read(data().join("idefics2-tiny/model.safetensors")).unwrap();
    let weights = |bytes: &[u8]| Copy::new().write("model.safetensors", bytes);
    damaged(&weights(&file[..5000]), 4, &["model.safetensors", "header length", "4992", "download it again"]);
    damaged(&weights(&file[..file.len() - 7]), 4, &["model.safetensors", "cut short or damaged"]);
    damaged(&weights(b""), 4, &["model.safetensors", "got 0 bytes"]);
    let lying = [&(1u64 << 40).to_le_bytes()[..], &file[8..]].concat();
    damaged(&weights(&lying), 4, &["header length: expected at most 100000000 bytes, got 1099511627776"]);

    let (a, b) = ("model.text_model.layers.0.mlp.up_proj.weight", "model.text_model.layers.0.mlp.gate_proj.weight");
    let overlapping = Copy::new().header(|h| {
        // One more row of 48 floats than there is room for: into the next tensor.
        let (from, to) = (h[a]["data_offsets"][0].as_u64().unwrap(), h[a]["data_offsets"][1].as_u64().unwrap());
        h[a]["data_offsets"] = json!([from, to + 192]);
        h[a]["shape"] = json!([101, 48]);
    });
    damaged(&overlapping, 4, &["model.safetensors", "overlap"]);
    let beyond = Copy::new().header(|h| h[a]["data_offsets"] = json!([0u64, u64::MAX]));
    damaged(&beyond, 4, &[a]);
    let swapped = Copy::new().header(|h| h[a]["shape"] = json!([48, 100]));
    damaged(&swapped, 4, &[&format!("error: checkpoint: {a}: expected [100, 48], got [48, 100] (file 1 of 1)")]);
    let renamed = Copy::new().header(|h| {
        let tensor = h.remove(a).unwrap();
        h.insert("something.else".into(), tensor);
    });
    damaged(&renamed, 4, &[a]);

    let sharded = Copy::new();
    std::fs::rename(sharded.file("model.safetensors"), sharded.file("model-00001-of-00002.safetensors")).unwrap();
    let map = json!({"weight_map": {a: "model-00001-of-00002.safetensors", b: "model-00002-of-00002.safetensors"}});
    let sharded = sharded.write("model.safetensors.index.json", map.to_string());
    damaged(&sharded, 4, &["model-00002-of-00002.safetensors", "shard 2 of 2 is missing", "download"]);
    damaged(&Copy::new().remove("model.safetensors"), 4, &["safetensors"]);
}

#[test]
fn configs_that_are_damaged() {
    let config = |old, new| Copy::new().replace("config.json", old, new);
    damaged(&config("0.001", "NaN"), 4, &["config.json: rms_norm_eps: expected a number, got NaN"]);
    damaged(&config("5000.0", "1e999"), 4, &["config.json", "out of range"]);
    damaged(&config("\"num_attention_heads\": 4", "\"num_attention_heads\": 0"), 4, &["num_attention_heads", "got 0"]);
    damaged(&config("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4000000000"), 4, &["num_hidden_layers"]);
    damaged(&config("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4"), 4, &["layers.3"]);
    let other = config("\"model_type\": \"idefics2\",\n  \"perceiver", "\"model_type\": \"wizard9\",\n  \"perceiver");
    damaged(&other, 4, &["config.json: model_type: expected one of", "got \"wizard9\""]);
    let text = Copy::new().read("config.json");
    damaged(&Copy::new().write("config.json", &text[..200]), 4, &["config.json", "EOF", "line 9"]);
    damaged(&Copy::new().write("config.json", "[1]"), 4, &["config.json: expected an object"]);
    let deep = "[".repeat(100_000);
    damaged(&Copy::new().write("config.json", deep), 4, &["config.json"]);
    damaged(&Copy::new().write("generation_config.json", "{\"eos_token_id\": \"x\"}"), 4, &["generation_config.json"]);
}

#[test]
fn tokenizers_and_templates_that_are_damaged() {
    damaged(&Copy::new().remove("tokenizer.json"), 4, &["tokenizer.json: not found"]);
    let tokenizer = Copy::new().read("tokenizer.json");
    damaged(&Copy::new().write("tokenizer.json", &tokenizer[..900]), 4, &["tokenizer.json", "EOF"]);
    let template = |t: &str| Copy::new().write("chat_template.json", json!({ "chat_template": t }).to_string());
    damaged(&template("{% for m in messages %}x"), 4, &["chat_template.json: line 1: syntax error"]);
    damaged(&template("{{ messages[0].nothing.more }}"), 4, &["chat_template.json", "undefined value"]);
    damaged(&template("{{ raise_exception('roles must alternate') }}"), 2, &["chat template", "roles must alternate"]);
    let none = Copy::new().remove("chat_template.json");
    damaged(&none, 2, &["no chat template", "--raw"]);
    assert_eq!(run_model(none.path(), &["--prompt", "In the morning", "--raw"]).ok().code, Some(0));
}

/// `run --image F` with a file of these bytes.
#[track_caller]
fn image(bytes: &[u8], name: &str, words: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(name);
    std::fs::write(&file, bytes).unwrap();
    let out = run_model(&model(), &["--prompt", "hi", "--image", file.to_str().unwrap()]);
    out.refused(2, &[&[name][..], words].concat());
}

#[test]
fn images_that_are_none() {
    let jpeg = std::fs::read(data().join("photos/coffee.jpg")).unwrap();
    image(&jpeg[..6000], "cut.jpg", &["truncated", "send the whole file"]);
    image(&jpeg[..20], "start.jpg", &["JPEG"]);
    image(b"", "empty.png", &["the file is empty (0 bytes)", "send a JPEG, PNG"]);
    image("no picture, but text\n".repeat(20).as_bytes(), "text.jpg", &["the file is text", "send a JPEG, PNG"]);
    image(&png((9, 9), 9, 9)[..60], "cut.png", &["PNG"]);
    // Quadrants of a line have no pixels, and the reference fails there too.
    image(&png((1, 300), 1, 300), "line.png", &["image of 1x300 pixels", "at least 2x2"]);
    image(&png((300, 1), 300, 1), "line.png", &["image of 300x1 pixels", "at least 2x2"]);

    let of = |source: &str| run_model(&model(), &["--prompt", "hi", "--image", source]);
    of("/nonexistent/x.png").refused(2, &["error: request: image /nonexistent/x.png: No such file"]);
    of("/").refused(2, &["image /", "directory"]);
    of("data:image/png;base64,AAAA").refused(2, &["image 1 (data: URI)", "send a JPEG, PNG"]);
    of("data:image/png").refused(2, &["image data: URI", "comma"]);
    of("-").refused(2, &["empty (0 bytes)"]);
    let out = run_model(&path("idefics2-tiny-nosplit"), &["--prompt", "hi", "--image", &path("photos/tiny-5x3.png")]);
    out.ok();
}

#[test]
fn announced_pixels_take_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut jpeg = std::fs::read(data().join("photos/coffee.jpg")).unwrap();
    let frame = jpeg.windows(2).position(|w| w == [0xFF, 0xC0] || w == [0xFF, 0xC2]).unwrap();
    let side = 64250u16.to_be_bytes();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[side, side].concat());
    for (name, bytes) in [("bomb.jpg", jpeg), ("bomb.png", png((64250, 64250), 4, 4))] {
        let file = dir.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        let mut c = engine();
        c.args(["run", "--model", &model(), "--prompt", "hi", "--image", file.to_str().unwrap()]);
        let child = c.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (code, peak, stderr) = wait_with_peak(child);
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains(name) && stderr.contains("64250x64250 pixels, more than the limit"), "{stderr}");
        // The pixels would be 12 GB.
        assert!(peak < 500 << 20, "{name}: {peak} bytes");
    }
}

/// Exit code, peak resident memory in bytes, stderr.
fn wait_with_peak(mut child: std::process::Child) -> (i32, u64, String) {
    let mut stderr = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
    let (mut status, mut usage) = (0, unsafe { std::mem::zeroed::<libc::rusage>() });
    // SAFETY: the child is ours and has not been waited for; both pointers are to live values.
    let pid = unsafe { libc::wait4(child.id() as libc::pid_t, &mut status, 0, &mut usage) };
    assert_eq!(pid, child.id() as libc::pid_t);
    assert!(libc::WIFEXITED(status), "{stderr}");
    (libc::WEXITSTATUS(status), usage.ru_maxrss as u64 * 1024, stderr)
}

#[test]
fn prompts_that_do_not_fit() {
    let of = |args: &[&str]| run_model(&model(), args);
    let long = "word ".repeat(4000);
    of(&["--prompt", &long]).refused(2, &["8010 tokens (8010 text, 0 image)", "context has 2048", "--max-model-len"]);
    let coffee = path("photos/coffee.jpg");
    let out = of(&["--prompt", "hi", "--image", &coffee, "--max-model-len", "40"]);
    out.refused(2, &["53 tokens (18 text, 35 image: 5 x 7)", "the context has 40", "--max-model-len"]);
    of(&["--prompt", &"word ".repeat(40), "--num-pages", "1"]).refused(2, &["90 tokens", "the context has 16"]);
    of(&["--raw", "--prompt", "<image><image>a"]).refused(2, &["one <image> for each of 0 images, got 2"]);
    of(&["--raw", "--prompt", "a", "--image", &coffee]).refused(2, &["one <image> for each of 1 images, got 0"]);
    of(&["--prompt-file", "/nonexistent"]).refused(2, &["--prompt-file /nonexistent: No such file"]);
    of(&[]).refused(2, &["expected one of --prompt, --messages and --requests, got none"]);
}

/// Words of the user that look like a placeholder stay words.
#[test]
fn a_marker_in_the_prompt_is_text() {
    let out = run_model(&model(), &["--prompt", "Write <image> and <fake_token_around_image> twice.", "--json"]).ok();
    let answer = out.json();
    assert_eq!((&answer["prompt_tokens"], &answer["image_tokens"]), (&json!(40), &json!(0)));
    let ids: Vec<u64> = answer["prompt_token_ids"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
    assert!(!ids.contains(&1151) && !ids.contains(&1150), "{ids:?}");
}

#[test]
fn messages_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("messages.json");
    for (text, word) in [
        ("[{\"role\": \"user\"", "EOF"),
        ("{}", "expected a list of messages, got an object"),
        ("[]", "at least one message"),
        ("[{\"role\": \"wizard\", \"content\": \"a\"}]", "wizard"),
        ("[{\"role\": \"user\", \"content\": [{\"type\": \"image\"}]}]", "an image without a source"),
        ("[{\"role\": \"user\", \"content\": [{\"type\": \"video\"}]}]", "video"),
    ] {
        std::fs::write(&file, text).unwrap();
        run_model(&model(), &["--messages", file.to_str().unwrap()]).refused(2, &["messages", word]);
    }
    std::fs::write(&file, "[{\"role\": \"user\", \"content\": \"a\"}]").unwrap();
    let out = run_model(&model(), &["--messages", file.to_str().unwrap(), "--image", &path("photos/coffee.jpg")]);
    out.refused(2, &["1 of 1 images are not used by any message"]);
}
