"""Reader of the easy-VQA data set (PyPI `easy-vqa`, MIT): 64x64 pictures of one shape, with questions.

In:  the folder where the package is installed.   Out: pictures and their question lists.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image


COLORS = ("red", "green", "blue", "yellow", "black", "gray", "brown", "teal")


def load(data, split):
    """(paths, questions): questions[i] is the list of (question, answer) about paths[i]. split: "train" | "test"."""
    folder = Path(data) / "easy_vqa" / "data" / split
    by_image = {}
    for question, answer, image in json.loads((folder / "questions.json").read_text()):
        by_image.setdefault(image, []).append((question, answer))
    paths = [folder / "images" / f"{i}.png" for i in sorted(by_image)]
    return paths, [by_image[i] for i in sorted(by_image)]


def pixels(paths):
    """uint8 [n, 64, 64, 3]."""
    return np.stack([np.asarray(Image.open(p).convert("RGB")) for p in paths])


def facts(questions):
    """(shape, colour) of a picture, from the answers to its questions; None where no question tells."""
    shape = color = None
    for question, answer in questions:
        words = question.rstrip("?").split()
        if answer in ("rectangle", "circle", "triangle"):
            shape = answer
        elif answer not in ("yes", "no"):
            color = answer
        negated = "not" in words or "no" in words
        if (answer == "yes") != negated and answer in ("yes", "no"):
            shape = next((w for w in words if w in ("rectangle", "circle", "triangle")), shape)
            color = next((w for w in words if w in COLORS), color)
        if words[:2] == ["what", "color"] or words[:2] == ["what", "is"]:
            shape = next((w for w in words if w in ("rectangle", "circle", "triangle")), shape)
            color = next((w for w in words if w in COLORS), color)
    return shape, color


def moved(picture, rng):
    """(picture, mask) of the shape on its plain ground, mirrored at random and moved to a random place inside."""
    ground = np.median(picture.reshape(-1, 3), 0).astype(np.uint8)
    mask = np.abs(picture.astype(int) - ground).sum(2) > 24
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return picture, mask
    dy, dx = rng.randint(-rows[0], 63 - rows[-1]), rng.randint(-columns[0], 63 - columns[-1])
    turn = slice(None, None, rng.choice((1, -1)))
    return np.roll(picture, (dy, dx), (0, 1))[:, turn], np.roll(mask, (dy, dx), (0, 1))[:, turn]
