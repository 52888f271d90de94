"""Images with objects, as COCO's JSON tells of them: read, checked, and kept small.

A label is a category's place among the ids in ascending order, from 1 on; 0 is the background.
"""

import json
import logging
import os
import zlib
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from util.cluster import agreement
from util.data.datasets import Images
from util.data.dense.coco_file import outlined, read_annotations, sort_out
from util.data.images import read_image, stored_orientation
from util.data.same_data import check_same
from util.data.value_scale import check_scale
from util.errors import UsageError

log = logging.getLogger(__name__)

# Where a split's JSON and images lie below --data_path: COCO's layout, and that of our scenes.
LAYOUTS = (
    {"train": ("annotations/instances_train2017.json", "train2017"),
     "val": ("annotations/instances_val2017.json", "val2017")},
    {"train": ("instances_training.json", "images/training"),
     "val": ("instances_validation.json", "images/validation")},
)  # fmt: skip
TURNED = (5, 6, 7, 8)  # orientations that swap height and width

# Label, COCO's `segmentation`, and whether that is a mask; else it is the object's box.
Object = tuple[int, dict | list, bool]
Annotated = tuple[int, list[Object]]  # of which image, by its index, and what is in it


@dataclass(frozen=True)
class Categories:
    """The classes that a detector knows: label i + 1 is the category `ids[i]`, `names[i]`."""

    ids: list[int]
    names: list[str]

    def labels(self) -> dict[int, int]:
        return {category: number + 1 for number, category in enumerate(self.ids)}


class CocoImages(Images):
    """`read(i)` gives an image [C, H, W] and its objects, without crowds and what is unusable.

    `ids` are the images' ids in the file; `targets` stand for them where ranks compare their data.

    Args:
        images: a file's entries. folder: of the image files. annotations: regular ones, to train
            on.
    """

    def __init__(
        self, images: list[dict], folder: str, in_chans: int, categories: Categories,
        annotations: list[dict],
    ):  # fmt: skip
        self.folder, self.in_chans, self.categories = folder, in_chans, categories
        self.classes = categories.names
        images = sorted(images, key=lambda image: image["id"])
        self.ids = [image["id"] for image in images]  # of any size: no array takes them
        self.targets = np.array([zlib.crc32(str(number).encode()) for number in self.ids])
        self.sizes = [(image["height"], image["width"]) for image in images]
        self.paths = np.array([os.fsencode(image["file_name"]) for image in images])
        self._keep(annotations)

    def _keep(self, annotations: list[dict]) -> None:
        """One array of JSON instead of a million objects: forked workers share it."""
        labels, of_image = self.categories.labels(), defaultdict(list)
        for about in annotations:
            has_mask = about["segmentation"] is not None
            found = labels[about["category_id"]], outlined(about), has_mask
            of_image[about["image_id"]].append(found)
        texts = [json.dumps(of_image[number]).encode() for number in self.ids]
        self.ends = np.cumsum([len(text) for text in texts])
        self.texts = np.frombuffer(b"".join(texts), dtype=np.uint8)

    def objects(self, index: int) -> list[Object]:
        start = self.ends[index - 1] if index else 0
        found = json.loads(self.texts[start : self.ends[index]].tobytes())
        return [tuple(about) for about in found]

    def read(self, index: int) -> tuple[Tensor, Annotated]:
        """Raises: OSError, ValueError: an unreadable image, or one of another size."""
        image = read_image(self.name(index), self.in_chans, self.value_range)
        size = self.sizes[index]
        if tuple(image.shape[1:]) != size:
            raise ValueError(
                f"{self.name(index)} has {image.shape[1]} x {image.shape[2]} pixels, its "
                f"annotations are for {size[0]} x {size[1]}{self._why_turned(index, image)}"
            )
        return image, (index, self.objects(index))

    def _why_turned(self, index: int, image: Tensor) -> str:
        if tuple(image.shape[:0:-1]) != self.sizes[index] or self.name(index).endswith(".npy"):
            return ""
        with open(self.name(index), "rb") as file:
            if stored_orientation(file) not in TURNED:
                return ""
        return (
            ", the photograph's before its EXIF orientation turns it: annotate it as it is shown, "
            "or take the tag out of the file"
        )

    def name(self, index: int) -> str:
        return os.path.join(self.folder, os.fsdecode(self.paths[index]))


def load_coco(
    args, split: str, categories: Categories | None = None
) -> tuple[CocoImages, dict | None]:
    """The images that --data_path, or the flags of the split, name.

    Args:
        split: `train` or `val`. categories: those that are known; None: the file's own.

    Returns:
        the images, and of `val` what an evaluation compares with, in COCO's format.

    Raises:
        UsageError: files that are missing, empty or contradict themselves; on all ranks.
    """
    images, truth = agreement.all_or_none(lambda: _load(args, split, categories))
    check_same(images.targets, images.classes, f"{split} images")
    return images, truth


def _load(args, split: str, categories: Categories | None) -> tuple[CocoImages, dict | None]:
    path, folder = _find(args, split)
    content = read_annotations(path)
    own = Categories(*_by_id(content["categories"]))
    if categories is not None:
        _check_known(own, categories, path)
    listed = _with_their_files(content["images"], folder, split)
    usable, truth = sort_out(content, path)
    if split == "train":
        if not usable:
            raise UsageError(
                f"{path} has no object to train on: the log says what is wrong with them"
            )
        if not args.empty_images:
            listed = _with_objects(listed, usable, path)
    images = CocoImages(listed, folder, args.in_chans, categories or own, usable)
    images.value_range = getattr(args, "value_range", None)
    check_scale(images, args)
    return images, None if split == "train" else content | {"annotations": truth}


def _with_objects(images: list[dict], usable: list[dict], path: str) -> list[dict]:
    """As published: images without an object to train on are passed over."""
    known = {about["image_id"] for about in usable}
    kept = [image for image in images if image["id"] in known]
    if len(kept) < len(images):
        log.info(
            "%s: %d of %d images have no object and are not trained on, as published; "
            "--empty_images trains on them, too",
            path, len(images) - len(kept), len(images),
        )  # fmt: skip
    return kept


def _find(args, split: str) -> tuple[str, str]:
    """The paths of a split's JSON and images."""
    given = [getattr(args, f"{split}_{part}") for part in ("json", "images")]
    if not args.data_path and not all(given):
        raise UsageError(
            "--data_path is missing: name a folder in COCO's layout, or make one: python -m "
            f"tools.scenes OUT; or name --{split}_json and --{split}_images"
        )
    known = next(
        (layout for layout in LAYOUTS if os.path.exists(f"{args.data_path}/{layout[split][0]}")),
        LAYOUTS[0],
    )[split]
    path, folder = (os.path.join(args.data_path, g or k) for g, k in zip(given, known, strict=True))
    if not os.path.isfile(path):
        raise UsageError(
            f"--data_path {args.data_path} has no {os.path.relpath(path, args.data_path or '.')}: "
            f"name the file with --{split}_json"
        )
    if not os.path.isdir(folder):
        raise UsageError(f"{folder} is not a folder: name that of the images, --{split}_images")
    return path, folder


# --------------------------------------------------------------------------------- what is checked


def _by_id(categories: list[dict]) -> tuple[list[int], list[str]]:
    pairs = sorted((category["id"], category["name"]) for category in categories)
    return [number for number, _ in pairs], [name for _, name in pairs]


def _check_known(own: Categories, known: Categories, path: str) -> None:
    names = dict(zip(known.ids, known.names, strict=True))
    for number, name in zip(own.ids, own.names, strict=True):
        if names.get(number) != name:
            has = f"{names[number]!r} under that id" if number in names else "none with that id"
            raise UsageError(
                f"{path} has category {number}, {name!r}; training has {has}: both need the same"
            )


def _with_their_files(images: list[dict], folder: str, split: str) -> list[dict]:
    """The images with the names of files that there are; a Windows path gets its slashes turned."""
    listed: dict[str, set[str]] = {}

    def exists(path: str) -> bool:
        inner, name = os.path.split(path)
        if inner not in listed:
            place = os.path.join(folder, inner)
            listed[inner] = set(os.listdir(place)) if os.path.isdir(place) else set()
        return name in listed[inner]

    found, absent = [], []
    for image in images:
        names = image["file_name"], image["file_name"].replace("\\", "/")
        name = next((name for name in names if exists(name)), None)
        if name is None:
            absent.append(image["file_name"])
        found.append(image | {"file_name": name})
    if absent:
        raise UsageError(
            f"{folder} lacks {len(absent)} of {len(images)} images (the first is {absent[0]}): "
            f"name the right folder with --{split}_images"
        )
    return found
