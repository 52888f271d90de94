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
        return self.mix(imgs, targets, (self.seed, STREAM_MIX, step, micro))


def positions(batch_size: int) -> range:
    """The positions of this rank's images in the global micro-batch."""
    rank, world = distributed.rank(), distributed.world_size()
    return range(rank, world * batch_size, world)


class PositionalMixup(Mixup):
    """timm's Mixup whose partners and draws depend on positions in the global micro-batch alone.

    The partner of position g is g + G/2 (modulo G), where timm has G − 1 − g: a rank has both, for
    every W for which B is even. The order of images is random in each epoch, so this pairs them as
    much at random. `batch` draws once for the *global* micro-batch (timm in each process for
    itself), `pair` for each pair, `elem` for each image.
    """

    def __call__(self, x: Tensor, target: Tensor, counters: Sequence[int] = ()):
        """Mix x [B, C, H, W] and target [B]; -> the same, the target [B, classes].

        Args:
            counters: from which the draws follow, as seed, step and micro-batch.
        """
        half = len(x) // 2
        assert len(x) == 2 * half  # the flags' check
        soft = mixup_target(target, self.num_classes, 1.0, self.label_smoothing).to(x.dtype)
        if self.mode == "batch":
            share, box = self._draw(tuple(x.shape), counters, 0)
            x = _blend(x, x.roll(half, 0), share, box)
        else:
            x, share = self._mix_each(x, counters)  # share: [B, 1]
        return x, soft * share + soft.roll(half, 0) * (1 - share)

    def _mix_each(self, x: Tensor, counters: Sequence[int]) -> tuple[Tensor, Tensor]:
        half, own = len(x) // 2, positions(len(x))
        pairs = distributed.world_size() * half  # in the global micro-batch
        units = [g % pairs for g in own] if self.mode == "pair" else own
        draws = [self._draw(tuple(x.shape), counters, unit) for unit in units]
        rows = zip(x, x.roll(half, 0), draws, strict=True)
        mixed = torch.stack([_blend(row, other, *draw) for row, other, draw in rows])
        shares = torch.tensor([share for share, _ in draws], dtype=x.dtype)
        return mixed, to_device(shares, x.device)[:, None]

    def _draw(
        self, shape: tuple[int, ...], counters: Sequence[int], unit: int
    ) -> tuple[float, Box | None]:
        """The share of the image itself, and the box that comes from its partner, if any."""
        np.random.seed(derive_seed(*counters, unit) & 0xFFFFFFFF)
        lam, use_cutmix = self._params_per_batch()
        if not use_cutmix or lam == 1:
            return lam, None
        box, lam = cutmix_bbox_and_lam(
            shape, lam, ratio_minmax=self.cutmix_minmax, correct_lam=self.correct_lam
        )
        return float(lam), tuple(map(int, box))


def _blend(image: Tensor, partner: Tensor, share: float, box: Box | None) -> Tensor:
    """An image [..., H, W] with `box` from its partner; without one, the two mixed by `share`."""
    if box is None:
        return image if share == 1 else image * share + partner * (1 - share)
    top, bottom, left, right = box
    mixed = image.clone()
    mixed[..., top:bottom, left:right] = partner[..., top:bottom, left:right]
    return mixed
