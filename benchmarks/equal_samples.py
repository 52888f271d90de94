"""MI-MAE against MAE at equal cost: as many masked samples, steps and masked samples per step.

python benchmarks/equal_samples.py --study benchmarks/studies/mine.jsonl --seeds 0 1 2 --jobs 2

A variant is `NAME: flags of main_pretrain.py`; one with N masks per image has epochs / N epochs and
batch / N images a step, or --steps steps. Its flags beat the others: `--lr 0 --max_steps 1` is the
initialisation. Each run becomes a line of --study, with which test images it got right; a
run that is there is not done again, so a study that was interrupted goes on where it stopped, and
one with more seeds or variants adds to it. Own data (image_folder, ...) are known by their folder's
name. --report alone tells what a file of lines says.
"""

import argparse
import fcntl
import hashlib
import json
import math
import multiprocessing
import os
import pathlib
import re
import shlex
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import main_linprobe
import main_pretrain
from benchmarks import study
from util.data.datasets import DATASETS, Subset, load_images
from util.data.loader import Batches, evaluation_view
from util.data.transformed import TransformedImages
from util.data.transforms import Normalize
from util.errors import UsageError
from util.evaluation.frozen import logistic
from util.evaluation.frozen.knn import extract_features, predict_knn
from util.flags.args import number
from util.provenance import commit
from util.training.precision import Precision

MAE = "MAE: --num_masks 1 --lambda_max 0 --lambda_min 0"
ROOT = sys.path[0]
PIXELS = "pixels"
# Settings that training does not depend on.
PROBES = ("probe_dataset", "probe_images", "few", "draws", "pools")
LAYOUTS = ("scenes", "image_folder", "flat", "shards", "csv", "hugging_face")  # of any data
LOSSES = ("rec", "max_mi", "min_mi", "info_nce_accuracy")
Labelled = tuple[torch.Tensor, torch.Tensor]


class Failed(Exception):
    """A run that has no result; the other runs go on."""


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--study", default="output_dir/equal_samples.jsonl", help="the runs' file")
    add("--variants", nargs="+", default=[MAE, "MI-MAE:"], metavar="'NAME: FLAGS'")
    add("--common", default="", help="flags of main_pretrain.py that all variants have")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--jobs", type=number(int, 1), default=1, help="runs at a time, which share the cores")
    add("--dataset", default="fashion_mnist")
    add("--data_path", default="")
    add("--train_fraction", default="1", help="share of the images for pre-training")
    add("--epochs", type=int, default=100, help="of a run with one mask per image")
    add("--steps", type=number(int, 1), help="of a run, in place of --epochs")
    add("--batch_size", type=int, default=256, help="masked samples per step")
    add("--warmup_share", type=float, default=0.1, help="share of the run")
    add("--pools", nargs="+", choices=("cls", "mean"), default=["cls"],
        help="features: the class token, the mean of the patch tokens")  # fmt: skip
    add("--probe_dataset", choices=sorted(set(DATASETS) - set(LAYOUTS)), metavar="NAME",
        help="what encoders are tested on, if not --dataset; runs that --runs still has are not "
        "made again")  # fmt: skip
    add("--probe_images", type=number(int, 1), default=10000, help="labelled images of the probes")
    add("--few", type=number(int, 1), default=12, help="labels of each class, of the second probe")
    add("--draws", type=number(int, 1), default=8, help="of those labels; the mean is told")
    add("--pixels", action="store_true", help="raw pixels in place of features, too")
    add("--reference", nargs="+", default=["MAE"], metavar="NAME",
        help="variants that the others are compared with")  # fmt: skip
    add("--balanced", action="store_true",
        help="each class of the test images counts the same in what is told")  # fmt: skip
    add("--report", action="store_true", help="run nothing: tell what is in --study")
    add("--tell", nargs="+", default=[], metavar="NAME",
        help="the report's variants, over which verdicts are corrected (default: all)")  # fmt: skip
    add("--runs", default="output_dir/equal_samples", help="folder of the checkpoints")
    return parser


def setting(args: argparse.Namespace) -> dict:
    """The settings that all runs of a comparison share, as a record keeps them."""
    length = "steps" if args.steps else "epochs"
    names = ("dataset", "common", "train_fraction", length, "batch_size", "warmup_share")
    shared = {name: getattr(args, name) for name in (*names, *PROBES)}
    if args.dataset in LAYOUTS:
        shared["data"] = os.path.basename(os.path.abspath(args.data_path))
    own = {"pools": ["cls"], "probe_dataset": None}  # which records of kept runs do not name
    return {k: v for k, v in shared.items() if k not in own or v != own[k]}


def evaluate(args: argparse.Namespace, *words: str) -> dict:
    """Top-1 accuracies (percent) on the test images of an encoder that main_linprobe's flags name.

    linear: logistic regression on standardised features; few: the same on a few labels of each
    class, the mean over several draws; knn: weighted 20-NN. All on features computed once, of each
    of --pools.
    """
    correct = {}
    for pool in args.pools:
        own = (
            () if "pixels" in words else ("--global_pool",) if pool == "mean" else ("--cls_token",)
        )
        found = probe(*features(args, *words, *own), args.few, args.draws)
        label = f"{pool} " if len(args.pools) > 1 else ""
        correct |= {label + name: counts for name, counts in found.items()}
    return {
        "scores": {k: 100 * float(v.mean()) / n for k, (v, n) in correct.items()},
        "correct": {name: [study.pack(counts), n] for name, (counts, n) in correct.items()},
    }


def features(args: argparse.Namespace, *words: str) -> tuple[Labelled, Labelled]:
    """Features and targets of --probe_images training images, and of the test images."""
    own = main_linprobe.parse_args([*tested_on(vars(args), args.data_path), *words])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = main_linprobe.build_frozen(own)[0].to(device)
    normalize = Normalize(own.mean, own.std).to(device)
    view = evaluation_view(own)
    train, test = load_images(own, "train"), load_images(own, "val")
    chosen = np.random.RandomState(0).permutation(len(train))[: args.probe_images]
    found = []
    for images in (Subset(train, chosen), test):
        data = TransformedImages(images, view, own.seed)
        batches = Batches(data, 500, training=False, num_workers=own.num_workers)
        found.append(extract_features(encoder, batches, normalize, Precision("none", device)))
    return found[0], found[1]


def tested_on(shared: dict, data_path: str) -> list[str]:
    """The flags of the labelled data of runs with this setting."""
    return ["--dataset", shared.get("probe_dataset") or shared["dataset"], "--data_path", data_path]


def probe(
    train: Labelled, test: Labelled, few: int, draws: int
) -> dict[str, tuple[np.ndarray, int]]:
    """How often each test image is right [n], and of how many draws, by evaluation in `evaluate`.

    Args:
        train, test: features [n, D] and targets [n].
    """
    features, targets = train
    num_classes = int(targets.max()) + 1

    def regression(ids: np.ndarray) -> np.ndarray:
        penalty = 10 / len(ids)  # the `C` of 0.1 with which the kept runs were measured
        heads = logistic.fit(features[ids], targets[ids], num_classes, [penalty], like=features)
        return (heads.predict(test[0])[0] == test[1]).numpy()

    def few_of_each_class(seed: int) -> np.ndarray:
        draw = np.random.RandomState(100 + seed)  # as of the kept runs
        of_class = [np.flatnonzero(targets == label) for label in range(num_classes)]
        return np.concatenate([draw.permutation(ids)[:few] for ids in of_class])

    few_correct = sum(regression(few_of_each_class(seed)).astype(int) for seed in range(draws))
    nearest = (predict_knn(train, test[0]) == test[1]).numpy()
    return {
        "linear": (regression(np.arange(len(targets))), 1),
        "few": (few_correct, draws),
        "knn": (nearest, 1),
    }


def measure(args: argparse.Namespace, variant: str, seed: int) -> study.Record:
    """Pre-train a variant, one thread for each core that a job has, and evaluate it.

    OMP_NUM_THREADS sets another number of threads.
    """
    threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or (os.cpu_count() or 1) // args.jobs
    torch.set_num_threads(max(1, threads))
    name, _, flags = variant.partition(":")
    record = dict(variant=name, flags=flags.strip(), seed=seed, setting=setting(args))
    if variant == PIXELS:
        return record | {"losses": {}, "commit": commit()} | evaluate(args, *pixel_flags(args))
    folder = os.path.abspath(os.path.join(args.runs, place(record, args.data_path)))
    words = ["--dataset", args.dataset, "--data_path", args.data_path, *shlex.split(args.common)]
    words += length(args, name, overridden(words, shlex.split(flags)))
    words += ["--seed", str(seed), "--output_dir", folder, "--resume", "auto"]
    words = overridden(words, shlex.split(flags))
    with open(folder + ".log", "a") as output:
        try:
            fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Failed(f"{name}, seed {seed} is being run by another process") from None
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        command = [sys.executable, "main_pretrain.py", *words]
        done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=output, env=environment)
    if done.returncode:
        raise Failed(f"{name}, seed {seed} ended with status {done.returncode}: see {folder}.log")
    with open(os.path.join(folder, "results.json")) as file:
        results = json.load(file)
    record["losses"] = {name: results.get(f"train_{name}") for name in LOSSES}  # MAE: one
    known = {"commit", "commits", "seconds"} & results.keys()
    record |= {name: results[name] for name in sorted(known)}
    return record | evaluate(args, "--finetune", f"{folder}/checkpoint-last.pth")


def place(record: study.Record, data_path: str = "") -> str:
    """The name of a run's folder: no other flags, settings or own data have it."""
    name = re.sub(r"[^\w.-]+", "_", record["variant"])
    shared = {k: v for k, v in record["setting"].items() if k not in PROBES}
    if "data" in shared:
        shared["data"] = os.path.realpath(data_path)
    digest = hashlib.sha256(json.dumps([record["flags"], shared]).encode()).hexdigest()[:6]
    return f"{name}-{record['seed']}-{digest}"


def overridden(words: list[str], own: list[str]) -> list[str]:
    """`words` without the flags that `own` has, and `own`."""
    kept, is_kept = [], True
    for word in words:
        is_kept = word not in own if word.startswith("--") else is_kept
        kept += [word] if is_kept else []
    return kept + own


def length(args: argparse.Namespace, name: str, words: list[str]) -> list[str]:
    """The flags of how long a variant with these flags trains, on how many images at a time."""
    try:
        own = main_pretrain.parse_args(words)
        num_masks = main_pretrain.build_model(own).masks.num_masks
    except (UsageError, SystemExit) as error:  # argparse has said what is wrong
        raise Failed(f"{name} cannot be run: {error}") from None
    if args.batch_size % num_masks or (args.epochs % num_masks and not args.steps):
        raise Failed(f"--epochs and --batch_size must be divisible by {name}'s {num_masks} masks")
    batch, epochs = args.batch_size // num_masks, args.epochs / num_masks
    if args.steps:
        own.train_fraction = float(args.train_fraction)
        count = len(load_images(own, "pretrain"))
        if count < batch:
            raise Failed(f"{name} has {batch} images a step, and there are {count}")
        epochs = args.steps / (count // batch)
        if math.ceil(epochs) > 1.03 * epochs:
            print(
                f"{name}: --steps {args.steps} are {epochs:.2f} epochs, of whose rounded-up number "
                "the cosine is: it is cut, by another share in each variant",
                file=sys.stderr,
            )
    found = ["--train_fraction", args.train_fraction, "--epochs", str(math.ceil(epochs))]
    found += ["--warmup_epochs", f"{args.warmup_share * epochs:g}", "--batch_size", str(batch)]
    return found + (["--max_steps", str(args.steps)] if args.steps else [])


def pixel_flags(args: argparse.Namespace) -> list[str]:
    """The flags of main_linprobe.py that give raw pixels as --common's runs see them."""
    own = main_pretrain.parse_args(["--dataset", args.dataset, *shlex.split(args.common)])
    words = ["--model", PIXELS]
    for flag in ("input_size", "in_chans", "mean", "std"):
        value = getattr(own, flag)
        words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return words


def is_same_run(record: study.Record, other: study.Record) -> bool:
    return all(record[k] == other[k] for k in ("variant", "flags", "seed", "setting"))


def run_all(args: argparse.Namespace) -> None:
    """Do each run that --study lacks, --jobs at a time, and write it down as soon as it ends."""
    os.makedirs(args.runs, exist_ok=True)
    own, done = setting(args), study.read(args.study)
    todo = [(variant, seed) for seed in args.seeds for variant in args.variants]
    todo += [(PIXELS, 0)] if args.pixels else []
    failed = False
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        jobs = []
        for variant, seed in todo:
            name, _, flags = variant.partition(":")
            record = dict(variant=name, flags=flags.strip(), seed=seed, setting=own)
            if not any(is_same_run(record, row) for row in done):
                jobs.append(pool.submit(measure, args, variant, seed))
        for job in as_completed(jobs):
            try:
                record = job.result()
            except Exception as error:  # whatever it is, the others' results are kept
                told = error if isinstance(error, Failed) else repr(error)
                print(f"error: {told}", file=sys.stderr, flush=True)
                failed = True
                continue
            if any(is_same_run(record, row) for row in study.read(args.study)):
                print(f"{record['variant']}, seed {record['seed']} came from another process")
                continue
            study.append(args.study, record)
            shown = "   ".join(f"{k} {v:.2f}" for k, v in record["scores"].items())
            print(f"{record['variant']:24s} seed {record['seed']}   {shown}", flush=True)
    if failed:
        sys.exit(1)


def main() -> None:
    args = get_args_parser().parse_args()
    names = [variant.partition(":")[0] for variant in args.variants]
    if len(set(names)) < len(names):
        sys.exit("error: two --variants have the same name: give each its own")
    try:
        if not args.report:
            run_all(args)
        records = study.read(args.study)
    except UsageError as error:
        sys.exit(f"error: --study {error}")
    settings: dict[str, list[study.Record]] = {}
    unknown = set(args.tell) - {record["variant"] for record in records}
    if unknown:
        sys.exit(f"error: --tell: --study {args.study} has no {', '.join(sorted(unknown))}")
    records = [record for record in records if not args.tell or record["variant"] in args.tell]
    for record in records:
        settings.setdefault(json.dumps(record["setting"]), []).append(record)
    if not settings:
        sys.exit(f"error: --study {args.study} has no runs: leave --report away")
    for shared, records in settings.items():
        if args.balanced:
            own = main_linprobe.parse_args(tested_on(json.loads(shared), args.data_path))
            records = study.balanced(records, load_images(own, "val").targets)
        try:
            print(f"\n{shared}\n\n{study.report(records, args.reference)}")
        except ImportError as error:
            sys.exit(f"error: verdicts need {error.name}: install it, then --report tells them")


if __name__ == "__main__":
    main()
