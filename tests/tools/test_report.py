"""python -m tools.report: anew, of one run or several; bad input in one line."""

import pytest
import torch
from pages import check_page, write_run

from tools import report
from util.errors import UsageError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [write_run(root / name, seed) for seed, name in enumerate(("a", "b"))]


def run(*words) -> None:
    report.main(report.parse_args(list(map(str, words))))


def test_one_run_and_several(folders, tmp_path, monkeypatch, capsys):
    run(folders[0])
    assert check_page(folders[0] / "report.html").num_charts
    monkeypatch.chdir(tmp_path)
    run(*folders, folders[0])  # which is named twice
    assert "2 runs" in check_page(tmp_path / "comparison.html").text
    run(folders[1], "--output", tmp_path / "other.html")
    assert check_page(tmp_path / "other.html") and not (folders[1] / "report.html").exists()
    assert capsys.readouterr().out.splitlines()[1] == "comparison.html"


def test_the_arguments_of_an_older_versions_unfinished_run(tmp_path):
    (tmp_path / "log.txt").write_text('{"epoch": 0, "train_loss": 1.0}\n')
    state = {"args": {"lr": 0.25, "model": "vit"}, "flag_sources": {"lr": "command line"}}
    torch.save(state | {"history": {"commits": ["abc"]}}, tmp_path / "checkpoint-last.pth")
    run(tmp_path)
    text = check_page(tmp_path / "report.html").text
    assert "0.25" in text and "command line" in text and "abc" in text and "Not finished" in text


def test_bad_input_is_one_line_with_the_fix(folders, tmp_path):
    for words, said in [
        ((tmp_path / "nowhere",), "is no folder"),
        ((tmp_path,), "name an --output_dir"),
        ((folders[0].parent,), f"name those below it, as {folders[0]}"),
        ((folders[0], "--output", tmp_path / "no" / "page.html"), "--output FILE"),
    ]:
        with pytest.raises(UsageError) as error:
            run(*words)
        assert said in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
