//! Rotary position embedding settings in the spellings of transformers 4 and 5.
//!
//! In: a section of config.json. Out: one checked [`RopeParameters`]. Not here: frequencies (models/positions),
//! M-RoPE's meaning (the family).
//!
//! transformers 5 writes `rope_parameters {rope_type, rope_theta, factor, ...}`; transformers 4 `rope_theta` beside
//! `rope_scaling {type or rope_type, factor, ...}` or null. Both may carry `partial_rotary_factor` outside.

use super::config::Section;
use crate::Result;

/// Rotary settings of one decoder or encoder; every number is finite and positive.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeParameters {
    /// Base of the frequencies.
    pub rope_theta: f64,
    /// Part of head_dim that is rotated, in (0, 1].
    pub partial_rotary_factor: f64,
    pub scaling: RopeScaling,
    /// Rotated pairs for each of the position components (temporal, height, width); None for one component.
    pub mrope_section: Option<Vec<usize>>,
}

/// How frequencies are stretched beyond the trained context (`rope_type`).
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// `default`: not at all.
    None,
    /// `linear`: all frequencies divided by `factor`.
    Linear { factor: f64 },
    /// `dynamic`: NTK, the base grows with the sequence.
    Dynamic { factor: f64, original_max_position_embeddings: Option<usize> },
    /// `llama3`: low frequencies divided by `factor`, a ramp between the two wavelengths.
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_max_position_embeddings: usize },
    /// `yarn` (arXiv 2309.00071).
    Yarn {
        factor: f64,
        original_max_position_embeddings: usize,
        attention_factor: Option<f64>,
        beta_fast: f64,
        beta_slow: f64,
        mscale: Option<f64>,
        mscale_all_dim: Option<f64>,
        truncate: bool,
    },
    /// `longrope` (arXiv 2402.13753), formerly `su`: one divisor for each rotated pair.
    LongRope {
        short_factor: Vec<f64>,
        long_factor: Vec<f64>,
        original_max_position_embeddings: usize,
        attention_factor: Option<f64>,
        factor: Option<f64>,
    },
}

impl RopeParameters {
    /// Reads the settings of a model section (`text_config` or the top level). `default_theta` is the class
    /// default where no base is written. Errors: [`crate::Error::Config`] naming the key.
    pub fn read(config: &Section<'_>, default_theta: f64) -> Result<RopeParameters> {
        // transformers lets a rope_scaling that is not null or empty win over rope_parameters.
        let old = config.section_if_present("rope_scaling")?.filter(|s| !s.map().is_empty());
        let inner = match old {
            Some(s) => Some(s),
            None => config.section_if_present("rope_parameters")?.filter(|s| !s.map().is_empty()),
        };
        let outer_theta = config.positive_if_present("rope_theta")?;
        let outer_partial = config.positive_if_present("partial_rotary_factor")?;
        let Some(rope) = inner else {
            return Ok(RopeParameters {
                rope_theta: outer_theta.unwrap_or(default_theta),
                partial_rotary_factor: partial(config, outer_partial)?,
                scaling: RopeScaling::None,
                mrope_section: None,
            });
        };
        if let Some(key) = rope.map().iter().find(|(_, v)| v.is_object()).map(|(k, _)| k) {
            return Err(rope.error(key, "a number (settings for each type of layer are not supported)"));
        }
        let inner_partial = rope.positive_if_present("partial_rotary_factor")?;
        Ok(RopeParameters {
            rope_theta: rope.positive_if_present("rope_theta")?.or(outer_theta).unwrap_or(default_theta),
            partial_rotary_factor: match inner_partial {
                Some(_) => partial(&rope, inner_partial)?,
                None => partial(config, outer_partial)?,
            },
            scaling: scaling(config, &rope)?,
            mrope_section: rope.counts_if_present("mrope_section")?,
        })
    }
}

fn partial(section: &Section<'_>, value: Option<f64>) -> Result<f64> {
    match value {
        Some(x) if x > 1.0 => Err(section.error("partial_rotary_factor", "a number above 0 and at most 1")),
        x => Ok(x.unwrap_or(1.0)),
    }
}

fn scaling(config: &Section<'_>, rope: &Section<'_>) -> Result<RopeScaling> {
    let key = if rope.value("rope_type").is_some() { "rope_type" } else { "type" };
    // The length of training lies beside the rope object in some checkpoints, which wins; where it lies nowhere,
    // the model was trained at its full length.
    let original = || match config.size_if_present("original_max_position_embeddings")? {
        Some(n) => Ok(n),
        None => match rope.size_if_present("original_max_position_embeddings")? {
            Some(n) => Ok(n),
            None => config.size("max_position_embeddings"),
        },
    };
    Ok(match rope.text_if_present(key)?.unwrap_or("default") {
        // M-RoPE scales nothing; its sections are read beside.
        "default" | "mrope" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: rope.positive("factor")? },
        "dynamic" => RopeScaling::Dynamic {
            factor: rope.positive("factor")?,
            original_max_position_embeddings: rope.size_if_present("original_max_position_embeddings")?,
        },
        "llama3" => {
            let (low, high) = (rope.positive("low_freq_factor")?, rope.positive("high_freq_factor")?);
            if high <= low {
                return Err(rope.error("high_freq_factor", format!("a number above low_freq_factor ({low})")));
            }
            RopeScaling::Llama3 {
                factor: rope.positive("factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original()?,
            }
        }
        "yarn" => RopeScaling::Yarn {
            factor: rope.positive("factor")?,
            original_max_position_embeddings: original()?,
            attention_factor: rope.positive_if_present("attention_factor")?,
            beta_fast: rope.positive_if_present("beta_fast")?.unwrap_or(32.0),
            beta_slow: rope.positive_if_present("beta_slow")?.unwrap_or(1.0),
            mscale: rope.number_if_present("mscale")?,
            mscale_all_dim: rope.number_if_present("mscale_all_dim")?,
            truncate: rope.flag_if_present("truncate")?.unwrap_or(true),
        },
        "longrope" | "su" => RopeScaling::LongRope {
            short_factor: divisors(rope, "short_factor")?,
            long_factor: divisors(rope, "long_factor")?,
            original_max_position_embeddings: original()?,
            attention_factor: rope.positive_if_present("attention_factor")?,
            factor: rope.positive_if_present("factor")?,
        },
        _ => return Err(rope.error(key, "one of default, linear, dynamic, llama3, yarn, longrope, mrope")),
    })
}

fn divisors(rope: &Section<'_>, key: &str) -> Result<Vec<f64>> {
    match rope.numbers_if_present(key)? {
        Some(list) if !list.is_empty() && list.iter().all(|&x| x.is_finite() && x > 0.0) => Ok(list),
        _ => Err(rope.error(key, "a list of numbers above 0")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::ConfigFile;
    use super::*;

    fn read(text: &str) -> Result<RopeParameters> {
        RopeParameters::read(&ConfigFile::parse("config.json", text.as_bytes()).unwrap().root(), 10000.0)
    }

    #[test]
    fn both_spellings_agree() {
        let llama3 = r#""factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192"#;
        let old =
            read(&format!(r#"{{"rope_theta": 5e5, "rope_scaling": {{"rope_type": "llama3", {llama3}}}}}"#)).unwrap();
        let older = read(&format!(r#"{{"rope_theta": 5e5, "rope_scaling": {{"type": "llama3", {llama3}}}}}"#)).unwrap();
        let new = read(&format!(r#"{{"rope_parameters": {{"rope_type": "llama3", "rope_theta": 500000, {llama3}}}}}"#))
            .unwrap();
        assert_eq!(old, new);
        assert_eq!(older, new);
        assert_eq!(new.rope_theta, 500000.0);
        assert_eq!(
            new.scaling,
            RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 8192
            }
        );
        let plain = read(r#"{"rope_theta": 1000000.0, "rope_scaling": null}"#).unwrap();
        assert_eq!(plain, read(r#"{"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}"#).unwrap());
        assert_eq!(read("{}").unwrap().rope_theta, 10000.0);
        let mrope =
            read(r#"{"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}"#).unwrap();
        assert_eq!((mrope.scaling, mrope.mrope_section), (RopeScaling::None, Some(vec![16, 24, 24])));
        let partial = read(r#"{"partial_rotary_factor": 0.5, "rope_parameters": {"rope_theta": 3}}"#).unwrap();
        assert_eq!((partial.partial_rotary_factor, partial.rope_theta), (0.5, 3.0));
    }

    #[test]
    fn length_of_training_is_found_outside() {
        let longrope = read(
            r#"{"original_max_position_embeddings": 4096, "max_position_embeddings": 131072,
                "rope_scaling": {"type": "su", "short_factor": [1.0, 1.1], "long_factor": [2.0, 3]}}"#,
        );
        let Ok(RopeParameters {
            scaling: RopeScaling::LongRope { original_max_position_embeddings: n, long_factor, .. },
            ..
        }) = longrope
        else {
            panic!("{longrope:?}")
        };
        assert_eq!((n, long_factor), (4096, vec![2.0, 3.0]));
        let yarn = read(r#"{"max_position_embeddings": 77, "rope_parameters": {"rope_type": "yarn", "factor": 4}}"#);
        assert!(matches!(
            yarn.unwrap().scaling,
            RopeScaling::Yarn { original_max_position_embeddings: 77, truncate: true, .. }
        ));
    }

    #[test]
    fn nonsense_is_refused_by_key() {
        for (text, want) in [
            (r#"{"rope_theta": 0}"#, "rope_theta: expected a number above 0, got 0"),
            (r#"{"rope_theta": "x"}"#, "rope_theta: expected a number, got \"x\""),
            (r#"{"rope_scaling": {"type": "magic"}}"#, "rope_scaling.type: expected one of default"),
            (r#"{"rope_scaling": {"type": "linear"}}"#, "rope_scaling.factor: expected a number above 0, got nothing"),
            (r#"{"rope_parameters": {"rope_type": "linear", "factor": -1}}"#, "rope_parameters.factor"),
            (r#"{"rope_scaling": {"type": "su", "short_factor": [0]}}"#, "rope_scaling.short_factor"),
            (r#"{"partial_rotary_factor": 1.5}"#, "partial_rotary_factor: expected a number above 0 and at most 1"),
            (r#"{"rope_parameters": {"full_attention": {"rope_theta": 1}}}"#, "rope_parameters.full_attention"),
            (r#"{"rope_scaling": 3}"#, "rope_scaling: expected an object, got 3"),
            (
                r#"{"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}}"#,
                "high_freq_factor: expected a number above low_freq_factor (4), got 4",
            ),
        ] {
            let got = read(text).unwrap_err().to_string();
            assert!(got.contains(want), "{text}: {got}");
        }
    }
}
