"""Flags of the mains whose training is counted in iterations: segmentation and detection.

An iteration is an optimiser step. A round goes from one evaluation to the next; it is to a run what
an epoch is elsewhere, and goes on in the pass over the data in which the one before it ended.
"""

import argparse
import os

from util.errors import UsageError
from util.flags.args import (
    add_encoder_flags,
    add_image_flags,
    add_loading_flags,
    add_saving_flags,
    add_step_flags,
    number,
)


def add_dense_data_flags(parser: argparse.ArgumentParser, data_path_help: str):
    """Add the data's flags; returns the group's `add_argument`, for a main's further ones."""
    add = parser.add_argument_group("data").add_argument
    add("--data_path", default="", help=data_path_help)
    add_image_flags(add)
    add_loading_flags(add)
    return add


def add_iteration_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of runs that are counted in iterations."""
    add = parser.add_argument_group("optimisation").add_argument
    # fmt: off
    add("--iterations", type=number(int, 1), help="optimiser steps of the schedule")
    add("--warmup_iterations", type=number(int, 0), help="of linear warm-up")
    add("--eval_every", type=number(int, 1), help="iterations between evaluations")
    # fmt: on
    add_step_flags(add, "iterations", "learning rate")


def add_backbone_flags(parser: argparse.ArgumentParser, models: tuple[str, ...]):
    """Add the encoder's flags; returns the group's `add_argument`, for a main's further ones."""
    add = parser.add_argument_group("model").add_argument
    add_encoder_flags(add, models, "train from scratch", "vit_base_patch16")
    # fmt: off
    add("--drop_path", type=number(float, 0, 0.99), default=0.1, help="of the last block")
    add("--layer_decay", type=number(float, 0, 1), help="of the learning rate")
    add("--grad_checkpointing", action="store_true", help="recompute blocks, to save memory")
    # fmt: on
    return add


def add_dense_checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of when a run by rounds is saved."""
    add = parser.add_argument_group("checkpoints").add_argument
    add_saving_flags(add)
    parser.set_defaults(save_every_epochs=1, keep_epochs=[])  # a checkpoint for every evaluation


def check_and_count(args: argparse.Namespace) -> None:
    """Set the length of a run that is counted in iterations, as `Run` takes it: in rounds.

    Raises:
        UsageError: flags that are at odds.
    """
    args.epochs = -(-args.iterations // args.eval_every)
    args.max_steps = min(args.max_steps or args.iterations, args.iterations)
    for flag in ("eval", "predict"):
        if getattr(args, flag) and args.resume in ("", "auto"):
            raise UsageError(f"--{flag} needs --resume FILE: name the trained checkpoint")
    if args.eval and args.predict:
        raise UsageError("--eval and --predict are both given: use one of them")
    if args.predict and not os.path.isdir(args.predict):
        raise UsageError(f"--predict {args.predict} is not a folder: name one that exists")
    if args.scales[0] > args.scales[1]:
        raise UsageError(f"--scales {args.scales[0]:g} {args.scales[1]:g}: the smaller one first")
