//! The checkpoint's tokenizer.
//!
//! In: `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`; then prompts and token ids. Out: token ids
//! equal to those of the `tokenizers` library, text. Owns: the rule when BOS is added, and which strings are control
//! tokens. Not here: matching control tokens around literals (`added_tokens.rs`), streaming (`detokenizer.rs`).

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde_json::Value;
use tokenizers::{AddedToken, PostProcessor};

use super::added_tokens::AddedTokens;
use super::files::read_text;
use super::guarded::no_panic;
use super::prompt::{PromptText, TextGuard};
use crate::{Error, Result};

/// Largest tokenizer file that is read, in bytes. The largest in use are about 35 MB.
const MAX_FILE_BYTES: u64 = 512 << 20;

/// A loaded tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    added: AddedTokens,
    special_tokens: BTreeMap<String, String>,
    /// What stands around every prompt when `tokenizer_config.json` decides it, in place of the post-processor.
    frame: Option<Frame>,
    special_ids: HashSet<u32>,
    /// Tokens `<0x00>`..`<0xFF>` of a vocabulary with byte fallback; their bytes make text only together.
    byte_ids: HashSet<u32>,
}

#[derive(Debug)]
struct Frame {
    bos: Option<u32>,
    eos: Option<u32>,
}

impl Tokenizer {
    /// Reads the tokenizer of a checkpoint directory.
    ///
    /// `tokenizer.json` decides everything, with two exceptions that transformers makes too: `add_bos_token` and
    /// `add_eos_token` in `tokenizer_config.json` replace its post-processor, and control tokens that only
    /// `tokenizer_config.json` knows are added. Truncation and padding written into the file are ignored.
    ///
    /// # Errors
    /// `Error::Config` naming the file that is missing or wrong.
    pub fn load(dir: &Path) -> Result<Self> {
        let Some(json) = read_text(&dir.join("tokenizer.json"), "tokenizer.json", MAX_FILE_BYTES)? else {
            return Err(missing(dir));
        };
        let config = read_json(dir, "tokenizer_config.json")?;
        let map = read_json(dir, "special_tokens_map.json")?;
        Self::from_json(&json, &config, &map)
    }

    /// A tokenizer from the contents of its three files; absent ones are `Value::Null`.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn from_json(tokenizer_json: &str, tokenizer_config: &Value, special_tokens_map: &Value) -> Result<Self> {
        let mut inner = no_panic("tokenizer.json", || tokenizers::Tokenizer::from_bytes(tokenizer_json))?
            .map_err(|e| Error::Config(format!("tokenizer.json: {}", one_line(&e.to_string()))))?;
        no_panic("tokenizer.json", || inner.with_truncation(None).map(|_| ()))?
            .map_err(|e| Error::Config(format!("tokenizer.json: truncation: {e}")))?;
        inner.with_padding(None);

        let mut special_tokens = named_tokens(tokenizer_config);
        for (name, token) in named_tokens(special_tokens_map) {
            special_tokens.entry(name).or_insert(token);
        }
        no_panic("tokenizer_config.json", || add_missing_tokens(&mut inner, tokenizer_config, &special_tokens))??;

        let added = no_panic("tokenizer.json", || AddedTokens::new(&inner))??;
        let flag = |name: &str| tokenizer_config.get(name).and_then(Value::as_bool);
        let id_of = |name: &str| special_tokens.get(name).and_then(|token| inner.token_to_id(token));
        let frame = (flag("add_bos_token").is_some() || flag("add_eos_token").is_some()).then(|| Frame {
            bos: id_of("bos_token").filter(|_| flag("add_bos_token") == Some(true)),
            eos: id_of("eos_token").filter(|_| flag("add_eos_token") == Some(true)),
        });
        let special_ids =
            inner.get_added_tokens_decoder().iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        let byte_ids = byte_ids(&inner);
        Ok(Tokenizer { inner, added, special_tokens, frame, special_ids, byte_ids })
    }

    /// The ids of a prompt. Control tokens in the prompt's text count, those in its literals are encoded as text, in
    /// their context. With `add_special` the tokenizer's own tokens are put around it (BOS, sometimes EOS), unless the
    /// text already starts with BOS.
    ///
    /// # Errors
    /// `Error::Config` when the tokenizer fails on this text.
    pub fn encode(&self, prompt: &PromptText, add_special: bool) -> Result<Vec<u32>> {
        let starts_with_bos =
            self.special_tokens.get("bos_token").is_some_and(|bos| !bos.is_empty() && prompt.text.starts_with(bos));
        let add_special = add_special && !starts_with_bos;
        let result = no_panic("tokenizer", || {
            let encoding = if prompt.literals.is_empty() {
                self.inner.encode_fast(prompt.text.as_str(), add_special && self.frame.is_none())?
            } else {
                let encoding = self.added.encode(&self.inner, prompt)?;
                match self.inner.get_post_processor() {
                    Some(post) if self.frame.is_none() => post.process(encoding, None, add_special)?,
                    _ => encoding,
                }
            };
            Ok(encoding.get_ids().to_vec())
        })?;
        let mut ids = result.map_err(|e: tokenizers::Error| failed("encode", &e))?;
        if let (true, Some(frame)) = (add_special, &self.frame) {
            if let Some(bos) = frame.bos {
                ids.insert(0, bos);
            }
            ids.extend(frame.eos);
        }
        Ok(ids)
    }

    /// The text of token ids; ids that the vocabulary does not hold give no text. `skip_special` leaves control tokens out.
    ///
    /// # Errors
    /// `Error::Config` when the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        no_panic("tokenizer", || self.inner.decode(ids, skip_special))?.map_err(|e| failed("decode", &e))
    }

    /// The id of a token, control tokens included.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, as it stands in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The tokens that have a name (`bos_token`, `eos_token`, `image_token`, ...), by name.
    pub fn special_tokens(&self) -> &BTreeMap<String, String> {
        &self.special_tokens
    }

    /// The id of a token by its name, such as `eos_token`.
    pub fn special_id(&self, name: &str) -> Option<u32> {
        self.special_tokens.get(name).and_then(|token| self.token_to_id(token))
    }

    /// Whether `decode` with `skip_special` leaves this token out.
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// Whether this is one byte of a byte-fallback vocabulary.
    pub fn is_byte(&self, id: u32) -> bool {
        self.byte_ids.contains(&id)
    }

    /// A guard that keeps control tokens in user text from being taken for such: every special and every named token,
    /// `placeholders` (the family's own markers), and further added tokens that the chat template's source writes.
    /// Other added tokens, such as runs of spaces, are ordinary vocabulary.
    ///
    /// # Errors
    /// As [`TextGuard::new`].
    pub fn text_guard(&self, template_source: Option<&str>, placeholders: &[&str]) -> Result<TextGuard> {
        let written = |token: &AddedToken| {
            template_source.is_some_and(|source| source.contains(&token.content)) && !token.content.trim().is_empty()
        };
        let added = self.inner.get_added_tokens_decoder();
        let control = added.values().filter(|token| token.special || written(token)).map(|token| token.content.clone());
        TextGuard::new(
            control
                .chain(self.special_tokens.values().cloned())
                .chain(placeholders.iter().map(|placeholder| placeholder.to_string())),
        )
    }
}

fn missing(dir: &Path) -> Error {
    let found = ["tokenizer.model", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tekken.json"]
        .into_iter()
        .find(|file| dir.join(file).exists());
    let next = "write it once with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)";
    Error::Config(match found {
        Some(file) => format!("{}: tokenizer.json: not found, only {file}; {next}", dir.display()),
        None => format!("{}: tokenizer.json: not found; is this a checkpoint directory?", dir.display()),
    })
}

fn read_json(dir: &Path, file: &str) -> Result<Value> {
    match read_text(&dir.join(file), file, MAX_FILE_BYTES)? {
        None => Ok(Value::Null),
        Some(text) => serde_json::from_str(&text).map_err(|e| Error::Config(format!("{file}: expected JSON, got {e}"))),
    }
}

/// Fields `*_token` whose value is a string or an object with `content`.
fn named_tokens(json: &Value) -> BTreeMap<String, String> {
    let Some(object) = json.as_object() else { return BTreeMap::new() };
    let named = object.iter().filter(|(name, _)| name.ends_with("_token"));
    named
        .filter_map(|(name, value)| {
            let token = value.as_str().or_else(|| value.get("content")?.as_str())?;
            Some((name.clone(), token.to_string()))
        })
        .collect()
}

/// Adds control tokens that stand in `tokenizer_config.json` only, in the order of their ids.
fn add_missing_tokens(
    inner: &mut tokenizers::Tokenizer,
    config: &Value,
    special_tokens: &BTreeMap<String, String>,
) -> Result<()> {
    let known: HashSet<String> = inner.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
    let mut wanted: Vec<(u32, AddedToken)> = Vec::new();
    for (id, token) in config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten() {
        let wrong = || Error::Config(format!("tokenizer_config.json: added_tokens_decoder: wrong entry \"{id}\""));
        let id: u32 = id.parse().map_err(|_| wrong())?;
        wanted.push((id, serde_json::from_value(token.clone()).map_err(|_| wrong())?));
    }
    wanted.sort_by_key(|(id, _)| *id);
    let listed: HashSet<String> = wanted.iter().map(|(_, token)| token.content.clone()).collect();
    let named = special_tokens.values().filter(|token| !listed.contains(*token));
    let tokens: Vec<AddedToken> = wanted
        .into_iter()
        .map(|(_, token)| token)
        .chain(named.map(|token| AddedToken::from(token.as_str(), true)))
        .filter(|token| !known.contains(&token.content))
        .collect();
    inner.add_tokens(&tokens);
    Ok(())
}

fn byte_ids(inner: &tokenizers::Tokenizer) -> HashSet<u32> {
    let decoder = inner.get_decoder().and_then(|decoder| serde_json::to_string(decoder).ok()).unwrap_or_default();
    if !decoder.contains("\"ByteFallback\"") {
        return HashSet::new();
    }
    // The decoder reads both cases of hexadecimal digits.
    let upper = (0..=255u8).filter_map(|byte| inner.token_to_id(&format!("<0x{byte:02X}>")));
    let lower = (0..=255u8).filter_map(|byte| inner.token_to_id(&format!("<0x{byte:02x}>")));
    upper.chain(lower).collect()
}

fn failed(what: &str, error: &tokenizers::Error) -> Error {
    Error::Config(format!("tokenizer: cannot {what}: {}", one_line(&error.to_string())))
}

fn one_line(text: &str) -> String {
    let mut line: String = text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(200).is_some() {
        line.push_str("...");
    }
    line
}
