"""Writes tests/data/rotary.json: heads turned by transformers' rotary embeddings of several position components.

Usage: python tools/golden/rotary.py
`sections` is the decoder's (M-RoPE: time, height, width), `grid` the vision tower's (height, width); both of Qwen2-VL,
whose classes compute frequencies, angles and rotation in float32.
"""

import json
import pathlib

import torch
from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig, Qwen2VLVisionConfig

OUT = pathlib.Path(__file__).parents[2] / "tests/data/rotary.json"
HEADS = 2


def sections(theta, head_dim, split, positions):
    rope = {"rope_type": "default", "rope_theta": theta, "mrope_section": split}
    config = Qwen2VLTextConfig(
        hidden_size=HEADS * head_dim, num_attention_heads=HEADS, num_key_value_heads=HEADS, rope_parameters=rope
    )
    x = torch.randn(1, HEADS, len(positions[0]), head_dim)
    cos, sin = qwen.Qwen2VLRotaryEmbedding(config)(x, torch.tensor(positions)[:, None, :])
    y, _ = qwen.apply_rotary_pos_emb(x, x, cos, sin)
    case = {"sections": split, "rope_theta": theta, "head_dim": head_dim, "positions": positions}
    return {**case, "x": rows(x[0].transpose(0, 1)), "y": rows(y[0].transpose(0, 1))}


def grid(head_dim, positions):
    config = Qwen2VLVisionConfig(embed_dim=HEADS * head_dim, num_heads=HEADS)
    x = torch.randn(len(positions[0]), HEADS, head_dim)
    angles = qwen.Qwen2VLVisionRotaryEmbedding(config)(x, torch.tensor(positions).T)
    y, _ = qwen.apply_rotary_pos_emb_vision(x, x, *angles)
    case = {"sections": None, "rope_theta": config.rope_parameters["rope_theta"], "head_dim": head_dim}
    return {**case, "positions": positions, "x": rows(x), "y": rows(y)}


def rows(x):
    """The shortest decimals that read back as the same f32."""
    return [float(str(v)) for v in x.contiguous().flatten().numpy()]


if __name__ == "__main__":
    torch.manual_seed(11)
    text = [[0, 1, 2, 2, 2, 2, 5, 40000], [0, 1, 2, 2, 3, 3, 5, 40000], [0, 1, 2, 3, 2, 3, 5, 40000]]
    cases = [
        sections(1e6, 16, [2, 3, 3], text),
        sections(1e4, 14, [1, 2, 4], [row[2:6] for row in text]),
        grid(12, [[0, 0, 1, 1, 30], [0, 1, 0, 1, 7]]),
        grid(20, [[3, 2, 1], [0, 100, 1]]),
    ]
    OUT.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
