"""Line charts as PNG, drawn with Pillow: curves over blocks, over labels, over severities."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 640, 420
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 60, 96  # margins, pixels
SCALE = 2  # drawn so much larger, then made small: smooth lines
INK, SOFT, GRID = (40, 40, 40), (110, 110, 110), (222, 222, 222)
# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = [
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0),
    (120, 120, 120), (0, 0, 0),
]  # fmt: skip


def line_chart(
    title: str, x_label: str, ticks: Sequence[str], curves: Mapping[str, Sequence[float | None]],
    y_label: str = "accuracy, %", spreads: Mapping[str, Sequence[float]] | None = None,
) -> Image.Image:  # fmt: skip
    """One curve each, over equally spaced ticks.

    Args:
        ticks: what stands below each place. curves: values by name, a tick each; None: none there.
        spreads: half the height of an error bar at each tick, by name.
    """
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "white")
    draw = ImageDraw.Draw(image)
    font, small = (ImageFont.load_default(size=size * SCALE) for size in (15, 12))
    low, high, steps = _range([v for values in curves.values() for v in values if v is not None])

    def place(index: int, value: float) -> tuple[float, float]:
        across = index / max(len(ticks) - 1, 1)
        up = (value - low) / (high - low)
        return (
            SCALE * (LEFT + across * (WIDTH - LEFT - RIGHT)),
            SCALE * (HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)),
        )

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
        colour = COLOURS[number % len(COLOURS)]
        points = [place(i, v) for i, v in enumerate(values) if v is not None]
        draw.line(points, colour, 2 * SCALE, joint="curve")
        for x, y in points:
            draw.ellipse([x - 3 * SCALE, y - 3 * SCALE, x + 3 * SCALE, y + 3 * SCALE], colour)
        for index, half in enumerate((spreads or {}).get(name, ())):
            if values[index] is not None:
                ends = [place(index, values[index] + sign * half) for sign in (-1, 1)]
                draw.line(ends, colour, SCALE)
    _legend(draw, small, list(curves))
    return image.resize((WIDTH, HEIGHT), Image.LANCZOS)


def _legend(draw: ImageDraw.ImageDraw, font, names: Sequence[str]) -> None:
    x, y = SCALE * LEFT, SCALE * (HEIGHT - 46)
    for number, name in enumerate(names):
        width = 26 * SCALE + font.getlength(name) + 18 * SCALE
        if x + width > SCALE * (WIDTH - RIGHT) and x > SCALE * LEFT:
            x, y = SCALE * LEFT, y + 17 * SCALE
        draw.line((x, y + 7 * SCALE, x + 20 * SCALE, y + 7 * SCALE), COLOURS[number % 8], 3 * SCALE)
        draw.text((x + 26 * SCALE, y), name, INK, font)
        x += width


def _range(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Round numbers around the values, and the grid's lines between."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    wide = max(high - low, 1e-3)
    step = next(s * 10.0**e for e in range(-4, 5) for s in (1, 2, 5) if wide / (s * 10.0**e) <= 6)
    first, last = int(low // step), int(-(-high // step))
    last = max(last, first + 1)
    return first * step, last * step, [round(i * step, 6) for i in range(first, last + 1)]
