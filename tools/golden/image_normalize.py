"""Goldens of rescaling and normalisation: tests/data/image/normalize.json.

For each setting the f32 values, as bit patterns, that the PIL image processors of transformers give for the 8-bit
values 0 to 255 of each channel (image_processing_backends.PilBackend.rescale and .normalize).

    python tools/golden/image_normalize.py      (needs transformers)
"""

import json
import pathlib

import numpy as np
from transformers.image_processing_backends import PilBackend

SETTINGS = [
    {"rescale": 1 / 255, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    {"rescale": 0.00392156862745098, "mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]},
    {"rescale": 1 / 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    {"rescale": 1 / 127.5, "mean": None, "std": None},
    {"rescale": None, "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]},
    {"rescale": None, "mean": None, "std": None},
]


def main():
    processor = PilBackend.__new__(PilBackend)
    image = np.tile(np.arange(256, dtype=np.uint8)[None, None, :], (3, 1, 1))
    cases = []
    for setting in SETTINGS:
        values = image
        if setting["rescale"] is not None:
            values = processor.rescale(values, setting["rescale"])
        if setting["mean"] is not None:
            values = processor.normalize(values, setting["mean"], setting["std"])
        values = np.ascontiguousarray(values, dtype=np.float32)
        # Every 17th value in full, the others as a sum of bit patterns modulo 2^32.
        bits = values.view(np.uint32).reshape(3, 256)
        sums = [int(row.astype(np.uint64).sum() % 2**32) for row in bits]
        cases.append({**setting, "bits": [[int(v) for v in row[::17]] for row in bits], "sums": sums})
    path = pathlib.Path(__file__).resolve().parents[2] / "tests/data/image/normalize.json"
    path.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
    print(f"{path}: {len(cases)} settings")


if __name__ == "__main__":
    main()
