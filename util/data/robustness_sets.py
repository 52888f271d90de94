"""The test sets of a robustness evaluation: the published ones, and corruptions made on the fly."""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from util.checks import image_size
from util.cluster import agreement
from util.data import imagenet
from util.data.corruption.corruptions import MIN_SIDE, RECORD, Corruption
from util.data.datasets import DATASETS, ArrayImages, Images, Subset, load_images
from util.data.image_folders import load_test_folder
from util.data.images import to_bytes
from util.data.same_data import check_same
from util.data.transforms import ResizeCenterCrop, resize
from util.errors import UsageError

PUBLISHED_SIZE = 224  # pixels, of ImageNet-C's images

View = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class TestSet:
    """A test set's images as a classifier sees them.

    name: the set's, or corruption and severity. view: of an image [C, H, W]. competing: the logits
    of which the largest is the prediction; None: all. about: further plain values that the
    predictions depend on.
    """

    name: str
    images: Images
    view: View
    corruption: str = ""
    severity: int = 0
    competing: Sequence[int] | None = None
    about: dict = field(default_factory=dict)


class CorruptedImages(Images):
    """The images of a set as the evaluation sees them, then corrupted; image i is always the same.

    Data sets in arrays are small: their images are kept once they are made, so that several
    classifiers cost one corruption.
    """

    def __init__(self, images: Images, view: View, corruption: Corruption):
        self.images, self.view, self.corruption = images, view, corruption
        self.targets, self.classes = images.targets, images.classes
        self.published = images.published
        self.is_kept = isinstance(_whole(images), ArrayImages)
        self.kept: dict[int, torch.Tensor] = {}

    def read(self, index: int) -> torch.Tensor:
        if index in self.kept:
            return self.kept[index]
        image = self.view(self.images.read(index))
        try:
            image = to_bytes(image)
        except ValueError as error:
            raise UsageError(
                f"--corrupt: {self.name(index)} {error}: name it with --value_range, or use "
                "--no-corrupt"
            ) from None
        image = self.corruption(image, index)
        if self.is_kept:
            self.kept[index] = image
        return image

    def name(self, index: int) -> str:
        return self.images.name(index)

    def files(self, index: int) -> tuple[str, ...]:
        return self.images.files(index)


class AsStored:
    """A view of images that are stored at the published size; resized if the model's is another.

    Raises:
        UsageError: an image of another size than the published one.
    """

    def __init__(self, place: str, size: tuple[int, int], interpolation: str):
        self.place, self.size, self.interpolation = place, size, interpolation

    def __str__(self) -> str:
        stored = f"as stored, {PUBLISHED_SIZE} x {PUBLISHED_SIZE} pixels"
        if self.size == (PUBLISHED_SIZE, PUBLISHED_SIZE):
            return stored
        size = " x ".join(map(str, self.size))
        return f"{stored}, resized ({self.interpolation}) to {size}"

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[1:]
        if (height, width) != (PUBLISHED_SIZE, PUBLISHED_SIZE):
            raise UsageError(
                f"{self.place} has an image of {height} x {width} pixels, and the published ones "
                f"have {PUBLISHED_SIZE} x {PUBLISHED_SIZE}: take those, or leave this set out of "
                "--stored"
            )
        if self.size == (height, width):
            return image
        return resize(image, self.size, self.interpolation)


def open_sets(args: argparse.Namespace, classes: Sequence[str]) -> list[TestSet]:
    """All test sets that the flags name, as a classifier of these classes sees them; for all ranks.

    Args:
        args: with the classifier's `input_size` and `in_chans`. classes: its logits' names.

    Raises:
        UsageError: folders that are not what their flags say, or of which something is missing; on
            all ranks, where one of them lacks it or has other images than the others.
    """
    # What a data set's name says is opened for all ranks; of folders each rank opens its own.
    named = load_images(args, "val") if _is_named(args) else None
    sets = agreement.main_first(lambda: _open(args, classes, named))
    agreement.all_or_none(lambda: _look_at_first(sets))
    _check_same_sets(sets)
    return sets


def _open(args: argparse.Namespace, classes: Sequence[str], named: Images | None) -> list[TestSet]:
    clean = _clean_sets(args, classes, named)
    if args.imagenet_c:
        corrupted = _stored_corruptions(args, classes)
    elif args.corrupt:
        if not clean or clean[0].competing:
            raise UsageError("--corrupt corrupts the clean images: name them, with --imagenet")
        corrupted = _made_corruptions(args, clean[0])
    else:
        corrupted = []
    return [_cut_down(one, args.max_images) for one in (*clean, *corrupted)]


def _look_at_first(sets: list[TestSet]) -> None:
    """Read an image of each kind of set, which may be found to be of another kind than is said.

    What cannot be read is a matter of the evaluation, which counts it.
    """
    made = [one for one in sets if isinstance(_whole(one.images), CorruptedImages)]
    for one in [*(one for one in sets if isinstance(one.view, AsStored)), *made[:1]]:
        try:
            image = one.images.read(0)
        except UsageError:
            raise
        except Exception:  # whatever a decoder makes of a damaged file
            continue
        one.view(image)


def _whole(images: Images) -> Images:
    return images.images if isinstance(images, Subset) else images


def _check_same_sets(sets: list[TestSet]) -> None:
    by_rank = agreement.gather([one.name for one in sets])
    for name in sorted(set().union(*by_rank)):
        who = agreement.groups([name in names for names in by_rank])
        if False in who:
            raise UsageError(
                f"the ranks see different test sets: {who[False]} without {name}: give all of them "
                "the same folders"
            )
    for one in sets:
        check_same(one.images.targets, one.images.classes, f"{one.name} images", "folders")


def _folders(args: argparse.Namespace) -> list[str]:
    """Those of ImageNet's test sets that the flags name."""
    return [f for p in imagenet.TEST_SETS.values() if (f := getattr(args, p.flag[2:]))]


def _is_named(args: argparse.Namespace) -> bool:
    """The clean images are a data set's, and in no folder of class folders."""
    of_imagenet = _folders(args) or (args.imagenet_c and not args.data_path)
    return not of_imagenet and args.dataset != "image_folder"


def is_published(args: argparse.Namespace) -> bool:
    """Whether the corrupted images are ImageNet-C's own, and not made by `tools.corrupt`."""
    return bool(args.imagenet_c) and _record(args.imagenet_c) is None


def _record(folder: str) -> dict | None:
    """What tools.corrupt wrote down about a folder that it made; None for the published one."""
    try:
        with open(os.path.join(folder, RECORD), encoding="utf-8-sig") as file:
            return json.load(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"--imagenet_c {folder}: its {RECORD} is damaged ({error})") from None


def _view(args: argparse.Namespace, name: str, place: str) -> View:
    size = image_size(args.input_size, 1)
    if name in args.stored:
        return AsStored(place, size, args.interpolation)
    crop_share = args.crop_share or DATASETS[args.dataset].crop_share
    return ResizeCenterCrop(size, crop_share, args.interpolation)


def _clean_sets(
    args: argparse.Namespace, classes: Sequence[str], named: Images | None
) -> list[TestSet]:
    """Args: named: the images of --dataset, unless they lie in class folders."""
    sets = []
    for name, published in imagenet.TEST_SETS.items():
        folder = getattr(args, published.flag[2:])
        if folder:
            images = imagenet.load_published(
                folder, published, classes, args.in_chans, args.partial
            )
            images.value_range = args.value_range
            wanted = imagenet.synsets(published.synsets)
            competing = None
            if len(wanted) < imagenet.NUM_CLASSES:
                competing = sorted(classes.index(synset) for synset in wanted)
            view = _view(args, name, f"{published.flag} {folder}")
            sets.append(TestSet(name, images, view, competing=competing))
    if sets or (args.imagenet_c and not args.data_path):
        return sets
    if named is None:
        folder = os.path.join(args.data_path, "val")
        images = load_test_folder(
            folder, list(classes), args.in_chans, "--data_path", args.value_range
        )
    else:
        images = named
        if images.classes != list(classes):
            raise UsageError(
                f"a classifier of {len(classes)} logits ({', '.join(classes[:3])}, …) cannot be "
                f"tested on --dataset {args.dataset}, whose classes are {len(images.classes)} "
                f"({', '.join(images.classes[:3])}, …)"
            )
    return [
        TestSet(args.dataset, images, _view(args, args.dataset, f"--data_path {args.data_path}"))
    ]


def _made_corruptions(args: argparse.Namespace, clean: TestSet) -> list[TestSet]:
    """The clean images, seen and then corrupted as their pixels are."""
    size = image_size(args.input_size, 1)
    if args.in_chans not in (1, 3) or min(size) < MIN_SIDE:
        raise UsageError(
            f"--corrupt: images of {args.in_chans} channels and {min(size)} pixels cannot be "
            f"corrupted (1 or 3, at least {MIN_SIDE}): use --no-corrupt"
        )
    return [
        TestSet(
            f"{corruption} {severity}",
            CorruptedImages(clean.images, clean.view, Corruption(corruption, severity, args.seed)),
            nn.Identity(), corruption, severity,
            about=dict(corruption=[corruption, severity, args.seed], seen=str(clean.view)),
        )
        for corruption in args.corruptions
        for severity in args.severities
    ]  # fmt: skip


def _stored_corruptions(args: argparse.Namespace, classes: Sequence[str]) -> list[TestSet]:
    """FOLDER/CORRUPTION/SEVERITY/CLASS/IMAGE, all with the same images."""
    root, record = args.imagenet_c, _record(args.imagenet_c)
    wanted = [(c, s) for c in (*args.corruptions, *args.extra) for s in args.severities]
    absent = [f"{c}/{s}" for c, s in wanted if not os.path.isdir(os.path.join(root, c, str(s)))]
    if absent and (not args.partial or len(absent) == len(wanted)):
        raise UsageError(
            f"--imagenet_c {root} lacks {len(absent)} of {len(wanted)} folders "
            f"({', '.join(absent[:3])}): complete it, or use --partial"
        )
    is_stored = record is None or record.get("size") != "kept"
    sets: list[TestSet] = []
    for corruption, severity in wanted:
        if f"{corruption}/{severity}" in absent:
            continue
        folder = os.path.join(root, corruption, str(severity))
        if record is None:
            images = imagenet.load_published(
                folder, imagenet.CORRUPTED, classes, args.in_chans, args.partial
            )
            images.value_range = args.value_range
        else:
            images = load_test_folder(
                folder, list(classes), args.in_chans, "--imagenet_c", args.value_range
            )
        if sets and not np.array_equal(images.paths, sets[0].images.paths):
            raise UsageError(
                f"--imagenet_c {root}: {corruption}/{severity} has other images than "
                f"{sets[0].corruption}/{sets[0].severity}: complete both"
            )
        view = _view(args, "ImageNet-C" if is_stored else "", f"--imagenet_c {folder}")
        sets.append(TestSet(f"{corruption} {severity}", images, view, corruption, severity))
    return sets


def _cut_down(one: TestSet, max_images: int | None) -> TestSet:
    """The first of a fair draw, the same one for sets of the same images."""
    if max_images and max_images < len(one.images):
        order = np.random.default_rng(0).permutation(len(one.images))
        one.images = Subset(one.images, np.sort(order[:max_images]))
    return one
