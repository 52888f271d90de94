"""Pictures of detections: boxes, masks, names and scores on the image."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from util.data.images import to_float
from util.evaluation.charts import COLOURS
from util.evaluation.visualize import to_image

MIN_SIDE = 384  # pixels; smaller images are drawn larger, so that names can be read
OPACITY = 0.45  # of masks


def draw_detections(
    image: Tensor, found: Mapping[str, Tensor], names: Sequence[str], min_score: float = 0.5
) -> Image.Image:
    """An image with what was found in it; each class has a colour.

    Args:
        image: [C, H, W], uint8 or in 0..1. found: `boxes` [n, 4], `masks` [n, H, W] boolean,
            `labels` [n] from 1 on, and `scores` [n], or none of those for the truth.
        names: of the labels. min_score: what is less sure is not drawn.
    """
    picture = to_image(to_float(image))
    scale = max(1, -(-MIN_SIDE // max(picture.size)))
    scores = found.get("scores")
    shown = [
        number
        for number in range(len(found["labels"]))
        if scores is None or float(scores[number]) >= min_score
    ]
    pixels = np.asarray(picture).astype(np.float32)
    for number in shown:
        mask = found["masks"][number].numpy().astype(bool)
        colour = np.array(_colour(found, number), dtype=np.float32)
        pixels[mask] += OPACITY * (colour - pixels[mask])
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    picture = picture.resize([side * scale for side in picture.size], Image.NEAREST)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=12)
    for number in shown:
        box = [float(x) * scale for x in found["boxes"][number]]
        colour, text = _colour(found, number), names[int(found["labels"][number]) - 1]
        if scores is not None:
            text += f" {float(scores[number]):.2f}"
        draw.rectangle(box, outline=colour, width=2)
        left, top, right, bottom = draw.textbbox((box[0] + 2, max(box[1] - 15, 0)), text, font)
        draw.rectangle((left - 2, top - 1, right + 2, bottom + 1), fill=colour)
        draw.text((left, max(box[1] - 15, 0)), text, "white", font)
    return picture


def _colour(found: Mapping[str, Tensor], number: int) -> tuple[int, int, int]:
    return COLOURS[(int(found["labels"][number]) - 1) % len(COLOURS)]
