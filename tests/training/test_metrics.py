"""Means over an epoch, the check for finite losses and the files."""

import json
import math
import os

import pytest
import torch

from util.training.checkpoint import Progress
from util.training.journal import Journal, write_results
from util.training.metrics import Meters, NonFiniteLoss

CPU = torch.device("cpu")


def test_means_of_an_epoch_go_on_after_a_checkpoint():
    values = [1.0, 2.0, 6.0, 7.0]
    progress = Progress()
    meters = Meters(progress, CPU)
    for step, value in enumerate(values[:2]):
        meters.add(step, {"loss": torch.tensor(value)})
    meters.store()
    restored = Progress()
    restored.load_state_dict(progress.state_dict())
    meters = Meters(restored, CPU)
    for step, value in enumerate(values[2:], 2):
        meters.add(step, {"loss": torch.tensor(value)})
    assert meters.check() == {"loss": 6.5}
    assert meters.means() == {"loss": 4.0}
    meters.reset()
    assert restored.sums == {} and restored.count == 0


def test_the_first_bad_step_is_named():
    meters = Meters(Progress(), CPU)
    for step, value in enumerate([1.0, math.inf, math.nan]):
        meters.add(step, {"loss": torch.tensor(value), "rec": torch.tensor(0.5)})
    with pytest.raises(NonFiniteLoss, match=r"step 1: loss inf, rec 0\.5") as caught:
        meters.check()
    assert caught.value.total_step == 1 and caught.value.status == 3


def test_a_resumed_log_forgets_what_will_be_done_again(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text('{"epoch": 0}\n{"epoch": 1}\n{"epoch": 2, "train_lo')
    journal = Journal(str(tmp_path), Progress(epoch=1))
    journal.epoch({"epoch": 1, "train_loss": math.nan})
    journal.close()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines == [{"epoch": 0}, {"epoch": 1, "train_loss": None}]


def test_a_full_disk_costs_lines_and_no_run(tmp_path, caplog, monkeypatch):
    """Whatever is written to TensorBoard, cut from log.txt, or closed."""

    def is_full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    journal = Journal(str(tmp_path), Progress())
    journal.epoch({"epoch": 0, "train_loss": 1.0})
    for name in ("add_scalar", "add_text", "add_image"):
        monkeypatch.setattr(type(journal.tensorboard), name, is_full)
    journal.scalars({"a": 1.0}, 1)
    journal.text("flags", {"a": "b"})
    journal.image("x", torch.zeros(3, 2, 2), 1)
    assert caplog.text.count("TensorBoard file lost") == 3
    monkeypatch.setattr(journal.tensorboard, "close", is_full)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", is_full)
        journal.forget_after(0)
    assert "log.txt keeps epochs" in caplog.text
    assert "train_loss" in (tmp_path / "log.txt").read_text()
    journal.close()
    assert caplog.text.count("TensorBoard file lost") == 4


def test_results_say_how_to_repeat_them(tmp_path):
    path = tmp_path / "results.json"
    write_results(str(path), {"acc1": 12.5, "loss": math.inf}, 3.21, torch.device("cpu"))
    record = json.loads(path.read_text())
    assert record["acc1"] == 12.5 and record["loss"] is None and record["seconds"] == 3.2
    assert record.keys() >= {"command", "commit", "versions", "device", "processes"}


def test_an_epoch_that_goes_on_with_other_losses_counts_these():
    """Another term was switched on or off, and the run resumed within an epoch."""
    progress = Progress(sums={"loss": 5.0, "uniformity": 2.0}, count=3)
    meters = Meters(progress, CPU)
    meters.add(3, {"loss": torch.tensor(1.0), "rec": torch.tensor(4.0)})
    assert meters.check() == meters.means() == {"loss": 1.0, "rec": 4.0}
