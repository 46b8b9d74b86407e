//! What a user sends: messages, images, prompts; turned into token ids and pixels.
//!
//! In: strings and files. Out: decoded images, rendered prompts, token ids. Not here: anything a family decides.

mod added_tokens;
pub mod chat_template;
pub mod detokenizer;
mod files;
mod guarded;
pub mod image;
pub mod message;
pub mod prompt;
mod template;
pub mod tokenizer;
