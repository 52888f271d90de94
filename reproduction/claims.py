"""Each claim of the paper as a hypothesis, tested on what ran: holds, does not hold, or neither.

A claim is of a difference in points between two runs. Its interval is over test images, by a
bootstrap of the paired predictions, and over seeds, whose spread is pooled over the comparisons of
one column (`util.evaluation.paired`). It holds if the whole interval is above zero, does not hold
if all of it is below, and cannot be told otherwise; with one seed it never can.
"""

import glob
import json
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reproduction import paper
from reproduction.graph import CELLS, Graph
from reproduction.paper import Row
from reproduction.state import DONE, state_of
from util.data.unreadable import LEFT_OUT
from util.evaluation.paired import MARGIN, Comparison, compare_seeds, half_of_mean
from util.training.output import PREDICTIONS

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told at this scale"
COST = 1.1  # times MAE's seconds for as many masked samples: less is no noticeable cost


@dataclass(frozen=True)
class Claim:
    """A claim that one run scores above another: `better` above `worse`, each a (table, row key).

    Args:
        column: the column of `paper.COLUMNS` in which the two are compared.
        small: the claim is instead that they differ by less than MARGIN points.
        ours: the claim is a control that the paper does not make.
    """

    text: str
    column: str
    better: tuple[str, str]
    worse: tuple[str, str]
    small: bool = False
    ours: bool = False

    def row(self, which: str) -> Row:
        """The row of `paper.TABLES` that `which` ("better" or "worse") names."""
        table, key = getattr(self, which)
        return next(row for row in paper.TABLES[table].rows if row.key == key)

    @property
    def points(self) -> float | None:
        """The paper's difference, better − worse, in points; None where it lacks either number."""
        values = [self.row(which).published.get(self.column) for which in ("better", "worse")]
        numbers = [value for value in values if isinstance(value, float)]
        return numbers[0] - numbers[1] if len(numbers) == 2 else None


def _of_table1(better: str, worse: str, text: str) -> list[Claim]:
    titles = {"FT": "fine-tuned", "LIN": "linear probe", "FT1%": "few labels"}
    return [
        Claim(f"{text}, {title}", column, ("table1", better), ("table1", worse))
        for column, title in titles.items()
    ]


def _of_table3a(better: str, worse: str, text: str, **more) -> Claim:
    return Claim(text, "FT", ("table3a", better), ("table3a", worse), **more)


CLAIMS = [
    *_of_table1("mimae_200", "mae_800", "MI-MAE (200 epochs) above MAE (800)"),
    *_of_table1("mimae_400", "mae_1600", "MI-MAE (400 epochs) above MAE (1600)"),
    *_of_table1("misimmim", "simmim", "MI-SimMIM above SimMIM"),
    *(
        Claim(f"MI-MAE above MAE, ViT-S, {title}", column, ("table4", "vit_small_mimae"),
              ("table4", "vit_small_mae"))
        for column, title in (("FT", "fine-tuned"), ("LIN", "linear probe"))
    ),
    _of_table3a("b", "a", "(b) L_max gains over (a) MAE"),
    _of_table3a("e", "a", "(e) L_min gains over (a) MAE"),
    _of_table3a("f", "a", "(f) MI-MAE gains over (a) MAE"),
    _of_table3a("f", "b", "(f) L_min gains beside L_max"),
    _of_table3a("f", "e", "(f) L_max gains beside L_min"),
    _of_table3a("f", "d", "(f) the approximation network has to be trained"),
    _of_table3a("control_orthogonal", "a", "four masks of an image gain, without the MI losses",
                ours=True),
    _of_table3a("f", "control_orthogonal", "the MI losses gain over four masks alone", ours=True),
    _of_table3a("control_orthogonal", "control_independent",
                "orthogonal masks gain without the MI losses", ours=True),
    Claim("(c) L_max alone collapses: an untrained encoder probes better", "LIN",
          ("table1", "scratch"), ("table3a", "c")),
    Claim("orthogonal masks above independent ones", "FT", ("table3c", "orthogonal"),
          ("table3c", "independent")),
    *(
        Claim(f"ratio 0.75 above {ratio}, {title}", "FT", ("figure2", f"{kind}_0.75"),
              ("figure2", f"{kind}_{ratio}"))
        for kind, title in paper.KINDS_OF_MASKS.items()
        for ratio in paper.RATIOS if ratio != "0.75"
    ),
    *(
        Claim(f"the number of masks matters little: {number} against 4", "FT",
              ("figure2", f"masks_{number}"), ("figure2", "four_0.75"), small=True)
        for number in (3, 5)
    ),
    *(
        Claim(f"λ1 = 1, λ2 = 10 above {row.title}", "FT", ("table3b", "lambda_1_10"),
              ("table3b", row.key))
        for row in paper.TABLE3B.rows if row.key != "lambda_1_10"
    ),
]  # fmt: skip
SIDE_BY_SIDE = {  # of Table 5's rows; what the JSON calls it
    "MI-MAE above MAE, under corruptions": ("robustness", "robustness.json", "classifiers",
                                            "accuracy under corruptions"),
    "MI-MAE above MAE, logistic regression": ("evaluate", "evaluation.json", "encoders",
                                              "logistic, chosen"),
    "MI-MAE above MAE, k-NN": ("evaluate", "evaluation.json", "encoders", "k-NN, chosen"),
}  # fmt: skip


@dataclass
class Verdict:
    """What was found of one claim.

    Args:
        points: the paper's difference in points, if it reports both numbers.
        found: our difference; None where a run is missing, and `why` says which.
        word: HOLDS, FAILS or OPEN; empty where `found` is None.
    """

    text: str
    points: float | None
    found: Comparison | None
    word: str
    why: str = ""

    def cells(self) -> list[str]:
        """The claim's row of the Markdown table, in the columns of HEAD."""
        published = "" if self.points is None else f"{self.points:+.1f}"
        if self.found is None:
            return [self.text, published, "", "", f"not run ({self.why})"]
        shown = f"{self.found.difference:+.2f}"
        if math.isfinite(self.found.low):
            shown += f" [{self.found.low:+.2f}, {self.found.high:+.2f}]"
        return [self.text, published, shown, str(self.found.num_seeds), self.word]


def prepare(graph: Graph, seeds: Sequence[int]) -> None:
    """Add every job that a claim needs to the graph."""
    for seed in seeds:
        for claim in CLAIMS:
            for which in ("better", "worse"):
                graph.cell(claim.row(which), claim.column, seed)
        graph.pretrain(paper.FULL, seed)
        graph.pretrain(paper.BASELINE, seed)
        graph.frozen(seed)
        if not graph.scale.lacks("C"):
            graph.robustness(seed)


def judge(graph: Graph, seeds: Sequence[int], wanted: str | None) -> list[Verdict]:
    """Judge every claim by the runs that are done.

    Args:
        wanted: the commit whose results count; None counts any.
    """
    rows: dict[str, dict[str, np.ndarray]] = defaultdict(dict)  # by column and claim
    missing: dict[str, str] = {}
    for claim in CLAIMS:
        pairs = []
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
        one = found.get(claim.text)
        points = None if claim.ours else claim.points
        word = _word(one, claim.small) if one else ""
        verdicts.append(Verdict(claim.text, points, one, word, missing.get(claim.text, "")))
    for text in SIDE_BY_SIDE:
        verdicts.append(_side_by_side(graph, text, seeds, wanted))
    return [*verdicts, _cost(graph, seeds, wanted)]


def _word(found: Comparison, small: bool = False) -> str:
    if small:
        is_large = found.low > MARGIN or found.high < -MARGIN
        return HOLDS if found.is_small else FAILS if is_large else OPEN
    return {"gain": HOLDS, "loss": FAILS}.get(found.verdict, OPEN)


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
    kind, file, group, name = SIDE_BY_SIDE[text]
    mae, mimae = (row.title for row in paper.TABLE5.rows)
    differences, why = [], ""
    for seed in seeds:
        job = graph.jobs.get(f"seed-{seed}/{kind}/mae_and_mimae")
        found = job and state_of(graph, job.name, wanted)
        if not found or found.state != DONE:
            why = f"{found.job.name}: {found.state}" if found else "data is missing"
            continue
        with open(os.path.join(graph.folder(job.name), file)) as opened:
            against = json.load(opened)[group][mimae][f"against {mae}"]
        if name in against:
            differences.append(against[name])
        else:
            why = f"{job.name} has no {name}"
    one = _over_seeds(differences)
    return Verdict(text, None, one, _word(one) if one else "", why)


def _over_seeds(differences: Sequence[dict]) -> Comparison | None:
    """Join the differences that each seed found on the same test images; None if there are none."""
    if not differences:
        return None
    means = np.array([one["difference"] for one in differences])
    of_images = float(np.mean([(one["high"] - one["low"]) / 2 for one in differences]))
    half = math.hypot(of_images, half_of_mean(means))
    mean = float(means.mean())
    return Comparison(mean, mean - half, mean + half, len(means))


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
            ratios.append(pair[0].seconds / pair[1].seconds)
    if not ratios:
        return Verdict(text, None, None, "", why)
    percent = 100 * (np.array(ratios) - 1)
    half, mean = half_of_mean(percent), float(percent.mean())
    one = Comparison(mean, mean - half, mean + half, len(ratios))
    bound = 100 * (COST - 1)
    word = HOLDS if one.high < bound else FAILS if one.low > bound else OPEN
    return Verdict(text, None, one, word)


HEAD = ("claim", "paper", "here", "seeds", "verdict")


def markdown(verdicts: Sequence[Verdict], scale: str) -> str:
    """The verdicts as a Markdown table with a heading and a note on the intervals."""
    lines = [f"## The paper's claims, scale {scale}", ""]
    lines += [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    lines += [f"| {' | '.join(verdict.cells())} |" for verdict in verdicts]
    lines += [
        "", "Differences in points with 95 % intervals over seeds and test images; without an "
        "interval there is one seed. Claims without a number of the paper's are in its words, or "
        "controls of ours.", "",
    ]  # fmt: skip
    return "\n".join(lines)
