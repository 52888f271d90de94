"""The same images as two encoders see them, and the alignment of what they make of them."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from util.cluster import agreement, distributed
from util.data.datasets import Images, Subset
from util.data.images import to_float
from util.data.loader import Batches
from util.data.transformed import TransformedImages
from util.errors import UsageError
from util.evaluation.frozen.alignment import LEAST, Alignment
from util.progress import ProgressLine


class TwoViews(TransformedImages):
    """Gives the loader (an image as the first encoder sees it, as the second does, bad index).

    Args:
        images, others: the same images, read for each. view, other_view: their transforms.
        ids: which of them, in this order.
    """

    def __init__(
        self, images: Images, others: Images, view: Callable, other_view: Callable,
        ids: np.ndarray,
    ):  # fmt: skip
        super().__init__(Subset(images, ids), view, 0)
        self.ids, self.other_view = ids, other_view
        self.sources, self.others = (images, others), Subset(others, ids)

    def at(self, positions: np.ndarray) -> "TwoViews":
        """A part of them."""
        return TwoViews(*self.sources, self.transform, self.other_view, self.ids[positions])

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images.read(index), self.others.read(index)

    def transformed(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform(image), to_float(self.other_view(target))


def own_part(count: int, batch_size: int) -> np.ndarray:
    """Positions of every W-th mini-batch, from the rank's own on: the mini-batches are the same
    for any number of processes W."""
    starts = range(0, count, batch_size)[distributed.rank() :: distributed.world_size()]
    parts = [np.arange(start, min(start + batch_size, count)) for start in starts]
    return np.concatenate([np.arange(0), *parts])


def align(
    batches: Batches, features: Callable[[int, Tensor], list[Tensor]], depths: Sequence[int],
    device: torch.device, line: ProgressLine,
) -> tuple[list[list[float]], int]:  # fmt: skip
    """CKA of the layers of two encoders, on all ranks, and of how many images.

    Args:
        batches: of `TwoViews`, this rank's part. features: (which encoder, its images) -> the
            features [n, D] of each of its layers. depths: how many layers they have.

    Raises:
        UsageError: too few images.
    """
    alignment, done = Alignment(*depths, device), 0
    if len(batches.dataset):
        for _, imgs, others, *_ in batches.each_once():
            if len(imgs) >= LEAST:
                alignment.add(features(0, imgs), features(1, others))
                done += len(imgs)
            line.update(done)
    line.close()
    num_images = sum(agreement.gather(done))
    if not num_images:
        raise UsageError(f"--like compares {LEAST} images or more: IMAGES has too few")
    return alignment.values().tolist(), num_images
