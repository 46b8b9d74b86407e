"""Writes the trained weights as a checkpoint folder with the files that a published idefics2 checkpoint has.

In:  ema.pt of train.py, tokenizer.json of prepare.py.   Out: config, weights, tokenizer, processor files, chat template.
Run: python export.py --weights TRAIN/ema.pt --tokenizer ROWS/tokenizer.json --out assets/demo-model [--dtype bfloat16]

Loads the folder with transformers and compares logits and prompt ids with those of training before it reports success.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer

from model import PERCEIVER, TEXT, VISION, DemoModel
from tokens import CHAT_TEMPLATE, END, FAKE, IMAGE, NUM_LATENTS, Packer


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def special(content):
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


def write_folder(out, weights, tokenizer_path, dtype):
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    ids = {t: tokenizer.token_to_id(t) for t in ("<unk>", "<s>", "</s>", FAKE, IMAGE, END)}
    tensors = {k: v.to(getattr(torch, dtype)).contiguous() for k, v in weights.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(tokenizer_path, out / "tokenizer.json")
    text = dict(TEXT, model_type="mistral", vocab_size=tokenizer.get_vocab_size(), sliding_window=None, bos_token_id=ids["<s>"],
                eos_token_id=ids["</s>"], pad_token_id=ids["<unk>"], tie_word_embeddings=False)
    write_json(out / "config.json", {
        "architectures": ["Idefics2ForConditionalGeneration"], "model_type": "idefics2", "image_token_id": ids[IMAGE],
        "tie_word_embeddings": False, "torch_dtype": dtype, "use_cache": True,
        "vision_config": dict(VISION, model_type="idefics2"), "perceiver_config": dict(PERCEIVER, model_type="idefics2"),
        "text_config": text})
    write_json(out / "generation_config.json", {
        "bad_words_ids": [[ids[FAKE]], [ids[IMAGE]]], "bos_token_id": ids["<s>"], "eos_token_id": [ids["</s>"], ids[END]],
        "pad_token_id": ids["<unk>"]})
    side = VISION["image_size"]
    write_json(out / "preprocessor_config.json", {
        "do_convert_rgb": True, "do_image_splitting": False, "do_normalize": True, "do_pad": True, "do_rescale": True,
        "do_resize": True, "image_mean": [0.5] * 3, "image_processor_type": "Idefics2ImageProcessor", "image_std": [0.5] * 3,
        "processor_class": "Idefics2Processor", "resample": 2, "rescale_factor": 1 / 255,
        "size": {"longest_edge": side, "shortest_edge": side}})
    write_json(out / "processor_config.json", {"image_seq_len": NUM_LATENTS, "processor_class": "Idefics2Processor"})
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    added = [FAKE, IMAGE, END]
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    write_json(out / "tokenizer_config.json", {
        "added_tokens_decoder": {str(i): dict(special(t), special=True) for t, i in ids.items()},
        "additional_special_tokens": added, **names, "clean_up_tokenization_spaces": False, "model_max_length": 2048,
        "processor_class": "Idefics2Processor", "tokenizer_class": "PreTrainedTokenizerFast"})
    write_json(out / "special_tokens_map.json", {"additional_special_tokens": [special(t) for t in added],
                                                 **{k: special(v) for k, v in names.items()}})


@torch.no_grad()
def check(out):
    """Largest difference of log-probabilities between the training model and transformers on the exported folder."""
    from transformers import AutoProcessor, Idefics2ForConditionalGeneration
    reference = Idefics2ForConditionalGeneration.from_pretrained(out, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(out, backend="pil")
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    model = DemoModel(tokenizer.get_vocab_size(), tokenizer.token_to_id(IMAGE))
    model.load_state_dict(reference.state_dict())
    model.float()
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 255, (9, 9, 3), np.uint8)).resize((200, 200))
    question, answer = "What colour is the small star?", "red"
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},
               {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    text = processor.apply_chat_template(message, add_generation_prompt=False)
    inputs = processor(text=text, images=[picture], return_tensors="pt")
    ids, positions, groups, targets = Packer(tokenizer).row([[(question, answer)]])
    used = int((groups < 255).sum())
    prompt = inputs["input_ids"][0].tolist()
    if prompt[:used] != ids[:used].tolist():
        raise SystemExit(f"prompt ids differ from those of training:\n{prompt}\n{ids[:used].tolist()}")
    expected = reference(**inputs).logits[0].log_softmax(-1)
    row = [torch.from_numpy(a.astype(np.int64))[None, :used] for a in (ids, positions, groups)]
    ours = model(inputs["pixel_values"][:, 0], *row, torch.from_numpy(targets)[None, :used])[0].log_softmax(-1)
    rows = [t - 1 for t in range(used) if targets[t]]
    return (ours - expected[rows]).abs().max().item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    args = parser.parse_args()
    out = Path(args.out)
    write_folder(out, torch.load(args.weights, weights_only=True), args.tokenizer, args.dtype)
    difference = check(out)
    size = sum(f.stat().st_size for f in out.iterdir())
    print(f"{out}: {size / 1e6:.2f} MB; largest log-probability difference to transformers {difference:.2e}")
    if difference > 1e-3:
        raise SystemExit("the exported model is not the trained one")


if __name__ == "__main__":
    main()
