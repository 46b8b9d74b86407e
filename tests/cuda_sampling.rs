//! Tokens chosen on a GPU: those of the host's sampler, for whole requests and step by step on the same logits; recorded
//! steps and the same ones launch by launch choose with the same bits; a step copies back choices and no logits. On a
//! machine without a GPU: `tools/softgpu/run.sh cargo test --release --workspace --test cuda_sampling`.

mod cli_support;
#[path = "cuda_ops/device.rs"]
mod device;
mod golden_support;
#[path = "cuda_support/wrapped.rs"]
mod wrapped;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use engine::backend::sampling::{Choices, SamplingBatch, SamplingLimits, SamplingSettings};
use engine::backend::{Input, Probe, Program};
use engine::graph::Sizes;
use engine::run::engine::{Device, Engine, EngineOptions};
use engine::run::request::{Answer, Prompt, Request};
use engine::run::sampler::{Sampled, Sampler};
use engine::run::sampling_params::{SamplingFlags, SamplingParams};
use engine::tensor::DType;
use golden_support::options;
use serde_json::Value;
use wrapped::{Compiled, Wrapped};

const MODEL: &str = "idefics2-tiny-nosplit";
/// Log-probabilities are sums in another order.
const CLOSE: f32 = 1e-5;

fn on_gpu(dtype: DType) -> EngineOptions {
    EngineOptions { device: Device::Cuda(0), dtype: Some(dtype), ..options(MODEL) }
}

/// Requests that use every setting the device knows, and some that ask for more than it does.
fn requests() -> Vec<(&'static str, Request)> {
    let base = SamplingFlags { max_tokens: Some(8), ignore_eos: true, ..SamplingFlags::default() };
    // Equal seeds: what differs is what a setting does.
    let warm = SamplingFlags { temperature: Some(0.9), seed: Some(1), ..base.clone() };
    let all = [
        ("greedy", base.clone()),
        ("greedy with likely tokens", SamplingFlags { logprobs: Some(20), ..base.clone() }),
        ("more likely tokens than the device lists", SamplingFlags { logprobs: Some(30), ..base.clone() }),
        ("its own log-probability alone", SamplingFlags { logprobs: Some(0), ..base.clone() }),
        ("temperature", warm.clone()),
        ("another seed", SamplingFlags { seed: Some(0xfeed_face_cafe_beef), logprobs: Some(3), ..warm.clone() }),
        ("top-k", SamplingFlags { top_k: Some(12), ..warm.clone() }),
        ("top-p", SamplingFlags { top_p: Some(0.7), logprobs: Some(2), ..warm.clone() }),
        ("min-p", SamplingFlags { min_p: Some(0.5), ..warm.clone() }),
        ("all of them", SamplingFlags { top_k: Some(40), top_p: Some(0.9), min_p: Some(0.05), ..warm.clone() }),
        // Below 1 it prefers what was there: a strong effect on the near-equal logits of a tiny model.
        ("repetition penalty", SamplingFlags { repetition_penalty: Some(0.2), ..base.clone() }),
        ("repetition penalty, drawn", SamplingFlags { repetition_penalty: Some(0.3), ..warm }),
        (
            "no pair twice",
            SamplingFlags {
                repetition_penalty: Some(0.2),
                no_repeat_ngram_size: Some(2),
                logprobs: Some(4),
                ..base.clone()
            },
        ),
        ("no early end", SamplingFlags { min_new_tokens: Some(6), ignore_eos: false, ..base }),
    ];
    all.map(|(name, sampling)| {
        let mut request = Request::new(Prompt::Raw("A cat sat on the mat and looked at a bird".into()), Vec::new());
        request.sampling = sampling;
        (name, request)
    })
    .into()
}

/// Options under which programs are replaced, with those of a second device at hand where there is one.
fn wrapped(
    options: EngineOptions,
    second: Option<DType>,
    replace: impl Fn(Compiled) -> Box<dyn Program> + Clone + Send + 'static,
) -> EngineOptions {
    let wrap = move |device| Wrapped::new(device).with_eager(second).replace(replace.clone()).boxed();
    EngineOptions { wrap: Some(Box::new(wrap)), memory_utilization: Some(0.4), ..options }
}

/// Gives logits only, as a device without a sampler does.
struct LogitsOnly(Box<dyn Program>);

impl Program for LogitsOnly {
    fn run(&mut self, sizes: &Sizes, inputs: &[Input], probe: Option<&mut Probe>) -> engine::Result<()> {
        self.0.run(sizes, inputs, probe)
    }

    fn read(&mut self, index: usize, into: &mut Vec<f32>) -> engine::Result<()> {
        self.0.read(index, into)
    }
}

fn same(name: &str, got: &Answer, want: &Answer) {
    assert_eq!(got.token_ids, want.token_ids, "{name}");
    assert_eq!((&got.text, got.finish_reason), (&want.text, want.finish_reason), "{name}");
    assert_eq!(got.logprobs.len(), want.logprobs.len(), "{name}");
    for (g, w) in got.logprobs.iter().zip(&want.logprobs) {
        let ids = |top: &[(u32, f32)]| top.iter().map(|t| t.0).collect::<Vec<_>>();
        assert_eq!((g.token_id, ids(&g.top)), (w.token_id, ids(&w.top)), "{name}");
        let pairs = g.top.iter().zip(&w.top).map(|(g, w)| (g.1, w.1)).chain([(g.logprob, w.logprob)]);
        pairs.for_each(|(g, w)| assert!((g - w).abs() <= CLOSE, "{name}: {g}, expected {w}"));
    }
}

#[test]
fn requests_get_the_tokens_of_the_host() {
    if device::open().is_none() {
        return;
    }
    let device = Engine::open(on_gpu(DType::Bf16)).unwrap();
    let host = wrapped(on_gpu(DType::Bf16), None, |c| Box::new(LogitsOnly(c.program)));
    let host = Engine::open(host).unwrap();
    let mut answers: BTreeMap<Vec<u32>, &str> = BTreeMap::new();
    // One after another: the same steps, and so the same logits, on both.
    for (name, request) in requests() {
        let [got, want] = [&device, &host].map(|e| e.submit(&request).unwrap().answer().unwrap());
        same(name, &got, &want);
        answers.entry(got.token_ids).or_insert(name);
    }
    // Every setting has an answer of its own; log-probabilities change none, and the end that may not come early never
    // would.
    let first = ["greedy", "temperature", "another seed", "top-k", "top-p", "min-p", "all of them"];
    let last = ["repetition penalty", "repetition penalty, drawn", "no pair twice"];
    let mut own: Vec<&str> = answers.into_values().collect();
    let mut wanted = [&first[..], &last].concat();
    [&mut own, &mut wanted].into_iter().for_each(|names| names.sort_unstable());
    assert_eq!(own, wanted);
}

/// What was seen of steps.
#[derive(Default)]
struct Seen {
    chosen: AtomicUsize,
    left_to_host: AtomicUsize,
    most_rows: AtomicUsize,
    faults: Mutex<Vec<String>>,
}

/// Every step three times: recorded, launch by launch, and on the host from the same logits.
struct Thrice {
    recorded: Box<dyn Program>,
    eager: Box<dyn Program>,
    seen: Arc<Seen>,
}

impl Program for Thrice {
    fn run(&mut self, sizes: &Sizes, inputs: &[Input], probe: Option<&mut Probe>) -> engine::Result<()> {
        self.eager.run(sizes, inputs, None)?;
        self.recorded.run(sizes, inputs, probe)
    }

    fn read(&mut self, index: usize, into: &mut Vec<f32>) -> engine::Result<()> {
        self.recorded.read(index, into)
    }

    fn sampling(&self) -> Option<SamplingLimits> {
        self.recorded.sampling()
    }

    fn sample(
        &mut self,
        sizes: &Sizes,
        inputs: &[Input],
        rows: &SamplingBatch,
        into: &mut Choices,
    ) -> engine::Result<()> {
        let mut logits = Vec::new();
        self.eager.run(sizes, inputs, None)?;
        self.eager.read(0, &mut logits)?;
        let mut eager = Choices::default();
        self.eager.sample(sizes, inputs, rows, &mut eager)?;
        self.recorded.sample(sizes, inputs, rows, into)?;
        let count = rows.settings().len();
        self.seen.most_rows.fetch_max(count, Ordering::Relaxed);
        let vocab = (logits.len() / count.max(1)).max(1);
        for (row, (settings, logits)) in rows.settings().iter().zip(logits.chunks_exact_mut(vocab)).enumerate() {
            if rows.on_host()[row] {
                self.seen.left_to_host.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let [got, other] = [&*into, &eager].map(|c| taken(c, row, settings));
            let want = on_host(logits, settings, rows.ids());
            self.seen.chosen.fetch_add(1, Ordering::Relaxed);
            let bits = |s: &Sampled| {
                let top = s.top.iter().map(|t| (t.0, t.1.to_bits())).collect::<Vec<_>>();
                (s.token, s.logprob.map(f32::to_bits), top)
            };
            let close = |s: &Sampled| {
                let logprobs = s.top.iter().map(|t| t.1).chain(s.logprob);
                let wanted = want.top.iter().map(|t| t.1).chain(want.logprob);
                logprobs.zip(wanted).all(|(g, w)| (g - w).abs() <= CLOSE)
            };
            if bits(&got) != bits(&other) || got.token != want.token || !close(&got) {
                let fault = format!("{settings:?}: recorded {got:?}, eager {other:?}, host {want:?}");
                self.seen.faults.lock().unwrap().push(fault);
            }
        }
        Ok(())
    }
}

fn taken(choices: &Choices, row: usize, settings: &SamplingSettings) -> Sampled {
    let (choice, top) = choices.row(row);
    let logprob = (settings.num_top >= 0).then(|| choice.logprob(choice.value));
    choice.check(settings.position).unwrap();
    Sampled { token: choice.token as u32, logprob, top: choice.top(top) }
}

/// The host's sampler under the settings that the device was given.
fn on_host(logits: &mut [f32], settings: &SamplingSettings, ids: &[i32]) -> Sampled {
    let list = |range: [i32; 2]| ids[range[0] as usize..range[1] as usize].iter().map(|id| *id as usize);
    for id in list(settings.penalized) {
        let penalty = settings.repetition_penalty;
        logits[id] = if logits[id] < 0.0 { logits[id] * penalty } else { logits[id] / penalty };
    }
    if list(settings.forced).len() > 0 {
        logits.fill(f32::NEG_INFINITY);
        list(settings.forced).for_each(|id| logits[id] = 0.0);
    }
    list(settings.banned).for_each(|id| logits[id] = f32::NEG_INFINITY);
    let params = SamplingParams {
        temperature: settings.temperature,
        top_k: settings.top_k as usize,
        top_p: settings.top_p,
        min_p: settings.min_p,
        seed: settings.seed,
        logprobs: usize::try_from(settings.num_top).ok(),
        ..SamplingParams::default()
    };
    Sampler::new(logits.len()).sample(logits, &params, settings.position).unwrap()
}

#[test]
fn steps_of_many_rows_choose_what_the_host_chooses_recorded_or_not() {
    if device::open().is_none() {
        return;
    }
    let seen = Arc::new(Seen::default());
    let counted = seen.clone();
    let thrice = move |c: Compiled| -> Box<dyn Program> {
        Box::new(Thrice { recorded: c.program, eager: c.second.unwrap(), seen: counted.clone() })
    };
    let engine = Engine::open(wrapped(on_gpu(DType::F16), Some(DType::F16), thrice)).unwrap();
    let prepared: Vec<_> = requests().iter().map(|(_, r)| engine.prepare(r).unwrap()).collect();
    let handles: Vec<_> = prepared.into_iter().map(|p| engine.submit_prepared(p).unwrap()).collect();
    let answers: Vec<Answer> = handles.into_iter().map(|h| h.answer().unwrap()).collect();
    let faults = seen.faults.lock().unwrap();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    let [chosen, left, rows] = [&seen.chosen, &seen.left_to_host, &seen.most_rows].map(|n| n.load(Ordering::Relaxed));
    println!("{chosen} tokens chosen on the device, {left} on the host, {rows} rows in the largest step");
    assert_eq!(chosen + left, answers.iter().map(|a| a.token_ids.len()).sum::<usize>());
    // The one that wants more likely tokens than the device lists.
    assert!(left == 8 && rows > 1, "{left} {rows}");
}

/// What a run costs: calls of the driver, launches of the sampling kernels (`*` for all), bytes copied.
fn costs(args: &[&str]) -> BTreeMap<String, i64> {
    let folder = tempfile::tempdir().unwrap();
    let [calls, report] = ["calls", "report"].map(|name| folder.path().join(name));
    let mut c = cli_support::engine();
    c.args(["run", "--device", "cuda", "--model", &cli_support::path(MODEL), "--raw", "--prompt", "A cat", "--json"]);
    c.args(["--max-num-seqs", "1", "--ignore-eos"]).args(args);
    c.envs(["LD_LIBRARY_PATH", "LD_PRELOAD"].into_iter().filter_map(|v| Some((v, std::env::var_os(v)?))));
    c.envs([("SOFTGPU_CALLS", &calls), ("SOFTGPU_REPORT", &report)]);
    let out = cli_support::finish(c, b"");
    assert_eq!((out.code, out.stderr.as_str()), (Some(0), ""), "{out:?}");
    let mut costs = BTreeMap::new();
    for line in std::fs::read_to_string(calls).unwrap().lines() {
        let (name, n) = line.rsplit_once(' ').unwrap();
        costs.insert(name.to_string(), n.parse().unwrap());
    }
    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    for kernel in report["kernels"].as_array().unwrap() {
        let name = kernel["kernel"].as_str().unwrap();
        if name.starts_with("sampling") {
            *costs.entry(name.to_string()).or_default() += kernel["launches"].as_i64().unwrap();
        }
    }
    for name in ["d2h_bytes", "h2d_bytes", "num_launches"] {
        costs.insert(name.to_string(), report[name].as_i64().unwrap());
    }
    costs
}

#[test]
fn a_decode_step_copies_choices_back_and_waits_once() {
    let Some(cuda) = device::open() else { return };
    if !cuda.device().name().contains("softgpu") {
        return;
    }
    let vocab_bytes = 1153 * 4;
    for (args, bytes, copies) in [
        (&[][..], 32, 1),
        (&["--temperature", "0.8", "--top-p", "0.9", "--repetition-penalty", "1.1"], 32, 1),
        (&["--logprobs", "5"], 32 + 20 * 8, 1),
        // The device lists no more than 20: the logits themselves.
        (&["--logprobs", "21"], 32 + vocab_bytes, 2),
    ] {
        let [short, long] = ["3", "13"].map(|n| costs(&[args, &["-n", n]].concat()));
        let steps = |name: &str| long[name] - short[name];
        println!(
            "{args:?}: a decode step of {} launches, {} bytes to the device, {} back",
            steps("num_launches") / 10,
            steps("h2d_bytes") / 10,
            steps("d2h_bytes") / 10
        );
        assert_eq!(steps("d2h_bytes"), 10 * bytes, "{args:?}");
        for (entry, wanted) in [
            ("cuMemcpyHtoDAsync_v2", 1),
            ("cuGraphLaunch", 1),
            ("cuLaunchKernel", 0),
            ("cuMemcpyDtoHAsync_v2", copies),
            ("cuStreamSynchronize", copies),
            ("sampling_scan", 1),
            ("sampling_choose", 1),
        ] {
            assert_eq!(steps(entry), 10 * wanted, "{args:?}: {entry}");
        }
    }
}
