"""Trains small tokenizers of the four kinds that matter and writes expected ids and texts by the `tokenizers` library.

Usage: python tools/golden/text_tokenizers.py [--train]
Training does not give the same vocabulary twice, so it happens only when asked for, or where there is no file yet.
Writes tests/data/text/KIND/tokenizer.json and tests/data/text/KIND/cases.json.

  prepend    BPE with byte fallback; a normalizer prepends the space mark (Llama, Mistral)
  metaspace  the same vocabulary; a pre-tokenizer puts the mark at the start of the text only
  bytelevel  BPE over bytes with a splitting regex (GPT-2, Llama 3, Qwen2)
  unigram    unigram with its end token among the pieces (T5)

How a prompt with literals must be encoded is found out without the code under test: every control token gets a second
name, trusted text is written with the second names, and the first ones are no longer control tokens.
"""

import copy
import json
import pathlib
import random
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = pathlib.Path(__file__).parents[2] / "tests/data/text"
MARK = "\u2581"

CORPUS = [
    "A photograph shows a small brown dog that runs along the beach while the sun goes down behind the hills.",
    "What is in this picture? There are two cats, one of them asleep on a red sofa next to the window.",
    "Describe the image in detail. The image shows a street market with fruit, vegetables and flowers.",
    "The quick brown fox jumps over the lazy dog; 1234567890 times, isn't it? It's the user's question.",
    "User: How many people are there?\nAssistant: There are three people, and they're walking to the station.",
    "Le café est près de la gare. Die Straße ist naß. El niño comió una piña. \u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3067\u3059\u3002",
    "def main():\n    for i in range(10):\n        print(i)\n",
    "<b>bold</b> &amp; [brackets] {braces} <|pipes|> a/b/c image s end of utterance",
]

TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "Hello",
    " Hello",
    "Hello world",
    "Hello  world   and    spaces",
    "What is in this picture?",
    "User: What is this?<end>\nAssistant:",
    "User:<fake><image><fake>What is this?<end>\nAssistant:",
    "<image>",
    "a <image> b",
    "a<image>b",
    "<image><image> <image>",
    "<s>What?",
    "<s> What?",
    "x</s>y",
    "<unk>",
    "caf\u00e9 na\u00efve \u65e5\u672c\u8a9e \u4f60\u597d \U0001f600\U0001f469\u200d\U0001f467 end",
    "\U0001f600",
    "\u4f60",
    "tab\tand\r\nline",
    "it's 12345 o'clock, isn't IT'S",
    "<box>1, 2</box> kept",
    "word<mask> next   <mask>   spaced <left>  l <alone> x<alone>y",
    "a\u0301 e\u0301 \ufb01 \u2460 ABC",
    "\u2581 \u2581a",
    "<image",
    "imag<e>",
    "   leading and trailing   ",
]

# T: trusted text, L: a literal.
PROMPTS = [
    [("T", "User: "), ("L", "<image>"), ("T", " is a tag<end>")],
    [("T", "User:<image>What does "), ("L", "<image>"), ("T", " mean?<end>\nAssistant:")],
    [("L", "<image>"), ("T", " starts")],
    [("T", "ends "), ("L", "</s>")],
    [("L", "<s>")],
    [("L", "<s>"), ("T", "What?")],
    [("T", "<s>"), ("L", "<s>"), ("T", "What?")],
    [("T", "<s>User: "), ("L", "<end>"), ("T", "<end>"), ("L", "<end>"), ("T", "\n")],
    [("T", "a"), ("L", "<image>"), ("T", "b<image>c "), ("L", "<mask>"), ("T", " d  <mask>  e")],
    [("T", "say "), ("L", "<box>"), ("T", " and <box> 1 </box>"), ("L", "</box>")],
    [("T", "join <ima"), ("L", "ge>"), ("T", " and <end>")],
    [("T", "<image>"), ("L", "<image>"), ("T", "<image>")],
    [("T", "x "), ("L", "<alone>"), ("T", " <alone> "), ("L", "<alone>"), ("T", "y <alone>.")],
    [("T", "caf\u00e9 "), ("L", "<image>"), ("T", "\U0001f600<fake>\u4f60"), ("L", "<end>"), ("T", "\u597d")],
    [("L", "<"), ("T", "b>bold</b>"), ("L", "<"), ("T", "image>")],
]


def control_tokens():
    return [
        AddedToken("<image>", special=True, normalized=False),
        AddedToken("<fake>", special=True, normalized=False),
        AddedToken("<end>", special=True, normalized=False),
        AddedToken("<mask>", special=True, normalized=False, lstrip=True, rstrip=True),
        AddedToken("<left>", special=True, normalized=False, lstrip=True),
        AddedToken("<alone>", special=True, normalized=False, single_word=True),
        AddedToken("<box>", special=False, normalized=True),
        AddedToken("</box>", special=False, normalized=True),
    ]


def byte_fallback(kind):
    base = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    base.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=560, special_tokens=specials, show_progress=False, limit_alphabet=70)
    base.train_from_iterator(CORPUS, trainer)
    spec = json.loads(base.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["id"] < 3]
    spec["normalizer"] = spec["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    if kind == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    split = Regex(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>", "<unk>"],
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("   ", normalized=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]),
        ]
    )
    return tokenizer


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=220, show_progress=False, special_tokens=["<pad>", "</s>", "<unk>", "<s>"], unk_token="<unk>"
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


def second_names(tokenizer):
    """A tokenizer whose added tokens have other names, and the table from its ids to the true ones."""
    spec = copy.deepcopy(json.loads(tokenizer.to_str()))
    names = {token["content"]: f"\u3014{i}\u3015" for i, token in enumerate(spec["added_tokens"])}
    true_ids = {token["content"]: token["id"] for token in spec["added_tokens"]}
    model = spec["model"]
    spec["added_tokens"], added = [], spec["added_tokens"]
    spec["post_processor"] = None
    if model["type"] == "BPE":
        # Pieces that only exist as control tokens must not be found as text by either tokenizer: BPE has no merges
        # that lead to them, so they can stay.
        other = Tokenizer.from_str(json.dumps(spec))
    else:
        # Unigram would find them; without the pieces it cannot, and the other ids stay when rare names replace them.
        for piece in model["vocab"]:
            if piece[0] in names and piece[0] != "<unk>":
                piece[0] = "\U000f0000" + piece[0]
        other = Tokenizer.from_str(json.dumps(spec))
    other.add_tokens(
        [
            AddedToken(
                names[t["content"]],
                single_word=t["single_word"],
                lstrip=t["lstrip"],
                rstrip=t["rstrip"],
                normalized=t["normalized"],
                special=t["special"],
            )
            for t in added
        ]
    )
    table = {other.token_to_id(names[content]): true_ids[content] for content in names}
    return other, names, table


def expected_ids(other, names, table, segments):
    text = ""
    written = 0
    for kind, part in segments:
        if kind == "T":
            for content in sorted(names, key=len, reverse=True):
                written += part.count(content)
                part = part.replace(content, names[content])
        text += part
    ids = other.encode(text, add_special_tokens=False).ids
    # A second name that is not found would come out as text of its own.
    assert written == sum(i in table for i in ids), segments
    return [table.get(i, i) for i in ids]


def random_ids(rng, tokenizer, n):
    # Releases of the library differ in how they print normalized added tokens after a normalizer that prepends.
    unclear = {tokenizer.token_to_id("<box>"), tokenizer.token_to_id("</box>")}
    known = [i for i in range(tokenizer.get_vocab_size()) if i not in unclear]
    return [rng.choice(known) for _ in range(n)]


def write(kind, tokenizer):
    rng = random.Random(kind)
    tokenizer.add_tokens(control_tokens())
    folder = OUT / kind
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False))
    texts = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        texts.append(
            {
                "text": text,
                "ids": ids,
                "with_special": tokenizer.encode(text).ids,
                "decoded": tokenizer.decode(ids, skip_special_tokens=False),
                "decoded_skip": tokenizer.decode(ids, skip_special_tokens=True),
            }
        )
    other, names, table = second_names(tokenizer)
    prompts = [{"segments": s, "ids": expected_ids(other, names, table, s)} for s in PROMPTS]
    streams = []
    for i in range(40):
        ids = random_ids(rng, tokenizer, rng.randrange(1, 60))
        if i % 2 and kind in ("prepend", "metaspace"):
            # Mostly bytes, valid and not.
            ids = [3 + b for t in ids for b in (chr(rng.choice([233, 0x4F60, 0x1F600, 65, 32])).encode() if t % 3 else [rng.randrange(256)])][:60]
            ids = [b if rng.randrange(6) else random_ids(rng, tokenizer, 1)[0] for b in ids]
        streams.append(
            {
                "ids": ids,
                "decoded": tokenizer.decode(ids, skip_special_tokens=False),
                "decoded_skip": tokenizer.decode(ids, skip_special_tokens=True),
            }
        )
    dump = lambda items: "[\n" + ",\n".join(json.dumps(item, ensure_ascii=False) for item in items) + "\n]"
    cases = f'{{"texts": {dump(texts)},\n"prompts": {dump(prompts)},\n"streams": {dump(streams)}}}\n'
    (folder / "cases.json").write_text(cases)
    sizes = [(p.name, p.stat().st_size) for p in folder.iterdir()]
    print(kind, tokenizer.get_vocab_size(), sizes)


if __name__ == "__main__":
    makers = {
        "prepend": lambda: byte_fallback("prepend"),
        "metaspace": lambda: byte_fallback("metaspace"),
        "bytelevel": byte_level,
        "unigram": unigram,
    }
    for kind, train in makers.items():
        file = OUT / kind / "tokenizer.json"
        reuse = file.exists() and "--train" not in sys.argv
        write(kind, Tokenizer.from_file(str(file)) if reuse else train())
