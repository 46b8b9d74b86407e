//! Chat messages: who says what, with images in between.
//!
//! In: the messages JSON of the command line and of requests. Out: `Message`, checked, or an error that names the
//! field by its path (`messages[0].content[1]`). Not here: opening the images, rendering the chat template.

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Largest messages JSON that is parsed, in bytes. Images inside `data:` URIs count.
pub const MAX_MESSAGES_BYTES: usize = 256 << 20;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    System,
    User,
    Assistant,
}

impl Role {
    /// All roles, in the order of their discriminants.
    pub const ALL: [Role; 3] = [Role::System, Role::User, Role::Assistant];

    /// The role's name in JSON and in chat templates.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// Where an image of a message comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// The next image given beside the messages (`--image`).
    Next,
    /// A local file.
    Path(String),
    /// An http(s) URL or a `data:` URI.
    Url(String),
}

/// One piece of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Text(String),
    Image(ImageSource),
}

/// One turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub role: Role,
    pub content: Vec<Part>,
}

impl Message {
    /// A turn of text alone.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Message { role, content: vec![Part::Text(text.into())] }
    }

    /// One user turn: `num_images` images that are given beside it, then the text.
    pub fn user(num_images: usize, text: impl Into<String>) -> Self {
        let mut content = vec![Part::Image(ImageSource::Next); num_images];
        content.push(Part::Text(text.into()));
        Message { role: Role::User, content }
    }

    /// The images of this turn, in order.
    pub fn images(&self) -> impl Iterator<Item = &ImageSource> {
        self.content.iter().filter_map(|part| match part {
            Part::Image(source) => Some(source),
            Part::Text(_) => None,
        })
    }

    /// The text of this turn without its images; several text parts are joined by a line feed.
    pub fn joined_text(&self) -> String {
        let mut joined = String::new();
        let mut first = true;
        for part in &self.content {
            if let Part::Text(text) = part {
                if !first {
                    joined.push('\n');
                }
                joined.push_str(text);
                first = false;
            }
        }
        joined
    }
}

/// Parses the messages JSON: a list of `{"role", "content"}`, where content is a string or a list of parts
/// `{"type":"text","text"}`, `{"type":"image"}` (optionally with `"path"` or `"url"`), `{"type":"image_url","image_url":{"url"}}`.
///
/// # Errors
/// `Error::Request` that names the first field at fault, what was expected there and what was found. Unknown fields are
/// at fault too: a field that is taken and ignored hides mistakes.
pub fn parse_messages(json: &[u8]) -> Result<Vec<Message>> {
    if json.len() > MAX_MESSAGES_BYTES {
        return Err(Error::Request(format!(
            "messages: expected at most {MAX_MESSAGES_BYTES} bytes of JSON, got {}",
            json.len()
        )));
    }
    // serde_json refuses nesting beyond 128 levels, so neither parsing nor dropping the value can exhaust the stack.
    let value: Value =
        serde_json::from_slice(json).map_err(|e| Error::Request(format!("messages: expected JSON, got {e}")))?;
    messages_from_value(value, "messages")
}

/// Reads messages out of parsed JSON. `path` names the value in errors (`messages`, `line 3: messages`).
///
/// # Errors
/// As [`parse_messages`].
pub fn messages_from_value(value: Value, path: &str) -> Result<Vec<Message>> {
    let Value::Array(items) = value else {
        return Err(mismatch(path, "a list of messages", &value));
    };
    if items.is_empty() {
        return Err(Error::Request(format!("{path}: expected at least one message, got an empty list")));
    }
    items.into_iter().enumerate().map(|(i, item)| message(item, &format!("{path}[{i}]"))).collect()
}

fn message(value: Value, path: &str) -> Result<Message> {
    let mut object = object(value, path, "a message {\"role\", \"content\"}")?;
    let role_value = take(&mut object, path, "role", "\"system\", \"user\" or \"assistant\"")?;
    let role = Role::ALL
        .into_iter()
        .find(|role| role_value.as_str() == Some(role.name()))
        .ok_or_else(|| mismatch(&format!("{path}.role"), "\"system\", \"user\" or \"assistant\"", &role_value))?;
    let content_path = format!("{path}.content");
    let content = match take(&mut object, path, "content", "a string or a list of parts")? {
        Value::String(text) => vec![Part::Text(text)],
        Value::Array(parts) => parts
            .into_iter()
            .enumerate()
            .map(|(i, item)| part(item, &format!("{content_path}[{i}]")))
            .collect::<Result<_>>()?,
        other => return Err(mismatch(&content_path, "a string or a list of parts", &other)),
    };
    nothing_left(&object, path, "\"role\" and \"content\"")?;
    Ok(Message { role, content })
}

fn part(value: Value, path: &str) -> Result<Part> {
    const TYPES: &str = "\"text\", \"image\" or \"image_url\"";
    let mut object = object(value, path, "a part {\"type\", ...}")?;
    let kind = take(&mut object, path, "type", TYPES)?;
    match kind.as_str() {
        Some("text") => {
            let text = string(take(&mut object, path, "text", "a string")?, &format!("{path}.text"))?;
            nothing_left(&object, path, "\"type\" and \"text\"")?;
            Ok(Part::Text(text))
        }
        Some("image") => {
            let file = object.remove("path").map(|v| string(v, &format!("{path}.path"))).transpose()?;
            let url = object.remove("url").map(|v| string(v, &format!("{path}.url"))).transpose()?;
            nothing_left(&object, path, "\"type\" and one of \"path\" and \"url\"")?;
            match (file, url) {
                (None, None) => Ok(Part::Image(ImageSource::Next)),
                (Some(file), None) => Ok(Part::Image(ImageSource::Path(file))),
                (None, Some(url)) => Ok(Part::Image(ImageSource::Url(url))),
                (Some(_), Some(_)) => {
                    Err(Error::Request(format!("{path}: expected one of \"path\" and \"url\", got both")))
                }
            }
        }
        Some("image_url") => {
            let inner_path = format!("{path}.image_url");
            let inner = take(&mut object, path, "image_url", "an object {\"url\"}")?;
            nothing_left(&object, path, "\"type\" and \"image_url\"")?;
            let mut inner = self::object(inner, &inner_path, "an object {\"url\"}")?;
            let url = string(take(&mut inner, &inner_path, "url", "a string")?, &format!("{inner_path}.url"))?;
            // Clients send `detail` as a matter of course. The checkpoint's own preprocessing decides the resolution,
            // so the known values are taken and have no effect; anything else is a mistake.
            if let Some(detail) = inner.remove("detail")
                && !matches!(detail.as_str(), Some("auto" | "low" | "high"))
            {
                return Err(mismatch(&format!("{inner_path}.detail"), "\"auto\", \"low\" or \"high\"", &detail));
            }
            nothing_left(&inner, &inner_path, "\"url\" and \"detail\"")?;
            Ok(Part::Image(ImageSource::Url(url)))
        }
        _ => Err(mismatch(&format!("{path}.type"), TYPES, &kind)),
    }
}

fn object(value: Value, path: &str, expected: &str) -> Result<Map<String, Value>> {
    match value {
        Value::Object(map) => Ok(map),
        other => Err(mismatch(path, expected, &other)),
    }
}

fn string(value: Value, path: &str) -> Result<String> {
    match value {
        Value::String(s) => Ok(s),
        other => Err(mismatch(path, "a string", &other)),
    }
}

fn take(object: &mut Map<String, Value>, path: &str, key: &str, expected: &str) -> Result<Value> {
    object.remove(key).ok_or_else(|| Error::Request(format!("{path}: field \"{key}\" is missing, expected {expected}")))
}

fn nothing_left(object: &Map<String, Value>, path: &str, expected: &str) -> Result<()> {
    match object.keys().next() {
        None => Ok(()),
        Some(key) => Err(Error::Request(format!("{path}: unknown field \"{}\", expected {expected}", shorten(key)))),
    }
}

fn mismatch(path: &str, expected: &str, found: &Value) -> Error {
    let found = match found {
        Value::Null => "null".to_string(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(s) => format!("\"{}\"", shorten(s)),
        Value::Array(_) => "a list".to_string(),
        Value::Object(_) => "an object".to_string(),
    };
    Error::Request(format!("{path}: expected {expected}, got {found}"))
}

/// At most 40 characters of a string from outside, without line breaks: payloads never end up in logs.
pub(crate) fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(40).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(40).is_some() {
        short.push_str("...");
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(json: &str) -> String {
        parse_messages(json.as_bytes()).expect_err(json).to_string()
    }

    #[test]
    fn all_forms_of_content() {
        let json = r#"[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [
                {"type": "image"},
                {"type": "image", "path": "a b.jpg"},
                {"type": "image", "url": "https://example.com/c.png"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
                {"type": "text", "text": "What?"}
            ]},
            {"role": "assistant", "content": []}
        ]"#;
        let messages = parse_messages(json.as_bytes()).unwrap();
        assert_eq!(messages[0], Message::text(Role::System, "Be brief."));
        assert_eq!(
            messages[1].content,
            [
                Part::Image(ImageSource::Next),
                Part::Image(ImageSource::Path("a b.jpg".into())),
                Part::Image(ImageSource::Url("https://example.com/c.png".into())),
                Part::Image(ImageSource::Url("data:image/png;base64,AAAA".into())),
                Part::Text("What?".into()),
            ]
        );
        assert_eq!(messages[1].images().count(), 4);
        assert_eq!(messages[2], Message { role: Role::Assistant, content: vec![] });
    }

    #[test]
    fn errors_name_the_field() {
        for (json, expected) in [
            ("", "messages: expected JSON"),
            ("[", "messages: expected JSON"),
            ("{}", "messages: expected a list of messages, got an object"),
            ("[]", "messages: expected at least one message, got an empty list"),
            ("[3]", "messages[0]: expected a message"),
            (r#"[{"content":"x"}]"#, "messages[0]: field \"role\" is missing"),
            (r#"[{"role":"user"}]"#, "messages[0]: field \"content\" is missing"),
            (
                r#"[{"role":"usr","content":"x"}]"#,
                "messages[0].role: expected \"system\", \"user\" or \"assistant\", got \"usr\"",
            ),
            (r#"[{"role":7,"content":"x"}]"#, "messages[0].role: expected"),
            (
                r#"[{"role":"user","content":null}]"#,
                "messages[0].content: expected a string or a list of parts, got null",
            ),
            (r#"[{"role":"user","content":"x","nme":1}]"#, "messages[0]: unknown field \"nme\""),
            (
                r#"[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text"}]}]"#,
                "messages[0].content[1]: field \"text\" is missing",
            ),
            (
                r#"[{"role":"user","content":[{"type":"text","text":5}]}]"#,
                "messages[0].content[0].text: expected a string, got 5",
            ),
            (
                r#"[{"role":"user","content":[{"type":"video"}]}]"#,
                "messages[0].content[0].type: expected \"text\", \"image\" or \"image_url\", got \"video\"",
            ),
            (
                r#"[{"role":"user","content":[{"type":"image","path":"a","url":"b"}]}]"#,
                "messages[0].content[0]: expected one of",
            ),
            (
                r#"[{"role":"user","content":[{"type":"image","file":"a"}]}]"#,
                "messages[0].content[0]: unknown field \"file\"",
            ),
            (
                r#"[{"role":"user","content":[{"type":"image_url","image_url":"x"}]}]"#,
                "messages[0].content[0].image_url: expected an object",
            ),
            (
                r#"[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x","detail":"max"}}]}]"#,
                "messages[0].content[0].image_url.detail: expected",
            ),
        ] {
            let message = error(json);
            assert!(message.contains(expected), "{json}: {message}");
        }
    }

    #[test]
    fn deep_and_long_input_is_refused_without_harm() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(error(&deep).contains("recursion limit"));
        let long = format!(r#"[{{"role":"{}","content":""}}]"#, "x".repeat(1 << 20));
        assert!(error(&long).len() < 200);
        assert!(parse_messages(b"[{\"role\":\"user\",\"content\":\"\xff\"}]").is_err());
    }

    #[test]
    fn text_parts_are_joined_by_a_line_feed() {
        let mut message = Message::user(2, "one");
        message.content.push(Part::Text("two".into()));
        assert_eq!(message.joined_text(), "one\ntwo");
        assert_eq!(Message { role: Role::User, content: vec![] }.joined_text(), "");
    }
}
