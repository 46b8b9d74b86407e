"""Writes tests/data/text/logits.json: rows of logits before and after transformers' logits processors and warpers.

Usage: python tools/golden/text_logits.py
The processors are those that `generate` itself would build for the settings (`_get_logits_processor`).
"""

import json
import pathlib
import random

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

OUT = pathlib.Path(__file__).parents[2] / "tests/data/text/logits.json"
VOCAB = 48

CASES = [
    ("plain", {}, False),
    ("repetition", {"repetition_penalty": 1.3}, False),
    ("repetition below one", {"repetition_penalty": 0.7}, False),
    ("unigrams", {"no_repeat_ngram_size": 1}, False),
    ("bigrams", {"no_repeat_ngram_size": 2}, False),
    ("trigrams", {"no_repeat_ngram_size": 3}, False),
    ("bad words", {"bad_words_ids": [[5], [7, 8], [3, 4, 9], [2], [1, 6], [11, 4, 4]]}, False),
    ("minimum length", {"min_length": 12}, False),
    ("minimum new tokens", {"min_new_tokens": 4}, False),
    ("suppress", {"suppress_tokens": [0, 9, 47]}, False),
    ("begin suppress", {"begin_suppress_tokens": [1, 3]}, False),
    ("forced end", {"forced_eos_token_id": 2}, False),
    ("forced ends", {"forced_eos_token_id": [2, 40]}, False),
    ("forced start", {"forced_bos_token_id": 6}, False),
    ("forced start, begin suppress", {"forced_bos_token_id": 6, "begin_suppress_tokens": [6, 9]}, False),
    (
        "all processors",
        {
            "repetition_penalty": 1.1,
            "no_repeat_ngram_size": 2,
            "bad_words_ids": [[5], [7, 8], [4, 1]],
            "min_new_tokens": 3,
            "suppress_tokens": [10],
            "begin_suppress_tokens": [12],
            "forced_eos_token_id": 2,
        },
        False,
    ),
    ("temperature", {"temperature": 0.6}, True),
    ("hot", {"temperature": 1.7}, True),
    ("top-k", {"top_k": 5}, True),
    ("top-k of one", {"top_k": 1}, True),
    ("top-k beyond", {"top_k": 100}, True),
    ("top-p", {"top_p": 0.7}, True),
    ("top-p tiny", {"top_p": 0.001}, True),
    ("min-p", {"min_p": 0.2}, True),
    ("min-p of one", {"min_p": 1.0}, True),
    ("warpers", {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.05}, True),
    (
        "everything",
        {
            "repetition_penalty": 1.2,
            "no_repeat_ngram_size": 3,
            "bad_words_ids": [[1], [4, 4]],
            "min_new_tokens": 2,
            "temperature": 1.3,
            "top_k": 12,
            "top_p": 0.85,
            "min_p": 0.1,
        },
        True,
    ),
]


def models():
    small = {"vocab_size": VOCAB, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    decoder = LlamaForCausalLM(LlamaConfig(num_attention_heads=1, **small))
    both = T5ForConditionalGeneration(T5Config(vocab_size=VOCAB, d_model=8, d_kv=8, d_ff=8, num_layers=1, num_heads=1))
    return decoder, both


def row_of(rng, ties):
    if ties:
        return [float(rng.randrange(-3, 4)) for _ in range(VOCAB)]
    return [round(rng.gauss(0.0, 2.5), 4) for _ in range(VOCAB)]


def main():
    rng = random.Random(20)
    decoder, encoder_decoder = models()
    cases = []
    for name, settings, sample in CASES:
        for step in range(6):
            start = "forced start" in name
            prompt = [0] if start else [rng.randrange(12) for _ in range(7)]
            answer = [rng.randrange(12) for _ in range(step)]
            if step == 5:
                # Ends that bad words of several tokens continue.
                prompt[-4:], answer = [3, 4, 1, 7], [3, 4, 11, 4, 4, 3, 4]
                prompt = [0] if start else prompt
                answer = answer[:7]
            max_new_tokens = 6 if step == 4 else 40
            answer = answer if step != 4 else answer + [4] * (5 - len(answer))
            config = GenerationConfig(
                eos_token_id=[2, 40],
                pad_token_id=0,
                decoder_start_token_id=0,
                do_sample=sample,
                **settings,
            )
            config.max_length = len(prompt) + max_new_tokens
            model = encoder_decoder if start else decoder
            model._prepare_special_tokens(config, kwargs_has_attention_mask=True)
            processors = model._get_logits_processor(
                config, input_ids_seq_length=len(prompt), encoder_input_ids=torch.tensor([[1, 2]])
            )
            before = row_of(rng, ties=step == 3 and not sample)
            ids = torch.tensor([prompt + answer])
            after = processors(ids, torch.tensor([before], dtype=torch.float32))[0].tolist()
            cases.append(
                {
                    "name": f"{name}, step {step}",
                    "settings": {k: ([v] if k == "forced_eos_token_id" and isinstance(v, int) else v) for k, v in settings.items()},
                    "sample": sample,
                    "max_new_tokens": max_new_tokens,
                    "prompt": prompt,
                    "answer": answer,
                    "before": before,
                    "after": [None if x == float("-inf") else round(x, 6) for x in after],
                }
            )
    OUT.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(case) for case in cases)
    OUT.write_text(f"[\n{lines}\n]\n")
    print(len(cases), "cases,", OUT.stat().st_size, "bytes")


main()
