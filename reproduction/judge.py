"""Test each claim of the paper on what ran: it holds, does not hold, or cannot be told.

A claim is of a difference in points between two runs of the same seeds. It is tested by its own
spread over seeds and by the test images, and its p is corrected over all claims of the table
(`util.evaluation.over_seeds`): of tables in which nothing is true, at most 5 % say of anything that
it holds, or that it does not (`benchmarks/false_verdicts.py`). With one seed nothing can be told.
"""

import glob
import json
import math
import os
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from reproduction import choices, paper
from reproduction.claims import CLAIMS, COST, SIDE_BY_SIDE, left_out
from reproduction.graph import CELLS, SIDE_BY_SIDE_JOB, Graph
from reproduction.paper import Row
from reproduction.state import DONE, state_of
from util.data.unreadable import LEFT_OUT
from util.evaluation.over_seeds import LEVEL, Comparison, compare_seeds, comparison, correct
from util.evaluation.paired import MARGIN
from util.training.output import PREDICTIONS

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told"
SMALLER = "but smaller than the paper's"
WITHIN = f"(within ±{MARGIN:g})"
ABOVE, BELOW = "above, beyond", "below, beyond"
Z = 1.96  # standard errors over test images on either side of a 95 % interval


@dataclass
class Verdict:
    """What was found of one claim.

    Args:
        points: the paper's difference in points, if it reports both numbers.
        found: our difference; None where a run is missing, and `why` says which.
        small: the claim is that the difference is within ±MARGIN.
        bound: the claim is that the difference is below it; else above zero.
    """

    text: str
    points: float | None
    found: Comparison | None
    why: str = ""
    small: bool = False
    bound: float | None = None

    @property
    def distance(self) -> float:
        """How far the difference is from the nearest value that the claim rules out or in."""
        if self.small:
            return abs(abs(self.found.difference) - MARGIN)
        return abs(self.found.difference - (self.bound or 0.0))

    @property
    def word(self) -> str:
        """HOLDS, FAILS or OPEN, and what else is known of the size; empty without a difference."""
        if self.found is None:
            return ""
        difference = self.found.difference
        is_told = self.found.p <= LEVEL and self.distance > 0
        if self.small:
            holds = abs(difference) < MARGIN
        else:
            holds = difference > 0 if self.bound is None else difference < self.bound
        word = (HOLDS if holds else FAILS) if is_told else OPEN
        if self.small:
            return f"{word} {WITHIN}"
        return f"{word}, {SMALLER}" if word != FAILS and self.is_smaller else word

    @property
    def is_smaller(self) -> bool:
        """Whether the paper's size lies above the interval that holds for all claims at once."""
        return self.points is not None and self.found.simultaneous[1] < self.points

    def cells(self) -> list[str]:
        """The claim's row of the Markdown table, in the columns of HEAD."""
        published = "" if self.points is None else f"{self.points:+.1f}"
        if self.found is None:
            return [self.text, published, "", "", "", f"not run ({self.why})", ""]
        one = self.found
        if one.num_seeds < 2:
            return [self.text, published, *self._cells_of_one_seed()]
        p = "<0.001" if one.p < 0.001 else f"{one.p:.3f}"
        shown = f"{one.difference:+.2f}{_interval(one.difference, one.high - one.difference)}"
        pooled = _interval(one.difference, one.pooled)
        return [self.text, published, shown, str(one.num_seeds), p, self.word, pooled.strip()]

    def _cells_of_one_seed(self) -> list[str]:
        """Here, seeds, p, verdict and pooled: what the test images tell of these two runs."""
        difference, half = self.found.difference, Z * self.found.of_images
        shown = f"{difference:+.2f}{_interval(difference, half)}" if half else f"{difference:+.2f}"
        word = self.word
        if half and not self.small and self.bound is None and abs(difference) > half:
            word += f"; of these two runs {ABOVE if difference > 0 else BELOW} its interval"
        return [shown, "1", "", word, ""]


def _interval(middle: float, half: float) -> str:
    return f" [{middle - half:+.2f}, {middle + half:+.2f}]" if math.isfinite(half) else ""


def judge(
    graph: Graph, seeds: Sequence[int], wanted: str | None, asked: Collection[str] = ()
) -> list[Verdict]:
    """Judge every claim by the runs that are done.

    Args:
        wanted: the commit whose results count; None counts any.
        asked: keys of rows that were asked for by name, though the scale leaves them out.
    """
    rows: dict[str, dict[str, np.ndarray]] = defaultdict(dict)  # by column and claim
    missing: dict[str, str] = {}
    for claim in CLAIMS:
        pairs = []
        if keys := left_out(graph, claim, asked):
            missing[claim.text] = f"left out at this scale: --rows {' '.join(keys)}"
            continue
        for seed in seeds:
            better, worse = (
                _correct(graph, claim.row(which), claim.column, seed, wanted)
                for which in ("better", "worse")
            )
            if isinstance(better, str) or isinstance(worse, str):
                missing[claim.text] = better if isinstance(better, str) else worse
            else:
                pairs.append(better - worse)
        if pairs:
            rows[claim.column][claim.text] = np.stack(pairs)
    found = {}
    for of_column in rows.values():
        found |= compare_seeds(of_column)
    verdicts = []
    for claim in CLAIMS:
        one, why = found.get(claim.text), missing.get(claim.text, "")
        points = None if claim.ours else claim.points
        verdicts.append(Verdict(claim.text, points, one, why, claim.small))
    for text in SIDE_BY_SIDE:
        verdicts.append(_side_by_side(graph, text, seeds, wanted))
    verdicts.append(_cost(graph, seeds, wanted))
    tested = [verdict for verdict in verdicts if verdict.found is not None]
    correct([verdict.found for verdict in tested], [verdict.distance for verdict in tested])
    return verdicts


def _correct(
    graph: Graph, row: Row, column: str, seed: int, wanted: str | None
) -> np.ndarray | str:
    """Per test image [n]: 100 if it is right, else 0, mean over draws; or why this is not known."""
    source = graph.cell(row, column, seed)
    if isinstance(source, str):
        return source
    found = state_of(graph, source.job, wanted)
    if found.state != DONE:
        return f"{found.job.name}: {found.state}"
    draws = "draw-*/" * (CELLS[column][0] == "one_percent")
    files = sorted(glob.glob(f"{glob.escape(graph.folder(source.job))}/{draws}{PREDICTIONS}"))
    if not files:
        return f"{found.job.name} has no {PREDICTIONS}"
    predictions = [np.load(file) for file in files]  # [images, 2]
    left_out = sum(int((table[:, 0] == LEFT_OUT).sum()) for table in predictions)
    if left_out:
        return (
            f"{found.job.name}: {left_out} test images could not be read: repair them, remove its "
            "results.json, and go on"
        )
    return np.mean([100.0 * (table[:, 0] == table[:, 1]) for table in predictions], 0)


def _side_by_side(graph: Graph, text: str, seeds: Sequence[int], wanted: str | None) -> Verdict:
    """A verdict on differences that one evaluation of both encoders has computed itself."""
    claim, differences, why = SIDE_BY_SIDE[text], [], ""
    file, group = claim.place
    for seed in seeds:
        job = graph.jobs.get(f"seed-{seed}/{claim.kind}/{SIDE_BY_SIDE_JOB}")
        found = job and state_of(graph, job.name, wanted)
        if not found or found.state != DONE:
            why = f"{found.job.name}: {found.state}" if found else "data is missing"
            continue
        with open(os.path.join(graph.folder(job.name), file)) as opened:
            by_name = json.load(opened)[group]
        better, worse = claim.titles()
        # A run tells each one's difference to those before it.
        is_before = f"against {worse}" not in by_name.get(better, {})
        first, second = (worse, better) if is_before else (better, worse)
        one = by_name.get(first, {}).get(f"against {second}", {}).get(claim.name)
        if one is not None:
            differences.append(one | {"sign": -1 if is_before else 1})
        else:
            why = f"{job.name} has no {claim.name} of {better} and {worse}"
    if not differences:
        return Verdict(text, None, None, why)
    means = [one["sign"] * one["difference"] for one in differences]
    of_images = float(np.mean([(one["high"] - one["low"]) / 2 / Z for one in differences]))
    return Verdict(text, None, comparison(means, of_images), why)


def _cost(graph: Graph, seeds: Sequence[int], wanted: str | None) -> Verdict:
    """Judge by how many percent MI-MAE's pre-training takes longer at equal masked samples."""
    text = f"no noticeable cost: MI-MAE's seconds below {COST:g} of MAE's, in % above"
    ratios, why = [], ""
    for seed in seeds:
        pair = [
            state_of(graph, graph.pretrain(recipe, seed), wanted)
            for recipe in (paper.FULL, paper.BASELINE)
        ]
        if any(found.state != DONE for found in pair):
            why = next(f"{f.job.name}: {f.state}" for f in pair if f.state != DONE)
        else:
            if all(found.trained for found in pair):
                ratios.append(pair[0].trained / pair[1].trained)
            else:
                why = "a run does not know its seconds: its first checkpoint is of an older version"
    if not ratios:
        return Verdict(text, None, None, why)
    percent = [100 * (ratio - 1) for ratio in ratios]
    return Verdict(text, None, comparison(percent, 0.0), why, bound=100 * (COST - 1))


HEAD = (
    "claim", "paper", "here", "seeds", "p, corrected", "verdict", "by the pooled spread",
)  # fmt: skip
NOTE = (
    "Differences in points, the first run's minus the second's of the same seeds, with each "
    "claim's own 95 % interval over seeds and test images, which is corrected for nothing; with "
    "one seed it is over test images only (a paired bootstrap), so of these two runs and not of "
    "the two ways of training. p and verdict are corrected over the {family} claims that were "
    "tested (Holm): if nothing were true, at most 5 % of such tables would say of any claim that "
    'it holds, or does not. So an interval may exclude zero where the verdict is "cannot be '
    f'told". {WITHIN[1:-1].capitalize()}: points. "{SMALLER[4:].capitalize()}" is said where the '
    "paper's size is beyond intervals that hold for all claims at once (Bonferroni). The last "
    "column is information: there the spread over seeds is pooled over claims, which is wrong "
    "where one run varies more than the others, and nothing is corrected. Claims without a number "
    "of the paper's are in its words, or controls of ours."
)


def markdown(
    verdicts: Sequence[Verdict], scale: str, seeds: Sequence[int], commits: Sequence[str] = ()
) -> str:
    """The verdicts as a Markdown table with a heading, a note on how they are found, and which of
    our settings were chosen on which seeds.

    Args:
        commits: of all runs; said where they are several.
    """
    lines = [f"## The paper's claims, scale {scale}", ""]
    lines += [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    lines += [f"| {' | '.join(verdict.cells())} |" for verdict in verdicts]
    family = sum(v.found is not None and v.found.num_seeds > 1 for v in verdicts)
    if len(commits) > 1:
        lines += ["", f"The runs are of several commits: {', '.join(commits)}."]
    lines += ["", NOTE.format(family=family), *choices.lines(scale, seeds), ""]
    return "\n".join(lines)
