//! Prompt text in which what the user wrote stays text.
//!
//! In: user text that may hold strings which are control tokens of the tokenizer (`<image>`, `<s>`, ...). Out: a
//! `PromptText`: such strings are taken out of the text and stand in `literals`, with a mark in their place, so that
//! placeholder expansion and the tokenizer only ever see control tokens that the chat template wrote.
//! Not here: rendering, encoding.
//!
//! A mark is `MARK_OPEN`, the index in `literals` as base-16 digits U+FDE0..U+FDEF, `MARK_CLOSE`. All these are
//! Unicode noncharacters: no text holds them, they are neither whitespace nor letters, and no string method of a
//! template changes them. User text that holds them nevertheless has them taken out in the same way.

use std::borrow::Cow;

use aho_corasick::{AhoCorasick, MatchKind};

use crate::{Error, Result};

const MARK_OPEN: char = '\u{fdd0}';
const MARK_CLOSE: char = '\u{fdd1}';
const DIGIT_ZERO: u32 = 0xfde0;

fn is_mark_char(c: char) -> bool {
    matches!(c, MARK_OPEN | MARK_CLOSE | '\u{fde0}'..='\u{fdef}')
}

/// A rendered prompt. Code that expands placeholders edits `text` as any string; marks pass through it untouched.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PromptText {
    /// The prompt, with a mark for every literal.
    pub text: String,
    /// Strings that look like control tokens but are the user's text.
    pub literals: Vec<String>,
}

/// A stretch of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment<'a> {
    /// Text in which control tokens are control tokens.
    Trusted(&'a str),
    /// Text in which nothing is a control token.
    Literal(&'a str),
}

impl PromptText {
    /// A prompt that is taken as it is: every control token in it counts.
    pub fn raw(text: impl Into<String>) -> Self {
        PromptText { text: text.into(), literals: Vec::new() }
    }

    /// The prompt in order, literals put back. Marks that a template has torn apart vanish.
    pub fn segments(&self) -> Vec<Segment<'_>> {
        let mut segments = Vec::new();
        if self.literals.is_empty() {
            segments.push(Segment::Trusted(&self.text));
            return segments;
        }
        let mut rest = self.text.as_str();
        while let Some(start) = rest.find(is_mark_char) {
            if start > 0 {
                segments.push(Segment::Trusted(&rest[..start]));
            }
            let (literal, length) = self.mark_at(&rest[start..]);
            // A torn mark still separates: the text on either side must not join into a control token.
            segments.push(Segment::Literal(literal.unwrap_or("")));
            rest = &rest[start + length..];
        }
        if !rest.is_empty() {
            segments.push(Segment::Trusted(rest));
        }
        segments
    }

    /// The prompt as one string, literals put back.
    pub fn plain(&self) -> Cow<'_, str> {
        if self.literals.is_empty() {
            return Cow::Borrowed(&self.text);
        }
        let plain = self.segments().into_iter().map(|segment| match segment {
            Segment::Trusted(text) | Segment::Literal(text) => text,
        });
        Cow::Owned(plain.collect())
    }

    /// The literal of the mark at the start of `text` and the mark's length in bytes; a lone mark character has none.
    fn mark_at(&self, text: &str) -> (Option<&str>, usize) {
        let mut chars = text.char_indices();
        let lone = chars.next().map_or(0, |(_, c)| c.len_utf8());
        if !text.starts_with(MARK_OPEN) {
            return (None, lone);
        }
        let mut index: Option<usize> = None;
        for (at, c) in chars {
            let digit = (c as u32).wrapping_sub(DIGIT_ZERO);
            if digit < 16 {
                index = index.unwrap_or(0).checked_mul(16).and_then(|i| i.checked_add(digit as usize));
                if index.is_none() {
                    break;
                }
            } else if c == MARK_CLOSE {
                let literal = index.and_then(|i| self.literals.get(i));
                return (literal.map(String::as_str), at + c.len_utf8());
            } else {
                break;
            }
        }
        (None, lone)
    }
}

/// Takes control tokens out of user text.
#[derive(Debug)]
pub struct TextGuard {
    automaton: AhoCorasick,
    /// Sorted, to look up tokens that start with a given string.
    tokens: Vec<String>,
    /// Every token back to front, sorted, to look up tokens that end with a given string.
    reversed: Vec<String>,
    longest: usize,
}

impl TextGuard {
    /// A guard against the given control tokens; empty strings among them are ignored.
    ///
    /// # Errors
    /// `Error::Config` when there are too many tokens to search for.
    pub fn new(tokens: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut tokens: Vec<String> = tokens.into_iter().filter(|token| !token.is_empty()).collect();
        tokens.sort_unstable();
        tokens.dedup();
        let mut reversed: Vec<String> = tokens.iter().map(|token| token.chars().rev().collect()).collect();
        reversed.sort_unstable();
        let longest = tokens.iter().map(String::len).max().unwrap_or(0);
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&tokens)
            .map_err(|e| Error::Config(format!("tokenizer: {} control tokens: {e}", tokens.len())))?;
        Ok(TextGuard { automaton, tokens, reversed, longest })
    }

    /// The text with a mark in place of every control token; the tokens are appended to `literals`.
    ///
    /// A control token cut at the end or the start of the text (`<ima`) is taken out too: templates write the parts of
    /// a message one after the other, and two parts must not join into a token.
    pub fn protect(&self, text: &str, literals: &mut Vec<String>) -> String {
        let mut out = String::with_capacity(text.len());
        let head = self.token_tail_at_start(text);
        let tail = text.len() - self.token_head_at_end(&text[head..]);
        if head > 0 {
            push_mark(&mut out, &text[..head], literals);
        }
        let mut done = head;
        for found in self.automaton.find_iter(&text[head..]) {
            let (start, end) = (head + found.start(), head + found.end());
            if end > tail {
                // The last token's own tail could start another one; what is cut off stays one literal with it.
                self.push_text(&mut out, &text[done..start.min(tail)], literals);
                push_mark(&mut out, &text[start.min(tail)..], literals);
                return out;
            }
            self.push_text(&mut out, &text[done..start], literals);
            push_mark(&mut out, &text[start..end], literals);
            done = end;
        }
        self.push_text(&mut out, &text[done..tail], literals);
        if tail < text.len() {
            push_mark(&mut out, &text[tail..], literals);
        }
        out
    }

    /// Copies text without control tokens; mark characters in it become literals themselves.
    fn push_text(&self, out: &mut String, text: &str, literals: &mut Vec<String>) {
        let mut rest = text;
        while let Some(start) = rest.find(is_mark_char) {
            out.push_str(&rest[..start]);
            let length = rest[start..].find(|c| !is_mark_char(c)).unwrap_or(rest.len() - start);
            push_mark(out, &rest[start..start + length], literals);
            rest = &rest[start + length..];
        }
        out.push_str(rest);
    }

    /// Length of the longest end of `text` that is the start, but not the whole, of a token.
    fn token_head_at_end(&self, text: &str) -> usize {
        let from = text.len().saturating_sub(self.longest.saturating_sub(1));
        let mut starts = text.char_indices().map(|(i, _)| i).filter(|&i| i >= from);
        starts.find(|&i| starts_longer(&self.tokens, &text[i..])).map_or(0, |i| text.len() - i)
    }

    /// Length of the longest start of `text` that is the end, but not the whole, of a token.
    fn token_tail_at_start(&self, text: &str) -> usize {
        let mut longest = 0;
        let mut backwards = String::new();
        for (i, c) in text.char_indices() {
            let end = i + c.len_utf8();
            if end >= self.longest {
                break;
            }
            backwards.insert(0, c);
            if starts_longer(&self.reversed, &backwards) {
                longest = end;
            }
        }
        longest
    }
}

/// Whether one of the sorted strings starts with `prefix` and goes on after it.
pub(crate) fn starts_longer(sorted: &[String], prefix: &str) -> bool {
    let at = sorted.partition_point(|s| s.as_str() <= prefix);
    sorted.get(at).is_some_and(|s| s.starts_with(prefix))
}

fn push_mark(out: &mut String, literal: &str, literals: &mut Vec<String>) {
    out.push(MARK_OPEN);
    for digit in format!("{:x}", literals.len()).chars().filter_map(|c| c.to_digit(16)) {
        out.extend(char::from_u32(DIGIT_ZERO + digit));
    }
    out.push(MARK_CLOSE);
    literals.push(literal.to_string());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn guard() -> TextGuard {
        let tokens = ["<image>", "<s>", "</s>", "<end_of_utterance>", "<|im_end|>"];
        TextGuard::new(tokens.into_iter().map(String::from)).unwrap()
    }

    fn protect(text: &str) -> PromptText {
        let mut literals = Vec::new();
        let text = guard().protect(text, &mut literals);
        PromptText { text, literals }
    }

    #[test]
    fn control_tokens_leave_the_text() {
        let prompt = protect("a <image> b</s>c");
        assert_eq!(prompt.literals, ["<image>", "</s>"]);
        assert_eq!(prompt.plain(), "a <image> b</s>c");
        assert_eq!(
            prompt.segments(),
            [
                Segment::Trusted("a "),
                Segment::Literal("<image>"),
                Segment::Trusted(" b"),
                Segment::Literal("</s>"),
                Segment::Trusted("c")
            ]
        );
    }

    #[test]
    fn parts_cannot_join_into_a_control_token() {
        let mut literals = Vec::new();
        let mut text = guard().protect("x <ima", &mut literals);
        text.push_str(&guard().protect("ge> y", &mut literals));
        let prompt = PromptText { text, literals };
        assert_eq!(prompt.plain(), "x <image> y");
        assert!(!prompt.text.contains("<image>"));
        assert!(
            prompt.segments().iter().all(|s| !matches!(s, Segment::Trusted(t) if t.contains('<') || t.contains('>')))
        );
    }

    #[test]
    fn ordinary_text_is_untouched() {
        for text in ["", "What is this?", "1 < 2 and 3 > 2, surely", "<b>bold</b> text", "\u{fdd5}"] {
            assert_eq!(protect(text), PromptText::raw(text));
        }
    }

    #[test]
    fn many_literals_keep_their_order() {
        let text = "<s>".repeat(1000);
        let prompt = protect(&text);
        assert_eq!(prompt.literals.len(), 1000);
        assert_eq!(prompt.plain(), text);
    }

    #[test]
    fn torn_marks_vanish_but_separate() {
        let prompt = PromptText { text: "<ima\u{fdd0}ge>\u{fdd1}\u{fde3}!".into(), literals: vec!["x".into()] };
        assert_eq!(prompt.plain(), "<image>!");
        assert_eq!(prompt.segments()[0], Segment::Trusted("<ima"));
        let far = PromptText { text: format!("\u{fdd0}{}\u{fdd1}", "\u{fdef}".repeat(40)), literals: vec!["x".into()] };
        assert_eq!(far.plain(), "");
    }

    proptest! {
        #[test]
        fn any_text_comes_back(text in "(<image>|<s>|</s>|<|ima|ge>|>|/s|\\PC|\u{fdd0}|\u{fdd1}|\u{fde0}|\u{fdef}| ){0,12}") {
            let prompt = protect(&text);
            prop_assert_eq!(prompt.plain(), text.as_str());
            for segment in prompt.segments() {
                if let Segment::Trusted(trusted) = segment {
                    for token in ["<image>", "<s>", "</s>", "<end_of_utterance>", "<|im_end|>"] {
                        prop_assert!(!trusted.contains(token), "{} in {:?}", token, trusted);
                    }
                }
            }
        }
    }
}
