//! The checkpoint's chat template.
//!
//! In: a checkpoint directory; then messages and special tokens. Out: a rendered prompt in which user text stays text.
//! Owns: where templates are found, and in which form a template wants a message's content.
//! Not here: the template engine (`template/`), placeholder expansion (the family's), encoding.

use std::collections::BTreeMap;
use std::path::Path;

use minijinja::value::Value as TemplateValue;
use serde_json::{Value, json};

use super::message::{Message, Part, Role};
use super::prompt::{PromptText, TextGuard};
use super::template::Template;
use crate::{Error, Result};

/// Largest file that a template is read from, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// In which form a template reads `message['content']`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentFormat {
    /// A list of `{"type": "text", "text": ...}` and `{"type": "image"}`.
    Parts,
    /// One string: the text without the images.
    Text,
}

/// A compiled chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    template: Template,
    source: String,
    /// By role, in the order of [`Role::ALL`].
    formats: [ContentFormat; 3],
}

impl ChatTemplate {
    /// Reads the checkpoint's template: `chat_template.jinja`, else `chat_template.json`, else `tokenizer_config.json`,
    /// as processors of transformers do. `None` when the checkpoint has none.
    ///
    /// # Errors
    /// `Error::Config` for a file that cannot be read, is no JSON, or a template that does not compile.
    pub fn load(dir: &Path, special_tokens: &BTreeMap<String, String>) -> Result<Option<Self>> {
        if let Some(source) = read(dir, "chat_template.jinja")? {
            return Self::new(&source, "chat_template.jinja", special_tokens).map(Some);
        }
        for file in ["chat_template.json", "tokenizer_config.json"] {
            let Some(text) = read(dir, file)? else { continue };
            let json: Value =
                serde_json::from_str(&text).map_err(|e| Error::Config(format!("{file}: expected JSON, got {e}")))?;
            if let Some(source) = template_in(&json, file)? {
                return Self::new(source, file, special_tokens).map(Some);
            }
        }
        Ok(None)
    }

    /// Compiles template source that came from the file `origin` and finds out which form of content it reads.
    ///
    /// # Errors
    /// `Error::Config` when it does not compile.
    pub fn new(source: &str, origin: &str, special_tokens: &BTreeMap<String, String>) -> Result<Self> {
        let template = Template::compile(source, origin)?;
        let mut chat = ChatTemplate { template, source: source.to_string(), formats: [ContentFormat::Parts; 3] };
        chat.detect_formats(special_tokens);
        Ok(chat)
    }

    /// The template's source, as it was read.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The form in which the template reads the content of a role's messages.
    pub fn content_format(&self, role: Role) -> ContentFormat {
        self.formats[role as usize]
    }

    /// Renders messages. `special_tokens` (`bos_token`, ...) become variables of the template; what `guard` knows as
    /// control tokens inside the messages' text stays text. `add_generation_prompt` opens the assistant's turn.
    ///
    /// # Errors
    /// `Error::Request` where the template refuses the messages, `Error::Config` where the template itself fails.
    pub fn render(
        &self,
        messages: &[Message],
        special_tokens: &BTreeMap<String, String>,
        guard: &TextGuard,
        add_generation_prompt: bool,
    ) -> Result<PromptText> {
        let mut literals = Vec::new();
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| {
                let protect = |text: &str| guard.protect(text, &mut literals);
                let content = match self.content_format(message.role) {
                    ContentFormat::Parts => parts(message, protect),
                    ContentFormat::Text => joined(message, protect),
                };
                json!({"role": message.role.name(), "content": content})
            })
            .collect();
        let text = self.template.render(variables(&messages, special_tokens, add_generation_prompt))?;
        Ok(PromptText { text, literals })
    }

    /// Tries both forms on a conversation of one marked word a turn and keeps the one in which the word comes out as
    /// text. Lists of parts win: many templates take them and silently drop a string.
    fn detect_formats(&mut self, special_tokens: &BTreeMap<String, String>) {
        let user = self.detect(Role::User, special_tokens, |user, _| vec![user]);
        let user_format = user.unwrap_or(ContentFormat::Parts);
        let user_turn = probe(Role::User, user_format, "question", false);
        let system = self.detect(Role::System, special_tokens, |system, _| vec![system, user_turn.clone()]);
        let assistant = self.detect(Role::Assistant, special_tokens, |assistant, _| {
            vec![user_turn.clone(), assistant, user_turn.clone()]
        });
        for (role, format) in [(Role::User, user), (Role::System, system), (Role::Assistant, assistant)] {
            self.formats[role as usize] = format.unwrap_or(user_format);
        }
    }

    fn detect(
        &self,
        role: Role,
        special_tokens: &BTreeMap<String, String>,
        conversation: impl Fn(Value, ContentFormat) -> Vec<Value>,
    ) -> Option<ContentFormat> {
        const WORD: &str = "qzprobeqz";
        [ContentFormat::Parts, ContentFormat::Text].into_iter().find(|&format| {
            let turn = probe(role, format, WORD, role == Role::User);
            let messages = conversation(turn, format);
            match self.template.render(variables(&messages, special_tokens, true)) {
                // A list that is printed or dumped as a whole shows its keys.
                Ok(text) => {
                    text.to_lowercase().contains(WORD) && !text.contains("'type'") && !text.contains("\"type\"")
                }
                Err(_) => false,
            }
        })
    }
}

fn probe(role: Role, format: ContentFormat, word: &str, with_image: bool) -> Value {
    let content = match (format, with_image) {
        (ContentFormat::Text, _) => json!(word),
        (ContentFormat::Parts, false) => json!([{"type": "text", "text": word}]),
        (ContentFormat::Parts, true) => json!([{"type": "image"}, {"type": "text", "text": word}]),
    };
    json!({"role": role.name(), "content": content})
}

fn parts(message: &Message, mut protect: impl FnMut(&str) -> String) -> Value {
    let items = message.content.iter().map(|part| match part {
        Part::Text(text) => json!({"type": "text", "text": protect(text)}),
        Part::Image(_) => json!({"type": "image"}),
    });
    Value::Array(items.collect())
}

fn joined(message: &Message, mut protect: impl FnMut(&str) -> String) -> Value {
    Value::String(protect(&message.joined_text()))
}

fn variables(
    messages: &[Value],
    special_tokens: &BTreeMap<String, String>,
    add_generation_prompt: bool,
) -> BTreeMap<String, TemplateValue> {
    let mut variables: BTreeMap<String, TemplateValue> =
        special_tokens.iter().map(|(name, token)| (name.clone(), TemplateValue::from(token.as_str()))).collect();
    variables.insert("messages".into(), TemplateValue::from_serialize(messages));
    variables.insert("add_generation_prompt".into(), TemplateValue::from(add_generation_prompt));
    // transformers always passes these two; templates test them with `is none` as well as `is defined`.
    variables.insert("tools".into(), TemplateValue::from(()));
    variables.insert("documents".into(), TemplateValue::from(()));
    variables
}

/// The template inside a JSON file: a string, a list of `{"name", "template"}`, or an object of names. Among several
/// the one named `default` is taken, or the only one.
fn template_in<'a>(json: &'a Value, file: &str) -> Result<Option<&'a str>> {
    let named: Vec<(&str, &Value)> = match json.get("chat_template") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(source)) => return Ok(Some(source)),
        Some(Value::Object(map)) => map.iter().map(|(name, template)| (name.as_str(), template)).collect(),
        Some(Value::Array(list)) => {
            list.iter().filter_map(|item| Some((item.get("name")?.as_str()?, item.get("template")?))).collect()
        }
        Some(_) => {
            return Err(Error::Config(format!(
                "{file}: chat_template: expected a string or a list of named templates"
            )));
        }
    };
    let chosen = match named.as_slice() {
        [] => return Ok(None),
        [(_, only)] => Some(only),
        several => several.iter().find(|(name, _)| *name == "default").map(|(_, template)| template),
    };
    match chosen {
        Some(Value::String(source)) => Ok(Some(source)),
        Some(_) => Err(Error::Config(format!("{file}: chat_template: expected a string as template"))),
        None => {
            let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
            Err(Error::Config(format!(
                "{file}: chat_template: expected one named \"default\", got {}; put the wanted one into chat_template.jinja",
                super::message::shorten(&names.join(", "))
            )))
        }
    }
}

fn read(dir: &Path, file: &str) -> Result<Option<String>> {
    super::files::read_text(&dir.join(file), file, MAX_FILE_BYTES)
}
