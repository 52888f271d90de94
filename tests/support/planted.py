"""Runs that were never made: what a job leaves in its folder, with numbers of the test's."""

import json
import os

import numpy as np

from reproduction.graph import Graph
from reproduction.state import Folder


def plant(
    graph: Graph, name: str, commit: str = "abc", seconds: float = 10.0, right=None, **numbers
) -> Folder:
    """A job that is done.

    Args:
        right: which test images it has right, booleans [images].
    """
    folder = Folder(graph, graph.jobs[name])
    folder.begin()
    folder.end(0)
    attempts = folder.record()["attempts"]
    attempts[-1] |= {"start": 1e9, "end": 1e9 + seconds}  # none began after another
    folder.write(attempts=attempts)
    results = numbers | {
        "commit": commit, "command": f"python {folder.job.main}.py", "device": "cpu",
        "processes": 1, "seconds": seconds,
    }  # fmt: skip
    with open(os.path.join(folder.path, "results.json"), "w") as file:
        json.dump(results, file)
    if right is not None:
        table = np.stack([np.where(right, 1, 0), np.ones(len(right))], 1).astype(np.int32)
        np.save(os.path.join(folder.path, "test_predictions.npy"), table)
    return folder
