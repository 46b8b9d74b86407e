"""Makes the tiny Idefics2 checkpoints under tests/data/, laid out as the real ones on the hub are.

In: a seed. Out: idefics2-tiny (f32, config.json as transformers 4 wrote it, chat_template.json), idefics2-tiny-bf16 (the same
weights rounded, config.json as transformers 5 writes it, chat_template.jinja) and idefics2-tiny-nosplit (splitting off, template in
tokenizer_config.json, everything else linked to idefics2-tiny). Owns: sizes, weights, file layout.
Not here: expected outputs (idefics2_cases.py), the vocabulary (tiny_tokenizer.py),
the form of the small files (idefics2_files.py).

Run: python tools/golden/idefics2_tiny.py
"""

import argparse
import pathlib
import shutil

import torch
from idefics2_files import ADDED, write_json, write_small_files
from safetensors.torch import save_file
from tiny_tokenizer import tokenizer_json
from transformers import Idefics2Config, Idefics2ForConditionalGeneration

ROOT = pathlib.Path(__file__).resolve().parents[2]
SEED = 40
PIECES = 1150
IMAGE, END_OF_UTTERANCE = PIECES + 1, PIECES + 2
LATENTS = 7
GAIN = {"patch": 0.3, "image_qk": 1.0, "image": 1.0, "text_qk": 1.2, "text": 1.2, "head": 4.0}

def config(form: int) -> dict:
    """config.json in the spelling of transformers 4 or 5. Sizes are odd on purpose: no head size is a multiple of 8, head_dim
    is not hidden_size / num_attention_heads, both attentions are grouped, the window is shorter than the long prompts."""
    text = {
        "model_type": "mistral",
        "vocab_size": PIECES + len(ADDED),
        "hidden_size": 48,
        "intermediate_size": 100,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 14,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-3,
        "sliding_window": 96,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 36,
        "intermediate_size": 68,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 112,
        "patch_size": 14,
        "layer_norm_eps": 1e-4,
    }
    perceiver = {
        "hidden_act": "silu",
        "resampler_n_latents": LATENTS,
        "resampler_depth": 2,
        "resampler_n_heads": 4,
        "resampler_head_dim": 20,
        "num_key_value_heads": 2,
    }
    if form == 4:
        # The hub's files name the parts' type "idefics2" and leave the perceiver's width and epsilon to the text model.
        text |= {"rope_theta": 5000.0}
        vision |= {"model_type": "idefics2"}
        perceiver |= {"model_type": "idefics2"}
        dtype = {"torch_dtype": "float32", "transformers_version": "4.40.0"}
    else:
        text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "hidden_act": "silu", "dtype": "bfloat16"}
        vision |= {"model_type": "idefics2_vision", "hidden_act": "gelu_pytorch_tanh", "num_channels": 3, "dtype": "bfloat16"}
        perceiver |= {"model_type": "idefics2_perceiver", "hidden_size": 48, "rms_norm_eps": 1e-3, "dtype": "bfloat16"}
        dtype = {"dtype": "bfloat16", "transformers_version": "5.23.0"}
    return {
        "architectures": ["Idefics2ForConditionalGeneration"],
        "image_token_id": IMAGE,
        "model_type": "idefics2",
        "perceiver_config": perceiver,
        "text_config": text,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vision_config": vision,
    } | dtype


def weights(seed: int) -> dict[str, torch.Tensor]:
    """Re-initialised weights. Scaled so that every part moves the answer: attention is peaked, norms and biases are far from
    1 and 0, latents and positions differ from one another, the end tokens are likely enough to be met."""
    model = Idefics2ForConditionalGeneration(Idefics2Config(**config(5)))
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, p in sorted(model.state_dict().items()):
        noise = torch.randn(p.shape, generator=generator)
        part = name.rsplit(".", 2)[-2]
        if "norm" in part:
            value = 1 + 0.25 * noise if name.endswith("weight") else 0.2 * noise
        elif name.endswith("bias"):
            value = 0.2 * noise
        elif part == "embed_tokens" or name.endswith("latents"):
            value = noise
        elif part == "position_embedding":
            value = 0.7 * noise
        elif part == "patch_embedding":
            # Mostly low frequencies, as trained filters: decoder noise of single pixels then weighs less than the picture.
            coarse = torch.randn((p.shape[0], 3, 2, 2), generator=generator).repeat_interleave(7, 2).repeat_interleave(7, 3)
            value = (1.5 * coarse + 0.5 * noise) * GAIN["patch"] / p[0].numel() ** 0.5
        elif part in ("q_proj", "k_proj"):
            value = noise * GAIN["text_qk" if "text_model" in name else "image_qk"] / p.shape[1] ** 0.5
        elif part == "lm_head":
            value = noise * GAIN["head"] / p.shape[1] ** 0.5
            value[[2, END_OF_UTTERANCE]] *= 1.5
        else:
            value = noise * GAIN["text" if "text_model" in name else "image"] / p.shape[1] ** 0.5
        out[name] = value.contiguous()
    return out


def write_checkpoint(out: pathlib.Path, tensors: dict[str, torch.Tensor], form: int, template: str, splitting: bool) -> None:
    """One checkpoint folder. `template` names the file that holds the chat template."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    write_json(out / "config.json", config(form))
    write_small_files(out, tokenizer_json(PIECES), LATENTS, (112, 42), splitting, template)
    if tensors:
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def main(out: pathlib.Path, seed: int) -> None:
    tensors = weights(seed)
    write_checkpoint(out / "idefics2-tiny", tensors, 4, "chat_template.json", True)
    half = {k: v.to(torch.bfloat16) for k, v in tensors.items()}
    write_checkpoint(out / "idefics2-tiny-bf16", half, 5, "chat_template.jinja", True)
    nosplit = out / "idefics2-tiny-nosplit"
    write_checkpoint(nosplit, {}, 4, "tokenizer_config.json", False)
    for name in ("config.json", "generation_config.json", "processor_config.json", "special_tokens_map.json", "tokenizer.json"):
        (nosplit / name).unlink()
        (nosplit / name).symlink_to(f"../idefics2-tiny/{name}")
    (nosplit / "model.safetensors").symlink_to("../idefics2-tiny/model.safetensors")


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=pathlib.Path, default=ROOT / "tests/data")
    ap.add_argument("--seed", type=int, default=SEED)
    args = ap.parse_args()
    main(args.out, args.seed)
