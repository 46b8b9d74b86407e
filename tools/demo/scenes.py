"""The world of the built-in model: random scenes of coloured shapes, numbers and short words, and their drawing.

In:  a `random.Random`, fonts, background photographs.   Out: `Scene` descriptions and RGB pictures.
Owns: what exists (shapes, colours, sizes, words), where things may stand, how they look.
Not here: sentences about a scene (language.py).

All coordinates are in units of 1/64 of the picture side, y downwards, so one scene can be drawn at any resolution.
"""

import math
import random
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLORS = {
    "red": (215, 35, 35),
    "green": (40, 160, 55),
    "blue": (40, 75, 215),
    "yellow": (240, 220, 45),
    "orange": (245, 135, 20),
    "purple": (135, 50, 175),
    "pink": (245, 150, 195),
    "black": (15, 15, 15),
    "white": (248, 248, 248),
    "gray": (128, 128, 128),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "ring")
SIZES = {"small": (5.4, 6.8), "big": (10.0, 12.5)}
MAX_GROUP = 5  # the most things in a picture
WORDS = (
    "CAT DOG SUN CAR BUS TREE FISH BIRD MOON HELLO STOP OPEN EXIT SALE TAXI HOTEL CAFE BANK PARK LOVE "
    "HOME FOOD MILK TEA CAKE BREAD FREE NEW HOT COLD YES NO GO UP WATER FIRE SNOW TIME MUSIC ZOO"
).split()
TRAIN_PHOTOS = ("astronaut.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "hubble_deep_field.jpg", "retina.jpg",
                "flower.jpg", "grass.png", "brick.png", "coins.png")
EVAL_PHOTOS = ("chelsea.png", "china.jpg", "gravel.png")
FONT_NAMES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif-Bold", "LiberationSans-Bold", "LiberationSerif-Bold", "LiberationMono-Bold")


@dataclass
class Item:
    """One shape: centre (x, y) and radius r in 1/64 of the side; rgb is the jittered paint."""
    shape: str
    color: str
    size: str
    x: float
    y: float
    r: float
    angle: float
    rgb: tuple = (0, 0, 0)


@dataclass
class Text:
    """A number or word: centre, the height of its capitals' box, and a font index."""
    value: str
    color: str
    x: float
    y: float
    height: float
    font: int
    rgb: tuple = (0, 0, 0)

    @property
    def is_number(self):
        return self.value.isdigit()


@dataclass
class Scene:
    items: list = field(default_factory=list)
    text: Text | None = None
    more_text: list = field(default_factory=list)  # crowds only
    background: tuple = ()  # ("plain", rgb) | ("gradient", rgb, rgb, degrees) | ("photo", index, crop, tone, alpha)

    @property
    def texts(self):
        return ([self.text] if self.text else []) + self.more_text


class World:
    """Fonts and photographs for drawing. `photos` are PIL images, `fonts` paths."""

    def __init__(self, data, held_out=False):
        """`data`: a folder with the installed scikit-image, scikit-learn packages and a `fonts` folder."""
        data = Path(data)
        folders = (data / "skimage" / "data", data / "sklearn" / "datasets" / "images")
        self.photos = []
        for name in EVAL_PHOTOS if held_out else TRAIN_PHOTOS:
            path = next(f / name for f in folders if (f / name).exists())
            photo = Image.open(path).convert("RGB")
            scale = 256 / min(photo.size)
            self.photos.append(photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.BILINEAR))
        self.fonts = [str(next(p for root in (data / "fonts", Path("/usr/share/fonts")) for p in root.rglob(f"{name}.ttf")))
                      for name in FONT_NAMES]


@lru_cache(maxsize=4096)
def _font(path, pixels):
    return ImageFont.truetype(path, pixels)


def _distance(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b)))


def _jitter(rng, rgb, amount=12):
    return tuple(max(0, min(255, c + rng.randint(-amount, amount))) for c in rgb)


def make_crowd(rng, world):
    """As many things as fit, nothing to talk about: shapes, or three lines of text. Where learning to look begins, since one picture
    teaches as much as five ordinary ones."""
    scene = Scene()
    if rng.random() < 0.5:
        centres = []
        for _ in range(14):
            size = rng.choice(tuple(SIZES))
            centre = _place(rng, [rng.uniform(*SIZES[size])], centres)
            if centre:
                centres += centre
                scene.items.append(_item(rng, rng.choice(SHAPES), rng.choice(tuple(COLORS)), size, centre[0]))
    else:
        shift = rng.uniform(-1.5, 1.5)
        scene.more_text = [_text(rng, (y + shift - 0.5, y + shift + 0.5), (16, 18.5)) for y in (11.5, 32, 52.5)]
    _paint(rng, world, scene)
    return scene


def _tint(rng):
    """A pale or dark tone of any hue: grounds are calmer than the things on them."""
    tone = rng.choice((0, 255))
    return tuple((rng.randint(0, 255) + tone) // 2 for _ in range(3))


# ---- placing ----

def _place(rng, radii, taken=(), x_gap=0.0, border=1.5):
    """Centres for discs of these radii that keep 2.5 units apart, from the taken ones too, or None. x_gap: least distance of any two
    centres in x."""
    centres = []
    for r in radii:
        for _ in range(60):
            x, y = rng.uniform(r + border, 64 - r - border), rng.uniform(r + border, 64 - r - border)
            if all((x - a) ** 2 + (y - b) ** 2 > (r + s + 2.5) ** 2 and abs(x - a) >= x_gap for a, b, s in (*taken, *centres)):
                centres.append((x, y, r))
                break
        else:
            return None
    return centres


def _item(rng, shape, color, size, centre):
    turn = {"square": 6, "cross": 10, "triangle": 10, "star": 18, "heart": 12}.get(shape, 0)
    return Item(shape, color, size, *centre, math.radians(rng.uniform(-turn, turn)))


SHARED = 0.25  # how often a thing shares its shape or its colour with another, so that both must be read


def _distinct(rng, n, shared=SHARED):
    """n different (shape, colour) pairs."""
    pairs = []
    while len(pairs) < n:
        shape, color = rng.choice(SHAPES), rng.choice(tuple(COLORS))
        if pairs and rng.random() < shared:
            other = rng.choice(pairs)
            shape, color = rng.choice(((other[0], color), (shape, other[1])))
        if (shape, color) not in pairs:
            pairs.append((shape, color))
    return pairs


def _objects(rng, n, shared):
    while True:
        sizes = [rng.choice(tuple(SIZES)) for _ in range(n)]
        centres = _place(rng, [rng.uniform(*SIZES[s]) for s in sizes], x_gap=7.0 if n > 2 else 0.0)
        if centres is None:
            continue
        if n == 2:
            (ax, ay, _), (bx, by, _) = centres
            if abs(abs(ax - bx) - abs(ay - by)) < 9:
                continue
        return [_item(rng, *pair, size, c) for pair, size, c in zip(_distinct(rng, n, shared), sizes, centres)]


def _groups(rng, counts, shared):
    """Groups of equal shapes: counts[i] items of kind i, all of one size."""
    while True:
        total = sum(counts)
        size = rng.choice(tuple(SIZES)) if total <= 3 else "small"
        r = rng.uniform(*SIZES[size])
        centres = _place(rng, [r] * total)
        if centres is None:
            continue
        kinds = [pair for pair, k in zip(_distinct(rng, len(counts), shared), counts) for _ in range(k)]
        return [_item(rng, *pair, size, c) for pair, c in zip(kinds, centres)]


def _text(rng, y_range, height_range):
    value = str(rng.randint(0, 99)) if rng.random() < 0.5 else rng.choice(WORDS)
    return Text(value, rng.choice(tuple(COLORS)), 32.0, rng.uniform(*y_range), rng.uniform(*height_range), rng.randrange(len(FONT_NAMES)))


KINDS = {"one": 5, "two": 24, "three": 26, "group": 10, "groups": 22, "text": 9, "text+one": 3, "empty": 1}


DRILL_KINDS = {"three": 30, "groups": 70}  # what is hardest to tell, with things that have more in common
DRILL_SHARED = 0.6


def make_drill(rng, world):
    """A scene of three things or two groups that often share a colour or a shape, for training."""
    return make_scene(rng, world, rng.choices(tuple(DRILL_KINDS), tuple(DRILL_KINDS.values()))[0], DRILL_SHARED)


def make_scene(rng, world, kind=None, shared=SHARED):
    """A random scene of the given kind (a key of KINDS, drawn by weight when absent) with paints that show on its background."""
    kind = kind or rng.choices(tuple(KINDS), tuple(KINDS.values()))[0]
    scene = Scene()
    if kind in ("one", "two", "three"):
        scene.items = _objects(rng, ("one", "two", "three").index(kind) + 1, shared)
    elif kind == "group":
        scene.items = _groups(rng, (rng.randint(2, MAX_GROUP),), shared)
    elif kind == "groups":
        a = rng.randint(1, 3)
        scene.items = _groups(rng, (a, rng.randint(2 if a == 1 else 1, min(3, MAX_GROUP - a))), shared)
    elif kind == "text":
        scene.text = _text(rng, (16, 48), (16, 27))
    elif kind == "text+one":
        above = rng.random() < 0.5
        scene.text = _text(rng, (14, 18) if above else (46, 50), (16, 20))
        size = rng.choice(tuple(SIZES))
        r = rng.uniform(*SIZES[size])
        x, y = rng.uniform(r + 2, 62 - r), rng.uniform(45, 49) if above else rng.uniform(15, 19)
        scene.items = [_item(rng, rng.choice(SHAPES), rng.choice(tuple(COLORS)), size, (x, y, r))]
    _paint(rng, world, scene)
    return scene


def _paint(rng, world, scene):
    """Chooses the background, then paints; a colour that would not show is exchanged for all things that have it."""
    style = rng.choices(("plain", "gradient", "photo"), (40, 30, 30))[0]
    shade = lambda: _tint(rng) if rng.random() < 0.5 else (rng.choice((10, 40, 215, 250)),) * 3
    if style == "plain":
        scene.background = ("plain", _jitter(rng, shade(), 6))
    elif style == "gradient":
        a = shade()
        scene.background = ("gradient", a, _jitter(rng, a, 70), rng.choice((0, 90, 45, 135, 180, 270)))
    else:
        index = rng.randrange(len(world.photos))
        w, h = world.photos[index].size
        side = rng.randint(96, min(w, h))
        x, y = rng.randint(0, w - side), rng.randint(0, h - side)
        tone = rng.choice((0, 25, 230, 255))
        scene.background = ("photo", index, (x, y, x + side, y + side), tone, rng.uniform(0.5, 0.75))
    ground = draw_background(world, scene, 32)
    things = scene.items + scene.texts
    limit = 110
    while True:
        bad = None
        for thing in things:
            radius = thing.r if isinstance(thing, Item) else 20
            box = [round(v / 2) for v in (thing.x - radius, thing.y - min(radius, 10), thing.x + radius, thing.y + min(radius, 10))]
            patch = ground.crop(box).resize((2, 2), Image.BOX)
            if min(_distance(COLORS[thing.color], patch.getpixel((i, j))) for i in (0, 1) for j in (0, 1)) < limit:
                bad = thing
                break
        if bad is None:
            break
        limit -= 2
        if len(things) > MAX_GROUP or scene.more_text:  # a crowd
            bad.color = rng.choice(tuple(COLORS))
            continue
        taken = {(i.shape, i.color) for i in scene.items}
        old = bad.color
        new = rng.choice([c for c in COLORS if c != old])
        if any((i.shape, new) in taken for i in scene.items if i.color == old):
            continue
        for thing in things:
            if thing.color == old:
                thing.color = new
    for thing in things:
        thing.rgb = _jitter(rng, COLORS[thing.color])


# ---- drawing ----

def draw_background(world, scene, side):
    kind = scene.background[0]
    if kind == "plain":
        return Image.new("RGB", (side, side), scene.background[1])
    if kind == "gradient":
        _, a, b, degrees = scene.background
        ramp = Image.linear_gradient("L").resize((side, side), Image.BILINEAR)
        if degrees % 90:
            ramp = Image.blend(ramp, ramp.transpose(Image.ROTATE_90), 0.5)
        if degrees >= 180:
            ramp = ramp.transpose(Image.ROTATE_180)
        elif degrees in (90, 135):
            ramp = ramp.transpose(Image.ROTATE_90)
        return Image.composite(Image.new("RGB", (side, side), a), Image.new("RGB", (side, side), b), ramp)
    _, index, crop, tone, alpha = scene.background
    photo = world.photos[index].crop(crop).resize((side, side), Image.BILINEAR)
    return Image.blend(photo, Image.new("RGB", (side, side), (tone,) * 3), alpha)


_HEART = [(16 * math.sin(t) ** 3 / 16.5,
           -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) + 2) / 16.5)
          for t in [2 * math.pi * k / 36 for k in range(36)]]
_ARM = 0.34
_OUTLINES = {
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": [(0, -1), (0.95, 0.75), (-0.95, 0.75)],
    "star": [((1.08 if k % 2 == 0 else 0.45) * math.sin(k * math.pi / 5), -(1.08 if k % 2 == 0 else 0.45) * math.cos(k * math.pi / 5))
             for k in range(10)],
    "cross": [(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
              (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)],
    "heart": _HEART,
}


def _draw_item(draw, item, scale):
    x, y, r = item.x * scale, item.y * scale, item.r * scale
    if item.shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=item.rgb)
    elif item.shape == "ring":
        draw.ellipse((x - r, y - r, x + r, y + r), outline=item.rgb, width=max(2, round(r * 0.36)))
    else:
        c, s = math.cos(item.angle), math.sin(item.angle)
        draw.polygon([(x + r * (c * a - s * b), y + r * (s * a + c * b)) for a, b in _OUTLINES[item.shape]], fill=item.rgb)


def _text_layout(text, scale, fonts):
    """(font, left edge) of a text that fits the width."""
    size = max(6, round(text.height * scale * 1.25))
    width_limit, path = 60 * scale, fonts[text.font]
    while _font(path, size).getlength(text.value) > width_limit:
        size -= 1
    font = _font(path, size)
    return font, text.x * scale - font.getlength(text.value) / 2


def _draw_text(draw, text, scale, fonts):
    font, _ = _text_layout(text, scale, fonts)
    draw.text((text.x * scale, text.y * scale), text.value, font=font, fill=text.rgb, anchor="mm")


def draw_scene(world, scene, side):
    """The RGB picture of a scene, side x side pixels, drawn without smoothing (shrinking smooths)."""
    image = draw_background(world, scene, side)
    draw = ImageDraw.Draw(image)
    for item in scene.items:
        _draw_item(draw, item, side / 64)
    for text in scene.texts:
        _draw_text(draw, text, side / 64, world.fonts)
    return image


# ---- what is where, for the auxiliary tasks of training ----

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LABEL_SHAPES = (*SHAPES, "rectangle")  # easy-VQA has these too
LABEL_COLORS = (*COLORS, "brown", "teal")
NUM_THINGS = 1 + len(LABEL_SHAPES) + len(CHARACTERS)  # 0 is the background
NUM_COLORS = 1 + len(LABEL_COLORS)
GRID = 6  # the picture as GRID x GRID cells, one latent each
CELL_CLASSES = (1 + len(LABEL_SHAPES) + len(WORDS) + 1, NUM_COLORS, 1 + len(SIZES), 11, 11)  # thing, colour, size, tens, ones
UNKNOWN = 255


def _cell(x, y):
    return min(GRID - 1, int(y * GRID / 64)) * GRID + min(GRID - 1, int(x * GRID / 64))


def cell_labels(scene):
    """For each cell of the grid the thing whose centre lies in it. Returns uint8 [cells, 5]: thing (shapes, words, then "a number"),
    colour, size, tens, ones; 0 is none."""
    labels = np.zeros((GRID * GRID, 5), np.uint8)
    for item in scene.items:
        labels[_cell(item.x, item.y), :3] = (1 + LABEL_SHAPES.index(item.shape), 1 + LABEL_COLORS.index(item.color),
                                             1 + tuple(SIZES).index(item.size))
    for text in scene.texts:
        thing = len(WORDS) if text.is_number else WORDS.index(text.value)
        digits = [int(d) + 1 for d in text.value.rjust(2)] if len(text.value) == 2 and text.is_number else [0, int(text.value) + 1] if text.is_number else [0, 0]
        labels[_cell(text.x, text.y)] = (1 + len(LABEL_SHAPES) + thing, 1 + LABEL_COLORS.index(text.color), 0, *digits)
    return labels


def covered(image, labels, patch=8, least=5):
    """Labels of the patches of a 64x64 array of indices into `labels` (0: background): what covers most of each patch, the
    background where fewer than `least` pixels of anything are in it. Returns uint8 [patches, 2]."""
    side = 64 // patch
    pixels = image.reshape(side, patch, side, patch).transpose(0, 2, 1, 3).reshape(side * side, patch * patch)
    counts = np.stack([(pixels == i).sum(1) for i in range(len(labels))], 1)
    counts[:, 0] = least - 1
    return np.array(labels, np.uint8)[counts.argmax(1)]


def patch_labels(world, scene):
    """For each patch of the 64x64 picture what covers it: uint8 [patches, 2], things (shapes, then characters) and colours."""
    image = Image.new("L", (64, 64), 0)
    draw = ImageDraw.Draw(image)
    labels = [(0, 0)]
    for item in scene.items:
        labels.append((1 + LABEL_SHAPES.index(item.shape), 1 + LABEL_COLORS.index(item.color)))
        flat = Item(item.shape, item.color, item.size, item.x, item.y, item.r, item.angle, len(labels) - 1)
        _draw_item(draw, flat, 1.0)
    for text in scene.texts:
        font, left = _text_layout(text, 1.0, world.fonts)
        top, bottom = text.y - text.height * 0.47, text.y + text.height * 0.47
        for k, character in enumerate(text.value):
            labels.append((1 + len(LABEL_SHAPES) + CHARACTERS.index(character), 1 + LABEL_COLORS.index(text.color)))
            x0, x1 = left + font.getlength(text.value[:k]), left + font.getlength(text.value[:k + 1])
            draw.rectangle((x0, top, x1 - 1, bottom), fill=len(labels) - 1)
    return covered(np.asarray(image), labels)
