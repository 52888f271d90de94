"""Numbers of a log by their names, and curves of few points from logs of any length."""

import math
from array import array
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

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
            elif type(value) not in (int, float):
                continue
            if name not in self.by_name:
                self.by_name[name] = array("d"), array("d")
            xs, ys = self.by_name[name]
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
        if not len(ys):
            return []
        values = np.frombuffer(ys)
        width = -(-len(values) // points)
        starts = np.arange(0, len(values), width)
        is_finite = np.isfinite(values)
        counts = np.add.reduceat(is_finite.astype(int), starts)
        sums = np.add.reduceat(np.where(is_finite, values, 0.0), starts)
        lows = np.minimum.reduceat(np.where(is_finite, values, np.inf), starts)
        highs = np.maximum.reduceat(np.where(is_finite, values, -np.inf), starts)
        ends = np.minimum(starts + width, len(values)) - 1
        found = zip(ends.tolist(), *(a.tolist() for a in (counts, sums, lows, highs)), strict=True)
        return [
            Point(xs[end], total / count, low, high) if count else Point(xs[end], None)
            for end, count, total, low, high in found
        ]
