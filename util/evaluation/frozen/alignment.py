"""How alike two encoders' features are: linear centred kernel alignment (CKA) [Kornblith et al.,
2019], from mini-batches by the unbiased estimator of HSIC [Nguyen et al., 2021].

Shapes: n images of a mini-batch, D features of each, a and b layers of the two encoders.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from util.cluster import distributed

LEAST = 4  # images of a mini-batch: with fewer the estimator is not defined


def u_centred(features: Tensor) -> Tensor:
    """The Gram matrix K of features [n, D] without its diagonal, U-centred, flat: [n·n] float64.

    The inner product of two such is n·(n − 3) times HSIC₁ of [Song et al., 2012, Eq. 5]: in
    expectation over mini-batches it is that of all data [Székely and Rizzo, 2014].
    """
    x, n = features.double(), len(features)
    x = x - x.mean(0)  # changes nothing but the rounding
    gram = (x @ x.T).fill_diagonal_(0)
    rows = gram.sum(1) / (n - 2)
    centred = gram - rows[:, None] - rows + gram.sum() / ((n - 1) * (n - 2))
    return centred.fill_diagonal_(0).flatten()


class Alignment:
    """CKA of every layer of one encoder with every layer of another, summed over mini-batches.

    Args:
        a, b: how many layers they have. device: where features lie.
    """

    def __init__(self, a: int, b: int, device: torch.device | str = "cpu"):
        # <K, L>, <K, K> and <L, L>; the factors n·(n − 3) cancel in their ratio.
        self.sums = [torch.zeros(n, dtype=torch.float64, device=device) for n in (a * b, a, b)]

    def add(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> None:
        """Count a mini-batch of at least LEAST images: features [n, D] of each layer."""
        k, m = (torch.stack([u_centred(layer) for layer in side]) for side in (left, right))
        for total, of_batch in zip(
            self.sums, ((k @ m.T).flatten(), (k * k).sum(1), (m * m).sum(1)), strict=True
        ):
            total += of_batch

    def values(self) -> Tensor:
        """CKA [a, b], over all ranks: 1 for the same up to rotation and scale, around 0 for
        independent ones (an estimate may lie a little below); NaN for features without spread."""
        cross, own, others = map(distributed.reduce_sum, self.sums)
        return cross.view(len(own), -1) / (own[:, None] * others).sqrt()
