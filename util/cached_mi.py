"""Exact accumulation: the MI losses of a step that is computed in parts."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class CachedMI:
    """The MI losses of a whole accumulated step, and their gradients for each micro-batch.

    gradients: with respect to the latents and, where CLUB has its own, its rows; each in one part
    per micro-batch. micro: the micro-batch whose turn it is.
    """

    max_mi: Tensor
    min_mi: Tensor
    accuracy: Tensor
    gradients: list[tuple[Tensor, ...]]
    micro: int = 0

    def surrogate(self, latent: Tensor, z: Tensor) -> Tensor:
        """Has the MI losses' gradient when the micro-batches' losses are averaged."""
        leaves = (latent, z)[: len(self.gradients)]
        parts = [grad[self.micro] for grad in self.gradients]
        total = sum((leaf * part).sum() for leaf, part in zip(leaves, parts, strict=True))
        return total * len(self.gradients[0])
