"""Tables hold what results.json says and nothing else, beside the paper's numbers."""

import csv
from pathlib import Path

import pytest
from planted import plant

from reproduction import collect, figures, paper
from reproduction.graph import Graph
from reproduction.scales import SMALL_SCALES

ROWS = ("mae_800", "mimae_200", "c_mae", "dino")


@pytest.fixture
def graph(tmp_path):
    return Graph(SMALL_SCALES["demo"], str(tmp_path / "runs"))


def filled(graph, table=paper.TABLE1, keys=ROWS, seeds=(0, 1), wanted="abc"):
    rows = [row for row in table.rows if row.key in keys]
    return collect.fill(graph, table, rows, seeds, wanted)


def of_mae(graph, wanted="abc"):
    """MAE's fine-tuned cell."""
    return next(row[0] for row in filled(graph, wanted=wanted) if row[0].row.key == "mae_800")


def planted(graph):
    """MAE's three numbers with two seeds, MI-MAE's first with one."""
    filled(graph)
    for seed, score in ((0, 80.0), (1, 82.0)):
        for kind in ("finetune", "linprobe", "one_percent"):
            name = f"seed-{seed}/{kind}/mae_vit_base_800ep"
            plant(graph, name, test_acc1=score, seconds=100)
    plant(graph, "seed-1/finetune/mimae_vit_base_200ep", test_acc1=90.5)
    return filled(graph)


def test_numbers_are_the_runs_own(graph):
    cells = {(cell.row.key, cell.column): cell for row in planted(graph) for cell in row}
    mae, mimae = cells["mae_800", "FT"], cells["mimae_200", "FT"]
    assert mae.shown() == "81.0 ± 1.4" and not mae.why and mae.published == 83.3
    assert mimae.shown() == "90.5" and mimae.why == "seed 0: missing"
    assert cells["mimae_200", "LIN"].shown() == ""
    assert cells["c_mae", "FT"].why.startswith("published only")


def test_no_cell_without_its_json(graph):
    """Nothing is filled from the paper, from another commit, other flags, or a run that lives."""
    assert not any(cell.values for row in filled(graph) for cell in row)
    name = "seed-0/finetune/mae_vit_base_800ep"
    folder = plant(graph, name, commit="other", test_acc1=80.0)
    assert not any(cell.values for row in filled(graph) for cell in row)
    assert of_mae(graph, None).shown() == "80.0"
    assert of_mae(graph, "other").shown() == "80.0"
    folder.write(command=["main_finetune", "--epochs", "1"])
    cell = of_mae(graph, None)
    assert not cell.values and "done with other flags: main_finetune --epochs 1" in cell.why
    folder.write(command=folder.command)
    plant(graph, name, test_loss=1.0)
    cell = of_mae(graph)
    assert not cell.values and "has no test_acc1" in cell.why


def test_markdown_latex_and_csv_say_the_same(graph, tmp_path):
    cells = planted(graph)
    paths = collect.write(str(tmp_path / "tables"), "table1", paper.TABLE1, cells, "demo")
    markdown, latex = (Path(path).read_text() for path in paths[:2])
    line = "| MAE | 800 | 81.0 ± 1.4 | 83.3 | 81.0 ± 1.4 | 65.6 | 81.0 ± 1.4 | 45.4 |"
    assert line in markdown.splitlines()
    assert "- c_mae FT: published only: arXiv 2208.04164" in markdown
    assert "- mae_800 FT, seed 1: 82.00; 1 × cpu, 100 s, commit abc: `python main_finetune.py`" in (
        markdown.splitlines()
    )
    assert r"MAE & 800 & 81.0 \textpm 1.4 (83.3) & 81.0 \textpm 1.4 (65.6)" in latex
    assert latex.count(r"\\") == len(ROWS) + 1 and r"fine-tuned, 1 \%" in latex
    with open(paths[2], newline="") as file:
        lines = list(csv.DictReader(file))
    found = [line for line in lines if line["row"] == "mae_800" and line["column"] == "FT"]
    assert [(line["seed"], line["value"]) for line in found] == [("0", "80.0"), ("1", "82.0")]
    assert all(line["commit"] == "abc" and line["paper"] == "83.3" for line in found)
    empty = [line for line in lines if line["row"] == "dino"]
    assert all(not line["value"] and line["why_empty"] for line in empty) and len(empty) == 3


def test_figure_2_has_a_curve_for_each_kind_of_masks(graph):
    keys = [row.key for row in paper.FIGURE2.rows]
    filled(graph, paper.FIGURE2, keys, (0,))
    for name in list(graph.jobs):
        if "/finetune/" in name:
            plant(graph, name, test_acc1=50.0 + len(name) % 7)
    picture = figures.figure2(filled(graph, paper.FIGURE2, keys, (0,)))
    blue, orange = (0, 114, 178), (213, 94, 0)
    colours = {colour for _, colour in picture.getcolors(1 << 20)}
    assert {blue, orange} <= colours
    empty = figures.figure2(filled(graph, paper.FIGURE2, keys, (5,)))
    assert empty.size == picture.size
