"""Exact accumulation: the MI losses of a step that is computed in parts."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class CachedMI:
    """The MI losses of a whole accumulated step, and their gradients for one micro-batch of it.

    gradients: with respect to the latents and, where CLUB has its own, its rows.
    num_micro: the micro-batches of the step.
    """

    max_mi: Tensor
    min_mi: Tensor
    accuracy: Tensor
    gradients: tuple[Tensor, ...]
    num_micro: int

    def surrogate(self, latent: Tensor, z: Tensor) -> Tensor:
        """Has the MI losses' gradient when the micro-batches' losses are averaged."""
        leaves = (latent, z)[: len(self.gradients)]
        pairs = zip(leaves, self.gradients, strict=True)
        return self.num_micro * sum((leaf * gradient).sum() for leaf, gradient in pairs)
