"""Whether a checkpoint is of the run that goes on from it; what differs is named, all of it."""

import argparse
import glob
import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from util.errors import UsageError
from util.weights.checkpoint_file import read_checkpoint
from util.weights.fit import differences, in_words

TRAINED = "trained"  # the weights that training goes on with, where `model` is their running mean
LAST = "checkpoint-last.pth"
# What a position inside an epoch counts, and what a user would call it.
INSIDE_AN_EPOCH = {
    "samples_per_step": "images a step (of --batch_size, --accum_iter and all processes)",
    "num_images": "images of the data", "seed": "--seed",
    "steps_per_epoch": "steps an epoch (another split of a step ends it sooner or later)",
}  # fmt: skip


def look_at_start(args: argparse.Namespace) -> None:
    """Look whether --resume can be gone on from, before data are read; weights are not looked at.

    Raises:
        UsageError: it names a file that is no checkpoint of a training, or, with auto, there are
            files in --output_dir and none can be read.
    """
    flag = getattr(args, "resume", "")
    if flag == "auto":
        _look_for_any(args.output_dir)
    elif flag:
        state = read_checkpoint(flag, "--resume", whole=False)
        is_for_training = not (getattr(args, "eval", False) or getattr(args, "predict", ""))
        if is_for_training:
            check_parts(flag, state, ("model", "progress", "config"), args)


def _look_for_any(folder: str) -> None:
    names = glob.glob(os.path.join(glob.escape(folder), "checkpoint-*.pth"))
    reason = ""
    for path in sorted(names, key=lambda name: os.path.basename(name) != LAST):
        try:
            return read_checkpoint(path, whole=False) and None
        except UsageError as error:
            reason = reason or str(error)
    if names:
        raise UsageError(
            f"--resume auto: no checkpoint in {folder} is whole ({reason}); remove them to begin "
            "anew"
        )


def check_parts(path: str, state: Mapping, wanted: Sequence[str], args: argparse.Namespace) -> None:
    """Raise UsageError where a file lacks what every checkpoint of the main has."""
    absent = [key for key in wanted if key not in state]
    if absent:
        has_flag = args.settings.named("finetune")
        elsewhere = " (weights alone go to --finetune)" * bool(has_flag)
        lacks = f"--resume {path} lacks {', '.join(absent)}"
        raise UsageError(f"{lacks}: it is no checkpoint of this main{elsewhere}")


def check_same_run(
    path: str, state: Mapping, config: Mapping, args: argparse.Namespace, model: nn.Module,
    has_mean: bool,
) -> None:  # fmt: skip
    """Compare a checkpoint with the run that is to go on from it.

    Args:
        state: the file's content. config: as the run would save it. has_mean: whether it trains
            with --ema_decay, and `model` is the running mean.

    Raises:
        UsageError: it is another run. The line has everything that forbids it, and all flags that
            differ, those among them that alone would not.
    """
    found = _of_config(state, config) + _of_optimizer(state, args)
    found += _of_mean(state, args, has_mean)
    shapes = in_words(differences(model.state_dict(), state["model"]))
    found += [f"weights: {shapes}"] if shapes else []
    if not found:
        return
    flags = args.settings.changes(args, state.get("args", {}))
    listed = f"; flags that differ: {'; '.join(flags)}" if flags else ""
    raise UsageError(
        f"--resume {path} is of another run: {'; '.join(found)}{listed}: restore them, or leave "
        "--resume away and name another --output_dir"
    )


def check_tested_on(
    path: str, config: Mapping, classes: list[str], args: argparse.Namespace
) -> None:
    """Compare what a checkpoint was trained on with the data that --eval tests it on.

    Raises:
        UsageError: data of which nobody said that they are wanted, or of other classes.
    """
    trained_on, known = config.get("dataset", args.dataset), config.get("classes")
    if trained_on != args.dataset and not args.settings.is_given("dataset"):
        raise UsageError(
            f"--resume {path} was trained on {trained_on}: give --dataset {trained_on}"
        )
    if known and known != classes:
        raise UsageError(
            f"--resume {path} is of other classes than the data, or in another order: "
            f"{_shown(known)}, here {_shown(classes)}; name its data with --data_path"
        )


def _of_config(state: Mapping, config: Mapping) -> list[str]:
    saved = state["config"]
    found = [
        f"{key} {_shown(saved.get(key))}, here {_shown(config.get(key))}"
        for key in ("model", "eval_every", "classes")
        if saved.get(key) is not None and saved.get(key) != config.get(key)
    ]
    if state["progress"]["step"]:  # a step must mean the same images as before
        found += [
            f"{name} {saved.get(key)}, here {config[key]}, and it stands inside an epoch"
            for key, name in INSIDE_AN_EPOCH.items()
            if saved.get(key) != config[key] and (key in saved or key != "steps_per_epoch")
        ]
    return found


def _of_optimizer(state: Mapping, args: argparse.Namespace) -> list[str]:
    flag = next((name for name in ("opt", "optimizer") if args.settings.named(name)), "opt")
    saved = state.get("args", {}).get(flag, "adamw" if flag == "opt" else None)  # older files
    if not args.settings.named(flag) or saved in (None, getattr(args, flag)):
        return []
    return [f"its optimiser is --{flag} {saved}, here {getattr(args, flag)}"]


def _of_mean(state: Mapping, args: argparse.Namespace, has_mean: bool) -> list[str]:
    if (TRAINED in state) == has_mean:
        return []
    if not args.settings.named("ema_decay"):
        return ["it has a running mean of the weights, as another main's"]
    decay = state.get("args", {}).get("ema_decay")
    if has_mean:
        return [f"it has no running mean of the weights, here --ema_decay {args.ema_decay:g}"]
    return [f"it has a running mean of the weights, --ema_decay {decay}, here none"]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} ({', '.join(map(str, value[:3]))}, …)"
    return str(value)
