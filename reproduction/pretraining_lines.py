"""What a table says below it of its rows' pre-trainings: what they explain of the pixels, and how
often L_min moved the encoder, without which (d) of Table 3a is (b)."""

import json
import os
import statistics
from collections import Counter
from collections.abc import Callable, Sequence

from reproduction.graph import Graph
from reproduction.paper import Row
from reproduction.scales import recipe_values
from reproduction.state import DONE, state_of


def explained_lines(
    graph: Graph, rows: Sequence[Row], seeds: Sequence[int], wanted: str | None
) -> str:
    """A paragraph with what each row's pre-training explains of what the data's mean patch leaves,
    in its last epoch; empty where no run is done. Arguments as those of `share_lines`."""
    listed = _listed(graph, rows, seeds, wanted, lambda log: _values(log, "explained")[-1:])
    what = "Explained by pre-training of what the data's mean patch leaves of the pixels"
    return f"\n{what}, mean over seeds: {listed}.\n" if listed else ""


def share_lines(graph: Graph, rows: Sequence[Row], seeds: Sequence[int], wanted: str | None) -> str:
    """A paragraph with the share of a pre-training's steps in which L_min moved the encoder, for
    each row whose recipe has L_min and of which a run is done; empty where there is none.

    Args:
        wanted: the commit whose results count; None counts any.
    """
    with_l_min = [r for r in rows if r.recipe and recipe_values("pretrain", r.recipe).lambda_min]
    # The mean over all epochs, which have as many steps each.
    listed = _listed(
        graph, with_l_min, seeds, wanted, lambda log: _values(log, "train_min_mi_followed")
    )
    what = "Share of the steps in which L_min moved the encoder"
    return f"\n{what}, mean over seeds: {listed}.\n" if listed else ""


def _listed(
    graph: Graph, rows: Sequence[Row], seeds: Sequence[int], wanted: str | None,
    values_of: Callable[[str], list[float]],
) -> str:  # fmt: skip
    """`ROW: 12.3 %; …`: the mean over seeds of each row's mean of the values in its log.txt."""
    found, titles = {}, Counter(row.title for row in rows)
    for row in (row for row in rows if row.recipe):
        jobs = [graph.pretrain(row.recipe, seed) for seed in seeds]
        done = [job for job in jobs if state_of(graph, job, wanted).state == DONE]
        values = [values_of(os.path.join(graph.folder(job), "log.txt")) for job in done]
        known = [statistics.mean(of_run) for of_run in values if of_run]
        if known:
            of_many = f" of {row.epochs} epochs" if titles[row.title] > 1 else ""
            found[row.title + of_many] = 100 * statistics.mean(known)
    return "; ".join(f"{title}: {share:.1f} %" for title, share in found.items())


def _values(log: str, key: str) -> list[float]:
    """The numbers of this name in a log.txt, by epoch; empty where it has none."""
    try:
        with open(log) as file:
            lines = [json.loads(line) for line in file]
    except (OSError, ValueError):
        return []
    return [line[key] for line in lines if line.get(key) is not None]
