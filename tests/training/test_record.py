"""run.jsonl: what a start, its numbers, its warnings and its end leave, and what may go wrong."""

import argparse
import json
import logging
import os
import types

import pytest
import torch
from pages import check_page
from PIL import Image

from util.errors import RunError
from util.flags.settings import Settings
from util.reporting.run_folder import read_folder
from util.training import inputs
from util.training.checkpoint import Progress
from util.training.history import History
from util.training.record import Record
from util.training.signals import Interrupted


def arguments(folder) -> argparse.Namespace:
    args = argparse.Namespace(dataset="digits", data_path="", model="vit", output_dir=str(folder),
                              blr=1e-3, lr=2e-3, mean=[0.5], std=[0.25])  # fmt: skip
    groups = {"data": ["dataset", "data_path"], "optimisation": ["blr", "lr"]}
    args.settings = Settings(groups, {"dataset": "command line"})
    return args


def record(folder) -> Record:
    return Record(arguments(folder), torch.device("cpu"))


def begin(one: Record, step: int) -> None:
    batches = types.SimpleNamespace(dataset=range(100))
    progress, history = Progress(total_steps=step), History("abc")
    one.begin(history, progress, batches, 32, torch.nn.Linear(1000, 2000, bias=False))


def events(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]


def test_a_start_after_a_line_that_was_cut_off_is_told(tmp_path):
    for step, cut in ((0, '{"t": 1.0, "step": 10, "lo'), (5, "")):
        one = record(tmp_path)
        begin(one, step)
        one.numbers(step + 5, {"loss": 0.5})
        one.close()
        with open(tmp_path / "run.jsonl", "a") as file:
            file.write(cut)
    found = read_folder(str(tmp_path))
    assert len(found.starts) == 2
    assert list(found.steps.by_name["loss"][0]) == [5, 10]


def test_a_start_says_what_it_is_and_what_was_warned_of(tmp_path):
    log, one = logging.getLogger("some.module"), record(tmp_path)
    log.warning("before the folder is known: %d", 1)
    log.info("no warning")
    begin(one, 0)
    one.numbers(10, {"images_per_second": 5.0, "loss": 0.123456789, "bad": float("nan")})
    log.error("in training")
    one.end(10)
    log.warning("too late")
    one.close()
    start, before, numbers, during, end = events(tmp_path)
    assert start["flags"]["lr"] == 2e-3 and start["commit"] == "abc" and start["step"] == 0
    assert start["flag_sources"] == {"dataset": "command line", "lr": "--blr"}
    assert "2.00 M" in start["model_size"] and "100 training images" in start["data"]
    assert before["text"] == "before the folder is known: 1" and during["level"] == "ERROR"
    assert numbers["loss"] == 0.123457 and numbers["bad"] is None and numbers["memory_gib"] > 0
    assert numbers["images_per_second"] > 0 and end["reason"] == "finished"
    assert "before the folder is known" in check_page(tmp_path / "report.html").text
    assert one not in logging.getLogger().handlers


@pytest.mark.parametrize(
    "error, said, has_report",
    [
        (Interrupted("SIGTERM: the run is saved"), "SIGTERM: the run is saved", True),
        (RunError("no space\nand more"), "no space", True),
        (ValueError("x"), "ValueError: x", True),
        (KeyboardInterrupt(), "KeyboardInterrupt: KeyboardInterrupt", False),
    ],
)
def test_the_end_names_its_reason(tmp_path, error, said, has_report):
    one = record(tmp_path)
    begin(one, 7)
    one.end(9, error)
    one.close()
    assert events(tmp_path)[-1]["reason"] == said
    assert read_folder(str(tmp_path)).state == said
    assert (tmp_path / "report.html").exists() == has_report


def test_what_never_began_leaves_nothing(tmp_path):
    one = record(tmp_path)
    one.end(0, RunError("--finetune is missing"))
    one.close()
    assert not os.listdir(tmp_path)


def test_a_disk_that_takes_nothing_is_said_once_and_ends_nothing(tmp_path, caplog):
    one = record(tmp_path / "nowhere")
    begin(one, 0)
    for step in range(3):
        one.numbers(step, {"loss": 1.0})
    one.end(3)
    one.close()
    assert caplog.text.count("run.jsonl cannot be written") == 1

    class Full:
        def write(self, text: str) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            pass

    one = record(tmp_path)
    begin(one, 0)
    one.file.close()
    one.file = Full()
    one.numbers(1, {})
    one.numbers(2, {})
    one.close()
    assert caplog.text.count("No space left") == 1


def test_only_rank_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("util.cluster.distributed.rank", lambda: 1)
    one = record(tmp_path)
    begin(one, 0)
    one.seen(torch.rand(2, 1, 8, 8))
    one.numbers(1, {"loss": 1.0})
    one.end(1)
    one.close()
    assert not os.listdir(tmp_path)


def test_inputs_are_the_first_batchs_with_normalisation_undone(tmp_path):
    pixels = torch.rand(3, 1, 8, 8)
    one = record(tmp_path)
    begin(one, 0)
    batch = ((pixels - 0.5) / 0.25, torch.zeros(3))
    assert one.seen(batch) is batch
    one.seen(torch.zeros(3, 1, 8, 8))  # a later one
    one.close()
    with Image.open(tmp_path / "inputs.png") as sheet:
        gap, cell = inputs.GAP, inputs.CELL
        assert sheet.size == (3 * (cell + gap) + gap, cell + 2 * gap)
        found = torch.tensor([
            sheet.getpixel((gap + i * (cell + gap) + 14 * x + 7, gap + 14 * y + 7))[0]
            for i in range(3) for y in range(8) for x in range(8)
        ])  # fmt: skip
    torch.testing.assert_close(found / 255, pixels.flatten(), atol=0.003, rtol=0)


def test_sheets_of_features_lists_and_other_scales(tmp_path):
    one = record(tmp_path)
    begin(one, 0)
    one.seen(torch.rand(4, 16))
    assert not (tmp_path / "inputs.png").exists()
    for imgs in (
        [torch.rand(3, 5, 9), torch.rand(3, 300, 20)], torch.rand(40, 2, 8, 8),
        torch.randn(2, 1, 4, 4) * 1000, torch.rand(1, 5, 1, 30),
    ):  # fmt: skip
        inputs.write_inputs(str(tmp_path), imgs, [0.5], [0.5])
        Image.open(tmp_path / "inputs.png").load()
        os.unlink(tmp_path / "inputs.png")
    inputs.write_inputs(str(tmp_path / "nowhere"), torch.rand(1, 1, 4, 4), [0.5], [0.5])
    one.close()
