"""Each main but pre-training beside its peers, on a CPU, in turns: time and memory.

pip install -r benchmarks/peers/requirements.txt
python benchmarks/peers/mains.py --mae ../mae --dino ../dino --threads 1 --out mains

Prints a table for each pair, and one of them all: how many times as long as ours each took, and was
predicted to take before it was measured. What it needs and does not find is left out, with a line
on how to get it.
"""

import argparse
import pathlib
import sys
import tempfile

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from benchmarks.gpu.record import Rows, table
from benchmarks.peers import (
    average_precision,
    detection,
    finetune,
    frozen,
    loading,
    segmentation,
    turns,
)
from util.errors import UsageError
from util.flags.parser import number

PARTS = {
    "finetune": finetune.pairs, "segmentation": segmentation.pairs, "detection": detection.pairs,
    "coco_ap": average_precision.pairs, "frozen": frozen.pairs, "loading": loading.pairs,
}  # fmt: skip
PACKAGES = (
    "torchvision", "transformers", "segmentation-models-pytorch", "scikit-learn",
    "faster-coco-eval", "pycocotools", "torchcodec", "pillow", "datasets", "webdataset",
)  # fmt: skip


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    # fmt: off
    add("--only", nargs="+", choices=PARTS, default=list(PARTS))
    add("--mae", metavar="PATH", help="a clone of https://github.com/facebookresearch/mae")
    add("--dino", metavar="PATH", help="a clone of https://github.com/facebookresearch/dino")
    add("--steps", type=number(int, 1), default=1, help="per turn, after one that does not count")
    add("--rounds", type=number(int, 1), default=5)
    add("--threads", type=number(int, 1), default=torch.get_num_threads())
    add("--tiny", action="store_true", help="at a size that says nothing, to try it")
    add("--out", metavar="PATH", help="write PATH.md and PATH.json")
    # fmt: on
    return parser


def of_all(title: str, rows: Rows) -> Rows:
    """Of each peer of a pair what the table of all pairs has."""
    times = "x ours, CPU s" if torch.get_num_threads() == 1 else "x ours"
    return [
        {"work": title, "beside": row[""], "predicted": row["predicted"], times: row[times],
         "x our memory": row["x our memory"]}
        for row in rows if row["predicted"]
    ]  # fmt: skip


def main() -> None:
    args = get_args_parser().parse_args()
    torch.set_num_threads(args.threads)
    about = turns.about(PACKAGES)
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    sections: dict[str, Rows] = {}
    data, summary = [], []
    with tempfile.TemporaryDirectory() as args.made:
        pairs = [pair for part in args.only for pair in PARTS[part](args)]
        for pair in pairs:
            found = pair.measure(args.rounds, args.steps)
            if not found:
                continue  # nothing to compare
            sections[pair.title] = rows = pair.rows(found)
            summary += of_all(pair.title, rows)
            data.append({"name": pair.title, "found": turns.as_data(found, 1)})
            print(f"\n### {pair.title}\n\n{table(rows)}", *pair.notes(), sep="\n", flush=True)
    sections["All pairs"] = summary
    print(f"\n### All pairs\n\n{table(summary)}")
    if args.out:
        turns.write(args.out, about, sections, data)


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
