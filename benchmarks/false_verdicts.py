"""How often a table of claims says something false: reproduce.py's verdicts on runs whose truth is
known, and what the former method and two others would have said of the same runs.

python benchmarks/false_verdicts.py --tables 4000

Draws tables of the claims on fine-tuning (27, many of which share runs): each run's accuracy varies
over seeds, in some tables one run's three times as much, and over the test images, which all runs
share. Prints the share of tables with any false verdict, which should be 5 % at most, and then what
that costs: how often a real gain is told.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from reproduction.claims import CLAIMS
from reproduction.paper import FULL, Row
from util.evaluation.over_seeds import LEVEL, half_width, holm, p_value
from util.evaluation.paired import MARGIN
from util.flags.args import number

COLUMN = "FT"
OF_SEEDS, OF_IMAGES = 0.3, 0.1  # points: a run's standard deviation, of each
ALONE = "table3/lambda_1_20"  # a run of one claim
Method = Callable[["Tables"], np.ndarray]


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tables", type=number(int, 1), default=4000, help="to draw, for each line")
    add("--seeds", type=number(int, 2), nargs="+", default=[3, 5], help="of each run")
    add("--gains", type=float, nargs="+", default=[1, 2, 4, 8], help="in points, of one run")
    add("--seed", type=number(int, 0), default=0, help="of the draws")
    return parser


def run_of(row: Row) -> str:
    """What tells the run behind a row from others."""
    return row.recipe or f"scratch_{row.family}"


OURS = [claim for claim in CLAIMS if claim.column == COLUMN]
RUNS = list(dict.fromkeys(run_of(c.row(which)) for c in OURS for which in ("better", "worse")))
BETTER, WORSE = (
    np.array([RUNS.index(run_of(claim.row(which))) for claim in OURS])
    for which in ("better", "worse")
)
IS_SMALL = np.array([claim.small for claim in OURS])


@dataclass
class World:
    """What is true of the runs: their gains in points, and by what factor one varies more."""

    name: str
    factors: dict[str, float] = field(default_factory=dict)
    gains: dict[str, float] = field(default_factory=dict)

    @property
    def truth(self) -> np.ndarray:
        """The true difference of each claim, [claims]."""
        gain = np.array([self.gains.get(run, 0.0) for run in RUNS])
        return gain[BETTER] - gain[WORSE]


WORLDS = (
    World("all runs vary alike"),
    World("MI-MAE's run varies three times as much", {FULL: 3.0}),
    World("a run of one claim varies three times as much", {ALONE: 3.0}),
    World("the same, and MI-MAE's is 2 points better", {ALONE: 3.0}, {FULL: 2.0}),
)


@dataclass
class Tables:
    """Drawn tables: the claims' differences by seed [tables, claims, seeds], and their standard
    error over images."""

    values: np.ndarray
    of_images: float = OF_IMAGES * 2**0.5

    @property
    def mean(self) -> np.ndarray:
        return self.values.mean(2)

    @property
    def of_seeds(self) -> np.ndarray:
        return self.values.std(2, ddof=1) / self.values.shape[2] ** 0.5

    @property
    def freedom(self) -> int:
        return self.values.shape[2] - 1

    @property
    def distance(self) -> np.ndarray:
        """How far each difference is from what its verdict is about."""
        return np.abs(np.abs(self.mean) - MARGIN * IS_SMALL)


def draw(world: World, tables: int, seeds: int, rng: np.random.Generator) -> Tables:
    """Draw tables in which each run has its spread over seeds, and its own luck with the images."""
    factors = np.array([world.factors.get(run, 1.0) for run in RUNS])
    gains = np.array([world.gains.get(run, 0.0) for run in RUNS])
    runs = gains[:, None] + OF_SEEDS * factors[:, None] * rng.standard_normal(
        (tables, len(RUNS), seeds)
    )
    runs += OF_IMAGES * rng.standard_normal((tables, len(RUNS), 1))
    return Tables(runs[:, BETTER] - runs[:, WORSE])


# A method decides, by claim, whether its verdict is given: [tables, claims] of booleans.


def own(tables: Tables) -> np.ndarray:
    """p of each claim by its own spread."""
    return p_value(tables.distance, tables.of_seeds, tables.of_images, tables.freedom)


def now(tables: Tables) -> np.ndarray:
    return holm(own(tables)) <= LEVEL


def uncorrected(tables: Tables) -> np.ndarray:
    return own(tables) <= LEVEL


def before(tables: Tables) -> np.ndarray:
    """The spread pooled over the table's claims, nothing corrected."""
    of_seeds = np.sqrt((tables.of_seeds**2).mean(1, keepdims=True))
    freedom = tables.freedom * len(OURS)
    of_images = 1.96 / abs(half_width(LEVEL, 0.0, 1.0, 1)) * tables.of_images
    return tables.distance > half_width(LEVEL, of_seeds, of_images, freedom)


def satterthwaite(tables: Tables) -> np.ndarray:
    """Student's t of the sum of both variances, its degrees of freedom estimated; Holm."""
    from scipy.special import stdtr

    seeds, images = tables.of_seeds**2, tables.of_images**2
    freedom = (seeds + images) ** 2 / (seeds**2 / tables.freedom)
    return holm(2 * stdtr(freedom, -tables.distance / np.sqrt(seeds + images))) <= LEVEL


METHODS: dict[str, Method] = {
    "own spread, Holm (now)": now,
    "pooled, uncorrected (before)": before,
    "own spread, uncorrected": uncorrected,
    "Satterthwaite, Holm": satterthwaite,
}


def are_false(is_given: np.ndarray, tables: Tables, truth: np.ndarray) -> np.ndarray:
    """Which verdicts that are given are false, [tables, claims]: of no difference that there is
    one, of a difference the wrong sign, or that a small one is large or a large one small."""
    wrong_sign = np.sign(tables.mean) != np.sign(truth)
    wrong_size = (np.abs(tables.mean) < MARGIN) != (np.abs(truth) < MARGIN)
    return is_given & np.where(IS_SMALL, wrong_size, wrong_sign)


def rate_of_false_tables(
    world: World, seeds: int, count: int, methods: dict[str, Method], seed: int = 0
) -> dict[str, tuple[float, float]]:
    """By method: the share of tables with any false verdict, and of false verdicts on claims with
    the run that varies most; of these the mean over claims."""
    tables = draw(world, count, seeds, np.random.default_rng(seed))
    varying = [RUNS.index(run) for run in world.factors]
    of_it = np.isin(BETTER, varying) | np.isin(WORSE, varying) if varying else BETTER >= 0
    of_it &= ~IS_SMALL
    found = {}
    for name, method in methods.items():
        false = are_false(method(tables), tables, world.truth)
        found[name] = false.any(1).mean(), false[:, of_it].mean()
    return found


def power(gain: float, seeds: int, count: int, seed: int = 0) -> dict[str, float]:
    """By method: the share of tables in which the gain of the run of one claim is told."""
    world = World("", gains={ALONE: -gain})
    tables = draw(world, count, seeds, np.random.default_rng(seed))
    (claim,) = np.flatnonzero(RUNS.index(ALONE) == WORSE)
    is_right = tables.mean[:, claim] > 0
    return {name: (m(tables)[:, claim] & is_right).mean() for name, m in METHODS.items()}


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    args = get_args_parser().parse_args()
    print(
        f"{len(OURS)} claims on {len(RUNS)} runs, {args.tables} tables a line; a run's standard "
        f"deviation is {OF_SEEDS} points over seeds, {OF_IMAGES} over images\n\n"
        "Tables with any false verdict (and claims of the run that varies most), in %:\n"
    )
    print(_row(["", "seeds", *METHODS]) + "\n" + "|---" * (len(METHODS) + 2) + "|")
    for world in WORLDS:
        for seeds in args.seeds:
            rates = rate_of_false_tables(world, seeds, args.tables, METHODS, args.seed)
            cells = [f"{100 * any_:.1f} ({100 * each:.1f})" for any_, each in rates.values()]
            print(_row([world.name, str(seeds), *cells]), flush=True)
    print("\nTables in which a real gain of one claim is told, in %:\n")
    print(_row(["gain, points", "seeds", *METHODS]) + "\n" + "|---" * (len(METHODS) + 2) + "|")
    for gain in args.gains:
        for seeds in args.seeds:
            shares = power(gain, seeds, args.tables, args.seed).values()
            cells = [f"{100 * share:.0f}" for share in shares]
            print(_row([f"{gain:g}", str(seeds), *cells]), flush=True)


if __name__ == "__main__":
    main()
