//! Tokens and images a second that the kernels should reach, by a stated model, beside published figures of others.
//!
//! In: sizes of models, figures of parts. Out: a table. Owns: the model's assumptions. Not here: measurements.
//!
//! A kernel takes the longer of its bytes at a reached share of the bandwidth and its operations at a reached share of
//! what mma.sync can do, plus a gap (a launch from a graph and its ramp). A step adds 15 us of host work. The shares are
//! assumptions: no GPU was at hand when they were chosen.

/// A GPU and what the model assumes of it.
struct Part {
    name: &'static str,
    /// Bytes a second, and the shares that streams of weights and of KV pages reach.
    bandwidth: f64,
    weights_share: f64,
    kv_share: f64,
    /// FLOPs a second of mma.sync on 16-bit operands.
    flops: f64,
    /// Operations a second of mma.sync on 8-bit integers.
    int8_ops: f64,
    memory: f64,
    /// Seconds between the ends of one kernel's work and the next one's start.
    gap: f64,
}

const PARTS: [Part; 3] = [
    Part {
        name: "H100 SXM",
        bandwidth: 3.35e12,
        weights_share: 0.86,
        kv_share: 0.78,
        flops: 620e12,
        int8_ops: 1247e12,
        memory: 80e9,
        gap: 2.0e-6,
    },
    Part {
        name: "A100 80GB SXM",
        bandwidth: 2.039e12,
        weights_share: 0.84,
        kv_share: 0.80,
        flops: 312e12,
        int8_ops: 624e12,
        memory: 80e9,
        gap: 2.5e-6,
    },
    Part {
        name: "RTX 4090",
        bandwidth: 1.008e12,
        weights_share: 0.91,
        kv_share: 0.85,
        flops: 165e12,
        int8_ops: 660e12,
        memory: 24e9,
        gap: 2.0e-6,
    },
];
const HOST_SECONDS: f64 = 15e-6;

#[derive(Clone, Copy, PartialEq)]
enum Storage {
    Bf16,
    Int8,
    /// Activations in int8 too, where there are more than 8 rows.
    W8a8,
    /// Groups of 128, the last layer in int8.
    Int4,
}

impl Storage {
    fn name(self) -> &'static str {
        match self {
            Storage::Bf16 => "bf16",
            Storage::Int8 => "int8",
            Storage::W8a8 => "w8a8",
            Storage::Int4 => "int4",
        }
    }

    /// Bytes a weight, scales included.
    fn bytes(self) -> f64 {
        match self {
            Storage::Bf16 => 2.0,
            Storage::Int8 | Storage::W8a8 => 1.0,
            Storage::Int4 => 0.5 + 2.0 / 128.0,
        }
    }

    /// Operations a second that products of `rows` rows reach.
    fn rate(self, part: &Part, rows: f64) -> f64 {
        match self {
            Storage::W8a8 if rows > 8.0 => 0.55 * part.int8_ops,
            Storage::Bf16 | Storage::Int8 | Storage::W8a8 => 0.70 * part.flops,
            Storage::Int4 => 0.60 * part.flops,
        }
    }
}

/// A language model, and an image's share of a caption's work.
struct Model {
    name: &'static str,
    layers: usize,
    hidden: usize,
    intermediate: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
    /// Tokens that a sequence has in its cache on average.
    context: usize,
    /// FLOPs of the vision tower and of prefill, an image; none where no caption rate is predicted.
    caption: Option<(f64, f64)>,
}

const MODELS: [Model; 3] = [
    Model {
        name: "JoyCaption, LLaVA-8B (Llama-3.1-8B)",
        layers: 32,
        hidden: 4096,
        intermediate: 14336,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        vocab: 128256,
        context: 853,
        caption: Some((0.67e12, 11.2e12)),
    },
    Model {
        name: "Idefics2-8b (Mistral-7B), 5 crops",
        layers: 32,
        hidden: 4096,
        intermediate: 14336,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        vocab: 32003,
        context: 424,
        caption: Some((7.7e12, 5.1e12)),
    },
    Model {
        name: "Qwen2-VL-7B",
        layers: 28,
        hidden: 3584,
        intermediate: 18944,
        heads: 28,
        kv_heads: 4,
        head_dim: 128,
        vocab: 152064,
        context: 640,
        caption: None,
    },
];

/// Tokens a second of decoding; none where weights and cache leave no room.
fn rate(part: &Part, model: &Model, storage: Storage, batch: usize) -> Option<f64> {
    let kv_width = model.kv_heads * model.head_dim;
    let layer = model.hidden * (2 * model.heads * model.head_dim + 2 * kv_width + 3 * model.intermediate);
    let weights = (model.layers * layer) as f64 * storage.bytes() + 2.0 * (2 * model.vocab * model.hidden) as f64;
    let cache = (batch * model.context * model.layers * 4 * kv_width) as f64;
    (weights + cache < 0.92 * part.memory).then(|| batch as f64 / step(part, model, storage, batch))
}

/// Seconds of one decode step of `batch` sequences.
fn step(part: &Part, model: &Model, storage: Storage, batch: usize) -> f64 {
    let rows = batch as f64;
    let linear = |n: usize, k: usize, storage: Storage| {
        let traffic = (n * k) as f64 * storage.bytes() + rows * 2.0 * (n + k) as f64;
        let flops = 2.0 * rows * (n * k) as f64;
        (traffic / (part.weights_share * part.bandwidth)).max(flops / storage.rate(part, rows)) + part.gap
    };
    let width = model.heads * model.head_dim;
    let kv_width = model.kv_heads * model.head_dim;
    let kv_bytes = rows * (model.context * 2 * kv_width * 2) as f64;
    let attention = kv_bytes / (part.kv_share * part.bandwidth) + part.gap;
    // Up to 8 rows the norms are part of the products.
    let norms = if batch <= 8 { 0.0 } else { 2.0 * part.gap };
    let layer = linear(width + 2 * kv_width, model.hidden, storage)
        + attention
        + linear(model.hidden, width, storage)
        + linear(2 * model.intermediate, model.hidden, storage)
        + linear(model.hidden, model.intermediate, storage)
        + norms;
    let head = if storage == Storage::Int4 { Storage::Int8 } else { storage };
    model.layers as f64 * layer + linear(model.vocab, model.hidden, head) + 3.0 * part.gap + HOST_SECONDS
}

/// Images a second: vision tower, prefill, 128 tokens each in batches of 64.
fn captions(part: &Part, model: &Model, storage: Storage) -> Option<f64> {
    let (vision, prefill) = model.caption?;
    let decode = 128.0 / rate(part, model, storage, 64)?;
    let prefill = prefill / storage.rate(part, f64::INFINITY);
    Some(1.0 / (vision / Storage::Bf16.rate(part, 1.0) + prefill + decode))
}

/// What others publish for language models of 7 to 8 billion weights: (what, GPU, batch, figure, source).
const PUBLISHED: [(&str, &str, &str, &str, &str); 13] = [
    ("vLLM 0.7.2 Llama-8B bf16", "H100", "1", "135 tok/s", "neuralmagic DeepSeek-R1-Distill-Llama-8B cards"),
    ("vLLM 0.7.2 Llama-8B int4 (w4a16)", "H100", "1", "183 tok/s", "same"),
    ("vLLM 0.7.2 Llama-8B bf16, int8, int4", "A100", "1", "85, 114, 160 tok/s", "same"),
    (
        "vLLM 0.7.2 Qwen2.5-VL-7B captions bf16",
        "A100, H100",
        "max",
        "3.0, 3.3 images/s",
        "neuralmagic Qwen2.5-VL-7B cards",
    ),
    (
        "TurboMind Llama2-7B fp16",
        "A100",
        "1, 16, 64",
        "102, 1505, 4155 tok/s",
        "lmdeploy docs/en/benchmark/a100_fp16.md",
    ),
    ("TensorRT-LLM LLaMA-7B fp16, prefill 2048", "A100", "1", "133 ms", "TensorRT-LLM docs/source/performance.md"),
    ("TensorRT-LLM Llama-3.1-8B FP8, 1000/1000", "H100", "max", "15220 tok/s", "TensorRT-LLM perf-overview.md"),
    ("llama.cpp Llama-8B bf16", "RTX 4090", "1, 8", "65, 485 tok/s", "ggml-org/llama.cpp PR 15131"),
    ("llama.cpp Llama-7B Q8_0", "RTX 4090", "1", "98 tok/s", "ggml-org/llama.cpp PR 4766"),
    ("calm Llama2-7B fp16, fp8, 4-bit", "RTX 4090", "1", "67, 128, 225 tok/s", "zeux/calm README"),
    ("gpt-fast Llama2-7B bf16, int8, int4", "A100", "1", "105, 156, 197 tok/s", "pytorch-labs/gpt-fast README"),
    ("exllamav2 7B GPTQ-128", "RTX 4090", "1", "198 tok/s", "turboderp/exllamav2 README"),
    ("llm-awq Llama-3-VILA1.5-8B fp16, int4", "A100", "1", "75, 169 tok/s", "mit-han-lab/llm-awq README"),
];

/// The predictions and the published figures.
pub fn text() -> String {
    let mut text = format!(
        "\nPREDICTED, not measured (the model: bench/kernels/predict.rs). Tokens a second of decoding, captions of 128 \
         tokens.\n{:<38} {:<14} {:<5} {:>8} {:>8} {:>8} {:>10}\n",
        "model", "GPU", "", "batch 1", "16", "64", "images/s"
    );
    for model in &MODELS {
        for part in &PARTS {
            for storage in [Storage::Bf16, Storage::Int8, Storage::W8a8, Storage::Int4] {
                let figure = |rate: Option<f64>, digits: usize| rate.map_or("-".into(), |r| format!("{r:.digits$}"));
                let tokens = |batch: usize| figure(rate(part, model, storage, batch), 0);
                text += &format!(
                    "{:<38} {:<14} {:<5} {:>8} {:>8} {:>8} {:>10}\n",
                    model.name,
                    part.name,
                    storage.name(),
                    tokens(1),
                    tokens(16),
                    tokens(64),
                    figure(captions(part, model, storage), 1)
                );
            }
        }
    }
    text += "\nPublished by others, on their own machines and requests:\n";
    text += &format!("{:<42} {:<12} {:<10} {:<22} source\n", "what", "GPU", "batch", "figure");
    for (what, gpu, batch, figure, source) in PUBLISHED {
        text += &format!("{what:<42} {gpu:<12} {batch:<10} {figure:<22} {source}\n");
    }
    text
}
