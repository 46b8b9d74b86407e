//! Sampling on the device. Oracle: the host's sampler and logits processors, given the same logits and seed: the same
//! tokens, the same lists of likely tokens, log-probabilities within 1e-5.

use engine::Result;
use engine::backend::cuda::ops::sampling::Sampling;
use engine::backend::sampling::{SamplingChoice, SamplingSettings, SamplingTop};
use engine::run::logits::LogitsProcessors;
use engine::run::sampler::{Sampled, Sampler};
use engine::run::sampling_params::SamplingParams;
use engine::tensor::DType;

use super::harness::{Case, Gpu, Instance, Numbers, Op, Work};

pub const OP: Op = Op { name: "sampling", cases, shapes };

/// How the logits are spread.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Spread {
    /// A language model's: a few likely tokens, a long tail.
    Model,
    /// Nearly equal: every nucleus is wide.
    Flat,
    /// Six different values: the boundary of every selection lies among ties.
    Ties,
    Equal,
    /// One token has all the mass.
    Peaked,
}

/// What is asked of every row of a case.
#[derive(Debug, Clone, Default)]
struct Ask {
    temperature: f32,
    top_k: usize,
    top_p: Option<f32>,
    min_p: f32,
    logprobs: Option<usize>,
    repetition_penalty: Option<f32>,
    bad_words: bool,
    forced_eos: bool,
}

impl Ask {
    /// The same as the host has it, for row `row`.
    fn params(&self, row: usize, vocab: usize) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p,
            logprobs: self.logprobs,
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            bad_words_ids: if self.bad_words { vec![vec![0], vec![vocab as u32 / 2]] } else { Vec::new() },
            forced_eos_token_id: if self.forced_eos { vec![1, vocab as u32 / 3, 7] } else { Vec::new() },
            max_tokens: 1,
            seed: 0x9E37_79B9_7F4A_7C15u64.wrapping_mul(row as u64 + 1),
            ..SamplingParams::default()
        }
    }
}

fn case(spread: Spread, vocab: usize, rows: usize, ask: &Ask) -> Case {
    let ask = ask.clone();
    Case::new(format!("{spread:?} [{rows}, {vocab}] {ask:?}"), move |gpu| build(gpu, spread, vocab, rows, &ask))
}

fn asks() -> Vec<Ask> {
    let base = Ask::default();
    let warm = Ask { temperature: 0.8, ..base.clone() };
    vec![
        base.clone(),
        Ask { logprobs: Some(0), ..base.clone() },
        Ask { logprobs: Some(5), repetition_penalty: Some(1.2), ..base.clone() },
        Ask { bad_words: true, logprobs: Some(3), ..base.clone() },
        Ask { forced_eos: true, logprobs: Some(4), ..base },
        Ask { temperature: 1.0, ..warm.clone() },
        Ask { logprobs: Some(20), ..warm.clone() },
        Ask { top_k: 1, ..warm.clone() },
        Ask { top_k: 20, logprobs: Some(20), ..warm.clone() },
        Ask { top_k: 1_000_000, ..warm.clone() },
        Ask { top_p: Some(0.9), logprobs: Some(10), ..warm.clone() },
        Ask { top_p: Some(0.999), temperature: 1.5, ..warm.clone() },
        Ask { top_p: Some(1e-6), ..warm.clone() },
        Ask { min_p: 0.1, logprobs: Some(7), ..warm.clone() },
        Ask { top_k: 50, top_p: Some(0.8), min_p: 0.05, logprobs: Some(30), ..warm.clone() },
        Ask { repetition_penalty: Some(1.3), bad_words: true, top_k: 30, ..warm.clone() },
        Ask { temperature: 1e-30, ..warm },
    ]
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    // One token, fewer than a warp, an odd number, more than the list of candidates holds.
    for vocab in [1, 8, 257, 5003] {
        for spread in [Spread::Model, Spread::Flat, Spread::Ties, Spread::Equal, Spread::Peaked] {
            for ask in asks() {
                // Bad words of a tiny vocabulary leave nothing, which a test of its own looks at.
                if vocab > 1 || !(ask.bad_words || ask.forced_eos) {
                    all.push(case(spread, vocab, 2, &ask));
                }
            }
        }
    }
    all
}

fn shapes() -> Vec<Case> {
    let mut all = Vec::new();
    let nucleus = Ask { temperature: 0.7, top_k: 50, top_p: Some(0.9), ..Ask::default() };
    for (model, vocab) in [("Mistral-7B", 32003), ("Llama-3.1-8B", 128256), ("Qwen2-7B", 152064)] {
        for rows in [1, 16, 64] {
            for (what, ask) in [("greedy", Ask::default()), ("top-k 50, top-p 0.9", nucleus.clone())] {
                all.push(Case::new(format!("{model} {what} [{rows}, {vocab}]"), move |gpu| {
                    build(gpu, Spread::Model, vocab, rows, &ask)
                }));
            }
        }
    }
    all
}

fn logits(numbers: &mut Numbers, spread: Spread, n: usize) -> Vec<f32> {
    match spread {
        Spread::Model => numbers.normals(DType::F32, n, 3.0),
        Spread::Flat => numbers.normals(DType::F32, n, 0.01),
        Spread::Ties => (0..n).map(|_| numbers.below(6) as f32 - 3.0).collect(),
        Spread::Equal => vec![0.25; n],
        Spread::Peaked => numbers.normals(DType::F32, n, 40.0),
    }
}

/// The host's processors of a row, whose prompt is every third token, and what they come to for the device.
fn processed(params: &SamplingParams, vocab: usize, ids: &mut Vec<i32>) -> (LogitsProcessors, SamplingSettings) {
    let prompt: Vec<u32> = (0..vocab as u32).step_by(3).collect();
    let mut range = |tokens: &mut dyn Iterator<Item = u32>| {
        let begin = ids.len() as i32;
        ids.extend(tokens.map(|t| t as i32));
        [begin, ids.len() as i32]
    };
    let penalty = params.repetition_penalty != 1.0;
    let forced = range(&mut params.forced_eos_token_id.iter().copied().filter(|t| (*t as usize) < vocab));
    let settings = SamplingSettings {
        temperature: params.temperature,
        top_p: params.top_p,
        min_p: params.min_p,
        repetition_penalty: params.repetition_penalty,
        top_k: i32::try_from(params.top_k).unwrap_or(i32::MAX),
        num_top: params.logprobs.map_or(-1, |n| n as i32),
        penalized: range(&mut prompt.iter().copied().filter(|_| penalty)),
        forced,
        // A forced list comes after bad words and wins over them.
        banned: range(&mut params.bad_words_ids.iter().map(|w| w[0]).filter(|_| forced[0] == forced[1])),
        seed: params.seed,
        position: 0,
    };
    (LogitsProcessors::new(params, &prompt), settings)
}

fn build(gpu: &Gpu, spread: Spread, vocab: usize, rows: usize, ask: &Ask) -> Result<Instance> {
    let mut numbers = Numbers::new((vocab + rows) as u64);
    let values = logits(&mut numbers, spread, rows * vocab);
    let (mut ids, mut settings, mut hosts) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..rows {
        let params = ask.params(row, vocab);
        let (processors, set) = processed(&params, vocab, &mut ids);
        settings.push(set);
        hosts.push((params, processors));
    }
    let max_top = ask.logprobs.unwrap_or(0);
    // One more row than the batch has.
    let bucket = rows + 1;
    let dlogits = gpu.memory(bucket * vocab * 4)?;
    dlogits.slice(0, values.len() * 4)?.copy_from_host(&gpu.stream, bytemuck::cast_slice(&values))?;
    let dsettings = gpu.memory(bucket * size_of::<SamplingSettings>())?;
    let bytes: &[u8] = bytemuck::cast_slice(&settings);
    dsettings.slice(0, bytes.len())?.copy_from_host(&gpu.stream, bytes)?;
    let (dids, count) = (gpu.ints(&ids)?, gpu.count(rows)?);
    let partials = gpu.memory(Sampling::partials_bytes(bucket))?;
    let chosen = gpu.memory(bucket * size_of::<SamplingChoice>())?;
    let top = gpu.memory(bucket * max_top * size_of::<SamplingTop>())?;
    let tokens = gpu.output_with_stride(DType::I32, bucket, rows, 1, 1)?;
    let op = Sampling {
        logits: dlogits.all(),
        settings: dsettings.all(),
        ids: dids.all(),
        partials: partials.all(),
        chosen: chosen.all(),
        top: top.all(),
        tokens: tokens.slice(),
        rows: bucket,
        vocab,
        max_top,
        num_rows: Some(count.all()),
    };
    let launches = op.prepare(&gpu.cuda)?;
    let work = Work { bytes: (values.len() * 4) as u64, flops: 0 };
    Ok(Instance::new(launches, work).expect_that(move |gpu| {
        let text = |e: engine::Error| e.to_string();
        let mut sampler = Sampler::new(vocab);
        let got = tokens.read(gpu).map_err(text)?;
        for (row, (params, processors)) in hosts.iter().enumerate() {
            let mut logits = values[row * vocab..][..vocab].to_vec();
            processors.apply(&mut logits);
            let want = sampler.sample(&mut logits, params, 0).map_err(text)?;
            let choice: SamplingChoice = read(gpu, &chosen, row)?;
            choice.check(0).map_err(text)?;
            if (choice.token as u32, got[row] as u32) != (want.token, want.token) {
                return Err(format!("row {row}: token {} ({}) for {}", choice.token, got[row], want.token));
            }
            let mut entries = vec![SamplingTop { token: 0, value: 0.0 }; choice.num_top as usize];
            for (n, entry) in entries.iter_mut().enumerate() {
                *entry = read(gpu, &top, row * max_top + n)?;
            }
            same_logprobs(&choice, &entries, &want).map_err(|e| format!("row {row}: {e}"))?;
        }
        Ok(())
    }))
}

/// Element `index` of an array of structs on the device.
fn read<T: bytemuck::Pod>(
    gpu: &Gpu,
    buffer: &engine::backend::cuda::DeviceBuffer,
    index: usize,
) -> std::result::Result<T, String> {
    let mut value = T::zeroed();
    let bytes = bytemuck::bytes_of_mut(&mut value);
    let slice = buffer.slice(index * bytes.len(), bytes.len()).map_err(|e| e.to_string())?;
    slice.copy_to_host(&gpu.stream, bytes).map_err(|e| e.to_string())?;
    Ok(value)
}

fn same_logprobs(choice: &SamplingChoice, top: &[SamplingTop], want: &Sampled) -> std::result::Result<(), String> {
    let close = |a: f32, b: f32| (a - b).abs() <= 1e-5;
    if let Some(logprob) = want.logprob {
        let got = choice.logprob(choice.value);
        if !close(got, logprob) {
            return Err(format!("log-probability {got} for {logprob}"));
        }
    }
    let got = choice.top(top);
    let same = got.len() == want.top.len() && got.iter().zip(&want.top).all(|(a, b)| a.0 == b.0 && close(a.1, b.1));
    if same { Ok(()) } else { Err(format!("likely tokens {got:?} for {:?}", want.top)) }
}

#[test]
fn sampling() {
    super::harness::check(&OP);
}

#[test]
fn rows_that_leave_no_token_are_errors() {
    let Some(gpu) = Gpu::open() else { return };
    let vocab = 9;
    let mut values = vec![0.5f32; 3 * vocab];
    values[4] = f32::NAN;
    values[7] = f32::INFINITY;
    values[vocab + 2] = f32::INFINITY;
    let settings = [
        SamplingSettings::default(),
        SamplingSettings { temperature: 1.0, ..SamplingSettings::default() },
        SamplingSettings { banned: [0, vocab as i32], ..SamplingSettings::default() },
    ];
    let ids: Vec<i32> = (0..vocab as i32).collect();
    let upload = |bytes: &[u8]| gpu.bytes(bytes).unwrap();
    let (logits, settings) = (upload(bytemuck::cast_slice(&values)), upload(bytemuck::cast_slice(&settings)));
    let ids = gpu.ints(&ids).unwrap();
    let chosen = gpu.memory(3 * size_of::<SamplingChoice>()).unwrap();
    let (partials, tokens) = (gpu.memory(Sampling::partials_bytes(3)).unwrap(), gpu.memory(12).unwrap());
    let op = Sampling {
        logits: logits.all(),
        settings: settings.all(),
        ids: ids.all(),
        partials: partials.all(),
        chosen: chosen.all(),
        top: tokens.all(),
        tokens: tokens.all(),
        rows: 3,
        vocab,
        max_top: 0,
        num_rows: None,
    };
    for launch in op.prepare(&gpu.cuda).unwrap() {
        launch.enqueue(&gpu.stream).unwrap();
    }
    let message = |row| {
        let choice: SamplingChoice = read(&gpu, &chosen, row).unwrap();
        choice.check(5).unwrap_err().to_string()
    };
    // The host's words for the same rows.
    for row in 0..3 {
        let mut logits = values[row * vocab..][..vocab].to_vec();
        if row == 2 {
            logits.fill(f32::NEG_INFINITY);
        }
        let want = Sampler::new(vocab).sample(&mut logits, &SamplingParams::default(), 5).unwrap_err().to_string();
        assert_eq!(message(row), want);
    }
    assert!(Sampling { vocab: 1 << 19, ..op }.prepare(&gpu.cuda).is_err());
}
