"""Tokenizer of the built-in model, and conversations as training sequences.

In:  sentences of the world.   Out: tokenizer.json in the Mistral form; token rows with positions and attention groups.
Owns: the vocabulary, the chat template, how several conversations about one picture share one row.

A row holds the picture's prefix once, then independent conversations. Each attends to the prefix and to itself only, and
its positions continue from the prefix, so every conversation is trained exactly as if it stood alone.
"""

import json

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

NUM_LATENTS = 36
ROW = 136  # tokens in a training row
FAKE, IMAGE, END = "<fake_token_around_image>", "<image>", "<end_of_utterance>"
IMAGE_TEXT = FAKE + IMAGE * NUM_LATENTS + FAKE
CHAT_TEMPLATE = (  # what idefics2's own template renders
    "{% for turn in messages %}{{ turn['role'].capitalize() }}:"
    "{% if turn['content'][0]['type'] != 'image' %}{{ ' ' }}{% endif %}"
    "{% for part in turn['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<end_of_utterance>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def build_tokenizer(sentences, vocab_size=760):
    """A byte-fallback BPE in which every word of `sentences` is one token while digits stay single.

    Ids: 0 <unk>, 1 <s>, 2 </s>, 3..258 bytes, then letters and words; the three added tokens come last, as in idefics2.
    """
    trainer_model = Tokenizer(models.BPE())
    trainer_model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer_model.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split("▁", "merged_with_next"), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)])
    letters = [chr(c) for c in range(33, 127)] + ["▁"]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 262, initial_alphabet=letters, min_frequency=2, show_progress=False)
    trainer_model.train_from_iterator(sentences, trainer)
    learned = json.loads(trainer_model.to_str())["model"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for token in sorted(learned["vocab"], key=learned["vocab"].get):
        vocab[token] = len(vocab)
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = trainer_model.normalizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>", FAKE, IMAGE, END)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return tokenizer


def render(turns):
    """The chat template on a conversation whose first turn holds the picture, with the picture's placeholders expanded."""
    text = ""
    for number, (question, answer) in enumerate(turns):
        # The processor sets a space between the closing placeholder and a word that follows it.
        head = f"User:{IMAGE_TEXT} {question}" if number == 0 else f"User: {question}"
        text += f"{head}{END}\nAssistant: {answer}{END}\n"
    return text


class Packer:
    """Turns conversations into rows of ROW tokens."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.end = tokenizer.token_to_id(END)
        self.marker = tokenizer.encode(f"{END}\nAssistant:", add_special_tokens=False).ids
        self.prefix = tokenizer.encode(f"User:{IMAGE_TEXT}").ids
        self.cache = {}

    def _conversation(self, turns):
        """(ids after the prefix, which of them are answers)."""
        key = tuple(turns)
        if key in self.cache:
            return self.cache[key]
        ids = self.tokenizer.encode(render(turns)).ids
        assert ids[:len(self.prefix)] == self.prefix
        ids = ids[len(self.prefix):]
        target, inside = [False] * len(ids), False
        for t, token in enumerate(ids):
            target[t] = inside
            if token == self.end and inside:
                inside = False
            elif ids[max(0, t - len(self.marker) + 1):t + 1] == self.marker:
                inside = True
        while ids and not target[len(ids) - 1]:  # what follows the last answer is never predicted from
            ids, target = ids[:-1], target[:-1]
        if len(self.cache) < 200_000:
            self.cache[key] = (ids, target)
        return ids, target

    def row(self, conversations):
        """Packs conversations until the row is full. Returns ids, positions, groups (0 prefix, 255 padding) and targets,
        each [ROW]; a target marks a token that the model must predict."""
        ids, positions = list(self.prefix), list(range(len(self.prefix)))
        groups, targets = [0] * len(ids), [False] * len(ids)
        group = 0
        for turns in conversations:
            more, target = self._conversation(turns)
            if len(ids) + len(more) > ROW:
                continue
            group += 1
            positions += range(len(self.prefix), len(self.prefix) + len(more))
            ids, targets, groups = ids + more, targets + target, groups + [group] * len(more)
        pad = ROW - len(ids)
        return (np.array(ids + [0] * pad, np.int16), np.array(positions + [0] * pad, np.uint8),
                np.array(groups + [255] * pad, np.uint8), np.array(targets + [False] * pad, bool))
