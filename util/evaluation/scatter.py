"""A picture of points in the plane, in the colours of their classes."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from util.evaluation.charts import COLOURS, INK, SCALE, SOFT

SIDE, LEGEND, MARGIN, RADIUS = 420, 130, 34, 3  # pixels
MANY = 20  # classes that a legend can name


def plane(features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, D] on their first two principal components, [n, 2], and the share of the
    variance that each has, [2]. The sign of a component is that of its largest weight."""
    centred = features.double().cpu() - features.double().cpu().mean(0)
    variances, vectors = torch.linalg.eigh(centred.T @ centred)  # the largest last
    chosen = vectors[:, -2:].flip(1)
    chosen = chosen * chosen.gather(0, chosen.abs().argmax(0, keepdim=True)).sign()
    shares = variances[-2:].flip(0) / variances.sum().clamp_min(1e-12)
    return (centred @ chosen).numpy(), shares.numpy()


def scatter(
    points: np.ndarray, labels: np.ndarray, names: Sequence[str], title: str
) -> Image.Image:
    """Points [n, 2] by their labels [n], which count `names`; below 0: of no class.

    Of more than MANY classes, and where there is none, the points have one colour.
    """
    is_named = 0 < len(names) <= MANY and bool((labels >= 0).any())
    width = SIDE + LEGEND * is_named
    image = Image.new("RGB", (width * SCALE, SIDE * SCALE), "white")
    draw = ImageDraw.Draw(image)
    small = ImageFont.load_default(size=12 * SCALE)
    draw.text((MARGIN * SCALE, 8 * SCALE), title, INK, small)
    low, high = points.min(0), points.max(0)
    middle, half = (low + high) / 2, max((high - low).max() / 2, 1e-12)  # one scale for both
    for point, label in zip(points, labels, strict=True):
        across, up = (point - middle) / half
        place = (SIDE / 2 + across * (SIDE / 2 - MARGIN), SIDE / 2 - up * (SIDE / 2 - MARGIN))
        _mark(draw, place, int(label) if is_named else 0)
    for number, name in enumerate(names if is_named else ()):
        y = MARGIN + 18 * number
        _mark(draw, (SIDE, y), number)
        draw.text(((SIDE + 10) * SCALE, (y - 7) * SCALE), name[:16], INK, small)
    return image.resize((width, SIDE), Image.Resampling.LANCZOS)


def _mark(draw: ImageDraw.ImageDraw, place: tuple[float, float], number: int) -> None:
    """A point: the first 8 classes differ in colour, further ones are rings and squares."""
    x, y, r = place[0] * SCALE, place[1] * SCALE, RADIUS * SCALE
    colour = COLOURS[number % len(COLOURS)] if number >= 0 else SOFT
    box = [x - r, y - r, x + r, y + r]
    turn = number // len(COLOURS)
    if turn == 1:
        draw.ellipse(box, outline=colour, width=SCALE)
    elif turn > 1:
        draw.rectangle(box, colour)
    else:
        draw.ellipse(box, colour)
