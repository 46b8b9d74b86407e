//! Logits processors and samplers against transformers (tools/golden/text_logits.py), and the draw against its
//! distribution.

use engine::Error;
use engine::run::logits::LogitsProcessors;
use engine::run::sampler::Sampler;
use engine::run::sampling_params::SamplingParams;
use serde_json::Value;

fn cases() -> Vec<Value> {
    let json = include_str!("data/text/logits.json");
    serde_json::from_str::<Vec<Value>>(json).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn params(case: &Value) -> SamplingParams {
    let mut params = SamplingParams {
        temperature: if case["sample"].as_bool().unwrap() { 1.0 } else { 0.0 },
        eos_token_id: vec![2, 40],
        max_tokens: case["max_new_tokens"].as_u64().unwrap() as usize,
        ..SamplingParams::default()
    };
    for (name, value) in case["settings"].as_object().unwrap() {
        let number = value.as_f64().unwrap_or_default();
        match name.as_str() {
            "repetition_penalty" => params.repetition_penalty = number as f32,
            "no_repeat_ngram_size" => params.no_repeat_ngram_size = number as usize,
            "bad_words_ids" => params.bad_words_ids = value.as_array().unwrap().iter().map(ids).collect(),
            "min_length" => params.min_new_tokens = number as usize - ids(&case["prompt"]).len(),
            "min_new_tokens" => params.min_new_tokens = number as usize,
            "suppress_tokens" => params.suppress_tokens = ids(value),
            "begin_suppress_tokens" => params.begin_suppress_tokens = ids(value),
            "forced_eos_token_id" => params.forced_eos_token_id = ids(value),
            "forced_bos_token_id" => params.forced_bos_token_id = Some(number as u32),
            "temperature" => params.temperature = number as f32,
            "top_k" => params.top_k = number as usize,
            "top_p" => params.top_p = number as f32,
            "min_p" => params.min_p = number as f32,
            other => panic!("unknown setting {other}"),
        }
    }
    params
}

#[test]
fn rows_equal_those_of_transformers() {
    let cases = cases();
    assert!(cases.len() > 150);
    let mut sampler = Sampler::default();
    let mut changed = 0;
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let params = params(case);
        let mut row: Vec<f32> = case["before"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
        let before = row.clone();
        let mut processors = LogitsProcessors::new(&params, &ids(&case["prompt"]));
        for token in ids(&case["answer"]) {
            processors.observe(token);
        }
        processors.apply(&mut row);
        assert!(!processors.is_identity() || row == before, "{name}");
        let step = ids(&case["answer"]).len() as u64;
        let sampled = sampler.sample(&mut row, &params, step).unwrap();
        let after = case["after"].as_array().unwrap();
        for (token, (&ours, theirs)) in row.iter().zip(after).enumerate() {
            match theirs.as_f64() {
                None => assert_eq!(ours, f32::NEG_INFINITY, "{name}: token {token} is banned"),
                Some(theirs) => {
                    assert!(
                        (f64::from(ours) - theirs).abs() <= 2e-6 * theirs.abs().max(1.0),
                        "{name}: token {token}: {ours} {theirs}"
                    );
                }
            }
        }
        assert!(!after[sampled.token as usize].is_null(), "{name}: chose banned token {}", sampled.token);
        if params.is_greedy() {
            let value = |i: usize| after[i].as_f64().unwrap_or(f64::NEG_INFINITY);
            let best = (1..after.len()).fold(0, |best, i| if value(i) > value(best) { i } else { best });
            assert_eq!(sampled.token as usize, best, "{name}");
        }
        changed += usize::from(row != before);
    }
    assert!(changed > 100, "{changed} rows changed");
}

/// Pearson's statistic of 20,000 draws. Its mean is the number of degrees of freedom (7), its standard deviation about
/// 3.7; the seed is fixed, so the outcome is too.
#[test]
fn draws_follow_the_distribution() {
    let logits = [0.3f32, -1.2, 2.0, 0.0, f32::NEG_INFINITY, 1.1, -0.4, 0.9, -2.5];
    let params = SamplingParams { temperature: 0.8, seed: 42, ..SamplingParams::default() };
    let weights: Vec<f64> = logits.iter().map(|&l| (f64::from(l) / 0.8).exp()).collect();
    let total: f64 = weights.iter().sum();
    let n = 20_000;
    let mut counts = [0usize; 9];
    let mut sampler = Sampler::new(9);
    for position in 0..n {
        counts[sampler.sample(&mut logits.clone(), &params, position).unwrap().token as usize] += 1;
    }
    assert_eq!(counts[4], 0);
    let statistic: f64 = counts
        .iter()
        .zip(&weights)
        .filter(|(_, weight)| **weight > 0.0)
        .map(|(&count, weight)| {
            let expected = weight / total * n as f64;
            (count as f64 - expected).powi(2) / expected
        })
        .sum();
    assert!(statistic < 30.0, "{statistic}: {counts:?}");
}

#[test]
fn a_draw_depends_on_seed_and_position_only() {
    let row: Vec<f32> = (0..500).map(|i| ((i * 7919) % 101) as f32 / 25.0).collect();
    let draw = |sampler: &mut Sampler, seed, position| {
        let params = SamplingParams { temperature: 1.0, seed, ..SamplingParams::default() };
        sampler.sample(&mut row.clone(), &params, position).unwrap().token
    };
    let mut first = Sampler::default();
    let forward: Vec<u32> = (0..50).map(|position| draw(&mut first, 1, position)).collect();
    let mut second = Sampler::default();
    let mut backward: Vec<u32> = (0..50).rev().map(|position| draw(&mut second, 1, position)).collect();
    backward.reverse();
    assert_eq!(forward, backward);
    assert_ne!(forward, (0..50).map(|position| draw(&mut first, 2, position)).collect::<Vec<_>>());
}

#[test]
fn log_probabilities_are_those_of_the_processed_row() {
    let mut row = [1.0f32, 3.0, f32::NEG_INFINITY, 3.0, 0.0];
    let params = SamplingParams { logprobs: Some(10), ..SamplingParams::default() };
    let sampled = Sampler::default().sample(&mut row, &params, 0).unwrap();
    let log_sum = (1f64.exp() + 2.0 * 3f64.exp() + 1.0).ln();
    let expected = [(1, 3.0 - log_sum), (3, 3.0 - log_sum), (0, 1.0 - log_sum), (4, -log_sum)];
    assert_eq!(sampled.token, 1, "the first of the greatest");
    assert_eq!(sampled.top.len(), 4, "a banned token has no log-probability");
    for ((token, logprob), (expected_token, expected)) in sampled.top.iter().zip(expected) {
        assert_eq!(*token, expected_token);
        assert!((f64::from(*logprob) - expected).abs() < 1e-6);
    }
    assert_eq!(sampled.logprob, Some(sampled.top[0].1));
    let two = SamplingParams { logprobs: Some(2), ..SamplingParams::default() };
    assert_eq!(Sampler::default().sample(&mut row, &two, 0).unwrap().top, sampled.top[..2]);
    let none = SamplingParams { logprobs: Some(0), ..SamplingParams::default() };
    let sampled = Sampler::default().sample(&mut row, &none, 0).unwrap();
    assert!(sampled.logprob.is_some() && sampled.top.is_empty());
}

#[test]
fn top_p_on_a_large_row_equals_a_full_sort() {
    let row: Vec<f32> = (0..20_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 16) as f32 / 30_000.0).collect();
    for p in [0.02f32, 0.5, 0.95, 0.999] {
        let params = SamplingParams { temperature: 1.0, top_p: p, ..SamplingParams::default() };
        let mut ours = row.clone();
        Sampler::default().sample(&mut ours, &params, 0).unwrap();
        let mut sorted: Vec<f64> = row.iter().map(|&x| f64::from(x).exp()).collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let total: f64 = sorted.iter().sum();
        let mut mass = 0.0;
        let expected = sorted
            .iter()
            .take_while(|x| {
                let more = mass < f64::from(p) * total;
                mass += **x;
                more
            })
            .count();
        let kept = ours.iter().filter(|x| x.is_finite()).count();
        assert!(kept.abs_diff(expected) <= 1, "p {p}: kept {kept}, expected {expected}");
        let least_kept = (0..row.len()).filter(|&i| ours[i].is_finite()).map(|i| row[i]).fold(f32::INFINITY, f32::min);
        let best_cut = (0..row.len()).filter(|&i| !ours[i].is_finite()).map(|i| row[i]).fold(0.0, f32::max);
        assert!(least_kept >= best_cut, "p {p}");
    }
}

#[test]
fn tiny_temperatures_and_bad_rows() {
    let mut sampler = Sampler::default();
    let cold = SamplingParams { temperature: 1e-38, ..SamplingParams::default() };
    assert_eq!(sampler.sample(&mut [-5.0, 12.0, 11.9], &cold, 3).unwrap().token, 1);
    let greedy = SamplingParams::default();
    for bad in [f32::NAN, f32::INFINITY] {
        for at in [0, 5, 17, 36] {
            let mut row = vec![0.5; 37];
            row[at] = bad;
            assert!(
                matches!(sampler.sample(&mut row, &greedy, 0), Err(Error::Model(m)) if m.contains(&format!("logit {at} ")))
            );
        }
    }
    let nothing = sampler.sample(&mut [f32::NEG_INFINITY; 40], &greedy, 0);
    assert!(matches!(nothing, Err(Error::Request(_))));
    assert!(sampler.sample(&mut [], &greedy, 0).is_err());
}
