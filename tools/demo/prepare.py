"""Makes the training data: pictures and packed rows in files of 4,096, so that training never waits.

In:  a data folder (README.md says what it holds), a seed.   Out: OUT/tokenizer.json, OUT/easy.npz,
OUT/starter-N.npz (easy scenes for the beginning), OUT/NNNN.npz.
Run: python prepare.py --data DATA --out OUT [--shards 40] [--seed 1] [--first 0]
"""

import argparse
import random
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

import easyvqa
from language import CAPTION_PROMPTS, NUMBERS, caption, conversation, plural
from scenes import SHAPES, World, draw_scene, make_scene, patch_labels
from tokens import Packer, build_tokenizer

SHARD = 4096
STARTERS = 3
SIDES = (128, 128, 160, 192, 256)


def make_tokenizer(world, data):
    rng = random.Random(7)
    sentences = []
    for _ in range(12000):
        scene = make_scene(rng, world)
        if scene.text:  # what is drawn must stay letter by letter
            sentences += [q for q, _ in conversation(rng, scene, 6)[1:]]
        else:
            sentences += [s for pair in conversation(rng, scene, 6) for s in pair]
    sentences += [q for questions in easyvqa.load(data, "train")[1] for q, _ in questions]
    words = [plural(s) for s in SHAPES] + list(NUMBERS) + ["number", "word", "text", "User", "rectangle", "teal", "empty", "nothing"]
    sentences += [w for w in words for _ in range(200)] + list(CAPTION_PROMPTS) * 50 + ["\nAssistant:"] * 500 + ["User: "] * 500
    return build_tokenizer([s.replace("\n", " ") for s in sentences])


def scene_row(rng, scene, packer):
    turns = conversation(rng, scene, 8)
    groups = [[turns[0]]]
    rest = turns[1:]
    while rest:  # some conversations go on for a second question
        take = 2 if len(rest) > 1 and rng.random() < 0.1 else 1
        groups.append(rest[:take])
        rest = rest[take:]
    return packer.row(groups)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    world = World(args.data)
    if not (out / "tokenizer.json").exists():
        make_tokenizer(world, args.data).save(str(out / "tokenizer.json"))
    packer = Packer(Tokenizer.from_file(str(out / "tokenizer.json")))
    if not (out / "easy.npz").exists():
        rng = random.Random(args.seed)
        paths, questions = easyvqa.load(args.data, "train")
        pictures, rows, source = easyvqa.pixels(paths), [], []
        for k in range(len(paths) * 2):  # every picture twice, its questions in two orders
            order = questions[k // 2][:]
            rng.shuffle(order)
            rows.append(packer.row([[turn] for turn in order]))
            source.append(k // 2)
        save(out / "easy.npz", pictures[np.array(source)], rows)
    files = [(f"starter-{n}.npz", True, n) for n in range(STARTERS)]
    files += [(f"{n:04d}.npz", False, n) for n in range(args.first, args.first + args.shards)]
    for name, starter, shard in files:
        path = out / name
        if path.exists():
            continue
        rng = random.Random(args.seed * 100_003 + shard + (50_000 if starter else 0))
        pictures, rows, labels = np.empty((SHARD, 64, 64, 3), np.uint8), [], np.empty((SHARD, 2, 64), np.uint8)
        for k in range(SHARD):
            scene = make_scene(rng, world, starter=starter)
            pictures[k] = draw_scene(world, scene, rng.choice(SIDES)).resize((64, 64), Image.BILINEAR)
            labels[k] = patch_labels(world, scene)
            rows.append(scene_row(rng, scene, packer))
        save(path, pictures, rows, labels)


def save(path, pictures, rows, labels=None):
    """labels: patch_labels of each scene [n, 2, 64]; without them (pictures that we did not draw) all are 255, unknown."""
    if labels is None:
        labels = np.full((len(pictures), 2, 64), 255, np.uint8)
    ids, positions, groups, targets = (np.stack(column) for column in zip(*rows))
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        np.savez(file, pictures=pictures, ids=ids, positions=positions, groups=groups, targets=targets, labels=labels)
    temporary.rename(path)


if __name__ == "__main__":
    main()
