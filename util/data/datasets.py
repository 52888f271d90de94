"""Data sets: where their images lie, what defaults they bring, and which part is trained on."""

import gzip
import os
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from util.cluster import agreement
from util.data.few_labels import balanced_draw
from util.data.file_index import find_images, folders_with_images
from util.data.image_list import listed_positions
from util.data.images import convert, read_image, to_tensor
from util.data.openclipart import load_drawings
from util.data.same_data import check_same
from util.data.scenes.labels import largest_objects
from util.data.value_scale import check_scale
from util.errors import UsageError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEBIAN_FASHION_MNIST = "/usr/share/datasets/fashion-mnist"


class Images:
    """Labelled images: `read(i)` [C, H, W], `name(i)`, `targets` (−1: none), `classes` (names).

    published: the test set that they are, whole as its authors published it; else empty.
    value_range: --value_range, for files of more than 8 bits.
    """

    targets: np.ndarray  # int64
    classes: list[str]
    published = ""
    value_range: Sequence[float] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, index: int) -> torch.Tensor:
        raise NotImplementedError

    def name(self, index: int) -> str:
        raise NotImplementedError

    def relative_name(self, index: int) -> str:
        """The name as a published list has it: a path below the folder of the split."""
        return self.name(index)

    def files(self, index: int) -> tuple[str, ...]:
        """The paths of what an image is made of; of an array in memory there are none."""
        return ()


class ArrayImages(Images):
    """uint8 arrays in memory: [n, H, W] or [n, H, W, 3]."""

    def __init__(self, label: str, images: np.ndarray, targets: np.ndarray, in_chans: int):
        self.label, self.images, self.in_chans = label, images, in_chans
        self.targets = np.asarray(targets, dtype=np.int64)
        self.classes = [str(c) for c in range(int(self.targets.max(initial=-1)) + 1)]

    def read(self, index: int) -> torch.Tensor:
        image = Image.fromarray(self.images[index])
        return to_tensor(convert(image, self.in_chans, self.name(index)))

    def name(self, index: int) -> str:
        return f"{self.label}[{index}]"


class FileImages(Images):
    """Image files below a folder."""

    def __init__(self, root: str, paths: list[str], targets, classes: list[str], in_chans: int):
        self.root, self.classes, self.in_chans = root, classes, in_chans
        # One array instead of a million strings: forked workers share it without copying.
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.targets = np.asarray(targets, dtype=np.int64)

    def read(self, index: int) -> torch.Tensor:
        return read_image(self.name(index), self.in_chans, self.value_range)

    def name(self, index: int) -> str:
        return os.path.join(self.root, self.relative_name(index))

    def relative_name(self, index: int) -> str:
        return os.fsdecode(self.paths[index])

    def files(self, index: int) -> tuple[str, ...]:
        return (self.name(index),)


class Subset(Images):
    """The images at `ids` of another set."""

    def __init__(self, images: Images, ids: Sequence[int]):
        self.images, self.ids = images, np.asarray(ids, dtype=np.int64)
        self.targets, self.classes = images.targets[self.ids], images.classes

    def read(self, index: int) -> torch.Tensor:
        return self.images.read(int(self.ids[index]))

    def name(self, index: int) -> str:
        return self.images.name(int(self.ids[index]))

    def relative_name(self, index: int) -> str:
        return self.images.relative_name(int(self.ids[index]))

    def files(self, index: int) -> tuple[str, ...]:
        return self.images.files(int(self.ids[index]))


# ImageNet's test sets by their number of images and of class folders, which are synsets.
PUBLISHED = {
    (50000, 1000): "ImageNet's validation set", (10000, 1000): "ImageNet-V2",
    (7500, 200): "ImageNet-A", (30000, 200): "ImageNet-R", (50889, 1000): "ImageNet-Sketch",
}  # fmt: skip
SYNSET = re.compile(r"n\d{8}")


def published_set(of_images: Sequence[str]) -> str:
    """The published test set whose images have these class folders; empty: none that is known."""
    found = PUBLISHED.get((len(of_images), len(names := set(of_images))), "")
    return found if all(SYNSET.fullmatch(name) for name in names) else ""


# ------------------------------------------------------------------------------------- the sources
# Each: (split `pretrain`, `train` or `val`, data_path, in_chans, download) -> Images. What one
# pre-trains on is the training split, but for STL-10, which has more images without labels.


def _digits(split: str, data_path: str, in_chans: int, download: bool) -> Images:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    # Writer after writer: each filled in the same form, so the labels begin anew every 130 images.
    # The last three are the test set. A random draw would test on the training set's hands.
    part = slice(1415, None) if split == "val" else slice(1415)
    return ArrayImages(f"digits-{split}", images[part], digits.target[part], in_chans)


def _fashion_mnist(split: str, data_path: str, in_chans: int, download: bool) -> Images:
    folder = data_path or DEBIAN_FASHION_MNIST
    if download:
        import torchvision

        folder = data_path or "."
        try:
            torchvision.datasets.FashionMNIST(folder, download=True)
        except (RuntimeError, OSError) as error:
            raise UsageError(f"--download: no Fashion-MNIST to be had ({error})") from None
    stem = "t10k" if split == "val" else "train"
    arrays = [
        _read_idx(folder, f"{stem}-images-idx3-ubyte"),
        _read_idx(folder, f"{stem}-labels-idx1-ubyte"),
    ]
    return ArrayImages(f"fashion_mnist-{split}", *arrays, in_chans)


def _read_idx(folder: str, name: str) -> np.ndarray:
    """An IDX file, gzipped or not, in the folder or where torchvision keeps it."""
    places = (folder, os.path.join(folder, "FashionMNIST", "raw"))
    paths = [f"{place}/{name}{suffix}" for place in places for suffix in (".gz", "")]
    path = next((path for path in paths if os.path.isfile(path)), None)
    if path is None:
        raise UsageError(
            f"--data_path {folder} has no {name}[.gz]: name the folder that has it, use "
            "--download, or install Debian's dataset-fashion-mnist"
        )
    damage = (OSError, EOFError, IndexError, ValueError, struct.error, zlib.error)
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            data = file.read()
        shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
        return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)
    except damage as error:
        raise UsageError(f"{path} is damaged ({error}): fetch it again") from None


def _openclipart(split: str, data_path: str, in_chans: int, download: bool) -> Images:
    drawings = load_drawings(split, data_path)
    images = ArrayImages(f"openclipart-{split}", drawings.images, drawings.targets, in_chans)
    images.classes = drawings.classes
    return images


def _torchvision(name: str, classes: int) -> Callable[..., Images]:
    def load(split: str, data_path: str, in_chans: int, download: bool) -> Images:
        import torchvision

        stl10_split = {"pretrain": "train+unlabeled", "train": "train", "val": "test"}[split]
        splits = {"split": stl10_split} if name == "STL10" else {"train": split != "val"}
        try:
            data = getattr(torchvision.datasets, name)(
                data_path or ".", download=download, **splits
            )
        except (RuntimeError, OSError):  # incomplete; or downloading failed
            raise UsageError(
                f"--data_path {data_path or '.'} has no whole {name}: name the folder in which "
                "torchvision keeps it, or use --download"
            ) from None
        images = data.data if name != "STL10" else data.data.transpose(0, 2, 3, 1)
        targets = data.targets if name != "STL10" else data.labels
        loaded = ArrayImages(f"{name}-{split}", images, np.asarray(targets), in_chans)
        assert len(loaded.classes) == classes
        return loaded

    return load


def _image_folder(split: str, data_path: str, in_chans: int, download: bool) -> Images:
    part = "val" if split == "val" else "train"
    folder = os.path.join(_existing_folder(data_path), part)
    if not os.path.isdir(folder):
        raise UsageError(
            f"--data_path {data_path} has no {part}/ folder: --dataset image_folder wants "
            "train/CLASS/IMAGE and val/CLASS/IMAGE (--dataset flat takes any tree, without labels)"
        )
    paths = find_images(folder)
    if not paths:
        raise UsageError(f"--data_path {folder} holds no image: name a folder with images")
    loose = [path for path in paths if os.sep not in path]
    if loose:
        raise UsageError(
            f"--data_path {folder} has images that lie in no class folder ({loose[0]}): put each "
            "into CLASS/, or pre-train with --dataset flat"
        )
    of_images = [path.split(os.sep)[0] for path in paths]
    # A class's number is its place in train/, whichever classes val/ has.
    train = os.path.join(data_path, "train")
    classes = sorted(set(of_images))
    if part == "val" and os.path.isdir(train):
        classes = folders_with_images(train)
    number = {name: i for i, name in enumerate(classes)}
    unknown = sorted(set(of_images) - set(classes))
    if unknown:
        raise UsageError(
            f"--data_path {folder} has class folders that {train} lacks, or has no image of "
            f"({unknown[0]}): both need the same names"
        )
    images = FileImages(folder, paths, [number[name] for name in of_images], classes, in_chans)
    images.published = published_set(of_images) if part == "val" else ""
    return images


def _scenes(split: str, data_path: str, in_chans: int, download: bool) -> Images:
    folder, part = _existing_folder(data_path), "validation" if split == "val" else "training"
    paths, targets, classes = largest_objects(folder, part)
    return FileImages(os.path.join(folder, "images", part), paths, targets, classes, in_chans)


def load_test_folder(
    folder: str, classes: list[str], in_chans: int, flag: str = "--test",
    value_range: Sequence[float] | None = None,
) -> Images:  # fmt: skip
    """Labelled images FOLDER/CLASS/IMAGE, numbered as the classes of a training set are.

    Raises:
        UsageError: no such folder, no image, or classes that training does not have.
    """
    if not os.path.isdir(folder):
        raise UsageError(f"{flag} {folder} is not a folder: name one with CLASS/IMAGE in it")
    paths = [path for path in find_images(folder) if os.sep in path]
    if not paths:
        raise UsageError(f"{flag} {folder} has no image in a class folder: name CLASS/'s parent")
    number = {name: i for i, name in enumerate(classes)}
    names = [path.split(os.sep)[0] for path in paths]
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise UsageError(
            f"{flag} {folder} has {len(unknown)} class folders that the training set lacks "
            f"({', '.join(unknown[:3])}): both need the same names"
        )
    images = FileImages(folder, paths, [number[name] for name in names], classes, in_chans)
    images.published, images.value_range = published_set(names), value_range
    return images


def _flat(split: str, data_path: str, in_chans: int, download: bool) -> Images:
    if split != "pretrain":
        raise UsageError("--dataset flat has no labels: use image_folder to probe or fine-tune")
    paths = find_images(_existing_folder(data_path))
    if not paths:
        raise UsageError(f"--data_path {data_path} holds no image: name a folder with images")
    return FileImages(data_path, paths, np.full(len(paths), -1), [], in_chans)


def _existing_folder(data_path: str) -> str:
    if not data_path:
        raise UsageError("--data_path is missing: name the folder that holds the images")
    if not os.path.isdir(data_path):
        raise UsageError(f"--data_path {data_path} is not a folder: name one that exists")
    return data_path


@dataclass(frozen=True)
class DatasetInfo:
    """A data set: how it is loaded, and facts about its images.

    input_size: pixels. mean, std: per channel, of values in 0..1. crop_share: share of the resized
    image that the evaluation's centre crop keeps. num_workers: processes that pay for loading it.
    """

    load: Callable[..., Images]
    input_size: int
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_share: float = 1.0
    num_workers: int = 0


_FOLDER = (224, 3, IMAGENET_MEAN, IMAGENET_STD, 224 / 256, 10)
DATASETS = {
    "digits": DatasetInfo(_digits, 8, 1, (0.305,), (0.376,)),
    "fashion_mnist": DatasetInfo(_fashion_mnist, 28, 1, (0.286,), (0.353,)),
    "cifar10": DatasetInfo(
        _torchvision("CIFAR10", 10), 32, 3, (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
    ),
    "cifar100": DatasetInfo(
        _torchvision("CIFAR100", 100), 32, 3, (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)
    ),
    "stl10": DatasetInfo(
        _torchvision("STL10", 10), 96, 3, (0.447, 0.440, 0.407), (0.260, 0.257, 0.271)
    ),
    "openclipart": DatasetInfo(_openclipart, 32, 3, (0.814, 0.800, 0.769), (0.300, 0.305, 0.341)),
    "scenes": DatasetInfo(_scenes, 128, 3, IMAGENET_MEAN, IMAGENET_STD),
    "image_folder": DatasetInfo(_image_folder, *_FOLDER),
    "flat": DatasetInfo(_flat, *_FOLDER),
}


def load_images(args, split: str, is_normalised: bool = True) -> Images:
    """Open a split of the data set that the flags name.

    The training split is what --subset_file and --train_fraction leave of it.

    Args:
        split: `pretrain` (training images, with or without labels), `train` or `val`.
        is_normalised: --mean and --std are for them.

    Raises:
        UsageError: data that is missing, empty or without the labels that are needed; on all
            ranks, where one of them lacks it or has other images than the others.
    """
    images = agreement.all_or_none(lambda: _load_own(args, split, is_normalised))
    drawn = ", --subset_file and --train_fraction" if split == "train" else ""
    check_same(images.targets, images.classes, f"{split} images", "--data_path" + drawn)
    return images


def _load_own(args, split: str, is_normalised: bool) -> Images:
    images = DATASETS[args.dataset].load(split, args.data_path, args.in_chans, args.download)
    images.value_range = getattr(args, "value_range", None)
    if is_normalised and not isinstance(images, ArrayImages):
        check_scale(images, args)
    if split == "val":
        return images
    if args.subset_file:
        images = Subset(images, listed_positions(images, args.subset_file, "--subset_file"))
    if args.train_fraction < 1:
        draw = getattr(args, "draw", 0)  # a flag of fine-tuning alone
        images = Subset(images, balanced_draw(images.targets, args.train_fraction, draw))
    return images
