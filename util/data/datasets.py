"""Data sets: where their images lie, what defaults they bring, and which part is trained on."""

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from util.cluster import agreement
from util.data.few_labels import balanced_draw
from util.data.hugging_face import load_hugging_face
from util.data.hugging_face_schema import Columns
from util.data.image_cache import cached
from util.data.image_folders import existing_folder, load_flat, load_image_folder
from util.data.image_list import listed_positions
from util.data.image_sets import ArrayImages, FileImages, Images, Subset
from util.data.openclipart import load_drawings
from util.data.same_data import check_same
from util.data.scenes.labels import largest_objects
from util.data.shards import load_shards
from util.data.table import load_table
from util.data.value_scale import check_scale
from util.errors import UsageError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEBIAN_FASHION_MNIST = "/usr/share/datasets/fashion-mnist"


# ------------------------------------------------------------------------------------- the sources
# Each: (split `pretrain`, `train` or `val`, data_path, in_chans, download) -> Images. What one
# pre-trains on is the training split, but for STL-10, which has more images without labels. Shards
# and lists have a split `any`, too: all that are named, with labels or without.


def _digits(split: str, data_path: str, in_chans: int, download: bool) -> Images:
    from sklearn.datasets import load_digits

    if data_path:
        raise UsageError("--dataset digits comes with scikit-learn: leave --data_path away")
    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    # Writer after writer: each filled in the same form, so the labels begin anew every 130 images.
    # The last three are the test set. A random draw would test on the training set's hands.
    part = slice(1415, None) if split == "val" else slice(1415)
    return ArrayImages(f"digits-{split}", images[part], digits.target[part], in_chans)


def _fashion_mnist(split: str, data_path: str, in_chans: int, download: bool) -> Images:
    folder = data_path or DEBIAN_FASHION_MNIST
    if download and not (folder == DEBIAN_FASHION_MNIST and os.path.isdir(folder)):
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


def _openclipart(is_fine: bool) -> Callable[..., Images]:
    def load(split: str, data_path: str, in_chans: int, download: bool) -> Images:
        drawings = load_drawings(split, data_path, is_fine)
        name = f"openclipart{'_fine' if is_fine else ''}-{split}"
        images = ArrayImages(name, drawings.images, drawings.targets, in_chans)
        images.classes = drawings.classes
        return images

    return load


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


def _scenes(split: str, data_path: str, in_chans: int, download: bool) -> Images:
    folder, part = existing_folder(data_path), "validation" if split == "val" else "training"
    paths, targets, classes = largest_objects(folder, part)
    return FileImages(os.path.join(folder, "images", part), paths, targets, classes, in_chans)


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
_DRAWINGS = (32, 3, (0.814, 0.800, 0.769), (0.300, 0.305, 0.341))
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
    "openclipart": DatasetInfo(_openclipart(is_fine=False), *_DRAWINGS),
    "openclipart_fine": DatasetInfo(_openclipart(is_fine=True), *_DRAWINGS),
    "scenes": DatasetInfo(_scenes, 128, 3, IMAGENET_MEAN, IMAGENET_STD),
    "image_folder": DatasetInfo(load_image_folder, *_FOLDER),
    "flat": DatasetInfo(load_flat, *_FOLDER),
    "shards": DatasetInfo(load_shards, *_FOLDER),
    "csv": DatasetInfo(load_table, *_FOLDER),
    "hugging_face": DatasetInfo(load_hugging_face, *_FOLDER),
}


def load_images(args, split: str, is_normalised: bool = True, min_crop: float = 1.0) -> Images:
    """Open a split of the data set that the flags name.

    The training split is what --subset_file and --train_fraction leave of it.

    Args:
        split: `pretrain` (training images, with or without labels), `train` or `val`; of shards
            and lists `any`, too.
        is_normalised: --mean and --std are for them.
        min_crop: the smallest area of the random crops that are taken of them, for --cache_images.

    Raises:
        UsageError: data that is missing, empty or without the labels that are needed; on all
            ranks, where one of them lacks it or has other images than the others.
    """
    images = agreement.main_first(lambda: _load_own(args, split, is_normalised))
    drawn = ", --subset_file and --train_fraction" if split == "train" else ""
    check_same(images.targets, images.classes, f"{split} images", "--data_path" + drawn)
    return cached(images, args, DATASETS[args.dataset].crop_share, min_crop)


def _load_own(args, split: str, is_normalised: bool) -> Images:
    images = DATASETS[args.dataset].load(
        split, args.data_path, args.in_chans, args.download, **columns_of(args)
    )
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


def columns_of(args) -> dict[str, Columns]:
    """What --image_column and --label_column say to the source that has columns."""
    names = [getattr(args, f"{what}_column", "") for what in ("image", "label")]
    if args.dataset == "hugging_face":
        return {"columns": Columns(*names)}
    if any(names):
        raise UsageError("--image_column and --label_column are of --dataset hugging_face alone")
    return {}
