"""Held-out evaluation sets: 1,000 scenes of each kind of question, and easy-VQA's own test set.

In:  the data folder.   Out: OUT/requests.jsonl (for `engine run --requests`), OUT/expected.jsonl, pictures.
Run: python make_eval.py OUT --data DATA [--count 1000] [--seed 9001]

Held out: other seeds than training, and background photographs that training never saw. Questions are worded as people write
them in full (no lower-casing); captions are asked for by "Describe the picture.".
"""

import argparse
import json
import random
from pathlib import Path

import easyvqa
from language import ask, caption
from scenes import World, draw_scene, make_scene

SETS = {
    "captions": (None, None),
    "counting": (("one", "two", "three", "four", "group", "groups"), "count"),
    "colors": (("one", "two", "three", "four"), "color"),
    "relations": (("two", "three", "four"), "relation"),
    "reading": (("text",), "reading"),
}


def examples(world, name, count, seed):
    """Yields (scene, question, answer)."""
    rng = random.Random(f"{name} {seed}")
    kinds, category = SETS[name]
    made = 0
    while made < count:
        scene = make_scene(rng, world, rng.choice(kinds) if kinds else None)
        if category is None:
            made += 1
            yield scene, "Describe the picture.", caption(scene)
            continue
        asked = ask(rng, scene, category)
        if asked:
            made += 1
            yield scene, asked[1], asked[2]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--data", required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=9001)
    parser.add_argument("--only", nargs="*", default=[*SETS, "easy-vqa"])
    args = parser.parse_args()
    out = Path(args.out).resolve()
    (out / "images").mkdir(parents=True, exist_ok=True)
    world = World(args.data, held_out=True)
    with open(out / "requests.jsonl", "w") as requests, open(out / "expected.jsonl", "w") as expected:
        def put(name, number, image, question, answer):
            key = f"{name}-{number:05d}"
            requests.write(json.dumps({"id": key, "prompt": question, "images": [str(image)], "max_tokens": 48, "temperature": 0}) + "\n")
            expected.write(json.dumps({"id": key, "set": name, "question": question, "answer": answer}) + "\n")

        for name in SETS:
            if name not in args.only:
                continue
            for number, (scene, question, answer) in enumerate(examples(world, name, args.count, args.seed)):
                path = out / "images" / f"{name}-{number:05d}.png"
                draw_scene(world, scene, 128).save(path, compress_level=1)
                put(name, number, path, question, answer)
        if "easy-vqa" in args.only:
            paths, questions = easyvqa.load(args.data, "test")
            number = 0
            for path, asked in zip(paths, questions):
                for question, answer in asked:
                    put("easy-vqa", number, path.resolve(), question, answer)
                    number += 1


if __name__ == "__main__":
    main()
