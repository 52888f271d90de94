"""The claims of the paper as hypotheses: which run should score above which other one."""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from reproduction import paper
from reproduction.graph import Graph
from reproduction.paper import Row

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


def _of_table1(better: str, worse: str, text: str, **more) -> list[Claim]:
    titles = {"FT": "fine-tuned", "LIN": "linear probe", "FT1%": "few labels"}
    return [
        Claim(f"{text}, {title}", column, ("table1", better), ("table1", worse), **more)
        for column, title in titles.items()
    ]


def _of_table3a(better: str, worse: str, text: str, **more) -> Claim:
    return Claim(text, "FT", ("table3a", better), ("table3a", worse), **more)


PRETRAINED = {"mimae_200": "MI-MAE (200 epochs)", "mae_800": "MAE (800)"}
CONTROLS = {"scratch": "no pre-training", "initialisation": "its initialisation"}


def _pays(better: str, worse: str) -> str:
    return f"pre-training gains: {PRETRAINED[better]} above {CONTROLS[worse]}"


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
    *(
        claim
        for better, worse in itertools.product(PRETRAINED, CONTROLS)
        for claim in _of_table1(better, worse, _pays(better, worse), ours=True)
    ),
]  # fmt: skip


@dataclass(frozen=True)
class SideBySide:
    """A claim on two of Table 5's rows, by the differences that one run on both has computed.

    Args:
        kind: of the run. name: what its JSON calls the difference.
        better, worse: keys of the rows.
    """

    kind: str
    name: str
    better: str = "mimae_200"
    worse: str = "mae_800"

    @property
    def place(self) -> tuple[str, str]:
        """The file of the run, and what in it holds the encoders by their names."""
        files = {"robustness": ("robustness.json", "classifiers"),
                 "evaluate": ("evaluation.json", "encoders")}  # fmt: skip
        return files[self.kind]

    def titles(self) -> tuple[str, str]:
        """The names of the better and the worse row in the JSON."""
        titles = {row.key: row.title for row in paper.TABLE5.rows}
        return titles[self.better], titles[self.worse]


_CORRUPTED = "accuracy under corruptions"
SIDE_BY_SIDE = {
    "MI-MAE above MAE, under corruptions": SideBySide("robustness", _CORRUPTED),
    "MI-MAE above MAE, logistic regression": SideBySide("evaluate", "logistic, chosen"),
    "MI-MAE above MAE, k-NN": SideBySide("evaluate", "k-NN, chosen"),
    **{
        f"{_pays(better, worse)}, under corruptions": SideBySide(
            "robustness", _CORRUPTED, better, worse
        )
        for better, worse in itertools.product(PRETRAINED, CONTROLS)
    },
}


def left_out(graph: Graph, claim: Claim, rows: Collection[str] = ()) -> list[str]:
    """Keys of the rows of a claim that the scale leaves out, unless they are among `rows`."""
    found = []
    for table, key in (claim.better, claim.worse):
        if key in graph.scale.left_out.get(table, ()) and key not in rows:
            found.append(key)
    return found


def prepare(graph: Graph, seeds: Sequence[int], rows: Collection[str] = ()) -> None:
    """Add every job that a claim needs to the graph, but for claims on rows that are left out.

    Args:
        rows: keys of rows that were asked for by name.
    """
    for seed in seeds:
        for claim in CLAIMS:
            if left_out(graph, claim, rows):
                continue
            for which in ("better", "worse"):
                graph.cell(claim.row(which), claim.column, seed)
        graph.pretrain(paper.FULL, seed)
        graph.pretrain(paper.BASELINE, seed)
        graph.frozen(seed)
        if not graph.scale.lacks("C"):
            graph.robustness(seed)
