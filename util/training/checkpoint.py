"""Checkpoints: atomic, and the newest whole one is found again, the same one on all ranks."""

import argparse
import contextlib
import errno
import glob
import logging
import os
import shutil
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from util.cluster import agreement, distributed
from util.errors import RunError, UsageError
from util.training.checkpoint_file import fingerprint, read_checkpoint, read_same, total_steps

log = logging.getLogger(__name__)

LAST = "checkpoint-last.pth"


class Stateful(Protocol):
    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> Any: ...


class BufferState:
    """A module's buffers that its own state dict leaves out, as something to save."""

    def __init__(self, module: nn.Module):
        self.module = module

    def state_dict(self) -> dict:
        return {name: buffer.clone() for name, buffer in self.module.named_buffers()}

    def load_state_dict(self, state: dict) -> None:
        for name, buffer in self.module.named_buffers():
            buffer.copy_(state[name])


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


def load_weights(
    model: nn.Module, state: dict[str, torch.Tensor], path: str, may_miss: tuple[str, ...] = ()
) -> None:
    """Load a state dict whose every key and shape must fit, but for prefixes that may be missing.

    Raises:
        UsageError: the checkpoint is of another architecture; the line says which keys and shapes.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state and not key.startswith(may_miss)]
    unknown = [key for key in state if key not in own]
    shapes = [
        f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if missing or unknown or shapes:
        parts = [("missing", missing), ("unknown", unknown), ("other shapes:", shapes)]
        found = "; ".join(
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
            for what, keys in parts
            if keys
        )
        raise UsageError(
            f"{path} is of another architecture: {found}. Check --model, "
            "--input_size and whether --lambda_min is 0"
        )
    model.load_state_dict(state, strict=False)


# --------------------------------------------------------------------------------- the run's own


class Checkpointer:
    """Saves and restores a run in its output folder. `save` and `resume` are for all ranks.

    Args:
        objects: what has a state, by its key in the file (`model`, `optimizer`, …).
        config: plain values that describe the model; saved, and compared by `resume`.
    """

    def __init__(
        self,
        output_dir: str,
        objects: dict[str, Stateful],
        progress: Progress,
        config: dict,
        args: argparse.Namespace,
    ):
        self.output_dir, self.objects, self.progress = output_dir, objects, progress
        self.config, self.args = config, args

    # ------------------------------------------------------------------------------------ saving

    def save(self, keep_as: int | None = None) -> bool:
        """Write `checkpoint-last.pth`, the ones before becoming `checkpoint-last-1.pth` and so on.

        Args:
            keep_as: also keep it for good, as `checkpoint-<keep_as>.pth`.

        Returns:
            False where it could not be written: the older ones are as they were, and the log
            says so.
        """
        if not distributed.is_main():
            return True
        state = {name: obj.state_dict() for name, obj in self.objects.items()}
        state |= {
            "progress": self.progress.state_dict(),
            "epoch": self.progress.epoch,
            "config": self.config,
            "args": {k: v for k, v in vars(self.args).items() if _is_plain(v)},
            "flag_sources": self.args.settings.sources,
        }
        last = os.path.join(self.output_dir, LAST)
        try:
            os.makedirs(self.output_dir, exist_ok=True)
            temporary = write_atomically(last, state, rename=False)
            self._rotate()
            os.replace(temporary, last)
            if keep_as is not None:
                _link_or_copy(last, os.path.join(self.output_dir, f"checkpoint-{keep_as}.pth"))
            sync_folder(self.output_dir)
        except (OSError, RuntimeError) as error:
            log.error(
                "THE CHECKPOINT AT STEP %d COULD NOT BE SAVED (%s): training goes on, the one "
                "before is intact; free space in %s",
                self.progress.total_steps, _reason(error), self.output_dir,
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
        state, path = self._agreed(flag)
        if state is None:
            return False
        agreement.all_or_none(lambda: self._load(state, path))
        log.info(
            "resumed from %s: epoch %d, step %d (%d in all)",
            path, self.progress.epoch, self.progress.step, self.progress.total_steps,
        )  # fmt: skip
        return True

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
        absent = [key for key in (*self.objects, "progress", "config") if key not in state]
        if absent:
            raise UsageError(
                f"--resume {path} lacks {', '.join(absent)}: it is no checkpoint of this main "
                "(weights alone go to --finetune)"
            )
        self._check_same_run(state, path)
        load_weights(self.objects["model"], state["model"], path)
        for name, obj in self.objects.items():
            if name != "model" and state[name]:  # a scaler that was off has none
                self._restore(name, obj, state[name], path)
        self.progress.load_state_dict(state["progress"])

    @staticmethod
    def _restore(name: str, obj: Stateful, state: dict, path: str) -> None:
        try:
            obj.load_state_dict(state)
        except (ValueError, RuntimeError, KeyError) as error:
            raise UsageError(
                f"--resume {path}: its {name} does not fit ({str(error).splitlines()[0]}): resume "
                "with the flags of that run"
            ) from None

    def _find(self, flag: str) -> tuple[dict | None, str]:
        if flag != "auto":
            return (read_checkpoint(flag), flag) if flag else (None, "")
        names = glob.glob(os.path.join(glob.escape(self.output_dir), "checkpoint-*.pth"))
        last = self._aged(0)
        whole: list[tuple[int, dict, str]] = []
        for path in sorted(names, key=lambda name: name != last):
            try:
                state = read_checkpoint(path)
            except UsageError as error:
                log.error("passed over: %s", error)
                continue
            if path == last:
                return state, path
            # A clock can jump and a file be copied, so its age is the step that it holds.
            whole.append((total_steps(state), state, path))
        if whole:
            return max(whole, key=lambda found: found[0])[1:]
        if names:
            raise UsageError(f"--resume auto: no checkpoint in {self.output_dir} is whole")
        return None, ""

    def _check_same_run(self, state: dict, path: str) -> None:
        """Inside an epoch, batches are counted: a step must mean the same images as before."""
        saved = state["config"]
        if saved.get("model") != self.config["model"]:
            raise UsageError(
                f"--resume {path} is a {saved.get('model')}, not a {self.config['model']}: "
                "check --model"
            )
        changes = self.args.settings.changes(self.args, state.get("args", {}))
        if changes:
            log.warning("goes on with other flags than before: %s", "; ".join(changes))
        if state["progress"]["step"] == 0:
            return
        for key, flags in (
            ("samples_per_step", "--batch_size, --accum_iter and the number of processes"),
            ("num_images", "--data_path, --subset_file and --train_fraction"),
            ("seed", "--seed"),
        ):
            if saved.get(key) != self.config[key]:
                raise UsageError(
                    f"--resume {path} stands inside an epoch with {key} {saved.get(key)}, this "
                    f"run has {self.config[key]}: restore {flags}"
                )


def _reason(error: BaseException) -> str:
    """torch hides what the file system said behind an error of its own zip writer."""
    while not isinstance(error, OSError) and error.__context__ is not None:
        error = error.__context__
    return str(error).splitlines()[0]


def write_atomically(path: str, state: Any, rename: bool = True) -> str:
    """Write to `path`.tmp, flush it to the disk and rename it (unless told not to)."""
    temporary = path + ".tmp"
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    if rename:
        os.replace(temporary, path)
        sync_folder(os.path.dirname(path))
    return temporary


def sync_folder(folder: str) -> None:
    """Flush a folder's entries, so that a rename outlives a power cut."""
    descriptor = os.open(folder or ".", os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems have no such call
            raise
    finally:
        os.close(descriptor)


def _link_or_copy(source: str, target: str) -> None:
    temporary = target + ".tmp"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def require_saved(saved: bool, output_dir: str, which: str = "last") -> None:
    """End a run that could not save a checkpoint that it cannot do without with an error."""
    if not saved:
        raise RunError(f"the run's {which} checkpoint could not be saved in {output_dir}")
