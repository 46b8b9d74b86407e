"""Makes the held-out sets of `bench/quality/`: pictures in sheets, questions with their one right answer.

In:  the data folder.   Out: OUT/{pairs,counts,texts,easy-vqa}.webp, OUT/questions.tsv (set, sheet, number of the picture, question, answer).
Run: python make_eval.py --data DATA --out bench/quality [--count 1000] [--seed 9001]

Held out: other seeds than training, and background photographs that training never saw; easy-VQA is its own test set. A sheet
holds pictures of 64x64 pixels, 32 in a row, with five bits a channel to keep the files small. Questions are worded as people write them
in full (no lower-casing); captions are asked for by "Describe the picture.".
"""

import argparse
import random
from pathlib import Path

import numpy as np
from PIL import Image

import easyvqa
from language import ask, caption
from scenes import World, draw_scene, make_scene

SHEETS = {  # kinds of scenes and their weights
    "pairs": {"two": 26, "three": 14},
    "counts": {"one": 12, "two": 10, "three": 10, "group": 14, "groups": 14, "empty": 1},
    "texts": {"text": 22, "text+one": 5},
}
SETS = {  # categories and the sheet whose pictures they ask about; captions take pictures of all sheets by these weights
    "captions": {"pairs": 40, "counts": 33, "texts": 27}, "counting": "counts", "colors": "pairs", "relations": "pairs", "reading": "texts",
}
QUESTION = {"counting": "count", "colors": "color", "relations": "relation", "reading": "reading"}
COLUMNS, SIDE = 32, 64


def scenes_of(world, sheet, count, seed):
    """`count` scenes of this sheet; each of them has a question of every category that asks about the sheet."""
    rng = random.Random(f"{sheet} {seed}")
    needed = [QUESTION[name] for name, source in SETS.items() if source == sheet]
    out = []
    while len(out) < count:
        scene = make_scene(rng, world, rng.choices(tuple(SHEETS[sheet]), tuple(SHEETS[sheet].values()))[0])
        if all(any(ask(rng, scene, c) for _ in range(8)) for c in needed):
            out.append(scene)
    return out


def questions_of(scenes, count, seed):
    """Yields (category, sheet, number, question, answer), `count` of each category. scenes: {sheet: its scenes}."""
    rng = random.Random(f"questions {seed}")
    for name, source in SETS.items():
        if name == "captions":
            total, first = sum(source.values()), 0
            for sheet, weight in source.items():
                part = count - first if sheet == "texts" else count * weight // total
                first += part
                for number in range(part):
                    yield name, sheet, number, "Describe the picture.", caption(scenes[sheet][number])
            continue
        for number in range(count):
            asked = None
            while not asked:
                asked = ask(rng, scenes[source][number], QUESTION[name])
            yield name, source, number, asked[1], asked[2]


def picture(world, scene):
    return draw_scene(world, scene, 2 * SIDE).resize((SIDE, SIDE), Image.BILINEAR)


def write_sheet(path, pictures):
    rows = -(-len(pictures) // COLUMNS)
    sheet = np.zeros((rows * SIDE, COLUMNS * SIDE, 3), np.uint8)
    for k, one in enumerate(pictures):
        y, x = k // COLUMNS * SIDE, k % COLUMNS * SIDE
        sheet[y:y + SIDE, x:x + SIDE] = one
    Image.fromarray(sheet & 248 | sheet >> 5).save(path, lossless=True, quality=80, method=4)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=9001)
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    world = World(args.data, held_out=True)
    scenes = {sheet: scenes_of(world, sheet, args.count, args.seed) for sheet in SHEETS}
    lines = list(questions_of(scenes, args.count, args.seed))
    for sheet, of in scenes.items():
        write_sheet(out / f"{sheet}.webp", [np.asarray(picture(world, scene)) for scene in of])
    paths, questions = easyvqa.load(args.data, "test")
    write_sheet(out / "easy-vqa.webp", easyvqa.pixels(paths))
    lines += [("easy-vqa", "easy-vqa", number, question, answer) for number, asked in enumerate(questions) for question, answer in asked]
    (out / "questions.tsv").write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))


if __name__ == "__main__":
    main()
