//! Damaged and malicious checkpoint files: each is refused in one line with the right exit code, and no input
//! whatever panics or hands out bytes that are not the file's.

use std::collections::BTreeMap;
use std::path::Path;

use engine::checkpoint::config::{ConfigFile, read_image_processor};
use engine::checkpoint::{Checkpoint, GenerationConfig, RopeParameters, SafetensorsFile, safetensors};
use engine::tensor::HostTensor;
use engine::{Error, Result};

fn header(json: &str, body: usize) -> Vec<u8> {
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(json.as_bytes());
    file.resize(file.len() + body, 0);
    file
}

fn two_tensors() -> Vec<(String, HostTensor)> {
    let floats = |shape: &[usize]| HostTensor::from_f32(shape.to_vec(), &vec![0.5; shape.iter().product()]);
    vec![
        ("model.layers.0.mlp.up_proj.weight".into(), floats(&[6, 4])),
        ("model.norm.weight".into(), floats(&[4])),
        ("lm_head.bias".into(), HostTensor::from_i32(vec![3], &[1, -2, 3])),
    ]
}

fn valid_file() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::write(&path, &two_tensors(), &metadata).unwrap();
    std::fs::read(path).unwrap()
}

fn open(dir: &Path) -> Result<Checkpoint> {
    Checkpoint::open(dir, |name| Some(name.to_string()))
}

/// The error must be one line that holds `want`, and end the program with `code`.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T>, code: u8, want: &str) {
    let error = result.expect_err(want);
    let text = error.to_string();
    assert!(text.contains(want), "{text:?} lacks {want:?}");
    assert!(!text.contains('\n') && text.len() < 600, "one line: {text}");
    assert_eq!(error.exit_code(), code, "{text}");
}

#[test]
fn damaged_weight_files_are_refused() {
    let tensor = |name: &str, dtype: &str, shape: &str, from: u64, to: u64| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let object = |entries: &[String]| format!("{{{}}}", entries.join(","));
    let good = valid_file();
    let mut lying = good.clone();
    lying[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    let mut longer = good.clone();
    longer[..8].copy_from_slice(&90_000_000u64.to_le_bytes());
    let deep = "[".repeat(100_000);
    let cases: Vec<(Vec<u8>, u8, &str)> = vec![
        (Vec::new(), 4, "got 0 bytes"),
        (b"\x02\0\0".to_vec(), 4, "got 3 bytes"),
        (good[..good.len() - 1].to_vec(), 4, "cut short or damaged"),
        (good[..40].to_vec(), 4, "cut short or damaged"),
        (lying, 4, "header length: expected at most 100000000 bytes, got 1099511627776"),
        (longer, 4, "header length: 90000000 bytes announced"),
        (
            header(&object(&[tensor("a", "F32", "[2]", 0, 8), tensor("b", "F32", "[2]", 4, 12)]), 12),
            4,
            "b: bytes overlap a",
        ),
        (
            header(&object(&[tensor("a", "F32", "[2]", 0, 8), tensor("b", "F32", "[2]", 0, 8)]), 8),
            4,
            "b: bytes overlap a",
        ),
        (header(&object(&[tensor("a", "F32", "[2]", 8, 16)]), 16), 4, "8 bytes between the header and a"),
        (header(&object(&[tensor("a", "F32", "[3]", 0, 8)]), 8), 4, "a: F32 [3] takes 12 bytes, data_offsets give 8"),
        (header(&object(&[tensor("a", "F32", "[2]", 0, 8)]), 9), 4, "1 bytes after a belong to no tensor"),
        (header(&object(&[tensor("a", "F32", "[18446744073709551615,2]", 0, 8)]), 8), 4, "too large"),
        (header(&object(&[tensor("a", "F4", "[16]", 0, 8)]), 8), 2, "a: dtype \"F4\""),
        (header(&object(&[tensor("a", "U8", "[1]", 0, 1), tensor("a", "U8", "[1]", 1, 2)]), 2), 4, "a is there twice"),
        (header(&format!(r#"{{"a":{deep}"#), 0), 4, "header: "),
        (header("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}", 4), 4, "header: EOF"),
        (header("\0\0\0\0", 0), 4, "begins with '{'"),
        (b"<html><body>Access denied</body></html>".to_vec(), 4, "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n".to_vec(), 4, "git lfs pull"),
        (b"PK\x03\x04archive/data.pkl........".to_vec(), 4, "a zip archive"),
    ];
    for (bytes, code, want) in cases {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        refused(open(dir.path()), code, want);
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("model.safetensors")).unwrap();
    refused(open(dir.path()), 4, "expected a regular file");
}

#[test]
fn wrong_sets_of_shards_are_refused() {
    let single = |name: &str| vec![(name.to_string(), HostTensor::from_f32(vec![1], &[1.0]))];
    let build = |index: &str, shards: &[(&str, &str)]| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
        for (file, tensor) in shards {
            safetensors::write(&dir.path().join(file), &single(tensor), &BTreeMap::new()).unwrap();
        }
        dir
    };
    let map = |m: &str| format!(r#"{{"metadata":{{"total_size":8}},"weight_map":{m}}}"#);
    let both = map(r#"{"a":"s-1.safetensors","b":"s-2.safetensors"}"#);
    /// Index, (file, tensor) of each shard, what the refusal says.
    type Case<'a> = (String, Vec<(&'a str, &'a str)>, &'a str);
    let cases: Vec<Case> = vec![
        (both.clone(), vec![("s-1.safetensors", "a")], "s-2.safetensors: shard 2 of 2 is missing"),
        (both.clone(), vec![("s-1.safetensors", "a"), ("s-2.safetensors", "a")], "a: is in two files"),
        (
            both.clone(),
            vec![("s-1.safetensors", "a"), ("s-2.safetensors", "c")],
            "b: model.safetensors.index.json places it in s-2.safetensors, it is in no file",
        ),
        (both.clone(), vec![("s-1.safetensors", "b"), ("s-2.safetensors", "a")], "it is in s-2.safetensors"),
        (map(r#"{"a":"../s.safetensors"}"#), vec![], "got \"../s.safetensors\""),
        (map(r#"{"a":"/etc/x.safetensors"}"#), vec![], "got \"/etc/x.safetensors\""),
        (map(r#"{"a":"C:\\x.safetensors"}"#), vec![], "expected the name of a .safetensors file"),
        (map(r#"{"a":"pytorch_model.bin"}"#), vec![], "got \"pytorch_model.bin\""),
        (map(r#"{"a":"x.safetensors","a":"y.safetensors"}"#), vec![], "a is there twice"),
        (map("{}"), vec![], "expected tensors, got none"),
        (map("[]"), vec![], "expected an object of file names"),
        (map(r#"{"a":7}"#), vec![], "weight_map: a: "),
        ("{}".into(), vec![], "missing field `weight_map`"),
        (String::new(), vec![], "the file is empty"),
        ("<!DOCTYPE html>".into(), vec![], "an HTML or XML page"),
    ];
    for (index, shards, want) in cases {
        let dir = build(&index, &shards);
        refused(open(dir.path()), 4, want);
    }
}

#[test]
fn tensors_of_the_wrong_shape_or_name_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model.safetensors"), valid_file()).unwrap();
    let checkpoint = open(dir.path()).unwrap();
    refused(
        checkpoint.get("model.layers.0.mlp.up_proj.weight", &[6, 5]),
        4,
        "checkpoint: model.layers.0.mlp.up_proj.weight: expected [6, 5], got [6, 4] (file 1 of 1)",
    );
    refused(checkpoint.get("model.layers.0.mlp.up_proj.weight", &[24]), 4, "expected [24], got [6, 4]");
    refused(checkpoint.get("model.norm.weigth", &[4]), 4, "nearest is model.norm.weight");
}

#[test]
fn damaged_settings_are_refused() {
    let text_size = |f: &ConfigFile| f.root().section("text_config").and_then(|t| t.size("hidden_size")).map(drop);
    let rope = |f: &ConfigFile| RopeParameters::read(&f.root(), 1e4).map(drop);
    let generation = |f: &ConfigFile| GenerationConfig::from_files(Some(f), f).map(drop);
    type Read = fn(&ConfigFile) -> Result<()>;
    let read: [Read; 3] = [text_size, rope, generation];
    let cases: &[(&str, usize, &str)] = &[
        ("{\"text_config\": {\"hidden_size\": NaN}}", 0, "hidden_size: expected a number, got NaN (line 1)"),
        ("{\"a\": \"\\\"NaN\",\n\"x\": -Infinity}", 0, "x: expected a number, got -Infinity (line 2)"),
        ("{\"text_config\": {\"hidden_size\": 0}}", 0, "text_config.hidden_size: expected a whole number from 1"),
        ("{\"text_config\": {\"hidden_size\": -4096}}", 0, "got -4096"),
        ("{\"text_config\": {\"hidden_size\": 99999999999999999999}}", 0, "text_config.hidden_size"),
        ("{\"text_config\": {\"hidden_size\": \"4096\"}}", 0, "got \"4096\""),
        ("{\"text_config\": 5}", 0, "text_config: expected an object, got 5"),
        ("{\"text_config\": {", 0, "EOF"),
        ("", 0, "the file is empty"),
        ("null", 0, "expected an object, got null"),
        ("{\"rope_theta\": 1e400}", 1, "number out of range"),
        ("{\"rope_theta\": -1}", 1, "rope_theta: expected a number above 0, got -1"),
        ("{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 0}}", 1, "rope_scaling.factor"),
        ("{\"eos_token_id\": [2, -7]}", 2, "eos_token_id"),
        ("{\"top_p\": 7}", 2, "top_p: expected a number above 0 and at most 1, got 7"),
        ("{\"bad_words_ids\": [3]}", 2, "bad_words_ids"),
    ];
    for (text, which, want) in cases {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        refused(ConfigFile::read(&path).and_then(|f| read[*which](&f)), 4, want);
    }
    let deep = format!("{{\"a\": {}", "[".repeat(200_000));
    refused(ConfigFile::parse("config.json", deep.as_bytes()), 4, "recursion limit");
    refused(ConfigFile::parse("config.json", b"{\"a\": \"\xff\"}"), 4, "config.json: ");
    refused(ConfigFile::read(Path::new("/nonexistent/config.json")), 4, "/nonexistent/config.json");
}

/// A small deterministic generator (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Flips, overwrites, cuts, repeats and splices in words that parsers stumble over.
fn mutate(input: &[u8], random: &mut Random) -> Vec<u8> {
    const WORDS: &[&str] = &[
        "-1",
        "0",
        "18446744073709551615",
        "9223372036854775808",
        "1e999",
        "NaN",
        "null",
        "[]",
        "{}",
        "\"",
        "[",
        "}",
        ",",
        ":",
        "\\u0000",
        "\\ud800",
        "[0,0]",
        "\"F32\"",
        "\"F64\"",
        "true",
        "0.5",
        "__metadata__",
        "\u{feff}",
        "data_offsets",
    ];
    let mut out = input.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(out.len());
        match random.below(7) {
            0 if !out.is_empty() => out[at] ^= 1 << random.below(8),
            1 if !out.is_empty() => out[at] = random.next() as u8,
            2 => out.truncate(at),
            3 => {
                let end = at + random.below(out.len() - at);
                out.drain(at..end);
            }
            4 => {
                let end = at + random.below((out.len() - at).min(40));
                let piece = out[at..end].to_vec();
                out.splice(at..at, piece);
            }
            5 => {
                let word = WORDS[random.below(WORDS.len())].bytes();
                let end = at + random.below((out.len() - at).min(8));
                out.splice(at..end, word);
            }
            // A digit for a digit keeps the syntax and changes a length, an offset or a shape.
            _ => {
                if let Some(d) = (at..out.len()).find(|&i| out[i].is_ascii_digit()) {
                    out[d] = b'0' + random.below(10) as u8;
                }
            }
        }
    }
    out
}

#[test]
fn no_mutation_of_a_weight_file_panics_or_reaches_outside() {
    let good = valid_file();
    let header_bytes = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let mut random = Random(0x5EED_0001);
    let (mut accepted, mut refused) = (0, 0);
    for round in 0..1500 {
        let mut bytes = mutate(&good, &mut random);
        if round % 2 == 0 && bytes.len() >= 8 {
            // The length fits again, so that the JSON behind it is reached.
            let body = good.len() - 8 - header_bytes;
            let header = bytes.len().saturating_sub(8 + body) as u64;
            bytes[..8].copy_from_slice(&header.to_le_bytes());
        }
        std::fs::write(&path, &bytes).unwrap();
        match SafetensorsFile::open(&path) {
            Err(Error::Checkpoint(text) | Error::Unsupported(text)) => {
                assert!(!text.is_empty());
                refused += 1;
            }
            Err(other) => panic!("{other}"),
            Ok(file) => {
                accepted += 1;
                let mut total = 0;
                for (name, info) in file.tensors() {
                    let tensor = file.tensor(name).unwrap();
                    assert_eq!(tensor.bytes().len(), info.bytes);
                    assert_eq!(tensor.bytes(), &bytes[info.offset..info.offset + info.bytes]);
                    assert_eq!(tensor.len() * info.dtype.size(), info.bytes);
                    total += info.bytes;
                }
                assert!(total <= bytes.len() - 8);
            }
        }
    }
    assert!(accepted > 25 && refused > 250, "both outcomes are reached: {accepted} accepted, {refused} refused");
}

#[test]
fn no_mutation_of_settings_panics() {
    let config = br#"{"model_type": "x", "torch_dtype": "bfloat16", "eos_token_id": [2, 32002], "bos_token_id": 1,
        "text_config": {"hidden_size": 4096, "rope_theta": 10000.0, "max_position_embeddings": 32768, "num_beams": 3,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
        "bad_words_ids": [[32000], [32001]], "top_p": 0.9, "temperature": 0.6, "early_stopping": "never",
        "image_processor": {"size": {"longest_edge": 980}, "image_mean": [0.5, 0.5, 0.5]}}"#;
    let index = br#"{"metadata": {"total_size": 8}, "weight_map": {"a": "s-1.safetensors", "b": "s-2.safetensors"}}"#;
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(0x5EED_0002);
    let (mut parsed, mut refused) = (0, 0);
    for round in 0..3000 {
        let text = mutate(config, &mut random);
        let Ok(file) = ConfigFile::parse("config.json", &text) else {
            refused += 1;
            continue;
        };
        parsed += 1;
        let root = file.root();
        let text_config = root.section("text_config");
        for section in text_config.iter().chain([&root]) {
            for key in section.keys() {
                let _ = (section.size(key), section.count_if_present(key), section.counts_if_present(key));
                let _ = (section.positive(key), section.numbers_if_present(key), section.flag_if_present(key));
                let _ = (section.text_if_present(key), section.section(key).map(drop), section.dtype());
            }
            if let Ok(rope) = RopeParameters::read(section, 1e4) {
                assert!(rope.rope_theta.is_finite() && rope.rope_theta > 0.0);
                assert!(rope.partial_rotary_factor > 0.0 && rope.partial_rotary_factor <= 1.0);
            }
        }
        if let Ok(generation) = GenerationConfig::from_files(Some(&file), &file) {
            assert!(generation.top_p.is_none_or(|p| p > 0.0 && p <= 1.0));
            assert!(generation.num_beams != Some(0) && generation.bad_words_ids.iter().all(|w| !w.is_empty()));
        }
        if round % 10 > 0 {
            continue;
        }
        std::fs::write(dir.path().join("processor_config.json"), &text).unwrap();
        let _ = read_image_processor(dir.path()).map(|f| f.map(|f| f.root().size("size").is_ok()));
    }
    assert!(parsed > 200 && refused > 200, "both outcomes are reached: {parsed} parsed, {refused} refused");
    for _ in 0..300 {
        std::fs::write(dir.path().join("model.safetensors.index.json"), mutate(index, &mut random)).unwrap();
        let error = open(dir.path()).expect_err("no shard is there");
        assert!(matches!(error, Error::Checkpoint(_)), "{error}");
    }
}
