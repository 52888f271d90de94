"""Differences between two ways of training, over seeds: how sure one is, and a table of them.

**Each difference by its own spread.** Both ways were run with the same seeds, so the same weights
at the start, the same order of images: what is tested is the mean of the S differences, by
Student's t of S − 1 degrees of freedom. That is exact for normal differences whatever the two
runs' spreads are, and whatever they share; Welch's test would take the runs of one seed for
unrelated, and is too sure where its estimated degrees of freedom are few. A spread pooled over the
table's differences has more degrees of freedom, but is wrong as soon as one run varies more than
the others, and differences that share a run are not as many as they seem: it is given beside, as
information.

**Test images and seeds.** The interval of level 1 − a is

    difference ± √((t_a · of_seeds)² + (z_a · of_images)²)

of the two standard errors, each with its own quantile: of t with S − 1 degrees of freedom, and of
the normal, since there are many images. For one term without the other it is the usual interval.
Satterthwaite's degrees of freedom for the sum would be estimated from the very spread that may be
small by chance; at the small levels of a table with three seeds that says false things far too
often (`benchmarks/false_verdicts.py` shows it). Noise that is drawn for each seed and image anew is
in both terms, so the interval is rather too wide.

**A table.** `correct` gives each difference a p by Holm's method over all of the table, which
holds however they depend on one another. What else is said of them is by intervals that hold for
all of the table at once (Bonferroni's).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from util.evaluation.paired import (
    MARGIN,
    NO_DIFFERENCE,
    Difference,
    bootstrap_spread,
    standard_error,
)

LEVEL = 0.05  # of tables with any false verdict
LEAST_P = 1e-12


def half_width(
    level: np.ndarray, of_seeds: np.ndarray, of_images: np.ndarray, freedom: np.ndarray
) -> np.ndarray:
    """Half the width of the interval of level 1 − `level`; all of them arrays of one shape, or
    numbers. `freedom`: degrees of freedom of the seeds' spread, at least 1."""
    from scipy.special import ndtri, stdtrit

    tail = np.asarray(level) / 2
    return np.hypot(stdtrit(freedom, tail) * of_seeds, ndtri(tail) * of_images)


def p_value(
    distance: np.ndarray, of_seeds: np.ndarray, of_images: np.ndarray, freedom: np.ndarray
) -> np.ndarray:
    """The level at which the interval's half is as wide as `distance`, by bisection: the p of a
    hypothesis that lies so far from the difference. At least LEAST_P, at most 1."""
    distance, *about = np.broadcast_arrays(distance, of_seeds, of_images, freedom)
    low = np.full(distance.shape, math.log(LEAST_P))
    high = np.zeros(distance.shape)
    for _ in range(40):
        middle = (low + high) / 2
        is_wide = half_width(np.exp(middle), *about) > distance
        low, high = np.where(is_wide, middle, low), np.where(is_wide, high, middle)
    return np.where(distance > 0, np.exp(high), 1.0)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's corrected p of each of p_values [..., n], over the last axis: at most `LEVEL` for a
    hypothesis that may be rejected."""
    p_values = np.asarray(p_values, float)
    count = p_values.shape[-1]
    order = np.argsort(p_values, -1)
    steps = np.take_along_axis(p_values, order, -1) * np.arange(count, 0, -1)
    found = np.empty_like(p_values)
    np.put_along_axis(found, order, np.maximum.accumulate(steps, -1).clip(max=1), -1)
    return found


@dataclass
class Comparison(Difference):
    """A difference over the seeds with which both ways were run.

    Args:
        low, high: of its own 95 % interval, corrected for nothing.
        of_seeds, of_images: standard errors; the former infinite with one seed.
        pooled: half the width of the interval by the spread that is pooled over the table.
        p: of the hypothesis that the verdict is about; corrected once `correct` was called.
        family: how many differences the table has.
    """

    num_seeds: int = 1
    of_seeds: float = math.inf
    of_images: float = 0.0
    pooled: float = math.inf
    p: float = 1.0
    family: int = 1

    def half(self, level: float) -> float:
        """Half the width of the interval of level 1 − `level`."""
        if self.num_seeds < 2:
            return math.inf
        return float(half_width(level, self.of_seeds, self.of_images, self.num_seeds - 1))

    def p_of(self, distance: float) -> float:
        """The p of a hypothesis that lies this far from the difference, not corrected."""
        if self.num_seeds < 2:
            return 1.0
        return float(p_value(distance, self.of_seeds, self.of_images, self.num_seeds - 1))

    @property
    def simultaneous(self) -> tuple[float, float]:
        """The interval that holds for all of the table at once."""
        half = self.half(LEVEL / self.family)
        return self.difference - half, self.difference + half

    @property
    def is_small(self) -> bool:
        """Whether the simultaneous interval lies within ±MARGIN points."""
        return max(map(abs, self.simultaneous)) <= MARGIN

    @property
    def verdict(self) -> str:
        if self.p <= LEVEL and self.difference:
            return "gain" if self.difference > 0 else "loss"
        return NO_DIFFERENCE if self.is_small else "cannot be told"


def comparison(means: Sequence[float], of_images: float) -> Comparison:
    """The comparison of which each seed found one of `means`, on the same test images.

    Args:
        of_images: the standard error over test images of their mean.
    """
    values = np.asarray(means, float)
    mean = float(values.mean())
    found = Comparison(mean, mean, mean, len(values), standard_error(values), of_images)
    half = found.half(LEVEL)
    found.low, found.high = mean - half, mean + half
    return found


def correct(comparisons: Sequence[Comparison], distances: Sequence[float] | None = None) -> None:
    """Correct the p of all comparisons of a table, by Holm's method; those of one seed are no test.

    Args:
        distances: how far each difference is from the hypothesis in question (default: from zero).
    """
    far = distances or [abs(one.difference) for one in comparisons]
    tested = [(one, d) for one, d in zip(comparisons, far, strict=True) if one.num_seeds > 1]
    corrected = holm([one.p_of(distance) for one, distance in tested])
    for (one, _), p in zip(tested, corrected, strict=True):
        one.p, one.family = float(p), len(tested)


def pool(comparisons: Sequence[Comparison]) -> None:
    """Give each the interval by the spread over seeds that is pooled over all of them."""
    from scipy.stats import t

    several = [one for one in comparisons if one.num_seeds > 1]
    freedom = sum(one.num_seeds - 1 for one in several)
    squares = sum((one.num_seeds - 1) * one.num_seeds * one.of_seeds**2 for one in several)
    for one in comparisons:
        if freedom:
            spread = math.sqrt(squares / freedom / one.num_seeds)
            of_seeds = float(t.ppf(1 - LEVEL / 2, freedom)) * spread
            one.pooled = math.hypot(of_seeds, 1.96 * one.of_images)


def compare_seeds(rows: dict[str, np.ndarray], num_boots: int = 1000) -> dict[str, Comparison]:
    """Several comparisons of one score, each over its seeds and test images; none is corrected.

    Args:
        rows: by name the per-image differences in points, [seeds, images].
    """
    found = {
        name: comparison(row.mean(1), bootstrap_spread(row.mean(0), num_boots))
        for name, row in rows.items()
    }
    for one in found.values():
        one.p = one.p_of(abs(one.difference))
    pool(list(found.values()))
    return found
