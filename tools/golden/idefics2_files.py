"""The small files of an Idefics2 checkpoint folder, in the form they have on the hub.

In: ids and sizes. Out: generation_config.json, preprocessor_config.json, processor_config.json, special_tokens_map.json, tokenizer.json,
tokenizer_config.json and the chat template. Owns: their layout. Not here: config.json's numbers, weights.
"""

import json
import pathlib

ADDED = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]

# As the hub's files have it: roles capitalised, no space before an image that opens the turn, turns closed by a marker.
CHAT_TEMPLATE = (
    "{% for turn in messages %}"
    "{{ turn['role'].capitalize() }}:"
    "{% if turn['content'][0]['type'] != 'image' %}{{ ' ' }}{% endif %}"
    "{% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
    "{{ '<end_of_utterance>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def added_token(content: str, index: int) -> dict:
    """One entry of tokenizer.json's added_tokens."""
    return {
        "id": index,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def write_json(path: pathlib.Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_small_files(out: pathlib.Path, tokenizer: dict, latents: int, edges: tuple[int, int], splitting: bool, template: str) -> None:
    """Everything but config.json and weights. `tokenizer`: tokenizer.json with the three markers; `edges`: longest, shortest in
    pixels; `template`: the file that holds the chat template."""
    ids = {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    fake, image, end = (ids[t] for t in ADDED)
    write_json(
        out / "generation_config.json",
        {
            "_from_model_config": True,
            "bad_words_ids": [[fake], [image]],
            "bos_token_id": 1,
            "eos_token_id": [2, end],
            "pad_token_id": 0,
            "transformers_version": "4.40.0",
        },
    )
    write_json(
        out / "preprocessor_config.json",
        {
            "do_convert_rgb": True,
            "do_image_splitting": splitting,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "Idefics2ImageProcessor",
            "image_std": [0.5, 0.5, 0.5],
            "processor_class": "Idefics2Processor",
            "resample": 2,
            "rescale_factor": 0.00392156862745098,
            "size": {"longest_edge": edges[0], "shortest_edge": edges[1]},
        },
    )
    write_json(out / "processor_config.json", {"image_seq_len": latents, "processor_class": "Idefics2Processor"})
    (out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False, indent=1) + "\n")
    plain = {k: v for k, v in added_token("", 0).items() if k not in ("id", "special")}
    write_json(
        out / "special_tokens_map.json",
        {
            "additional_special_tokens": [plain | {"content": t} for t in ADDED],
            "bos_token": plain | {"content": "<s>"},
            "eos_token": plain | {"content": "</s>"},
            "pad_token": plain | {"content": "<unk>"},
            "unk_token": plain | {"content": "<unk>"},
        },
    )
    tokenizer_config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in tokenizer["added_tokens"]},
        "additional_special_tokens": ADDED,
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": False,
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "<unk>",
        "processor_class": "Idefics2Processor",
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }
    if template == "tokenizer_config.json":
        tokenizer_config["chat_template"] = CHAT_TEMPLATE
    elif template == "chat_template.json":
        write_json(out / template, {"chat_template": CHAT_TEMPLATE})
    else:
        (out / template).write_text(CHAT_TEMPLATE)
    write_json(out / "tokenizer_config.json", tokenizer_config)
