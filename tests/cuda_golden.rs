//! The golden cases on a GPU against the CPU, in bf16 and f16: alone and batched, step by step and recorded. On a
//! machine without a GPU: `tools/softgpu/run.sh cargo test --release --workspace --test cuda_golden`. Without a driver
//! or without kernels the tests check that this is said.
//!
//! The CPU, which is exact (tests/golden.rs), computes in f32 from the same rounded weights. Activations rounded to 16
//! bits move a log-probability by up to `Limits::logprob`, so a token may differ where the CPU's best two are nearer
//! than twice that; from there on the two read different histories.

#[path = "cuda_ops/device.rs"]
mod device;
mod golden_support;
#[path = "cuda_support/wrapped.rs"]
mod wrapped;

use std::sync::{Arc, Mutex};

use engine::backend::{Input, Probe, Program};
use engine::graph::{Op, Plan, Sizes, Sym};
use engine::inspect::backends::BackendComparison;
use engine::run::engine::{Device, Engine, EngineOptions};
use engine::run::request::{Answer, TokenLogprobs};
use engine::tensor::DType;
use golden_support::{cases, models_of, options, request, text};
use serde_json::Value;
use wrapped::{Compiled, Wrapped, eager};

/// Largest difference of a log-probability among the five best, while both read the same tokens.
///
/// Rounding alone gives this much: an emulation that rounds to f16 exactly where the kernels store f16, with exact sums
/// between, had 0.022 to 0.066 in 400 orders of sums (0.030 the median, 18 above 0.04, 2 above 0.05), mostly at token 116
/// of step 12 of `rgba`. In bf16 it had 0.15 to 0.33 in 300 orders, 5 of them above 0.3. So one largest difference tells
/// little of the kernels; [`rms_limit`] tells more.
fn limit(dtype: DType) -> f32 {
    if dtype == DType::F16 { 0.05 } else { 0.4 }
}

/// Root mean square of these differences. The same emulation had 0.0050 to 0.0054 in f16 and 0.039 to 0.042 in bf16; with
/// one bit less in what all MLPs, all attentions or the sums after them store, f16 comes to at least 0.0060.
fn rms_limit(dtype: DType) -> f64 {
    if dtype == DType::F16 { 0.0058 } else { 0.046 }
}

fn on_gpu(model: &str, dtype: DType) -> EngineOptions {
    EngineOptions { device: Device::Cuda(0), dtype: Some(dtype), ..options(model) }
}

fn answers(engine: &Engine, cases: &[&Value], together: bool) -> Vec<Answer> {
    if together {
        let handles: Vec<_> = cases.iter().map(|c| engine.submit(&request(c)).unwrap()).collect();
        return handles.into_iter().map(|h| h.answer().unwrap()).collect();
    }
    cases.iter().map(|c| engine.submit(&request(c)).unwrap().answer().unwrap()).collect()
}

/// Counts over many answers.
#[derive(Default)]
struct Agreement {
    equal: usize,
    steps: usize,
    worst: f32,
    /// Of all differences.
    squares: f64,
    differences: usize,
}

impl Agreement {
    /// Compares step by step, up to a near tie that fell the other way.
    fn add(&mut self, name: &str, got: &Answer, want: &Answer, limit: f32) {
        assert_eq!(got.prompt_token_ids, want.prompt_token_ids, "{name}");
        self.steps += want.token_ids.len();
        for (i, (g, w)) in got.logprobs.iter().zip(&want.logprobs).enumerate() {
            for (id, want) in &w.top {
                if let Some((_, got)) = g.top.iter().find(|t| t.0 == *id) {
                    let difference = (got - want).abs();
                    self.worst = self.worst.max(difference);
                    self.squares += f64::from(difference).powi(2);
                    self.differences += 1;
                    assert!(difference <= limit, "{name}: step {i}, token {id}: {got}, expected {want}");
                }
            }
            if g.token_id != w.token_id {
                let margin = w.top[0].1 - w.top[1].1;
                assert!(margin <= 2.0 * limit, "{name}: step {i}: {} for {}, margin {margin}", g.token_id, w.token_id);
                return;
            }
            self.equal += 1;
        }
        assert_eq!(got.token_ids, want.token_ids, "{name}");
        assert_eq!(got.text, want.text, "{name}");
    }
}

/// Every case in `dtype`: alone, together, together again with every step both recorded and launch by launch.
fn check(dtype: DType) {
    if device::open().is_none() {
        return;
    }
    let all = cases("cases.json");
    let mut agreement = Agreement::default();
    for model in models_of(&all) {
        let cases: Vec<&Value> = all.iter().filter(|c| c["model"] == *model).collect();
        let cpu = Engine::open(EngineOptions { dtype: Some(dtype), ..options(&model) }).unwrap();
        let want = answers(&cpu, &cases, true);
        let recorded = Engine::open(on_gpu(&model, dtype)).unwrap();
        let start = std::time::Instant::now();
        let alone = answers(&recorded, &cases, false);
        println!("{model} {dtype:?}: alone {:.1} s", start.elapsed().as_secs_f64());
        let start = std::time::Instant::now();
        let together = answers(&recorded, &cases, true);
        println!("{model} {dtype:?}: together {:.1} s", start.elapsed().as_secs_f64());
        for (answers, how) in [(&alone, "alone"), (&together, "together")] {
            for ((case, got), want) in cases.iter().zip(answers).zip(&want) {
                agreement.add(&format!("{} {dtype:?} {how}", text(case, "name")), got, want, limit(dtype));
            }
        }
        let start = std::time::Instant::now();
        answers(&Engine::open(twice(&model, dtype)).unwrap(), &cases, true);
        println!("{model} {dtype:?}: recorded and eager {:.1} s", start.elapsed().as_secs_f64());
    }
    let Agreement { equal, steps, worst, squares, differences } = agreement;
    let rms = (squares / differences as f64).sqrt();
    println!("{dtype:?}: {equal} of {steps} tokens before a near tie");
    println!("{dtype:?}: log-probabilities differ by at most {worst:.4}, rms {rms:.5}");
    assert!(rms <= rms_limit(dtype), "log-probabilities differ by {rms}, rms");
    // Rounding flips near ties, and an early one costs a case all its later tokens; a wrong kernel flips nearly everything.
    // The emulation of `limit` had 88.7 to 100 % in f16 (96.3 % the median, 87 of 400 below 95 %, one below 90 %).
    let least = if dtype == DType::F16 { 90 } else { 55 };
    assert!(equal * 100 >= steps * least, "{equal} of {steps}");
}

#[test]
fn every_case_agrees_with_the_cpu_in_bf16() {
    check(DType::Bf16);
}

#[test]
fn every_case_agrees_with_the_cpu_in_f16() {
    check(DType::F16);
}

/// The same GPU twice: one records its steps, the other does not.
fn twice(model: &str, dtype: DType) -> EngineOptions {
    let wrap = move |recorded| {
        let both = |c: Compiled| -> Box<dyn Program> {
            Box::new(TwiceProgram { recorded: c.program, eager: c.second.expect("a second device") })
        };
        Wrapped::new(recorded).with_eager(Some(dtype)).replace(both).boxed()
    };
    EngineOptions { wrap: Some(Box::new(wrap)), memory_utilization: Some(0.4), ..on_gpu(model, dtype) }
}

/// Every step must give both the same bits. Comparing two engines would not do: which sequences share a step depends on
/// when they were submitted.
struct TwiceProgram {
    recorded: Box<dyn Program>,
    eager: Box<dyn Program>,
}

impl Program for TwiceProgram {
    fn run(&mut self, sizes: &Sizes, inputs: &[Input], _: Option<&mut Probe>) -> engine::Result<()> {
        self.recorded.run(sizes, inputs, None)?;
        self.eager.run(sizes, inputs, None)
    }

    fn read(&mut self, index: usize, into: &mut Vec<f32>) -> engine::Result<()> {
        let mut eager = Vec::new();
        self.recorded.read(index, into)?;
        self.eager.read(index, &mut eager)?;
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        if bits(into) == bits(&eager) {
            return Ok(());
        }
        Err(engine::Error::Internal("a recorded step and the same one launch by launch differ".into()))
    }
}

/// A token of a Llama-like decoder costs five launches a layer: q, k and v with norm, rotary embedding and pages;
/// attention; output and residual; gate and up with norm; down and residual. More rows than eight take norms in launches of
/// their own: seven a layer. Beside the layers: embeddings, the last layer with its norm, two that choose tokens.
#[test]
fn a_decode_step_takes_five_launches_a_layer() {
    if device::open().is_none() {
        return;
    }
    // Layers, rows of a decode step, launches.
    let found: Arc<Mutex<Vec<[usize; 3]>>> = Arc::default();
    let noted = found.clone();
    let wrap = move |_| {
        let noted = noted.clone();
        let count = move |c: Compiled| {
            let layers = c.plan.graph.nodes.iter().filter(|n| matches!(n.op, Op::PagedAttention { .. })).count();
            for bucket in c.buckets.iter().filter(|b| layers > 0 && b.decode) {
                let launches = c.program.launches(&bucket.sizes).unwrap().expect("a GPU launches");
                noted.lock().unwrap().push([layers, bucket.sizes.get(Sym::Tokens), launches]);
            }
            c.program
        };
        Wrapped::new(Box::new(eager(DType::Bf16))).replace(count).boxed()
    };
    let options = EngineOptions { wrap: Some(Box::new(wrap)), ..on_gpu("idefics2-tiny-bf16", DType::Bf16) };
    drop(Engine::open(options).unwrap());
    let found = found.lock().unwrap();
    assert!(found.iter().any(|[_, rows, _]| *rows == 1) && found.iter().any(|[_, rows, _]| *rows > 16), "{found:?}");
    for [layers, rows, launches] in found.iter().copied() {
        let norms = usize::from(rows > 8);
        assert_eq!(launches, (5 + 2 * norms) * layers + 4 + norms, "{layers} layers, {rows} rows");
    }
}

/// Makes one operation of a plan wrong.
fn plant(plan: &mut Plan, name: &str) {
    for node in plan.graph.nodes.iter_mut().filter(|n| n.name == name) {
        match &mut node.op {
            Op::RmsNorm { eps, .. } | Op::LayerNorm { eps, .. } => *eps = 0.3,
            Op::Attention(heads) | Op::PagedAttention { heads, .. } | Op::SelfAttention { heads, .. } => {
                heads.scale *= 1.3
            }
            other => panic!("nothing to break in {}", other.name()),
        }
    }
}

/// With --batch-invariant an answer's log-probabilities have the same bits alone, together with all others, and together
/// in chunks of 17 tokens; without it they do not, or this test sees nothing.
#[test]
fn batch_invariant_answers_are_those_of_the_request_alone() {
    if device::open().is_none() {
        return;
    }
    let all = cases("cases.json");
    let (model, dtype) = ("idefics2-tiny", DType::Bf16);
    // Those beyond the window, whose tiles of keys start elsewhere in chunks, and some of every kind.
    let of_model = all.iter().filter(|c| c["model"] == *model).enumerate();
    let cases: Vec<&Value> =
        of_model.filter(|(i, c)| i % 4 == 0 || text(c, "name").starts_with("long")).map(|(_, c)| c).collect();
    assert!(cases.len() > 7);
    let bits = |answers: Vec<Answer>| -> Vec<Vec<(u32, u32)>> {
        let token = |t: &TokenLogprobs| (t.token_id, t.logprob.to_bits());
        answers.iter().map(|a| a.logprobs.iter().map(token).collect()).collect()
    };
    let invariant = || EngineOptions { batch_invariant: true, ..on_gpu(model, dtype) };
    let engine = Engine::open(invariant()).unwrap();
    let alone = bits(answers(&engine, &cases, false));
    assert!(alone.iter().all(|steps| !steps.is_empty()));
    let same = |how: &str, got: Vec<Vec<(u32, u32)>>| {
        for ((case, got), want) in cases.iter().zip(got).zip(&alone) {
            let step = got.iter().zip(want).position(|(g, w)| g != w);
            assert_eq!(
                (step, got.len()),
                (None, want.len()),
                "{} {how}: the first step that differs",
                text(case, "name")
            );
        }
    };
    same("together", bits(answers(&engine, &cases, true)));
    drop(engine);
    let chunks = EngineOptions { max_num_batched_tokens: Some(17), no_prefix_caching: true, ..invariant() };
    same("in chunks", bits(answers(&Engine::open(chunks).unwrap(), &cases, true)));
    let few = &cases[..2];
    let fast = bits(answers(&Engine::open(on_gpu(model, dtype)).unwrap(), few, false));
    // So few tokens at a time that they take the kernels for few rows.
    let chunks = EngineOptions { max_num_batched_tokens: Some(8), ..on_gpu(model, dtype) };
    assert_ne!(bits(answers(&Engine::open(chunks).unwrap(), few, false)), fast);
}

/// Runs one case through a comparison with the CPU; `node` is wrong on the device.
fn compare(device: Device, node: Option<&'static str>) -> BackendComparison {
    let comparison = BackendComparison::default();
    let inner = comparison.clone();
    let options = EngineOptions {
        device,
        wrap: Some(Box::new(move |backend| {
            inner.wrap(match node {
                Some(node) => Wrapped::new(backend).change(move |plan| plant(plan, node)).boxed(),
                None => backend,
            })
        })),
        ..options("idefics2-tiny-nosplit")
    };
    let engine = Engine::open(options).unwrap();
    let case = cases("cases.json").into_iter().find(|c| text(c, "name") == "nosplit_landscape").unwrap();
    let mut request = request(&case);
    request.sampling.max_tokens = Some(3);
    engine.submit(&request).unwrap().answer().unwrap();
    comparison
}

const BROKEN: [&str; 3] = [
    "model.vision_model.encoder.layers.1.layer_norm2",
    "model.text_model.layers.2.self_attn.attention",
    "model.connector.perceiver_resampler.layers.0.self_attn.attention",
];

/// The comparison itself, where there is no GPU: one CPU against another.
#[test]
fn a_planted_fault_is_named() {
    let report = compare(Device::Cpu, None).report();
    assert!(report.first.is_none() && report.rows.len() > 40, "{report}");
    for node in BROKEN {
        let report = compare(Device::Cpu, Some(node)).report();
        assert_eq!(report.first.as_ref().map(|r| r.name.as_str()), Some(node), "{report}");
    }
}

#[test]
fn every_node_on_the_gpu_is_within_tolerance_and_a_planted_fault_is_named() {
    if device::open().is_none() {
        return;
    }
    let report = compare(Device::Cuda(0), None).report();
    assert!(report.first.is_none() && report.rows.len() > 40, "{report}");
    for node in BROKEN {
        let report = compare(Device::Cuda(0), Some(node)).report();
        assert_eq!(report.first.as_ref().map(|r| r.name.as_str()), Some(node), "{report}");
        assert!(report.to_string().contains("cuda:0 against cpu: first difference: "), "{report}");
    }
}
