"""Draws the sample pictures of tests/data/scenes/ with their captions, and questions with the right answers.

In:  the data folder.   Out: OUT/*.png (256x256), OUT/expected.json.
Run: python make_scenes.py --data DATA --out tests/data/scenes
"""

import argparse
import json
from pathlib import Path

from PIL import Image

from language import caption
from scenes import COLORS, FONT_NAMES, Item, Scene, Text, World, draw_scene

PAPER, NIGHT, SAND = (248, 246, 240), (18, 20, 40), (238, 222, 190)


def item(words, x, y, r):
    size, color, shape = words.split()
    return Item(shape, color, size, x, y, r, 0.0, COLORS[color])


def text(value, color, y, height, font):
    return Text(value, color, 32.0, y, height, FONT_NAMES.index(font), COLORS[color])


SAMPLES = {
    "circle-above-square": (
        Scene([item("small red circle", 30, 15, 6), item("big blue square", 34, 44, 12)], None, background=("plain", PAPER)),
        [("What color is the circle?", "red"), ("What is below the circle?", "a blue square"), ("How many shapes are there?", "2"),
         ("Is there a green shape?", "no")]),
    "green-triangle": (
        Scene([item("big green triangle", 32, 33, 12)], None, background=("plain", PAPER)),
        [("What shape is this?", "triangle"), ("What color is the triangle?", "green")]),
    "three-shapes": (
        Scene([item("big yellow star", 15, 20, 11), item("small red heart", 34, 46, 6.2), item("big purple ring", 49, 19, 11)],
              None, background=("gradient", NIGHT, (60, 70, 110), 0)),
        [("How many shapes are there?", "3"), ("What shape is the red object?", "heart"), ("Is there a yellow star?", "yes"),
         ("What is the color of the ring?", "purple")]),
    "five-stars": (
        Scene([item("small yellow star", x, y, 6) for x, y in ((10, 12), (30, 20), (52, 11), (18, 45), (44, 48))], None, background=("plain", NIGHT)),
        [("How many stars are there?", "5"), ("What color are the stars?", "yellow")]),
    "circles-and-square": (
        Scene([item("small red circle", x, y, 6.2) for x, y in ((12, 14), (34, 20), (50, 10))]
              + [item("small blue square", 26, 48, 6.2)], None, background=("plain", SAND)),
        [("How many circles are there?", "3"), ("How many shapes are there?", "4")]),
    "cafe": (
        Scene([], text("CAFE", "red", 32, 22, "DejaVuSerif-Bold"), background=("gradient", (255, 250, 235), (235, 205, 160), 0)),
        [("What does it say?", "CAFE"), ("What color is the word?", "red")]),
    "number": (
        Scene([], text("42", "white", 33, 26, "LiberationSans-Bold"), background=("plain", (30, 90, 60))),
        [("What number is this?", "42")]),
    "heart-on-a-photograph": (
        Scene([item("big red heart", 44, 44, 11.5)], None, background=("photo", 0, (60, 0, 316, 256), 255, 0.5)),
        [("What color is the heart?", "red"), ("Where is the heart?", "bottom right")]),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    world = World(args.data, held_out=True)
    expected = []
    for name, (scene, questions) in SAMPLES.items():
        draw_scene(world, scene, 1024).resize((256, 256), Image.BOX).save(out / f"{name}.png", optimize=True)
        asked = [("What is in this picture?", caption(scene)), ("Describe the picture.", caption(scene)), *questions]
        expected.append({"image": f"{name}.png", "questions": [{"question": q, "answer": a} for q, a in asked]})
    (out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
