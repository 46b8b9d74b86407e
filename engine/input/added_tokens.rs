//! Encoding a prompt in which some strings must not be taken for control tokens.
//!
//! In: a `PromptText` with literals. Out: an encoding. The `tokenizers` library cuts added tokens out of the text, then
//! normalises, pre-tokenises and encodes what lies between; this file does the first step itself, so that tokens match
//! in trusted text only, and leaves the other steps to the library. Literals are thereby encoded in their context: the
//! ids are those of a tokenizer that does not know the token there. Not here: post-processing, BOS.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use regex::Regex;
use tokenizers::tokenizer::normalizer::Range as TextRange;
use tokenizers::{
    AddedToken, Encoding, Model, NormalizedString, Normalizer, OffsetType, PreTokenizedString, PreTokenizer, Token,
};

use super::prompt::{PromptText, Segment};
use crate::{Error, Result};

/// The added tokens of a tokenizer, ready to be searched for.
#[derive(Debug)]
pub struct AddedTokens {
    /// Tokens that match in the text as it is written.
    verbatim: Matcher,
    /// Tokens that match in the normalised text.
    normalized: Matcher,
    word_start: Regex,
    word_end: Regex,
}

#[derive(Debug)]
struct Matcher {
    automaton: AhoCorasick,
    tokens: Vec<(u32, AddedToken)>,
}

impl AddedTokens {
    /// Reads the added tokens out of a tokenizer.
    ///
    /// # Errors
    /// `Error::Config` when they cannot be searched for.
    pub fn new(tokenizer: &tokenizers::Tokenizer) -> Result<Self> {
        let mut tokens: Vec<(u32, AddedToken)> = tokenizer.get_added_tokens_decoder().into_iter().collect();
        // Two tokens can be the same after normalisation; the library then takes special ones first.
        tokens.sort_by_key(|(id, token)| (!token.special, *id));
        let (normalized, verbatim): (Vec<_>, Vec<_>) = tokens.into_iter().partition(|(_, token)| token.normalized);
        let verbatim_patterns = verbatim.iter().map(|(_, token)| token.content.clone()).collect();
        let normalized_patterns = normalized
            .iter()
            .map(|(_, token)| {
                let mut content = NormalizedString::from(token.content.as_str());
                if let Some(normalizer) = tokenizer.get_normalizer() {
                    normalizer
                        .normalize(&mut content)
                        .map_err(|e| Error::Config(format!("tokenizer.json: normalizer: {e}")))?;
                }
                Ok(content.get().to_string())
            })
            .collect::<Result<_>>()?;
        let regex = |pattern| Regex::new(pattern).map_err(|e| Error::Internal(format!("added tokens: {e}")));
        Ok(AddedTokens {
            verbatim: Matcher::new(verbatim_patterns, verbatim)?,
            normalized: Matcher::new(normalized_patterns, normalized)?,
            word_start: regex(r"^\w")?,
            word_end: regex(r"\w$")?,
        })
    }

    /// Encodes a prompt without any tokens around it.
    ///
    /// # Errors
    /// The library's, when its normaliser, pre-tokeniser or model fails.
    pub fn encode(&self, tokenizer: &tokenizers::Tokenizer, prompt: &PromptText) -> tokenizers::Result<Encoding> {
        let mut text = String::with_capacity(prompt.text.len());
        // Where literals lie in `text`, ascending. An empty one still separates.
        let mut literals: Vec<Range<usize>> = Vec::new();
        for segment in prompt.segments() {
            match segment {
                Segment::Trusted(part) => text.push_str(part),
                Segment::Literal(part) => {
                    literals.push(text.len()..text.len() + part.len());
                    text.push_str(part);
                }
            }
        }
        let mut pieces = PreTokenizedString::from(text.as_str());
        pieces.split(|_, piece| {
            let trusted = trusted_ranges(piece.get().len(), literals.iter().cloned());
            Ok(self.cut(&self.verbatim, &piece, &trusted))
        })?;
        pieces.split(|_, mut piece| {
            let (start, end) = piece.offsets_original();
            if let Some(normalizer) = tokenizer.get_normalizer() {
                normalizer.normalize(&mut piece)?;
            }
            let inside = literals
                .iter()
                .filter(|l| l.start < end && l.end > start || l.is_empty() && l.start > start && l.start < end);
            let inside = inside.map(|l| l.start.max(start) - start..l.end.min(end) - start);
            let trusted = normalized_trusted_ranges(&piece, inside);
            Ok(self.cut(&self.normalized, &piece, &trusted))
        })?;
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        pieces.tokenize(|piece| self.tokens_of_text(tokenizer, piece.get()))?;
        pieces.into_encoding(None, 0, OffsetType::None)
    }

    /// Cuts a piece at the tokens that match inside its trusted ranges.
    fn cut(
        &self,
        matcher: &Matcher,
        piece: &NormalizedString,
        trusted: &[Range<usize>],
    ) -> Vec<(NormalizedString, Option<Vec<Token>>)> {
        let text = piece.get();
        if text.is_empty() {
            return vec![(piece.clone(), None)];
        }
        let slice = |range: Range<usize>| piece.slice(TextRange::Normalized(range));
        let mut out = Vec::new();
        let mut done = 0;
        for (range, id) in self.matches(matcher, text, trusted) {
            if done < range.start {
                out.extend(slice(done..range.start).map(|piece| (piece, None)));
            }
            let token = Token::new(id, text[range.clone()].to_string(), (0, range.len()));
            done = range.end;
            out.extend(slice(range).map(|piece| (piece, Some(vec![token]))));
        }
        if done < text.len() {
            out.extend(slice(done..text.len()).map(|piece| (piece, None)));
        }
        out
    }

    /// Where tokens match, ascending and disjoint, whitespace that a token takes with it included.
    fn matches(&self, matcher: &Matcher, text: &str, trusted: &[Range<usize>]) -> Vec<(Range<usize>, u32)> {
        let mut found: Vec<(Range<usize>, u32)> = Vec::new();
        let mut done = 0;
        for range in trusted {
            let Some(stretch) = text.get(range.clone()) else { continue };
            for hit in matcher.automaton.find_iter(stretch) {
                let (mut start, mut end) = (range.start + hit.start(), range.start + hit.end());
                let (id, token) = &matcher.tokens[hit.pattern().as_usize()];
                if token.single_word
                    && (self.word_end.is_match(&text[..start]) || self.word_start.is_match(&text[end..]))
                {
                    continue;
                }
                if token.lstrip {
                    start = text[..start].trim_end().len().max(done);
                }
                if token.rstrip {
                    end = text.len() - text[end..].trim_start().len();
                }
                // Whitespace that a token has taken can be a token itself; the library then gives both.
                done = end;
                found.push((start..end, *id));
            }
        }
        found
    }

    /// The model's tokens for text without added tokens. Some vocabularies hold control tokens as ordinary pieces that
    /// a model can find in text; such a piece is cut after its first character.
    fn tokens_of_text(&self, tokenizer: &tokenizers::Tokenizer, text: &str) -> tokenizers::Result<Vec<Token>> {
        let tokens = tokenizer.get_model().tokenize(text)?;
        let forged = tokens.iter().find_map(|token| {
            let (start, end) = token.offsets;
            let written = text.get(start..end)?;
            let control = self.is_control(token.id, written);
            let first = written.chars().next()?.len_utf8();
            (control && first < written.len()).then_some(start + first)
        });
        match forged {
            None => Ok(tokens),
            Some(at) => {
                let mut tokens = self.tokens_of_text(tokenizer, &text[..at])?;
                tokens.extend(self.tokens_of_text(tokenizer, &text[at..])?);
                Ok(tokens)
            }
        }
    }

    fn is_control(&self, id: u32, written: &str) -> bool {
        let tokens = self.verbatim.tokens.iter().chain(&self.normalized.tokens);
        tokens.clone().any(|(other, token)| *other == id && token.special && token.content == written)
    }
}

impl Matcher {
    fn new(patterns: Vec<String>, tokens: Vec<(u32, AddedToken)>) -> Result<Self> {
        // A token that normalises to nothing never matches anything that is left over.
        let (patterns, tokens): (Vec<_>, Vec<_>) =
            patterns.into_iter().zip(tokens).filter(|(pattern, _)| !pattern.is_empty()).unzip();
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&patterns)
            .map_err(|e| Error::Config(format!("tokenizer.json: {} added tokens: {e}", patterns.len())))?;
        Ok(Matcher { automaton, tokens })
    }
}

/// What lies between the literals of a text of `length` bytes.
fn trusted_ranges(length: usize, literals: impl Iterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut trusted = Vec::new();
    let mut start = 0;
    for literal in literals {
        if start < literal.start {
            trusted.push(start..literal.start);
        }
        start = start.max(literal.end);
    }
    if start < length {
        trusted.push(start..length);
    }
    trusted
}

/// The same for a normalised piece; `literals` count in its original text. Where a normaliser leaves no way to tell
/// which part a literal became, nothing in the piece is trusted.
fn normalized_trusted_ranges(
    piece: &NormalizedString,
    literals: impl Iterator<Item = Range<usize>>,
) -> Vec<Range<usize>> {
    let mut mapped = Vec::new();
    for literal in literals {
        if literal.is_empty() {
            // The character after a separator tells where it went.
            let next = piece.get_original()[literal.start..].chars().next().map_or(0, char::len_utf8);
            match piece.convert_offsets(TextRange::Original(literal.start..literal.start + next)) {
                Some(range) => mapped.push(range.start..range.start),
                None => return Vec::new(),
            }
            continue;
        }
        match piece.convert_offsets(TextRange::Original(literal)) {
            Some(range) => mapped.push(range),
            None => return Vec::new(),
        }
    }
    trusted_ranges(piece.get().len(), mapped.into_iter())
}
