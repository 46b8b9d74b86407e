//! Stop strings in streamed text.
//!
//! In: text as it is decoded. Out: text that is safe to show, and whether a stop string has ended it. Neither a stop
//! string nor any part of one is shown. Not here: end tokens.
//!
//! The stop string that is complete first counts; of several that are complete at the same character, the longest. So
//! the outcome does not depend on how the text is cut into pieces.

use aho_corasick::{AhoCorasick, MatchKind};

use crate::input::prompt::starts_longer;
use crate::{Error, Result};

/// Most stop strings of a request, and most bytes of one.
pub const MAX_STOPS: usize = 256;
pub const MAX_STOP_BYTES: usize = 4096;

/// What a piece of text came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text to show now.
    pub emit: String,
    /// A stop string is complete; nothing comes after `emit`.
    pub stopped: bool,
}

/// Looks for stop strings in one sequence's text.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    /// None without stop strings.
    automaton: Option<AhoCorasick>,
    /// Sorted, to look up stop strings that start with a given text.
    stops: Vec<String>,
    longest: usize,
    /// Text not shown yet: it may be the start of a stop string.
    held: String,
    stopped: bool,
}

impl StopMatcher {
    /// A matcher for these strings.
    ///
    /// # Errors
    /// `Error::Request` for an empty string, too many or too long ones.
    pub fn new(stops: &[String]) -> Result<Self> {
        if stops.len() > MAX_STOPS {
            return Err(Error::Request(format!("stop: expected at most {MAX_STOPS} strings, got {}", stops.len())));
        }
        for (i, stop) in stops.iter().enumerate() {
            if stop.is_empty() || stop.len() > MAX_STOP_BYTES {
                return Err(Error::Request(format!(
                    "stop[{i}]: expected a string of 1 to {MAX_STOP_BYTES} bytes, got {} bytes",
                    stop.len()
                )));
            }
        }
        let mut stops = stops.to_vec();
        stops.sort_unstable();
        stops.dedup();
        let automaton = if stops.is_empty() {
            None
        } else {
            let built = AhoCorasick::builder().match_kind(MatchKind::Standard).build(&stops);
            Some(built.map_err(|e| Error::Request(format!("stop: {e}")))?)
        };
        let longest = stops.iter().map(String::len).max().unwrap_or(0);
        Ok(StopMatcher { automaton, stops, longest, held: String::new(), stopped: false })
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> StopOutcome {
        let Some(automaton) = &self.automaton else {
            return StopOutcome { emit: text.to_string(), stopped: false };
        };
        if self.stopped {
            return StopOutcome { emit: String::new(), stopped: true };
        }
        self.held.push_str(text);
        let mut first: Option<(usize, usize)> = None;
        for found in automaton.find_overlapping_iter(&self.held) {
            match first {
                // Ends come in ascending order.
                Some((_, end)) if found.end() > end => break,
                Some((start, _)) if found.start() >= start => {}
                _ => first = Some((found.start(), found.end())),
            }
        }
        if let Some((start, _)) = first {
            self.stopped = true;
            self.held.truncate(start);
            return StopOutcome { emit: std::mem::take(&mut self.held), stopped: true };
        }
        let keep = self.held.split_off(self.held.len() - self.stop_head_at_end());
        StopOutcome { emit: std::mem::replace(&mut self.held, keep), stopped: false }
    }

    /// The text still held back, when no more comes.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Length of the longest end of the held text that is the start of a stop string.
    fn stop_head_at_end(&self) -> usize {
        let from = self.held.len().saturating_sub(self.longest - 1);
        let starts = self.held.char_indices().rev().map(|(i, _)| i).take_while(|&i| i >= from);
        let start = starts.filter(|&i| starts_longer(&self.stops, &self.held[i..])).last();
        start.map_or(0, |i| self.held.len() - i)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        StopMatcher::new(&stops.iter().map(|s| s.to_string()).collect::<Vec<_>>()).unwrap()
    }

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut matcher = matcher(stops);
        let mut out = Vec::new();
        for piece in pieces {
            let outcome = matcher.push(piece);
            out.push(outcome.emit);
            if outcome.stopped {
                return (out, true);
            }
        }
        out.push(matcher.flush());
        (out, false)
    }

    #[test]
    fn stop_string_across_pieces() {
        assert_eq!(
            run(&["\nUser:"], &["Hi", "\n", "Us", "er", ": x"]),
            (vec!["Hi".into(), "".into(), "".into(), "".into(), "".into()], true)
        );
        assert_eq!(run(&["\nUser:"], &["Hi\nUs", "ual"]), (vec!["Hi".into(), "\nUsual".into(), "".into()], false));
        assert_eq!(run(&["STOP"], &["a STO"]), (vec!["a ".into(), "STO".into()], false));
        assert_eq!(run(&["."], &["one. two"]), (vec!["one".into()], true));
        assert_eq!(run(&["é!"], &["caf", "é", "!"]), (vec!["caf".into(), "".into(), "".into()], true));
        assert_eq!(run(&[], &["a", "b"]), (vec!["a".into(), "b".into(), "".into()], false));
    }

    #[test]
    fn the_first_complete_string_counts() {
        assert_eq!(run(&["abc", "b"], &["xabc"]), (vec!["xa".into()], true));
        assert_eq!(run(&["bc", "abc"], &["xabc"]), (vec!["x".into()], true));
        assert_eq!(run(&["aab"], &["aaab"]), (vec!["a".into()], true));
    }

    #[test]
    fn bad_stop_strings_are_refused() {
        for stops in [vec![String::new()], vec!["x".repeat(MAX_STOP_BYTES + 1)], vec!["x".to_string(); MAX_STOPS + 1]] {
            assert!(matches!(StopMatcher::new(&stops), Err(Error::Request(m)) if m.starts_with("stop")));
        }
    }

    proptest! {
        /// Against the definition: the shortest prefix of the text that ends with a stop string.
        #[test]
        fn as_defined_however_it_is_cut(
            text in "[ab\u{e9}]{0,20}",
            stops in proptest::collection::vec("[ab\u{e9}]{1,4}", 0..4),
            cuts in proptest::collection::vec(1usize..4, 20),
        ) {
            let ends = text.char_indices().map(|(i, c)| i + c.len_utf8());
            let expected = ends.filter_map(|end| {
                stops.iter().filter(|stop| text[..end].ends_with(stop.as_str())).map(|stop| end - stop.len()).min()
            }).next();
            let mut matcher = StopMatcher::new(&stops).unwrap();
            let mut shown = String::new();
            let mut stopped = false;
            let mut chars = text.chars();
            for cut in cuts {
                let piece: String = chars.by_ref().take(cut).collect();
                let outcome = matcher.push(&piece);
                shown.push_str(&outcome.emit);
                stopped |= outcome.stopped;
                // Nothing may be shown that a stop string takes back.
                prop_assert!(shown.len() <= expected.unwrap_or(text.len()));
            }
            let rest: String = chars.collect();
            let outcome = matcher.push(&rest);
            shown.push_str(&outcome.emit);
            shown.push_str(&matcher.flush());
            prop_assert_eq!(stopped || outcome.stopped, expected.is_some());
            prop_assert_eq!(shown, &text[..expected.unwrap_or(text.len())]);
        }
    }
}
