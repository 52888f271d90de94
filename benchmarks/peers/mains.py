"""Each main but pre-training beside its peers, on a CPU: seconds and memory, in turns.

    python -m benchmarks.peers.mains --mae ../mae --dino ../dino --json mains.json

Prints a table for each pair: what each took, how many times faster ours was expected to be, and
was, with the range of the rounds, and the memory of all in that of ours. What it needs and does not
find is left out, with a line on how to get it (benchmarks/peers/requirements.txt).
"""

import argparse
import dataclasses
import json
import platform
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.peers import average_precision, detection, finetune, frozen, loading, segmentation
from benchmarks.peers.pairs import measure, show
from util.errors import UsageError
from util.flags.parser import number

PARTS = {
    "finetune": finetune.pairs, "segmentation": segmentation.pairs, "detection": detection.pairs,
    "coco_ap": average_precision.pairs, "frozen": frozen.pairs, "loading": loading.pairs,
}  # fmt: skip
PACKAGES = (
    "torch", "torchvision", "timm", "transformers", "scikit-learn", "faster-coco-eval",
    "pycocotools", "torchcodec", "pillow", "datasets", "webdataset",
)  # fmt: skip


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.mains", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    # fmt: off
    add("--only", nargs="+", choices=PARTS, default=list(PARTS))
    add("--mae", metavar="FOLDER", help="a clone of https://github.com/facebookresearch/mae")
    add("--dino", metavar="FOLDER", help="a clone of https://github.com/facebookresearch/dino")
    add("--rounds", type=number(int, 1), default=5)
    add("--steps", type=number(int, 1), default=1, help="of each in a round, after one that does "
        "not count")
    add("--threads", type=number(int, 1), default=torch.get_num_threads())
    add("--tiny", action="store_true", help="at a size that says nothing, to try it")
    add("--json", metavar="FILE", help="what was measured, to read by programs")
    # fmt: on
    return parser


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    args = get_args_parser().parse_args()
    about = versions()
    print(", ".join(f"{name} {number}" for name, number in about.items()))
    print(f"{args.threads} thread(s), {args.rounds} rounds of {args.steps}; in brackets the least "
          "and the largest ratio of a round", flush=True)  # fmt: skip
    results = []
    with tempfile.TemporaryDirectory() as args.made:
        for part in args.only:
            for pair in PARTS[part](args):
                rows = measure(pair, args.rounds, args.steps)
                show(pair, rows)
                rows = [dataclasses.asdict(row) for row in rows]
                results.append({"part": part, "title": pair.title, "unit": pair.unit, "rows": rows})
    if args.json:
        with open(args.json, "w") as file:
            json.dump(
                {"versions": about, "threads": args.threads, "pairs": results}, file, indent=1
            )


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
