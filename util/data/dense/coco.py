"""Images with objects, as COCO's JSON tells of them: read, checked, and kept small.

A label is a category's place among the ids in ascending order, from 1 on; 0 is the background.
"""

import io
import json
import logging
import os
import zlib
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from util.cluster import agreement
from util.data.dense.coco_file import outlined, read_annotations, sort_out
from util.data.dense.image_places import FolderPlace, ShardPlace, place_of
from util.data.image_sets import Images
from util.data.images import NamedBytes, decode_image, stored_orientation
from util.data.kept_index import Index, Made, indexed, stamp
from util.data.same_data import check_same
from util.data.value_scale import check_scale
from util.errors import UsageError

log = logging.getLogger(__name__)

# Where a split's JSON and images lie below --data_path: as COCO has them, our scenes, and shards.
LAYOUTS = (
    {"train": ("annotations/instances_train2017.json", "train2017"),
     "val": ("annotations/instances_val2017.json", "val2017")},
    {"train": ("instances_training.json", "images/training"),
     "val": ("instances_validation.json", "images/validation")},
)  # fmt: skip
SHARDED = {  # tools.shards
    "train": ("instances_train.json", "train-*.tar"), "val": ("instances_val.json", "val-*.tar"),
}  # fmt: skip
TURNED = (5, 6, 7, 8)  # orientations that swap height and width

Place = FolderPlace | ShardPlace
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
        index: of the file, as `_made` has it. place: of the images. rows: which of the index's
            images; by default all.
    """

    def __init__(
        self, index: Index, place: Place, in_chans: int, categories: Categories,
        rows: np.ndarray | None = None,
    ):  # fmt: skip
        self.place, self.in_chans, self.categories = place, in_chans, categories
        self.classes, self.labels = categories.names, categories.labels()
        self.rows = np.arange(len(index.arrays["ends"])) if rows is None else rows
        ids, arrays = index.header["ids"], index.arrays
        self.ids = [ids[row] for row in self.rows]  # of any size: no array takes them
        self.targets = np.array([zlib.crc32(str(number).encode()) for number in self.ids])
        self.paths, self.shapes = arrays["paths"], arrays["sizes"]
        self.texts, self.ends = arrays["objects"], arrays["ends"]

    def size(self, index: int) -> tuple[int, int]:
        """Height and width, as the file says."""
        height, width = self.shapes[self.rows[index]].tolist()
        return height, width

    def objects(self, index: int) -> list[Object]:
        row = self.rows[index]
        start = self.ends[row - 1] if row else 0
        found = json.loads(self.texts[start : self.ends[row]].tobytes())
        return [(self.labels[category], *about) for category, *about in found]

    def read(self, index: int) -> tuple[Tensor, Annotated]:
        """Raises: OSError, ValueError: an unreadable image, or one of another size."""
        size = self.size(index)
        data = NamedBytes(self.place.content(self._path(index)), self.name(index))
        image = decode_image(data, self.name(index), self.in_chans, self.value_range)
        if tuple(image.shape[1:]) != size:
            raise ValueError(
                f"{self.name(index)} has {image.shape[1]} x {image.shape[2]} pixels, its "
                f"annotations are for {size[0]} x {size[1]}{self._why_turned(index, image, data)}"
            )
        return image, (index, self.objects(index))

    def _why_turned(self, index: int, image: Tensor, data: io.BytesIO) -> str:
        if tuple(image.shape[:0:-1]) != self.size(index) or self.name(index).endswith(".npy"):
            return ""
        data.seek(0)
        if stored_orientation(data) not in TURNED:
            return ""
        return (
            ", the photograph's before its EXIF orientation turns it: annotate it as it is shown, "
            "or take the tag out of the file"
        )

    def _path(self, index: int) -> str:
        return os.fsdecode(self.paths[self.rows[index]])

    def name(self, index: int) -> str:
        return self.place.name(self._path(index))

    def files(self, index: int) -> tuple[str, ...]:
        return self.place.files(self._path(index))


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
    images, truth = agreement.main_first(lambda: _load(args, split, categories))
    check_same(images.targets, images.classes, f"{split} images")
    return images, truth


def _load(args, split: str, categories: Categories | None) -> tuple[CocoImages, dict | None]:
    path, where = _find(args, split)
    place = place_of(where, f"--{split}_images")
    index = indexed(f"coco {split} 1", [path, *place.of], lambda: _made(path, place, split))
    own = Categories(index.header["category ids"], index.header["categories"])
    if categories is not None:
        _check_known(own, categories, path)
    for line in index.header["problems"]:
        log.warning("%s: %s", path, line)
    rows = None
    if split == "train":
        lengths = np.diff(index.arrays["ends"], prepend=0)
        filled = np.flatnonzero(lengths > len("[]"))
        if not len(filled):
            raise UsageError(
                f"{path} has no object to train on: the log says what is wrong with them"
            )
        rows = None if args.empty_images else _said(filled, len(lengths), path)
    images = CocoImages(index, place, args.in_chans, categories or own, rows)
    images.value_range = getattr(args, "value_range", None)
    check_scale(images, args)
    truth = None if split == "train" else json.loads(index.arrays["truth"].tobytes())
    return images, truth


def _made(path: str, place: Place, split: str) -> Made:
    """What `kept_index` keeps of a file: all that training, or an evaluation, needs of it.

    Arrays: `paths` [n], `sizes` [n, 2], and the objects of image i, as a JSON list of (category,
    segmentation, whether that is a mask), in `objects` up to `ends[i]`; of `val` the `truth`.
    """
    made_of = [(os.path.realpath(path), stamp(path))]
    content = read_annotations(path)
    listed = _with_their_files(content["images"], place, split)
    usable, truth, problems = sort_out(content, path)
    truth = None if split == "train" else truth
    listed.sort(key=lambda image: image["id"])
    # Text instead of a million objects; nothing is rounded, and ids may have any size.
    of_image = defaultdict(list)
    for number, about in enumerate(usable):
        usable[number], has_mask = None, about["segmentation"] is not None
        found = about["category_id"], outlined(about), has_mask
        of_image[about["image_id"]].append(json.dumps(found))
    texts = [f"[{', '.join(of_image.pop(image['id'], []))}]".encode() for image in listed]
    arrays = {
        "paths": np.array([os.fsencode(image["file_name"]) for image in listed], dtype=bytes),
        "sizes": np.array([(image["height"], image["width"]) for image in listed], dtype=np.int32),
        "ends": np.cumsum([len(text) for text in texts]),
        "objects": np.frombuffer(b"".join(texts), dtype=np.uint8),
    }
    if truth is not None:
        whole = json.dumps(content | {"annotations": truth}).encode()
        arrays["truth"] = np.frombuffer(whole, dtype=np.uint8)
    category_ids, names = _by_id(content["categories"])
    header = {
        "ids": [image["id"] for image in listed], "category ids": category_ids,
        "categories": names, "problems": problems,
    }  # fmt: skip
    return header, arrays, made_of + place.looked_into


def _said(filled: np.ndarray, count: int, path: str) -> np.ndarray:
    """As published: images without an object to train on are passed over, and the log says so."""
    if len(filled) < count:
        log.info(
            "%s: %d of %d images have no object and are not trained on, as published; "
            "--empty_images trains on them, too",
            path, count - len(filled), count,
        )  # fmt: skip
    return filled


def _find(args, split: str) -> tuple[str, str]:
    """The paths of a split's JSON and images."""
    given = [getattr(args, f"{split}_{part}") for part in ("json", "images")]
    if not args.data_path and not all(given):
        raise UsageError(
            "--data_path is missing: name a folder in COCO's layout, or make one: python -m "
            f"tools.scenes OUT; or name --{split}_json and --{split}_images"
        )
    layouts = [one for one in (*LAYOUTS, SHARDED)
               if os.path.exists(os.path.join(args.data_path, one[split][0]))]  # fmt: skip
    known = (layouts or LAYOUTS)[0][split]
    path, folder = (os.path.join(args.data_path, g or k) for g, k in zip(given, known, strict=True))
    if not os.path.isfile(path):
        raise UsageError(
            f"--data_path {args.data_path} has no {os.path.relpath(path, args.data_path or '.')}: "
            f"name the file with --{split}_json"
        )
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


def _with_their_files(images: list[dict], place: Place, split: str) -> list[dict]:
    """The images with the names of files that there are."""
    found = [image | {"file_name": place.find(image["file_name"])} for image in images]
    absent = [old["file_name"] for old, new in zip(images, found, strict=True)
              if new["file_name"] is None]  # fmt: skip
    if absent:
        raise UsageError(
            f"{place.folder} lacks {len(absent)} of {len(images)} images (the first is "
            f"{absent[0]}): name the right folder with --{split}_images"
        )
    return found
