"""Sentences about a scene: captions, questions and their one right answer.

In:  a `Scene`.   Out: `(category, question, answer)` triples.
Owns: the wording, and the margins within which a question is unambiguous (an ambiguous question is never asked).
"""

import random

from scenes import COLORS, SHAPES, Scene

NUMBERS = ("no", "one", "two", "three", "four", "five")
CAPTION_PROMPTS = ("Describe the picture.", "Describe the image.", "Describe this picture.", "Describe this image.",
                   "What is in this picture?", "What is in the picture?", "What is in this image?", "What is in the image?",
                   "What is this?", "What do you see?", "What does the picture show?", "Write a caption.",
                   "Caption this image.", "Write a short caption for this picture.")
LEFT_MARGIN = 8.0  # two things closer than this along an axis are not compared along it
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


def plural(shape):
    return "crosses" if shape == "cross" else shape + "s"


def article(words):
    return ("an " if words[0] in "aeiou" else "a ") + words


def full(item):
    return f"{item.size} {item.color} {item.shape}"


def _joined(parts):
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _relation(a, b):
    """The words between a and b when a is named first; the axis with the larger distance decides."""
    dx, dy = b.x - a.x, b.y - a.y
    if abs(dx) > abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def caption(scene: Scene):
    """One sentence that names everything. Pairs: the left or upper thing first; three: from left to right."""
    items = scene.items
    if scene.text:
        head = f"The {'number' if scene.text.is_number else 'word'} {scene.text.value} in {scene.text.color}"
        if items:
            head += f" {'above' if scene.text.y < items[0].y else 'below'} {article(full(items[0]))}"
        return head + "."
    if not items:
        return "An empty picture."
    kinds = {}
    for item in items:
        kinds.setdefault((item.size, item.color, item.shape), []).append(item)
    if len(kinds) < len(items):
        parts = [f"{NUMBERS[len(v)]} {k[0]} {k[1]} {k[2] if len(v) == 1 else plural(k[2])}"
                 for k, v in sorted(kinds.items(), key=lambda kv: (-len(kv[1]), kv[0][1], kv[0][2]))]
        text = _joined(parts)
    elif len(items) == 1:
        text = article(full(items[0]))
    elif len(items) == 2:
        a, b = items
        if _relation(a, b) in ("right of", "below"):
            a, b = b, a
        text = f"{article(full(a))} {_relation(a, b)} {article(full(b))}"
    else:
        ordered = sorted(items, key=lambda i: i.x)
        text = f"{NUMBERS[len(items)]} shapes: {_joined([article(full(i)) for i in ordered])}"
    return text[0].upper() + text[1:] + "."


def _names(scene, item):
    """Ways to name this item that fit no other item."""
    out = []
    others = [i for i in scene.items if i is not item]
    if all(o.shape != item.shape for o in others):
        out.append(item.shape)
    if all((o.shape, o.color) != (item.shape, item.color) for o in others):
        out += [f"{item.color} {item.shape}"] * 2
    if all(o.color != item.color for o in others):
        out.append(f"{item.color} shape")
    if all((o.shape, o.size) != (item.shape, item.size) for o in others):
        out.append(f"{item.size} {item.shape}")
    return out


def _color_word(rng):
    return rng.choice(("color", "colour"))


def color_question(rng, scene):
    if scene.text and (not scene.items or rng.random() < 0.5):
        noun = rng.choice(("text", "number" if scene.text.is_number else "word"))
        q = rng.choice((f"What {_color_word(rng)} is the {noun}?", f"What is the {_color_word(rng)} of the {noun}?"))
        return "color", q, scene.text.color
    candidates = []
    for item in scene.items:
        same = [i for i in scene.items if i.shape == item.shape]
        if len({i.color for i in same}) == 1:
            candidates.append((f"{item.shape}" if len(same) == 1 else plural(item.shape), item.color, len(same)))
        sized = [i for i in same if i.size == item.size]
        if len(same) > 1 and len(sized) == 1:
            candidates.append((f"{item.size} {item.shape}", item.color, 1))
    if not candidates:
        return None
    noun, color, count = rng.choice(candidates)
    if len(scene.items) == 1 and rng.random() < 0.3:
        noun = rng.choice(("shape", "object"))
    verb = "is" if count == 1 else "are"
    q = rng.choice((f"What {_color_word(rng)} {verb} the {noun}?", f"What is the {_color_word(rng)} of the {noun}?"))
    return "color", q, color


def shape_question(rng, scene):
    candidates = [i for i in scene.items if len({o.shape for o in scene.items if o.color == i.color}) == 1]
    if not candidates:
        return None
    item = rng.choice(candidates)
    if len({i.shape for i in scene.items}) == 1 and rng.random() < 0.3:
        return "shape", rng.choice(("What shape is this?", "What shape is it?", "Which shape is in the picture?")), item.shape
    q = rng.choice((f"What shape is the {item.color} object?", f"What shape is {item.color}?", f"What is the {item.color} shape?",
                    f"Which shape is {item.color}?"))
    return "shape", q, item.shape


def size_question(rng, scene):
    candidates = [(i, [n for n in _names(scene, i) if i.size not in n]) for i in scene.items]
    candidates = [(i, n) for i, n in candidates if n]
    if not candidates:
        return None
    item, names = rng.choice(candidates)
    name = rng.choice(names)
    return "size", rng.choice((f"What size is the {name}?", f"Is the {name} small or big?", f"How big is the {name}?")), item.size


def count_question(rng, scene):
    draw = rng.random()
    where = rng.choice(("are there", "are in the picture", "can you see", "do you see", "are there in the image"))
    if draw < 0.4:
        return "count", f"How many {rng.choice(('shapes', 'objects'))} {where}?", str(len(scene.items))
    present = bool(scene.items) and rng.random() < 0.8
    item = rng.choice(scene.items) if present else None
    shape = item.shape if item else rng.choice(SHAPES)
    color = item.color if item else rng.choice(tuple(COLORS))
    if draw < 0.65:
        return "count", f"How many {plural(shape)} {where}?", str(sum(i.shape == shape for i in scene.items))
    if draw < 0.85:
        return ("count", f"How many {color} {rng.choice(('shapes', 'objects'))} {where}?",
                str(sum(i.color == color for i in scene.items)))
    return ("count", f"How many {color} {plural(shape)} {where}?",
            str(sum(i.color == color and i.shape == shape for i in scene.items)))


def exists_question(rng, scene):
    yes = rng.random() < 0.5
    draw = rng.random()
    items = scene.items
    if yes and not items:
        return None
    item = rng.choice(items) if items else None
    shape, color = (item.shape, item.color) if item else (rng.choice(SHAPES), rng.choice(tuple(COLORS)))
    if not yes:  # hard negatives: one half of the description is right
        if draw < 0.35 or rng.random() < 0.5:
            shape = rng.choice(SHAPES)
        if 0.35 <= draw < 0.6 or rng.random() < 0.5:
            color = rng.choice(tuple(COLORS))
    if draw < 0.35:
        noun, true = article(shape), any(i.shape == shape for i in items)
    elif draw < 0.6:
        noun, true = article(f"{color} {rng.choice(('shape', 'object'))}"), any(i.color == color for i in items)
    else:
        noun, true = article(f"{color} {shape}"), any((i.color, i.shape) == (color, shape) for i in items)
    if true != yes:
        return None
    q = rng.choice((f"Is there {noun}?", f"Is there {noun} in the picture?", f"Is there {noun} in the image?", f"Do you see {noun}?",
                    f"Can you see {noun}?"))
    return "exists", q, "yes" if true else "no"


def relation_question(rng, scene, yes_no=0.3, skipped=0.7):
    """yes_no: share of questions that are answered by yes or no; skipped: share of the others that are given up where
    nothing is there."""
    things = scene.items
    if len(things) < 2:
        return None
    for _ in range(6):
        anchor = rng.choice(things)
        names = _names(scene, anchor)
        if not names:
            continue
        words, (axis, sign) = rng.choice(tuple(RELATIONS.items()))
        along = lambda i: sign * ((i.x, i.y)[axis] - (anchor.x, anchor.y)[axis])
        others = [i for i in things if i is not anchor]
        if rng.random() < yes_no:
            other = rng.choice(others)
            other_names = _names(scene, other)
            if not other_names or abs(along(other)) < LEFT_MARGIN:
                continue
            return ("relation", f"Is the {rng.choice(other_names)} {words} the {rng.choice(names)}?", "yes" if along(other) > 0 else "no")
        if any(abs(along(i)) < LEFT_MARGIN for i in others):
            continue
        there = [i for i in others if along(i) > 0]
        if len(there) > 1:
            continue
        if not there and rng.random() < skipped:
            continue
        answer = article(f"{there[0].color} {there[0].shape}") if there else "nothing"
        return "relation", rng.choice((f"What is {words} the {rng.choice(names)}?", f"Which shape is {words} the {rng.choice(names)}?")), answer
    return None


def position_question(rng, scene):
    candidates = [(i, _names(scene, i)) for i in scene.items]
    candidates = [(i, n) for i, n in candidates if n]
    if not candidates:
        return None
    item, names = rng.choice(candidates)
    cell = []
    for v in (item.y, item.x):
        k = next((k for k, (low, high) in enumerate(((0, 22), (26, 38), (42, 64))) if low <= v < high), None)
        if k is None:
            return None
        cell.append(k)
    row, column = ("top", "", "bottom")[cell[0]], ("left", "", "right")[cell[1]]
    return "position", f"Where is the {rng.choice(names)}?", f"{row} {column}".strip() or "center"


def reading_question(rng, scene):
    if not scene.text:
        return None
    noun = "number" if scene.text.is_number else "word"
    q = rng.choice(("What does it say?", "What is written here?", "What does the text say?", "Read the text.", "What is the text?",
                    f"What {noun} is this?", f"What {noun} is it?", f"Which {noun} is in the picture?", f"What is the {noun}?",
                    f"Read the {noun}."))
    return "reading", q, scene.text.value


def comparison_question(rng, scene):
    """Relations that training needs more of than people ask: of two named things, and of things that are not there."""
    return relation_question(rng, scene, 0.6, 0.2)


ASKERS = {  # and how often, in training
    "color": (color_question, 3), "shape": (shape_question, 2), "size": (size_question, 1), "count": (count_question, 5),
    "exists": (exists_question, 2), "relation": (relation_question, 4), "comparison": (comparison_question, 8),
    "position": (position_question, 1), "reading": (reading_question, 5)}


def _casual(rng, question):
    """Now and then as people type: lower case, without the final mark."""
    if rng.random() < 0.15:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.08:
        question = question[:-1]
    return question


def ask(rng: random.Random, scene, category=None):
    """One question about the scene, or None when this category has no unambiguous one."""
    if category is None:
        usable = ["reading", "color", "exists", "count"] if scene.text else [k for k in ASKERS if k != "reading"]
        if len(scene.items) < 2:
            usable = [k for k in usable if k not in ("relation", "comparison")]
        category = rng.choices(usable, [ASKERS[k][1] for k in usable])[0]
    return ASKERS[category][0](rng, scene)


def conversation(rng, scene, turns):
    """The caption turn and up to `turns` different questions, as (question, answer) pairs; the caption comes first."""
    out = {_casual(rng, rng.choice(CAPTION_PROMPTS)): caption(scene)}
    for _ in range(turns * 3):
        if len(out) > turns:
            break
        made = ask(rng, scene)
        if made:
            out.setdefault(_casual(rng, made[1]), made[2])
    return list(out.items())
