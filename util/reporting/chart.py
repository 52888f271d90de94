"""Charts as SVG: curves over steps, and intervals; every number of theirs can be read by pointing.

A chart scales with its column and keeps its letters legible from 320 pixels on. What is drawn lies
inside the axes: places are clipped to them by `Axis.place`.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape

from util.reporting.columns import Point
from util.reporting.ticks import Axis, shown, time_axis, value_axis

WIDTH, HEIGHT = 420, 242
TOP, RIGHT, BOTTOM = 12, 22, 43  # margins; the left one fits the ticks
LETTER = 6.7  # pixels of a digit at most, in the ticks' size
NUM_COLOURS, DASHES = 8, ("", "7 3", "2 3", "9 3 2 3")

Curves = Mapping[str, Sequence[Point]]


def line_chart(
    title: str, curves: Curves, unit: str = "", meaning: str = "", x_label: str = "step",
    may_be_log: bool = False, numbers: Sequence[int] = (),
) -> str:  # fmt: skip
    """A chart of one or several curves, as an HTML figure.

    Args:
        curves: by their names, which stand below where they are several.
        meaning: what is drawn, for who points at the title.
        numbers: of each curve's colour and dashes (default: 0, 1, …).
    """
    has_legend = len(curves) > 1 or bool(numbers)
    numbers = list(numbers) or list(range(len(curves)))
    points = [point for curve in curves.values() for point in curve]
    x_axis = time_axis([point.x for point in points])
    ends = [v for p in points for v in (p.low, p.high) if v is not None]
    y_axis = value_axis(ends, may_be_log)
    box = _Box(x_axis, y_axis)
    parts = [box.grid(x_label), *map(box.curve, curves.values(), numbers)]
    parts.append(f'<line class="at" x1="0" x2="0" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    aloud = f"{title}: {_summary(curves)}"
    legend = _legend(list(curves), numbers) if has_legend else ""
    scale = " (log scale)" if y_axis.is_log else ""
    about = ", ".join(part for part in (unit + scale,) if part.strip())
    return (
        f'<figure class="chart"><figcaption title="{escape(meaning)}">{escape(title)} '
        f'<span class="unit">{escape(about)}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(aloud)}">'
        f"{''.join(parts)}</svg>{_values(curves, box, x_label)}{legend}</figure>"
    )


class _Box:
    """Where things stand in a chart's picture."""

    def __init__(self, x_axis: Axis, y_axis: Axis):
        self.x_axis, self.y_axis = x_axis, y_axis
        self.y_labels = y_axis.labels()
        self.left = round(14 + LETTER * max(map(len, self.y_labels)))

    def x(self, value: float) -> float:
        return self.left + self.x_axis.place(value) * (WIDTH - RIGHT - self.left)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - self.y_axis.place(value) * (HEIGHT - TOP - BOTTOM)

    def grid(self, x_label: str) -> str:
        """The frame, the grid's lines, and what stands beside them."""
        end, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
        parts = [
            f'<rect class="box" x="{self.left}" y="{TOP}" width="{end - self.left}" '
            f'height="{floor - TOP}"/>'
        ]
        for tick, label in zip(self.y_axis.ticks, self.y_labels, strict=True):
            y = self.y(tick)
            ends = f'x1="{self.left}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"'
            parts.append(f'<line class="grid" {ends}/>')
            parts.append(f'<text x="{self.left - 7}" y="{y + 4:.1f}" class="end">{label}</text>')
        for tick, label in zip(self.x_axis.ticks, self.x_axis.labels(), strict=True):
            x = self.x(tick)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{floor}"/>')
            parts.append(f'<text x="{x:.1f}" y="{floor + 20}" class="mid">{label}</text>')
        middle = (self.left + end) / 2
        label = f'<text x="{middle:.0f}" y="{HEIGHT - 7}" class="mid soft">{escape(x_label)}</text>'
        return "".join([*parts, label])

    def curve(self, points: Sequence[Point], number: int) -> str:
        """A line, broken where nothing is finite, in a band where a point stands for several."""
        runs: list[list[Point]] = [[]]
        for point in points:
            if point.mean is None:
                runs.append([])
            else:
                runs[-1].append(point)
        return "".join(self._run(run, number) for run in runs if run)

    def _run(self, run: Sequence[Point], number: int) -> str:
        look = f'class="{look_of(number)}"'
        if len(run) == 1:
            one = run[0]
            return f'<circle {look} cx="{self.x(one.x):.1f}" cy="{self.y(one.mean):.1f}" r="3"/>'
        line = " ".join(f"{self.x(p.x):.1f},{self.y(p.mean):.1f}" for p in run)
        dashes = DASHES[number // NUM_COLOURS % len(DASHES)]
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        band = ""
        if any(p.low < p.high for p in run):
            upper = [f"{self.x(p.x):.1f},{self.y(p.high):.1f}" for p in run]
            lower = [f"{self.x(p.x):.1f},{self.y(p.low):.1f}" for p in reversed(run)]
            band = f'<polygon {look} points="{" ".join([*upper, *lower])}"/>'
        return f'{band}<polyline {look} points="{line}"{dashed}/>'


def look_of(number: int) -> str:
    """The class that gives curve `number` its colour."""
    return f"c{number % NUM_COLOURS}"


def _legend(names: Sequence[str], numbers: Sequence[int]) -> str:
    return f'<ul class="legend">{"".join(map(legend_item, names, numbers))}</ul>'


def legend_item(name: str, number: int) -> str:
    """A name beside a sample of its line, for a list."""
    dashes = DASHES[number // NUM_COLOURS % len(DASHES)]
    return (
        f'<li><svg viewBox="0 0 26 8" class="sample"><line class="{look_of(number)}" x1="1" '
        f'x2="25" y1="4" y2="4" stroke-dasharray="{dashes}"/></svg>{escape(name)}</li>'
    )


def _summary(curves: Curves) -> str:
    """What a screen reader says: where each curve begins and ends."""
    said = []
    for name, points in curves.items():
        means = [point.mean for point in points if point.mean is not None]
        if means:
            said.append(f"{name} from {shown(means[0])} to {shown(means[-1])}")
    return "; ".join(said)


def _values(curves: Curves, box: _Box, x_label: str) -> str:
    """The numbers that pointing shows, as JSON beside the picture."""
    axis, rows = box.x_axis, []
    for name, points in curves.items():
        kept = [p for p in points if p.mean is not None]
        columns = [[_short(p.x) for p in kept], [_short(p.mean) for p in kept]]
        if any(p.low < p.high for p in kept):
            columns += [[_short(p.low) for p in kept], [_short(p.high) for p in kept]]
        rows.append([name, *columns])
    value = {
        "x": x_label, "low": axis.low, "high": axis.high, "left": box.left,
        "right": WIDTH - RIGHT, "width": WIDTH, "curves": rows,
    }  # fmt: skip
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    return f'<script type="application/json">{text}</script>'


def _short(value: float) -> float | int:
    """A number with five digits, and whole ones as such: shorter in JSON."""
    if abs(value) < 1e15 and value == int(value):
        return int(value)
    return float(f"{value:.5g}")


# ---------------------------------------------------------------------------------- intervals

BAR_WIDTH, BAR_HEIGHT, EDGE = 300, 26, 10


def interval_rows(
    rows: Sequence[tuple[str, float, float, float, str]], unit: str = "points"
) -> str:
    """A table of differences with their intervals drawn on one axis, zero being marked.

    An end that is infinite, as with one seed, is drawn as a line to the axis's end and said.

    Args:
        rows: name, difference, low, high and what is said of it.
    """
    finite = [v for _, *three, _ in rows for v in three if abs(v) != float("inf")]
    scale = value_axis([*finite, 0.0])
    body = "".join(_interval_row(row, scale) for row in rows)
    ends = (
        f'<tr class="scale"><td></td><td></td><td><svg viewBox="0 0 {BAR_WIDTH} 18" '
        f'class="bar">{_scale_labels(scale)}</svg></td><td>{escape(unit)}</td></tr>'
    )
    return f'<div class="wide"><table class="intervals"><tbody>{body}{ends}</tbody></table></div>'


def _place(scale: Axis, value: float) -> float:
    return EDGE + scale.place(value) * (BAR_WIDTH - 2 * EDGE)


def _scale_labels(scale: Axis) -> str:
    labels = scale.labels()
    kept = list(zip(scale.ticks, labels, strict=True))[:: 2 if len(labels) > 5 else 1]
    return "".join(
        f'<text class="mid" x="{min(max(_place(scale, tick), 14), BAR_WIDTH - 14):.1f}" '
        f'y="13">{label}</text>'
        for tick, label in kept
    )


def _interval_row(row: tuple[str, float, float, float, str], scale: Axis) -> str:
    name, difference, low, high, said = row
    middle, half = BAR_HEIGHT / 2, 5
    zero = _place(scale, 0.0)
    left, right = _place(scale, low), _place(scale, high)
    picture = (
        f'<line class="grid" x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="{BAR_HEIGHT}"/>'
        f'<line class="c0" x1="{left:.1f}" x2="{right:.1f}" y1="{middle}" y2="{middle}"/>'
    )
    for end, value in ((left, low), (right, high)):
        if abs(value) != float("inf"):
            picture += (
                f'<line class="c0" x1="{end:.1f}" x2="{end:.1f}" y1="{middle - half}" '
                f'y2="{middle + half}"/>'
            )
    picture += f'<circle class="c0" cx="{_place(scale, difference):.1f}" cy="{middle}" r="4"/>'
    text = f"{signed(difference)} [{signed(low)}, {signed(high)}]"
    return (
        f"<tr><th>{escape(name)}</th><td class='number'>{text}</td><td><svg class='bar' "
        f"viewBox='0 0 {BAR_WIDTH} {BAR_HEIGHT}' role='img' aria-label='{text}'>{picture}</svg>"
        f"</td><td>{escape(said)}</td></tr>"
    )


def signed(value: float) -> str:
    """A difference with its sign and two decimals."""
    if abs(value) == float("inf"):
        return "∞" if value > 0 else "−∞"
    return f"{value:+.2f}".replace("-", "−")
