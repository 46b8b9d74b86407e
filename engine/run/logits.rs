//! Logits processors: what changes a row of logits before a token is chosen.
//!
//! In: one row of logits `[vocab]`, the tokens so far. Out: the same row, changed in place. Owns: the history that the
//! processors look at. Not here: temperature, top-k, top-p and min-p, which only sampling applies (`sampler.rs`).
//!
//! Meaning and order are those of transformers 5 (`generation/utils.py`, `_get_logits_processor`): repetition penalty,
//! repeated n-grams, bad words, minimum length, forced first token, forced last token, suppressed tokens.

use super::sampling_params::SamplingParams;

const BANNED: f32 = f32::NEG_INFINITY;
/// New tokens that memory is set aside for at once; longer answers take more as they grow.
const RESERVED_TOKENS: usize = 1024;
/// Vocabulary size that memory is set aside for at once.
const RESERVED_VOCAB: usize = 1 << 18;

/// The processors of one sequence (of one beam, in beam search), with what they have to remember.
#[derive(Debug, Clone)]
pub struct LogitsProcessors {
    repetition_penalty: f32,
    no_repeat_ngram_size: usize,
    /// Sequences of several tokens; single ones are in `banned`.
    bad_words: Vec<Vec<u32>>,
    /// Tokens that never occur: bad words of one token.
    banned: Vec<u32>,
    eos: Vec<u32>,
    min_new_tokens: usize,
    forced_bos: Option<u32>,
    forced_eos: Vec<u32>,
    suppressed: Vec<u32>,
    begin_suppressed: Vec<u32>,
    /// Number of new tokens at which `begin_suppressed` holds.
    begin: usize,
    max_tokens: usize,
    prompt_len: usize,
    num_new: usize,
    /// Prompt and answer, kept when n-grams or bad words look back.
    history: Option<Vec<u32>>,
    /// Every token of prompt and answer once, and a bit for each, kept when repetitions are penalised.
    seen: Option<Seen>,
}

#[derive(Debug, Clone)]
struct Seen {
    tokens: Vec<u32>,
    bits: Vec<u64>,
}

impl Seen {
    fn with_capacity(tokens: usize) -> Self {
        Seen { tokens: Vec::with_capacity(tokens), bits: Vec::with_capacity(RESERVED_VOCAB / 64) }
    }

    fn insert(&mut self, token: u32) {
        let (word, bit) = (token as usize / 64, 1u64 << (token % 64));
        if word >= self.bits.len() {
            self.bits.resize(word + 1, 0);
        }
        if self.bits[word] & bit == 0 {
            self.bits[word] |= bit;
            self.tokens.push(token);
        }
    }
}

impl LogitsProcessors {
    /// Processors for a sequence whose decoder starts with the tokens `prompt` (placeholder tokens included).
    pub fn new(params: &SamplingParams, prompt: &[u32]) -> Self {
        let (single, several): (Vec<_>, Vec<_>) =
            params.bad_words_ids.iter().filter(|word| !word.is_empty()).partition(|word| word.len() == 1);
        // An end token stays possible even when it is listed as a bad word.
        let banned = single.into_iter().map(|word| word[0]).filter(|id| !params.eos_token_id.contains(id)).collect();
        let looks_back = params.no_repeat_ngram_size > 0 || !several.is_empty();
        let delayed = params.forced_bos_token_id.is_some() && prompt.len() <= 1;
        let capacity = prompt.len() + params.max_tokens.min(RESERVED_TOKENS);
        let mut processors = LogitsProcessors {
            repetition_penalty: params.repetition_penalty,
            no_repeat_ngram_size: params.no_repeat_ngram_size,
            bad_words: several.into_iter().cloned().collect(),
            banned,
            eos: params.eos_token_id.clone(),
            min_new_tokens: params.min_new_tokens,
            forced_bos: params.forced_bos_token_id,
            forced_eos: params.forced_eos_token_id.clone(),
            suppressed: params.suppress_tokens.clone(),
            begin_suppressed: params.begin_suppress_tokens.clone(),
            begin: usize::from(delayed),
            max_tokens: params.max_tokens,
            prompt_len: prompt.len(),
            num_new: 0,
            history: looks_back.then(|| Vec::with_capacity(capacity)),
            seen: (params.repetition_penalty != 1.0).then(|| Seen::with_capacity(capacity)),
        };
        for &token in prompt {
            processors.remember(token);
        }
        processors
    }

    /// Whether any row is left as it is.
    pub fn is_identity(&self) -> bool {
        self.seen.is_none()
            && self.history.is_none()
            && self.banned.is_empty()
            && self.min_new_tokens <= self.num_new
            && self.forced_bos.is_none()
            && self.forced_eos.is_empty()
            && self.suppressed.is_empty()
            && self.begin_suppressed.is_empty()
    }

    /// Takes note of a token of the answer.
    pub fn observe(&mut self, token: u32) {
        self.remember(token);
        self.num_new += 1;
    }

    fn remember(&mut self, token: u32) {
        if let Some(history) = &mut self.history {
            history.push(token);
        }
        if let Some(seen) = &mut self.seen {
            seen.insert(token);
        }
    }

    /// Changes the row `[vocab]` for the next token. Token ids beyond the row are ignored.
    pub fn apply(&self, row: &mut [f32]) {
        for &token in self.penalized() {
            if let Some(logit) = row.get_mut(token as usize) {
                *logit = if *logit < 0.0 { *logit * self.repetition_penalty } else { *logit / self.repetition_penalty };
            }
        }
        let forced = self.forced();
        if !forced.is_empty() {
            row.fill(BANNED);
        }
        let mut set = |token: u32, value: f32| {
            if let Some(logit) = row.get_mut(token as usize) {
                *logit = value;
            }
        };
        forced.iter().for_each(|&token| set(token, 0.0));
        self.each_banned(|token| set(token, BANNED));
    }

    /// Tokens under the repetition penalty, each once.
    pub fn penalized(&self) -> &[u32] {
        self.seen.as_ref().map_or(&[], |seen| &seen.tokens)
    }

    /// The only tokens that may come next, with equal logits; none where any may.
    pub fn forced(&self) -> &[u32] {
        if self.num_new + 1 == self.max_tokens && !self.forced_eos.is_empty() {
            return &self.forced_eos;
        }
        match &self.forced_bos {
            Some(token) if self.prompt_len + self.num_new == 1 => std::slice::from_ref(token),
            _ => &[],
        }
    }

    /// Calls `ban` with every token that may not come next, with some more than once.
    pub fn each_banned(&self, mut ban: impl FnMut(u32)) {
        // What forces a token comes after these, and forgets them.
        if self.forced().is_empty() {
            let history = self.history.as_deref().unwrap_or(&[]);
            each_repeated_ngram(history, self.no_repeat_ngram_size, &mut ban);
            self.banned.iter().copied().for_each(&mut ban);
            for word in &self.bad_words {
                if let Some((last, before)) = word.split_last()
                    && history.ends_with(before)
                {
                    ban(*last);
                }
            }
            if self.num_new < self.min_new_tokens {
                self.eos.iter().copied().for_each(&mut ban);
            }
        }
        self.suppressed.iter().copied().for_each(&mut ban);
        if self.num_new == self.begin {
            self.begin_suppressed.iter().copied().for_each(&mut ban);
        }
    }
}

/// Calls `ban` with every token that would complete an n-gram that has occurred.
fn each_repeated_ngram(history: &[u32], n: usize, mut ban: impl FnMut(u32)) {
    if n == 0 || history.len() < n {
        return;
    }
    let prefix = &history[history.len() + 1 - n..];
    for window in history.windows(n) {
        if &window[..n - 1] == prefix {
            ban(window[n - 1]);
        }
    }
}
