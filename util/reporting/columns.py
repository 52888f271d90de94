"""Numbers of a log by their names, and curves of few points from logs of any length."""

import math
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

POINTS = 240  # of a curve: more cannot be told apart in a chart


@dataclass(frozen=True)
class Point:
    """What a curve shows at x: the mean of the finite values there, and their least and greatest;
    None where none is finite."""

    x: float
    mean: float | None
    low: float | None = None
    high: float | None = None


class Columns:
    """Numbers by their names, each over an x that never falls: steps, mostly."""

    def __init__(self) -> None:
        self.by_name: dict[str, tuple[array, array]] = {}

    def add(self, x: float, numbers: Mapping[str, object]) -> None:
        """Take in the numbers of a line; None counts as not finite, other kinds are passed over."""
        for name, value in numbers.items():
            if value is None:
                value = math.nan
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            xs, ys = self.by_name.setdefault(name, (array("d"), array("d")))
            xs.append(x)
            ys.append(value)

    def cut(self, x: float) -> None:
        """Drop what stands after x: a run that was resumed there did it again."""
        for name, (xs, ys) in list(self.by_name.items()):
            keep = bisect_right(xs, x)
            del xs[keep:], ys[keep:]
            if not keep:
                del self.by_name[name]

    def at(self, name: str, x: float) -> float | None:
        """The last value at or before x."""
        xs, ys = self.by_name.get(name, ((), ()))
        place = bisect_right(xs, x)
        return ys[place - 1] if place else None

    def curve(self, name: str, points: int = POINTS) -> list[Point]:
        """A curve of at most so many points, each of as many neighbouring values."""
        xs, ys = self.by_name.get(name, ((), ()))
        width = -(-len(xs) // points) or 1
        return [
            _point(xs[start : start + width], ys[start : start + width])
            for start in range(0, len(xs), width)
        ]


def _point(xs: Sequence[float], ys: Sequence[float]) -> Point:
    finite = [y for y in ys if math.isfinite(y)]
    x = xs[-1]
    if not finite:
        return Point(x, None)
    return Point(x, math.fsum(finite) / len(finite), min(finite), max(finite))
