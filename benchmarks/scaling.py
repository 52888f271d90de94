"""How cost grows: of a step of pre-training, of starts, heads, k-NN and dense evaluation.

python benchmarks/scaling.py --model small --json curves.json

A step of pre-training against the batch, the image size, N and the number of processes: one thing
varies at a time, the others stay at their first value. With several processes the global batch and
the cores are shared among them (on GPUs each has its own). Then, on the CPU, an index against the
files, heads against the classes, k-NN against the images, segmentation and detection against the
pixels. A table has the exponent that is expected of each, the one that was fitted, and where a
curve leaves it by more than 0.3.
"""

import argparse
import copy
import json
import os
import pathlib
import socket
import sys
import tempfile
import time

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import cost_curves
from benchmarks.contest import Contestant, Failed
from benchmarks.cost_curves import Curve
from benchmarks.pretrain_step import MODELS, build_ours
from util.flags.parser import number

CURVES = ("pretrain", *cost_curves.NAMES)
AXES = ("images", "input_size", "num_masks", "processes")


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    positive = number(int, 1)
    # fmt: off
    add("--model", choices=MODELS, default="small")
    add("--images", nargs="+", type=positive, default=[4, 1, 2, 8, 16], help="global batch")
    add("--input_size", nargs="+", type=positive, default=[224, 112, 160, 320], help="pixels")
    add("--num_masks", nargs="+", type=number(int, 2), default=[4, 2, 6, 8])
    add("--processes", nargs="+", type=positive, default=[1, 2])
    add("--amp", choices=("auto", "bf16", "fp16", "none"), default="auto")
    add("--compile", action="store_true")
    add("--grad_checkpointing", action="store_true")
    add("--steps", type=positive, default=3, help="per turn")
    add("--rounds", type=positive, default=3)
    add("--curves", nargs="+", choices=CURVES, default=CURVES)
    add("--files", nargs="+", type=positive, default=[1000, 10_000, 100_000], help="of an index")
    add("--classes", nargs="+", type=positive, default=[10, 100, 1000, 10_000], help="of heads")
    add("--step_images", type=positive, default=32, help="of a step of theirs")
    add("--stored", nargs="+", type=positive, default=[1000, 10_000, 100_000], help="k-NN's images")
    add("--sides", nargs="+", type=positive, default=[64, 128, 256, 384],
        help="of images that are segmented and searched, pixels")
    add("--window", type=positive, default=64, help="of segmentation, pixels")
    add("--json", metavar="FILE", help="write the curves there, too")
    # fmt: on
    return parser


def build_rank(args: argparse.Namespace, rank: int, port: int):
    """The training step of one process of a group, as a contestant builds it."""
    if args.processes > 1:
        os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(args.processes))
        os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        from util.cluster import distributed

        distributed.init_process_group("auto")
    return build_ours(args, args.model, args.images // args.processes, args.amp)


def measure(args: argparse.Namespace) -> list[Contestant]:
    """The processes of one case, timed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [Contestant(f"rank {r}", build_rank, args, r, port) for r in range(args.processes)]
    try:
        for rank in ranks:
            rank.await_ready()
        for _ in range(args.rounds):
            for rank in ranks:
                rank.start_turn(args.steps)
            for rank in ranks:
                rank.end_turn()
    finally:
        for rank in ranks:
            rank.end()
    return ranks


def pretraining(args: argparse.Namespace) -> list[Curve]:
    """Print a row for each case of a step of pre-training; its curves, one for each axis."""
    base = copy.copy(args)
    for axis in AXES:
        setattr(base, axis, getattr(args, axis)[0])
    columns = [*AXES, "masked/s", "ms/step", "GiB", "estimated"]
    print("".join(f"{column:>12s}" for column in columns))
    what, has_gpus = "pre-training, a step", torch.cuda.is_available()
    curves = {
        "images": Curve(what, "images", 1), "input_size": Curve(what, "pixels", 1),
        "num_masks": Curve(what, "N", 1),
        "processes": Curve(what, "processes", -1 if has_gpus else 0),  # cores are shared
    }  # fmt: skip
    first = 0.0  # seconds of the case that all axes have
    for axis, curve in curves.items():
        for value in getattr(args, axis):
            case = copy.copy(base)
            setattr(case, axis, value)
            is_first = value == getattr(base, axis)
            seconds = first if is_first and first else row(case)
            first = seconds if is_first else first
            if seconds:
                curve.points.append((value**2 if axis == "input_size" else value, seconds))
            else:
                curve.failed = f"{value}: see above"
    return list(curves.values())


def row(case: argparse.Namespace) -> float:
    """Measure and print a case; its seconds, 0 where it has none."""
    case.threads = max(1, torch.get_num_threads() // case.processes)
    cells = "".join(f"{getattr(case, name):12d}" for name in AXES)
    reason = ""
    if torch.cuda.is_available() and case.processes > torch.cuda.device_count():
        reason = "more processes than GPUs"
    elif case.images % case.processes:
        reason = "the processes do not divide the images"
    try:
        ranks = [] if reason else measure(case)
    except Failed as failure:
        reason = str(failure)
    if reason:
        print(f"{cells}  {reason}", flush=True)
        return 0.0
    rate = min(rank.rate for rank in ranks)
    peak = max(rank.peak for rank in ranks) / 2**30
    estimate = ranks[0].facts["memory"] / 2**30
    print(
        f"{cells}{case.images * case.num_masks * rate:12.2f}{1000 / rate:12.1f}"
        f"{peak:12.2f}{estimate:12.2f}",
        flush=True,
    )
    time.sleep(0.5)
    return 1 / rate


def main() -> None:
    args = get_args_parser().parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{device}, torch {torch.__version__}, ViT-{args.model}; GiB are of one process")
    curves = pretraining(args) if "pretrain" in args.curves else []
    print("\n".join(["", cost_curves.HEAD, *map(cost_curves.row, curves)]), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for curve in cost_curves.others(args, folder):
            print(cost_curves.row(curve), flush=True)
            curves.append(curve)
    if args.json:
        with open(args.json, "w") as file:
            json.dump([curve.as_json() for curve in curves], file, indent=1)


if __name__ == "__main__":
    main()
