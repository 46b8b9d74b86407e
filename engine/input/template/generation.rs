//! `{% generation %}` blocks.
//!
//! In: template source. Out: the same with every `generation` tag turned into a `with` tag, which scopes variables and
//! handles whitespace in the same way and otherwise does nothing. transformers marks assistant text for training with
//! these blocks; the template engine does not know the tag. Comments, raw blocks and strings stay as they are.

/// Replaces `generation` and `endgeneration` tags. The number of lines stays the same.
pub fn without_generation_tags(source: &str) -> String {
    if !source.contains("generation") {
        return source.to_string();
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let length = if rest.starts_with("{#") {
            rest.find("#}").map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("{{") {
            code_length(rest, "}}")
        } else if rest.starts_with("{%") {
            let length = code_length(rest, "%}");
            let tag = &rest[..length];
            match tag_word(tag) {
                "generation" => {
                    out.push_str(&tag.replacen("generation", "with", 1));
                    rest = &rest[length..];
                    continue;
                }
                "endgeneration" => {
                    out.push_str(&tag.replacen("endgeneration", "endwith", 1));
                    rest = &rest[length..];
                    continue;
                }
                "raw" => raw_length(rest, length),
                _ => length,
            }
        } else {
            1
        };
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    out.push_str(rest);
    out
}

/// The whole content of a tag without its delimiters, whitespace control and spaces.
fn tag_word(tag: &str) -> &str {
    let inner = tag.strip_prefix("{%").unwrap_or(tag);
    let inner = inner.strip_suffix("%}").unwrap_or(inner);
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
    inner.strip_suffix(['-', '+']).unwrap_or(inner).trim()
}

/// Length of the expression or tag at the start of `text`, strings in it skipped.
fn code_length(text: &str, close: &str) -> usize {
    let bytes = text.as_bytes();
    let mut quote = None;
    let mut at = 2;
    while at < bytes.len() {
        match quote {
            Some(_) if bytes[at] == b'\\' => at += 1,
            Some(q) if bytes[at] == q => quote = None,
            Some(_) => {}
            None if bytes[at..].starts_with(close.as_bytes()) => return at + close.len(),
            None if matches!(bytes[at], b'"' | b'\'') => quote = Some(bytes[at]),
            None => {}
        }
        at += 1;
    }
    text.len()
}

/// Length of the raw block at the start of `text`, whose opening tag has `open` bytes.
fn raw_length(text: &str, open: usize) -> usize {
    let mut at = open;
    while let Some(found) = text[at..].find("{%") {
        at += found;
        let length = text[at..].find("%}").map_or(text.len() - at, |end| end + 2);
        if tag_word(&text[at..at + length]) == "endraw" {
            return at + length;
        }
        at += 2;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::without_generation_tags;

    #[test]
    fn only_tags_change() {
        let source = "{# {% generation %} #}{{ '{% generation %}' }}{% raw %}{% generation %}{% endraw %}\n\
                      {%- generation -%}x{%+ endgeneration %}{% set generation = 1 %}{{ generation }}{% if a == \"%}\" %}";
        let expected = "{# {% generation %} #}{{ '{% generation %}' }}{% raw %}{% generation %}{% endraw %}\n\
                      {%- with -%}x{%+ endwith %}{% set generation = 1 %}{{ generation }}{% if a == \"%}\" %}";
        assert_eq!(without_generation_tags(source), expected);
    }

    #[test]
    fn broken_source_ends() {
        for source in [
            "generation {",
            "generation {%",
            "generation {{ '",
            "{% generation",
            "{% raw %}generation{%",
            "é{%généra generation",
        ] {
            let out = without_generation_tags(source);
            assert!(out.len() >= source.len() - 6, "{out}");
        }
    }
}
