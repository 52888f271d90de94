"""Tables hold what results.json says and nothing else, beside the paper's numbers."""

import csv
import itertools
import json
from pathlib import Path

import pytest
from planted import plant

from reproduction import cells, collect, figures, paper, pretraining_lines
from reproduction.graph import Graph
from reproduction.scales import SMALL_SCALES, ImageNet

ROWS = ("mae_800", "mimae_200", "c_mae", "dino")


@pytest.fixture
def graph(tmp_path):
    return Graph(SMALL_SCALES["demo"], str(tmp_path / "runs"))


def filled(graph, table=paper.TABLE1, keys=ROWS, seeds=(0, 1), wanted="abc"):
    rows = [row for row in table.rows if row.key in keys]
    return cells.fill(graph, table, rows, seeds, wanted)


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
    found = {(cell.row.key, cell.column): cell for row in planted(graph) for cell in row}
    mae, mimae = found["mae_800", "FT"], found["mimae_200", "FT"]
    assert mae.shown() == "81.0 ± 1.4" and not mae.why and mae.published == 83.3
    assert mimae.shown() == "90.5" and mimae.why == "seed 0: missing"
    assert found["mimae_200", "LIN"].shown() == ""
    assert found["c_mae", "FT"].why.startswith("published only")


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
    rows = planted(graph)
    paths = collect.write(str(tmp_path / "tables"), "table1", paper.TABLE1, rows, graph.scale)
    markdown, latex = (Path(path).read_text() for path in paths[:2])
    line = "| MAE | 800 | 81.0 ± 1.4 | 83.3 | 81.0 ± 1.4 | 65.6 | 81.0 ± 1.4 | 45.4 |"
    assert line in markdown.splitlines()
    assert "- c_mae FT: published only: arXiv 2208.04164" in markdown
    assert "- mae_800 FT, seed 1: 82.00; 1 × cpu, 100 s, commit abc: `python main_finetune.py`" in (
        markdown.splitlines()
    )
    assert r"MAE & 800 & 81.0 \textpm 1.4 & 83.3 & 81.0 \textpm 1.4 & 65.6 &" in latex
    assert latex.count(r"\\") == len(ROWS) + 2 and r"fine-tuned, 1 \%" in latex
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


def test_no_number_of_the_papers_stands_where_ours_would(graph):
    """In LaTeX and Markdown each number's column says whose it is, and the caption what of."""
    rows = planted(graph)
    text = collect.latex(paper.TABLE1, rows, graph.scale)
    head = next(line for line in text.splitlines() if "epochs" in line and "&" in line)
    assert [name.strip(" \\") for name in head.split("&")][2:] == ["ours", "paper"] * 3
    for row in rows:
        begin = f"{row[0].row.title} & {row[0].row.epochs or ''} &"
        (line,) = (line for line in text.splitlines() if line.startswith(begin))
        shown = [cell.strip().removesuffix(r" \\") for cell in line.split("&")][2:]
        for cell, ours, published in zip(row, shown[::2], shown[1::2], strict=True):
            assert ours == (cell.shown(r"\textpm") or "--")
            assert published == str(cell.published or "--")
    (caption,) = (line for line in text.splitlines() if r"\caption" in line)
    for words in ("Table 1: ImageNet-1k", "scale demo", "digits", "seeds 0, 1", "other data"):
        assert words in caption
    markdown = collect.table_lines(paper.TABLE1, rows, graph.scale)
    assert "ours | the paper's" in markdown and "| DINO | 800 | -- | 82.8 |" in markdown
    of_imagenet = collect.latex(paper.TABLE1, rows, ImageNet({}))
    assert "scale imagenet" in of_imagenet and "other data" not in of_imagenet


def test_a_cell_of_several_commits_says_so(graph, tmp_path):
    """Its own run went on with another one, or what it needs was trained by another one."""
    filled(graph)
    plant(graph, "seed-0/pretrain/mae_vit_base_800ep", commit="old")
    plant(graph, "seed-0/finetune/mae_vit_base_800ep", commit="new", test_acc1=80.0)
    assert not of_mae(graph, "old").values
    assert of_mae(graph, None).mixed == of_mae(graph, "new").mixed == ["old", "new"]
    plant(graph, "seed-0/pretrain/mae_vit_base_800ep", commit="new")
    assert of_mae(graph, "new").values and not of_mae(graph, "new").mixed
    plant(graph, "seed-0/finetune/mae_vit_base_800ep", commit="new", commits=["old", "new"],
          test_acc1=80.0)  # fmt: skip
    assert not of_mae(graph, "new").values
    rows = filled(graph, seeds=(0,), wanted=None)
    paths = collect.write(str(tmp_path / "tables"), "table1", paper.TABLE1, rows, graph.scale)
    markdown, latex, lines = (Path(path).read_text() for path in paths)
    assert "| MAE | 800 | 80.0† | 83.3 |" in markdown
    assert "†: with code of several commits: old, then new" in markdown
    assert r"80.0$^\dagger$ & 83.3" in latex and r"$^\dagger$: with code of several" in latex
    assert '"old, then new"' in lines


def test_seconds_are_the_runs_own_and_not_its_last_attempts(graph):
    filled(graph)
    name = "seed-0/finetune/mae_vit_base_800ep"
    plant(graph, name, seconds=2 * 3600.0, test_acc1=80.0)
    results = Path(graph.folder(name), "results.json")
    record = json.loads(results.read_text())
    for seconds, shown in ((74 * 3600.0, "266400 s"), (None, "unknown s")):
        results.write_text(json.dumps(record | {"seconds": seconds}))
        assert shown in collect.run_lines(filled(graph))


def test_how_often_l_min_moved_the_encoder_is_told_of_rows_that_have_it(graph):
    rows = [row for row in paper.TABLE3A.rows if row.key in ("a", "b", "d", "f")]
    assert pretraining_lines.share_lines(graph, rows, (0, 1), "abc") == ""
    of_rows = {"table3/d_untrained_approximation": (0.0, 0.1), paper.FULL: (0.2, 0.4)}
    for recipe, shares in of_rows.items():
        for seed in (0, 1):
            folder = plant(graph, graph.pretrain(recipe, seed))
            lines = [{"epoch": i, "train_min_mi_followed": share + seed / 10, "explained": share}
                     for i, share in enumerate(shares)]  # fmt: skip
            Path(folder.path, "log.txt").write_text("\n".join(map(json.dumps, lines)) + "\n")
    plant(graph, graph.pretrain(paper.BASELINE, 0))
    told = pretraining_lines.share_lines(graph, rows, (0, 1), "abc")
    assert "L_apx: 10.0 %; (f) all: MI-MAE: 35.0 %" in told and "(a)" not in told
    told = pretraining_lines.explained_lines(graph, rows, (0, 1), "abc")  # the last epoch's
    assert "L_apx: 10.0 %; (f) all: MI-MAE: 40.0 %" in told and "(a)" not in told
    assert paper.TABLE3A.of_losses and not paper.TABLE1.of_losses


def test_rows_of_one_title_are_told_apart_by_their_epochs(graph):
    rows = paper.TABLE1.rows
    for row, share in zip((row for row in rows if row.recipe), itertools.count(1), strict=False):
        folder = plant(graph, graph.pretrain(row.recipe, 0))
        Path(folder.path, "log.txt").write_text(json.dumps({"explained": share / 100}) + "\n")
    told = pretraining_lines.explained_lines(graph, rows, (0,), "abc")
    recipes = [row for row in rows if row.recipe]
    assert told.count("%") == len(recipes)
    for row in recipes:
        many = sum(other.title == row.title for other in rows) > 1
        assert f"{row.title} of {row.epochs} epochs:" in told if many else f"{row.title}:" in told
