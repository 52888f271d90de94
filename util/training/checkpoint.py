"""Checkpoints: atomic, and the newest whole one is found again, the same one on all ranks."""

import argparse
import contextlib
import glob
import logging
import os
import threading
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol

from torch import nn

from util.cluster import agreement, distributed
from util.errors import RunError, UsageError
from util.training.background import Background, Snapshot
from util.training.history import History
from util.training.same_run import LAST, TRAINED, check_parts, check_same_run
from util.weights.checkpoint_file import (
    fingerprint,
    link_or_copy,
    read_checkpoint,
    read_same,
    reason_of,
    sync_folder,
    total_steps,
    write_temporary,
)

log = logging.getLogger(__name__)

MEAN_PATCH = "mean_patch"  # of pre-training; older checkpoints lack it, which is learnt anew then


class Stateful(Protocol):
    """What a checkpoint saves and loads."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> Any: ...


class BufferState:
    """Saves and restores all buffers of a module, those that its own state dict leaves out, too.
    Its flags that follow from them are set by its `settle`."""

    def __init__(self, module: nn.Module):
        self.module = module

    def state_dict(self) -> dict:
        return {name: buffer.clone() for name, buffer in self.module.named_buffers()}

    def load_state_dict(self, state: dict) -> None:
        for name, buffer in self.module.named_buffers():
            buffer.copy_(state.get(name, buffer))  # an older file has fewer
        self.module.settle()


@dataclass
class Progress:
    """Where a run stands; with the seed, all of its randomness follows from it.

    epoch: epochs finished. step: optimiser steps done in the epoch that follows. total_steps: in
    all. closed: the epoch's line is in the log. sums, count: of the epoch's losses so far. best:
    best numbers so far. skipped: total steps that were passed over after a rollback.
    """

    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    closed: bool = False
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    best: dict[str, float] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, value)


class Checkpointer:
    """Saves and restores a run in its output folder. `save` and `resume` are for all ranks.

    Args:
        objects: what has a state, by its key in the file (`model`, `optimizer`, …).
        config: plain values that describe the model; saved, and compared by `resume`.
        history: the run's starts so far (default: this is the first).
    """

    def __init__(
        self,
        output_dir: str,
        objects: dict[str, Stateful],
        progress: Progress,
        config: dict,
        args: argparse.Namespace,
        history: History | None = None,
    ):
        self.output_dir, self.objects, self.progress = output_dir, objects, progress
        self.config, self.args, self.history = config, args, history or History()
        self.snapshot, self.background = Snapshot(), Background()
        self.given_up = threading.Event()

    # ------------------------------------------------------------------------------------ saving

    def save(self, keep_as: int | None = None, wait: bool = False) -> bool:
        """Write `checkpoint-last.pth`, the ones before becoming `checkpoint-last-1.pth` and so on.

        The state is copied, once the save before has ended, and the copy is written in a thread
        while training goes on. A run calls `wait` before it relies on it.

        Args:
            keep_as: also keep it for good, as `checkpoint-<keep_as>.pth`.
            wait: return when it is on the disk; for that nothing is copied.

        Returns:
            False where it could not be written: the older ones are as they were, and the log
            says so. Without `wait` the log alone says so.
        """
        if not distributed.is_main():
            return True
        self.wait()
        state = {name: obj.state_dict() for name, obj in self.objects.items()}
        state |= {
            "progress": self.progress.state_dict(),
            "epoch": self.progress.epoch,
            "history": self.history.state_dict(),
            "config": self.config,
            "args": {k: v for k, v in vars(self.args).items() if _is_plain(v)},
            "flag_sources": self.args.settings.sources,
        }
        if not wait:
            try:
                state = self.snapshot.take(state)
            except RuntimeError as error:
                self.snapshot, wait = Snapshot(), True
                log.warning("no memory to save in the background: training waits (%s)", error)
        self.background.start(partial(self._write, state, keep_as))
        return self.wait() if wait else True

    def wait(self) -> bool:
        """Wait until the save in flight has ended; whether the last one was written."""
        return self.background.wait()

    def close(self, give_up: bool = False) -> None:
        """Wait for the save in flight, or end it: then the one before stays the last."""
        if give_up:
            self.given_up.set()
        self.wait()

    def _write(self, state: dict, keep_as: int | None) -> bool:
        """What `save` does in the background; see there."""
        last = self._aged(0)
        try:
            os.makedirs(self.output_dir, exist_ok=True)
            temporary = write_temporary(last, state, self.given_up)
            self._rotate()
            os.replace(temporary, last)
            if keep_as is not None:
                link_or_copy(last, os.path.join(self.output_dir, f"checkpoint-{keep_as}.pth"))
            sync_folder(self.output_dir)
        except (OSError, RuntimeError) as error:
            step = state["progress"]["total_steps"]
            if self.given_up.is_set():
                log.warning("the checkpoint at step %d is given up, the one before is intact", step)
            else:
                log.error(
                    "THE CHECKPOINT AT STEP %d COULD NOT BE SAVED (%s): training goes on, the one "
                    "before is intact; free space in %s",
                    step, reason_of(error), self.output_dir,
                )  # fmt: skip
            with contextlib.suppress(OSError):
                os.unlink(last + ".tmp")
            return False
        return True

    def _rotate(self) -> None:
        """Make room for a new last one; at each moment the newest whole one keeps a name."""
        for age in range(self.args.keep_checkpoints - 1, 0, -1):
            newer = self._aged(age - 1)
            if os.path.exists(newer):
                os.replace(newer, self._aged(age))

    def _aged(self, age: int) -> str:
        name = LAST if age == 0 else f"checkpoint-last-{age}.pth"
        return os.path.join(self.output_dir, name)

    # ----------------------------------------------------------------------------------- resuming

    def resume(self, flag: str) -> bool:
        """Restore the run from `flag`: a path, or `auto` for the newest whole one, if any.

        Rank 0 chooses the file; all ranks load that one or none.

        Raises:
            UsageError: a checkpoint that cannot be used; on all ranks, and the line says why.
        """
        self.wait()
        state, path = self._agreed(flag)
        if state is None:
            return False
        agreement.all_or_none(lambda: self._load(state, path))
        log.info(
            "resumed from %s: epoch %d, step %d (%d in all)",
            path, self.progress.epoch, self.progress.step, self.progress.total_steps,
        )  # fmt: skip
        return True

    def later(self, path: str) -> list[str]:
        """The names of checkpoints in the folder, but for `path`, that hold later steps than the
        run has done."""
        names = glob.glob(os.path.join(glob.escape(self.output_dir), "checkpoint-*.pth"))
        others = (one for one in names if os.path.realpath(one) != os.path.realpath(path))
        done = self.progress.total_steps
        return [os.path.basename(one) for one in others if _step_of(one) > done]

    def _agreed(self, flag: str) -> tuple[dict | None, str]:
        """The state that rank 0 finds and its path, read by every rank from that very file."""
        found: list[dict] = []

        def choose() -> tuple[str, int, str] | None:
            state, path = self._find(flag)
            if state is None:
                return None
            found.append(state)
            return path, total_steps(state), fingerprint(path)

        chosen = agreement.main_does(choose)
        if chosen is None:
            return None, ""
        state = agreement.all_or_none(lambda: found[0] if found else read_same(*chosen))
        return state, chosen[0]

    def _load(self, state: dict, path: str) -> None:
        wanted = [name for name in self.objects if name not in (TRAINED, MEAN_PATCH)]
        check_parts(path, state, [*wanted, "progress", "config"], self.args)
        about = self.config, self.args, self.objects["model"], TRAINED in self.objects
        check_same_run(path, state, *about)
        changes = self.args.settings.changes(self.args, state.get("args", {}))
        if changes:
            log.warning("goes on with other flags than before: %s", "; ".join(changes))
        self.objects["model"].load_state_dict(state["model"])
        for name, obj in self.objects.items():
            if name != "model" and state.get(name):
                self._restore(name, obj, state[name], path)
        self.progress.load_state_dict(state["progress"])
        self.history.load_state_dict(state.get("history", {}))
        if len(self.history.commits) > 1:
            log.warning("goes on with another commit than before: %s", self.history.shown())

    @staticmethod
    def _restore(name: str, obj: Stateful, state: dict, path: str) -> None:
        # An optimiser keeps the flags' values, which the user was told count, not the file's.
        groups = getattr(obj, "param_groups", ())
        own = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in groups]
        try:
            obj.load_state_dict(state)
            for group, values in zip(getattr(obj, "param_groups", ()), own, strict=True):
                group.update(values)
        except (ValueError, RuntimeError, KeyError) as error:
            raise UsageError(
                f"--resume {path}: its {name} does not fit ({str(error).splitlines()[0]}): resume "
                "with the flags of that run"
            ) from None

    def _find(self, flag: str) -> tuple[dict | None, str]:
        if flag != "auto":
            return (read_checkpoint(flag, "--resume"), flag) if flag else (None, "")
        names = glob.glob(os.path.join(glob.escape(self.output_dir), "checkpoint-*.pth"))
        last = self._aged(0)
        # A clock can jump and a file be copied, so its age is the step that it holds.
        for path in sorted(names, key=lambda name: (name == last, _step_of(name)), reverse=True):
            try:
                return read_checkpoint(path), path
            except UsageError as error:
                log.error("passed over: %s", error)
        if names:
            raise UsageError(f"--resume auto: no checkpoint in {self.output_dir} is whole")
        return None, ""


def _step_of(path: str) -> int:
    """The step of a checkpoint, whose weights are not looked at; −1 of what cannot be read."""
    try:
        return total_steps(read_checkpoint(path, whole=False))
    except UsageError:
        return -1


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def require_saved(saved: bool, output_dir: str, which: str = "last") -> None:
    """Raise RunError where a checkpoint that the run cannot do without was not saved."""
    if not saved:
        raise RunError(f"the run's {which} checkpoint could not be saved in {output_dir}")
