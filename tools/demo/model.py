"""The model for training: the Idefics2 architecture in plain torch, with transformers' parameter names.

In:  pictures of one size, packed rows.   Out: logits at the target positions.
Owns: shapes of the built-in model, initialisation. Checked against transformers by export.py.
Not here: anything the trained checkpoint needs at inference; that is transformers' or the engine's business.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

VISION = dict(hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6, image_size=64, patch_size=8,
              layer_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh")
PERCEIVER = dict(resampler_n_latents=36, resampler_depth=1, resampler_n_heads=6, resampler_head_dim=32, num_key_value_heads=3,
                 hidden_act="silu", hidden_size=160, rms_norm_eps=1e-5)
TEXT = dict(hidden_size=160, intermediate_size=448, num_hidden_layers=6, num_attention_heads=6, num_key_value_heads=3, head_dim=32,
            max_position_embeddings=2048, rms_norm_eps=1e-5, hidden_act="silu", rope_theta=10000.0)


LATENT_SHARPNESS = 0.5  # a latent begins by looking at about four patches


def _heads(x, n):
    return x.view(x.shape[0], x.shape[1], n, -1).transpose(1, 2)


def _attend(q, k, v, mask=None):
    """Attention written out: on this size torch's fused CPU attention spends half the step in its backward pass.

    q: [n, heads, rows, d], k and v: [n, kv_heads, columns, d]; the heads of one kv head are stacked as rows of one product."""
    n, heads, rows, d = q.shape
    kv = k.shape[1]
    scores = torch.matmul((q * d ** -0.5).reshape(n, kv, heads // kv * rows, d), k.transpose(-1, -2))
    if mask is not None:
        scores = (scores.view(n, heads, rows, -1) + mask).view(scores.shape)
    y = torch.matmul(scores.softmax(-1), v)
    return y.view(n, heads, rows, d).transpose(1, 2).flatten(2)


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)


class LayerNorm(nn.LayerNorm):
    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def linear(i, o, bias=False):
    return nn.Linear(i, o, bias=bias)


class Attention(nn.Module):
    """Grouped-query attention; `out` names the output projection (vision: out_proj, elsewhere: o_proj)."""

    def __init__(self, size, heads, kv_heads, head_dim, out="o_proj", bias=False):
        super().__init__()
        self.q_proj, self.k_proj = linear(size, heads * head_dim, bias), linear(size, kv_heads * head_dim, bias)
        self.v_proj = linear(size, kv_heads * head_dim, bias)
        setattr(self, out, linear(heads * head_dim, size, bias))
        self.out, self.heads, self.kv_heads = out, heads, kv_heads

    def forward(self, x, context=None, mask=None, rope=None, keep=None):
        """keep: the rows [n, tokens] whose output is wanted (a flat list of rows comes back), or None for all."""
        context = x if context is None else context
        q, k, v = _heads(self.q_proj(x), self.heads), _heads(self.k_proj(context), self.kv_heads), _heads(self.v_proj(context), self.kv_heads)
        if rope is not None:
            q, k = rope(q), rope(k)
        y = _attend(q, k, v, mask)
        return getattr(self, self.out)(y if keep is None else y[keep])


class Mlp(nn.Module):
    def __init__(self, size, inner, out):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = linear(size, inner), linear(size, inner), linear(inner, out)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class VisionMlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc1, self.fc2 = linear(c["hidden_size"], c["intermediate_size"], True), linear(c["intermediate_size"], c["hidden_size"], True)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class VisionLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        size, heads = c["hidden_size"], c["num_attention_heads"]
        self.self_attn = Attention(size, heads, heads, size // heads, "out_proj", True)
        self.layer_norm1, self.layer_norm2 = LayerNorm(size, c["layer_norm_eps"]), LayerNorm(size, c["layer_norm_eps"])
        self.mlp = VisionMlp(c)

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Vision(nn.Module):
    def __init__(self, c):
        super().__init__()
        size, side = c["hidden_size"], c["image_size"] // c["patch_size"]
        self.embeddings = nn.Module()
        self.embeddings.patch_embedding = nn.Conv2d(3, size, c["patch_size"], c["patch_size"])
        self.embeddings.position_embedding = nn.Embedding(side * side, size)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(VisionLayer(c) for _ in range(c["num_hidden_layers"]))
        self.post_layernorm = LayerNorm(size, c["layer_norm_eps"])
        self.patch = c["patch_size"]

    def forward(self, pictures):
        n, p = pictures.shape[0], self.patch
        patches = pictures.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 1, 4, 5).reshape(n, -1, 3 * p * p)
        conv = self.embeddings.patch_embedding
        x = F.linear(patches, conv.weight.flatten(1), conv.bias) + self.embeddings.position_embedding.weight.to(patches.dtype)
        for layer in self.encoder.layers:
            x = layer(x)
        return self.post_layernorm(x)


class PerceiverLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        size = c["hidden_size"]
        self.input_latents_norm, self.input_context_norm = RMSNorm(size, c["rms_norm_eps"]), RMSNorm(size, c["rms_norm_eps"])
        self.self_attn = Attention(size, c["resampler_n_heads"], c["num_key_value_heads"], c["resampler_head_dim"])
        self.post_attention_layernorm = RMSNorm(size, c["rms_norm_eps"])
        self.mlp = Mlp(size, 4 * size, size)

    def forward(self, latents, context):
        normed = self.input_latents_norm(latents)
        latents = latents + self.self_attn(normed, torch.cat([self.input_context_norm(context), normed], 1))
        return latents + self.mlp(self.post_attention_layernorm(latents))


class Connector(nn.Module):
    def __init__(self, vision, perceiver, text):
        super().__init__()
        self.modality_projection = Mlp(vision["hidden_size"], text["intermediate_size"], text["hidden_size"])
        self.perceiver_resampler = nn.Module()
        self.perceiver_resampler.latents = nn.Parameter(torch.randn(perceiver["resampler_n_latents"], perceiver["hidden_size"]))
        self.perceiver_resampler.layers = nn.ModuleList(PerceiverLayer(perceiver) for _ in range(perceiver["resampler_depth"]))
        self.perceiver_resampler.norm = RMSNorm(perceiver["hidden_size"], perceiver["rms_norm_eps"])

    def forward(self, context):
        """context: the projected patches [n, patches, hidden]."""
        latents = self.perceiver_resampler.latents.to(context.dtype).expand(context.shape[0], -1, -1)
        for layer in self.perceiver_resampler.layers:
            latents = layer(latents, context)
        return self.perceiver_resampler.norm(latents)


class TextLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        size = c["hidden_size"]
        self.self_attn = Attention(size, c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"])
        self.mlp = Mlp(size, c["intermediate_size"], size)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(size, c["rms_norm_eps"]), RMSNorm(size, c["rms_norm_eps"])

    def forward(self, x, mask, rope, keep=None):
        y = self.self_attn(self.input_layernorm(x), mask=mask, rope=rope, keep=keep)
        x = (x if keep is None else x[keep]) + y
        return x + self.mlp(self.post_attention_layernorm(x))


class Text(nn.Module):
    def __init__(self, c, vocab_size):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, c["hidden_size"])
        self.layers = nn.ModuleList(TextLayer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        dim = c["head_dim"]
        self.register_buffer("inv_freq", c["rope_theta"] ** (-torch.arange(0, dim, 2) / dim), persistent=False)


WAVES = 8.0 ** -(torch.arange(8) / 8) * 1.6  # radians a patch


def sinusoids(rows, columns):
    """Position vectors [n, 32] of points in units of patches: sines and cosines of row and column."""
    angles = torch.cat([rows[:, None] * WAVES, columns[:, None] * WAVES], 1)
    return torch.cat([angles.sin(), angles.cos()], 1)


def grid_points(n, scale=1.0):
    """Centres of an n x n grid, row by row: (rows, columns), each [n * n]."""
    axis = (torch.arange(n) + 0.5) * scale
    return axis.repeat_interleave(n), axis.repeat(n)


class DemoModel(nn.Module):
    """`patches`, `cells`, `nouns` and `marks` size the auxiliary heads, which say what covers each patch, what is in each cell of the
    grid (a latent each), which cell a noun of the text means, and which cells hold anything that it fits; they are for training only."""

    def __init__(self, vocab_size, image_token, patches=(), cells=(), nouns=(), marks=0):
        super().__init__()
        self.model = nn.Module()
        self.model.vision_model = Vision(VISION)
        self.model.connector = Connector(VISION, PERCEIVER, TEXT)
        self.model.text_model = Text(TEXT, vocab_size)
        self.lm_head = linear(TEXT["hidden_size"], vocab_size)
        if patches:
            self.aux = nn.ModuleDict({"patches": linear(TEXT["hidden_size"], sum(patches), True),
                                      "cells": linear(TEXT["hidden_size"], sum(cells), True),
                                      "nouns": linear(TEXT["hidden_size"], sum(nouns), True),
                                      "marks": linear(TEXT["hidden_size"], marks, True)})
        self.image_token = image_token
        self.initialise()

    @torch.no_grad()
    def initialise(self):
        """Every matrix normal with deviation 1/sqrt(fan in), the residual outputs smaller by depth; embeddings 0.5 (visible
        against the position and picture vectors); biases zero. transformers' flat 0.02 stays at the language prior for long.

        Two choices make looking easier to learn: keys of the vision layers begin correlated with their queries, so patches look at
        what is like them and near them; and every latent of the resampler begins by looking at its own cell of the picture (see
        `tie_latents`), so routing need not be discovered."""
        for name, p in self.named_parameters():
            if "norm" in name:
                continue
            if name.endswith("bias"):
                p.zero_()
            elif "embed_tokens" in name or "position_embedding" in name:
                p.normal_(0, 0.5)
            elif "latents" in name:
                p.normal_(0, 1)
            else:
                p.normal_(0, p[0].numel() ** -0.5)
                if name.endswith(("out_proj.weight", "o_proj.weight", "fc2.weight", "down_proj.weight")) and "modality" not in name:
                    p.mul_(0.4)
        self.lm_head.weight.mul_(0.5)
        if hasattr(self, "aux"):  # most cells hold nothing
            self.aux["marks"].weight.zero_()
            self.aux["marks"].bias.fill_(-3)
        vision = self.model.vision_model
        for layer in vision.encoder.layers:
            layer.self_attn.k_proj.weight.mul_(0.8).add_(layer.self_attn.q_proj.weight, alpha=0.6)
        self.tie_latents()

    @torch.no_grad()
    def tie_latents(self):
        """Positions live in channels of their own from the embedding to the keys of the resampler: the last 32 of the vision model, which
        nothing else writes at first; 32 units of the gated projection whose gate is held open by a constant channel; the first 32 of
        the context. A latent holds the position of its cell in the next 32, which its queries read."""
        p, size = 32, VISION["hidden_size"]
        side, grid = VISION["image_size"] // VISION["patch_size"], math.isqrt(PERCEIVER["resampler_n_latents"])
        vision, projection = self.model.vision_model, self.model.connector.modality_projection
        vision.embeddings.position_embedding.weight.zero_()[:, -p:] = sinusoids(*grid_points(side))
        for weight in [vision.embeddings.patch_embedding.weight, *(w for layer in vision.encoder.layers
                                                                   for w in (layer.self_attn.out_proj.weight, layer.mlp.fc2.weight))]:
            weight[-p:] = 0
        vision.post_layernorm.weight[0], vision.post_layernorm.bias[0] = 0, 3
        projection.gate_proj.weight[:p] = 0
        projection.gate_proj.weight[:p, 0] = 1
        projection.up_proj.weight[:p] = 0
        projection.up_proj.weight[:p, -p:] = torch.eye(p)
        projection.down_proj.weight[:p] = 0
        projection.down_proj.weight[:, :p] = 0
        projection.down_proj.weight[:p, :p] = torch.eye(p) / 3
        resampler = self.model.connector.perceiver_resampler
        resampler.latents.mul_(0.3)[:, :p] = 0
        resampler.latents[:, p:2 * p] = sinusoids(*grid_points(grid, side / grid))
        for layer in resampler.layers:
            attention = layer.self_attn
            for weight, start, scale in ((attention.k_proj.weight, 0, 1.0), (attention.q_proj.weight, p, LATENT_SHARPNESS)):
                weight.mul_(0.2)
                weight[:, :2 * p] = 0
                weight.view(-1, p, weight.shape[1])[:, :, start:start + p] = torch.eye(p) * scale
            attention.o_proj.weight.mul_(2.5)

    @torch.no_grad()
    def start_from(self, weights):
        """Takes the weights of a model that may have fewer text layers: those are spread over this one's, first and last kept, and the
        layers between them begin by adding nothing. weights: {name: tensor}; names that are absent keep their initial values."""
        prefix, layers = "model.text_model.layers.", self.model.text_model.layers
        had = 1 + max(int(name[len(prefix):].split(".")[0]) for name in weights if name.startswith(prefix))
        place = [round(k * (len(layers) - 1) / (had - 1)) for k in range(had)]
        own = self.state_dict()
        for name, value in weights.items():
            if name.startswith(prefix):
                number, rest = name[len(prefix):].split(".", 1)
                name = f"{prefix}{place[int(number)]}.{rest}"
            own[name].copy_(value)
        for k in set(range(len(layers))) - set(place):
            layers[k].self_attn.o_proj.weight.zero_()
            layers[k].mlp.down_proj.weight.zero_()

    def look(self, pictures):
        """The projected patches of pictures [n, 3, 64, 64]: [n, 64, hidden]."""
        return self.model.connector.modality_projection(self.model.vision_model(pictures))

    def forward(self, pictures, ids, positions, groups, targets):
        """(logits [targets, vocab] in row-major order of `targets`, which mark tokens to be predicted by the token before; hidden states
        [n, row, hidden] half way up).

        pictures: [n, 3, 64, 64] in -1..1, or the latents of the connector; ids, positions, groups, targets: [n, row]."""
        text = self.model.text_model
        picture = pictures if pictures.ndim == 3 else self.model.connector(self.look(pictures))
        x = text.embed_tokens(ids).to(picture.dtype)
        first = int((ids[0] == self.image_token).nonzero()[0, 0])  # the prefix is the same in every row
        x = torch.cat([x[:, :first], picture, x[:, first + picture.shape[1]:]], 1)
        length = ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        mask = causal & ((groups[:, :, None] == groups[:, None, :]) | (groups[:, None, :] == 0))
        mask = torch.zeros(mask.shape, dtype=x.dtype).masked_fill_(~mask, -1e4)[:, None]
        angles = positions[..., None].float() * text.inv_freq.float()
        angles = torch.cat([angles, angles], -1)[:, None]
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        half = cos.shape[-1] // 2

        def rope(t):
            return t * cos + torch.cat([-t[..., half:], t[..., :half]], -1) * sin

        for layer in text.layers[:len(text.layers) // 2]:
            x = layer(x, mask, rope)
        half_way = x
        for layer in text.layers[len(text.layers) // 2:-1]:
            x = layer(x, mask, rope)
        wanted = F.pad(targets[:, 1:], (0, 1))  # nothing behind the last layer's keys is needed elsewhere
        return self.lm_head(text.norm(text.layers[-1](x, mask, rope, wanted))), half_way
