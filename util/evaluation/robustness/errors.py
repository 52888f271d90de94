"""Corruption errors [Hendrycks & Dietterich, ICLR 2019] of classifiers, and their differences.

Of corruption c at severity s a classifier has an error E[s, c]; its corruption error is
CE[c] = Σ_s E[s, c] / Σ_s E'[s, c], where E' is the error of AlexNet, and mCE is its mean over the
15 corruptions, in percent. With another baseline of the user's the same quotient is called
relative CE here. (The relative mCE of that paper is another number: it subtracts clean errors.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from util.data.corruption.corruptions import CORRUPTIONS, SEVERITIES
from util.evaluation import paired

# Published with the 15 and never part of mCE.
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")

# AlexNet's errors, percent, mean over the severities: the authors' denominators.
ALEXNET = {
    "gaussian_noise": 88.6428, "shot_noise": 89.4468, "impulse_noise": 92.2640,
    "defocus_blur": 81.9880, "glass_blur": 82.6268, "motion_blur": 78.5948, "zoom_blur": 79.8360,
    "snow": 86.6816, "frost": 82.6572, "fog": 81.9324, "brightness": 56.4592,
    "contrast": 85.3204, "elastic_transform": 64.6056, "pixelate": 71.7840,
    "jpeg_compression": 60.6500,
}  # fmt: skip

Key = tuple[str, int]  # corruption, severity


@dataclass
class Robustness:
    """Which images of each test set a classifier got right: 1, 0, or NaN for those that do not
    count, as they could not be read or have no label.

    clean: by the set's name, [n]. corrupted: by corruption and severity, [n], of the same images in
    the same order. unreadable: by set, how many images could not be read, if any.
    """

    clean: dict[str, np.ndarray] = field(default_factory=dict)
    corrupted: dict[Key, np.ndarray] = field(default_factory=dict)
    unreadable: dict[str, int] = field(default_factory=dict)

    def accuracy(self, name: str) -> float:
        """Percent on a clean set."""
        return 100 * float(np.nanmean(self.clean[name]))

    def error(self, corruption: str, severity: int) -> float | None:
        """Error at one severity, percent; None where it was not evaluated."""
        right = self.corrupted.get((corruption, severity))
        return None if right is None else 100 * float(np.nanmean(1 - right))

    def mean_error(self, corruption: str) -> float | None:
        """Mean error over the severities, percent; None where one of them is missing."""
        errors = [self.error(corruption, severity) for severity in SEVERITIES]
        return None if None in errors else float(np.mean(errors))

    def missing(self) -> list[Key]:
        """The pairs of the 15 corruptions and 5 severities that were not evaluated."""
        return [(c, s) for c in CORRUPTIONS for s in SEVERITIES if (c, s) not in self.corrupted]


def corruption_errors(
    found: Robustness, baseline: Mapping[str, float | None]
) -> dict[str, float | None]:
    """CE of each of the 15, in percent of the baseline's mean error; None where there is none."""
    errors = {}
    for corruption in CORRUPTIONS:
        error, other = found.mean_error(corruption), baseline.get(corruption)
        errors[corruption] = 100 * error / other if error is not None and other else None
    return errors


def mean_corruption_error(found: Robustness, baseline: Mapping[str, float | None]) -> float | None:
    """mCE in percent, over exactly the 15; None where one of them is missing."""
    errors = list(corruption_errors(found, baseline).values())
    return None if None in errors else float(np.mean(errors))


def wrong_per_image(
    found: Robustness, keys: Sequence[Key], baseline: Mapping[str, float] | None = None
) -> np.ndarray:
    """How often each image was wrong under these corruptions, percent, [n]; NaN where it does not
    count under one of them.

    Args:
        baseline: with it, each corruption counts as in mCE: over all 75 the mean is the mCE.
    """
    total = 0.0
    for corruption, severity in keys:
        weight = 100 / baseline[corruption] if baseline else 1.0
        total = total + weight * (1 - found.corrupted[corruption, severity])
    return 100 * total / len(keys)


def difference_of_errors(
    found: Robustness, other: Robustness, baseline: Mapping[str, float] | None = None
) -> paired.Difference | None:
    """found − other, in points of the mean error, or of CE; positive is worse.

    Over the standard corruptions that both have, and the images that count under all of them.
    """
    keys = [k for k in found.corrupted if k in other.corrupted and k[0] in CORRUPTIONS]
    if not keys:
        return None
    return paired.compare(
        *in_both(*(wrong_per_image(one, keys, baseline) for one in (found, other)))
    )


def in_both(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those of two arrays [n] where neither is NaN."""
    counts = ~(np.isnan(first) | np.isnan(second))
    return first[counts], second[counts]


def accuracy_by_severity(found: Robustness, clean: str | None) -> list[float | None]:
    """Accuracy, percent: on the clean set, then at each severity, mean over the corruptions."""
    curve = [found.accuracy(clean) if clean in found.clean else None]
    for severity in SEVERITIES:
        errors = [found.error(corruption, severity) for corruption in CORRUPTIONS]
        known = [error for error in errors if error is not None]
        curve.append(100 - float(np.mean(known)) if known else None)
    return curve
