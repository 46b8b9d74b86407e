"""Makes tests/data/golden/idefics2/: what transformers answers on the tiny Idefics2 checkpoints.

In: tests/data/idefics2-tiny*, tests/data/photos, the case list of idefics2_case_list.py. Out: cases.json and cases-bf16.json (prompts,
ids, pixel statistics, log-probabilities, tokens), one safetensors a case (connector rows; vision rows and pixels where small) and
activations.safetensors (outputs by module path for one prefill). Owns: how the reference is run. Not here: the checkpoints.

Run: python tools/golden/idefics2_cases.py    (after photos.py and idefics2_tiny.py)
"""

import argparse
import hashlib
import json
import pathlib
import re

import numpy as np
import torch
from idefics2_case_list import ACTIVATIONS_CASE, CASES
from idefics2_files import CHAT_TEMPLATE
from idefics2_tiny import IMAGE, ROOT
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import Idefics2ForConditionalGeneration, Idefics2Processor, PreTrainedTokenizerFast
from transformers.image_utils import load_image
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from transformers.utils.chat_template_utils import render_jinja_template

DATA = ROOT / "tests/data"
MAX_TOKENS = 32
# Stands for "<" in user text while the prompt is rendered and expanded, so that no marker is seen in it.
SENTINEL = "\ue000"
SPECIAL = re.compile(r"<fake_token_around_image>|<image>|<end_of_utterance>|</?s>|<unk>")


class FileTokenizer(PreTrainedTokenizerFast):
    """tokenizer.json as it is written (LlamaTokenizer of transformers 5 replaces its normalizer); remembers the last text."""

    def __call__(self, text, **kwargs):
        self.last_text = text[0]
        return super().__call__(text, **kwargs)


class RecordingProcessor(Idefics2ImageProcessorPil):
    """The PIL image processor; keeps the u8 pixels [h, w, 3] of every sub-image after resizing."""

    resized: list[np.ndarray]

    def resize(self, image, *args, **kwargs):
        out = super().resize(image, *args, **kwargs)
        assert out.dtype == np.uint8
        self.resized.append(np.ascontiguousarray(np.moveaxis(out, 0, -1)))
        return out


class Reference:
    """One checkpoint folder, in f32 on the CPU."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.model = Idefics2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        self.images = RecordingProcessor.from_pretrained(folder)
        self.tokenizer = FileTokenizer(tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>", pad_token="<unk>", unk_token="<unk>")
        self.plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
        n = json.loads((folder / "processor_config.json").read_text())["image_seq_len"]
        self.processor = Idefics2Processor(self.images, self.tokenizer, image_seq_len=n, chat_template=CHAT_TEMPLATE)

    def ids_with_literal_markers(self, text: str) -> list[int]:
        """Ids of a prompt whose sentinels stand for literal "<": markers outside become special tokens; every piece between
        them, literal ones included, is encoded as plain text on its own, as the library does between special tokens."""
        ids = [1]
        spans = [m.span() for m in SPECIAL.finditer(text)]
        self.plain.encode_special_tokens = True
        at = 0
        for a, b in spans + [(len(text), len(text))]:
            if at < a:
                ids += self.plain.encode(text[at:a].replace(SENTINEL, "<"), add_special_tokens=False).ids
            if a < b:
                ids.append(self.plain.token_to_id(text[a:b]))
            at = b
        return ids

    def inputs(self, case: dict):
        """Model inputs and the rendered prompt of a case."""
        text = rendered(case)
        images = [load_image(str(DATA / f)) for f in image_files(case)]
        self.images.resized = []
        inputs = self.processor(text=[text], images=[images] if images else None, return_tensors="pt")
        if SENTINEL in text:
            ids = torch.tensor([self.ids_with_literal_markers(self.tokenizer.last_text)])
            inputs["input_ids"], inputs["attention_mask"] = ids, torch.ones_like(ids)
        else:
            assert self.ids_with_literal_markers(self.tokenizer.last_text) == inputs["input_ids"][0].tolist()
        return inputs, text.replace(SENTINEL, "<"), images


def parts(content):
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def messages(case: dict) -> list[dict]:
    """The conversation that the command line makes of a case: system first, images before the text of a --prompt."""
    if "messages" in case:
        turns = [{"role": m["role"], "content": parts(m["content"])} for m in case["messages"]]
    else:
        turns = [{"role": "user", "content": [{"type": "image"}] * len(case.get("images", [])) + parts(case["prompt"])}]
    if "system" in case:
        turns = [{"role": "system", "content": parts(case["system"])}] + turns
    return turns


def image_files(case: dict) -> list[str]:
    """Image files in prompt order: a part's own path, or the next of the case's list."""
    rest = iter(case.get("images", []))
    if "messages" not in case:
        return list(rest)
    found = [p for m in case["messages"] for p in parts(m["content"]) if p["type"] == "image"]
    return [p["path"] if "path" in p else next(rest) for p in found]


def rendered(case: dict) -> str:
    """The prompt text before placeholder expansion, user-written markers hidden behind the sentinel."""
    if case.get("raw"):
        return case["prompt"]
    turns = [
        {
            "role": m["role"],
            "content": [p | {"text": SPECIAL.sub(lambda s: SENTINEL + s[0][1:], p["text"])} if p["type"] == "text" else p for p in m["content"]],
        }
        for m in messages(case)
    ]
    return render_jinja_template([turns], chat_template=CHAT_TEMPLATE, add_generation_prompt=True)[0][0]


def sub_images(inputs, resized: list[np.ndarray], model) -> tuple[list[dict], list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Per sub-image statistics, valid normalised pixels [3, h, w], valid vision rows [patches, hidden]; all connector rows."""
    pixels, mask = inputs["pixel_values"][0], inputs["pixel_attention_mask"][0]
    features = model.model.get_image_features(inputs["pixel_values"], inputs["pixel_attention_mask"], return_dict=True)
    side = model.config.vision_config.patch_size
    across = pixels.shape[-1] // side
    stats, values, rows = [], [], []
    for i, u8 in enumerate(resized):
        h, w = u8.shape[:2]
        assert mask[i].sum() == h * w and mask[i, :h, :w].all()
        values.append(pixels[i, :, :h, :w].contiguous())
        grid = features.last_hidden_state[i].view(-1, across, features.last_hidden_state.shape[-1])
        rows.append(grid[: h // side, : w // side].reshape(-1, grid.shape[-1]).contiguous())
        stats.append(
            {
                "height": h,
                "width": w,
                "patches": [h // side, w // side],
                "u8_sum": int(u8.astype(np.int64).sum()),
                "u8_sha256": hashlib.sha256(u8.tobytes()).hexdigest(),
                "sum": round(values[-1].double().sum().item(), 4),
                "abs_sum": round(values[-1].double().abs().sum().item(), 4),
                "vision_sum": round(rows[-1].double().sum().item(), 4),
                "vision_abs_sum": round(rows[-1].double().abs().sum().item(), 4),
            }
        )
    return stats, values, rows, features.pooler_output[0]


def run(ref: Reference, case: dict) -> tuple[dict, dict[str, torch.Tensor]]:
    """One case: its record for the JSON and its tensors."""
    inputs, text, images = ref.inputs(case)
    record = {k: v for k, v in case.items() if k not in ("keep", "name")}
    record = {"name": case["name"], "model": ref.folder.name} | record | {"max_tokens": MAX_TOKENS, "rendered": text}
    tensors = {}
    if images:
        record["decoded"] = [
            {"width": i.width, "height": i.height, "u8_sha256": hashlib.sha256(i.tobytes()).hexdigest()} for i in images
        ]
        record["sub_images"], values, rows, tensors["connector"] = sub_images(inputs, ref.images.resized, ref.model)
        for i in range(len(values)):
            if "pixels" in case.get("keep", ()):
                tensors[f"pixel_values.{i}"] = values[i]
            if "vision" in case.get("keep", ()):
                tensors[f"vision.{i}"] = rows[i]
    ids = inputs["input_ids"][0].tolist()
    out = ref.model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False, output_scores=True, return_dict_in_generate=True)
    tokens = out.sequences[0, len(ids) :].tolist()
    scores = torch.log_softmax(torch.cat(out.scores).double(), -1)
    top = scores.topk(5)
    assert top.indices[:, 0].tolist() == tokens
    record |= {
        "prompt_token_ids": ids,
        "prompt_tokens": len(ids),
        "image_tokens": ids.count(IMAGE),
        "token_ids": tokens,
        "text": ref.tokenizer.decode(tokens, skip_special_tokens=True),
        "finish_reason": "stop" if tokens[-1] in ref.model.generation_config.eos_token_id else "length",
        "margins": [round(v, 6) for v in (top.values[:, 0] - top.values[:, 1]).tolist()],
        "logprobs": [
            {
                "token_id": t,
                "logprob": round(v[0], 6),
                "top": [{"token_id": j, "logprob": round(p, 6)} for j, p in zip(i, v)],
            }
            for t, v, i in zip(tokens, top.values.tolist(), top.indices.tolist())
        ],
    }
    check_against_one_pass(ref.model, inputs, tokens, scores)
    return record, tensors


def check_against_one_pass(model, inputs, tokens: list[int], scores: torch.Tensor) -> None:
    """The same log-probabilities without a KV cache: one forward over prompt and answer, window mask and all."""
    ids = torch.cat([inputs["input_ids"], torch.tensor([tokens[:-1]], dtype=torch.long)], 1)
    whole = dict(inputs) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    logits = model(**whole, use_cache=False).logits[0, -len(tokens) :].double()
    for (banned,) in model.generation_config.bad_words_ids:
        logits[:, banned] = -torch.inf
    worst = (torch.log_softmax(logits, -1) - scores).nan_to_num(0).abs().max().item()
    assert worst < 2e-4, worst


def activations(ref: Reference, case: dict) -> dict[str, torch.Tensor]:
    """Module outputs of one prefill by module path: every layer's output, the linears around
    attention and the last of the MLP of the first layer of each part. Vision rows are the valid patches of all sub-images, one after the
    other; connector rows all latents; text rows all tokens."""
    inputs, _, _ = ref.inputs(case)
    model, side = ref.model, ref.model.config.vision_config.patch_size
    mask = inputs["pixel_attention_mask"][0].unfold(1, side, side).unfold(2, side, side).all(-1).all(-1).flatten(1)
    kept, handles = {}, []

    def keep(name):
        def hook(_module, _args, output):
            y = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", output)
            if y.dim() == 3 and y.shape[:2] == mask.shape:
                y = y[mask]
            kept[name] = y.reshape(-1, y.shape[-1]).detach().clone().contiguous()

        return hook

    # The perceiver's keys and values are left out: the reference computes them over padding as well.
    wanted = re.compile(r"\.layers\.(\d+|0\.(self_attn\.\w+|mlp\.(down_proj|fc2)))$")
    unwanted = re.compile(r"resampler.*\.[kv]_proj$")
    for name, module in model.named_modules():
        if name in TOP_LEVEL or wanted.search(name) and not unwanted.search(name):
            handles.append(module.register_forward_hook(keep(name)))
    model(**inputs, use_cache=False)
    for h in handles:
        h.remove()
    return kept


TOP_LEVEL = (
    "model.vision_model.embeddings",
    "model.vision_model.post_layernorm",
    "model.connector.modality_projection",
    "model.connector.perceiver_resampler.norm",
    "model.connector.perceiver_resampler",
    "model.text_model.norm",
)


def compact(record: dict) -> str:
    """One record with short lines: a key a line, a generated token a line."""
    lines = []
    for k, v in record.items():
        if k in ("logprobs", "sub_images", "messages") and v:
            rows = ",\n      ".join(json.dumps(r, ensure_ascii=False, separators=(",", ":")) for r in v)
            lines.append(f"    {json.dumps(k)}: [\n      {rows}\n    ]")
        else:
            lines.append(f"    {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}")
    return "  {\n" + ",\n".join(lines) + "\n  }"


def main(out: pathlib.Path) -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*"):
        old.unlink()
    refs = {name: Reference(DATA / name) for name in sorted({c.get("model", "idefics2-tiny") for c in CASES})}
    records = []
    for case in CASES:
        record, tensors = run(refs[case.get("model", "idefics2-tiny")], case)
        records.append(record)
        if tensors:
            save_file(tensors, out / f"{case['name']}.safetensors")
        print(case["name"], record["prompt_tokens"], record["finish_reason"], len(record["token_ids"]), len(set(record["token_ids"])), min(record["margins"]), repr(record["text"][:60]))
    (out / "cases.json").write_text("[\n" + ",\n".join(map(compact, records)) + "\n]\n")

    half = Reference(DATA / "idefics2-tiny-bf16")
    full = {r["name"]: r for r in records}
    records = []
    for case in CASES:
        if case.get("model", "idefics2-tiny") == "idefics2-tiny":
            record, _ = run(half, case)
            same = full[case["name"]]
            records.append(record | {"f32_token_ids": same["token_ids"], "f32_margins": same["margins"]})
    (out / "cases-bf16.json").write_text("[\n" + ",\n".join(map(compact, records)) + "\n]\n")

    case = next(c for c in CASES if c["name"] == ACTIVATIONS_CASE)
    save_file(activations(refs["idefics2-tiny"], case), out / "activations.safetensors", metadata={"case": case["name"]})


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=pathlib.Path, default=DATA / "golden/idefics2")
    main(ap.parse_args().out)
