"""How sure a difference is between two models that were tested on the same images."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from util.reporting.numbers import half_interval

MARGIN = 1.0  # points; a difference that is certainly smaller is called none
NO_DIFFERENCE = f"no difference (within ±{MARGIN:g})"


@dataclass
class Difference:
    """A difference in points with its 95 % interval; `verdict` says what can be said of it."""

    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        if self.low > 0:
            return "gain"
        if self.high < 0:
            return "loss"
        return NO_DIFFERENCE if self.is_small else "cannot be told"

    @property
    def is_small(self) -> bool:
        """Whether the whole interval lies within ±MARGIN points."""
        return max(abs(self.low), abs(self.high)) <= MARGIN


def bootstrap_spread(per_image: np.ndarray, num_boots: int = 1000, seed: int = 0) -> float:
    """Standard deviation of the mean of per_image [n] over test sets drawn with replacement.

    Draws are counts of each image, by a multinomial: a large set needs no table of indices.
    """
    rng, count = np.random.default_rng(seed), len(per_image)
    means = [
        rng.multinomial(count, np.full(count, 1 / count)) @ per_image / count
        for _ in range(num_boots)
    ]
    return float(np.std(means))


def compare(first: np.ndarray, second: np.ndarray, num_boots: int = 1000) -> Difference:
    """first − second by a bootstrap of test images; each [n], 100 where one is right, else 0."""
    per_image = np.asarray(first, float) - np.asarray(second, float)
    half, mean = 1.96 * bootstrap_spread(per_image, num_boots), float(per_image.mean())
    return Difference(mean, mean - half, mean + half)


def compare_draws(first: np.ndarray, second: np.ndarray, num_boots: int = 1000) -> Difference:
    """As `compare`, of models trained on several draws of few labels, each [draws, n]: the interval
    adds up the spread of the test images and, by Student's t, that of the draws."""
    per_draw = np.asarray(first, float).mean(1) - np.asarray(second, float).mean(1)
    found = compare(np.mean(first, 0), np.mean(second, 0), num_boots)
    if len(per_draw) > 1:
        half = math.hypot(found.high - found.difference, half_interval(per_draw.tolist()))
        found = Difference(found.difference, found.difference - half, found.difference + half)
    return found


def compare_statistic(
    first: np.ndarray, second: np.ndarray, statistic: Callable[[np.ndarray], float],
    num_boots: int = 1000, seed: int = 0,
) -> Difference:  # fmt: skip
    """statistic(first.sum(0)) − statistic(second.sum(0)), by a bootstrap of the images.

    Args:
        first, second: counts of each test image, [n, ...].
    """
    rng, count = np.random.default_rng(seed), len(first)
    shares = np.full(count, 1 / count)
    boots = []
    for _ in range(num_boots):
        drawn = rng.multinomial(count, shares)
        boots.append(
            statistic(np.tensordot(drawn, first, 1)) - statistic(np.tensordot(drawn, second, 1))
        )
    difference, half = statistic(first.sum(0)) - statistic(second.sum(0)), 1.96 * np.std(boots)
    return Difference(float(difference), float(difference - half), float(difference + half))


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p of McNemar's exact test; first, second [n]: which images each has right."""
    from scipy.stats import binomtest

    only_first = int((np.asarray(first, bool) & ~np.asarray(second, bool)).sum())
    only_second = int((~np.asarray(first, bool) & np.asarray(second, bool)).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def standard_error(values: np.ndarray) -> float:
    """The standard error of the mean of values [n]; infinite where there is one alone."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf
