"""A run between two epochs: a signal in the test ends it, and what is resumed is the same run."""

import itertools
import signal
from pathlib import Path

import pytest
from harness import differing
from mains import run_in_process
from ranks import in_ranks

import main_finetune
import main_linprobe
import main_pretrain
from util.weights.checkpoint_file import read_checkpoint

COMMON = (
    "--train_fraction 0.05 --batch_size 16 --epochs 2 --warmup_epochs 1 --num_workers 0".split()
)
NANO = ["--model", "vit_nano_patch2"]
TESTED = {  # what a main does between two epochs, and where it finds the function
    "main_finetune": (main_finetune, "evaluate", [*COMMON, *NANO]),
    "main_linprobe": (main_linprobe, "evaluate", [*COMMON, *NANO, "--min_crop", "0.5"]),
    "main_pretrain": (
        main_pretrain,
        "KNNMonitor",
        [*COMMON, "--model", "mimae_vit_nano_patch2", "--knn_every", "1"],
    ),
}


def interrupt(monkeypatch, module, name: str, number: int, calls: int) -> None:
    """Let a signal come when the test number `calls` is half done."""
    found, count = getattr(module, name), itertools.count(1)

    def then(result):
        if next(count) == calls:
            signal.raise_signal(number)
        return result

    def function(*args):
        return then(found(*args))

    class Monitor(found if isinstance(found, type) else object):
        def __call__(self, model):
            return then(super().__call__(model))

    monkeypatch.setattr(module, name, Monitor if isinstance(found, type) else function)


@pytest.mark.parametrize(
    ("main", "number", "calls"),
    [("main_finetune", signal.SIGTERM, 1), ("main_finetune", signal.SIGINT, 2),
     ("main_linprobe", signal.SIGUSR2, 1), ("main_pretrain", signal.SIGTERM, 2)],
)  # fmt: skip
def test_a_signal_in_a_test_ends_the_run_which_goes_on_exactly(
    monkeypatch, tmp_path, main, number, calls
):
    module, name, flags = TESTED[main]
    whole = run_in_process(main, *flags, folder=tmp_path / "whole")
    assert whole.status == 0, whole.err
    with monkeypatch.context() as patch:
        interrupt(patch, module, name, number, calls)
        cut = run_in_process(main, *flags, folder=tmp_path / "cut")
    assert cut.status == 75, cut.err
    assert (
        cut.err
        == f"{signal.Signals(number).name}: the run is saved; --resume auto goes on with it\n"
    )
    assert not (tmp_path / "cut" / "results.json").exists()
    assert len(cut.log()) == calls - 1 if calls > 1 else not (tmp_path / "cut" / "log.txt").exists()
    again = run_in_process(main, *flags, "--resume", "auto", folder=tmp_path / "cut")
    assert again.status == 0, again.err
    assert differing(tmp_path / "whole", tmp_path / "cut") == []


def test_a_signal_before_the_test_is_heard_at_its_start(monkeypatch, tmp_path):
    """It may come when the last step's agreement is over."""
    tested = []
    steps = main_finetune.train_one_epoch

    def train(*args):
        means = steps(*args)
        signal.raise_signal(signal.SIGTERM)
        return means

    monkeypatch.setattr(main_finetune, "train_one_epoch", train)
    monkeypatch.setattr(main_finetune, "evaluate", lambda *args: tested.append(1))
    cut = run_in_process("main_finetune", *COMMON, folder=tmp_path)
    assert cut.status == 75 and "the run is saved" in cut.err and not tested


def on_two_ranks(rank: int, folder: str) -> list:
    """Rank 1 alone hears a signal, in the test."""
    found = main_finetune.evaluate

    def interrupted(model, batches, *args):
        read = batches.dataset.__getitem__
        if rank == 1:
            kind = type(batches.dataset)
            count = itertools.count()

            class Heard(kind):
                def __getitem__(self, item):
                    if next(count) == 40:
                        signal.raise_signal(signal.SIGTERM)
                    return read(item)

            batches.dataset.__class__ = Heard
        return found(model, batches, *args)

    main_finetune.evaluate = interrupted
    flags = [word if word != "16" else "8" for word in [*COMMON, *NANO]]
    outcome = run_in_process("main_finetune", *flags, folder=Path(folder))
    return [outcome.status, outcome.err.removeprefix(f"[rank {rank}] ")]


def test_ranks_leave_a_test_together(tmp_path):
    saved = [75, "SIGTERM: the run is saved; --resume auto goes on with it\n"]
    assert in_ranks(on_two_ranks, 2, tmp_path, str(tmp_path / "cut")) == [saved, saved]
    flags = [*COMMON, *NANO, "--resume", "auto"]
    again = run_in_process("main_finetune", *flags, folder=tmp_path / "cut")
    assert again.status == 0, again.err
    assert [line["epoch"] for line in again.log()] == [0, 1]


def test_the_log_tells_throughput_losses_and_the_time_left_of_the_run(tmp_path):
    flags = [*COMMON, "--model", "mimae_vit_nano_patch2", "--epochs", "3"]
    told = run_in_process(
        "main_pretrain", *flags, "--log_every", 2, "--log_seconds", 0, folder=tmp_path
    )
    assert told.status == 0, told.err
    lines = [line for line in told.out.splitlines() if "in all" in line]
    assert len(lines) == 3 * 4 - 1 and "epoch 2 " in lines[-1]  # but the first
    assert "images/s  loss " in lines[-1] and "  rec " in lines[-1]
    quiet = run_in_process("main_pretrain", *flags, folder=tmp_path / "quiet")
    assert len([line for line in quiet.out.splitlines() if "epoch 0 1/" in line]) == 1
    assert len([line for line in quiet.out.splitlines() if "in all" in line]) < 5


def test_max_steps_leaves_a_kept_checkpoint_as_it_was(tmp_path):
    """Of epoch 1, which ends at step 4; the run is cut at step 6."""
    words = "--train_fraction 0.05 --batch_size 16 --epochs 3 --keep_epochs 1 --max_steps 6"
    words += " --num_workers 0 --model mimae_vit_nano_patch2"
    done = run_in_process("main_pretrain", *words.split(), folder=tmp_path)
    assert done.status == 0, done.err
    steps = {name: read_checkpoint(str(tmp_path / f"checkpoint-{name}.pth"))["progress"]
             for name in ("1", "last")}  # fmt: skip
    assert steps["1"]["total_steps"] == 4 and steps["last"]["total_steps"] == 6
