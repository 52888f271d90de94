"""Evaluate frozen encoders side by side: their features are computed once, for all evaluations.

    python main_evaluate.py MAE/checkpoint-last.pth MI-MAE/checkpoint-last.pth untrained pixels

`untrained` is the first checkpoint's model with random weights, `pixels` the images themselves.
Writes evaluation.md, evaluation.json and curves to --output_dir. What has to be chosen, as k or a
regularisation, is chosen on a tenth of the training set.
"""

import argparse
import logging
import os
from collections.abc import Callable

import numpy as np
import torch

from encoders.frozen import BASELINES, FrozenEncoder, Outputs, open_frozen
from encoders.load import SIZES
from models_mimae import orthogonal_permutations
from util.checks import image_size
from util.cluster import agreement, distributed
from util.data.datasets import DATASETS, Images, Subset, load_images
from util.data.image_cache import cached
from util.data.image_folders import load_test_folder
from util.data.imagenet import read_real_labels
from util.data.images import of_one_type
from util.data.loader import evaluation_view, loading
from util.data.same_data import check_same
from util.data.unreadable import beside
from util.entry import run_main
from util.errors import UsageError
from util.evaluation.frozen import attentive, patches, report
from util.evaluation.frozen import evaluations as frozen
from util.evaluation.frozen.features import (
    FeatureStore,
    check_batch_size,
    checksum,
    how_encoded,
    images_checksum,
)
from util.evaluation.tables import column_names
from util.flags import args as arguments
from util.flags.parser import ArgumentParser, number
from util.progress import Pace
from util.training.run import Run

log = logging.getLogger(__name__)

NUM_MASKS = 4  # of the InfoNCE accuracy of masks


def get_args_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    arguments.add_data_flags(parser)
    arguments.add_cache_flags(parser)
    arguments.add_run_flags(parser, "output_dir/evaluate", training=False)
    _add_encoder_flags(parser)
    _add_attentive_flags(parser)
    _add_dense_flags(parser)
    return parser


def _add_encoder_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("encoders").add_argument
    # fmt: off
    add("checkpoints", nargs="+", metavar="CHECKPOINT",
        help="of this project or anybody's; `untrained` and `pixels` are baselines")
    add("--model", choices=SIZES, metavar="NAME", help="the encoder, where no checkpoint says it")
    add("--num_heads", type=number(int, 1),
        help="attention heads of a checkpoint that does not tell them")
    add("--batch_size", type=number(int, 1), default=128, help="images per GPU")
    add("--names", nargs="+", default=[], help="of the checkpoints in the tables")
    # fmt: on

    add = parser.add_argument_group("evaluations").add_argument
    # fmt: off
    add("--only", nargs="*", choices=frozen.EVALUATIONS, default=list(frozen.EVALUATIONS),
        help="these evaluations")
    add("--few", type=number(int, 1), nargs="*", default=[1, 2, 5, 10], help="labels per class")
    add("--few_shares", type=number(float, 1e-6, 1), nargs="*", default=[0.01, 0.1],
        help="shares of each class's labels")
    add("--few_list", action="append", default=[], metavar="NAME=FILE",
        help="a published list of training images, a name a line")
    add("--draws", type=number(int, 1), default=5, help="of few labels")
    add("--block_images", type=number(int, 1), default=50000,
        help="training images whose every block is looked at")
    add("--test", action="append", default=[], metavar="NAME=FOLDER",
        help="another test set: CLASS/IMAGE, with the training set's classes")
    add("--real_labels", metavar="JSON", nargs="?", const="timm",
        help="ImageNet-ReaL's file: the right labels of each validation image; without a name the "
        "one that timm carries")
    # fmt: on


def _add_attentive_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "attentive probe",
        "learned queries on the patch tokens, by the protocol of *efficient probing*",
    ).add_argument
    # fmt: off
    add("--attentive", action="store_true", help="evaluate it, too")
    add("--attentive_queries", type=number(int, 1), default=32, help="a divisor of the width")
    add("--attentive_epochs", type=number(int, 1), default=90, help="a ninth of them warm-up")
    add("--attentive_batch", type=number(int, 2), default=4096,
        help="images a step; less where an epoch would have fewer than 16 steps")
    add("--attentive_blr", type=number(float, 1e-9), nargs="+", default=[0.1],
        help="rates per 256 images, of which one is chosen on the held-out tenth")
    add("--tokens", choices=("auto", "kept", "images"), default="auto",
        help="of the training images: kept on the disk, in half precision, or encoded from random "
        "crops in each epoch; auto: kept where half of the free disk holds them")
    add("--min_crop", type=number(float, 0.01, 1), default=0.08,
        help="smallest area of such a crop")
    add("--flip", action=argparse.BooleanOptionalAction, default=True, help="flip half of them")
    # fmt: on


def _add_dense_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("dense evaluation").add_argument
    # fmt: off
    add("--dense", metavar="FOLDER", default="",
        help="images with label maps in ADE20K's layout: k-NN and logistic regression of their "
        "patches, mIoU; with an empty --only nothing else")
    add("--classes", default="", metavar="FILE", help="a class a line (default: of the folder)")
    add("--first_class", type=int, choices=(0, 1), default=1, help="its value in a label map")
    add("--palette", default="", metavar="FILE", help="lines R G B CLASS, of maps in colours")
    add("--dense_patches", type=number(int, 10), default=100_000,
        help="labelled training patches, as many of each image")
    # fmt: on

    add = parser.add_argument_group("features").add_argument
    # fmt: off
    add("--features", default="", help="where they are kept (default: in --output_dir)")
    add("--feature_dtype", choices=("fp16", "fp32"), default="fp32", help="fp16: half the disk")
    # fmt: on


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    args = arguments.parse_args(get_args_parser(), "evaluate", argv)
    args.names = column_names(args.names, args.checkpoints)
    check_batch_size(args.batch_size)
    refuse = args.settings.refuse
    if not args.attentive:
        attentive = ("attentive_queries", "attentive_epochs", "attentive_batch", "attentive_blr")
        refuse("without --attentive", *attentive, "tokens", "min_crop", "flip")
    if "blocks" not in args.only:
        refuse("without blocks in --only", "block_images")
    if not args.dense:
        refuse("without --dense", "classes", "first_class", "palette", "dense_patches")
    if "few" not in args.only:
        refuse("without few in --only", "few", "few_shares", "few_list", "draws")
    if not (args.attentive or {"knn", "logistic"} & set(args.only)):
        refuse("without knn or logistic in --only, or --attentive", "test", "real_labels")
    if args.cache_images is not None and args.attentive and args.tokens != "kept":
        raise UsageError("--cache_images has no crops for --attentive: use --tokens kept")
    return args


def named(flag: str, values: list[str]) -> dict[str, str]:
    """The NAME=PATH words of a flag, by name; raises UsageError for anything else."""
    found = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or not name or not path or name in found:
            raise UsageError(f"{flag} {value} is not NAME=PATH with a name of its own")
        found[name] = path
    return found


def image_kind(flags: argparse.Namespace) -> tuple:
    """How an encoder's images are read; encoders of the same kind share theirs."""
    size = () if flags.cache_images is None else tuple(image_size(flags.input_size, 1))
    return (flags.in_chans, size, *(flags.value_range or ()))


def image_sets(flags: argparse.Namespace) -> tuple[Images, dict[str, Images]]:
    """The training set, and the test sets by name, `val` first, as an encoder sees them."""
    train = load_images(flags, "train")
    # In an order of its own, so that the first images are a fair draw.
    train = Subset(train, np.random.default_rng(0).permutation(len(train)))
    tests = {"val": load_images(flags, "val")}
    for name, folder in named("--test", flags.test).items():
        if name in ("train", "tokens", "val", "ReaL"):
            raise UsageError(f"--test {name}={folder}: that name is taken, give another one")
        found = (folder, train.classes, flags.in_chans)
        tests[name] = agreement.main_first(
            lambda found=found: load_test_folder(*found, value_range=flags.value_range)
        )
        check_same(tests[name].targets, train.classes, f"images of --test {name}", "folder")
        tests[name] = cached(tests[name], flags, DATASETS[flags.dataset].crop_share)
    return train, tests


def label_files(
    args: argparse.Namespace, train: Images, val: Images
) -> tuple[list[frozenset[int]] | None, dict[str, torch.Tensor]]:
    """What --real_labels and the --few_list say of the images."""
    real = read_real_labels(args.real_labels, val) if args.real_labels else None
    listed = named("--few_list", args.few_list).items()
    return real, {name: frozen.listed_ids(path, train) for name, path in listed}


def main(args: argparse.Namespace) -> None:
    with Run(args) as run:
        found: dict[str, tuple] = {}
        for word in sorted(args.checkpoints, key=lambda word: word in BASELINES):  # those last
            like = next((flags for _, flags in found.values()), None)
            model, flags = open_frozen(args, word, like)
            found[word] = model.to(run.device), flags
        opened = [found[word] for word in args.checkpoints]
        # Encoders may differ in their channels, which are a matter of reading an image.
        kinds: dict[tuple, argparse.Namespace] = {}
        for _, flags in opened:
            kinds.setdefault(image_kind(flags), flags)
        sets = {kind: image_sets(flags) for kind, flags in kinds.items()}
        mapped = {k: patches.load(flags) for k, flags in kinds.items()} if args.dense else {}
        train, tests = next(iter(sets.values()))
        frozen.check_labels(train, args)
        real, lists = agreement.all_or_none(lambda: label_files(args, train, tests["val"]))
        encoders = [
            Encoder(run, name, model, flags, *sets[image_kind(flags)])
            for name, (model, flags) in zip(args.names, opened, strict=True)
        ]
        whole = Pace(sum(encoder.num_images() for encoder in encoders))
        for encoder in encoders:
            encoder.extract(run, whole)
        if args.attentive:
            keep_tokens(run, [e for e in encoders if e.model.encoder is not None])
        left_out = frozen.leave_out_of_all(encoders)
        if not distributed.is_main():
            return
        results = {}
        for encoder in encoders:
            log.info("evaluating %s", encoder.name)
            found = frozen.evaluate(encoder, args, real, lists, run.device)
            if mapped and encoder.model.encoder is not None:
                pair = mapped[image_kind(encoder.flags)]
                found.dense = patches.evaluate(encoder, *pair, args, run.device)
            results[encoder.name] = found
        write(run, args, encoders, results, left_out)


class Encoder:
    """An encoder's features of all image sets, once `extract` has computed what is not there."""

    def __init__(
        self,
        run: Run,
        name: str,
        model: FrozenEncoder,
        flags: argparse.Namespace,
        train: Images,
        tests: dict[str, Images],
    ):
        self.name, self.model, self.flags = name, model, flags
        self.view = evaluation_view(flags)
        # On a CPU always fp32: what `auto` takes there depends on what else the machine does.
        self.precision = run.precision(width=0)
        self.checksum = checksum(model)
        if flags.attentive and model.encoder is not None:
            blank = torch.zeros(1, flags.in_chans, *self.view.size, device=run.device)
            self.num_patches, self.width = self.encode_tokens(blank).shape[1:]
            attentive.check_queries(self.width, flags.attentive_queries)
        with_blocks = "blocks" in flags.only
        self.train = self._store("train", train, flags.block_images * with_blocks)
        self.tests = {
            name: self._store(name, images, len(images) * (with_blocks and name == "val"))
            for name, images in tests.items()
        }
        self.views: torch.Tensor | None = None
        self.tokens: FeatureStore | None = None

    def num_images(self) -> int:
        """Of all sets."""
        return sum(len(store.images) for store in (self.train, *self.tests.values()))

    def extract(self, run: Run, whole: Pace) -> None:
        """Compute the features that are not on the disk; for all ranks."""
        for part, store in {"train": self.train, **self.tests}.items():
            if self.flags.only or self.flags.attentive:  # else nothing is asked of them
                self._fill(run, store, part, self._encode, whole)
        self.views = self._masked_views(run, self.tests["val"])

    def _folder(self, part: str) -> str:
        root = self.flags.features or os.path.join(self.flags.output_dir, "features")
        return os.path.join(root, f"{self.name.replace(os.sep, '_')}-{part}")

    def _store(self, part: str, images: Images, detailed: int = 0, dtype: str = "") -> FeatureStore:
        flags = self.flags
        about = dict(
            encoder=self.checksum,
            model=flags.model or "pixels",
            part=part,
            image_names=images_checksum(images),
            **how_encoded(flags, self.view, self.precision),
        )
        dtype = dtype or flags.feature_dtype
        return FeatureStore(self._folder(part), about, images, dtype, detailed)

    def _fill(
        self, run: Run, store: FeatureStore, part: str,
        encode: Callable[[torch.Tensor, bool], Outputs], whole: Pace | None = None,
    ) -> None:  # fmt: skip
        options = loading(self.flags, run.device)
        store.extract(encode, self.view, run.device, f"{self.name}, {part}", whole, **options)

    def _encode(self, imgs: torch.Tensor, detailed: bool) -> dict[str, torch.Tensor]:
        with self.precision.autocast():
            return self.model(imgs, detailed)

    def encode_tokens(self, imgs: torch.Tensor) -> torch.Tensor:
        """Patch tokens [B, L, D]."""
        with self.precision.autocast():
            return self.model.patch_tokens(imgs).float()

    def token_folder(self) -> tuple[str, int]:
        """Where the training images' patch tokens are kept, and how many numbers they have."""
        return self._folder("tokens"), len(self.train.images) * self.num_patches * self.width

    def keep_tokens(self, run: Run) -> None:
        self.tokens = self._store("tokens", self.train.images, dtype="fp16")
        self._fill(run, self.tokens, "tokens", self._patch_tokens)

    def _patch_tokens(self, imgs: torch.Tensor, _: bool) -> dict[str, torch.Tensor]:
        return {attentive.TOKENS: self.encode_tokens(imgs)}

    def _masked_views(self, run: Run, store: FeatureStore) -> torch.Tensor | None:
        """Of the first images of a set, the features of four masks: [n, 4, D]."""
        is_wanted = "label_free" in self.flags.only and distributed.is_main()
        if self.model.encoder is None or not is_wanted:
            return None
        found, generator = [], torch.Generator().manual_seed(0)
        viewed = store.ids()[: frozen.VIEWED]
        for start in range(0, len(viewed), 64):
            seen = [self.view(store.images.read(int(i))) for i in viewed[start : start + 64]]
            imgs = torch.stack(of_one_type(seen)).to(run.device)
            num_patches = getattr(self.model.encoder.patch_embed, "num_patches", 1)
            noise = torch.rand(len(imgs), num_patches, generator=generator).to(imgs.device)
            num_visible = max(1, num_patches // NUM_MASKS)
            ids = orthogonal_permutations(noise, NUM_MASKS, num_visible)[:, :, :num_visible]
            with self.precision.autocast():
                views = self.model.masked_views(imgs, ids)
            if views is None:
                return None
            found.append(views.float().cpu())
        return torch.cat(found)


def keep_tokens(run: Run, encoders: list[Encoder]) -> None:
    """Write the training images' patch tokens, where the disk holds those of all encoders."""
    folders = dict(encoder.token_folder() for encoder in encoders)
    if agreement.main_does(lambda: attentive.are_kept(run.args.tokens, folders)):
        for encoder in encoders:
            encoder.keep_tokens(run)


def write(
    run: Run,
    args: argparse.Namespace,
    encoders: list[Encoder],
    results: dict,
    left_out: dict[str, int],
) -> None:
    """The tables, the JSON and the pictures."""
    checksums = {encoder.name: encoder.train.digest() for encoder in encoders}
    dense = {len(one.left_out) for found in results.values() for one in found.dense.values()}
    left_out |= {"the dense validation": max(dense)} if any(dense) else {}
    num_train = len(encoders[0].train.ids())
    text = report.markdown(results, args, checksums, num_train, left_out)
    print(text)
    found = report.as_json(results, args, checksums, left_out)
    tables = {"evaluation.md": text + "\n", "evaluation.json": found}
    pictures = dict.fromkeys(report.PICTURES) | report.pictures(results)
    run.folder.write(tables | pictures)
    for name in (name for name, picture in pictures.items() if picture):
        log.info("picture: %s", os.path.join(args.output_dir, name))
    run.finish(**report.headline(results), **beside(sum(left_out.values())))


if __name__ == "__main__":
    run_main(main, parse_args)
