"""How often L_min moved the encoder: where it hardly did, (d) of Table 3a is (b)."""

import json
import os
import statistics
from collections.abc import Sequence

from reproduction.graph import Graph
from reproduction.paper import Row
from reproduction.scales import recipe_values
from reproduction.state import DONE, state_of

KEY = "train_min_mi_followed"


def share_lines(graph: Graph, rows: Sequence[Row], seeds: Sequence[int], wanted: str | None) -> str:
    """A paragraph with the share of a pre-training's steps in which L_min moved the encoder, for
    each row whose recipe has L_min and of which a run is done; empty where there is none.

    Args:
        wanted: the commit whose results count; None counts any.
    """
    found = {}
    for row in rows:
        if not row.recipe or not recipe_values("pretrain", row.recipe).lambda_min:
            continue
        jobs = [graph.pretrain(row.recipe, seed) for seed in seeds]
        shares = [
            _share(os.path.join(graph.folder(job), "log.txt"))
            for job in jobs
            if state_of(graph, job, wanted).state == DONE
        ]
        known = [share for share in shares if share is not None]
        if known:
            found[row.title] = 100 * statistics.mean(known)
    if not found:
        return ""
    listed = "; ".join(f"{title}: {share:.1f} %" for title, share in found.items())
    return f"\nShare of the steps in which L_min moved the encoder, mean over seeds: {listed}.\n"


def _share(log: str) -> float | None:
    """The mean over all epochs of a log.txt, which have as many steps each; None: not in it."""
    try:
        with open(log) as file:
            lines = [json.loads(line) for line in file]
    except (OSError, ValueError):
        return None
    values = [line[KEY] for line in lines if line.get(KEY) is not None]
    return statistics.mean(values) if values else None
