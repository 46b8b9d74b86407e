"""Makes tests/data/photos/: small real photographs in the shapes and formats that image code gets wrong.

In: the sample photographs inside the wheels scikit-image 0.26.0 and scikit-learn 1.9.1 (pip download, no install).
Out: PNG, JPEG and WebP files and their README. Owns: the crop, size and encoder settings of every file.
Not here: what a model makes of them (idefics2_cases.py).

Run: python tools/golden/photos.py
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
WHEELS = ["scikit-image==0.26.0", "scikit-learn==1.9.1"]

README = """# Photographs used by the tests

Made by `tools/golden/photos.py` (Pillow 13.0.0) from sample photographs that ship inside two Python packages.
All were cropped, scaled down and re-encoded; two had an EXIF orientation tag added, one an alpha channel.

| files | photograph | author | licence |
|---|---|---|---|
| coffee.jpg, coffee-exif3.jpg, coffee-444.jpg | cup of coffee (scikit-image `coffee`) | Rachel Michetti | CC0 |
| rocket.jpg, rocket-exif8.jpg | Falcon 9 on its pad (scikit-image `rocket`) | SpaceX | public domain |
| camera-grey.png, camera-16bit.png | cameraman (scikit-image `camera`) | Lav Varshney | CC0 |
| chelsea-rgba.png, chelsea-exif6.jpg, chelsea-eye.png, chelsea-palette.png, tiny-5x3.png | Chelsea the cat (scikit-image `chelsea`) | Stefan van der Walt | CC0 |
| wide.png | temple roofs in China (scikit-learn `china.jpg`), a strip | danielbuechele on Flickr, photo 6061409035 | CC BY 2.0 |
| flower.webp, flower-lossy.webp, flower.png | dahlia (scikit-learn `flower.jpg`) | vultilion on Flickr, photo 6056698931 | CC BY 2.0 |

CC BY 2.0: https://creativecommons.org/licenses/by/2.0/
"""


def sources(cache: pathlib.Path) -> dict[str, Image.Image]:
    """The source photographs by name, RGB or L. Downloads the wheels into `cache` when they are not there."""
    if len(list(cache.glob("*.whl"))) < len(WHEELS):
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(cache), *WHEELS], check=True)
    members = {
        "coffee": "skimage/data/coffee.png",
        "rocket": "skimage/data/rocket.jpg",
        "camera": "skimage/data/camera.png",
        "chelsea": "skimage/data/chelsea.png",
        "china": "sklearn/datasets/images/china.jpg",
        "flower": "sklearn/datasets/images/flower.jpg",
    }
    found = {}
    for wheel in sorted(cache.glob("*.whl")):
        with zipfile.ZipFile(wheel) as z:
            for name, member in members.items():
                if member in z.namelist():
                    with z.open(member) as f:
                        found[name] = Image.open(f).copy()
    missing = sorted(set(members) - set(found))
    if missing:
        raise SystemExit(f"{cache}: no wheel holds {missing}")
    return found


def scaled(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.LANCZOS)


def oriented(image: Image.Image, tag: int) -> tuple[Image.Image, bytes]:
    """The picture stored turned so that EXIF orientation `tag` brings it upright again, and that EXIF block."""
    undo = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = tag
    return image.transpose(undo[tag]), exif.tobytes()


def make(out: pathlib.Path, src: dict[str, Image.Image]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    jpeg = {"quality": 85, "optimize": True}

    coffee = scaled(src["coffee"].convert("RGB"), 300, 200)
    coffee.save(out / "coffee.jpg", **jpeg, subsampling="4:2:0")
    coffee.crop((60, 20, 210, 170)).save(out / "coffee-444.jpg", **jpeg, subsampling="4:4:4")
    turned, exif = oriented(scaled(coffee, 180, 120), 3)
    turned.save(out / "coffee-exif3.jpg", **jpeg, subsampling="4:2:2", exif=exif)

    rocket = scaled(src["rocket"].convert("RGB").crop((190, 0, 450, 427)), 130, 214)
    rocket.save(out / "rocket.jpg", **jpeg, subsampling="4:2:0", progressive=True)
    turned, exif = oriented(scaled(rocket, 90, 148), 8)
    turned.save(out / "rocket-exif8.jpg", **jpeg, subsampling="4:2:0", exif=exif)

    grey = scaled(src["camera"].convert("L"), 128, 128)
    grey.crop((0, 10, 128, 107)).save(out / "camera-grey.png", optimize=True)
    deep = np.asarray(grey.crop((30, 10, 94, 58))).astype(np.uint16)
    # The low byte differs from the high one, so that dropping it and rounding it give different answers.
    Image.fromarray(deep * 256 + (deep * 7 + 31) % 256).save(out / "camera-16bit.png", optimize=True)

    chelsea = scaled(src["chelsea"].convert("RGB"), 226, 150)
    turned, exif = oriented(chelsea.crop((20, 5, 216, 145)), 6)
    turned.save(out / "chelsea-exif6.jpg", **jpeg, subsampling="4:2:0", exif=exif)
    face = scaled(src["chelsea"].convert("RGB").crop((90, 40, 330, 220)), 120, 90)
    y, x = np.mgrid[0:90, 0:120]
    alpha = np.clip(255 - 4 * np.abs(np.hypot(x - 60.0, y - 45.0) - 10), 0, 255).astype(np.uint8)
    rgba = np.dstack([np.asarray(face), alpha])
    Image.fromarray(rgba).save(out / "chelsea-rgba.png", optimize=True)
    src["chelsea"].convert("RGB").crop((120, 90, 190, 135)).save(out / "chelsea-eye.png", optimize=True)
    face.quantize(48, method=Image.Quantize.MEDIANCUT).save(out / "chelsea-palette.png", optimize=True)
    scaled(src["chelsea"].convert("RGB"), 5, 3).save(out / "tiny-5x3.png", optimize=True)

    scaled(src["china"].convert("RGB").crop((0, 170, 640, 230)), 320, 30).save(out / "wide.png", optimize=True)

    flower = scaled(src["flower"].convert("RGB"), 160, 107)
    flower.save(out / "flower-lossy.webp", quality=80, method=6)
    scaled(flower, 100, 67).save(out / "flower.webp", lossless=True, quality=100, method=6)
    flower.crop((40, 0, 130, 107)).save(out / "flower.png", optimize=True)

    (out / "README.md").write_text(README)


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=pathlib.Path, default=ROOT / "tests/data/photos")
    ap.add_argument("--wheels", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()) / "golden-photo-wheels")
    args = ap.parse_args()
    make(args.out, sources(args.wheels))
    for path in sorted(args.out.iterdir()):
        print(f"{path.stat().st_size:8d} {path.name}")
