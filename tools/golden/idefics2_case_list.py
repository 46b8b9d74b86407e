"""The requests that Idefics2 is tested with, written as the command line takes them.

In: nothing. Out: CASES, a list of dicts: name; prompt or messages; raw, system, images (files under tests/data), model (folder under
tests/data, default idefics2-tiny); keep = tensors worth storing in full. Owns: the choice of requests. Not here: the answers.
"""

LONG = (
    "The train arrives at the station every fifteen minutes and passengers wait quietly behind the yellow line. "
    "Between mountains and ocean lies a narrow valley where small houses, farms and gardens follow the river. "
    "A doctor, a teacher, a farmer, a painter and an engineer discuss the weather, music, history and science. "
    "Which of these sentences describes the picture best, and why?"
)

ACTIVATIONS_CASE = "odd_sides"

CASES = [
    {"name": "landscape_jpeg", "prompt": "What is in this picture?", "images": ["photos/coffee.jpg"]},
    {"name": "portrait_jpeg", "prompt": "Describe the image in detail, please.", "images": ["photos/rocket.jpg"]},
    {"name": "portrait_png", "prompt": "Which colour is the flower?", "images": ["photos/flower.png"]},
    {"name": "tiny", "prompt": "What is this?", "images": ["photos/tiny-5x3.png"], "keep": ["pixels", "vision"]},
    {"name": "very_wide", "prompt": "How many roofs are there?", "images": ["photos/wide.png"], "keep": ["vision"]},
    {"name": "greyscale", "prompt": "Who is in it?", "images": ["photos/camera-grey.png"], "keep": ["vision"]},
    {"name": "rgba", "prompt": "Is there an animal in the photograph?", "images": ["photos/chelsea-rgba.png"]},
    {"name": "palette", "prompt": "Is there an animal in the photograph?", "images": ["photos/chelsea-palette.png"]},
    {"name": "exif_3", "prompt": "Where is the cup?", "images": ["photos/coffee-exif3.jpg"]},
    {"name": "exif_6", "prompt": "Describe the cat.", "images": ["photos/chelsea-exif6.jpg"]},
    {"name": "exif_8", "prompt": "What can you see?", "images": ["photos/rocket-exif8.jpg"]},
    {"name": "jpeg_444", "prompt": "What can you see?", "images": ["photos/coffee-444.jpg"]},
    {"name": "webp", "prompt": "What is in this picture?", "images": ["photos/flower.webp"]},
    {"name": "odd_sides", "prompt": "Explain.", "images": ["photos/chelsea-eye.png"], "keep": ["vision"]},
    {"name": "nosplit_landscape", "model": "idefics2-tiny-nosplit", "prompt": "What is in this picture?", "images": ["photos/chelsea-palette.png"], "keep": ["pixels", "vision"]},
    {"name": "nosplit_odd_sides", "model": "idefics2-tiny-nosplit", "prompt": "Explain.", "images": ["photos/chelsea-eye.png"], "keep": ["pixels", "vision"]},
    {
        "name": "two_images_multi_turn",
        "messages": [
            {"role": "user", "content": [{"type": "image", "path": "photos/flower.png"}, {"type": "text", "text": "What is this?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "An orange dahlia in full bloom."}]},
            {"role": "user", "content": [{"type": "text", "text": "And this?"}, {"type": "image", "path": "photos/chelsea-rgba.png"}, {"type": "text", "text": "Compare both, please."}]},
        ],
    },
    {
        "name": "two_images_side_by_side",
        "prompt": "Compare the first image with the second image.",
        "images": ["photos/camera-grey.png", "photos/wide.png"],
    },
    {
        "name": "messages_take_images",
        "messages": [
            {"role": "system", "content": "Answer with a single word."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which animal?"}]},
            {"role": "assistant", "content": "Cat."},
            {"role": "user", "content": "Which colour are its eyes?"},
        ],
        "images": ["photos/chelsea-palette.png"],
    },
    {"name": "nosplit_two_images", "model": "idefics2-tiny-nosplit", "system": "You are a helpful assistant.", "prompt": "Compare them.", "images": ["photos/tiny-5x3.png", "photos/flower.webp"]},
    {"name": "text_only", "prompt": "What can you see?"},
    {"name": "text_only_unicode", "system": "You are a helpful assistant.", "prompt": "Schöne Straße, où est 中文 😀?\n\n  Two  spaces."},
    {"name": "long_text", "prompt": LONG + " " + LONG},
    {"name": "long_with_image", "prompt": LONG, "images": ["photos/flower.png"]},
    {"name": "literal_marker", "prompt": "What does <image> mean in this text?", "images": ["photos/chelsea-eye.png"]},
    {"name": "literal_marker_text_only", "prompt": "Write <image> and <fake_token_around_image> twice."},
    {"name": "raw_caption", "raw": True, "prompt": "<image>A picture of", "images": ["photos/chelsea-palette.png"]},
    {"name": "raw_interleaved", "raw": True, "prompt": "First: <image> a flower. Second:<image><image>", "images": ["photos/flower.png", "photos/tiny-5x3.png", "photos/camera-grey.png"]},
    {"name": "raw_text", "raw": True, "prompt": "In the morning the street was"},
]
