"""Makes the training data: pictures and packed rows in files of 4,096, so that training never waits.

In:  a data folder (README.md says what it holds), a seed.   Out: OUT/tokenizer.json, OUT/easy.npz, OUT/eval.npz (what shows how
training goes), OUT/crowd-NN.npz (pictures without rows), OUT/drill-NN.npz (scenes that are hard to tell), OUT/NNNN.npz.
Run: python prepare.py --data DATA --out OUT [--shards 32] [--crowds 16] [--drills 8] [--seed 1] [--first 0]
"""

import argparse
import random
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

import easyvqa
from language import CAPTION_PROMPTS, NUMBERS, caption, conversation, plural
from make_eval import SETS, SHEETS, picture, questions_of, scenes_of
from scenes import (GRID, LABEL_COLORS, LABEL_SHAPES, SHAPES, UNKNOWN, WORDS, World, cell_labels, covered, draw_scene, make_crowd,
                    make_drill, make_scene, patch_labels)
from tokens import Packer, build_tokenizer

EASY_COPIES = 4  # of each easy-VQA picture, mirrored and moved, each with its questions in another order
SIDES = (128, 128, 128, 192, 256)


def make_tokenizer(world, data):
    rng = random.Random(7)
    sentences = []
    for _ in range(6000):
        scene = make_scene(rng, world)
        sentences += [s for pair in conversation(rng, scene, 6) for s in pair]
    sentences += [q for questions in easyvqa.load(data, "train")[1] for q, _ in questions]
    words = [plural(s) for s in SHAPES] + list(NUMBERS) + list(WORDS) + ["number", "word", "text", "User", "rectangle", "teal", "empty", "nothing"]
    sentences += [w for w in words for _ in range(200)] + list(CAPTION_PROMPTS) * 50 + ["\nAssistant:"] * 500 + ["User: "] * 500
    return build_tokenizer([s.replace("\n", " ") for s in sentences])


def scene_row(rng, scene, packer):
    turns = conversation(rng, scene, 9)
    if rng.random() < 0.4:  # more room for questions
        turns = turns[1:] + turns[:1]
    groups = []
    while turns:  # some conversations go on for a second question
        take = 2 if groups and len(turns) > 1 and rng.random() < 0.1 else 1
        groups.append(turns[:take])
        turns = turns[take:]
    return packer.row(groups)


def easy_rows(data, seed, packer):
    """(pictures, rows, patch labels, cell labels) of easy-VQA's training set."""
    rng = random.Random(seed)
    paths, questions = easyvqa.load(data, "train")
    originals, pictures, rows, patches, cells = easyvqa.pixels(paths), [], [], [], []
    for k in range(len(paths) * EASY_COPIES):
        order = questions[k % len(paths)][:]
        rng.shuffle(order)
        rows.append(packer.row([[turn] for turn in order]))
        image, mask = easyvqa.moved(originals[k % len(paths)], rng)
        pictures.append(image)
        shape, color = easyvqa.facts(order)
        label = (1 + LABEL_SHAPES.index(shape) if shape else UNKNOWN, 1 + LABEL_COLORS.index(color) if color else UNKNOWN)
        patches.append(covered(mask.astype(np.uint8), [(0, 0), label]))
        cell = np.zeros((GRID * GRID, 5), np.uint8)
        y, x = (v.mean() + 0.5 for v in np.nonzero(mask))
        cell[int(y * GRID / 64) * GRID + int(x * GRID / 64), :3] = (*label, UNKNOWN)
        cells.append(cell)
    return np.stack(pictures), rows, np.stack(patches), np.stack(cells)


def scene_rows(world, seed, count, packer=None, make=make_scene):
    """(pictures, rows, patch labels, cell labels) of scenes that `make` makes; without a packer no rows."""
    rng = random.Random(seed)
    pictures, rows = np.empty((count, 64, 64, 3), np.uint8), []
    patches, cells = np.empty((count, 64, 2), np.uint8), np.empty((count, GRID * GRID, 5), np.uint8)
    for k in range(count):
        scene = make(rng, world)
        pictures[k] = draw_scene(world, scene, rng.choice(SIDES)).resize((64, 64), Image.BILINEAR)
        patches[k], cells[k] = patch_labels(world, scene), cell_labels(scene)
        if packer:
            rows.append(scene_row(rng, scene, packer))
    return pictures, rows, patches, cells


def held_out_rows(data, count, packer):
    """Columns of a small held-out set that shows how training goes (other pictures than make_eval.py's by its seed)."""
    world, columns = World(data, held_out=True), {"pictures": [], "category": [], "rows": []}

    def put(category, image, turn):
        columns["category"].append(category)
        columns["pictures"].append(np.asarray(image))
        columns["rows"].append(packer.row([[turn]]))

    scenes = {sheet: scenes_of(world, sheet, count, 77) for sheet in SHEETS}
    for name, sheet, number, question, answer in questions_of(scenes, count, 77):
        put(list(SETS).index(name), picture(world, scenes[sheet][number]), (question, answer))
    paths, questions = easyvqa.load(data, "test")
    for pixels, asked in zip(easyvqa.pixels(paths[:count]), questions):
        put(len(SETS), pixels, asked[0])
    rows = dict(zip(("ids", "positions", "groups", "targets"), (np.stack(c) for c in zip(*columns["rows"]))))
    return {"names": np.array([*SETS, "easy-vqa"]), "category": np.array(columns["category"]), "pictures": np.stack(columns["pictures"]), **rows}


def save(path, pictures, rows, patches, cells):
    columns = dict(zip(("ids", "positions", "groups", "targets"), (np.stack(column) for column in zip(*rows)))) if rows else {}
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        np.savez(file, pictures=pictures, patches=patches, cells=cells, **columns)
    temporary.rename(path)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--shards", type=int, default=32)
    parser.add_argument("--crowds", type=int, default=16)
    parser.add_argument("--drills", type=int, default=8)
    parser.add_argument("--text", type=float, default=0.0, help="share of scenes with text, beside those that KINDS gives")
    parser.add_argument("--count", type=int, default=4096, help="pictures in a file")
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
        save(out / "easy.npz", *easy_rows(args.data, args.seed, packer))
    if not (out / "eval.npz").exists():
        np.savez(out / "eval.npz", **held_out_rows(args.data, 100, packer))
    for shard in range(args.crowds):
        if not (out / f"crowd-{shard:02d}.npz").exists():
            save(out / f"crowd-{shard:02d}.npz", *scene_rows(world, args.seed * 100_003 + 50_000 + shard, args.count, make=make_crowd))
    for shard in range(args.first, args.first + args.drills):
        if not (out / f"drill-{shard:02d}.npz").exists():
            save(out / f"drill-{shard:02d}.npz", *scene_rows(world, args.seed * 100_003 + 70_000 + shard, args.count, packer, make_drill))
    def make(rng, world):
        return make_scene(rng, world, rng.choice(("text", "text", "text+one")) if args.text and rng.random() < args.text else None)

    for shard in range(args.first, args.first + args.shards):
        if not (out / f"{shard:04d}.npz").exists():
            save(out / f"{shard:04d}.npz", *scene_rows(world, args.seed * 100_003 + shard, args.count, packer, make))


if __name__ == "__main__":
    main()
