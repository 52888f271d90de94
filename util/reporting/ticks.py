"""Axes with round numbers: where ticks stand, and how numbers are written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

DECADES = 1.0  # over which positive values are shown on a log scale
LEAST = 1e-3  # that is written without a power of ten
MINUS, MULTIPLES = "−", (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high` with its ticks; `place` says where a value stands on it."""

    low: float
    high: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where a value stands, from 0 to 1; what lies beyond an end stands at that end."""
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def labels(self) -> list[str]:
        """What stands beside the ticks: all with as many digits as tell them apart."""
        if self.is_log:
            return [shown(tick) for tick in self.ticks]
        gap = self.ticks[1] - self.ticks[0]
        largest = max(abs(tick) for tick in self.ticks)
        digits = max(1, 2 + math.floor(math.log10(largest)) - math.floor(math.log10(gap)))
        ticks = [0.0 if abs(tick) < gap / 1e6 else tick for tick in self.ticks]
        if any(0 < abs(tick) < LEAST for tick in ticks):  # all of them in the same way
            return [_scientific(tick, digits) if tick else "0" for tick in ticks]
        return [shown(tick, digits) for tick in ticks]


def axis(values: Sequence[float], most: int = 6, is_whole: bool = False) -> Axis:
    """A linear axis around finite values, which begins and ends with a tick.

    Args:
        most: steps between ticks. is_whole: ticks are whole numbers, as of steps.
    """
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    span = high - low
    if span <= abs(high) * 1e-9:  # all are one value
        span = 1.0 if is_whole else abs(high) * 0.1 or 1.0
        low, high = low - span / 2, high + span / 2
    if is_whole:
        low, high = math.floor(low), math.ceil(high)
    step = _step((high - low) / most, is_whole)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(number * step for number in range(first, max(last, first + 1) + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def time_axis(values: Sequence[float], most: int = 5) -> Axis:
    """A linear axis that ends where the values do, such as one of steps; ticks stand inside."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high <= low:
        low, high = low - 1, low + 1
    step = _step((high - low) / most, True)
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ticks = tuple(number * step for number in numbers)
    return Axis(low, high, ticks if len(ticks) > 1 else (low, high))


def log_axis(values: Sequence[float], most: int = 6) -> Axis:
    """A logarithmic axis around positive values, with ticks at 1, 2 and 5 or whole decades."""
    low, high = min(values), max(values)
    pad = (high / low) ** 0.04
    low, high = low / pad, high * pad
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for every in range(1, last - first + 1):
        multiples = (1, 2, 5) if every == 1 and last - first <= 3 else (1,)
        ticks = [m * 10.0**e for e in range(first, last + 1, every) for m in multiples]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most + 1:
            break
    return Axis(low, high, tuple(ticks), True)


def value_axis(values: Sequence[float], may_be_log: bool = False) -> Axis:
    """An axis of values: logarithmic where that may be, all are positive and they span decades."""
    finite = [value for value in values if math.isfinite(value)]
    if may_be_log and finite and min(finite) > 0:
        spans = math.log10(max(finite) / min(finite))
        if spans > DECADES:
            return log_axis(finite)
    return axis(finite)


def _step(least: float, is_whole: bool) -> float:
    """The smallest round number that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    step = next(m * power for m in MULTIPLES if m * power >= least * (1 - 1e-9))
    return max(1.0, math.ceil(step)) if is_whole else step


def shown(value: float, digits: int = 4) -> str:
    """A number in few characters: 1.5M, 20k, 0.25, 1.5e-4."""
    if not math.isfinite(value):
        return "not finite"
    sign, size = MINUS if value < 0 else "", abs(value)
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit * (10 if name == "k" else 1):
            return f"{sign}{size / unit:.{digits}g}{name}"
    if 0 < size < LEAST:
        return _scientific(value, digits)
    return sign + (f"{size:.0f}" if size >= 10**digits else f"{size:.{digits}g}")


def _scientific(value: float, digits: int) -> str:
    """A number as 1.5e−4."""
    mantissa, _, power = f"{abs(value):.{max(0, digits - 1)}e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    sign = MINUS if value < 0 else ""
    return f"{sign}{mantissa}e{MINUS if power[0] == '-' else ''}{int(power[1:])}"
