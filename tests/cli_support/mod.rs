//! The real binary, run as a user runs it.
//!
//! In: arguments, standard input, environment. Out: exit code, stdout, stderr; damaged copies of the tiny checkpoint.
//! Not here: what any command must answer.
#![allow(dead_code, reason = "each test program uses a part")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

/// `tests/data`.
pub fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

/// A path below `tests/data` as an argument.
pub fn path(name: &str) -> String {
    data().join(name).display().to_string()
}

/// A golden case as a line of a file of requests, with so many log-probabilities: its own fields, paths made absolute.
pub fn golden_line(case: &Value, logprobs: usize) -> Value {
    let mut o = json!({"id": case["name"], "max_tokens": case["max_tokens"], "logprobs": logprobs});
    for key in ["prompt", "images", "messages", "raw", "system"] {
        if !case[key].is_null() {
            o[key] = case[key].clone();
        }
    }
    let absolute = |v: &mut Value| *v = json!(path(v.as_str().expect("a path")));
    o.get_mut("images").and_then(Value::as_array_mut).into_iter().flatten().for_each(absolute);
    for turn in o.get_mut("messages").and_then(Value::as_array_mut).into_iter().flatten() {
        for part in turn["content"].as_array_mut().into_iter().flatten() {
            part.get_mut("path").into_iter().for_each(absolute);
        }
    }
    o
}

pub fn model() -> String {
    path("idefics2-tiny")
}

/// The binary with nothing of the caller's environment that it reads.
pub fn engine() -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_engine"));
    c.env_clear().env("HF_HUB_OFFLINE", "1").env("HF_HOME", "/nonexistent-hub").env("ENGINE_THREADS", "2");
    c
}

/// What a run left.
#[derive(Debug)]
pub struct Output {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a command with `stdin` as its standard input.
pub fn finish(mut command: Command, stdin: &[u8]) -> Output {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("the binary starts");
    let mut input = child.stdin.take().expect("piped");
    let stdin = stdin.to_vec();
    // A child that does not read its input closes the pipe; that is no fault here.
    let writer = std::thread::spawn(move || drop(input.write_all(&stdin)));
    let out = child.wait_with_output().expect("the binary ends");
    writer.join().expect("the writer");
    let text = |b: Vec<u8>| String::from_utf8(b).expect("UTF-8");
    Output { code: out.status.code(), stdout: text(out.stdout), stderr: text(out.stderr) }
}

/// `engine ARGS`.
pub fn engine_with(args: &[&str]) -> Output {
    let mut c = engine();
    c.args(args);
    finish(c, b"")
}

/// `engine run --model MODEL -n 1 ARGS`.
pub fn run_model(model: &str, args: &[&str]) -> Output {
    engine_with(&[&["run", "--model", model, "-n", "1"], args].concat())
}

impl Output {
    /// The run ended with `code`, said why in one `error:` line that holds every one of `words`, and did not panic.
    #[track_caller]
    pub fn refused(&self, code: i32, words: &[&str]) {
        let errors: Vec<&str> = self.stderr.lines().filter(|l| l.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "one error line: {self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in {:?}", self.stderr);
        }
    }

    /// The run ended well and said nothing on stderr.
    #[track_caller]
    pub fn ok(self) -> Output {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{self:?}");
        self
    }

    /// The one JSON object of stdout.
    #[track_caller]
    pub fn json(&self) -> Value {
        let values = self.json_lines();
        assert_eq!(values.len(), 1, "{self:?}");
        values.into_iter().next().expect("one")
    }

    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        let parse = |l: &str| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l:?}"));
        self.stdout.lines().map(parse).collect()
    }
}

/// A copy of the tiny checkpoint, to be damaged.
pub struct Copy {
    pub dir: TempDir,
}

impl Copy {
    pub fn new() -> Copy {
        let dir = tempfile::tempdir().expect("a directory");
        for entry in std::fs::read_dir(model()).expect("the checkpoint") {
            let entry = entry.expect("a file");
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("copied");
        }
        Copy { dir }
    }

    pub fn path(&self) -> &str {
        self.dir.path().to_str().expect("UTF-8")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.file(name)).expect("a file of the checkpoint")
    }

    pub fn write(self, name: &str, bytes: impl AsRef<[u8]>) -> Copy {
        std::fs::write(self.file(name), bytes).expect("written");
        self
    }

    pub fn remove(self, name: &str) -> Copy {
        std::fs::remove_file(self.file(name)).expect("removed");
        self
    }

    /// Replaces text that must be in the file.
    pub fn replace(self, name: &str, old: &str, new: &str) -> Copy {
        let text = String::from_utf8(self.read(name)).expect("UTF-8");
        assert!(text.contains(old), "{old:?} is not in {name}");
        let text = text.replacen(old, new, 1);
        self.write(name, text)
    }

    /// Changes the header of the weights.
    pub fn header(self, change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Copy {
        let file = self.read("model.safetensors");
        let len = u64::from_le_bytes(file[..8].try_into().expect("8 bytes")) as usize;
        let mut header: serde_json::Map<String, Value> = serde_json::from_slice(&file[8..8 + len]).expect("JSON");
        change(&mut header);
        let text = serde_json::to_vec(&header).expect("JSON");
        let file = [&(text.len() as u64).to_le_bytes()[..], &text, &file[8 + len..]].concat();
        self.write("model.safetensors", file)
    }
}

/// An RGB PNG of one colour; `told` are the sides that its header announces.
pub fn png(told: (u32, u32), width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let pixels: Vec<u8> = [64u8, 128, 192].repeat((width * height) as usize);
    encoder.write_header().expect("a header").write_image_data(&pixels).expect("pixels");
    // Signature 8, length 4, "IHDR" 4, then width and height; the chunk ends at 29, its checksum follows.
    bytes[16..20].copy_from_slice(&told.0.to_be_bytes());
    bytes[20..24].copy_from_slice(&told.1.to_be_bytes());
    let crc = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// The checksum of PNG (ISO 3309), bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |c: u32, _| if c & 1 == 1 { 0xEDB8_8320 ^ (c >> 1) } else { c >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, b| (0..8).fold(crc ^ u32::from(*b), step))
}
