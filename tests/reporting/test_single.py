"""The report of one run: complete, well formed, of whatever a folder has."""

import json
import os

import numpy as np
import pytest
from pages import SCRIPT, check_page, write_run
from PIL import Image

from util.reporting import pictures, single
from util.reporting.numbers import final_numbers
from util.reporting.run_folder import read_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "one")


def test_a_page_has_everything_and_asks_for_nothing(run):
    found = check_page(run / os.path.basename(single.write_report(str(run))))
    for word in ("finished", "node2", "abc", "@recipes/a.args", "command line", "default",
                 "Warnings", "2 times", "Restarts", "Top-1 accuracy", "over 200 test images",
                 "50 s of training", "images/s", "GiB", "torch 2.6", "nats"):  # fmt: skip
        assert word in found.text, word
    assert SCRIPT in found.text and found.num_charts >= 9
    assert "0 throughout: never." in found.text
    assert os.path.getsize(run / "report.html") < 200_000


def test_a_restart_costs_what_was_done_again_and_waited(run):
    found = read_folder(str(run))
    second = found.starts[1]
    assert (second.again, second.lost, second.waited) == (50, 50.0, 800.0)
    assert second.first - second.about["t"] == 10.0 and found.state == "finished"
    xs, _ = found.steps.by_name["loss"]
    assert list(xs) == sorted(set(xs)) and xs[-1] == 300  # nothing twice


def test_what_an_unfinished_run_ends_with_is_its_last_lines(tmp_path):
    """And not a k-NN accuracy of an earlier epoch."""
    lines = [{"epoch": i, "steps": 10 * i, "train_loss": 1 / (i + 1)} for i in range(4)]
    lines[2]["knn_acc1"] = 50.0
    (tmp_path / "log.txt").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = final_numbers(read_folder(str(tmp_path)))
    assert found["train_loss"] == 0.25 and found["epoch"] == 3 and "knn_acc1" not in found


def test_a_return_after_a_nan_drops_what_is_done_again(tmp_path):
    lines = [{"event": "start", "t": 0.0, "step": 0, "command": "python main_pretrain.py"}]
    lines += [{"t": 1.0 * s, "step": s, "loss": 1.0} for s in (1, 2, 3, 4)]
    lines += [{"event": "rollback", "t": 5.0, "step": 4, "to": 2, "reason": "rec nan"}]
    lines += [{"t": 6.0, "step": 3, "loss": 2.0}]
    (tmp_path / "run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_folder(str(tmp_path))
    assert list(found.steps.by_name["loss"][0]) == [1, 2, 3]
    assert list(found.steps.by_name["loss"][1]) == [1, 1, 2]
    page = single.page_of(found).html()
    assert "rec nan; back to step 2" in page and "running, or killed without a word" in page


@pytest.mark.parametrize("left", [(), ("log.txt",), ("run.jsonl",), ("results.json",)])
def test_folders_that_lack_files_or_have_broken_ones(run, tmp_path, left):
    for name in left:
        text = (run / name).read_text()
        (tmp_path / name).write_text(text[: len(text) - 20] + "\n[1, 2]\n{\n")
    (tmp_path / "inputs.png").write_bytes(b"no picture")
    assert single.write_report(str(tmp_path))
    check_page(tmp_path / "report.html")


def test_a_folder_that_cannot_be_written_ends_nothing(run, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    before = sorted(os.listdir(run))
    assert single.write_report(str(run)) is None and "No space left" in caplog.text
    assert sorted(os.listdir(run)) == before


def test_long_logs_make_short_pages_that_keep_the_extremes(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.random((30_000, 8))
    values[12_345, 0] = 1000.0
    with open(tmp_path / "run.jsonl", "w") as file:
        for step, row in enumerate(values):
            numbers = ", ".join(f'"number {i}": {v:.6f}' for i, v in enumerate(row))
            file.write(f'{{"t": {step}, "step": {step}, {numbers}}}\n')
    (tmp_path / "log.txt").write_text('{"epoch": 0, "steps": 30000}\n')
    text = '{"event": "start", "t": 0, "step": 0}\n' + (tmp_path / "run.jsonl").read_text()
    (tmp_path / "run.jsonl").write_text(text)
    single.write_report(str(tmp_path))
    assert check_page(tmp_path / "report.html").num_charts == 8
    assert os.path.getsize(tmp_path / "report.html") < 250_000
    found = read_folder(str(tmp_path)).steps.curve("number 0")
    assert len(found) <= 240 and max(point.high for point in found) == 1000.0
    mean = np.average([p.mean for p in found[:-1]])
    np.testing.assert_allclose(mean, values[: 125 * 239, 0].mean(), rtol=1e-3)


def test_values_that_are_not_finite_break_the_line(run):
    curve = read_folder(str(run)).epochs.curve("train_bad")
    assert [point.mean for point in curve] == [1, 2, None, 4, 5, 6]
    html = single.page_of(read_folder(str(run))).html()
    assert "not finite" not in html.split("Curves", 2)[2].split("<script")[0]


def test_wilsons_interval_holds_its_share():
    from scipy.stats import binomtest

    from util.reporting.numbers import wilson

    for right, count in [(0, 10), (10, 10), (93, 100), (1, 5000), (350, 382)]:
        expected = binomtest(right, count).proportion_ci(method="wilson")
        np.testing.assert_allclose(wilson(right, count), expected, atol=1e-9)


def test_large_pictures_become_small_and_more_than_a_page_holds_are_named(tmp_path):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (600, 4000, 3), dtype=np.uint8))
    noise.save(tmp_path / "a.png")
    for i in range(pictures.MOST):
        Image.new("L", (4, 4)).save(tmp_path / f"b{i:02d}.png")
    html = pictures.gallery(pictures.find(str(tmp_path)))
    assert 'width="1800" height="270"' in html and "data:image/jpeg" in html
    assert len(html) < 700_000 and "1 more: b15.png" in html
    (tmp_path / "pictures").mkdir()
    for name in ("x-00001", "x-00010", "y-00002"):
        Image.new("L", (4, 4)).save(tmp_path / "pictures" / f"{name}.png")
    newest = [os.path.basename(path) for path in pictures.find(str(tmp_path))[-2:]]
    assert newest == ["x-00010.png", "y-00002.png"]
