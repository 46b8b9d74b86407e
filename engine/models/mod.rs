//! Families: what a checkpoint's config says, as graphs and rules. The only place with family names.
//!
//! In: config files. Out: encoder and decoder graphs, preprocessing, prompt expansion, encoder inputs.
//! Not here: devices, element types, storage, batches. A new family is one file and one line in [`REGISTRY`].

pub mod blocks;
pub mod idefics2;
pub mod patches;
pub mod positions;

use std::path::Path;

use crate::checkpoint::config::{ConfigFile, read_image_processor};
use crate::graph::{Graph, Sizes};
use crate::input::image::RgbImage;
use crate::input::prompt::PromptText;
use crate::{Error, Result};

/// How a family is found and made.
pub struct Entry {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// Reads the configs.
    pub open: fn(&Configs) -> Result<Box<dyn Family>>,
}

/// All families.
pub const REGISTRY: &[Entry] = &[Entry { model_type: "idefics2", open: idefics2::open }];

/// Short names for `--model`, and the hub repositories they stand for.
pub const ALIASES: &[(&str, &str)] = &[
    ("idefics2", "HuggingFaceM4/idefics2-8b"),
    ("idefics2-base", "HuggingFaceM4/idefics2-8b-base"),
    ("idefics2-chatty", "HuggingFaceM4/idefics2-8b-chatty"),
];

/// The JSON files of a checkpoint that a family reads.
pub struct Configs {
    pub config: ConfigFile,
    /// preprocessor_config.json, or the image processor inside processor_config.json.
    pub image_processor: Option<ConfigFile>,
}

impl Configs {
    /// Reads the files of a checkpoint directory.
    pub fn read(dir: &Path) -> Result<Configs> {
        Ok(Configs { config: ConfigFile::read(&dir.join("config.json"))?, image_processor: read_image_processor(dir)? })
    }
}

/// Opens the family that `config.json` names.
pub fn open(configs: &Configs) -> Result<Box<dyn Family>> {
    let root = configs.config.root();
    let name = root.text_if_present("model_type")?.unwrap_or_default();
    let Some(entry) = REGISTRY.iter().find(|e| e.model_type == name) else {
        let known: Vec<&str> = REGISTRY.iter().map(|e| e.model_type).collect();
        return Err(Error::Model(format!(
            "{}: model_type: expected one of {}, got {name:?}",
            root.place(None),
            known.join(", ")
        )));
    };
    (entry.open)(configs)
}

/// An image, or a tile of one, as the encoder takes it.
#[derive(Debug, Clone)]
pub struct Tile {
    /// Pixels after resizing and cutting, before normalising.
    pub pixels: RgbImage,
    /// Encoder rows, which is also the number of its placeholder tokens.
    pub rows: usize,
    /// Patches, the unit of encoder work.
    pub patches: usize,
}

/// What the engine must know of the text side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextLimits {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_layers: usize,
    /// Elements of keys and values of one token in one layer.
    pub kv_elements: usize,
    /// Longest sequence the positions allow.
    pub max_positions: usize,
    /// Components of a token's position: 1, or 3 (time, height, width).
    pub position_components: usize,
}

/// Arrays of an encoder run, in the order of the encoder graph's inputs.
#[derive(Debug, Clone, Default)]
pub struct EncoderBatch {
    pub sizes: Sizes,
    pub arrays: Vec<Array>,
}

/// One host array.
#[derive(Debug, Clone)]
pub enum Array {
    Float(Vec<f32>),
    Int(Vec<i32>),
    Byte(Vec<u8>),
}

/// A model family: everything that only it decides.
pub trait Family: Send + Sync {
    /// `model_type`.
    fn name(&self) -> &'static str;

    fn limits(&self) -> TextLimits;

    /// The name under which the graphs ask for a stored tensor; `None` for one that is never used.
    fn rename(&self, stored: &str) -> Option<String> {
        Some(stored.to_string())
    }

    /// Patches to encoder rows. Its last input is `slab_rows [rows]`, where each row goes.
    fn encoder(&self) -> Result<Graph>;

    /// Tokens to logits, over paged KV.
    fn decoder(&self) -> Result<Graph>;

    /// The largest number of patches that one tile can have, and its rows: the smallest bucket of the encoder.
    fn largest_tile(&self) -> (usize, usize);

    /// Resizes and cuts an image. Errors are [`Error::Request`].
    fn preprocess(&self, image: &RgbImage) -> Result<Vec<Tile>>;

    /// What besides the pixels decides encoder rows; part of the cache key.
    fn preprocess_key(&self) -> String;

    /// Replaces each image placeholder of a rendered prompt by the tokens that stand for that image's tiles.
    /// Errors are [`Error::Request`] when counts differ.
    fn expand(&self, prompt: PromptText, images: &[Vec<Tile>]) -> Result<PromptText>;

    /// Strings that stand for an image in a prompt, beside the tokenizer's own control tokens.
    fn placeholders(&self) -> &[&str];

    /// The placeholder token; each of its occurrences takes one encoder row.
    fn image_token_id(&self) -> u32;

    /// Encoder arrays for tiles, which go to slab rows starting at the given ones.
    fn encoder_batch(&self, tiles: &[(&Tile, usize)]) -> EncoderBatch;
}
