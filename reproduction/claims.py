"""The claims of the paper as hypotheses: which run should score above which other one."""

from collections.abc import Sequence
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
