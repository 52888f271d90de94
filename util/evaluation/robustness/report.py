"""The report of a robustness evaluation: Markdown, JSON and a picture, each with the protocol."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from util.data.corruption.corruptions import CORRUPTIONS, NOTE, SEVERITIES
from util.data.imagenet import CORRUPTED, TEST_SETS
from util.data.robustness_sets import TestSet, is_published
from util.data.unreadable import beside
from util.evaluation import paired
from util.evaluation.charts import line_chart
from util.evaluation.robustness.errors import (
    ALEXNET,
    EXTRA,
    Robustness,
    accuracy_by_severity,
    corruption_errors,
    difference_of_errors,
    in_both,
    mean_corruption_error,
)
from util.evaluation.tables import row, rule, shown_difference, shown_number


def protocol(args: argparse.Namespace, sets: Sequence[TestSet]) -> list[str]:
    """How a classifier sees the images, in lines.

    Args:
        args: with the classifier's own flags.
    """
    lines = []
    of_view: dict[str, list[str]] = {}
    for one in sets:
        if not one.corruption:
            name = f"{one.name} ({len(one.images)} images)"
            of_view.setdefault(str(one.view), []).append(name)
    lines += [f"{', '.join(names)}: {view}." for view, names in of_view.items()]
    masked = [f"{one.name}'s {len(one.competing)}" for one in sets if one.competing is not None]
    if masked:
        lines.append(f"The prediction is the largest of {' and of '.join(masked)} classes' logits.")
    corrupted = next((one for one in sets if one.corruption), None)
    if corrupted is not None:
        source = "ImageNet-C's own" if is_published(args) else NOTE
        size = " x ".join(map(str, args.input_size))
        seen = f"made at {size} pixels, seed {args.seed}" if args.corrupt else str(corrupted.view)
        lines.append(f"Corruptions ({len(corrupted.images)} images each): {seen}. {source}.")
    return lines


@dataclass
class Report:
    """The results of several classifiers, each compared with those before it; the tables show the
    differences to the first.

    baseline: the name of the classifier whose errors are the unit, if the user gave one.
    is_published: the corrupted images are ImageNet-C's own, so AlexNet's published errors apply.
    """

    results: Mapping[str, Robustness]
    baseline: str | None
    is_published: bool
    protocol: list[str]

    def __post_init__(self) -> None:
        self.names, self.first = list(self.results), next(iter(self.results.values()))
        self.missing = self.first.missing() if self.first.corrupted else []
        self.unit = self._unit()
        self.mean_ce = {
            name: mean_corruption_error(found, self.unit) for name, found in self.results.items()
        }
        self.differences = {
            name: {before: self._compared(name, before) for before in self.names[:index]}
            for index, name in enumerate(self.names)
        }

    def _unit(self) -> Mapping[str, float | None]:
        """By corruption, the error that is 100 %; empty where there is none."""
        if self.baseline:
            return {c: self.results[self.baseline].mean_error(c) for c in CORRUPTIONS}
        counts = {int((~np.isnan(right)).sum()) for right in self.first.corrupted.values()}
        return ALEXNET if self.is_published and counts == {CORRUPTED.num_images} else {}

    @property
    def unit_name(self) -> str:
        return f"relative CE (to {self.baseline})" if self.baseline else "CE"

    # -------------------------------------------------------------------------------- the tables

    def markdown(self) -> str:
        parts = [self._accuracies(), self._errors(), self._differences(), self._by_severity()]
        parts += [self._unreadable(), self.protocol]
        return "\n\n".join(["\n".join(part) for part in parts if part])

    def _unreadable(self) -> list[str]:
        lines = []
        for name, found in self.results.items():
            listed = ", ".join(f"{count} of {part}" for part, count in found.unreadable.items())
            if listed:
                lines.append(f"{name}: images that could not be read, and are left out: {listed}.")
        return lines

    def _accuracies(self) -> list[str]:
        lines = ["Top-1 accuracy, %.", "", row("", self.names), rule(self.names)]
        sets = [
            row(name, [shown_number(found.accuracy(name)) for found in self.results.values()])
            for name in self.first.clean
        ]
        return [*lines, *sets] if sets else []

    def _errors(self) -> list[str]:
        if not self.first.corrupted:
            return []
        title = "Error under corruptions, %, mean over severities 1 to 5"
        lines = [f"{title}; in brackets {self.unit_name}." if self.unit else f"{title}."]
        if self.missing:
            lines.append(f"Missing, so there is no mean and no mCE: {self._listed_missing()}.")
        elif self.is_published and not self.unit:
            lines.append("Images are missing, so there is no mCE.")
        lines += ["", row("", self.names), rule(self.names)]
        errors = {n: corruption_errors(found, self.unit) for n, found in self.results.items()}
        extra = [name for name in EXTRA if (name, SEVERITIES[0]) in self.first.corrupted]
        known = [c for c in CORRUPTIONS if any((c, s) in self.first.corrupted for s in SEVERITIES)]
        for corruption in (*known, *extra):
            cells = []
            for name, found in self.results.items():
                ce = errors[name].get(corruption)
                cell = shown_number(found.mean_error(corruption))
                cells.append(cell if ce is None else f"{cell} ({ce:.1f})")
            lines.append(row(f"{corruption} (extra)" if corruption in extra else corruption, cells))
        if not self.missing:
            means = self._mean_errors().values()
            lines.append(row("mean of the 15", [shown_number(mean) for mean in means]))
        if None not in self.mean_ce.values():
            label = "mCE" if not self.baseline else f"mean {self.unit_name}"
            lines.append(row(label, [shown_number(ce) for ce in self.mean_ce.values()]))
        return lines

    def _listed_missing(self) -> str:
        severities: dict[str, list[int]] = {}
        for corruption, severity in self.missing:
            severities.setdefault(corruption, []).append(severity)
        return ", ".join(
            name if len(absent) == len(SEVERITIES) else f"{name} {'/'.join(map(str, absent))}"
            for name, absent in severities.items()
        )

    def _mean_errors(self) -> dict[str, float | None]:
        """Each classifier's mean error over the 15 corruptions, percent."""
        ones = dict.fromkeys(CORRUPTIONS, 100.0)
        return {n: mean_corruption_error(found, ones) for n, found in self.results.items()}

    def _by_severity(self) -> list[str]:
        lines = []
        for name, found in self.results.items() if self.first.corrupted else ():
            severities = list(map(str, SEVERITIES))
            lines += ["" if lines else None, f"Error of {name} by severity, %."]
            lines += ["", row("", severities), rule(severities)]
            for corruption in dict.fromkeys(corruption for corruption, _ in found.corrupted):
                errors = [found.error(corruption, severity) for severity in SEVERITIES]
                lines.append(row(corruption, [shown_number(error) for error in errors]))
        return [line for line in lines if line is not None]

    def _differences(self) -> list[str]:
        others = self.names[1:]
        if not others:
            return []
        lines = [f"Against {self.names[0]}, in points, with the 95 % interval over test images and "
                 "McNemar's p.", "", row("", others), rule(others)]  # fmt: skip
        first = self.names[0]
        for label in self.differences[others[0]][first]:
            cells = []
            for name in others:
                found, p = self.differences[name][first][label]
                cells.append(shown_difference(found) + (f", p {p:.2g}" if p is not None else ""))
            lines.append(row(label, cells))
        return lines

    def _compared(
        self, name: str, before: str
    ) -> dict[str, tuple[paired.Difference, float | None]]:
        """A classifier's differences to one before it, a gain being positive, and McNemar's p.

        Of errors it is what they are lower by.
        """
        one, first, found = self.results[name], self.results[before], {}
        for label, right in one.clean.items():
            pair = in_both(right, first.clean[label])
            found[label] = paired.compare(*(100.0 * r for r in pair)), paired.mcnemar(*pair)
        drop = difference_of_errors(first, one)
        if drop:
            found["accuracy under corruptions"] = drop, None
        if self.mean_ce[name] is not None:
            label = "mCE, lower by" if not self.baseline else f"mean {self.unit_name}, lower by"
            found[label] = difference_of_errors(first, one, self.unit), None
        return found

    # ------------------------------------------------------------------------- JSON and picture

    def as_json(self) -> dict:
        """Everything that was measured, and how."""
        classifiers = {}
        for name, found in self.results.items():
            classifiers[name] = {
                "accuracy": {label: found.accuracy(label) for label in found.clean},
                "errors": {
                    corruption: {s: found.error(corruption, s) for s in SEVERITIES}
                    for corruption in dict.fromkeys(c for c, _ in found.corrupted)
                },
                self.unit_name: corruption_errors(found, self.unit) if self.unit else None,
                "mean_error": self._mean_errors()[name],
                "mCE" if not self.baseline else f"mean {self.unit_name}": self.mean_ce[name],
                "accuracy_by_severity": accuracy_by_severity(found, self._clean()),
                "unreadable": found.unreadable,
            }
            for before, compared in self.differences[name].items():
                classifiers[name][f"against {before}"] = {
                    label: vars(difference) | {"verdict": difference.verdict, "mcnemar_p": p}
                    for label, (difference, p) in compared.items()
                }
        return {
            "protocol": self.protocol, "unit": dict(self.unit), "missing": self.missing,
            "classifiers": classifiers,
        }  # fmt: skip

    def headline(self) -> dict[str, float]:
        """The numbers for results.json, by name."""
        numbers = {}
        for name, found in self.results.items():
            numbers |= {f"{name}, {label}": found.accuracy(label) for label in found.clean}
            error, ce = self._mean_errors()[name], self.mean_ce[name]
            numbers |= {f"{name}, mean corruption error": error} if error is not None else {}
            label = "mCE" if not self.baseline else f"mean {self.unit_name}"
            numbers |= {f"{name}, {label}": ce} if ce is not None else {}
        return numbers | beside(max(sum(f.unreadable.values()) for f in self.results.values()))

    def picture(self) -> Image.Image | None:
        """Accuracy against severity, mean over the corruptions; None without corruptions."""
        if not self.first.corrupted:
            return None
        curves = {n: accuracy_by_severity(f, self._clean()) for n, f in self.results.items()}
        title = "Accuracy under corruptions, mean over " + (
            "the 15" if not self.missing else "those that are there"
        )
        return line_chart(title, "severity", ["clean", *map(str, SEVERITIES)], curves)

    def _clean(self) -> str | None:
        """The clean set whose images are corrupted, which ImageNet's other test sets are not."""
        others = TEST_SETS.keys() - {"ImageNet"}
        return next((name for name in self.first.clean if name not in others), None)
