"""ImageNet's classes, those of its other test sets, and ReaL's labels, as timm carries them.

A classifier of ImageNet has a logit for each of the 1000 synsets in their sorted order, in which
every data set of class folders numbers them. ImageNet-A [Hendrycks et al., CVPR 2021] and -R
[Hendrycks et al., ICCV 2021] have images of 200 of them each, and a prediction is one of those.
"""

import functools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from util.data.image_folders import image_tree
from util.data.image_sets import FileImages, Images
from util.errors import UsageError

NUM_CLASSES = 1000


@dataclass(frozen=True)
class Published:
    """A test set as its authors published it.

    flag: the flag that names its folder. num_images: how many images it has. synsets: the file of
    timm's that lists its classes. numbered: its folders are called 0 to 999, which are the places
    of the synsets in their order.
    """

    flag: str
    num_images: int
    synsets: str = "imagenet_synsets.txt"
    numbered: bool = False


TEST_SETS = {
    "ImageNet": Published("--imagenet", 50000),
    "ImageNet-V2": Published("--imagenet_v2", 10000, numbered=True),
    "ImageNet-A": Published("--imagenet_a", 7500, "imagenet_a_synsets.txt"),
    "ImageNet-R": Published("--imagenet_r", 30000, "imagenet_r_synsets.txt"),
    "ImageNet-Sketch": Published("--imagenet_sketch", 50889),
}
CORRUPTED = Published("--imagenet_c", 50000)  # of each corruption and severity


def _timm_file(name: str):
    return resources.files("timm.data").joinpath("_info", name)


@functools.cache
def synsets(name: str = "imagenet_synsets.txt") -> tuple[str, ...]:
    """One of timm's lists of synsets, sorted."""
    return tuple(_timm_file(name).read_text().split())


def read_class_list(path: str) -> list[str]:
    """Read the class names in a file of --class_list, one a line.

    Raises:
        UsageError: a file that cannot be read, or names one twice.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--class_list {path} cannot be read ({error})") from None
    names = [line.strip() for line in lines if line.strip()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        problem = f"names {twice[0]} twice" if twice else "is empty"
        raise UsageError(f"--class_list {path} {problem}: it takes a class's name a line")
    return names


def check_classes(classes: Sequence[str]) -> None:
    """Raise UsageError where a classifier's classes are not ImageNet's 1000."""
    if len(classes) != NUM_CLASSES:
        raise UsageError(
            f"a classifier of {len(classes)} logits cannot be tested on ImageNet's sets, whose "
            f"classes are {NUM_CLASSES}: fine-tune it on ImageNet"
        )
    unknown = sorted(set(classes) - set(synsets()))
    if unknown:
        raise UsageError(
            f"{len(unknown)} of a classifier's classes are none of ImageNet's synsets "
            f"({', '.join(unknown[:3])}): test it on its own data, with --data_path"
        )


def load_published(
    folder: str, published: Published, classes: Sequence[str], in_chans: int, partial: bool = False
) -> Images:
    """The images FOLDER/CLASS/IMAGE of a published test set, numbered as a classifier's logits are.

    Args:
        classes: the names of the logits, in order. partial: some of it may be missing.

    Raises:
        UsageError: no such folder, folders that are no classes of the set, or something missing.
    """
    check_classes(classes)
    flag = published.flag
    if not os.path.isdir(folder):
        raise UsageError(f"{flag} {folder} is not a folder: name one with CLASS/IMAGE in it")
    names = synsets(published.synsets)
    number = {name: classes.index(name) for name in names}
    if published.numbered:
        number = {str(place): number[name] for place, name in enumerate(names)}
    tree = image_tree(folder)
    tree = tree.at(np.flatnonzero(np.char.count(tree.paths, os.fsencode(os.sep)) == 1))
    unknown = tree.unknown(number)
    if unknown:
        example = "0 to 999" if published.numbered else f"as {names[0]}"
        raise UsageError(
            f"{flag} {folder}: {len(unknown)} class folders are none of the set's {len(number)} "
            f"({', '.join(unknown[:3])}): name the folder whose folders are called {example}"
        )
    absent = sorted(set(number) - set(tree.with_images()))
    if not len(tree) or (absent and not partial):
        raise UsageError(
            f"{flag} {folder} has no images of {len(absent)} of the set's {len(number)} classes "
            f"({', '.join(absent[:3])}): complete it, or use --partial"
        )
    if len(tree) != published.num_images and not partial:
        raise UsageError(
            f"{flag} {folder} has {len(tree)} images, and {published.num_images} are published: "
            "complete it, or use --partial"
        )
    images = FileImages(folder, tree.paths, tree.targets(number), list(classes), in_chans)
    images.published = "" if partial else f"{flag} {folder}"
    return images


def read_real_labels(
    path: str, images: Images, classes: Sequence[str] | None = None
) -> list[frozenset[int]]:
    """ImageNet-ReaL's labels [Beyer et al., 2020] of a validation set's images, in their order.

    Args:
        path: a list with a list of labels for each image in the order of their numbers, which end
            their names; some have none and do not count. `timm`: the one that timm carries.
        classes: the names of a classifier's logits, where they are not the sorted synsets.

    Raises:
        UsageError: another kind of file, or images whose names have no number in it.
    """
    try:
        file = _timm_file("imagenet_real_labels.json") if path == "timm" else Path(path)
        known = [
            frozenset(map(int, entry)) for entry in json.loads(file.read_text(encoding="utf-8-sig"))
        ]
        if classes is not None and list(classes) != list(synsets()):
            place = [classes.index(name) for name in synsets()]
            known = [frozenset(place[label] for label in entry) for entry in known]
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"--real_labels {path} is no list of lists of labels ({error})") from None
    found = []
    for index in range(len(images)):
        name = images.name(index)
        stem = os.path.splitext(os.path.basename(name))[0]  # a suffix may have digits: jp2
        number = re.search(r"(\d+)\D*$", stem)
        if number is None or not 1 <= int(number[1]) <= len(known):
            raise UsageError(
                f"--real_labels {path} has {len(known)} images, and {name} is none of them by its "
                "number: use it with ImageNet's validation set"
            )
        found.append(known[int(number[1]) - 1])
    return found
