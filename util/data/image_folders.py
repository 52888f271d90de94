"""Images in folders: of classes, or any tree without labels."""

import logging
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from util.data.file_index import count_of, folders_with_images, list_folder
from util.data.image_sets import FileImages, Images
from util.data.kept_index import Made, indexed
from util.errors import UsageError

log = logging.getLogger(__name__)

# ImageNet's test sets by their number of images and of class folders, which are synsets.
PUBLISHED = {
    (50000, 1000): "ImageNet's validation set", (10000, 1000): "ImageNet-V2",
    (7500, 200): "ImageNet-A", (30000, 200): "ImageNet-R", (50889, 1000): "ImageNet-Sketch",
}  # fmt: skip
SYNSET = re.compile(r"n\d{8}")


def published_set(num_images: int, classes: Collection[str]) -> str:
    """The published test set of so many images in these class folders; empty: none is known."""
    found = PUBLISHED.get((num_images, len(classes)), "")
    return found if all(SYNSET.fullmatch(name) for name in classes) else ""


@dataclass(frozen=True)
class ImageTree:
    """The images below a folder, sorted, as a kept index has them.

    paths: [n] bytes, relative to the folder. tops: [n] int32, the place in `folders` of the folder
    right below it that each lies in; -1: in none. folders: the names of those.
    """

    paths: np.ndarray
    tops: np.ndarray
    folders: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        return os.fsdecode(self.paths[index])

    def names(self) -> list[str]:
        """All paths."""
        return [os.fsdecode(path) for path in self.paths]

    def with_images(self) -> list[str]:
        """The folders that hold an image: the classes, sorted."""
        return [self.folders[top] for top in np.unique(self.tops) if top >= 0]

    def unknown(self, classes: Collection[str]) -> list[str]:
        """Those of them that are none of these classes, sorted."""
        return [name for name in self.with_images() if name not in classes]

    def at(self, ids: np.ndarray) -> "ImageTree":
        """A part of the images."""
        return ImageTree(self.paths[ids], self.tops[ids], self.folders)

    def targets(self, number: dict[str, int]) -> np.ndarray:
        """The images' labels [n] int64, by the numbers of their folders' names."""
        table = np.array([number.get(name, -1) for name in [*self.folders, ""]], dtype=np.int64)
        return table[self.tops]


def image_tree(root: str) -> ImageTree:
    """All images below a folder; listed once, as long as no folder changes (`kept_index`).

    The log says in one line what is passed over.

    Raises:
        UsageError: a folder that cannot be read.
    """
    index = indexed("image tree 2", [root], lambda: _listed(root))
    tree = ImageTree(index.arrays["paths"], index.arrays["tops"], index.header["folders"])
    if rest := index.header["passed over"]:
        log.info("%s: %s; passed over: %s", root, count_of(len(tree), "image"), rest)
    return tree


def _listed(root: str) -> Made:
    listing = list_folder(root)
    place = {name: number for number, name in enumerate(listing.folders)}
    tops = [place[path.split(os.sep, 1)[0]] if os.sep in path else -1 for path in listing.images]
    arrays = {
        "paths": np.array([os.fsencode(path) for path in listing.images], dtype=bytes),
        "tops": np.array(tops, dtype=np.int32),
    }
    real = os.path.realpath(root)
    made_of = [(os.path.join(real, path), found) for path, found in listing.made_of]
    header = {"folders": listing.folders, "passed over": listing.passed_over()}
    return header, arrays, made_of


def load_image_folder(split: str, data_path: str, in_chans: int, download: bool) -> Images:
    """train/CLASS/IMAGE and val/CLASS/IMAGE, as `util.data.datasets` has its sources."""
    part = "val" if split == "val" else "train"
    folder = os.path.join(existing_folder(data_path), part)
    if not os.path.isdir(folder):
        raise UsageError(
            f"--data_path {data_path} has no {part}/ folder: --dataset image_folder wants "
            "train/CLASS/IMAGE and val/CLASS/IMAGE (--dataset flat takes any tree, without labels)"
        )
    tree = image_tree(folder)
    if not len(tree):
        raise UsageError(f"--data_path {folder} holds no image: name a folder with images")
    loose = np.flatnonzero(tree.tops < 0)
    if len(loose):
        raise UsageError(
            f"--data_path {folder} has images that lie in no class folder ({tree.path(loose[0])}): "
            "put each into CLASS/, or pre-train with --dataset flat"
        )
    # A class's number is its place in train/, whichever classes val/ has.
    train = os.path.join(data_path, "train")
    own = classes = tree.with_images()
    if part == "val" and os.path.isdir(train):
        classes = folders_with_images(train)
    number = {name: i for i, name in enumerate(classes)}
    unknown = tree.unknown(number)
    if unknown:
        raise UsageError(
            f"--data_path {folder} has class folders that {train} lacks, or has no image of "
            f"({unknown[0]}): both need the same names"
        )
    images = FileImages(folder, tree.paths, tree.targets(number), classes, in_chans)
    images.published = published_set(len(tree), own) if part == "val" else ""
    return images


def load_test_folder(
    folder: str, classes: list[str], in_chans: int, flag: str = "--test",
    value_range: Sequence[float] | None = None,
) -> Images:  # fmt: skip
    """Labelled images FOLDER/CLASS/IMAGE, numbered as the classes of a training set are. A folder
    has a class's name, or all have their places among the sorted names, from 0 on.

    Raises:
        UsageError: no such folder, no image, or classes that training does not have.
    """
    if not os.path.isdir(folder):
        raise UsageError(f"{flag} {folder} is not a folder: name one with CLASS/IMAGE in it")
    tree = image_tree(folder)
    if tree.tops.size and tree.tops.min() < 0:
        tree = tree.at(np.flatnonzero(tree.tops >= 0))
    if not len(tree):
        raise UsageError(f"{flag} {folder} has no image in a class folder: name CLASS/'s parent")
    number = {name: i for i, name in enumerate(classes)}
    unknown = tree.unknown(number)
    places = {str(place): number[name] for place, name in enumerate(sorted(classes))}
    if unknown and not tree.unknown(places):
        number, unknown = places, []  # ImageNet-V2 has folders 0 to 999
    if unknown:
        raise UsageError(
            f"{flag} {folder} has {len(unknown)} class folders that the training set lacks "
            f"({', '.join(unknown[:3])}): both need the same names"
        )
    images = FileImages(folder, tree.paths, tree.targets(number), classes, in_chans)
    images.published = published_set(len(tree), tree.with_images())
    images.value_range = value_range
    return images


def load_flat(split: str, data_path: str, in_chans: int, download: bool) -> Images:
    """Any tree of images, without labels, as `util.data.datasets` has its sources."""
    if split != "pretrain":
        raise UsageError("--dataset flat has no labels: use image_folder to probe or fine-tune")
    tree = image_tree(existing_folder(data_path))
    if not len(tree):
        raise UsageError(f"--data_path {data_path} holds no image: name a folder with images")
    return FileImages(data_path, tree.paths, np.full(len(tree), -1), [], in_chans)


def existing_folder(data_path: str) -> str:
    """--data_path, which has to be a folder."""
    if not data_path:
        raise UsageError("--data_path is missing: name the folder that holds the images")
    if not os.path.isdir(data_path):
        raise UsageError(f"--data_path {data_path} is not a folder: name one that exists")
    return data_path
