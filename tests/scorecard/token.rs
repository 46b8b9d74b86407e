//! What one token of a decoder costs: launches and bytes of device memory, counted by the software GPU on the program
//! itself, `engine run`, with a checkpoint of zeros as wide as a small language model.
//!
//! In: the tiny Idefics2's files. Out: a [`Token`]. Not here: what is too much (`card.rs`).

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

use serde_json::{Value, json};

use super::card::Token;
use crate::cli_support::{data, engine, finish};

/// Sizes of the tiny text model, each once, and those that take their place: hidden, inner, all query heads, all key
/// heads, four times hidden.
const SIZES: [(u64, u64); 5] = [(48, 1024), (100, 3584), (56, 1024), (28, 256), (192, 4096)];
const HEADS: [(&str, u64); 5] = [
    ("hidden_size", 1024),
    ("intermediate_size", 3584),
    ("num_attention_heads", 8),
    ("num_key_value_heads", 2),
    ("head_dim", 128),
];
/// Tokens of the longer run beyond those of the shorter one.
const STEPS: u64 = 6;

/// Errors: what cannot be written, run or read.
pub fn token() -> Result<Token, String> {
    const LAYERS: u64 = 3;
    let (one, _) = of_layers(1)?;
    let (all, bytes) = of_layers(LAYERS)?;
    let each = (all - one) / (LAYERS - 1);
    Ok(Token { launches_a_layer: each, launches_beside: all - LAYERS * each, bytes: (bytes * 1e4).round() / 1e4 })
}

/// Launches of a token, and its bytes over those of the weights.
fn of_layers(layers: u64) -> Result<(u64, f64), String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let weights = checkpoint(folder.path(), layers).map_err(|e| e.to_string())?;
    let [short, long] = [2, 2 + STEPS].map(|n| run(folder.path(), n));
    let ((launches, bytes), (launches_before, bytes_before)) = (long?, short?);
    let bytes = (bytes - bytes_before) as f64 / STEPS as f64;
    Ok(((launches - launches_before) / STEPS, bytes / weights as f64))
}

/// The tiny checkpoint with a wider text model of so many layers, at most as many as it has, all of zeros. Gives the bytes
/// of the layers and of lm_head in bf16: what must be read for a token. The few kilobytes of keys and values are not
/// counted, so they are in the ratio.
fn checkpoint(folder: &Path, layers: u64) -> std::io::Result<u64> {
    let tiny = data().join("idefics2-tiny");
    for entry in std::fs::read_dir(&tiny)? {
        let entry = entry?;
        std::fs::copy(entry.path(), folder.join(entry.file_name()))?;
    }
    let mut config: Value = serde_json::from_slice(&std::fs::read(tiny.join("config.json"))?)?;
    for (key, size) in HEADS {
        config["text_config"][key] = json!(size);
    }
    config["text_config"]["num_hidden_layers"] = json!(layers);
    std::fs::write(folder.join("config.json"), config.to_string())?;

    let mut file = File::open(tiny.join("model.safetensors"))?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let mut header = vec![0; u64::from_le_bytes(length) as usize];
    file.read_exact(&mut header)?;
    let mut header: Value = serde_json::from_slice(&header)?;
    let (mut at, mut bytes) = (0, 0);
    for (name, tensor) in header.as_object_mut().into_iter().flatten().filter(|(name, _)| *name != "__metadata__") {
        let shape: Vec<u64> = tensor["shape"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
        let wider = |n: u64| SIZES.iter().find(|(from, _)| *from == n).map_or(n, |(_, to)| *to);
        let shape: Vec<u64> =
            if name.contains("vision_model") { shape } else { shape.into_iter().map(wider).collect() };
        let size = 2 * shape.iter().product::<u64>();
        if name.starts_with("lm_head") || (0..layers).any(|l| name.contains(&format!("text_model.layers.{l}."))) {
            bytes += size;
        }
        *tensor = json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]});
        at += size;
    }
    let header = header.to_string();
    let mut file = File::create(folder.join("model.safetensors"))?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    // The rest is zeros that take no room.
    file.set_len(8 + header.len() as u64 + at)?;
    Ok(bytes)
}

/// Launches of a run of `tokens`, and the bytes that they touch first.
fn run(model: &Path, tokens: u64) -> Result<(u64, u64), String> {
    let report = model.join(format!("report.{tokens}.json"));
    let mut c = engine();
    c.args(["run", "--device", "cuda", "--dtype", "bf16", "--raw", "--prompt", "A cat", "--ignore-eos"]);
    c.args(["--max-num-seqs", "1", "--max-model-len", "64", "-n", &tokens.to_string(), "--model"]).arg(model);
    c.envs(["LD_LIBRARY_PATH", "LD_PRELOAD"].into_iter().filter_map(|v| Some((v, std::env::var_os(v)?))));
    c.env("SOFTGPU_REPORT", &report);
    let out = finish(c, b"");
    if out.code != Some(0) {
        return Err(out.stderr);
    }
    let text = std::fs::read(&report).map_err(|e| format!("no counters ({e}); only the software GPU writes them"))?;
    let report: Value = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    let kernels = report["kernels"].as_array().ok_or("a report without kernels")?;
    let bytes = |kernel: &Value| {
        ["unique_read_bytes", "unique_written_bytes"].iter().filter_map(|k| kernel["global"][k].as_u64()).sum::<u64>()
    };
    let launches = report["num_launches"].as_u64().ok_or("a report without launches")?;
    Ok((launches, kernels.iter().map(bytes).sum()))
}
