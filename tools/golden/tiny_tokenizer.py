"""A small SentencePiece-style BPE tokenizer in the form that Mistral and Llama-2 checkpoints have.

In: the sentences below. Out: tokenizer.json as a dict (byte_fallback, Prepend + Replace normalizer, BOS by template).
Owns: the vocabulary. Not here: the checkpoint around it (idefics2_tiny.py).
"""

import json

from idefics2_files import ADDED, added_token
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

SENTENCES = """
A cup of coffee stands on a dark wooden table beside a silver spoon. The saucer is red and the foam is light brown.
A tabby cat with green eyes looks at something to the left of the camera; its whiskers are long and white.
The rocket waits on its launch pad before sunrise, surrounded by four tall towers and bright lamps.
A man in a long black coat is filming with a camera on a tripod in an open field near the city.
An orange dahlia is in full bloom in front of blurred green leaves. Its petals form a regular pattern.
Old temple roofs rise behind the trees under a grey sky. Several people walk up the stairs.
What is this? What is in this picture? What can you see? Describe the image in detail, please.
How many objects are there? Which colour is the largest one? Where was this photograph taken? Who is in it?
Answer with a single word. Explain why you think so. Compare the first image with the second image.
User: Is there an animal in the photograph? Assistant: Yes, there is a cat. System: You are a helpful assistant.
I see two pictures: the first shows a flower, the second shows a building with a curved roof.
The quick movement of water, wind and clouds makes every photograph different from the next.
No text is visible here, but the number 3 appears twice, and 10, 25, 48, 67, 90 are written below it.
In the morning the street was empty; at night it would be full of people, cars, bicycles and noise.
Please list everything: a plate, a knife, a fork, three glasses, some bread, butter and cheese.
This looks like an outdoor scene. The light comes from the right, so the shadows fall to the left.
Wörter mit Umlauten: schön, größer, Straße. Des mots français : élève, garçon, où, déjà, cœur.
Perhaps it should be possible to understand both questions together without having seen either answer before.
They have been working through the afternoon, although nothing important could be finished until evening.
Between mountains and ocean lies a narrow valley where small houses, farms and gardens follow the river.
Children are playing football while their parents talk, laugh and drink lemonade under the umbrella.
The train arrives at the station every fifteen minutes; passengers wait quietly behind the yellow line.
A doctor, a teacher, a farmer, a painter and an engineer discuss the weather, music, history and science.
Red, green, blue, yellow, purple, pink, white, black, grey, brown, golden, silver, bright, dark, pale.
One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, twenty, hundred, thousand.
left right above below inside outside between around near far top bottom corner center middle edge side
large small tall short wide narrow round square flat heavy empty full open closed clean dirty wet dry
window door wall floor ceiling chair table shelf lamp picture mirror carpet bottle basket box paper book
dog horse cow sheep bird fish elephant monkey rabbit mouse chicken duck bear lion tiger snake insect
apple banana orange lemon grape cherry tomato potato carrot onion pepper mushroom salad soup rice pasta
"""

SPECIAL = ["<unk>", "<s>", "</s>"]


def train(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """`size` pieces in SentencePiece's order (specials, 256 bytes, merged pieces, characters) and their merges."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    fixed = len(SPECIAL) + 256
    trainer = trainers.BpeTrainer(vocab_size=size - fixed, min_frequency=1, show_progress=False)
    words.train_from_iterator(SENTENCES.strip().splitlines(), trainer)
    model = json.loads(words.to_str())["model"]
    merges = [tuple(m) for m in model["merges"]]
    merged = ["".join(m) for m in merges]
    characters = sorted(set(model["vocab"]) - set(merged))
    pieces = SPECIAL + [f"<0x{b:02X}>" for b in range(256)] + list(dict.fromkeys(merged)) + characters
    return {p: i for i, p in enumerate(pieces)}, merges


def tokenizer_json(size: int) -> dict:
    """tokenizer.json with `size` trained pieces and the three image and turn markers behind them."""
    vocab, merges = train(size)
    if len(vocab) != size:
        raise SystemExit(f"the sentences give {len(vocab)} pieces, {size} wanted: use fewer")
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    one = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(t, i) for i, t in enumerate(SPECIAL)]
        + [added_token(t, size + i) for i, t in enumerate(ADDED)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, one],
            "pair": [bos, one, {"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [" ".join(m) for m in merges],
        },
    }
