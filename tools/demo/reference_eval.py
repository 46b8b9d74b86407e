"""Answers a requests file with transformers' `generate`, as a reference for the engine's results.

In:  a checkpoint folder, requests.jsonl of make_eval.py.   Out: results JSONL with {"id", "text", "token_ids"}.
Run: python reference_eval.py assets/demo-model EVAL/requests.jsonl results.jsonl [--limit N] [--threads 1]
"""

import argparse
import json
import random

import torch
from PIL import Image
from transformers import AutoProcessor, Idefics2ForConditionalGeneration


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("requests")
    parser.add_argument("results")
    parser.add_argument("--limit", type=int, default=0, help="answer a random choice of this many requests")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = Idefics2ForConditionalGeneration.from_pretrained(args.checkpoint, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(args.checkpoint, backend="pil")
    processor.tokenizer.padding_side = "left"
    ends = set(model.generation_config.eos_token_id)
    with open(args.requests) as file:
        requests = [json.loads(line) for line in file]
    if args.limit:
        requests = random.Random(0).sample(requests, args.limit)
    requests.sort(key=lambda r: (r["id"].split("-")[0], len(r["prompt"])))
    with open(args.results, "w") as out:
        for at in range(0, len(requests), args.batch):
            part = requests[at:at + args.batch]
            images, texts = [], []
            for r in part:
                images.append([Image.open(r["images"][0]).convert("RGB")])
                content = [{"type": "image"}, {"type": "text", "text": r["prompt"]}]
                texts.append(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))
            inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
            tokens = model.generate(**inputs, do_sample=False, max_new_tokens=48)[:, inputs["input_ids"].shape[1]:]
            for r, row in zip(part, tokens.tolist()):
                stop = next((i + 1 for i, t in enumerate(row) if t in ends), len(row))
                text = processor.tokenizer.decode(row[:stop], skip_special_tokens=True).strip()
                out.write(json.dumps({"id": r["id"], "text": text, "token_ids": row[:stop]}) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
