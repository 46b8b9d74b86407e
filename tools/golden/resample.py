"""Resampler goldens: tests/data/image/resample.json.

Every case resizes an image of pseudo-random bytes with PIL.Image.resize and keeps the CRC-32 of the output
([height, width, 3], RGB); a few small outputs are kept whole. The bytes come from a generator that the test runs
too: x = x * 1664525 + 1013904223 mod 2^32, starting at the seed; a step gives the top byte of x, but 0 where bits
16-19 of x are 0 and 255 where they are 15, so that clipping occurs.

    python tools/golden/resample.py      (needs Pillow)
"""

import json
import pathlib
import zlib

import PIL
from PIL import Image

FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}

# (width, height) of source and output: down, up, both ways at once, sides of one pixel, one side unchanged, sizes
# around multiples of the vector width, primes, and pairs on either side of the rule that puts the vertical pass first.
PAIRS = [
    ((64, 48), (32, 24)), ((64, 48), (33, 25)), ((64, 48), (63, 47)), ((64, 48), (65, 49)), ((64, 48), (128, 96)),
    ((64, 48), (20, 90)), ((64, 48), (150, 7)), ((64, 48), (64, 20)), ((64, 48), (64, 100)), ((64, 48), (17, 48)),
    ((64, 48), (200, 48)), ((64, 48), (1, 1)), ((64, 48), (1, 48)), ((64, 48), (64, 1)), ((64, 48), (1, 100)),
    ((64, 48), (100, 1)), ((64, 48), (64, 48)), ((1, 1), (1, 1)), ((1, 1), (7, 5)), ((1, 1), (40, 1)), ((1, 50), (3, 20)),
    ((50, 1), (20, 3)), ((50, 1), (100, 1)), ((1, 50), (1, 25)), ((2, 3), (31, 37)), ((3, 2), (2, 3)), ((5, 5), (4, 4)),
    ((97, 89), (31, 29)), ((97, 89), (53, 101)), ((97, 89), (101, 53)), ((97, 89), (14, 14)), ((31, 29), (97, 89)),
    ((40, 200), (38, 20)), ((200, 40), (20, 38)), ((60, 100), (40, 60)), ((60, 100), (40, 59)), ((60, 100), (70, 99)),
    ((60, 100), (80, 101)), ((16, 16), (15, 17)), ((17, 33), (8, 9)), ((333, 7), (9, 3)), ((7, 333), (3, 9)),
    ((640, 5), (98, 5)), ((5, 640), (5, 98)), ((127, 128), (129, 126)), ((300, 200), (98, 65)), ((13, 11), (224, 224)),
    ((1000, 3), (1, 3)), ((3, 1000), (3, 1)), ((11, 1500), (5, 2)),
]
KEPT_WHOLE = {((5, 5), (4, 4)), ((2, 3), (31, 37)), ((1, 50), (3, 20)), ((16, 16), (15, 17))}


def pseudo_random(count, seed):
    out, x = bytearray(count), seed
    for i in range(count):
        x = (x * 1664525 + 1013904223) % 2**32
        middle = x >> 16 & 15
        out[i] = 0 if middle == 0 else 255 if middle == 15 else x >> 24
    return bytes(out)


def main():
    cases = []
    for index, (source, output) in enumerate(PAIRS):
        image = Image.frombytes("RGB", source, pseudo_random(source[0] * source[1] * 3, index))
        for name, number in FILTERS.items():
            pixels = image.resize(output, number).tobytes()
            case = {"seed": index, "source": source, "output": output, "filter": name, "crc32": zlib.crc32(pixels)}
            if (source, output) in KEPT_WHOLE and name in ("bicubic", "lanczos", "bilinear"):
                case["pixels"] = pixels.hex()
            cases.append(case)
    path = pathlib.Path(__file__).resolve().parents[2] / "tests/data/image/resample.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(case) for case in cases)
    path.write_text('{"pillow": "%s", "cases": [\n%s\n]}\n' % (PIL.__version__, lines))
    print(f"{path}: {len(cases)} cases of {len(PAIRS)} size pairs")


if __name__ == "__main__":
    main()
