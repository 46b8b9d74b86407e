//! A whole request on a full-size checkpoint: stages, memory, and how much of the memory's speed decoding reaches.
//!
//! In: `cargo bench --bench model -- DIR IMAGE [TOKENS]`. Out: a table on stdout. The read bandwidth is measured
//! before and after, over mapped memory, with all threads; the weights that a token reads are those of the decoder
//! graph less the embedding table. Not here: comparisons with other programs (`tools/golden/torch_baseline.py`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use engine::input::message::Message;
use engine::models::{self, Configs};
use engine::run::engine::{Device, Engine, EngineOptions};
use engine::run::executor::{ExecutorOptions, buckets};
use engine::run::request::{ImageInput, Prompt, Request};
use rayon::prelude::*;

fn main() {
    // cargo adds --bench.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [dir, image, rest @ ..] = args.as_slice() else {
        println!("usage: cargo bench --bench model -- DIR IMAGE [TOKENS]");
        return;
    };
    let tokens: usize = rest.first().map_or(16, |t| t.parse().expect("TOKENS is a number"));
    let before = read_bandwidth();

    let (peak, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let watch = {
        let (peak, done) = (peak.clone(), done.clone());
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(anonymous_kib(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(50));
            }
        })
    };
    let start = Instant::now();
    let options = EngineOptions { model: dir.clone(), device: Device::Cpu, ..EngineOptions::default() };
    let engine = Engine::open(options).expect("the checkpoint opens");
    let load_s = start.elapsed().as_secs_f64();
    let prompt = Prompt::Messages(vec![Message::user(1, "What is in this picture?".to_string())]);
    let mut request = Request::new(prompt, vec![ImageInput::Source(image.clone())]);
    request.sampling.max_tokens = Some(tokens);
    request.sampling.ignore_eos = true;
    let start = Instant::now();
    let answer = engine.submit(&request).expect("a valid request").answer().expect("an answer");
    let total_s = start.elapsed().as_secs_f64();
    done.store(true, Ordering::Relaxed);
    watch.join().expect("the watching thread");
    let after = read_bandwidth();

    let t = &answer.timings;
    let steps = (answer.token_ids.len() - 1) as f64;
    let bytes = token_bytes(std::path::Path::new(dir)) as f64;
    let rate = bytes * steps / t.decode_s;
    let bandwidth = before.max(after);
    println!("| what | value |\n|---|---|");
    println!("| prompt tokens, of them image | {}, {} |", answer.prompt_token_ids.len(), answer.image_tokens);
    println!("| new tokens | {} |", answer.token_ids.len());
    println!("| open | {load_s:.2} s |");
    println!("| image decode and preprocess | {:.3} s |", t.image_s);
    println!("| encode and prefill, to the first token | {:.2} s |", t.prefill_s);
    println!("| decode | {:.3} s a token, {:.2} tokens/s |", t.decode_s / steps, steps / t.decode_s);
    println!("| whole request | {total_s:.2} s |");
    println!("| weights read a token | {:.3} GB |", bytes / 1e9);
    println!("| decode reads | {:.2} GB/s |", rate / 1e9);
    println!("| read bandwidth before, after | {:.2}, {:.2} GB/s |", before / 1e9, after / 1e9);
    println!("| decode over the better bandwidth | {:.0} % |", 100.0 * rate / bandwidth);
    println!("| peak anonymous memory | {:.0} MiB |", peak.load(Ordering::Relaxed) as f64 / 1024.0);
}

/// Bytes of weights that one decode step reads.
fn token_bytes(dir: &std::path::Path) -> u64 {
    let family = models::open(&Configs::read(dir).expect("configs")).expect("a family");
    let checkpoint = engine::checkpoint::Checkpoint::open(dir, |n| family.rename(n)).expect("a checkpoint");
    let sizes = ExecutorOptions {
        max_num_seqs: 1,
        max_num_batched_tokens: 1,
        max_blocks: 1,
        num_pages: 1,
        slab_rows: 1,
        max_patches: 1,
        probing: None,
        dtype: None,
    };
    let [_, (decoder, _)] = buckets(&*family, &sizes).expect("graphs");
    let read = decoder.weights.iter().filter(|w| !w.name.contains("embed_tokens"));
    read.map(|w| checkpoint.tensors().find(|t| t.name == w.name).map_or(0, |t| t.bytes as u64)).sum()
}

/// Bytes a second that all threads read together from 2 GiB of memory; the best of five.
fn read_bandwidth() -> f64 {
    let words = vec![1u64; 1 << 28];
    let part = words.len().div_ceil(rayon::current_num_threads());
    let pass = || {
        let start = Instant::now();
        let sum: u64 = words.par_chunks(part).map(|p| p.iter().fold(0u64, |a, w| a.wrapping_add(*w))).sum();
        assert_eq!(std::hint::black_box(sum), 1 << 28);
        size_of_val(&words[..]) as f64 / start.elapsed().as_secs_f64()
    };
    (0..5).map(|_| pass()).fold(0.0, f64::max)
}

/// Anonymous memory of this process now; the kernel keeps no peak of it.
fn anonymous_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
