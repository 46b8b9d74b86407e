//! Kinds of captions by name, as captioning tools for training data have them: a prompt for each, at any length, with wishes.
//!
//! In: styles.json, in our own words; what the flags ask for. Out: one prompt. Not here: file names in prompts.

use serde::Deserialize;

use crate::{Error, Result};

/// The file of styles.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Styles {
    /// Words that `--length` knows beside numbers and `any`.
    pub lengths: Vec<String>,
    pub styles: Vec<Style>,
    /// The sentence of `--name`.
    name: String,
    pub options: Vec<Wish>,
}

/// One kind of caption.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Style {
    pub name: String,
    any: String,
    words: String,
    size: String,
    /// Between an existing caption and a new one; lists of tags have commas.
    #[serde(default = "space")]
    pub separator: String,
}

/// An extra sentence.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    pub name: String,
    pub text: String,
}

fn space() -> String {
    " ".to_string()
}

impl Styles {
    /// The built-in ones.
    pub fn read() -> Result<Styles> {
        serde_json::from_str(include_str!("styles.json")).map_err(|e| Error::Internal(format!("styles.json: {e}")))
    }

    /// Errors: [`Error::Request`] that lists the names.
    pub fn style(&self, name: &str) -> Result<&Style> {
        self.styles.iter().find(|s| s.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.styles.iter().map(|s| s.name.as_str()).collect();
            Error::Request(format!("--style {name}: expected one of {}", names.join(", ")))
        })
    }

    /// The prompt of a style. Errors: [`Error::Request`] for a length or wish that is not known.
    pub fn prompt(&self, style: &Style, length: &str, subject: Option<&str>, wishes: &[String]) -> Result<String> {
        let mut prompt = match length.parse::<u32>() {
            Ok(words) if (1..=10_000).contains(&words) => style.words.replace("{words}", length),
            _ if length == "any" => style.any.clone(),
            _ if self.lengths.iter().any(|l| l == length) => style.size.replace("{size}", &length.replace('-', " ")),
            _ => {
                return Err(Error::Request(format!(
                    "--length {length}: expected any, a number of words from 1 to 10000, or one of {}",
                    self.lengths.join(", ")
                )));
            }
        };
        if let Some(subject) = subject {
            prompt = format!("{prompt} {}", self.name.replace("{subject}", subject));
        }
        for wish in wishes {
            let found = self.options.iter().find(|o| o.name == *wish).ok_or_else(|| {
                let names: Vec<&str> = self.options.iter().map(|o| o.name.as_str()).collect();
                Error::Request(format!("--option {wish}: expected one of {}", names.join(", ")))
            })?;
            prompt = format!("{prompt} {}", found.text);
        }
        Ok(prompt)
    }

    /// Names and prompts, for people.
    pub fn listing(&self) -> String {
        let styles = self.styles.iter().map(|s| format!("style  {:<24} {}\n", s.name, s.any));
        let options = self.options.iter().map(|o| format!("option {:<24} {}\n", o.name, o.text));
        styles.chain(options).chain([format!("length any, a number of words, {}\n", self.lengths.join(", "))]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_style_has_a_prompt_of_every_length() {
        let styles = Styles::read().unwrap();
        for s in &styles.styles {
            for length in styles.lengths.iter().map(String::as_str).chain(["any", "40"]) {
                let wishes: Vec<String> = styles.options.iter().map(|o| o.name.clone()).collect();
                let prompt = styles.prompt(s, length, Some("Ada"), &wishes).unwrap();
                assert!(prompt.contains("Ada") && !prompt.contains(['{', '}', '\n']), "{}: {prompt}", s.name);
                let asked = length == "any" || prompt.contains(&length.replace('-', " "));
                assert!(asked, "{} {length}: {prompt}", s.name);
            }
        }
        for name in ["descriptive", "straightforward", "booru", "midjourney", "art-critic", "product", "social"] {
            styles.style(name).unwrap();
        }
    }

    #[test]
    fn unknown_names_are_listed() {
        let styles = Styles::read().unwrap();
        assert!(styles.style("x").unwrap_err().to_string().contains("expected one of descriptive,"));
        let s = styles.style("booru").unwrap();
        assert!(styles.prompt(s, "0", None, &[]).is_err() && styles.prompt(s, "tall", None, &[]).is_err());
        let error = styles.prompt(s, "any", None, &["x".to_string()]).unwrap_err().to_string();
        assert!(error.contains("--option x: expected one of no-fixed-traits,"), "{error}");
        assert!(styles.listing().lines().count() > 30);
    }
}
