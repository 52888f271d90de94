"""Cost of a pre-training step against the batch, the image size, N and the number of processes.

python benchmarks/scaling.py --model small

One thing varies at a time, the others stay at their first value. With several processes the global
batch and the cores are shared among them (on GPUs each has its own).
"""

import argparse
import copy
import os
import pathlib
import socket
import sys
import time

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.contest import Contestant, Failed
from benchmarks.pretrain_step import MODELS, build_ours
from util.flags.parser import number


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
    # fmt: on
    return parser


AXES = ("images", "input_size", "num_masks", "processes")


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


def main() -> None:
    args = get_args_parser().parse_args()
    base = copy.copy(args)
    for axis in AXES:
        setattr(base, axis, getattr(args, axis)[0])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{device}, torch {torch.__version__}, ViT-{args.model}; GiB are of one process")
    columns = [*AXES, "masked/s", "ms/step", "GiB", "estimated"]
    print("".join(f"{column:>12s}" for column in columns))
    for axis in AXES:
        for value in getattr(args, axis) if axis == AXES[0] else getattr(args, axis)[1:]:
            case = copy.copy(base)
            setattr(case, axis, value)
            case.threads = max(1, torch.get_num_threads() // case.processes)
            row = "".join(f"{getattr(case, name):12d}" for name in AXES)
            if torch.cuda.is_available() and case.processes > torch.cuda.device_count():
                print(f"{row}  more processes than GPUs", flush=True)
                continue
            if case.images % case.processes:
                print(f"{row}  the processes do not divide the images", flush=True)
                continue
            try:
                ranks = measure(case)
            except Failed as failure:
                print(f"{row}  {failure}", flush=True)
                continue
            rate = min(rank.rate for rank in ranks)
            peak = max(rank.peak for rank in ranks) / 2**30
            estimate = ranks[0].facts["memory"] / 2**30
            print(
                f"{row}{case.images * case.num_masks * rate:12.2f}{1000 / rate:12.1f}"
                f"{peak:12.2f}{estimate:12.2f}",
                flush=True,
            )
            time.sleep(0.5)


if __name__ == "__main__":
    main()
