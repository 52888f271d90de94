"""Fine-tuning with few labels: several draws of them, each a run of its own in a folder of its own.

`--draws 3 --choose_blr 1e-4 1e-3 --output_dir OUT` is, for draw 0,

    --draw 0 --seed 0 --hold_out 0.2 --blr 1e-4 --output_dir OUT/draw-0/blr-0.0001
    --draw 0 --seed 0 --hold_out 0.2 --blr 1e-3 --output_dir OUT/draw-0/blr-0.001
    --draw 0 --seed 0 --blr (the better one) --output_dir OUT/draw-0

and so on; with --resume auto each of these goes on, or is passed over once it is finished. The test
set is not looked at before the rate is chosen.
"""

import argparse
import copy
import json
import logging
import os
from collections.abc import Callable

import numpy as np

from util.cluster import agreement, distributed
from util.data.datasets import Images, Subset, load_images
from util.data.few_labels import held_out
from util.errors import EXIT_NONFINITE, RunError, UsageError
from util.flags.parser import number
from util.training.output import RESULTS
from util.training.run import Run

log = logging.getLogger(__name__)

HELD_OUT = 0.2  # of the labelled images, to choose a learning rate by: our choice

Finetune = Callable[[argparse.Namespace], None]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of runs on draws of few labels."""
    add = parser.add_argument_group("few labels").add_argument
    # fmt: off
    add("--draw", type=number(int, 0), default=0,
        help="which draw of --train_fraction, always the same for a number")
    add("--draws", type=number(int, 1),
        help="this many runs, of draws 0, 1, … and of seeds from --seed x --draws on, in folders "
        "of their own; results.json has their mean and standard deviation. With --subset_file the "
        "images stay, the seeds differ")
    add("--hold_out", type=number(float, 1e-6, 0.9), metavar="SHARE",
        help="hold out this share of each class of the labelled images, and test on it instead of "
        f"the test set; with --choose_blr: to choose by (default: {HELD_OUT:g})")
    add("--choose_blr", type=number(float, 0), nargs="+", metavar="BLR",
        help="for each draw, take the best of these on the held-out part; then train on all "
        "of it")
    # fmt: on


def check_flags(args: argparse.Namespace) -> None:
    """Raise UsageError for flags that contradict each other."""
    if args.choose_blr:
        args.draws = args.draws or 1
        if args.settings.is_given("blr") or args.settings.is_given("lr"):
            raise UsageError("--choose_blr takes the place of --blr and --lr: leave those away")
    if args.draws and args.eval:
        raise UsageError("--eval evaluates one run: name a draw's checkpoint, without --draws")
    if args.draws and args.settings.is_given("draw"):
        raise UsageError("--draws and --choose_blr number the draws themselves: leave --draw away")
    if args.draws and args.resume not in ("", "auto"):
        raise UsageError("--draws has a checkpoint for each draw: use --resume auto")
    if args.train_fraction == 1:
        args.settings.refuse("without --train_fraction below 1", "draw")


def load(args: argparse.Namespace) -> tuple[Images, Images]:
    """The training and the test images; with --hold_out the latter are a part of the former."""
    train = load_images(args, "train", min_crop=args.min_crop)
    if args.hold_out is None:
        return train, load_images(args, "val")
    is_held = agreement.all_or_none(lambda: held_out(train.targets, args.hold_out))
    return Subset(train, np.flatnonzero(~is_held)), Subset(train, np.flatnonzero(is_held))


def run_all(args: argparse.Namespace, finetune: Finetune) -> None:
    """Run every draw, and write the mean and the standard deviation of their accuracies."""
    with distributed.process_group(args.device, args.dist_timeout):
        parts: list[dict] = []  # results of every run, those that choose a rate among them
        results = [_run_draw(args, draw, finetune, parts) for draw in range(args.draws)]
        scores = [result["test_acc1"] for result in results]
        spread = {"test_acc1_std": float(np.std(scores, ddof=1))} if len(scores) > 1 else {}
        left_out = max(result.get("test_unreadable", 0) for result in results)
        beside = {"test_unreadable": left_out} if left_out else {}
        with Run(args) as run:
            for part in parts:
                run.history.add(part)
            run.finish(
                test_acc1=float(np.mean(scores)),
                **spread,
                **beside,
                test_acc1_of_draws=scores,
                blr_of_draws=[result["flags"]["blr"] for result in results],
            )


def _run_draw(args: argparse.Namespace, draw: int, finetune: Finetune, parts: list[dict]) -> dict:
    one = _changed(args, f"draw-{draw}", draw=draw, seed=args.seed * args.draws + draw, draws=None)
    if args.choose_blr:
        blr = _choose_blr(one, finetune, parts)
        one = _changed(one, blr=blr, hold_out=None)
    parts.append(_result(one, finetune))
    return parts[-1]


def _choose_blr(one: argparse.Namespace, finetune: Finetune, parts: list[dict]) -> float:
    """The rate that is best on the held-out part: most accurate, and of those of least loss."""
    ranked = []
    for blr in dict.fromkeys(one.choose_blr):
        share = one.hold_out or HELD_OUT
        trial = _changed(one, f"blr-{blr:g}", blr=blr, hold_out=share, keep_checkpoints=1)
        try:
            result = _result(trial, finetune)
        except RunError as error:  # on all ranks
            if error.status != EXIT_NONFINITE:
                raise
            log.warning("draw %d, --blr %g is no choice: %s", one.draw, blr, error)
            continue
        parts.append(result)
        if result["test_loss"] is None:  # not finite
            log.warning(
                "draw %d, --blr %g is no choice: its test loss is not finite", one.draw, blr
            )
            continue
        ranked.append((result["test_acc1"], -result["test_loss"], blr))
        log.info("draw %d, --blr %g: %.2f %% of what was held out", one.draw, blr, ranked[-1][0])
    if not ranked:
        raise UsageError("--choose_blr: the loss became NaN with each of them, give lower ones")
    return max(ranked)[2]


def _changed(args: argparse.Namespace, folder: str = "", **values) -> argparse.Namespace:
    """A copy of the flags for one run: these values, and an output folder of its own."""
    one = copy.copy(args)
    one.settings = copy.deepcopy(args.settings)
    one.settings.sources |= dict.fromkeys(values, "its draw")
    one.output_dir = os.path.join(args.output_dir, folder)
    vars(one).update(values)
    return one


def _result(one: argparse.Namespace, finetune: Finetune) -> dict:
    """Run one fine-tuning, and return its results.json on all ranks."""
    finetune(one)

    def read() -> dict:
        with open(os.path.join(one.output_dir, RESULTS)) as file:
            return json.load(file)

    return agreement.main_does(read)
