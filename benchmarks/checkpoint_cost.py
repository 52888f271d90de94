"""What a checkpoint costs training, if it waits for the save or if the save runs beside it.

python benchmarks/checkpoint_cost.py --model mimae_vit_base_patch16 --batch_size 2

In turns: steps with nothing beside them, a save that is waited for, and a save in the background
with the steps that run meanwhile. What those lose against the first, and the copy, is what
training feels. A read, too, is timed. --wait SECONDS stands for a GPU that computes the step.
"""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile
import time

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from models_mimae import MODELS
from util.flags.parser import number
from util.flags.settings import Settings
from util.training.checkpoint import Checkpointer, Progress
from util.training.optim import adamw, decay_groups
from util.weights.checkpoint_file import read_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # fmt: off
    parser.add_argument("--model", choices=MODELS, default="mimae_vit_base_patch16")
    parser.add_argument("--batch_size", type=number(int, 1), default=2)
    parser.add_argument("--input_size", type=number(int, 1), default=224)
    parser.add_argument("--in_chans", type=number(int, 1), default=3)
    parser.add_argument("--folder", help="where to write; default: the temporary folder")
    parser.add_argument("--rounds", type=number(int, 1), default=5)
    parser.add_argument("--wait", type=number(float, 0), help="a step only waits, so long")
    parser.add_argument("--every", type=number(int, 1), default=500, help="steps between saves")
    # fmt: on
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = MODELS[args.model](img_size=args.input_size, in_chans=args.in_chans).to(device)
    optimizer = adamw(decay_groups(model, 0.05))
    shape = (args.batch_size, args.in_chans, args.input_size, args.input_size)
    imgs = torch.randn(shape, device=device)

    def step() -> None:
        if args.wait is not None and optimizer.state:
            return time.sleep(args.wait)
        model(imgs)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        flags = argparse.Namespace(keep_checkpoints=2, settings=Settings({}, {}))
        objects = {"model": model, "optimizer": optimizer}
        saver = Checkpointer(folder, objects, Progress(), {"model": args.model}, flags)
        step()
        first_copy = seconds_of(saver.save)  # allocates the memory of the copy
        saver.wait()
        rounds = [measure(step, saver) for _ in range(args.rounds)]
        path = os.path.join(folder, "checkpoint-last.pth")
        read = seconds_of(lambda: read_checkpoint(path))
        size = os.path.getsize(path) / 2**30
    report(args, rounds, size, first_copy, read)


def measure(step, saver: Checkpointer) -> dict[str, float]:
    """A round's seconds: a step alone, a save waited for, the copy, what steps beside it lose."""
    alone = statistics.median(seconds_of(step) for _ in range(3))
    waited = seconds_of(lambda: saver.save(wait=True))
    started = time.perf_counter()
    copy = seconds_of(saver.save)
    beside = []
    while not saver.background.has_ended.is_set():
        beside.append(seconds_of(step))
    background = time.perf_counter() - started  # to the end of the step in which it ended
    alone = statistics.median([alone, *(seconds_of(step) for _ in range(2))])
    lost = sum(beside) - len(beside) * alone
    return dict(
        step=alone,
        waited=waited,
        copy=copy,
        background=background,
        num_beside=len(beside),
        lost=lost,
        felt=copy + lost,
    )


def report(args, rounds: list[dict], size: float, first_copy: float, read: float) -> None:
    number_of = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    ratio = statistics.median(r["felt"] / r["waited"] for r in rounds)
    print(
        "{name}: {size:.2f} GiB, step of {images} images {step:.2f} s, medians of {rounds} rounds\n"
        "a save that training waits for   {waited:.2f} s\n"
        "a save in the background         {background:.2f} s, of which training feels {felt:.2f} s"
        " = {ratio:.2f} x of that: the copy {copy:.2f} s (the first {first_copy:.2f} s), and "
        "{lost:.2f} s that {num_beside:g} steps beside it lose\n"
        "a checked read                   {read:.2f} s\n"
        "every {every} steps: {waited_share:.2f} % of the time waited for, {felt_share:.2f} % in "
        "the background".format(
            name=args.model,
            size=size,
            images=args.batch_size,
            rounds=len(rounds),
            ratio=ratio,
            first_copy=first_copy,
            read=read,
            every=args.every,
            **number_of,
            waited_share=share(number_of["waited"], args.every * number_of["step"]),
            felt_share=share(number_of["felt"], args.every * number_of["step"]),
        )
    )


def share(seconds: float, others: float) -> float:
    """What percentage of the sum of both the first is."""
    return 100 * seconds / (seconds + others)


def seconds_of(call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
