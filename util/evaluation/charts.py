"""Line charts as PNG, drawn with Pillow: curves over blocks, over labels, over severities."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 640, 420
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 60, 96  # margins, pixels
DODGE = 3  # pixels between error bars of one tick
SCALE = 2  # drawn so much larger, then made small: smooth lines
INK, SOFT, GRID = (40, 40, 40), (110, 110, 110), (222, 222, 222)
# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = [
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0),
    (120, 120, 120), (0, 0, 0),
]  # fmt: skip
DASHES = [(), (7, 4), (2, 3)]  # pixels drawn and left out; none: solid
MARKS = ["circle", "square", "triangle"]

Point = tuple[float, float]


@dataclass(frozen=True)
class Style:
    """How a curve is drawn: in the chart and in its legend."""

    colour: tuple[int, int, int]
    dashes: tuple[int, ...]
    mark: str

    @classmethod
    def of(cls, number: int) -> "Style":
        """The style of curve `number`: the first 72 differ, the first 8 in their colours."""
        turn = number // len(COLOURS)
        mark = MARKS[(turn + turn // len(DASHES)) % len(MARKS)]
        return cls(COLOURS[number % len(COLOURS)], DASHES[turn % len(DASHES)], mark)

    def draw_line(self, draw: ImageDraw.ImageDraw, points: Sequence[Point]) -> None:
        parts = dashed(points, [SCALE * d for d in self.dashes]) if self.dashes else [points]
        for part in parts:
            draw.line(part, self.colour, 2 * SCALE, joint="curve")

    def draw_mark(self, draw: ImageDraw.ImageDraw, place: Point) -> None:
        x, y = place
        if self.mark == "circle":
            r = 3 * SCALE
            draw.ellipse([x - r, y - r, x + r, y + r], self.colour)
        else:
            sides = {"square": 4, "triangle": 3}[self.mark]
            draw.regular_polygon((x, y, 4.5 * SCALE), sides, fill=self.colour)


def dashed(points: Sequence[Point], dashes: Sequence[float]) -> Iterator[list[Point]]:
    """The parts of a line through points that are drawn: a stretch of the first length is drawn,
    one of the second left out, and so on; all in pixels."""
    left, is_drawn, part = dashes[0], True, list(points[:1])
    for start, end in pairwise(points):
        length, done = math.dist(start, end), 0.0
        while length - done > left:
            done += left
            place = tuple(a + (b - a) * done / length for a, b in zip(start, end, strict=True))
            if is_drawn:
                yield [*part, place]
            is_drawn, part = not is_drawn, [place]
            left = dashes[0] if is_drawn else dashes[1]
        left -= length - done
        part.append(end)
    if is_drawn:
        yield part


def line_chart(
    title: str, x_label: str, ticks: Sequence[str], curves: Mapping[str, Sequence[float | None]],
    y_label: str = "accuracy, %", spreads: Mapping[str, Sequence[float]] | None = None,
) -> Image.Image:  # fmt: skip
    """Draw a chart with a curve for each name, over equally spaced ticks.

    Args:
        ticks: what stands below each place.
        curves: values by name, one for each tick; None: none there.
        spreads: half the height of an error bar at each tick, by name.
    """
    font, small = (ImageFont.load_default(size=size * SCALE) for size in (15, 12))
    legend = _legend(small, list(curves))
    full = max([HEIGHT, *(y // SCALE + 20 for _, y in legend)])  # the picture's height, pixels
    image = Image.new("RGB", (WIDTH * SCALE, full * SCALE), "white")
    draw = ImageDraw.Draw(image)
    bars = _error_bars(curves, spreads or {}, 100.0 if "%" in y_label else math.inf)
    known = [v for values in curves.values() for v in values if v is not None]
    low, high, steps = _range(known + [end for ends in bars.values() for end in ends])

    def place(index: int, value: float) -> tuple[float, float]:
        across = index / max(len(ticks) - 1, 1)
        up = (value - low) / (high - low)
        x = LEFT + across * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)
        return SCALE * x, SCALE * y

    bars = {(name, i): [place(i, end) for end in ends] for (name, i), ends in bars.items()}
    draw.text((SCALE * LEFT, SCALE * 12), title, INK, font)
    draw.text((SCALE * LEFT, SCALE * 33), y_label, SOFT, small)
    for value in steps:
        (x, y), (end, _) = place(0, value), place(len(ticks) - 1, value)
        draw.line((x, y, end, y), GRID, SCALE)
        draw.text((x - 8 * SCALE, y), f"{value:g}", INK, small, anchor="rm")
    for index, tick in enumerate(ticks):
        x, y = place(index, low)
        draw.text((x, y + 6 * SCALE), tick, INK, small, anchor="ma")
    middle = SCALE * (LEFT + WIDTH - RIGHT) / 2
    draw.text((middle, SCALE * (HEIGHT - BOTTOM + 24)), x_label, INK, small, anchor="ma")
    for number, (name, values) in enumerate(curves.items()):
        style = Style.of(number)
        points = [place(i, v) for i, v in enumerate(values) if v is not None]
        style.draw_line(draw, points)
        for point in points:
            style.draw_mark(draw, point)
        aside = DODGE * SCALE * (number - (len(curves) - 1) / 2)  # bars side by side
        for ends in (bars[name, i] for i in range(len(ticks)) if (name, i) in bars):
            draw.line([(x + aside, y) for x, y in ends], style.colour, SCALE)
        _draw_name(draw, small, style, legend[number], name)
    return image.resize((WIDTH, full), Image.LANCZOS)


def _error_bars(
    curves: Mapping[str, Sequence[float | None]], spreads: Mapping[str, Sequence[float]],
    most: float,
) -> dict[tuple[str, int], tuple[float, float]]:  # fmt: skip
    """The ends of a bar by curve and tick, none above `most`, which no value can exceed."""
    return {
        (name, index): (value - half, min(value + half, most))
        for name, halves in spreads.items()
        for index, (value, half) in enumerate(zip(curves[name], halves, strict=True))
        if value is not None and half
    }


def shortened(text: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    """A text that is no wider than so many pixels: without a part of its middle, if need be."""
    kept, short = len(text), text
    while font.getlength(short) > width and kept > 2:
        kept -= 1
        short = f"{text[: kept // 2]}...{text[len(text) - (kept - kept // 2) :]}"
    return short


def _legend(font, names: Sequence[str]) -> list[tuple[int, int]]:
    """Where the names stand below the chart, each with the sample of its line before it."""
    x, y, places = SCALE * LEFT, SCALE * (HEIGHT - 46), []
    for name in names:
        width = int(34 * SCALE + font.getlength(name) + 18 * SCALE)
        if x + width > SCALE * (WIDTH - RIGHT) and x > SCALE * LEFT:
            x, y = SCALE * LEFT, y + 17 * SCALE
        places.append((x, y))
        x += width
    return places


def _draw_name(
    draw: ImageDraw.ImageDraw, font, style: Style, place: tuple[int, int], name: str
) -> None:
    (x, y), middle = place, place[1] + 7 * SCALE
    style.draw_line(draw, [(x, middle), (x + 28 * SCALE, middle)])
    style.draw_mark(draw, (x + 14 * SCALE, middle))
    draw.text((x + 34 * SCALE, y), name, INK, font)


def _range(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Round numbers around the values, and the grid's lines between."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    wide = max(high - low, 1e-3)
    step = next(s * 10.0**e for e in range(-4, 5) for s in (1, 2, 5) if wide / (s * 10.0**e) <= 6)
    first, last = int(low // step), int(-(-high // step))
    last = max(last, first + 1)
    return first * step, last * step, [round(i * step, 6) for i in range(first, last + 1)]
