//! A prompt with holes for what a file is called.
//!
//! In: a template. Out: the prompt of one file. `{name}` is the file's name, `{stem}` its name without the extension,
//! `{directory}` the name of the folder that it is in; `{{` and `}}` are single braces. Not here: chat templates.

use std::path::Path;

use crate::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hole {
    Name,
    Stem,
    Directory,
}

const HOLES: [(&str, Hole); 3] = [("name", Hole::Name), ("stem", Hole::Stem), ("directory", Hole::Directory)];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Hole(Hole),
}

/// A checked template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

impl Template {
    /// Reads a template. Braces around anything but a word are text, so that a prompt may show JSON.
    ///
    /// Errors: [`Error::Request`] for a word in braces that is none of the three names.
    pub fn parse(text: &str) -> Result<Template> {
        let (mut pieces, mut plain, mut rest) = (Vec::new(), String::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            rest = &rest[at..];
            if rest.starts_with("{{") || rest.starts_with("}}") {
                plain.push_str(&rest[..1]);
                rest = &rest[2..];
            } else if let Some(word) = word_in_braces(rest) {
                let hole = HOLES.iter().find(|(name, _)| *name == word).map(|(_, hole)| *hole).ok_or_else(|| {
                    Error::Request(format!(
                        "prompt: {{{word}}}: expected {{name}}, {{stem}} or {{directory}}; write {{{{{word}}}}} for the text itself"
                    ))
                })?;
                pieces.extend([Piece::Text(std::mem::take(&mut plain)), Piece::Hole(hole)]);
                rest = &rest[word.len() + 2..];
            } else {
                plain.push_str(&rest[..1]);
                rest = &rest[1..];
            }
        }
        plain.push_str(rest);
        pieces.push(Piece::Text(plain));
        Ok(Template { pieces })
    }

    /// The prompt of a file. What is not UTF-8 in its name is replaced.
    pub fn fill(&self, file: &Path) -> String {
        let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Hole(Hole::Name) => text(file.file_name()),
            Piece::Hole(Hole::Stem) => text(file.file_stem()),
            Piece::Hole(Hole::Directory) => folder_name(file),
        };
        self.pieces.iter().map(piece).collect()
    }
}

/// The name of the folder that a file is in, also where the path does not say it.
fn folder_name(file: &Path) -> String {
    let parent = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = match parent.file_name() {
        Some(name) => Some(name.to_os_string()),
        None => std::fs::canonicalize(parent).ok().and_then(|p| p.file_name().map(|n| n.to_os_string())),
    };
    name.unwrap_or_default().to_string_lossy().into_owned()
}

/// `word` of a text that begins with `{word}`.
fn word_in_braces(text: &str) -> Option<&str> {
    let word = &text.strip_prefix('{')?[..text.find('}')? - 1];
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (!word.is_empty() && word.chars().all(plain)).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_filled() {
        let fill = |t: &str| Template::parse(t).unwrap().fill(Path::new("cats/my.cat.jpg"));
        assert_eq!(fill("{name}|{stem}|{directory}"), "my.cat.jpg|my.cat|cats");
        assert_eq!(fill("no holes"), "no holes");
        assert_eq!(fill("{{name}} {\"a\": 1} {} } {"), "{name} {\"a\": 1} {} } {");
        assert_eq!(fill("}{stem}{"), "}my.cat{");
        let here = std::env::current_dir().unwrap();
        let name = here.file_name().unwrap().to_str().unwrap();
        assert_eq!(Template::parse("{directory}").unwrap().fill(Path::new("a.jpg")), name);
    }

    #[test]
    fn other_words_are_refused() {
        let error = Template::parse("a {subject}").unwrap_err().to_string();
        assert!(error.contains("{subject}: expected {name}, {stem} or {directory}; write {{subject}}"), "{error}");
    }
}
