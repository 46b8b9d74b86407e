"""Small image files of every kind and what Pillow makes of them: tests/data/image/files/ and tests/data/image/decode.json.

The truth of a file is what transformers' load_image makes of it: ImageOps.exif_transpose(Image.open(f)).convert("RGB"),
kept as size and CRC-32 of the bytes [height, width, 3]; for files with alpha also that image pasted on white with its
alpha as the mask. 16-bit grey is the exception: the engine takes value >> 8 where Pillow clips to 255; such files say so
("scaled_16_bit") and keep the CRC of that.

The pictures are drawn here. Where Pillow cannot write a variant (16-bit RGB, Adam7, YCCK, files without Huffman tables) it
is put together here; odd sampling factors come from libjpeg-turbo's `cjpeg`, where it is on the PATH.

    python tools/golden/image_decode.py      (needs Pillow and numpy)
"""

import io
import json
import pathlib
import shutil
import struct
import subprocess
import zlib

import numpy as np
import PIL
from PIL import Image, ImageOps

ROOT = pathlib.Path(__file__).resolve().parents[2] / "tests/data/image"
FILES = ROOT / "files"
WIDTH, HEIGHT = 35, 27


def picture(width=WIDTH, height=HEIGHT):
    """Waves, edges and a little noise: something for every coefficient."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    red = 128 + 120 * np.sin(x / 5) * np.cos(y / 7)
    green = 255 * (x + y) / (width + height)
    blue = np.where((x // 6 + y // 4) % 2 == 0, 220, 30)
    noise = np.random.default_rng(7).integers(-12, 13, (height, width, 3))
    pixels = np.stack([red, green, blue], -1) + noise
    pixels[height // 3 : height // 2, width // 2 :] = (250, 20, 40)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def with_alpha(image):
    y, x = np.mgrid[0 : image.height, 0 : image.width]
    alpha = Image.fromarray(np.clip(x * 9 - y * 2, 0, 255).astype(np.uint8))
    image = image.convert("RGBA")
    image.putalpha(alpha)
    return image


def exif(orientation, big_endian=False):
    mark, order = (b"MM\0*", ">") if big_endian else (b"II*\0", "<")
    return b"Exif\0\0" + mark + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def encoded(image, format, **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def raw_png(width, height, depth, color, rows, interlaced=False, extra=b""):
    """A PNG of unfiltered rows."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(interlaced))
    body = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def adam7(image):
    pixels = np.asarray(image)
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = [row.tobytes() for x, y, dx, dy in passes for row in pixels[y::dy, x::dx] if row.size]
    return raw_png(image.width, image.height, 8, 2, rows, interlaced=True)


def segments(jpeg):
    """Marker segments in front of the first scan, then the rest."""
    at, found = 2, []
    while jpeg[at + 1] != 0xDA:
        length = struct.unpack(">H", jpeg[at + 2 : at + 4])[0]
        found.append(jpeg[at : at + 2 + length])
        at += 2 + length
    return found, jpeg[at:]


def jpeg_files(image):
    files = {}
    for subsampling, name in enumerate(("444", "422", "420")):
        for progressive in (False, True):
            suffix = "progressive" if progressive else "baseline"
            for quality in (40, 95):
                files[f"{name}-{suffix}-q{quality}.jpg"] = encoded(
                    image, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive
                )
    files["grey.jpg"] = encoded(image.convert("L"), "JPEG", quality=85)
    files["grey-progressive.jpg"] = encoded(image.convert("L"), "JPEG", quality=85, progressive=True)
    files["restart.jpg"] = encoded(image, "JPEG", quality=85, restart_marker_blocks=2)
    files["restart-progressive.jpg"] = encoded(image, "JPEG", quality=85, restart_marker_rows=1, progressive=True)
    files["optimized.jpg"] = encoded(image, "JPEG", quality=85, optimize=True)
    files["rgb.jpg"] = encoded(image, "JPEG", quality=90, keep_rgb=True)
    files["cmyk.jpg"] = encoded(image.convert("CMYK"), "JPEG", quality=90)
    files["cmyk-progressive.jpg"] = encoded(image.convert("CMYK"), "JPEG", quality=90, progressive=True)
    # The same samples with the Adobe transform that makes them YCCK.
    head, rest = segments(files["cmyk.jpg"])
    head = [s[:-1] + b"\2" if s[1] == 0xEE else s for s in head]
    files["ycck.jpg"] = b"\xff\xd8" + b"".join(head) + rest
    # Without Adobe marker: Pillow inverts nevertheless.
    files["cmyk-bare.jpg"] = b"\xff\xd8" + b"".join(s for s in head if s[1] != 0xEE) + rest
    # As in motion JPEG: the standard Huffman tables are left out.
    head, rest = segments(files["420-baseline-q40.jpg"])
    files["no-huffman-tables.jpg"] = b"\xff\xd8" + b"".join(s for s in head if s[1] != 0xC4) + rest
    for size in ((1, 1), (2, 2), (3, 5), (8, 8), (9, 7), (16, 17), (33, 1), (1, 33), (5, 64)):
        files[f"{size[0]}x{size[1]}.jpg"] = encoded(image.resize(size), "JPEG", quality=80)
    # Large enough for the second thread.
    large = picture(520, 300).resize((520, 300), Image.Resampling.BOX)
    files["large-420.jpg"] = encoded(large, "JPEG", quality=12)
    files["large-progressive.jpg"] = encoded(large, "JPEG", quality=12, progressive=True)
    checker = Image.fromarray((np.indices((24, 24)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    files["overshoot.jpg"] = encoded(checker, "JPEG", quality=3)
    if shutil.which("cjpeg"):
        ppm = encoded(image, "PPM")
        runs = {
            "440": ["-sample", "1x2,1x1,1x1"],
            "411": ["-sample", "4x1,1x1,1x1"],
            "410": ["-sample", "4x2,1x1,1x1"],
            "441": ["-sample", "1x4,1x1,1x1"],
            "mixed": ["-sample", "2x2,2x1,1x2"],
            "chroma-finer": ["-sample", "1x1,2x2,2x2"],
        }
        for name, arguments in runs.items():
            command = ["cjpeg", "-quality", "85", *arguments]
            files[f"{name}.jpg"] = subprocess.run(command, input=ppm, capture_output=True, check=True).stdout
        for name, script in {"one-scan-each": "0;\n1;\n2;\n", "two-scans": "1 2;\n0;\n"}.items():
            path = pathlib.Path("/tmp/scans.txt")
            path.write_text(script)
            command = ["cjpeg", "-quality", "85", "-scans", str(path)]
            files[f"{name}.jpg"] = subprocess.run(command, input=ppm, capture_output=True, check=True).stdout
    return files


def orientation_files(image):
    image = image.resize((19, 11))
    files = {}
    for orientation in range(1, 9):
        for big_endian in (False, True):
            name = f"exif-{orientation}-{'mm' if big_endian else 'ii'}.jpg"
            files[name] = encoded(image, "JPEG", quality=60, exif=exif(orientation, big_endian))
    for orientation in (3, 6, 8):
        files[f"exif-{orientation}.png"] = encoded(image, "PNG", exif=exif(orientation))
        files[f"exif-{orientation}.webp"] = encoded(image, "WEBP", quality=60, exif=exif(orientation, True))
        files[f"exif-{orientation}.tif"] = encoded(image, "TIFF", compression="tiff_deflate", tiffinfo={274: orientation})
    files["exif-9.jpg"] = encoded(image, "JPEG", quality=60, exif=exif(9))
    files["exif-broken.jpg"] = encoded(image, "JPEG", quality=60, exif=exif(6)[:20])
    files["exif-noise.jpg"] = encoded(image, "JPEG", quality=60, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    profile = exif(6)
    text = f"\nexif\n{len(profile):8}\n{profile.hex()}\n".encode()
    header = raw_png(*image.size, 8, 2, [row.tobytes() for row in np.asarray(image)], extra=b"")
    at = 8 + 25
    for name, chunk in {
        "exif-raw-profile": png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)),
        "exif-xmp": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation=\"8\"/>"),
    }.items():
        files[f"{name}.png"] = header[:at] + chunk + header[at:]
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x><tiff:Orientation>6</tiff:Orientation></x>"
    plain = encoded(image, "JPEG", quality=60)
    files["exif-xmp.jpg"] = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp + plain[2:]
    return files


def png_files(image):
    palette = image.quantize(13)
    files = {
        "rgb.png": encoded(image, "PNG"),
        "rgba.png": encoded(with_alpha(image), "PNG"),
        "grey.png": encoded(image.convert("L"), "PNG"),
        "grey-alpha.png": encoded(with_alpha(image).convert("LA"), "PNG"),
        "bilevel.png": encoded(image.convert("1"), "PNG"),
        "palette.png": encoded(palette, "PNG", bits=8),
        "palette-4.png": encoded(palette, "PNG", bits=4),
        "palette-2.png": encoded(image.quantize(4), "PNG", bits=2),
        "palette-1.png": encoded(image.quantize(2), "PNG", bits=1),
        "palette-transparent.png": encoded(palette, "PNG", transparency=3),
        "palette-alpha.png": encoded(palette, "PNG", transparency=bytes(range(0, 260, 20))),
        "grey-transparent.png": encoded(image.convert("L"), "PNG", transparency=128),
        "rgb-transparent.png": encoded(image, "PNG", transparency=(250, 20, 40)),
        "interlaced.png": adam7(image),
        "animated.png": encoded(image, "PNG", save_all=True, append_images=[ImageOps.invert(image)], duration=0),
        "1x1.png": encoded(image.resize((1, 1)), "PNG"),
    }
    wide = np.asarray(image).astype(np.uint16) * 257 ^ 0x5A
    alpha = np.asarray(with_alpha(image))[..., 3:].astype(np.uint16) * 257
    rows = lambda pixels: [row.astype(">u2").tobytes() for row in pixels]
    files["rgb-16.png"] = raw_png(WIDTH, HEIGHT, 16, 2, rows(wide))
    files["rgba-16.png"] = raw_png(WIDTH, HEIGHT, 16, 6, rows(np.concatenate([wide, alpha], -1)))
    files["grey-alpha-16.png"] = raw_png(WIDTH, HEIGHT, 16, 4, rows(np.concatenate([wide[..., :1], alpha], -1)))
    files["grey-16.png"] = raw_png(WIDTH, HEIGHT, 16, 0, rows(wide[..., 0]))
    grey = np.asarray(image.convert("L"))
    for depth in (2, 4):
        per_byte = 8 // depth
        padded = np.zeros((HEIGHT, -(-WIDTH // per_byte) * per_byte), np.uint8)
        padded[:, :WIDTH] = grey >> (8 - depth)
        packed = sum(padded[:, i::per_byte].astype(int) << (8 - depth * (i + 1)) for i in range(per_byte))
        files[f"grey-{depth}.png"] = raw_png(WIDTH, HEIGHT, depth, 0, [row.tobytes() for row in packed.astype(np.uint8)])
    return files


def other_files(image):
    palette = image.quantize(13)
    inverted = ImageOps.invert(image)
    cut = with_alpha(image)
    cut.putalpha(cut.getchannel("A").point(lambda v: 255 if v > 99 else 0))
    files = {
        "lossy.webp": encoded(image, "WEBP", quality=70),
        "lossless.webp": encoded(image, "WEBP", lossless=True),
        "lossy-alpha.webp": encoded(with_alpha(image), "WEBP", quality=70),
        "lossless-alpha.webp": encoded(with_alpha(image), "WEBP", lossless=True, exact=True),
        "animated.webp": encoded(image, "WEBP", quality=70, save_all=True, append_images=[inverted], duration=9),
        "plain.gif": encoded(palette, "GIF", interlace=0),
        "interlaced.gif": encoded(palette, "GIF", interlace=1),
        "grey.gif": encoded(image.convert("L"), "GIF"),
        "transparent.gif": encoded(cut, "GIF"),
        "animated.gif": encoded(palette, "GIF", save_all=True, append_images=[inverted.quantize(13)], duration=0),
        "rgb.bmp": encoded(image, "BMP"),
        "rgba.bmp": encoded(with_alpha(image), "BMP"),
        "grey.bmp": encoded(image.convert("L"), "BMP"),
        "palette.bmp": encoded(palette, "BMP"),
        "bilevel.bmp": encoded(image.convert("1"), "BMP"),
        "rgb.tif": encoded(image, "TIFF"),
        "rgb-lzw.tif": encoded(image, "TIFF", compression="tiff_lzw"),
        "rgb-deflate.tif": encoded(image, "TIFF", compression="tiff_adobe_deflate"),
        "rgb-packbits.tif": encoded(image, "TIFF", compression="packbits"),
        "rgba.tif": encoded(with_alpha(image), "TIFF"),
        "grey.tif": encoded(image.convert("L"), "TIFF"),
        "grey-16.tif": encoded(image.convert("L").convert("I;16").point(lambda v: v * 257), "TIFF"),
        "bilevel.tif": encoded(image.convert("1"), "TIFF"),
        "bilevel-fax.tif": encoded(image.convert("1"), "TIFF", compression="group4"),
        "palette.tif": encoded(palette, "TIFF"),
        "cmyk.tif": encoded(image.convert("CMYK"), "TIFF"),
        "pages.tif": encoded(image, "TIFF", save_all=True, append_images=[inverted], compression="tiff_lzw"),
    }
    # A frame that covers only a part of the canvas, and one that leaves it.
    gif = bytearray(files["plain.gif"])
    for name, (width, height) in {"frame-inside.gif": (WIDTH + 5, HEIGHT + 4), "frame-outside.gif": (20, 20)}.items():
        gif[6:10] = struct.pack("<HH", width, height)
        files[name] = bytes(gif)
    return files


def truth(data):
    """Size and CRC of the upright RGB image; for alpha also of the image on white."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    entry = {}
    rgb = image.convert("RGB")
    if image.mode.startswith("I;16") or image.mode == "I":
        scaled = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        rgb = Image.fromarray(scaled).convert("RGB")
        entry["scaled_16_bit"] = True
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        full = image.convert("RGBA")
        white = Image.new("RGB", full.size, (255, 255, 255))
        white.paste(full.convert("RGB"), mask=full.getchannel("A"))
        entry["on_white"] = zlib.crc32(white.tobytes())
    return {"width": rgb.width, "height": rgb.height, "crc32": zlib.crc32(rgb.tobytes()), **entry}


def main():
    image = picture()
    FILES.mkdir(parents=True, exist_ok=True)
    files = {**jpeg_files(image), **orientation_files(image), **png_files(image), **other_files(image)}
    for name, data in files.items():
        (FILES / name).write_bytes(data)
    entries = {path.name: truth(path.read_bytes()) for path in sorted(FILES.iterdir())}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())
    (ROOT / "decode.json").write_text("{\n" + lines + "\n}\n")
    size = sum(path.stat().st_size for path in FILES.iterdir())
    print(f"{len(entries)} files, {size} bytes, Pillow {PIL.__version__}")


if __name__ == "__main__":
    main()
