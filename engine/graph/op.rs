//! The closed list of operations: primitives, which are the specification, and fused ones, which expand
//! into primitives.
//!
//! In: types of inputs. Out: type of the output, cost, expansion. Owns: what each operation means.
//! Not here: how a backend does it.

use super::normalization::Normalization;
use super::rotary::Rotary;
use super::shape::{Dim, Shape, Sizes, Sym};
use super::{Graph, StateId, WeightId};

/// What a value holds: activations (the backend's own float type), 32-bit integers, or bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Float,
    Int,
    Byte,
}

/// Type of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Type {
    pub kind: Kind,
    pub shape: Shape,
}

/// Activation functions, by their names in Hugging Face configs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Silu,
    GeluErf,
    GeluTanh,
    QuickGelu,
    Relu,
}

impl Activation {
    /// From `hidden_act`; `None` for one that is not known.
    pub fn from_name(name: &str) -> Option<Activation> {
        Some(match name {
            "silu" | "swish" => Activation::Silu,
            "gelu" => Activation::GeluErf,
            "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Activation::GeluTanh,
            "quick_gelu" => Activation::QuickGelu,
            "relu" => Activation::Relu,
            _ => return None,
        })
    }
}

/// Heads of an attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    /// Factor on `q k^T`, before the softmax.
    pub scale: f32,
}

/// An operation. Inputs are listed as `(name [shape])`; `T` is any number of rows.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// An array that the host gives every step.
    Input,
    /// `(x [T, k]) -> [T, n]`, `y = x * w^T + b` with `w [n, k]`.
    Linear { weight: WeightId, bias: Option<WeightId> },
    /// `(pixels [..] of bytes, origins [T, 2]) -> [T, d]`: the convolution of patches that touch, `w [d, 3, P, P]`, of
    /// normalised pixels. Pixels are images `[height, width, 3]`, one after another; an origin is the byte of a patch's
    /// first pixel and the bytes from one of its rows to the next.
    PatchEmbed { weight: WeightId, bias: Option<WeightId>, normalization: Normalization },
    /// `(x [T, d]) -> [T, d]`, over the last dimension, biased variance.
    LayerNorm { weight: WeightId, bias: WeightId, eps: f32 },
    /// `(x [T, d]) -> [T, d]`, `x / sqrt(mean(x^2) + eps) * w`.
    RmsNorm { weight: WeightId, eps: f32 },
    /// `(x) -> same`, element by element.
    Activation(Activation),
    /// `(a, b) -> same`.
    Add,
    /// `(a, b) -> same`.
    Mul,
    /// `(ids [T]) -> [T, d]`, rows of a table.
    Embedding { weight: WeightId },
    /// `(ids [T], image_rows [T]) -> [T, d]`: `image_rows[t] < 0` takes the token's embedding, otherwise that row of the slab.
    EmbedMerge { weight: WeightId, slab: StateId },
    /// `(x [T, d], rows [R]) -> [R, d]`.
    GatherRows,
    /// `() -> [Images * r, d]`: a weight `[r, d]`, once an image.
    BroadcastRows { weight: WeightId },
    /// `(a [A, d], cu_a [Images+1], b [B, d], cu_b [Images+1]) -> [ContextRows, d]`: for each segment the rows of `a`, then those of `b`.
    ConcatSegments,
    /// `(x [T, heads * head_dim], positions [T]) -> same`: half-rotation rotary embedding. With several components
    /// positions are `[components, T]`.
    Rope { num_heads: usize, head_dim: usize, rotary: Rotary },
    /// `(q [Q, h*d], k [K, hk*d], v [K, hk*d], cu_q [S+1], cu_k [S+1]) -> [Q, h*d]`: bidirectional within each segment.
    Attention(Heads),
    /// `(k [Tokens, hk*d], v, slot_mapping [Tokens]) -> ()`: writes a layer's KV pages.
    KvWrite { cache: StateId, num_kv_heads: usize, head_dim: usize },
    /// `(q [Tokens, h*d], block_table [Seqs, Blocks], cu_seqlens_q [Seqs+1], context_lens [Seqs]) -> [Tokens, h*d]`:
    /// causal over the pages of each sequence. `window` limits a query to that many latest keys, its own included.
    PagedAttention { cache: StateId, heads: Heads, window: Option<usize> },
    /// `(x [T, d], rows [T]) -> ()`: writes rows of the slab.
    ScatterRows { slab: StateId },
    /// Fused: `(x [T, k]) -> [T, n]`, `act(x * gate^T) * (x * up^T)`, of x or of its norm.
    GatedLinear { gate: WeightId, up: WeightId, activation: Activation, norm: Option<Norm> },
    /// Fused: `(r [T, n], x [T, k]) -> [T, n]`, `r + (x * w^T + b)`.
    LinearAdd { weight: WeightId, bias: Option<WeightId> },
    /// Fused: `(x [T, k]) -> [T, n]`, `act(x * w^T + b)`.
    LinearActivation { weight: WeightId, bias: Option<WeightId>, activation: Activation },
    /// Fused: `(x [T, k]) -> [T, n]`, a linear layer of x's norm; `gathered`: `(x [T, k], rows [R]) -> [R, n]`, of those
    /// rows of x.
    NormLinear { norm: Norm, weight: WeightId, bias: Option<WeightId>, gathered: bool },
    /// Fused: `(x [T, k], cu [S+1]) -> [T, h*d]`: q, k and v of x, and attention within each segment.
    SelfAttention { qkv: Qkv, heads: Heads },
    /// Fused: `(x [Tokens, k], positions [Tokens], slot_mapping [Tokens]) -> [Tokens, h*d]`: q, k and v of x or of its
    /// norm, q and k turned by their positions (as `Rope`), k and v written to the layer's pages; the result is q.
    QkvRope { norm: Option<Norm>, qkv: Qkv, heads: Heads, rotary: Rotary, cache: StateId },
}

/// An RMSNorm that an operation applies to its first input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// `[k]`.
    pub weight: WeightId,
    pub eps: f32,
}

/// Projections of one input: q `[h*d, k]`, k and v `[hk*d, k]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Qkv {
    pub weights: [WeightId; 3],
    /// `[h*d]`, `[hk*d]` twice; all or none.
    pub biases: Option<[WeightId; 3]>,
}

impl Qkv {
    fn linear(&self, i: usize, x: Arg) -> (Op, Vec<Arg>) {
        (Op::Linear { weight: self.weights[i], bias: self.biases.map(|b| b[i]) }, vec![x])
    }
}

/// An argument of an expanded operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arg {
    /// Input `i` of the fused operation.
    Input(usize),
    /// Result of step `i` of the expansion.
    Step(usize),
}

/// Work of an operation under given sizes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations, a multiply-add counted as two.
    pub flops: u64,
    /// Elements of weights read at least once.
    pub weight_elements: u64,
    /// Activation elements read and written at least once.
    pub activation_elements: u64,
}

impl Op {
    /// Short name for printing.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Input => "input",
            Op::Linear { .. } => "linear",
            Op::PatchEmbed { .. } => "patch_embed",
            Op::LayerNorm { .. } => "layer_norm",
            Op::RmsNorm { .. } => "rms_norm",
            Op::Activation(Activation::Silu) => "silu",
            Op::Activation(Activation::GeluErf) => "gelu",
            Op::Activation(Activation::GeluTanh) => "gelu_tanh",
            Op::Activation(Activation::QuickGelu) => "quick_gelu",
            Op::Activation(Activation::Relu) => "relu",
            Op::Add => "add",
            Op::Mul => "mul",
            Op::Embedding { .. } => "embedding",
            Op::EmbedMerge { .. } => "embed_merge",
            Op::GatherRows => "gather_rows",
            Op::BroadcastRows { .. } => "broadcast_rows",
            Op::ConcatSegments => "concat_segments",
            Op::Rope { .. } => "rope",
            Op::Attention(_) => "attention",
            Op::KvWrite { .. } => "kv_write",
            Op::PagedAttention { .. } => "paged_attention",
            Op::ScatterRows { .. } => "scatter_rows",
            Op::GatedLinear { .. } => "gated_linear",
            Op::LinearAdd { .. } => "linear_add",
            Op::LinearActivation { .. } => "linear_activation",
            Op::NormLinear { .. } => "norm_linear",
            Op::SelfAttention { .. } => "self_attention",
            Op::QkvRope { .. } => "qkv_rope",
        }
    }

    /// Weights that the operation reads.
    pub fn weights(&self) -> Vec<WeightId> {
        match self {
            Op::Linear { weight, bias }
            | Op::PatchEmbed { weight, bias, .. }
            | Op::LinearAdd { weight, bias }
            | Op::LinearActivation { weight, bias, .. } => std::iter::once(*weight).chain(*bias).collect(),
            Op::NormLinear { norm, weight, bias, .. } => [norm.weight, *weight].into_iter().chain(*bias).collect(),
            Op::SelfAttention { qkv, .. } => qkv.weights.into_iter().chain(qkv.biases.into_iter().flatten()).collect(),
            Op::QkvRope { norm, qkv, .. } => {
                let norm = norm.iter().map(|n| n.weight);
                norm.chain(qkv.weights).chain(qkv.biases.into_iter().flatten()).collect()
            }
            Op::LayerNorm { weight, bias, .. } => vec![*weight, *bias],
            Op::RmsNorm { weight, .. } | Op::Embedding { weight } | Op::BroadcastRows { weight } => vec![*weight],
            Op::EmbedMerge { weight, .. } => vec![*weight],
            Op::GatedLinear { gate, up, norm, .. } => norm.iter().map(|n| n.weight).chain([*gate, *up]).collect(),
            _ => Vec::new(),
        }
    }

    /// Whether the result may overwrite the first input's memory.
    pub fn in_place(&self) -> bool {
        matches!(self, Op::Activation(_) | Op::Add | Op::Mul | Op::Rope { .. } | Op::LinearAdd { .. })
    }

    /// Type of the result, or what is wrong with the inputs. An operation without a result has an empty shape.
    pub fn infer(&self, graph: &Graph, inputs: &[&Type]) -> Result<Type, String> {
        let float = |shape: Shape| Ok(Type { kind: Kind::Float, shape });
        let none = || Ok(Type { kind: Kind::Float, shape: Shape(vec![Dim::from(0)]) });
        let count = |n: usize| {
            if inputs.len() == n { Ok(()) } else { Err(format!("takes {n} inputs, got {}", inputs.len())) }
        };
        let want = |i: usize, kind: Kind, dims: &[Option<Dim>]| {
            let t = inputs[i];
            let fits =
                t.shape.0.len() == dims.len() && t.shape.0.iter().zip(dims).all(|(a, b)| b.is_none_or(|b| b == *a));
            if t.kind == kind && fits {
                return Ok(());
            }
            let dims: Vec<String> = dims.iter().map(|d| d.map_or("any".to_string(), |d| d.to_string())).collect();
            Err(format!("input {i}: expected {kind:?} [{}], got {:?} {}", dims.join(", "), t.kind, t.shape))
        };
        let matrix = |w: WeightId| {
            let s = &graph.weight(w).shape;
            (s[0], s[1..].iter().product::<usize>())
        };
        let bias_fits = |bias: Option<WeightId>, n: usize| match bias.map(|b| &graph.weight(b).shape) {
            Some(s) if s.as_slice() != [n] => Err(format!("bias: expected [{n}], got {s:?}")),
            _ => Ok(()),
        };
        let norm_fits = |norm: &Norm| match inputs[0].shape.cols() {
            Some(k) if graph.weight(norm.weight).shape == [k] => Ok(()),
            _ => Err(format!("norm of {:?} over {}", graph.weight(norm.weight).shape, inputs[0].shape)),
        };
        // A pair a frequency, and positions, input 1, of every row.
        let rotary_fits = |rotary: &Rotary, head_dim: usize| {
            if rotary.inv_freq().len() * 2 != head_dim {
                return Err(format!("{} frequencies for head_dim {head_dim}", rotary.inv_freq().len()));
            }
            let dims = rotary.positions(inputs[0].shape.rows());
            want(1, Kind::Int, &dims.into_iter().map(Some).collect::<Vec<_>>())
        };
        // The projections must fit the heads, and x them.
        let qkv_fits = |qkv: &Qkv, h: &Heads| {
            let widths = [h.num_heads, h.num_kv_heads, h.num_kv_heads].map(|n| n * h.head_dim);
            for (i, (weight, n)) in qkv.weights.into_iter().zip(widths).enumerate() {
                if matrix(weight).0 != n {
                    return Err(format!("{} rows for heads of {n}", matrix(weight).0));
                }
                want(0, Kind::Float, &[None, Some(matrix(weight).1.into())])?;
                bias_fits(qkv.biases.map(|b| b[i]), n)?;
            }
            if h.num_kv_heads == 0 || !h.num_heads.is_multiple_of(h.num_kv_heads) {
                return Err(format!("{} heads over {} KV heads", h.num_heads, h.num_kv_heads));
            }
            Ok(widths[0])
        };
        match self {
            Op::Input => Err("an input has no inference".to_string()),
            Op::SelfAttention { qkv, heads } => {
                count(2)?;
                want(1, Kind::Int, &[None])?;
                float(Shape::matrix(inputs[0].shape.rows(), qkv_fits(qkv, heads)?))
            }
            Op::QkvRope { norm, qkv, heads, rotary, .. } => {
                count(3)?;
                norm.iter().try_for_each(norm_fits)?;
                rotary_fits(rotary, heads.head_dim)?;
                want(2, Kind::Int, &[Some(inputs[0].shape.rows())])?;
                float(Shape::matrix(inputs[0].shape.rows(), qkv_fits(qkv, heads)?))
            }
            Op::Linear { weight, bias } | Op::LinearActivation { weight, bias, .. } => {
                count(1)?;
                let (n, k) = matrix(*weight);
                want(0, Kind::Float, &[None, Some(k.into())])?;
                bias_fits(*bias, n)?;
                float(Shape::matrix(inputs[0].shape.rows(), n))
            }
            Op::PatchEmbed { weight, bias, .. } => {
                count(2)?;
                let [d, 3, side, other] = graph.weight(*weight).shape[..] else {
                    return Err(format!("weight: expected [d, 3, P, P], got {:?}", graph.weight(*weight).shape));
                };
                if side != other || side == 0 {
                    return Err(format!("patches of {side}x{other} pixels"));
                }
                want(0, Kind::Byte, &[None])?;
                want(1, Kind::Int, &[None, Some(2.into())])?;
                bias_fits(*bias, d)?;
                float(Shape::matrix(inputs[1].shape.rows(), d))
            }
            Op::NormLinear { norm, weight, bias, gathered } => {
                count(1 + usize::from(*gathered))?;
                norm_fits(norm)?;
                let (n, k) = matrix(*weight);
                want(0, Kind::Float, &[None, Some(k.into())])?;
                if *gathered {
                    want(1, Kind::Int, &[None])?;
                }
                bias_fits(*bias, n)?;
                float(Shape::matrix(inputs[usize::from(*gathered)].shape.rows(), n))
            }
            Op::LinearAdd { weight, bias } => {
                count(2)?;
                let (n, k) = matrix(*weight);
                want(1, Kind::Float, &[None, Some(k.into())])?;
                want(0, Kind::Float, &[Some(inputs[1].shape.rows()), Some(n.into())])?;
                bias_fits(*bias, n)?;
                float(inputs[0].shape.clone())
            }
            Op::GatedLinear { gate, up, norm, .. } => {
                count(1)?;
                norm.iter().try_for_each(norm_fits)?;
                let (n, k) = matrix(*gate);
                if matrix(*up) != (n, k) {
                    return Err(format!("gate is [{n}, {k}], up is {:?}", graph.weight(*up).shape));
                }
                want(0, Kind::Float, &[None, Some(k.into())])?;
                float(Shape::matrix(inputs[0].shape.rows(), n))
            }
            Op::LayerNorm { weight, .. } | Op::RmsNorm { weight, .. } => {
                count(1)?;
                want(0, Kind::Float, &[None, Some(graph.weight(*weight).shape[0].into())])?;
                float(inputs[0].shape.clone())
            }
            Op::Activation(_) => {
                count(1)?;
                want(0, Kind::Float, &[None, None])?;
                float(inputs[0].shape.clone())
            }
            Op::Add | Op::Mul => {
                count(2)?;
                want(1, Kind::Float, &inputs[0].shape.0.iter().map(|d| Some(*d)).collect::<Vec<_>>())?;
                float(inputs[0].shape.clone())
            }
            Op::Embedding { weight } => {
                count(1)?;
                want(0, Kind::Int, &[None])?;
                float(Shape::matrix(inputs[0].shape.rows(), matrix(*weight).1))
            }
            Op::EmbedMerge { weight, slab } => {
                count(2)?;
                want(0, Kind::Int, &[None])?;
                want(1, Kind::Int, &[Some(inputs[0].shape.rows())])?;
                let width = matrix(*weight).1;
                if graph.state(*slab).shape.cols() != Some(width) {
                    return Err(format!("slab {} beside embeddings of width {width}", graph.state(*slab).shape));
                }
                float(Shape::matrix(inputs[0].shape.rows(), width))
            }
            Op::GatherRows => {
                count(2)?;
                want(0, Kind::Float, &[None, None])?;
                want(1, Kind::Int, &[None])?;
                float(Shape::new([inputs[1].shape.rows(), inputs[0].shape.0[1]]))
            }
            Op::BroadcastRows { weight } => {
                count(0)?;
                let (r, d) = matrix(*weight);
                float(Shape::matrix(Dim::times(Sym::Images, r), d))
            }
            Op::ConcatSegments => {
                count(4)?;
                want(0, Kind::Float, &[None, None])?;
                want(2, Kind::Float, &[None, Some(inputs[0].shape.0[1])])?;
                want(1, Kind::Int, &[None])?;
                want(3, Kind::Int, &[None])?;
                float(Shape::new([Sym::ContextRows.into(), inputs[0].shape.0[1]]))
            }
            Op::Rope { num_heads, head_dim, rotary } => {
                count(2)?;
                want(0, Kind::Float, &[None, Some((num_heads * head_dim).into())])?;
                rotary_fits(rotary, *head_dim)?;
                float(inputs[0].shape.clone())
            }
            Op::Attention(h) => {
                count(5)?;
                let kv = Some((h.num_kv_heads * h.head_dim).into());
                want(0, Kind::Float, &[None, Some((h.num_heads * h.head_dim).into())])?;
                want(1, Kind::Float, &[None, kv])?;
                want(2, Kind::Float, &[Some(inputs[1].shape.rows()), kv])?;
                want(3, Kind::Int, &[None])?;
                want(4, Kind::Int, &[None])?;
                if h.num_kv_heads == 0 || h.num_heads % h.num_kv_heads != 0 {
                    return Err(format!("{} heads over {} KV heads", h.num_heads, h.num_kv_heads));
                }
                float(inputs[0].shape.clone())
            }
            Op::KvWrite { num_kv_heads, head_dim, .. } => {
                count(3)?;
                let kv = Some((num_kv_heads * head_dim).into());
                want(0, Kind::Float, &[None, kv])?;
                want(1, Kind::Float, &[Some(inputs[0].shape.rows()), kv])?;
                want(2, Kind::Int, &[Some(inputs[0].shape.rows())])?;
                none()
            }
            Op::PagedAttention { heads: h, .. } => {
                count(4)?;
                want(0, Kind::Float, &[None, Some((h.num_heads * h.head_dim).into())])?;
                want(1, Kind::Int, &[None, None])?;
                want(2, Kind::Int, &[None])?;
                want(3, Kind::Int, &[None])?;
                if h.num_kv_heads == 0 || h.num_heads % h.num_kv_heads != 0 {
                    return Err(format!("{} heads over {} KV heads", h.num_heads, h.num_kv_heads));
                }
                float(inputs[0].shape.clone())
            }
            Op::ScatterRows { slab } => {
                count(2)?;
                let width = graph.state(*slab).shape.0.last().copied();
                want(0, Kind::Float, &[None, width])?;
                want(1, Kind::Int, &[Some(inputs[0].shape.rows())])?;
                none()
            }
        }
    }

    /// The primitives that a fused operation stands for, in order; the last one is the result.
    /// `None` for a primitive.
    pub fn expand(&self) -> Option<Vec<(Op, Vec<Arg>)>> {
        // Steps so far, and the first input or its norm.
        let start = |norm: &Option<Norm>| match norm {
            Some(Norm { weight, eps }) => {
                (vec![(Op::RmsNorm { weight: *weight, eps: *eps }, vec![Arg::Input(0)])], Arg::Step(0))
            }
            None => (Vec::new(), Arg::Input(0)),
        };
        match self {
            Op::GatedLinear { gate, up, activation, norm } => {
                let (mut steps, x) = start(norm);
                let at = |i: usize| Arg::Step(norm.iter().len() + i);
                steps.extend([
                    (Op::Linear { weight: *gate, bias: None }, vec![x]),
                    (Op::Activation(*activation), vec![at(0)]),
                    (Op::Linear { weight: *up, bias: None }, vec![x]),
                    (Op::Mul, vec![at(1), at(2)]),
                ]);
                Some(steps)
            }
            Op::NormLinear { norm, weight, bias, gathered } => {
                let mut steps = Vec::new();
                let mut x = Arg::Input(0);
                if *gathered {
                    steps.push((Op::GatherRows, vec![x, Arg::Input(1)]));
                    x = Arg::Step(0);
                }
                steps.push((Op::RmsNorm { weight: norm.weight, eps: norm.eps }, vec![x]));
                steps.push((Op::Linear { weight: *weight, bias: *bias }, vec![Arg::Step(steps.len() - 1)]));
                Some(steps)
            }
            Op::LinearAdd { weight, bias } => Some(vec![
                (Op::Linear { weight: *weight, bias: *bias }, vec![Arg::Input(1)]),
                (Op::Add, vec![Arg::Input(0), Arg::Step(0)]),
            ]),
            Op::LinearActivation { weight, bias, activation } => Some(vec![
                (Op::Linear { weight: *weight, bias: *bias }, vec![Arg::Input(0)]),
                (Op::Activation(*activation), vec![Arg::Step(0)]),
            ]),
            Op::SelfAttention { qkv, heads } => {
                let (x, cu) = (Arg::Input(0), Arg::Input(1));
                let args = vec![Arg::Step(0), Arg::Step(1), Arg::Step(2), cu, cu];
                Some(vec![qkv.linear(0, x), qkv.linear(1, x), qkv.linear(2, x), (Op::Attention(*heads), args)])
            }
            Op::QkvRope { norm, qkv, heads, rotary, cache } => {
                let (mut steps, x) = start(norm);
                let at = |i: usize| Arg::Step(norm.iter().len() + i);
                let Heads { num_heads, num_kv_heads, head_dim, .. } = *heads;
                let rope = |num_heads| Op::Rope { num_heads, head_dim, rotary: rotary.clone() };
                let write = Op::KvWrite { cache: *cache, num_kv_heads, head_dim };
                steps.extend([
                    qkv.linear(1, x),
                    qkv.linear(2, x),
                    (rope(num_kv_heads), vec![at(0), Arg::Input(1)]),
                    (write, vec![at(2), at(1), Arg::Input(2)]),
                    qkv.linear(0, x),
                    (rope(num_heads), vec![at(4), Arg::Input(1)]),
                ]);
                Some(steps)
            }
            _ => None,
        }
    }

    /// Least work under `sizes`. Attention counts a full square per segment set, without the segments' cut.
    pub fn cost(&self, graph: &Graph, inputs: &[&Type], output: &Type, sizes: &Sizes) -> Cost {
        let elements = |t: &Type| t.shape.elements(sizes) as u64;
        let weight_elements =
            self.weights().iter().map(|w| graph.weight(*w).shape.iter().product::<usize>() as u64).sum();
        let activation_elements = inputs.iter().map(|t| elements(t)).sum::<u64>() + elements(output);
        let flops = match self {
            Op::SelfAttention { heads: h, .. } => {
                let t = inputs[0].shape.rows().eval(sizes);
                2 * weight_elements * t as u64 + 4 * (t * t * h.num_heads * h.head_dim) as u64
            }
            Op::Linear { .. }
            | Op::LinearAdd { .. }
            | Op::LinearActivation { .. }
            | Op::GatedLinear { .. }
            | Op::QkvRope { .. } => 2 * weight_elements * inputs[0].shape.rows().eval(sizes) as u64,
            Op::NormLinear { .. } | Op::PatchEmbed { .. } => {
                2 * weight_elements * output.shape.rows().eval(sizes) as u64
            }
            Op::Attention(h) => {
                let (q, k) = (inputs[0].shape.rows().eval(sizes), inputs[1].shape.rows().eval(sizes));
                4 * (q * k * h.num_heads * h.head_dim) as u64
            }
            Op::LayerNorm { .. } | Op::RmsNorm { .. } => 4 * elements(output),
            Op::Add | Op::Mul | Op::Activation(_) | Op::Rope { .. } => elements(output),
            _ => 0,
        };
        Cost { flops, weight_elements, activation_elements }
    }
}
