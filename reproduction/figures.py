"""The figures: accuracy against the mask ratio, and the losses of a pre-training."""

import json
import os
import statistics
from collections.abc import Sequence

from PIL import Image

from reproduction.cells import Cell
from reproduction.graph import Graph
from reproduction.paper import BASELINE, FULL, KINDS_OF_MASKS, RATIOS
from reproduction.state import DONE, state_of
from util.evaluation.charts import line_chart

CURVES = {BASELINE: "MAE", FULL: "MI-MAE"}  # recipes of the loss curves
LOSSES = {
    "train_rec": "L_rec", "train_max_mi": "L_max", "train_min_mi": "L_min",
    "train_info_nce_accuracy": "share of masks nearest to one of their image",
}  # fmt: skip


def figure2(cells: Sequence[Sequence[Cell]]) -> Image.Image:
    """Figure 2: fine-tuned accuracy by mask ratio, mean and standard deviation over the seeds.

    Draws a curve each for complete masks (as many as cover the image) and for four masks.
    """
    by_key = {row[0].row.key: row[0] for row in cells}
    curves, spreads = {}, {}
    for kind, title in KINDS_OF_MASKS.items():
        found = [list(by_key[f"{kind}_{r}"].values.values()) if f"{kind}_{r}" in by_key else []
                 for r in RATIOS]  # fmt: skip
        curves[title] = [statistics.mean(values) if values else None for values in found]
        spreads[title] = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in found]
    return line_chart("Figure 2: fine-tuned accuracy", "mask ratio", RATIOS, curves, "%", spreads)


def losses(graph: Graph, seed: int, wanted: str | None) -> dict[str, list[dict]]:
    """The lines of log.txt of the MAE and MI-MAE pre-trainings that are done, by method."""
    found = {}
    for recipe, name in CURVES.items():
        job = graph.pretrain(recipe, seed)
        if state_of(graph, job, wanted).state == DONE:
            with open(os.path.join(graph.folder(job), "log.txt")) as file:
                found[name] = [json.loads(line) for line in file]
    return found


def loss_curves(logs: dict[str, list[dict]]) -> Image.Image:
    """One picture of four charts, each a quantity of LOSSES against the share of steps done."""
    ticks = [f"{share} %" for share in range(10, 101, 10)]
    charts = []
    for key, title in LOSSES.items():
        curves = {}
        for name, lines in logs.items():
            values = [line[key] for line in lines if key in line]
            if any(values):  # of a loss that is not in use the log has zeros
                curves[name] = [values[(len(values) * i - 1) // 10] for i in range(1, 11)]
        charts.append(line_chart(title, "of the steps", ticks, curves, ""))
    width, height = charts[0].size
    sheet = Image.new("RGB", (2 * width, 2 * height), "white")
    for index, chart in enumerate(charts):
        sheet.paste(chart, (index % 2 * width, index // 2 * height))
    return sheet
