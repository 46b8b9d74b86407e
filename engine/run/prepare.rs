//! A request made ready for the scheduler: messages rendered, images read and cut, prompt expanded and tokenised.
//!
//! In: a [`Request`]. Out: token ids, tiles, spans. Runs on the caller's thread, so that the worker never waits for
//! files. Not here: scheduling.

use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;

use super::request::{ImageInput, Prompt, Request};
use super::sampling_params::SamplingParams;
use crate::checkpoint::GenerationConfig;
use crate::input::chat_template::ChatTemplate;
use crate::input::image::{self, RgbImage, source};
use crate::input::message::{ImageSource, Part};
use crate::input::prompt::{PromptText, TextGuard};
use crate::input::tokenizer::Tokenizer;
use crate::models::{Family, Tile};
use crate::schedule::ImageSpan;
use crate::{Error, Result};

/// What preparing needs of a model; shared between threads.
pub struct Frontend {
    pub family: Box<dyn Family>,
    pub tokenizer: Arc<Tokenizer>,
    pub template: Option<ChatTemplate>,
    /// Knows the control tokens that user text must not become.
    pub guard: TextGuard,
    pub generation: GenerationConfig,
    pub vocab_size: usize,
}

/// A request that can be scheduled.
pub struct Prepared {
    pub prompt: Vec<u32>,
    pub spans: Vec<ImageSpan>,
    /// By span.
    pub tiles: Vec<Arc<Tile>>,
    pub params: SamplingParams,
    pub image_tokens: usize,
    pub image_s: f64,
}

impl Frontend {
    /// Errors are the request's, and name the image or the message at fault.
    pub fn prepare(&self, request: &Request) -> Result<Prepared> {
        let start = Instant::now();
        let sources = self.image_sources(request)?;
        let images: Vec<Vec<Tile>> = sources
            .par_iter()
            .enumerate()
            .map(|(i, input)| {
                let image = read_image(input, request).map_err(|e| name_image(e, i, input))?;
                self.family.preprocess(&image).map_err(|e| name_image(e, i, input))
            })
            .collect::<Result<_>>()?;
        let image_s = start.elapsed().as_secs_f64();

        let rendered = match &request.prompt {
            Prompt::Raw(text) => PromptText::raw(text.clone()),
            Prompt::Messages(messages) => {
                let template = self.template.as_ref().ok_or_else(|| {
                    Error::Request(
                        "this checkpoint has no chat template; give the whole prompt with --raw, its image placeholders included"
                            .to_string(),
                    )
                })?;
                template.render(messages, self.tokenizer.special_tokens(), &self.guard, true)?
            }
        };
        let expanded = self.family.expand(rendered, &images)?;
        let prompt = self.tokenizer.encode(&expanded, true)?;
        let tiles: Vec<Arc<Tile>> = images.into_iter().flatten().map(Arc::new).collect();
        let spans = self.spans(&prompt, &tiles)?;
        let params = SamplingParams::from_generation_config(&request.sampling, &self.generation, prompt.len())?;
        if params.num_beams > 1 {
            return Err(Error::Unsupported(format!(
                "num_beams {}: expected 1; beam search is not built in (--num-beams 1 overrides the checkpoint)",
                params.num_beams
            )));
        }
        let image_tokens = spans.iter().map(|s| s.rows).sum();
        Ok(Prepared { prompt, spans, tiles, params, image_tokens, image_s })
    }

    /// The pictures in the order in which the prompt has them.
    fn image_sources(&self, request: &Request) -> Result<Vec<ImageInput>> {
        let Prompt::Messages(messages) = &request.prompt else { return Ok(request.images.clone()) };
        let mut given = request.images.iter().cloned();
        let mut sources = Vec::new();
        for (i, message) in messages.iter().enumerate() {
            for (j, part) in message.content.iter().enumerate() {
                let Part::Image(source) = part else { continue };
                sources.push(match source {
                    ImageSource::Path(s) | ImageSource::Url(s) => ImageInput::Source(s.clone()),
                    ImageSource::Next => given.next().ok_or_else(|| {
                        Error::Request(format!(
                            "messages[{i}].content[{j}]: an image without a source, and no --image is left; {} given",
                            request.images.len()
                        ))
                    })?,
                });
            }
        }
        match given.count() {
            0 => Ok(sources),
            n => Err(Error::Request(format!("{n} of {} images are not used by any message", request.images.len()))),
        }
    }

    /// Where each tile's placeholders stand: runs of the image token, cut by the tiles' numbers of rows.
    fn spans(&self, prompt: &[u32], tiles: &[Arc<Tile>]) -> Result<Vec<ImageSpan>> {
        let image_token = self.family.image_token_id();
        let key = self.family.preprocess_key();
        let mut spans = Vec::with_capacity(tiles.len());
        let mut at = 0;
        for tile in tiles {
            let start = prompt[at..].iter().position(|t| *t == image_token).map(|p| at + p);
            let whole = start
                .filter(|s| prompt[*s..].iter().take(tile.rows).filter(|t| **t == image_token).count() == tile.rows);
            let Some(start) = whole else {
                return Err(Error::Request(format!(
                    "prompt: expected {} image placeholder tokens ({} images or tiles), got {}",
                    tiles.iter().map(|t| t.rows).sum::<usize>(),
                    tiles.len(),
                    prompt.iter().filter(|t| **t == image_token).count()
                )));
            };
            spans.push(ImageSpan { hash: tile_hash(tile, &key), start, rows: tile.rows, work: tile.patches });
            at = start + tile.rows;
        }
        if let Some(extra) = prompt[at..].iter().position(|t| *t == image_token) {
            return Err(Error::Request(format!(
                "prompt: an image placeholder at token {} without an image",
                at + extra
            )));
        }
        Ok(spans)
    }
}

fn read_image(input: &ImageInput, request: &Request) -> Result<Arc<RgbImage>> {
    let decode = |bytes: &[u8]| image::decode(bytes, &request.decode).map(Arc::new);
    match input {
        ImageInput::Pixels(p) => Ok(p.clone()),
        ImageInput::Bytes(b) => decode(b),
        ImageInput::Source(s) => decode(&source::read(s, &source::SourceOptions::default())?),
    }
}

/// A name for messages; a `data:` URI is never printed.
fn name_image(error: Error, index: usize, input: &ImageInput) -> Error {
    let name = match input {
        ImageInput::Source(s) if s.starts_with("data:") => format!("image {} (data: URI)", index + 1),
        ImageInput::Source(s) => s.clone(),
        _ => format!("image {}", index + 1),
    };
    match error {
        Error::Request(e) if e.contains(&name) => Error::Request(e),
        Error::Request(e) => Error::Request(format!("{name}: {e}")),
        other => other,
    }
}

/// Hash of all that a tile's encoder rows depend on, within one model.
fn tile_hash(tile: &Tile, preprocess_key: &str) -> [u8; 32] {
    let mut h = blake3::Hasher::new();
    h.update(&(preprocess_key.len() as u64).to_le_bytes());
    h.update(preprocess_key.as_bytes());
    h.update(&(tile.pixels.width as u64).to_le_bytes());
    h.update(&(tile.pixels.height as u64).to_le_bytes());
    h.update(&tile.pixels.pixels);
    *h.finalize().as_bytes()
}
