"""What is known of a set's images once they are read: sizes, pixels, looks, and who is broken."""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from util.data.duplicates import SMALL, looks
from util.data.image_sets import Images, Subset
from util.data.images import to_float
from util.data.loader import Batches
from util.data.transformed import TransformedImages
from util.errors import UsageError
from util.progress import ProgressLine

BATCH = 32


class Facts:
    """An image -> the bytes of its row in a table of `kind`.

    height, width: pixels. first, second: per channel, the means of the pixels, in 0..1 where they
    are bytes, and of their squares, as `view` shows them. digest: of the pixels. hash, small: as
    `util.data.duplicates` has them.
    """

    def __init__(self, view: Callable[[Tensor], Tensor], in_chans: int):
        self.view = view
        self.kind = np.dtype([
            ("height", "i4"), ("width", "i4"), ("digest", "u8"), ("hash", "u8"),
            ("first", "f8", (in_chans,)), ("second", "f8", (in_chans,)),
            ("small", "u1", (in_chans * SMALL * SMALL,)),
        ])  # fmt: skip

    def __call__(self, image: Tensor) -> Tensor:
        row = np.zeros(1, self.kind)
        row["height"], row["width"] = image.shape[1:]
        content = hashlib.blake2b(str((image.dtype, image.shape)).encode(), digest_size=8)
        content.update(image.contiguous().numpy())
        row["digest"] = int.from_bytes(content.digest(), "little")
        row["hash"], small = looks(image)
        row["small"] = small.ravel()
        pixels = to_float(self.view(image)).double().flatten(1)  # [C, pixels]
        row["first"], row["second"] = pixels.mean(1).numpy(), (pixels**2).mean(1).numpy()
        return torch.from_numpy(np.frombuffer(row.tobytes(), np.uint8).copy())


class _EachOnce(TransformedImages):
    """Facts of each image; nothing takes the place of one that cannot be read."""

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int, int]:
        _, index = item
        try:
            image, target = self.read(index)
        except UsageError:
            raise
        except Exception:  # whatever a decoder makes of a damaged file
            return torch.zeros(self.transform.kind.itemsize, dtype=torch.uint8), -1, index
        return *self.transformed(image, target), -1


@dataclass
class Looked:
    """A set's images that were looked at: `rows` of those that could be read, whose places in the
    set are `ids`, and the others, by name and reason."""

    name: str
    images: Images
    ids: np.ndarray
    rows: np.ndarray
    broken: list[tuple[str, str]]

    def labels(self) -> np.ndarray:
        return self.images.targets[self.ids]


def look_at(name: str, images: Images, most: int, facts: Facts, num_workers: int = 0) -> Looked:
    """Read the images of a set. Args: most: of so many, a fair draw, the same each time."""
    chosen = np.random.default_rng(0).permutation(len(images))[:most]
    part = Subset(images, np.sort(chosen))
    data = _EachOnce(part, facts, 0)
    batches = Batches(data, BATCH, False, num_workers=num_workers, max_bad_images=len(part))
    line, done, places, rows = ProgressLine(name, len(part)), 0, [], []
    with _silent("util.data.loader"):  # the broken are told at the end
        for ids, raw, _ in batches.each_once():
            places.append(ids.numpy())
            rows.append(raw.numpy())
            done += len(ids)
            line.update(done)
    line.close()
    found = np.concatenate(rows) if rows else np.zeros((0, facts.kind.itemsize), np.uint8)
    read = np.concatenate([np.zeros(0, np.int64), *places])
    broken = np.setdiff1d(np.arange(len(part)), read)
    told = [(part.name(i), data.problem(i).removeprefix(f"{part.name(i)} ")[1:-1]) for i in broken]
    rows_of = np.frombuffer(found.tobytes(), facts.kind)
    return Looked(name, images, part.ids[read], rows_of, told)


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    """Without the warnings of a logger."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
