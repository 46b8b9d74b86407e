//! How one request is decoded.
//!
//! In: flags of the request, the checkpoint's generation settings. Out: `SamplingParams`, checked. Owns: which of the
//! two wins. Not here: applying any of it (`logits.rs`, `sampler.rs`, `stop.rs`).

use super::stop::{MAX_STOP_BYTES, MAX_STOPS};
use crate::checkpoint::generation::{EarlyStopping, GenerationConfig};
use crate::{Error, Result};

/// Longest answer when neither the request nor the checkpoint says.
pub const DEFAULT_MAX_TOKENS: usize = 512;
/// Bounds that no real request meets; beyond them a number is taken for a mistake.
const MAX_MAX_TOKENS: usize = 1 << 30;
const MAX_LOGPROBS: usize = 1024;
const MAX_NUM_BEAMS: usize = 256;

/// Settings of one request, all decided.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy; above it, logits are divided by it and a token is drawn.
    pub temperature: f32,
    /// Tokens that stay, by logit; 0 is off.
    pub top_k: usize,
    /// Probability mass that stays, in (0, 1]; 1 is off.
    pub top_p: f32,
    /// Least probability that stays, as a fraction of the greatest, in [0, 1]; 0 is off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or answer; 1 is off.
    pub repetition_penalty: f32,
    /// No sequence of this many tokens occurs twice; 0 is off.
    pub no_repeat_ngram_size: usize,
    /// Token sequences that do not occur.
    pub bad_words_ids: Vec<Vec<u32>>,
    /// Tokens that do not occur.
    pub suppress_tokens: Vec<u32>,
    /// Tokens that do not occur at the first position.
    pub begin_suppress_tokens: Vec<u32>,
    /// The first token, where the prompt has one token (the start token of a decoder that has an encoder).
    pub forced_bos_token_id: Option<u32>,
    /// One of these is the token at the length limit.
    pub forced_eos_token_id: Vec<u32>,
    /// Tokens that end the answer.
    pub eos_token_id: Vec<u32>,
    /// Go on after an end token.
    pub ignore_eos: bool,
    /// No end token before this many tokens.
    pub min_new_tokens: usize,
    /// The answer's length limit, at least 1.
    pub max_tokens: usize,
    /// 1 is no beam search.
    pub num_beams: usize,
    /// Exponent of the length by which a beam's score is divided.
    pub length_penalty: f32,
    pub early_stopping: EarlyStopping,
    /// Seed of the draws.
    pub seed: u64,
    /// Log-probabilities are wanted, with this many of the most likely tokens a position.
    pub logprobs: Option<usize>,
    /// Strings that end the answer and are not part of it.
    pub stop: Vec<String>,
}

impl Default for SamplingParams {
    /// Greedy, without any processing.
    fn default() -> Self {
        SamplingParams {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            bad_words_ids: Vec::new(),
            suppress_tokens: Vec::new(),
            begin_suppress_tokens: Vec::new(),
            forced_bos_token_id: None,
            forced_eos_token_id: Vec::new(),
            eos_token_id: Vec::new(),
            ignore_eos: false,
            min_new_tokens: 0,
            max_tokens: DEFAULT_MAX_TOKENS,
            num_beams: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::No,
            seed: 0,
            logprobs: None,
            stop: Vec::new(),
        }
    }
}

/// What a request says itself; `None` leaves it to the checkpoint.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SamplingFlags {
    pub temperature: Option<f32>,
    /// Sample as the checkpoint's settings say, where they do.
    pub sample: bool,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub no_repeat_ngram_size: Option<usize>,
    pub num_beams: Option<usize>,
    pub min_new_tokens: Option<usize>,
    pub max_tokens: Option<usize>,
    pub ignore_eos: bool,
    pub seed: Option<u64>,
    pub logprobs: Option<usize>,
    pub stop: Vec<String>,
}

impl SamplingParams {
    /// Merges a request's flags with the checkpoint's settings: a flag wins; without one the checkpoint's setting
    /// holds under temperature 0 too. The temperature itself is 0 unless a flag names one, or asks to sample and the
    /// checkpoint does. `prompt_len` is the number of the decoder's input tokens, which min_length and max_length count.
    ///
    /// # Errors
    /// `Error::Request` as [`SamplingParams::validate`]; also when the checkpoint's max_length leaves no room for an
    /// answer.
    pub fn from_generation_config(flags: &SamplingFlags, config: &GenerationConfig, prompt_len: usize) -> Result<Self> {
        let default = SamplingParams::default();
        let sampled = flags.sample && config.do_sample == Some(true);
        let temperature = match flags.temperature {
            Some(temperature) => temperature,
            None if sampled => config.temperature.unwrap_or(1.0) as f32,
            None => 0.0,
        };
        let max_tokens = match (flags.max_tokens.or(config.max_new_tokens), config.max_length) {
            (Some(max_tokens), _) => max_tokens,
            (None, Some(max_length)) if max_length <= prompt_len => {
                return Err(Error::Request(format!(
                    "max_tokens: the checkpoint limits prompt and answer to {max_length} tokens together, the prompt \
                     has {prompt_len}; give a limit of the answer"
                )));
            }
            (None, Some(max_length)) => max_length - prompt_len,
            (None, None) => DEFAULT_MAX_TOKENS,
        };
        let min_length = config.min_length.unwrap_or(0).saturating_sub(prompt_len);
        let min_new_tokens = flags
            .min_new_tokens
            // The checkpoint's own floor gives way to a limit that the request sets.
            .unwrap_or_else(|| config.min_new_tokens.unwrap_or(0).max(min_length).min(max_tokens));
        let mut stop = config.stop_strings.clone();
        stop.extend(flags.stop.iter().cloned());
        let params = SamplingParams {
            temperature,
            top_k: flags.top_k.or(config.top_k).unwrap_or(default.top_k),
            top_p: flags.top_p.or(config.top_p.map(|p| p as f32)).unwrap_or(default.top_p),
            min_p: flags.min_p.or(config.min_p.map(|p| p as f32)).unwrap_or(default.min_p),
            repetition_penalty: flags
                .repetition_penalty
                .or(config.repetition_penalty.map(|p| p as f32))
                .unwrap_or(default.repetition_penalty),
            no_repeat_ngram_size: flags.no_repeat_ngram_size.or(config.no_repeat_ngram_size).unwrap_or(0),
            bad_words_ids: config.bad_words_ids.clone(),
            suppress_tokens: config.suppress_tokens.clone(),
            begin_suppress_tokens: config.begin_suppress_tokens.clone(),
            forced_bos_token_id: config.forced_bos_token_id,
            forced_eos_token_id: config.forced_eos_token_id.clone(),
            eos_token_id: config.eos_token_id.clone(),
            ignore_eos: flags.ignore_eos,
            min_new_tokens,
            max_tokens,
            num_beams: flags.num_beams.or(config.num_beams).unwrap_or(1),
            length_penalty: config.length_penalty.map_or(default.length_penalty, |p| p as f32),
            early_stopping: config.early_stopping.unwrap_or(default.early_stopping),
            seed: flags.seed.unwrap_or(default.seed),
            logprobs: flags.logprobs,
            stop,
        };
        params.validate()?;
        Ok(params)
    }

    /// Checks every range.
    ///
    /// # Errors
    /// `Error::Request` naming the field, the range and what was found.
    pub fn validate(&self) -> Result<()> {
        number("temperature", self.temperature, "a number of 0 or more", |x| x >= 0.0)?;
        number("top_p", self.top_p, "a number above 0 and at most 1", |x| x > 0.0 && x <= 1.0)?;
        number("min_p", self.min_p, "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))?;
        number("repetition_penalty", self.repetition_penalty, "a number above 0", |x| x > 0.0)?;
        number("length_penalty", self.length_penalty, "a number", |_| true)?;
        count("max_tokens", self.max_tokens, 1, MAX_MAX_TOKENS)?;
        count("min_new_tokens", self.min_new_tokens, 0, self.max_tokens)?;
        count("num_beams", self.num_beams, 1, MAX_NUM_BEAMS)?;
        count("logprobs", self.logprobs.unwrap_or(0), 0, MAX_LOGPROBS)?;
        count("stop: number of strings", self.stop.len(), 0, MAX_STOPS)?;
        for (i, stop) in self.stop.iter().enumerate() {
            count(&format!("stop[{i}]: number of bytes"), stop.len(), 1, MAX_STOP_BYTES)?;
        }
        if let Some(i) = self.bad_words_ids.iter().position(Vec::is_empty) {
            return Err(Error::Request(format!("bad_words_ids[{i}]: expected at least one token id, got none")));
        }
        Ok(())
    }

    /// Whether the most likely token is taken instead of a drawn one.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }
}

fn number(field: &str, x: f32, expected: &str, fits: impl Fn(f32) -> bool) -> Result<()> {
    if x.is_finite() && fits(x) {
        return Ok(());
    }
    Err(Error::Request(format!("{field}: expected {expected}, got {x}")))
}

fn count(field: &str, n: usize, least: usize, most: usize) -> Result<()> {
    if (least..=most).contains(&n) {
        return Ok(());
    }
    Err(Error::Request(format!("{field}: expected {least} to {most}, got {n}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_range_names_the_field() {
        type Change = fn(&mut SamplingParams);
        let cases: [(&str, Change); 16] = [
            ("temperature: expected a number of 0 or more, got NaN", |p| p.temperature = f32::NAN),
            ("temperature: expected a number of 0 or more, got -1", |p| p.temperature = -1.0),
            ("temperature: expected a number of 0 or more, got inf", |p| p.temperature = f32::INFINITY),
            ("top_p: expected a number above 0 and at most 1, got 2", |p| p.top_p = 2.0),
            ("top_p: ", |p| p.top_p = 0.0),
            ("min_p: expected a number from 0 to 1, got -0.1", |p| p.min_p = -0.1),
            ("repetition_penalty: expected a number above 0, got 0", |p| p.repetition_penalty = 0.0),
            ("length_penalty: ", |p| p.length_penalty = f32::NAN),
            ("max_tokens: expected 1 to 1073741824, got 0", |p| p.max_tokens = 0),
            ("max_tokens: expected 1 to 1073741824, got 1000000000000", |p| p.max_tokens = 1_000_000_000_000),
            ("min_new_tokens: expected 0 to 512, got 513", |p| p.min_new_tokens = 513),
            ("num_beams: expected 1 to 256, got 0", |p| p.num_beams = 0),
            ("logprobs: expected 0 to 1024, got 5000", |p| p.logprobs = Some(5000)),
            ("stop[1]: number of bytes: expected 1 to 4096, got 0", |p| p.stop = vec!["a".into(), String::new()]),
            ("stop: number of strings: expected 0 to 256, got 10000", |p| p.stop = vec!["a".into(); 10_000]),
            ("bad_words_ids[0]: ", |p| p.bad_words_ids = vec![vec![]]),
        ];
        assert!(SamplingParams::default().validate().is_ok());
        for (expected, change) in cases {
            let mut params = SamplingParams::default();
            change(&mut params);
            match params.validate() {
                Err(Error::Request(message)) => assert!(message.starts_with(expected), "{message}"),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_flag_wins_over_the_checkpoint() {
        let config = GenerationConfig {
            eos_token_id: vec![2, 32002],
            do_sample: Some(true),
            temperature: Some(0.7),
            top_k: Some(20),
            top_p: Some(0.8),
            repetition_penalty: Some(1.05),
            no_repeat_ngram_size: Some(3),
            bad_words_ids: vec![vec![32000]],
            num_beams: Some(3),
            max_length: Some(100),
            min_length: Some(15),
            stop_strings: vec!["END".into()],
            ..GenerationConfig::default()
        };
        let merged = SamplingParams::from_generation_config(&SamplingFlags::default(), &config, 10).unwrap();
        assert_eq!((merged.temperature, merged.repetition_penalty, merged.num_beams), (0.0, 1.05, 3));
        assert_eq!((merged.max_tokens, merged.min_new_tokens, merged.no_repeat_ngram_size), (90, 5, 3));
        assert_eq!((merged.eos_token_id.as_slice(), merged.bad_words_ids.len()), ([2, 32002].as_slice(), 1));

        let sampled = SamplingFlags { sample: true, ..SamplingFlags::default() };
        assert_eq!(SamplingParams::from_generation_config(&sampled, &config, 10).unwrap().temperature, 0.7);
        let never = GenerationConfig { do_sample: Some(false), ..config.clone() };
        assert_eq!(SamplingParams::from_generation_config(&sampled, &never, 10).unwrap().temperature, 0.0);

        let flags = SamplingFlags {
            temperature: Some(0.2),
            top_k: Some(0),
            top_p: Some(1.0),
            repetition_penalty: Some(1.0),
            no_repeat_ngram_size: Some(0),
            num_beams: Some(1),
            max_tokens: Some(3),
            seed: Some(9),
            stop: vec!["\n".into()],
            ..SamplingFlags::default()
        };
        let merged = SamplingParams::from_generation_config(&flags, &config, 10).unwrap();
        assert_eq!((merged.temperature, merged.top_k, merged.top_p, merged.repetition_penalty), (0.2, 0, 1.0, 1.0));
        assert_eq!((merged.no_repeat_ngram_size, merged.num_beams, merged.max_tokens, merged.seed), (0, 1, 3, 9));
        assert_eq!((merged.min_new_tokens, merged.stop), (3, vec!["END".to_string(), "\n".to_string()]));

        let message = SamplingParams::from_generation_config(&SamplingFlags::default(), &config, 100).unwrap_err();
        assert!(message.to_string().contains("max_tokens"), "{message}");
    }
}
