"""Training time and commits over several starts of a run, and what older checkpoints do not say."""

import argparse
import json

import pytest
import torch
from torch import nn

from util.flags.settings import Settings
from util.training import history
from util.training.checkpoint import Checkpointer, Progress
from util.training.history import History
from util.weights.checkpoint_file import read_checkpoint

HOUR = 3600.0


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets forward."""
    now = [1000.0]
    monkeypatch.setattr(history.time, "monotonic", lambda: now[0])
    return now


def checkpointer(folder, kept: History) -> Checkpointer:
    args = argparse.Namespace(keep_checkpoints=1, settings=Settings({}, {}))
    return Checkpointer(
        str(folder), {"model": nn.Linear(1, 1)}, Progress(), {"model": "linear"}, args, kept
    )


def test_72_hours_and_2_hours_are_74_over_a_requeue(tmp_path, clock):
    first = History("abc")
    first.go()
    clock[0] += 72 * HOUR
    saver = checkpointer(tmp_path, first)
    assert saver.save(wait=True)
    clock[0] += 5 * HOUR  # lost by a kill
    second = History("abc")
    clock[0] += 1 * HOUR  # in the queue, and setting up
    assert checkpointer(tmp_path, second).resume("auto")
    second.go()
    clock[0] += 2 * HOUR
    assert second.seconds == 74 * HOUR and second.commits == ["abc"]
    second.stand()
    clock[0] += 9 * HOUR  # evaluating
    assert second.seconds == 74 * HOUR


def test_another_commit_is_kept_and_said(tmp_path, caplog):
    checkpointer(tmp_path, History("abc")).save(wait=True)
    second = History("def")
    saver = checkpointer(tmp_path, second)
    assert saver.resume("auto") and "another commit than before: abc, then def" in caplog.text
    saver.save(wait=True)
    third = History("abc")
    checkpointer(tmp_path, third).resume("auto")
    assert third.commits == ["def", "abc"]


def test_an_older_checkpoint_says_neither(tmp_path, clock):
    checkpointer(tmp_path, History("abc")).save(wait=True)
    path = tmp_path / "checkpoint-last.pth"
    state = read_checkpoint(str(path))
    del state["history"]
    torch.save(state, path)
    kept = History("def")
    saver = checkpointer(tmp_path, kept)
    assert saver.resume("auto")
    kept.go()
    clock[0] += 10
    kept.stand()
    assert kept.seconds is None and kept.commits == ["unknown", "def"]
    saver.save(wait=True)  # and stays unknown
    again = History("def")
    checkpointer(tmp_path, again).resume("auto")
    assert again.seconds is None


def test_parts_that_are_runs_of_their_own_add_up():
    whole = History("b")
    whole.add({"seconds": 3.0, "commit": "a"})
    whole.add({"seconds": 4.0, "commit": "b", "commits": ["a", "b"]})
    assert whole.seconds == 7 and whole.commits == ["a", "b"]
    whole.add({"seconds": None, "commit": "b"})
    assert whole.seconds is None


DENSE = ("--model", "vit_tiny_patch4", "--input_size", "32", "--batch_size", "2")
DENSE += ("--warmup_iterations", "0", "--eval_every", "2")
MAINS = {
    "main_pretrain": ("--dataset", "digits", "--train_fraction", "0.1"),
    "main_finetune": ("--dataset", "digits", "--train_fraction", "0.1"),
    "main_linprobe": ("--dataset", "digits", "--train_fraction", "0.1"),
    "main_segmentation": (*DENSE, "--decoder_channels", "8"),
    "main_detection": DENSE,
}


@pytest.mark.parametrize(
    "main", [pytest.param(m, marks=pytest.mark.slow) if "detection" in m else m for m in MAINS]
)
def test_each_main_keeps_its_seconds_over_a_resume(
    run_main_here, tmp_path, monkeypatch, scenes, main
):
    """A run that is cut and goes on has as many seconds as its steps took, not those of the end."""
    # Each look at the clock is a second later: what is counted is how long steps went on.
    ticks = iter(range(10**9))
    monkeypatch.setattr(history.time, "monotonic", lambda: float(next(ticks)))
    seconds, flags = [], MAINS[main]
    is_dense = "--eval_every" in flags
    flags += ("--data_path", str(scenes)) if is_dense else ()
    for steps in (2, 4, 4):
        more = ("--iterations" if is_dense else "--max_steps", steps)
        more += ("--num_workers", "0", "--resume", "auto")
        outcome = run_main_here(main, *flags, *more, folder=tmp_path)
        assert outcome.status == 0, outcome.err
        seconds.append(json.loads((tmp_path / "results.json").read_text())["seconds"])
    assert 0 < seconds[0] < seconds[1] == seconds[2]
