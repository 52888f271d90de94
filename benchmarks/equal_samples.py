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

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import main_linprobe
import main_pretrain
from util.args import image_size, number
from util.datasets import DATASETS, Subset, TransformedImages, load_images
from util.knn import extract_features, weighted_knn
from util.loader import Batches
from util.optim import Precision
from util.transforms import Normalize, ResizeCenterCrop

MAE = "MAE: --num_masks 1 --lambda_max 0 --lambda_min 0"
ROOT = sys.path[0]
Labelled = tuple[torch.Tensor, torch.Tensor]


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
    add("--probe_images", type=number(int, 1), default=10000, help="labelled images of the probes")
    add("--few", type=number(int, 1), default=12, help="labels of each class, of the second probe")
    add("--draws", type=number(int, 1), default=8, help="of those labels; the mean is told")
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
    """Top-1 accuracies (percent) on the test images of an encoder that main_linprobe's flags name.

    linear: logistic regression on standardised features; few: the same on a few labels of each
    class, the mean over several draws; knn: weighted 20-NN. All on features computed once.
    """
    settings = [args.dataset, args.probe_images, args.few, args.draws, *words]
    path = os.path.join(folder, "probes.json")
    if os.path.exists(path):
        with open(path) as file:
            kept = json.load(file)
        if kept["settings"] == settings:
            return kept["scores"]
    train, test = features(args, *words)
    scores = probe(train, test, args.few, args.draws)
    os.makedirs(folder, exist_ok=True)
    with open(path, "w") as file:
        json.dump({"settings": settings, "scores": scores}, file)
    return scores


def features(args: argparse.Namespace, *words: str) -> tuple[Labelled, Labelled]:
    """Features and targets of --probe_images training images, and of the test images."""
    words = ("--dataset", args.dataset, "--data_path", args.data_path, *words)
    own = main_linprobe.parse_args(list(words))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = main_linprobe.build_encoder(own)[0].to(device)
    normalize = Normalize(own.mean, own.std).to(device)
    view = ResizeCenterCrop(image_size(own.input_size, 1), DATASETS[own.dataset].crop_share)
    train, test = load_images(own, "train"), load_images(own, "val")
    chosen = np.random.RandomState(0).permutation(len(train))[: args.probe_images]
    found = []
    for images in (Subset(train, chosen), test):
        data = TransformedImages(images, view, own.seed)
        batches = Batches(data, 500, training=False, num_workers=own.num_workers)
        found.append(extract_features(encoder, batches, normalize, Precision("none", device)))
    return found[0], found[1]


def probe(train: Labelled, test: Labelled, few: int, draws: int) -> dict[str, float]:
    """What `evaluate` measures, from (features [n, D], targets [n]) of both sets."""
    scale = StandardScaler().fit(train[0])
    inputs, targets = scale.transform(train[0]), train[1].numpy()
    test_inputs, test_targets = scale.transform(test[0]), test[1].numpy()

    def regression(ids: np.ndarray | slice) -> float:
        model = LogisticRegression(C=0.1, max_iter=300).fit(inputs[ids], targets[ids])
        return 100 * model.score(test_inputs, test_targets)

    def few_of_each_class(seed: int) -> np.ndarray:
        draw = np.random.RandomState(100 + seed)
        of_class = [np.flatnonzero(targets == label) for label in np.unique(targets)]
        return np.concatenate([draw.permutation(ids)[:few] for ids in of_class])

    few_scores = [regression(few_of_each_class(seed)) for seed in range(draws)]
    return {
        "linear": regression(slice(None)), "few": statistics.mean(few_scores),
        "knn": weighted_knn(train, test),
    }  # fmt: skip


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
