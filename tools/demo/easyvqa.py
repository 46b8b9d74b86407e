"""Reader of the easy-VQA data set (PyPI `easy-vqa`, MIT): 64x64 pictures of one shape, with questions.

In:  the folder where the package is installed.   Out: pictures and their question lists.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image


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
