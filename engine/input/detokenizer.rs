//! Token ids to text, one at a time.
//!
//! In: token ids as they are generated. Out: pieces of text that are complete UTF-8 and together equal
//! `Tokenizer::decode` of all ids. Not here: stop strings (`run/stop.rs`).
//!
//! Decoders of sentencepiece vocabularies drop a space at the start of the text, and decode runs of byte tokens as a
//! whole. So the last few tokens are kept as context and decoded again with each new one; only what comes after the
//! text already given is new. A run of byte tokens gives its text when it ends, since one wrong byte changes all of it.

use std::sync::Arc;

use super::tokenizer::Tokenizer;
use crate::Result;

/// Tokens of context that are kept. One would do but for tokens without text of their own.
const CONTEXT: usize = 8;
/// Length of the window at which it is cut back to the context: cutting costs one more decoding.
const WINDOW: usize = 3 * CONTEXT;
/// What decoders give for bytes that are not UTF-8, or not yet.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// Streaming decoder of one sequence.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    /// The last tokens.
    window: Vec<u32>,
    /// Bytes of the window's text that have been given out.
    given: usize,
}

impl Detokenizer {
    /// A decoder that starts after `context`, whose text is not given again. Without context the text equals
    /// `decode(ids, skip_special)`: leading spaces are dropped where the decoder drops them.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn new(tokenizer: Arc<Tokenizer>, context: &[u32], skip_special: bool) -> Result<Self> {
        let kept = context.iter().copied().filter(|&id| !(skip_special && tokenizer.is_special(id)));
        let mut window: Vec<u32> = kept.rev_take(WINDOW);
        let given = tokenizer.decode(&window, skip_special)?.len();
        window.shrink_to_fit();
        Ok(Detokenizer { tokenizer, skip_special, window, given })
    }

    /// Takes the next token and gives the text that is now certain, if there is any.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        if self.skip_special && self.tokenizer.is_special(id) {
            // Such a token is invisible: what stands before and after it is decoded as one text.
            return Ok(None);
        }
        self.window.push(id);
        if self.tokenizer.is_byte(id) {
            return Ok(None);
        }
        let text = self.tokenizer.decode(&self.window, self.skip_special)?;
        // Only the last replacement character can still turn into something else.
        let certain = text.strip_suffix(REPLACEMENT).unwrap_or(&text).len();
        let fresh = self.take(&text, certain);
        if self.window.len() >= WINDOW {
            let pending = text.len() - self.given;
            self.window.drain(..self.window.len() - CONTEXT);
            let context = self.tokenizer.decode(&self.window, self.skip_special)?;
            self.given = context.len().saturating_sub(pending);
        }
        Ok(fresh)
    }

    /// The rest of the text, when no more tokens come. Bytes that never became a character give U+FFFD.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn flush(&mut self) -> Result<Option<String>> {
        let text = self.tokenizer.decode(&self.window, self.skip_special)?;
        Ok(self.take(&text, text.len()))
    }

    fn take(&mut self, text: &str, end: usize) -> Option<String> {
        let fresh = text.get(self.given..end).filter(|fresh| !fresh.is_empty())?.to_string();
        self.given = end;
        Some(fresh)
    }
}

/// The last `n` items of an iterator, in order.
trait RevTake: Iterator + Sized {
    fn rev_take(self, n: usize) -> Vec<Self::Item>;
}

impl<I: DoubleEndedIterator> RevTake for I {
    fn rev_take(self, n: usize) -> Vec<I::Item> {
        let mut last: Vec<I::Item> = self.rev().take(n).collect();
        last.reverse();
        last
    }
}
