"""A matrix of numbers between 0 and 1 as a picture: a colour and a number in each cell."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from util.evaluation.charts import INK, SOFT, shortened

# Dark to light, evenly for the eye, and told apart by colour-blind readers (as matplotlib's
# viridis is, through whose colours at 0, 1/4 … it goes).
RAMP = [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)]
NOTHING = (225, 225, 225)  # of a cell without a number
SMALLEST, LARGEST, WANTED = 34, 96, 560  # pixels of a cell's side, and of the whole matrix
MARGIN, BAR = 16, 16


def colour(value: float) -> tuple[int, int, int]:
    """The colour of a number; those outside 0..1 have the nearest one's."""
    place = min(max(value, 0.0), 1.0) * (len(RAMP) - 1)
    low = min(int(place), len(RAMP) - 2)
    return tuple(
        round(a + (b - a) * (place - low)) for a, b in zip(RAMP[low], RAMP[low + 1], strict=True)
    )


def heat_map(
    title: Sequence[str], values: Sequence[Sequence[float]], rows: tuple[str, Sequence[str]],
    columns: tuple[str, Sequence[str]],
) -> Image.Image:  # fmt: skip
    """Draw a matrix, its first row below, with a colour bar.

    Args:
        title: lines above it. values: by rows; NaN: none.
        rows, columns: what an axis is, and what stands at each of its places.
    """
    small, font = (ImageFont.load_default(size=size) for size in (12, 14))
    height, width = len(values), len(values[0])
    cell = max(SMALLEST, min(LARGEST, WANTED // max(height, width)))
    left = MARGIN + 22 + max(int(small.getlength(tick)) for tick in rows[1])
    top = MARGIN + 20 * len(title) + 10
    right, bottom = left + width * cell, top + height * cell
    widest = max(font.getlength(line) for line in title)
    size = (max(right + 40 + BAR + 40, int(widest) + 2 * MARGIN), bottom + 52)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(title):
        place = (MARGIN, MARGIN + 20 * number)
        draw.text(place, line, INK if number == 0 else SOFT, font if number == 0 else small)
    for row, numbers in enumerate(values):
        y = bottom - (row + 1) * cell
        draw.text((left - 6, y + cell / 2), rows[1][row], INK, small, anchor="rm")
        for column, value in enumerate(numbers):
            _draw_cell(draw, (left + column * cell, y, cell), value, small)
    for column, tick in enumerate(columns[1]):
        draw.text((left + (column + 0.5) * cell, bottom + 6), tick, INK, small, anchor="ma")
    below = shortened(columns[0], size[0] - left - MARGIN, small)
    middle = max((left + right) / 2, left + small.getlength(below) / 2)
    draw.text((middle, bottom + 28), below, INK, small, anchor="ma")
    beside = shortened(rows[0], bottom - top + 30, small)
    end = min((top + bottom + int(small.getlength(beside))) // 2, bottom + 40)
    _draw_upwards(image, beside, (MARGIN, end), small)
    _draw_bar(draw, (right + 40, top, bottom), small)
    return image


def _draw_cell(draw: ImageDraw.ImageDraw, place: tuple[float, ...], value: float, font) -> None:
    x, y, side = place
    fill = NOTHING if math.isnan(value) else colour(value)
    draw.rectangle((x, y, x + side - 1, y + side - 1), fill)
    is_light = sum(w * c for w, c in zip((0.299, 0.587, 0.114), fill, strict=True)) > 140
    text = "-" if math.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00")
    middle = (x + side / 2, y + side / 2)
    draw.text(middle, text, INK if is_light else (255, 255, 255), font, anchor="mm")


def _draw_upwards(image: Image.Image, text: str, place: tuple[int, int], font) -> None:
    """A text turned by a quarter. Args: place: its left side, and its end below."""
    label = Image.new("RGB", (int(font.getlength(text)) + 2, 18), "white")
    ImageDraw.Draw(label).text((1, 1), text, INK, font)
    turned = label.rotate(90, expand=True)
    image.paste(turned, (place[0] - 8, place[1] - turned.height))


def _draw_bar(draw: ImageDraw.ImageDraw, place: tuple[int, int, int], font) -> None:
    x, top, bottom = place
    for y in range(top, bottom):
        draw.line((x, y, x + BAR, y), colour((bottom - 1 - y) / (bottom - 1 - top)))
    for tick in (0, 0.25, 0.5, 0.75, 1):
        y = bottom - 1 - tick * (bottom - 1 - top)
        draw.text((x + BAR + 5, y), f"{tick:g}", INK, font, anchor="lm")
