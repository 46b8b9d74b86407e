//! What a checkpoint holds and what it needs: tensors by part, bytes, memory at given lengths.
//!
//! In: a model directory. Out: text or JSON. Nothing is loaded.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::backend::cuda::CudaBackend;
use crate::checkpoint::Checkpoint;
use crate::graph::fuse::Fusion;
use crate::graph::{Layout, Sizes, Sym};
use crate::models::{self, Configs};
use crate::run::executor::{ExecutorOptions, buckets, compiled_plan};
use crate::{Error, Result};

/// The summary of one checkpoint.
pub struct Summary {
    pub value: Value,
}

/// Reads headers and configs of `dir`; `free_bytes` is the memory to fit into.
pub fn summarise(dir: &Path, free_bytes: u64) -> Result<Summary> {
    let configs = Configs::read(dir)?;
    let family = models::open(&configs)?;
    let checkpoint = Checkpoint::open(dir, |n| family.rename(n))?;
    let limits = family.limits();
    let (tile_patches, tile_rows) = family.largest_tile();
    let tokens = 512;
    let options = ExecutorOptions {
        max_num_seqs: 1,
        max_num_batched_tokens: tokens,
        max_blocks: 1,
        num_pages: 1,
        slab_rows: tile_rows,
        max_patches: tile_patches,
        probing: None,
        dtype: None,
    };
    let [(encoder, eb), (decoder, db)] = buckets(&*family, &options)?;

    // Parts: the first two levels of the names that the graphs ask for.
    let mut parts: BTreeMap<String, (usize, u64, u64)> = BTreeMap::new();
    let mut dtypes: BTreeMap<&str, u64> = BTreeMap::new();
    for t in checkpoint.tensors() {
        let part = t.name.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
        let row = parts.entry(part).or_default();
        row.0 += 1;
        row.1 += t.shape.iter().product::<usize>() as u64;
        row.2 += t.bytes as u64;
        *dtypes.entry(t.dtype.name()).or_default() += t.bytes as u64;
    }
    let mut missing = Vec::new();
    let mut wanted = std::collections::HashSet::new();
    for w in encoder.weights.iter().chain(&decoder.weights) {
        wanted.insert(w.name.as_str());
        match checkpoint.shape(&w.name) {
            None => missing.push(w.name.clone()),
            Some(s) if s != w.shape.as_slice() => {
                return Err(Error::Checkpoint(format!("{}: expected {:?}, got {s:?}", w.name, w.shape)));
            }
            Some(_) => {}
        }
    }
    let unused: Vec<&str> = checkpoint.tensors().map(|t| t.name).filter(|n| !wanted.contains(n)).collect();
    let weight_bytes: u64 = parts.values().map(|p| p.2).sum();
    let kv_bytes_per_token = (limits.kv_elements * limits.num_layers * 4) as u64;
    let (ec, dc) =
        (encoder.cost(&eb), decoder.cost(&db.with(Sym::Tokens, 1).with(Sym::Seqs, 1).with(Sym::LogitRows, 1)));
    let encoder_plan = compiled_plan(encoder, eb, Layout::HOST, Fusion::Passes, None)?;
    let decoder_plan = compiled_plan(decoder, db, Layout::HOST, Fusion::Passes, None)?;
    let workspace = (encoder_plan.arena_bytes + decoder_plan.arena_bytes) as u64;
    let fits_tokens = free_bytes.saturating_sub(weight_bytes + workspace) / kv_bytes_per_token.max(1);

    let value = json!({
        "family": family.name(),
        "directory": dir.display().to_string(),
        "files": checkpoint.files().len(),
        "parameters": parts.values().map(|p| p.1).sum::<u64>(),
        "weight_bytes": weight_bytes,
        "dtypes": dtypes,
        "parts": parts.iter().map(|(n, p)| json!({"name": n, "tensors": p.0, "parameters": p.1, "bytes": p.2})).collect::<Vec<_>>(),
        "missing": missing,
        "unused": unused,
        "text": {
            "vocab_size": limits.vocab_size, "hidden_size": limits.hidden_size, "num_hidden_layers": limits.num_layers,
            "max_position_embeddings": limits.max_positions, "kv_bytes_per_token": kv_bytes_per_token,
        },
        "image": {
            "largest_tile_patches": tile_patches, "tokens_per_tile": tile_rows, "encoder_flops_of_largest_tile": ec.flops,
        },
        "decode_flops_per_token": dc.flops,
        "workspace_bytes": workspace,
        "free_bytes": free_bytes,
        "kv_tokens_that_fit": fits_tokens,
    });
    Ok(Summary { value })
}

/// The plans of both graphs as text: `build`, `fuse` or `plan`, as a GPU or the CPU has them.
pub fn dump_graphs(dir: &Path, stage: &str, gpu: bool) -> Result<String> {
    let (layout, fusion) = match gpu {
        true => (CudaBackend::LAYOUT, CudaBackend::FUSION),
        false => (Layout::HOST, Fusion::Passes),
    };
    let configs = Configs::read(dir)?;
    let family = models::open(&configs)?;
    let (patches, rows) = family.largest_tile();
    let options = ExecutorOptions {
        max_num_seqs: 1,
        max_num_batched_tokens: 512,
        max_blocks: 1,
        num_pages: 1,
        slab_rows: rows,
        max_patches: patches,
        probing: None,
        dtype: None,
    };
    let text = |graph: crate::graph::Graph, sizes: Sizes| -> Result<String> {
        Ok(match stage {
            "build" => graph.to_string(),
            "fuse" => crate::graph::fuse::fuse(&graph, fusion)?.to_string(),
            _ => compiled_plan(graph, sizes, layout, fusion, None)?.to_string(),
        })
    };
    buckets(&*family, &options)?.into_iter().map(|(g, s)| text(g, s)).collect()
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let v = &self.value;
        let n = |k: &str| v[k].as_u64().unwrap_or(0);
        writeln!(f, "family        {}", v["family"].as_str().unwrap_or_default())?;
        writeln!(f, "directory     {}", v["directory"].as_str().unwrap_or_default())?;
        writeln!(f, "parameters    {} in {} files, {}", n("parameters"), n("files"), bytes(n("weight_bytes")))?;
        let dtypes: Vec<String> = v["dtypes"]
            .as_object()
            .map(|o| o.iter().map(|(k, b)| format!("{k} {}", bytes(b.as_u64().unwrap_or(0)))).collect())
            .unwrap_or_default();
        writeln!(f, "stored as     {}", dtypes.join(", "))?;
        writeln!(f, "\n{:<40} {:>8} {:>16} {:>12}", "part", "tensors", "parameters", "bytes")?;
        for p in v["parts"].as_array().into_iter().flatten() {
            let n = |k: &str| p[k].as_u64().unwrap_or(0);
            writeln!(
                f,
                "{:<40} {:>8} {:>16} {:>12}",
                p["name"].as_str().unwrap_or_default(),
                n("tensors"),
                n("parameters"),
                bytes(n("bytes"))
            )?;
        }
        for key in ["missing", "unused"] {
            let list: Vec<&str> = v[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            if !list.is_empty() {
                writeln!(f, "{key:<13} {}", list.join(", "))?;
            }
        }
        let t = &v["text"];
        let of = |o: &Value, k: &str| o[k].as_u64().unwrap_or(0);
        writeln!(
            f,
            "\ntext          {} layers of {}, vocabulary {}, {} positions",
            of(t, "num_hidden_layers"),
            of(t, "hidden_size"),
            of(t, "vocab_size"),
            of(t, "max_position_embeddings")
        )?;
        writeln!(
            f,
            "image         {} tokens a tile of at most {} patches, {:.2} TFLOP",
            of(&v["image"], "tokens_per_tile"),
            of(&v["image"], "largest_tile_patches"),
            of(&v["image"], "encoder_flops_of_largest_tile") as f64 / 1e12
        )?;
        writeln!(f, "decode        {:.2} GFLOP a token", n("decode_flops_per_token") as f64 / 1e9)?;
        writeln!(
            f,
            "memory        weights {}, workspace {}, KV cache {} a token",
            bytes(n("weight_bytes")),
            bytes(n("workspace_bytes")),
            bytes(of(t, "kv_bytes_per_token"))
        )?;
        let tokens = n("kv_tokens_that_fit");
        let positions = of(t, "max_position_embeddings").max(1);
        match tokens {
            0 => write!(f, "fits          no: {} free", bytes(n("free_bytes"))),
            _ => write!(
                f,
                "fits          {} free: {} tokens of KV cache, {} sequences of full length",
                bytes(n("free_bytes")),
                tokens,
                tokens / positions
            ),
        }
    }
}

/// Bytes for people.
pub fn bytes(n: u64) -> String {
    let (mut x, mut unit) = (n as f64, "B");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if x < 1024.0 {
            break;
        }
        (x, unit) = (x / 1024.0, next);
    }
    if unit == "B" { format!("{n} B") } else { format!("{x:.1} {unit}") }
}
