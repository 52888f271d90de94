"""Axes: round ticks that tell values apart, inside the ends, of ranges of any size."""

import math

import numpy as np
import pytest

from util.reporting.ticks import axis, log_axis, shown, time_axis, value_axis

RNG = np.random.default_rng(0)
RANGES = [tuple(sorted(10.0 ** RNG.uniform(-9, 9) * RNG.normal(size=2))) for _ in range(300)] + [
    (0.0, 0.0),
    (5.0, 5.0),
    (-3.0, -3.0),
    (1e-12, 1e-12),
    (0.0, 1.0),
    (99.98, 99.99),
    (-1e9, 1e9),
]


@pytest.mark.parametrize("make", [axis, value_axis])
def test_linear_ticks_are_round_few_and_around_the_values(make):
    for low, high in RANGES:
        found = make([low, high])
        slack = 1e-9 * max(abs(low), abs(high))
        assert found.low <= low + slack and found.high >= high - slack
        assert 2 <= len(found.ticks) <= 8
        gaps = np.diff(found.ticks)
        np.testing.assert_allclose(gaps, gaps[0], rtol=1e-6)
        mantissa = gaps[0] / 10 ** math.floor(math.log10(gaps[0]) + 1e-9)
        assert any(math.isclose(mantissa, m, rel_tol=1e-6) for m in (1, 2, 2.5, 5))
        labels = found.labels()
        assert len(set(labels)) == len(labels), labels
        assert max(map(len, labels)) <= 12


def test_steps_have_whole_ticks_that_lie_between_the_ends():
    for low, high in [(0, 1), (1, 1), (20, 1_000_000), (5, 7), (0, 13)]:
        found = time_axis([low, high])
        assert all(found.low <= tick <= found.high for tick in found.ticks)
        assert len(found.ticks) >= 2 and (high - low < 2 or all(t % 1 == 0 for t in found.ticks))


def test_a_log_axis_is_taken_for_decades_and_places_by_ratio():
    assert not value_axis([1.0, 9.0], True).is_log and not value_axis([0.0, 1e6], True).is_log
    assert not value_axis([1.0, 1e6]).is_log
    for low, high in [(1e-3, 1.0), (0.02, 0.9), (1e-12, 1e12), (3.0, 40.0)]:
        found = log_axis([low, high])
        assert 2 <= len(found.ticks) <= 9, found.ticks
        assert all(found.low <= tick <= found.high for tick in found.ticks)
        middle = (found.place(low) + found.place(high)) / 2
        assert math.isclose(found.place(math.sqrt(low * high)), middle, rel_tol=1e-6)


def test_places_are_clipped_to_the_axis():
    found = axis([0.0, 1.0])
    assert found.place(-math.inf) == 0 and found.place(math.inf) == 1 and found.place(0.5) == 0.5


def test_numbers_are_short_and_keep_their_size():
    assert [shown(v) for v in (0, 0.25, -3, 1500, 25_000, 1.5e6, 1.5e-4, 1e-12)] == [
        "0", "0.25", "−3", "1500", "25k", "1.5M", "1.5e−4", "1e−12",
    ]  # fmt: skip
    for value in 10.0 ** RNG.uniform(-12, 11, 300):
        text = shown(value).replace("−", "-")
        unit = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1], 1.0)
        assert math.isclose(float(text.rstrip("kMG")) * unit, value, rel_tol=1e-3)
    assert shown(math.nan) == "not finite"
