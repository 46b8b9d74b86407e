//! Idefics2: SigLIP NaViT on the picture's own grid, a gated projection and a perceiver, Mistral.
//!
//! Source: transformers 5.23 `models/idefics2` (modeling, image_processing_pil, processing).

use super::blocks::{LlamaLayer, VisionLayer, gated_mlp};
use super::patches::Patches;
use super::positions::{bucketed_patch_positions, rotary};
use super::{Array, Configs, EncoderBatch, Family, TextLimits, Tile};
use crate::checkpoint::config::Section;
use crate::checkpoint::rope::RopeParameters;
use crate::graph::{Activation, Builder, Dim, Graph, Heads, NodeId, Normalization, Op, Sizes, Sym};
use crate::input::image::{Filter, RgbImage, resize};
use crate::input::prompt::PromptText;
use crate::{Error, Result};

const FAKE: &str = "<fake_token_around_image>";
const IMAGE: &str = "<image>";

struct Idefics2 {
    vision: VisionLayer,
    vision_layers: usize,
    patch_size: usize,
    /// Side of the position table.
    table_side: usize,
    perceiver: Perceiver,
    text: LlamaLayer,
    limits: TextLimits,
    tied_head: bool,
    image_token_id: u32,
    processor: Processor,
}

struct Perceiver {
    latents: usize,
    depth: usize,
    heads: Heads,
    activation: Activation,
    eps: f32,
}

struct Processor {
    shortest_edge: usize,
    longest_edge: usize,
    filter: Filter,
    split: bool,
    resize: bool,
    normalization: Normalization,
    key: String,
}

/// Reads config.json and preprocessor_config.json. Missing keys take the defaults of transformers' classes.
pub fn open(configs: &Configs) -> Result<Box<dyn Family>> {
    let root = configs.config.root();
    let (v, t, p) = (root.section("vision_config")?, root.section("text_config")?, root.section("perceiver_config")?);

    let vision = VisionLayer {
        hidden_size: v.size_or("hidden_size", 768)?,
        intermediate_size: v.size_or("intermediate_size", 3072)?,
        num_heads: v.size_or("num_attention_heads", 12)?,
        activation: activation(&v, "gelu_pytorch_tanh")?,
        eps: v.positive_if_present("layer_norm_eps")?.unwrap_or(1e-6) as f32,
    };
    if !vision.hidden_size.is_multiple_of(vision.num_heads) {
        return Err(v.error("num_attention_heads", format!("a divisor of hidden_size {}", vision.hidden_size)));
    }
    let patch_size = v.size_or("patch_size", 32)?;
    let table_side = v.size_or("image_size", 224)? / patch_size;
    if table_side == 0 {
        return Err(v.error("image_size", format!("at least one patch of {patch_size}")));
    }

    let hidden_size = t.size_or("hidden_size", 4096)?;
    let heads = heads(&t, "num_attention_heads", 32, 8, t.size_if_present("head_dim")?, hidden_size)?;
    let rms_norm_eps = t.positive_if_present("rms_norm_eps")?.unwrap_or(1e-5);
    let text = LlamaLayer {
        hidden_size,
        intermediate_size: t.size_or("intermediate_size", 14336)?,
        heads,
        activation: activation(&t, "silu")?,
        eps: rms_norm_eps as f32,
        rotary: rotary(&RopeParameters::read(&t, 10_000.0)?, heads.head_dim)?,
        // A written null switches the window off; a missing key is the class default.
        sliding_window: if t.has("sliding_window") { t.size_if_present("sliding_window")? } else { Some(4096) },
    };
    let limits = TextLimits {
        vocab_size: t.size_or("vocab_size", 32000)?,
        hidden_size,
        num_layers: t.size_or("num_hidden_layers", 32)?,
        kv_elements: 2 * heads.num_kv_heads * heads.head_dim,
        max_positions: t.size_or("max_position_embeddings", 4096 * 8)?,
        position_components: text.rotary.components(),
    };

    // The hub's perceiver section may lack these two; transformers then copies them from the text model.
    let own_width = p.size_or("hidden_size", 4096)? == hidden_size;
    let eps = if own_width { p.positive_if_present("rms_norm_eps")?.unwrap_or(1e-6) } else { rms_norm_eps };
    let head_dim = p.size_or("resampler_head_dim", 96)?;
    let perceiver = Perceiver {
        latents: p.size_or("resampler_n_latents", 64)?,
        depth: p.size_or("resampler_depth", 3)?,
        heads: self::heads(&p, "resampler_n_heads", 16, 4, Some(head_dim), 0)?,
        activation: activation(&p, "silu")?,
        eps: eps as f32,
    };

    let image_token_id = root.size_or("image_token_id", 32_001)? as u32;
    let processor = Processor::read(configs.image_processor.as_ref().map(|c| c.root()), patch_size)?;
    let tied_head = root.flag_if_present("tie_word_embeddings")?.unwrap_or(false);
    Ok(Box::new(Idefics2 {
        vision_layers: v.size_or("num_hidden_layers", 12)?,
        vision,
        patch_size,
        table_side,
        perceiver,
        text,
        limits,
        tied_head,
        image_token_id,
        processor,
    }))
}

fn activation(section: &Section, default: &str) -> Result<Activation> {
    Activation::from_name(section.text_if_present("hidden_act")?.unwrap_or(default))
        .ok_or_else(|| section.error("hidden_act", "silu, gelu, gelu_pytorch_tanh, quick_gelu or relu"))
}

fn heads(s: &Section, key: &str, num: usize, kv: usize, head_dim: Option<usize>, hidden: usize) -> Result<Heads> {
    let num_heads = s.size_or(key, num)?;
    let num_kv_heads = s.size_or("num_key_value_heads", kv)?;
    if num_heads % num_kv_heads != 0 {
        return Err(s.error("num_key_value_heads", format!("a divisor of {key} {num_heads}")));
    }
    let head_dim = head_dim.unwrap_or(hidden / num_heads);
    if head_dim == 0 {
        return Err(s.error(key, format!("at most hidden_size {hidden}")));
    }
    Ok(Heads { num_heads, num_kv_heads, head_dim, scale: (head_dim as f64).powf(-0.5) as f32 })
}

impl Processor {
    fn read(section: Option<Section>, patch_size: usize) -> Result<Processor> {
        let half = [0.5; 3];
        let Some(s) = section else {
            return Err(Error::Config(
                "preprocessor_config.json: not found, nor an image processor in processor_config.json".to_string(),
            ));
        };
        let flag = |key: &str, default: bool| Ok::<bool, Error>(s.flag_if_present(key)?.unwrap_or(default));
        let triple = |key: &str| match s.numbers_if_present(key)? {
            None => Ok(half),
            Some(v) => <[f64; 3]>::try_from(v).map_err(|_| s.error(key, "three numbers")),
        };
        let size = s.section_if_present("size")?;
        let edge = |key: &str, default: usize| size.as_ref().map_or(Ok(default), |s| s.size_or(key, default));
        let (shortest_edge, longest_edge) = (edge("shortest_edge", 378)?, edge("longest_edge", 980)?);
        if shortest_edge < patch_size {
            return Err(s.error("size", format!("a shortest_edge of at least one patch of {patch_size}")));
        }
        let filter = match s.count_if_present("resample")? {
            None => Filter::Bilinear,
            Some(id) => Filter::from_pil(id as i64).ok_or_else(|| s.error("resample", "a PIL filter from 0 to 5"))?,
        };
        let rescale = flag("do_rescale", true)?
            .then(|| s.positive_if_present("rescale_factor").map(|f| f.unwrap_or(1.0 / 255.0)))
            .transpose()?;
        let normalize = flag("do_normalize", true)?
            .then(|| Ok::<_, Error>((triple("image_mean")?, triple("image_std")?)))
            .transpose()?;
        let (split, resize) = (flag("do_image_splitting", false)?, flag("do_resize", true)?);
        let key = format!("{shortest_edge} {longest_edge} {filter:?} {split} {resize} {rescale:?} {normalize:?}");
        let normalization = Normalization { rescale, normalize };
        Ok(Processor { shortest_edge, longest_edge, filter, split, resize, normalization, key })
    }

    /// Width and height after resizing: the longer side at most `longest_edge`, both at least `shortest_edge`.
    fn size(&self, width: usize, height: usize) -> (usize, usize) {
        let ratio = width as f64 / height as f64;
        let (mut w, mut h) = (width, height);
        if w >= h && w > self.longest_edge {
            w = self.longest_edge;
            h = (w as f64 / ratio) as usize;
        } else if h > w && h > self.longest_edge {
            h = self.longest_edge;
            w = (h as f64 * ratio) as usize;
        }
        (w.max(self.shortest_edge), h.max(self.shortest_edge))
    }
}

/// Four quadrants, cut at half the width and height, row by row.
fn quadrants(image: &RgbImage) -> [RgbImage; 4] {
    let (w, h) = (image.width, image.height);
    let (mw, mh) = (w / 2, h / 2);
    [(0, 0, mw, mh), (mw, 0, w - mw, mh), (0, mh, mw, h - mh), (mw, mh, w - mw, h - mh)]
        .map(|(x, y, w, h)| image.crop(x, y, w, h))
}

impl Family for Idefics2 {
    fn name(&self) -> &'static str {
        "idefics2"
    }

    fn limits(&self) -> TextLimits {
        self.limits.clone()
    }

    fn encoder(&self) -> Result<Graph> {
        let b = Builder::new("encoder");
        let patch_bytes = 3 * self.patch_size * self.patch_size;
        let pixels = b.byte_input("pixels", Dim::times(Sym::Patches, patch_bytes));
        let origins = b.int_input("patch_origins", [Sym::Patches.into(), 2.into()]);
        let positions = b.int_input("patch_positions", [Sym::Patches.into()]);
        let segments = [Dim::from(Sym::Images).plus(1)];
        let cu_patches = b.int_input("cu_patches", segments);
        let cu_latents = b.int_input("cu_latents", segments);
        let cu_context = b.int_input("cu_context", segments);
        let slab_rows = b.int_input("slab_rows", [Dim::times(Sym::Images, self.perceiver.latents)]);

        let v = b.scope("model.vision_model");
        let d = self.vision.hidden_size;
        let e = v.scope("embeddings");
        let normalization = &self.processor.normalization;
        let x = e.patch_embed("patch_embedding", [pixels, origins], d, self.patch_size, normalization);
        let position = e.embedding("position_embedding", positions, self.table_side * self.table_side, d);
        let mut x = e.add("", x, position);
        for i in 0..self.vision_layers {
            x = self.vision.build(&v.scope(&format!("encoder.layers.{i}")), x, cu_patches);
        }
        let x = v.layer_norm("post_layernorm", x, self.vision.eps);

        let c = b.scope("model.connector");
        let width = self.text.hidden_size;
        let mlp = c.scope("modality_projection");
        let context = gated_mlp(&mlp, x, self.text.intermediate_size, width, self.text.activation);
        let p = c.scope("perceiver_resampler");
        let mut latents = p.broadcast_rows("latents", self.perceiver.latents, width);
        for i in 0..self.perceiver.depth {
            let l = p.scope(&format!("layers.{i}"));
            latents = self.perceiver.layer(&l, latents, context, [cu_latents, cu_patches, cu_context]);
        }
        let rows = p.rms_norm("norm", latents, self.perceiver.eps);
        b.push("encoder_rows", Op::ScatterRows { slab: b.slab(width) }, &[rows, slab_rows]);
        b.finish(&[])
    }

    fn decoder(&self) -> Result<Graph> {
        let b = Builder::new("decoder");
        let step = b.decoder_inputs(self.limits.position_components);
        let m = b.scope("model.text_model");
        let TextLimits { vocab_size, hidden_size, num_layers, .. } = self.limits;
        let slab = b.slab(hidden_size);
        let mut x = m.embed_merge("embed_tokens", step.token_ids, step.image_rows, slab, vocab_size, hidden_size);
        for i in 0..num_layers {
            x = self.text.build(&m.scope(&format!("layers.{i}")), x, i, &step);
        }
        let x = m.rms_norm("norm", x, self.text.eps);
        let x = b.push("logit_hidden", Op::GatherRows, &[x, step.logit_rows]);
        let logits = match self.tied_head {
            true => b.linear_tied("lm_head", x, "model.text_model.embed_tokens.weight", vocab_size),
            false => b.linear("lm_head", x, vocab_size),
        };
        b.finish(&[logits])
    }

    fn largest_tile(&self) -> (usize, usize) {
        // Either side may be as long as the longest edge, or as the shortest where that is longer.
        let side = self.processor.longest_edge.max(self.processor.shortest_edge) / self.patch_size;
        (side * side, self.perceiver.latents)
    }

    fn preprocess(&self, image: &RgbImage) -> Result<Vec<Tile>> {
        let (w, h) = (image.width, image.height);
        let p = &self.processor;
        let least = if p.split { 2 } else { 1 };
        if w < least || h < least {
            return Err(Error::Request(format!(
                "image of {w}x{h} pixels: expected at least {least}x{least} to be split into quadrants"
            )));
        }
        let mut parts = if p.split { quadrants(image).to_vec() } else { Vec::new() };
        parts.push(image.clone());
        let tiles = parts.into_iter().map(|part| {
            let (w, h) = if p.resize { p.size(part.width, part.height) } else { (part.width, part.height) };
            let pixels = if (w, h) == (part.width, part.height) { part } else { resize(&part, w, h, p.filter) };
            let patches = (w / self.patch_size) * (h / self.patch_size);
            let (limit, rows) = self.largest_tile();
            if patches == 0 || patches > limit {
                return Err(Error::Request(format!(
                    "image of {w}x{h} pixels: expected 1 to {limit} patches of {0}x{0}, got {patches}",
                    self.patch_size
                )));
            }
            Ok(Tile { pixels, rows, patches })
        });
        tiles.collect()
    }

    fn preprocess_key(&self) -> String {
        self.processor.key.clone()
    }

    fn expand(&self, prompt: PromptText, images: &[Vec<Tile>]) -> Result<PromptText> {
        let found = prompt.text.matches(IMAGE).count();
        if found != images.len() {
            return Err(Error::Request(format!(
                "prompt: expected one {IMAGE} for each of {} images, got {found}",
                images.len()
            )));
        }
        let tile = format!("{FAKE}{}{FAKE}", IMAGE.repeat(self.perceiver.latents));
        let mut text = String::with_capacity(prompt.text.len());
        let mut images = images.iter();
        for (i, piece) in prompt.text.split(IMAGE).enumerate() {
            if i > 0 {
                text.push_str(&tile.repeat(images.next().map_or(0, Vec::len)));
            }
            text.push_str(piece);
        }
        // Neighbouring images share one boundary token.
        let text = text.replace(&format!("{FAKE}{FAKE}"), FAKE);
        // A word that follows a boundary token directly is parted from it by a space.
        let mut spaced = String::with_capacity(text.len());
        for (i, piece) in text.split(FAKE).enumerate() {
            if i > 0 {
                spaced.push_str(FAKE);
                if piece.chars().next().is_some_and(|c| !c.is_whitespace() && c != '<') {
                    spaced.push(' ');
                }
            }
            spaced.push_str(piece);
        }
        Ok(PromptText { text: spaced, ..prompt })
    }

    fn placeholders(&self) -> &[&str] {
        &[IMAGE, FAKE]
    }

    fn image_token_id(&self) -> u32 {
        self.image_token_id
    }

    fn encoder_batch(&self, tiles: &[(&Tile, usize)]) -> EncoderBatch {
        let mut patches = Patches::default();
        let mut positions = Vec::new();
        let (mut cu_patches, mut cu_latents, mut cu_context) = (vec![0], vec![0], vec![0]);
        let mut slab_rows = Vec::new();
        for (tile, first_row) in tiles {
            let (h, w) = patches.push(&tile.pixels, self.patch_size);
            positions.extend(bucketed_patch_positions(h, w, self.table_side));
            let n = cu_patches.len() as i32;
            let latents = self.perceiver.latents as i32;
            let total = positions.len() as i32;
            cu_patches.push(total);
            cu_latents.push(n * latents);
            cu_context.push(total + n * latents);
            slab_rows.extend((0..tile.rows).map(|i| (first_row + i) as i32));
        }
        let sizes = Sizes::default()
            .with(Sym::Patches, positions.len())
            .with(Sym::Images, tiles.len())
            .with(Sym::ContextRows, positions.len() + tiles.len() * self.perceiver.latents);
        let ints = [patches.origins, positions, cu_patches, cu_latents, cu_context, slab_rows].map(Array::Int);
        EncoderBatch { sizes, arrays: std::iter::once(Array::Byte(patches.pixels)).chain(ints).collect() }
    }
}

impl Perceiver {
    /// Latents attend to the context and to themselves; `cu` are the segments of latents, context, and both joined.
    fn layer(&self, b: &Builder, latents: NodeId, context: NodeId, cu: [NodeId; 3]) -> NodeId {
        let [cu_latents, cu_context, cu_joined] = cu;
        let width = b.width(latents);
        let l = b.rms_norm("input_latents_norm", latents, self.eps);
        let c = b.rms_norm("input_context_norm", context, self.eps);
        let a = b.scope("self_attn");
        let joined = a.push("context_and_latents", Op::ConcatSegments, &[c, cu_context, l, cu_latents]);
        let Heads { num_heads, num_kv_heads, head_dim, .. } = self.heads;
        let q = a.linear("q_proj", l, num_heads * head_dim);
        let k = a.linear("k_proj", joined, num_kv_heads * head_dim);
        let v = a.linear("v_proj", joined, num_kv_heads * head_dim);
        let h = a.attention("attention", [q, k, v], [cu_latents, cu_joined], self.heads);
        let h = a.linear("o_proj", h, width);
        let latents = b.add("attention_residual", latents, h);
        let h = b.rms_norm("post_attention_layernorm", latents, self.eps);
        let h = gated_mlp(&b.scope("mlp"), h, 4 * width, width, self.activation);
        b.add("", latents, h)
    }
}
