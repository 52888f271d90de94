"""Random erasing, mixup and cutmix of a batch on the device, drawn by position.

W ranks, B images each, G = W·B in a global micro-batch. Rank r has its positions r, r + W, …, so
its k-th image stands at g = r + W·k. Every draw is a function of (seed, step, micro-batch, g), by
timm's own code, whose generators are seeded with it: so the world size changes nothing.
"""

from collections.abc import Sequence

import numpy as np
import torch
from timm.data import Mixup
from timm.data.mixup import cutmix_bbox_and_lam, mixup_target
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn

from util.cluster import distributed
from util.randomness import STREAM_ERASE, STREAM_MIX, derive_seed, seed_libraries, to_device

Box = tuple[int, int, int, int]  # top, bottom, left, right; in pixels
PAIRS_PER_DRAW = 16  # MAE's fine-tuning has 1024 images on 32 GPUs, and a draw on each


class BatchAugmentation:
    """Normalise, erase and mix: (images [B, C, H, W], targets [B]) -> the same.

    Args:
        mix: None leaves the targets as they are; else they become [B, classes].
    """

    def __init__(
        self, normalize: nn.Module, erase: RandomErasing, mix: "PositionalMixup | None", seed: int
    ):
        self.normalize, self.erase, self.mix, self.seed = normalize, erase, mix, seed

    def __call__(
        self, imgs: Tensor, targets: Tensor, step: int, micro: int
    ) -> tuple[Tensor, Tensor]:
        imgs = self.normalize(imgs)
        if self.erase.probability > 0:
            self.erase.device = imgs.device
            for position, image in zip(positions(len(imgs)), imgs, strict=True):
                draw = (self.seed, STREAM_ERASE, step, micro, position)
                seed_libraries(*draw, device=imgs.device)
                self.erase(image)  # in place
        if self.mix is None:
            return imgs, targets
        return self.mix(imgs, targets, (self.seed, STREAM_MIX, step), micro)


def positions(batch_size: int) -> range:
    """The positions of this rank's images in the global micro-batch."""
    rank, world = distributed.rank(), distributed.world_size()
    return range(rank, world * batch_size, world)


class PositionalMixup(Mixup):
    """timm's Mixup whose partners and draws depend on positions in the global batch alone.

    The partner of position g is g + G/2 (modulo G), where timm has G − 1 − g: a rank has both, for
    every W for which B is even. The order of images is random in each epoch, so this pairs them as
    much at random.

    timm draws one share in each process, and MAE fine-tuned with 32 images in each: `batch` draws
    for each 16 pairs of the global batch, whatever the number of processes and micro-batches;
    `pair` for each pair, `elem` for each image.
    """

    def __call__(self, x: Tensor, target: Tensor, counters: Sequence[int] = (), micro: int = 0):
        """Mix x [B, C, H, W] and target [B]; -> the same, the target [B, classes].

        Args:
            counters: from which the draws follow, as seed and step. micro: the micro-batch of it.
        """
        half = len(x) // 2
        assert len(x) == 2 * half  # the flags' check
        units = self._units(len(x), micro)
        drawn = {u: self._draw(tuple(x.shape), counters, u) for u in dict.fromkeys(units)}
        of_target, of_image, boxes = (
            to_device(torch.tensor([drawn[u][i] for u in units]), x.device) for i in range(3)
        )  # [B], [B], [B, 4]
        own = of_image[:, None, None, None] * ~inside(boxes, *x.shape[2:])  # [B, 1, H, W]
        own, of_target = own.to(x.dtype), of_target[:, None].to(x.dtype)
        soft = mixup_target(target, self.num_classes, 1.0, self.label_smoothing).to(x.dtype)
        return (
            x * own + x.roll(half, 0) * (1 - own),
            soft * of_target + soft.roll(half, 0) * (1 - of_target),
        )

    def _units(self, batch_size: int, micro: int) -> list[int]:
        """For each image of this rank the number of its draw within the step, [B]."""
        size = distributed.world_size() * batch_size  # G
        if self.mode == "elem":
            return [micro * size + g for g in positions(batch_size)]
        pairs = [micro * size // 2 + g % (size // 2) for g in positions(batch_size)]
        return pairs if self.mode == "pair" else [pair // PAIRS_PER_DRAW for pair in pairs]

    def _draw(
        self, shape: tuple[int, ...], counters: Sequence[int], unit: int
    ) -> tuple[float, float, Box]:
        """The image's share of the target, its share outside the box, and the partner's box."""
        np.random.seed(derive_seed(*counters, unit) & 0xFFFFFFFF)
        share, use_cutmix = self._params_per_batch()
        if not use_cutmix or share == 1:
            return float(share), float(share), (0, 0, 0, 0)
        box, share = cutmix_bbox_and_lam(
            shape, share, ratio_minmax=self.cutmix_minmax, correct_lam=self.correct_lam
        )
        return float(share), 1.0, tuple(map(int, box))


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which pixels lie in an image's box; boxes [B, 4] -> [B, 1, H, W]."""
    top, bottom, left, right = boxes[:, :, None].unbind(1)  # [B, 1] each
    rows, columns = (torch.arange(size, device=boxes.device) for size in (height, width))
    in_rows = (rows >= top) & (rows < bottom)  # [B, H]
    in_columns = (columns >= left) & (columns < right)  # [B, W]
    return (in_rows[:, :, None] & in_columns[:, None])[:, None]
