"""Labelled images as a loader reads them: arrays, files, and parts of other sets."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from util.data.images import convert, read_image, to_tensor


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
    """Image files below a folder.

    Args:
        paths: relative to it; an array of bytes (as an index has it) is taken as it is.
    """

    def __init__(
        self, root: str, paths: Sequence[str] | np.ndarray, targets, classes: list[str],
        in_chans: int,
    ):  # fmt: skip
        self.root, self.classes, self.in_chans = root, classes, in_chans
        # One array instead of a million strings: forked workers share it without copying.
        is_array = isinstance(paths, np.ndarray)
        self.paths = paths if is_array else np.array([os.fsencode(path) for path in paths])
        self.targets = np.asarray(targets, dtype=np.int64)

    def read(self, index: int) -> torch.Tensor:
        return read_image(self.name(index), self.in_chans, self.value_range)

    def name(self, index: int) -> str:
        return os.path.join(self.root, self.relative_name(index))

    def relative_name(self, index: int) -> str:
        return os.fsdecode(self.paths[index])

    def content(self, index: int) -> bytes:
        """The bytes of an image's file."""
        with open(self.name(index), "rb") as file:
            return file.read()

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
