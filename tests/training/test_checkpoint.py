"""Saves in the background: what is copied, in which order it is written, and what fails."""

import argparse
import os
import threading
import time

import pytest
import torch
from torch import nn

from encoders.vit import build_vit
from util.flags.settings import Settings
from util.training import background, checkpoint
from util.training.background import Snapshot
from util.training.checkpoint import Checkpointer, Progress
from util.training.muon import new_optimizer
from util.training.optim import adamw, decay_groups
from util.weights import checkpoint_file
from util.weights.checkpoint_file import read_checkpoint

flush = os.fsync  # as it was before the tests replace it


def checkpointer(folder, **flags) -> Checkpointer:
    """Of a linear layer and its optimiser, which has made a step."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = adamw(decay_groups(model, 0.05))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    settings = Settings({}, {})
    args = argparse.Namespace(keep_checkpoints=3, amp="none", seed=0, settings=settings, **flags)
    objects = {"model": model, "optimizer": optimizer}
    return Checkpointer(str(folder), objects, Progress(), {"model": "linear"}, args)


@pytest.fixture
def held(monkeypatch):
    """Flushes wait for this event."""
    event = threading.Event()

    def fsync(descriptor):
        assert event.wait(60)
        flush(descriptor)

    monkeypatch.setattr(checkpoint_file.os, "fsync", fsync)
    yield event
    event.set()


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_resumed_optimiser_has_the_flags_of_now_and_the_state_of_then(tmp_path, kind):
    """The learning rate is the schedule's; all else is as the log says: other flags count."""

    def made(decay: float, betas: tuple[float, float]):
        torch.manual_seed(0)
        model = build_vit("vit_nano_patch2", 2, 8, in_chans=1)
        optimizer = new_optimizer(kind, model, decay_groups(model, decay), betas)
        return model, optimizer

    (model, before), (_, after) = made(0.05, (0.9, 0.95)), made(0.1, (0.9, 0.99))
    model(torch.rand(2, 1, 8, 8)).sum().backward()
    before.step()
    Checkpointer._restore("optimizer", after, before.state_dict(), "x.pth")
    decays = {group["weight_decay"] for group in after.param_groups}
    assert decays == {0.0, 0.1}
    assert {g["betas"] for g in after.param_groups if "betas" in g} == {(0.9, 0.99)}
    then, now = before.state_dict()["state"], after.state_dict()["state"]
    assert then.keys() == now.keys() and len(now) > 10
    for key, values in then.items():
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(now[key][name]))
                   for name, v in values.items())  # fmt: skip


def train(saver: Checkpointer) -> None:
    """Change all that a checkpoint holds."""
    model, optimizer = saver.objects["model"], saver.objects["optimizer"]
    model(torch.ones(1, 3)).sum().backward()
    optimizer.param_groups[0]["lr"] *= 2
    optimizer.step()
    saver.progress.total_steps += 1
    saver.progress.skipped.append(saver.progress.total_steps)
    saver.args.seed += 1
    saver.config["model"] = "another"


def flat(value) -> list:
    """All values of nested containers, tensors as lists."""
    if isinstance(value, torch.Tensor):
        return [value.tolist()]
    if isinstance(value, dict):
        return [flat(item) for item in value.values()]
    return [flat(item) for item in value] if isinstance(value, list | tuple) else [value]


def test_training_goes_on_and_the_file_holds_the_step_at_which_it_was_saved(tmp_path, held):
    saver = checkpointer(tmp_path)
    assert saver.save()
    train(saver)
    assert not list(tmp_path.glob("*.pth"))
    held.set()
    assert saver.wait()
    saved = read_checkpoint(str(tmp_path / "checkpoint-last.pth"))
    undisturbed = checkpointer(tmp_path / "other")
    assert undisturbed.save(wait=True)
    expected = read_checkpoint(str(tmp_path / "other" / "checkpoint-last.pth"))
    assert flat(saved) == flat(expected)
    assert saved["args"]["seed"] == 0 and saved["config"]["model"] == "linear"
    assert not list(tmp_path.glob("*.tmp"))


def stepped(saver: Checkpointer, step: int, name: str) -> None:
    saver.progress.total_steps = step
    assert saver.save(wait=True)
    folder = saver.output_dir
    os.rename(os.path.join(folder, "checkpoint-last.pth"), os.path.join(folder, name))


def test_the_newest_whole_checkpoint_is_that_of_the_latest_step(tmp_path, monkeypatch):
    """Whichever its age; one is read whole at a time."""
    saver, read = checkpointer(tmp_path), []
    for step, number in ((30, 3), (50, 1), (40, 2)):
        stepped(saver, step, f"checkpoint-{number}.pth")
    (tmp_path / "checkpoint-last.pth").write_bytes(b"cut short")

    def counted(path, flag="", whole=True):
        read.extend([path] * whole)
        return read_checkpoint(path, flag, whole)

    monkeypatch.setattr(checkpoint, "read_checkpoint", counted)
    state, path = saver._find("auto")
    assert state["progress"]["total_steps"] == 50 and path.endswith("checkpoint-1.pth")
    assert [os.path.basename(one) for one in read] == ["checkpoint-last.pth", "checkpoint-1.pth"]
    saver.progress.total_steps = 35
    kept = str(tmp_path / "checkpoint-2.pth")
    assert saver.later(kept) == ["checkpoint-1.pth"]


def test_one_save_is_in_flight_and_they_are_kept_in_order(tmp_path, monkeypatch):
    in_flight, most = [], []

    def fsync(descriptor):
        in_flight.append(descriptor)
        most.append(len(in_flight))
        time.sleep(0.005)
        in_flight.pop()
        flush(descriptor)

    monkeypatch.setattr(checkpoint_file.os, "fsync", fsync)
    saver, weights = checkpointer(tmp_path), []
    for step in range(5):
        weights.append(saver.objects["model"].weight.detach().clone())
        assert saver.save(keep_as=step if step in (1, 3) else None)
        train(saver)
    saver.close()
    assert max(most) == 1
    steps = {"last": 4, "last-1": 3, "last-2": 2, "1": 1, "3": 3}
    assert {p.name for p in tmp_path.iterdir()} == {f"checkpoint-{name}.pth" for name in steps}
    for name, step in steps.items():
        state = read_checkpoint(str(tmp_path / f"checkpoint-{name}.pth"))
        assert state["progress"]["total_steps"] == step
        assert torch.equal(state["model"]["weight"], weights[step])


def test_a_failed_save_is_named_and_the_next_one_is_made(tmp_path, monkeypatch, caplog):
    saver = checkpointer(tmp_path)
    assert saver.save(wait=True)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    for wait in (False, True):
        train(saver)
        monkeypatch.setattr(checkpoint_file.os, "fsync", full)
        assert saver.save(wait=wait) is not wait
        assert not saver.wait()
        step = saver.progress.total_steps
        assert f"THE CHECKPOINT AT STEP {step} COULD NOT BE SAVED" in caplog.text
        assert "No space left on device" in caplog.text
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-last.pth"]
        assert read_checkpoint(str(tmp_path / "checkpoint-last.pth"))["epoch"] == 0
    monkeypatch.setattr(checkpoint_file.os, "fsync", flush)
    assert saver.save(wait=True)
    saved = read_checkpoint(str(tmp_path / "checkpoint-last.pth"))
    assert saved["progress"]["total_steps"] == 2


def test_what_is_no_matter_of_disks_ends_the_run(tmp_path, monkeypatch):
    saver = checkpointer(tmp_path)
    monkeypatch.setattr(saver, "_rotate", lambda: {}["a bug"])
    saver.save()
    with pytest.raises(KeyError, match="a bug"):
        saver.save()


def test_a_save_that_is_given_up_leaves_the_one_before(tmp_path, held, caplog):
    held.set()
    saver = checkpointer(tmp_path)
    assert saver.save(wait=True)
    held.clear()
    train(saver)
    saver.save()
    threading.Timer(0.1, held.set).start()
    saver.close(give_up=True)
    saved = read_checkpoint(str(tmp_path / "checkpoint-last.pth"))
    assert saved["progress"]["total_steps"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-last.pth"]
    assert "is given up" in caplog.text and "COULD NOT" not in caplog.text


def test_resuming_waits_for_the_save_in_flight(tmp_path, held):
    saver = checkpointer(tmp_path)
    saver.save()
    threading.Timer(0.1, held.set).start()
    before = saver.objects["model"].weight.detach().clone()
    train(saver)
    saver.config["model"] = "linear"
    assert saver.resume("auto")
    assert saver.progress.total_steps == 0
    assert torch.equal(saver.objects["model"].weight, before)


def test_without_memory_for_a_copy_it_is_saved_all_the_same(tmp_path, monkeypatch, caplog):
    def refuse(self, state):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Snapshot, "take", refuse)
    assert checkpointer(tmp_path).save()
    assert (tmp_path / "checkpoint-last.pth").exists()
    assert "training waits (DefaultCPUAllocator" in caplog.text


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork_waits_for_the_save_in_flight(tmp_path, held):
    """A data-loader worker never inherits a lock that the thread held."""
    saver = checkpointer(tmp_path)
    saver.save()
    assert saver.background in background._all
    threading.Timer(0.1, held.set).start()
    child = os.fork()
    if child == 0:
        os._exit(not (tmp_path / "checkpoint-last.pth").exists())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert saver.wait()


def test_a_snapshot_uses_its_memory_again():
    snapshot = Snapshot()
    state = {"a": torch.arange(3.0), "b": [torch.ones(2, 2).T, 5], "c": {}}
    first = snapshot.take(state)
    pointers = [first["a"].data_ptr(), first["b"][0].data_ptr()]
    assert flat(first) == flat(state) and first["a"].data_ptr() != state["a"].data_ptr()
    state["a"] += 1
    state["c"]["new"] = torch.zeros(1)
    second = snapshot.take(state)
    assert [second["a"].data_ptr(), second["b"][0].data_ptr()] == pointers
    assert flat(second) == flat(state)
    state["a"] = torch.zeros(4, dtype=torch.half)
    assert snapshot.take(state)["a"].dtype == torch.half


def test_a_snapshot_keeps_what_a_module_says_of_its_versions():
    state = nn.BatchNorm1d(2).state_dict()
    copied = Snapshot().take({"model": state})["model"]
    assert type(copied) is type(state) and copied._metadata == state._metadata
