"""Images at a path, whatever lies there: a tree, class folders, lists, shards; or a set by name."""

import argparse
import copy
import os

import numpy as np

from util.cluster import agreement
from util.data.datasets import DATASETS, load_images
from util.data.file_index import find_images
from util.data.hugging_face import SUFFIXES as TABLES
from util.data.image_folders import image_tree
from util.data.image_list import listed_positions
from util.data.image_sets import FileImages, Images, Subset
from util.data.split_files import JOINED
from util.data.table import SUFFIXES
from util.errors import UsageError

LISTS = (*SUFFIXES, ".txt")
SPLITS = ("train", "val")
WITH_ANY = ("csv", "shards", "hugging_face")  # their files may be taken whatever split they are of


def source_of(path: str) -> str:
    """The name in `DATASETS` of what lies at a path; a name that is no path is that data set's.

    Raises:
        UsageError: nothing that images could be read from.
    """
    first = path.split(JOINED)[0].lower()
    if path in DATASETS and not os.path.exists(path):
        return path
    if first.endswith(".tar"):
        return "shards"
    if first.endswith(LISTS):
        return "csv"
    if first.endswith(TABLES):
        return "hugging_face"
    if not os.path.isdir(path):
        raise UsageError(
            f"IMAGES {path} is no folder, list ({', '.join(LISTS)}), shards (.tar), "
            f"{' or '.join(TABLES)} files or data set's name: check the path"
        )
    inside = [os.path.join(path, split) for split in SPLITS]
    below = [*inside, os.path.join(path, "data")]  # where Hugging Face's repositories have tables
    for source, suffixes in (("shards", (".tar",)), ("hugging_face", TABLES)):
        if any(_holds(folder, suffixes) for folder in (path, *below)):
            if _has_images(path):
                raise UsageError(
                    f"IMAGES {path} has images and {' or '.join(suffixes)} files: say which are "
                    f"meant, --dataset flat or {source}"
                )
            return source
    return "image_folder" if any(map(os.path.isdir, inside)) else "flat"


def _has_images(folder: str) -> bool:
    """Besides arrays, which may be features of what lies there."""
    return any(not name.endswith(".npy") for name in find_images(folder, is_told=False))


def _holds(folder: str, suffixes: tuple[str, ...]) -> bool:
    return os.path.isdir(folder) and any(n.lower().endswith(suffixes) for n in os.listdir(folder))


def load_any(args: argparse.Namespace) -> Images:
    """The images that `args.data_path` and `args.dataset` mean, with labels where they have some.

    Of data with splits those of `args.split`; where it is empty, all that lists and shards have,
    and the training split of others. A part of a published set may be missing here.

    Raises:
        UsageError: as `load_images`.
    """
    plain = "pretrain" if args.dataset == "flat" else "train"
    whole = copy.copy(args)
    whole.subset_file = ""  # of a part the folders are not known, nor is there one of `val`
    images = load_images(whole, args.split or ("any" if args.dataset in WITH_ANY else plain))
    if args.dataset == "flat" and isinstance(images, FileImages):
        label_by_folders(images)
    if args.subset_file:
        images = agreement.main_first(
            lambda: Subset(images, listed_positions(images, args.subset_file, "--subset_file"))
        )
    images.published = ""
    return images


def label_by_folders(images: FileImages) -> None:
    """Label the images of a tree by the folders right below it, where each lies in one."""
    tree = image_tree(images.root)
    if tree.tops.min() >= 0:
        images.classes = tree.with_images()
        number = {name: place for place, name in enumerate(images.classes)}
        images.targets = np.asarray(tree.targets(number))
