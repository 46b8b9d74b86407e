//! How a checkpoint wants to be sampled: generation_config.json, with config.json behind it.
//!
//! In: a checkpoint's directory. Out: one checked [`GenerationConfig`]. Not here: command-line flags, which win
//! over it, and applying any of it (run/sampler).

use std::path::Path;

use super::config::{ConfigFile, Section};
use crate::Result;

/// Settings of generation by transformers' names. `None` is "not written": the caller's own default holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// Tokens that end an answer; empty where the checkpoint names none.
    pub eos_token_id: Vec<u32>,
    pub bos_token_id: Option<u32>,
    pub pad_token_id: Option<u32>,
    /// First input token of a decoder that has an encoder.
    pub decoder_start_token_id: Option<u32>,
    /// First token of every answer.
    pub forced_bos_token_id: Option<u32>,
    /// Tokens of which one is forced at the last position that max_length allows.
    pub forced_eos_token_id: Vec<u32>,
    pub do_sample: Option<bool>,
    /// At least 0; 0 is greedy.
    pub temperature: Option<f64>,
    /// 0 is off.
    pub top_k: Option<usize>,
    /// In (0, 1]; 1 is off.
    pub top_p: Option<f64>,
    /// In [0, 1]; 0 is off.
    pub min_p: Option<f64>,
    /// Above 0; 1 is off.
    pub repetition_penalty: Option<f64>,
    /// 0 is off.
    pub no_repeat_ngram_size: Option<usize>,
    /// Token sequences that an answer must not hold; none is empty.
    pub bad_words_ids: Vec<Vec<u32>>,
    /// Tokens that an answer must not hold, anywhere and as its first token.
    pub suppress_tokens: Vec<u32>,
    pub begin_suppress_tokens: Vec<u32>,
    /// At least 1.
    pub num_beams: Option<usize>,
    pub length_penalty: Option<f64>,
    pub early_stopping: Option<EarlyStopping>,
    /// Prompt and answer together.
    pub max_length: Option<usize>,
    /// The answer alone.
    pub max_new_tokens: Option<usize>,
    /// Prompt and answer together.
    pub min_length: Option<usize>,
    /// The answer alone.
    pub min_new_tokens: Option<usize>,
    /// Strings that end an answer.
    pub stop_strings: Vec<String>,
    /// Keys that change the answer in the reference and that the engine does not know; worth a warning.
    pub unsupported: Vec<String>,
}

/// When beam search ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlyStopping {
    /// `true`: as soon as num_beams answers are complete.
    Yes,
    /// `false`: when no better answer is likely.
    No,
    /// `"never"`: when no better answer is possible.
    Never,
}

impl GenerationConfig {
    /// Reads generation_config.json in `dir`. Token ids that it does not name come from `config` (config.json),
    /// there from the top level and then from the decoder's section. Where the file is missing, everything does,
    /// as transformers' `GenerationConfig.from_model_config` has it.
    ///
    /// Errors: [`crate::Error::Config`] naming file, key, what was expected and what was found.
    pub fn read(dir: &Path, config: &ConfigFile) -> Result<GenerationConfig> {
        let own = ConfigFile::read_if_present(&dir.join("generation_config.json"))?;
        GenerationConfig::from_files(own.as_ref(), config)
    }

    /// As [`GenerationConfig::read`], from files already parsed.
    pub fn from_files(own: Option<&ConfigFile>, config: &ConfigFile) -> Result<GenerationConfig> {
        let mut behind = vec![config.root()];
        for key in ["decoder", "generator", "text_config"] {
            if let Some(section) = config.root().section_if_present(key)? {
                behind.push(section);
                break;
            }
        }
        let front: Vec<Section<'_>> = own.iter().map(|f| f.root()).collect();
        let all = Sources(front.iter().chain(&behind).cloned().collect());
        let settings = if front.is_empty() { Sources(behind) } else { Sources(front) };
        Ok(GenerationConfig {
            eos_token_id: all.token_ids("eos_token_id")?,
            bos_token_id: all.token_id("bos_token_id")?,
            pad_token_id: all.pad_token_id()?,
            decoder_start_token_id: all.token_id("decoder_start_token_id")?,
            forced_bos_token_id: all.token_id("forced_bos_token_id")?,
            forced_eos_token_id: all.token_ids("forced_eos_token_id")?,
            do_sample: settings.first("do_sample", |s, k| s.flag_if_present(k))?,
            temperature: settings.number("temperature", "a number of 0 or more", |x| x >= 0.0)?,
            top_k: settings.count("top_k")?,
            top_p: settings.number("top_p", "a number above 0 and at most 1", |x| x > 0.0 && x <= 1.0)?,
            min_p: settings.number("min_p", "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))?,
            repetition_penalty: settings.number("repetition_penalty", "a number above 0", |x| x > 0.0)?,
            no_repeat_ngram_size: settings.count("no_repeat_ngram_size")?,
            bad_words_ids: settings.first("bad_words_ids", bad_words)?.unwrap_or_default(),
            suppress_tokens: settings.token_ids("suppress_tokens")?,
            begin_suppress_tokens: settings.token_ids("begin_suppress_tokens")?,
            num_beams: settings.first("num_beams", |s, k| s.size_if_present(k))?,
            length_penalty: settings.number("length_penalty", "a number", |_| true)?,
            early_stopping: settings.first("early_stopping", early_stopping)?,
            max_length: settings.count("max_length")?,
            max_new_tokens: settings.count("max_new_tokens")?,
            min_length: settings.count("min_length")?,
            min_new_tokens: settings.count("min_new_tokens")?,
            stop_strings: settings.first("stop_strings", strings)?.unwrap_or_default(),
            unsupported: settings.unsupported(),
        })
    }
}

/// Sections in order of precedence: the first that writes a key decides.
struct Sources<'a>(Vec<Section<'a>>);

impl<'a> Sources<'a> {
    fn first<T>(&self, key: &str, get: impl Fn(&Section<'a>, &str) -> Result<Option<T>>) -> Result<Option<T>> {
        for section in &self.0 {
            if let Some(value) = get(section, key)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    fn count(&self, key: &str) -> Result<Option<usize>> {
        self.first(key, |s, k| s.count_if_present(k))
    }

    fn number(&self, key: &str, expected: &str, fits: impl Fn(f64) -> bool) -> Result<Option<f64>> {
        self.first(key, |s, k| match s.number_if_present(k)? {
            Some(x) if !fits(x) => Err(s.error(k, expected)),
            x => Ok(x),
        })
    }

    /// A list of token ids, or one as a list of one; empty where nothing is written.
    fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let ids = self.first(key, |s, k| match s.value(k) {
            Some(v) if v.is_array() => Ok(s.counts_if_present(k)?.map(|l| l.into_iter().map(|i| i as u32).collect())),
            _ => Ok(s.count_if_present(k)?.map(|i| vec![i as u32])),
        })?;
        Ok(ids.unwrap_or_default())
    }

    fn token_id(&self, key: &str) -> Result<Option<u32>> {
        Ok(self.count(key)?.map(|i| i as u32))
    }

    /// The first Llama checkpoints write -1 for "no padding token".
    fn pad_token_id(&self) -> Result<Option<u32>> {
        let id = self.first("pad_token_id", |s, k| match s.value(k).and_then(|v| v.as_i64()) {
            Some(-1) => Ok(Some(None)),
            _ => Ok(s.count_if_present(k)?.map(Some)),
        })?;
        Ok(id.flatten().map(|i| i as u32))
    }

    fn unsupported(&self) -> Vec<String> {
        // Each with the value at which the reference leaves it out.
        let neutral: &[(&str, f64)] = &[
            ("typical_p", 1.0),
            ("epsilon_cutoff", 0.0),
            ("eta_cutoff", 0.0),
            ("top_h", 1.0),
            ("encoder_repetition_penalty", 1.0),
            ("encoder_no_repeat_ngram_size", 0.0),
            ("diversity_penalty", 0.0),
            ("num_beam_groups", 1.0),
            ("penalty_alpha", 0.0),
            ("guidance_scale", 1.0),
            ("exponential_decay_length_penalty", f64::NAN),
            ("sequence_bias", f64::NAN),
            ("constraints", f64::NAN),
            ("force_words_ids", f64::NAN),
            ("dola_layers", f64::NAN),
            ("watermarking_config", f64::NAN),
        ];
        let written = |key: &str, neutral: f64| {
            self.0.iter().find_map(|s| s.value(key)).is_some_and(|v| v.as_f64().is_none_or(|x| x != neutral))
        };
        neutral.iter().filter(|(k, n)| written(k, *n)).map(|(k, _)| k.to_string()).collect()
    }
}

fn bad_words(section: &Section<'_>, key: &str) -> Result<Option<Vec<Vec<u32>>>> {
    let Some(value) = section.value(key) else { return Ok(None) };
    let word = |v: &serde_json::Value| -> Option<Vec<u32>> {
        let ids: Option<Vec<u32>> = v.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect();
        ids.filter(|ids| !ids.is_empty())
    };
    let list: Option<Vec<_>> = value.as_array().and_then(|l| l.iter().map(word).collect());
    list.map(Some).ok_or_else(|| section.error(key, "a list of lists of token ids"))
}

fn early_stopping(section: &Section<'_>, key: &str) -> Result<Option<EarlyStopping>> {
    match section.value(key) {
        None => Ok(None),
        Some(serde_json::Value::Bool(true)) => Ok(Some(EarlyStopping::Yes)),
        Some(serde_json::Value::Bool(false)) => Ok(Some(EarlyStopping::No)),
        Some(serde_json::Value::String(s)) if s == "never" => Ok(Some(EarlyStopping::Never)),
        Some(_) => Err(section.error(key, "true, false or \"never\"")),
    }
}

fn strings(section: &Section<'_>, key: &str) -> Result<Option<Vec<String>>> {
    let list: Option<Vec<String>> = match section.value(key) {
        None => return Ok(None),
        Some(serde_json::Value::String(s)) => Some(vec![s.clone()]),
        Some(v) => v.as_array().and_then(|l| l.iter().map(|s| s.as_str().map(str::to_string)).collect()),
    };
    list.map(Some).ok_or_else(|| section.error(key, "a string or a list of strings"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(own: Option<&str>, config: &str) -> Result<GenerationConfig> {
        let own = own.map(|t| ConfigFile::parse("generation_config.json", t.as_bytes()).unwrap());
        GenerationConfig::from_files(own.as_ref(), &ConfigFile::parse("config.json", config.as_bytes()).unwrap())
    }

    #[test]
    fn own_file_decides_and_config_fills_token_ids() {
        let g = read(
            Some(
                r#"{"eos_token_id": [2, 32002], "bad_words_ids": [[32000], [32001]], "pad_token_id": -1, "top_p": 0.9,
                    "do_sample": true, "forced_eos_token_id": 5, "early_stopping": "never", "typical_p": 0.9,
                    "epsilon_cutoff": 0.0, "stop_strings": "END"}"#,
            ),
            r#"{"eos_token_id": 7, "bos_token_id": 1, "num_beams": 4, "text_config": {"decoder_start_token_id": 3}}"#,
        )
        .unwrap();
        assert_eq!(g.eos_token_id, [2, 32002]);
        assert_eq!(g.bad_words_ids, [[32000], [32001]]);
        assert_eq!((g.bos_token_id, g.pad_token_id, g.decoder_start_token_id), (Some(1), None, Some(3)));
        assert_eq!((g.do_sample, g.top_p, g.forced_eos_token_id), (Some(true), Some(0.9), vec![5]));
        assert_eq!((g.early_stopping, g.stop_strings), (Some(EarlyStopping::Never), vec!["END".to_string()]));
        assert_eq!(g.num_beams, None, "config.json's settings hold only where there is no generation_config.json");
        assert_eq!(g.unsupported, ["typical_p"]);
    }

    #[test]
    fn config_stands_in_for_a_missing_file() {
        let g = read(
            None,
            r#"{"eos_token_id": 2, "max_length": 20,
                "text_config": {"eos_token_id": 9, "num_beams": 3, "no_repeat_ngram_size": 3, "forced_bos_token_id": 0}}"#,
        )
        .unwrap();
        assert_eq!((g.eos_token_id, g.max_length), (vec![2], Some(20)));
        assert_eq!((g.num_beams, g.no_repeat_ngram_size, g.forced_bos_token_id), (Some(3), Some(3), Some(0)));
        assert_eq!(read(None, r#"{"text_config": {"eos_token_id": [4, 5]}}"#).unwrap().eos_token_id, [4, 5]);
        assert_eq!(read(Some("{}"), "{}").unwrap(), GenerationConfig::default());
    }

    #[test]
    fn nonsense_is_refused_by_key() {
        for (text, want) in [
            (r#"{"eos_token_id": -2}"#, "eos_token_id"),
            (r#"{"eos_token_id": [1, "x"]}"#, "eos_token_id"),
            (r#"{"eos_token_id": 4294967296}"#, "eos_token_id"),
            (r#"{"pad_token_id": -2}"#, "pad_token_id"),
            (r#"{"top_p": 0}"#, "top_p: expected a number above 0 and at most 1, got 0"),
            (r#"{"temperature": -1}"#, "temperature"),
            (r#"{"min_p": 1.1}"#, "min_p"),
            (r#"{"num_beams": 0}"#, "num_beams"),
            (r#"{"bad_words_ids": [[]]}"#, "bad_words_ids: expected a list of lists of token ids, got [[]]"),
            (r#"{"early_stopping": 1}"#, "early_stopping"),
            (r#"{"stop_strings": [1]}"#, "stop_strings"),
            (r#"{"max_new_tokens": 1e12}"#, "max_new_tokens"),
        ] {
            let got = read(Some(text), "{}").unwrap_err().to_string();
            assert!(got.starts_with("config: generation_config.json: ") && got.contains(want), "{text}: {got}");
        }
    }
}
