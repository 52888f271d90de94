"""Images with objects, as COCO's JSON tells of them: read, checked, and kept small.

A label is a category's place among the ids in ascending order, from 1 on; 0 is the background.
"""

import json
import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from util.cluster import agreement
from util.data.datasets import Images
from util.data.dense.rle import decode_rle
from util.data.images import read_image
from util.data.same_data import check_same
from util.errors import UsageError

log = logging.getLogger(__name__)

# Where a split's JSON and images lie below --data_path: COCO's layout, and that of our scenes.
LAYOUTS = (
    {"train": ("annotations/instances_train2017.json", "train2017"),
     "val": ("annotations/instances_val2017.json", "val2017")},
    {"train": ("instances_training.json", "images/training"),
     "val": ("instances_validation.json", "images/validation")},
)  # fmt: skip
SLACK = 2.0  # pixels by which a mask may leave its box, whose corners some tools round

Object = tuple[int, dict | list]  # label, COCO's `segmentation`
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

    `targets` are the images' ids in the file.

    Args:
        images: a file's entries. folder: of the image files. annotations: to train on.
    """

    def __init__(
        self, images: list[dict], folder: str, in_chans: int, categories: Categories,
        annotations: list[dict],
    ):  # fmt: skip
        self.folder, self.in_chans, self.categories = folder, in_chans, categories
        self.classes = categories.names
        images = sorted(images, key=lambda image: image["id"])
        self.targets = np.array([image["id"] for image in images], dtype=np.int64)
        self.sizes = [(image["height"], image["width"]) for image in images]
        self.paths = np.array([os.fsencode(image["file_name"]) for image in images])
        self._keep(annotations)

    def _keep(self, annotations: list[dict]) -> None:
        """One array of JSON instead of a million objects: forked workers share it."""
        labels, of_image = self.categories.labels(), defaultdict(list)
        for about in annotations:
            found = labels[about["category_id"]], about["segmentation"]
            of_image[about["image_id"]].append(found)
        texts = [json.dumps(of_image[int(number)]).encode() for number in self.targets]
        self.ends = np.cumsum([len(text) for text in texts])
        self.texts = np.frombuffer(b"".join(texts), dtype=np.uint8)

    def objects(self, index: int) -> list[Object]:
        start = self.ends[index - 1] if index else 0
        found = json.loads(self.texts[start : self.ends[index]].tobytes())
        return [(label, segmentation) for label, segmentation in found]

    def read(self, index: int) -> tuple[Tensor, Annotated]:
        """Raises: OSError, ValueError: an unreadable image, or one of another size."""
        image, size = read_image(self.name(index), self.in_chans), self.sizes[index]
        if tuple(image.shape[1:]) != size:
            raise ValueError(
                f"{self.name(index)} has {image.shape[1]} x {image.shape[2]} pixels, its "
                f"annotations are for {size[0]} x {size[1]}"
            )
        return image, (index, self.objects(index))

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
    _check_files(content["images"], folder, split)
    usable, truth = sort_out(content, path)
    if split == "train" and not usable:
        raise UsageError(f"{path} has no object to train on: the log says what is wrong with them")
    images = CocoImages(content["images"], folder, args.in_chans, categories or own, usable)
    if split == "train":
        return images, None
    # Evaluators take the id 0 for `none`, and ids mean nothing else to them.
    truth = [about | {"id": number} for number, about in enumerate(truth, 1)]
    return images, content | {"annotations": truth}


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


def read_annotations(path: str) -> dict:
    """A JSON file's `images`, `annotations` and `categories`, which have what they need.

    Raises:
        UsageError: damaged, empty, or with ids that repeat; the line says which.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no JSON: {str(error).splitlines()[0]}") from None
    needed = {
        "categories": {"id": int, "name": str},
        "images": {"id": int, "file_name": str, "height": int, "width": int},
        "annotations": {"id": int, "image_id": int, "category_id": int},
    }
    for part, kinds in needed.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise UsageError(f"{path} has no list of {part}: it is not in COCO's format")
        for entry in entries:
            known = entry if isinstance(entry, dict) else {}
            wrong = [key for key, kind in kinds.items() if not isinstance(known.get(key), kind)]
            if wrong:
                shown = str(entry)[:200]
                raise UsageError(f"{path}: one of its {part} has no proper {wrong[0]}: {shown}")
        _check_unique([entry["id"] for entry in entries], part, path)
    for part in ("categories", "images"):
        if not content[part]:
            raise UsageError(f"{path} is empty: it has no {part}")
    known = {category["id"] for category in content["categories"]}
    strange = [a["id"] for a in content["annotations"] if a["category_id"] not in known]
    if strange:
        raise UsageError(
            f"{path}: {len(strange)} annotations are of a category that it does not list (the "
            f"first is annotation {strange[0]}): add the category"
        )
    return content


def _check_unique(ids: list[int], part: str, path: str) -> None:
    if len(set(ids)) < len(ids):
        seen: set[int] = set()
        again = next(number for number in ids if number in seen or seen.add(number))
        raise UsageError(f"{path}: more than one of its {part} has the id {again}: ids are unique")


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


def _check_files(images: list[dict], folder: str, split: str) -> None:
    listed: dict[str, set[str]] = {}
    absent = []
    for image in images:
        inner, name = os.path.split(image["file_name"])
        if inner not in listed:
            place = os.path.join(folder, inner)
            listed[inner] = set(os.listdir(place)) if os.path.isdir(place) else set()
        if name not in listed[inner]:
            absent.append(image["file_name"])
    if absent:
        raise UsageError(
            f"{folder} lacks {len(absent)} of {len(images)} images (the first is {absent[0]}): "
            f"name the right folder with --{split}_images"
        )


def sort_out(content: dict, path: str) -> tuple[list[dict], list[dict]]:
    """Annotations to train on, and those to be evaluated against; the log names what is wrong.

    What no evaluator could read is in neither. Objects without area and those outside of their
    image are not trained on, but count in an evaluation, as everywhere; crowds likewise.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    usable, truth, problems = [], [], defaultdict(list)
    for about in content["annotations"]:
        size = sizes.get(about["image_id"])
        problem = "of an image that is not listed, left out"
        if size is not None:
            problem = _damage(about, size)
        if problem is None:
            about.setdefault("iscrowd", 0)
            if "area" not in about:
                about["area"] = about["bbox"][2] * about["bbox"][3] * 1.0
            truth.append(about)
            problem = _emptiness(about["bbox"], size)
            if problem is None and not about["iscrowd"]:
                usable.append(about)
                problem = _excess(about)
        if problem:
            problems[problem].append(about["id"])
    for problem, ids in problems.items():
        log.warning("%s: %d annotations %s (the first: %d)", path, len(ids), problem, ids[0])
    return usable, truth


def _damage(about: dict, size: tuple[int, int]) -> str | None:
    """What is wrong with an annotation that nobody can read."""
    if not _are_numbers(about.get("bbox"), 4):
        return "without a bbox of four numbers, left out"
    encoded = about.get("segmentation")
    if isinstance(encoded, dict):
        counts = encoded.get("counts")
        if list(encoded.get("size", ())) != list(size) or not isinstance(counts, str | list):
            return "whose RLE is not of its image's size, left out"
        try:
            decode_rle(encoded)
        except (ValueError, TypeError, IndexError):
            return "whose RLE is damaged, left out"
    elif not isinstance(encoded, list) or not encoded:
        return "without a segmentation, left out"
    elif not all(_are_numbers(polygon) and len(polygon) % 2 == 0 for polygon in encoded):
        return "whose polygons are no lists of x and y, left out"
    return None


def _are_numbers(values: object, count: int | None = None) -> bool:
    return (
        isinstance(values, list)
        and (len(values) == count if count else len(values) >= 6)
        and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
    )


def _emptiness(bbox: Sequence[float], size: tuple[int, int]) -> str | None:
    x, y, width, height = bbox
    if width <= 0 or height <= 0:
        return "whose box has no area, not trained on"
    if x >= size[1] or y >= size[0] or x + width <= 0 or y + height <= 0:
        return "whose box is outside of its image, not trained on"
    return None


def _excess(about: dict) -> str | None:
    """Whether a mask leaves its box, which then is not taken from the file."""
    x, y, width, height = about["bbox"]
    left, top, right, bottom = _bounds(about["segmentation"])
    over = max(x - left, y - top, right - (x + width), bottom - (y + height))
    return "whose mask leaves its box, which is taken from the mask" if over > SLACK else None


def _bounds(encoded: dict | list) -> Iterable[float]:
    """x0, y0, x1, y1 of a segmentation, in pixels."""
    if isinstance(encoded, list):
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in encoded])
        return (*points.min(0), *points.max(0))
    rows, columns = np.nonzero(decode_rle(encoded))
    if not len(rows):
        return math.inf, math.inf, -math.inf, -math.inf
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
