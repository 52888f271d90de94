"""MI-MAE against MAE at equal cost: as many masked samples, steps and masked samples per step.

python benchmarks/equal_samples.py --dataset fashion_mnist --epochs 24 --seeds 0 1 2

A variant is `NAME: flags of main_pretrain.py`; one with N masks per image has epochs / N epochs and
batch / N images a step. Each run's numbers stay in its folder, so a study that was interrupted goes
on where it stopped, and one with more seeds or variants adds to it.
"""

import argparse
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import main_pretrain

MAE = "MAE: --num_masks 1 --lambda_max 0 --lambda_min 0"
ROOT = sys.path[0]
COLUMNS = {"linear": "test_acc1", "few": "test_acc1", "knn": "knn_acc1"}


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--variants", nargs="+", default=[MAE, "MI-MAE:"], metavar="'NAME: FLAGS'")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--dataset", default="fashion_mnist")
    add("--data_path", default="")
    add("--train_fraction", default="1", help="share of the images for pre-training")
    add("--epochs", type=int, default=100, help="of a run with one mask per image")
    add("--batch_size", type=int, default=256, help="masked samples per step")
    add("--warmup_share", type=float, default=0.1, help="share of the epochs")
    add("--few", default="0.002", help="share of the labels of the second linear probe")
    add("--probe_epochs", default="30")
    add("--baselines", action="store_true", help="the untrained encoder and raw pixels, too")
    add("--output_dir", default="output_dir/equal_samples")
    return parser


def run(script: str, folder: str, *words: str) -> dict:
    """The results of a main, which is run unless they are there."""
    path = os.path.join(folder, "results.json")
    command = ["python", script, "--output_dir", folder, *words]
    if not os.path.exists(path):
        print("$", *command, file=sys.stderr, flush=True)
        subprocess.run([sys.executable, *command[1:]], cwd=ROOT, check=True, stdout=sys.stderr)
    with open(path) as file:
        results = json.load(file)
    if results["command"] != " ".join(command):
        sys.exit(f"error: {folder} is of another study: use another --output_dir")
    return results


def evaluate(args: argparse.Namespace, folder: str, *words: str) -> dict[str, float]:
    """Top-1 accuracies (percent) of an encoder, on the data set's test images."""
    probe = ("--epochs", args.probe_epochs, "--warmup_epochs", "2")
    kinds = {
        "linear": probe,
        "few": (*probe, "--train_fraction", args.few, "--batch_size", "16"),
        "knn": ("--knn",),
    }
    data = ("--dataset", args.dataset, "--data_path", args.data_path, "--log_every", "1000000")
    return {
        kind: run("main_linprobe.py", f"{folder}/{kind}", *data, *words, *more)[COLUMNS[kind]]
        for kind, more in kinds.items()
    }


def measure(args: argparse.Namespace, variant: str, seed: int) -> dict[str, float]:
    """Pre-train a variant and evaluate it."""
    name, _, flags = variant.partition(":")
    words = ["--dataset", args.dataset, "--data_path", args.data_path, *shlex.split(flags)]
    num_masks = main_pretrain.build_model(main_pretrain.parse_args(words)).num_masks
    if args.epochs % num_masks or args.batch_size % num_masks:
        sys.exit(
            f"error: --epochs and --batch_size must be divisible by {name}'s {num_masks} masks"
        )
    epochs = args.epochs // num_masks
    folder = os.path.abspath(os.path.join(args.output_dir, name.replace(" ", "_"), str(seed)))
    results = run(
        "main_pretrain.py", f"{folder}/pretrain", *words, "--seed", str(seed),
        "--train_fraction", args.train_fraction, "--epochs", str(epochs),
        "--warmup_epochs", f"{args.warmup_share * epochs:g}",
        "--batch_size", str(args.batch_size // num_masks), "--resume", "auto",
    )  # fmt: skip
    checkpoint = ("--finetune", f"{folder}/pretrain/checkpoint-last.pth", "--seed", str(seed))
    losses = {"L_rec": results["train_rec"], "L_max": results["train_max_mi"]}
    return evaluate(args, folder, *checkpoint) | losses


def show(name: str, rows: list[dict[str, float]]) -> None:
    """Print the means over the seeds, and the standard deviations where there are several."""
    cells = []
    for column in rows[0]:
        values = [row[column] for row in rows if row[column] is not None]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        cells.append(f"{column} {statistics.mean(values):.2f}{spread}" if values else "")
    print(f"{name:24s}", "   ".join(cells), flush=True)


def main() -> None:
    args = get_args_parser().parse_args()
    names = [variant.partition(":")[0] for variant in args.variants]
    if len(set(names)) < len(names):
        sys.exit("error: two --variants have the same name: give each its own")
    rows: dict[str, list[dict[str, float]]] = {}
    if args.baselines:
        for name, words in {"untrained": (), "pixels": ("--model", "pixels")}.items():
            folder = os.path.abspath(os.path.join(args.output_dir, name))
            show(name, [evaluate(args, folder, *words)])
    for seed in args.seeds:
        for variant in args.variants:
            rows.setdefault(variant.partition(":")[0], []).append(measure(args, variant, seed))
    for name, found in rows.items():
        show(name, found)


if __name__ == "__main__":
    main()
