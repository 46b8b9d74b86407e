//! What is said and where: stdout, stderr, JSON, shards, lists, styles.

use serde_json::Value;

use crate::cli_support::{engine_with, finish};
use crate::folder::{Folder, picture};

fn is_plain(text: &str) -> bool {
    text.chars().all(|c| c == '\n' || !c.is_control())
}

#[test]
fn a_pipe_gets_no_control_characters() {
    let folder = Folder::new(&["a.png", "b.png"]);
    folder.write("c.png", b"no picture at all");
    let out = folder.caption(&["."]);
    assert_eq!((out.code, out.stdout.as_str()), (Some(3), ""), "{out:?}");
    assert!(is_plain(&out.stderr) && out.stderr.ends_with('\n'), "{out:?}");
    for said in [
        "captions go to captions.jsonl",
        "failed: c.png: the file is",
        "3 files in ",
        "2 ok, 0 skipped, 1 failed",
        "images/s",
        "model at work",
        "captions: captions.jsonl; failures: failed.jsonl",
    ] {
        assert!(out.stderr.contains(said), "{said}: {}", out.stderr);
    }
    // A line holds what the contract says, and no more.
    let line = &folder.lines("captions.jsonl")[0];
    let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["path", "caption", "model", "tokens", "image_tokens", "seconds", "sha256"]);
    assert_eq!((line["tokens"].as_u64(), line["sha256"].as_str().map(str::len)), (Some(3), Some(64)));
    assert!(line["seconds"].as_f64().unwrap() > 0.0 && line["image_tokens"].as_u64().unwrap() > 0);
}

#[test]
fn json_progress_is_a_json_object_a_line() {
    let names: Vec<String> = (0..60).map(|i| format!("{i:02}.png")).collect();
    let folder = Folder::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    folder.write("odd\n\u{1b}[1m.png", b"no picture");
    let args =
        [".", "--log-format", "json", "--log-interval", "0.1", "--max-num-seqs", "1", "-n", "40", "--ignore-eos"];
    let out = folder.caption(&args);
    assert_eq!((out.code, out.stdout.as_str()), (Some(3), ""), "{out:?}");
    assert!(is_plain(&out.stderr));
    let events: Vec<Value> = out.stderr.lines().map(|l| serde_json::from_str(l).expect(l)).collect();
    let of = |kind: &str| events.iter().filter(|e| e["event"] == kind).collect::<Vec<_>>();
    assert_eq!((events[0]["event"].as_str(), of("start").len(), of("summary").len()), (Some("start"), 1, 1));
    assert_eq!(of("failed")[0]["path"], "odd\n\u{1b}[1m.png");
    let progress = of("progress");
    assert!(!progress.is_empty(), "{}", out.stderr);
    for p in progress {
        let known = ["model", "decoding", "reading", "listing", "writing"];
        assert!(known.contains(&p["bottleneck"].as_str().unwrap()), "{p}");
        assert!(p["ended"].as_u64().unwrap() <= p["total"].as_u64().unwrap() && p["images_per_s"].is_number(), "{p}");
    }
    let summary = of("summary")[0];
    assert_eq!((&summary["ok"], &summary["failed"], &summary["total"]), (&60.into(), &1.into(), &61.into()));
    assert_eq!(summary["failed_by_reason"].as_object().unwrap().len(), 1);
    // What ends a run is an object too.
    let out = folder.caption(&["nowhere", "--log-format", "json"]);
    let error: Value = serde_json::from_str(out.stderr.trim()).unwrap();
    assert_eq!((out.code, &error["event"], &error["code"]), (Some(2), &"error".into(), &2.into()), "{out:?}");
}

#[test]
fn results_on_stdout() {
    let folder = Folder::new(&["a.png", "b.png"]);
    folder.write("c.png", b"");
    let out = folder.caption(&[".", "--json"]);
    let mut lines = out.json_lines();
    assert_eq!(lines.len(), 3);
    lines.retain(|l| l.get("error").is_none());
    assert_eq!(lines, folder.lines("captions.jsonl"));
    // Captions to a stream leave nothing behind.
    let stream = Folder::new(&["a.png", "b.png"]);
    let out = stream.caption(&[".", "--out", "-", "--sidecar", "txt"]);
    assert_eq!(out.code, Some(0), "{out:?}");
    let strip = |mut v: Vec<Value>| {
        v.iter_mut().for_each(|l| l["seconds"] = 0.into());
        v.sort_by_key(|l| l["path"].to_string());
        v
    };
    assert_eq!(strip(out.json_lines()), strip(lines));
    assert_eq!(stream.names(), ["a.png", "a.txt", "b.png", "b.txt"]);
}

#[test]
fn shards_make_the_whole() {
    let names: Vec<String> = (0..30).map(|i| format!("{i:02}.{}", ["png", "jpg"][i % 2])).collect();
    let folder = Folder::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut all = Vec::new();
    for part in 1..=3 {
        folder.ok(&[".", "--shard", &format!("{part}/3")]);
        let lines = folder.captions(&format!("captions.{part}-of-3.jsonl"));
        assert!((3..20).contains(&lines.len()), "{}", lines.len());
        all.extend(lines.into_keys());
    }
    all.sort();
    assert_eq!(all, names);
    folder.caption(&[".", "--shard", "4/3"]).refused(2, &["--shard", "expected I/N"]);
}

#[test]
fn failures_can_be_given_back() {
    let folder = Folder::new(&["a.png"]);
    folder.write("b.png", b"");
    folder.write("c.png", b"<html>no picture</html>");
    assert_eq!(folder.caption(&["."]).code, Some(3));
    let failed = folder.lines("failed.jsonl");
    let paths: Vec<&str> = failed.iter().map(|l| l["path"].as_str().unwrap()).collect();
    assert_eq!(
        {
            let mut p = paths.clone();
            p.sort();
            p
        },
        ["b.png", "c.png"]
    );
    assert!(failed.iter().all(|l| l["error"].as_str().unwrap().starts_with("the file is ")));
    // One is mended. The list that is read is replaced by what still fails.
    folder.write("b.png", picture(3));
    let out = folder.caption(&["--filelist", "failed.jsonl"]);
    assert!(out.stderr.contains("2 files in ") && out.stderr.contains("1 ok, 0 skipped, 1 failed"), "{out:?}");
    assert_eq!(folder.lines("failed.jsonl").len(), 1);
    folder.write("c.png", picture(4));
    folder.ok(&["--filelist", "failed.jsonl"]);
    assert_eq!((folder.text("failed.jsonl").as_str(), folder.captions("captions.jsonl").len()), ("", 3));
    // From a pipe, paths between zero bytes.
    let other = Folder::new(&["a.png", "two\nlines.png"]);
    let mut c = other.command(&["--filelist", "-"]);
    c.env("ENGINE_SIDECAR", "caption");
    let out = finish(c, b"a.png\0two\nlines.png\0gone.png\0");
    assert!(out.code == Some(3) && out.stderr.contains("gone.png: no such file; it may have been moved"), "{out:?}");
    assert_eq!(other.contents("caption").len(), 2);
}

#[test]
fn styles_are_prompts() {
    let listing = engine_with(&["caption", "--list-styles"]).ok().stdout;
    for name in ["descriptive", "booru", "midjourney", "art-critic", "product", "social", "lighting"] {
        assert!(listing.contains(&format!(" {name} ")), "{listing}");
    }
    let folder = Folder::new(&["a.png"]);
    folder.ok(&[".", "--style", "booru", "--length", "short", "--name", "Ada", "--option", "lighting"]);
    folder.caption(&[".", "--style", "haiku"]).refused(2, &["--style haiku: expected one of descriptive,"]);
    folder.caption(&[".", "--style", "booru", "--length", "tall"]).refused(2, &["--length tall"]);
    folder.caption(&[".", "--style", "booru", "--prompt", "x"]).refused(2, &["--prompt"]);
    // Tags are joined as tags are.
    folder.write("a.txt", "one, two");
    folder.ok(&[".", "--style", "booru", "--sidecar", "txt", "--existing", "append", "--prepend", "three "]);
    assert!(folder.text("a.txt").starts_with("one, two, three "), "{}", folder.text("a.txt"));
}

#[test]
fn text_around_captions() {
    let folder = Folder::new(&["a.png"]);
    folder.ok(&["."]);
    let bare = folder.caption_of("a.png");
    folder.ok(&[".", "--prepend", "a photo: ", "--append", "\nend", "--existing", "overwrite", "--sidecar", "txt"]);
    assert_eq!(folder.caption_of("a.png"), format!("a photo: {bare}\nend"));
    assert!(folder.text("a.txt").ends_with(" end\n") && folder.text("a.txt").lines().count() == 1);
}

#[test]
fn mistakes_are_told_before_the_model_is_loaded() {
    let folder = Folder::new(&["a.png"]);
    folder.caption(&[]).refused(2, &["expected a folder, files or --filelist"]);
    folder.caption(&["nowhere"]).refused(2, &["nowhere: no such file or folder"]);
    folder.caption(&["--filelist", "nowhere"]).refused(2, &["--filelist nowhere"]);
    folder.caption(&[".", "--temperature", "-1"]).refused(2, &["temperature"]);
    folder.write("other.jsonl", "{\"id\": 1}\n");
    folder.caption(&[".", "--out", "other.jsonl"]).refused(7, &["other.jsonl: line 1: expected", "--out"]);
    assert_eq!(folder.text("other.jsonl"), "{\"id\": 1}\n");
    let nothing = Folder::new(&[]);
    nothing.write("notes.txt", "x");
    let said = nothing.ok(&["."]);
    assert!(said.contains("0 files in ") && said.contains("other files in the folders: "), "{said}");
}
