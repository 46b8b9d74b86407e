//! Layers that several families share, by the names that Hugging Face gives their parts.
//!
//! In: a builder at the layer's path, sizes. Out: nodes. Not here: what only one family does.

use crate::graph::builder::DecoderInputs;
use crate::graph::{Activation, Builder, Heads, NodeId, Rotary};

/// Sizes of a pre-norm transformer encoder layer with biases (CLIP, SigLIP).
#[derive(Debug, Clone)]
pub struct VisionLayer {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_heads: usize,
    pub activation: Activation,
    pub eps: f32,
}

impl VisionLayer {
    /// `x + attention(norm(x))`, then `x + mlp(norm(x))`; bidirectional within the segments of `cu`.
    pub fn build(&self, b: &Builder, x: NodeId, cu: NodeId) -> NodeId {
        let (d, head_dim) = (self.hidden_size, self.hidden_size / self.num_heads);
        let heads = Heads {
            num_heads: self.num_heads,
            num_kv_heads: self.num_heads,
            head_dim,
            scale: (head_dim as f64).powf(-0.5) as f32,
        };
        let h = b.layer_norm("layer_norm1", x, self.eps);
        let a = b.scope("self_attn");
        let qkv = ["q_proj", "k_proj", "v_proj"].map(|name| a.linear_bias(name, h, d));
        let h = a.attention("attention", qkv, [cu, cu], heads);
        let h = a.linear_bias("out_proj", h, d);
        let x = b.add("attention_residual", x, h);
        let h = b.layer_norm("layer_norm2", x, self.eps);
        let h = b.linear_bias("mlp.fc1", h, self.intermediate_size);
        let h = b.activation("mlp.activation_fn", h, self.activation);
        let h = b.linear_bias("mlp.fc2", h, d);
        b.add("", x, h)
    }
}

/// `down(act(gate(x)) * up(x))`, without biases, at the path of the MLP.
pub fn gated_mlp(b: &Builder, x: NodeId, intermediate: usize, out: usize, activation: Activation) -> NodeId {
    let gate = b.linear("gate_proj", x, intermediate);
    let gate = b.activation("act_fn", gate, activation);
    let up = b.linear("up_proj", x, intermediate);
    let h = b.mul("product", gate, up);
    b.linear("down_proj", h, out)
}

/// Sizes of a Llama-like decoder layer (Llama, Mistral): RMSNorm, rotary GQA without biases, gated MLP.
#[derive(Debug, Clone)]
pub struct LlamaLayer {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub heads: Heads,
    pub activation: Activation,
    pub eps: f32,
    pub rotary: Rotary,
    pub sliding_window: Option<usize>,
}

impl LlamaLayer {
    /// Layer `index` at its path, with its KV pages.
    pub fn build(&self, b: &Builder, x: NodeId, index: usize, step: &DecoderInputs) -> NodeId {
        let Heads { num_heads, num_kv_heads, head_dim, .. } = self.heads;
        let h = b.rms_norm("input_layernorm", x, self.eps);
        let a = b.scope("self_attn");
        let q = a.linear("q_proj", h, num_heads * head_dim);
        let k = a.linear("k_proj", h, num_kv_heads * head_dim);
        let v = a.linear("v_proj", h, num_kv_heads * head_dim);
        let q = a.rope("q_rope", q, step.positions, head_dim, &self.rotary);
        let k = a.rope("k_rope", k, step.positions, head_dim, &self.rotary);
        let h = a.cached_attention("attention", [q, k, v], index, step, self.heads, self.sliding_window);
        let h = a.linear("o_proj", h, self.hidden_size);
        let x = b.add("attention_residual", x, h);
        let h = b.rms_norm("post_attention_layernorm", x, self.eps);
        let h = gated_mlp(&b.scope("mlp"), h, self.intermediate_size, self.hidden_size, self.activation);
        b.add("", x, h)
    }
}
