"""Samples of anchors and RoIs drawn by the image's position in the step, not by the process.

W ranks, G = W·B images in a global micro-batch; rank r has positions r, r + W, …
"""

from collections.abc import Callable

from torch import Tensor, nn

from util.cluster import distributed
from util.randomness import STREAM_ROIS, seed_libraries


class PositionalSampler:
    """A detector's sampler, whose draws follow from (seed, step, position in the step).

    Args:
        sampler: torchvision's, of images' matches -> their positive and negative samples.
        stage: tells the region proposals' sampler from the RoIs'.
    """

    def __init__(self, sampler: Callable[[list[Tensor]], tuple], stage: int):
        self.sampler, self.stage, self.counters, self.first = sampler, stage, (0, 0), 0

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        rank, world = distributed.rank(), distributed.world_size()
        positive, negative = [], []
        for number, matched in enumerate(matched_idxs):
            position = self.first + number * world + rank
            seed_libraries(*self.counters, STREAM_ROIS, self.stage, position, device=matched.device)
            for kept, drawn in zip((positive, negative), self.sampler([matched]), strict=True):
                kept += drawn
        return positive, negative


class RoISampling:
    """Replaces both samplers of a torchvision detector by `PositionalSampler`, and sets them."""

    def __init__(self, model: nn.Module, seed: int):
        self.seed, self.samplers = seed, []
        for stage, owner in enumerate((model.rpn, model.roi_heads)):
            owner.fg_bg_sampler = PositionalSampler(owner.fg_bg_sampler, stage)
            self.samplers.append(owner.fg_bg_sampler)

    def draw(self, step: int, micro: int, batch_size: int) -> None:
        """Prepare the next forward pass: micro-batch `micro` of a step, `batch_size` images."""
        for sampler in self.samplers:
            sampler.counters = self.seed, step
            sampler.first = micro * batch_size * distributed.world_size()
