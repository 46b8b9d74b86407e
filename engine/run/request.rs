//! What a program asks of the engine, and what it is told.
//!
//! In: nothing. Out: plain types. Not here: how a request is answered.

use std::sync::Arc;

use crate::Error;
use crate::input::image::{DecodeOptions, RgbImage};
use crate::input::message::Message;
use crate::run::sampling_params::SamplingFlags;

/// A prompt, before images are looked at.
#[derive(Debug, Clone)]
pub enum Prompt {
    /// Turns, rendered by the checkpoint's chat template.
    Messages(Vec<Message>),
    /// For the family's processor as it is, its placeholders included.
    Raw(String),
}

/// Where a picture comes from.
#[derive(Debug, Clone)]
pub enum ImageInput {
    /// A path, `-`, an http(s) URL or a `data:` URI.
    Source(String),
    /// An image file's bytes.
    Bytes(Arc<Vec<u8>>),
    /// Decoded pixels.
    Pixels(Arc<RgbImage>),
}

/// A question.
#[derive(Debug, Clone)]
pub struct Request {
    pub prompt: Prompt,
    /// For `{"type": "image"}` parts without a source, in order, or for the placeholders of a raw prompt.
    pub images: Vec<ImageInput>,
    /// Written settings; what is left open comes from the checkpoint's generation_config.json.
    pub sampling: SamplingFlags,
    pub decode: DecodeOptions,
}

impl Request {
    /// A request with default settings.
    pub fn new(prompt: Prompt, images: Vec<ImageInput>) -> Request {
        Request { prompt, images, sampling: SamplingFlags::default(), decode: DecodeOptions::default() }
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token or a stop string.
    Stop,
    /// `max_tokens`, or the context is full.
    Length,
}

impl FinishReason {
    /// `stop` or `length`.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

/// Log-probabilities at one position, after the logits processors.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    pub token_id: u32,
    pub logprob: f32,
    /// The most probable tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// Seconds of the stages of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timings {
    /// Reading, decoding and preprocessing its images.
    pub image_s: f64,
    /// From admission to the first token, encoding included.
    pub prefill_s: f64,
    /// From the first token to the last.
    pub decode_s: f64,
}

/// A finished answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub text: String,
    /// New tokens, a final end token included.
    pub token_ids: Vec<u32>,
    pub finish_reason: FinishReason,
    /// After placeholder expansion.
    pub prompt_token_ids: Vec<u32>,
    /// Placeholder positions among them.
    pub image_tokens: usize,
    /// One a new token, where asked for.
    pub logprobs: Vec<TokenLogprobs>,
    pub timings: Timings,
}

/// What happens to a request, in order: `Started`, any number of `Token`, `Done`; or an error at any point.
#[derive(Debug, Clone)]
pub enum Event {
    /// Admitted: queued with this many tokens.
    Started { prompt_tokens: usize, image_tokens: usize },
    /// A new token, with the text that is certain now; it may be empty.
    Token { token_id: u32, text: String },
    /// The whole answer.
    Done(Box<Answer>),
}

/// Events, or the error that ended the request.
pub type EventResult = std::result::Result<Event, Error>;
