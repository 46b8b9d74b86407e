"""Pillow's time to decode a JPEG to RGB and to resize it to 980 on the longest side, bilinear: the other side of
bench/preprocess.rs.

    python tools/golden/pillow_preprocess_bench.py JPEG...          times
    python tools/golden/pillow_preprocess_bench.py --make DIR PHOTO...  12-megapixel files to time, from photographs

--make tiles the photographs, doubled in size and with a little noise, over 4000x3000 pixels and writes them as 4:2:0,
4:4:4 and progressive JPEGs of quality 90.
"""

import io
import pathlib
import sys
import time

import PIL
from PIL import Image, features

ROUNDS = 15
LONGEST = 980


def measure(path):
    data = pathlib.Path(path).read_bytes()
    decoding, resizing = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        image = Image.open(io.BytesIO(data)).convert("RGB")
        middle = time.perf_counter()
        longest = max(image.size)
        image.resize([max(side * LONGEST // longest, 1) for side in image.size], Image.Resampling.BILINEAR)
        resizing.append(time.perf_counter() - middle)
        decoding.append(middle - start)
    both = [a + b for a, b in zip(decoding, resizing)]
    text = lambda times: f"{min(times) * 1e3:.1f} ({sorted(times)[ROUNDS // 2] * 1e3:.1f})"
    print(f"{path} ({len(data)} bytes): decode {text(decoding)}, resize {text(resizing)}, both {text(both)}")


def make(folder, photos):
    import numpy as np

    photos = [Image.open(photo).convert("RGB") for photo in photos]
    canvas = Image.new("RGB", (4000, 3000))
    x = y = row = count = 0
    while y < canvas.height:
        photo = photos[count % len(photos)]
        photo = photo.resize((photo.width * 2, photo.height * 2), Image.Resampling.LANCZOS)
        if count % 3 == 0:
            photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        canvas.paste(photo, (x, y))
        x, row, count = x + photo.width, max(row, photo.height), count + 1
        if x >= canvas.width:
            x, y, row = 0, y + row, 0
    noise = np.random.default_rng(0).normal(0, 2.5, (canvas.height, canvas.width, 1)).astype(np.int16)
    canvas = Image.fromarray(np.clip(np.asarray(canvas).astype(np.int16) + noise, 0, 255).astype(np.uint8))
    folder = pathlib.Path(folder)
    canvas.save(folder / "12mp-420.jpg", quality=90)
    canvas.save(folder / "12mp-444.jpg", quality=90, subsampling=0)
    canvas.save(folder / "12mp-progressive.jpg", quality=90, progressive=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        make(sys.argv[2], sys.argv[3:])
    else:
        print(f"Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}; best (median) of {ROUNDS} rounds, ms")
        for path in sys.argv[1:]:
            measure(path)
