"""Running means of the losses, and the check that they are finite."""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from util.cluster import distributed
from util.training.checkpoint import Progress
from util.training.nonfinite import NonFiniteLoss

log = logging.getLogger(__name__)


class Meters:
    """Means of an epoch's losses, kept on the device: nothing here waits for the GPU but `check`.

    The sums are float64 and part of the checkpoint, so a resumed epoch logs the same means.
    """

    def __init__(self, progress: Progress, device: torch.device):
        self.progress, self.device = progress, device
        self.names = list(progress.sums)
        self.sums = torch.tensor(list(progress.sums.values()), dtype=torch.float64, device=device)
        self.unchecked: list[tuple[int, Tensor]] = []

    def add(self, step: int, losses: Mapping[str, Tensor]) -> None:
        """Count the losses, scalars on the device, of the run's step number `step`."""
        if set(self.names) != set(losses):  # an epoch begins, or goes on with other losses
            self.names, self.progress.count = list(losses), 0
            self.sums = torch.zeros(len(losses), dtype=torch.float64, device=self.device)
        values = torch.stack([losses[name].detach().double() for name in self.names])
        self.sums += values
        self.progress.count += 1
        self.unchecked.append((step, values))

    def check(self) -> dict[str, float]:
        """Agree over the ranks that every loss since the last check is finite.

        Returns:
            The means over those steps.

        Raises:
            NonFiniteLoss: on all ranks, for the first step that is not.
        """
        if not self.unchecked:
            return {}
        steps = [step for step, _ in self.unchecked]
        values = distributed.reduce_mean(torch.stack([v for _, v in self.unchecked])).cpu()
        self.unchecked.clear()
        for step, row in zip(steps, values, strict=True):
            if not row.isfinite().all():
                raise NonFiniteLoss(step, dict(zip(self.names, row.tolist(), strict=True)))
        return dict(zip(self.names, values.mean(0).tolist(), strict=True))

    def store(self) -> None:
        """Put the sums into the progress, for a checkpoint."""
        sums = distributed.reduce_mean(self.sums).tolist()
        self.progress.sums = dict(zip(self.names, sums, strict=True))

    def means(self) -> dict[str, float]:
        """The epoch's means so far, over all ranks."""
        self.store()
        return {name: total / self.progress.count for name, total in self.progress.sums.items()}

    def reset(self) -> None:
        """Start the next epoch's means."""
        self.progress.sums, self.progress.count = {}, 0
        self.names, self.sums = [], self.sums[:0]
