"""Drop path drawn by the position in the global batch, so that the world size changes nothing.

W ranks, G = W·B images in a global micro-batch; rank r has positions r, r + W, …
"""

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from util.cluster import distributed
from util.randomness import STREAM_DROP_PATH, generator, to_device


class GivenDropPath(nn.Module):
    """timm's DropPath with draws that are given: x [B, ...] -> x · scale, in evaluation x.

    scale: [B], 0 where an image's residual is dropped, else 1 / (1 − `drop_prob`).
    """

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob
        self.scale: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * self.scale.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


class DropPaths:
    """Takes the place of all of timm's DropPath modules of a model, and draws for them.

    Args:
        model: changed in place; its state dict stays as it is. Compile it afterwards.
    """

    def __init__(self, model: nn.Module, seed: int):
        self.seed, self.modules = seed, []
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, DropPath):
                    given = GivenDropPath(child.drop_prob)
                    setattr(parent, name, given)
                    self.modules.append(given)

    def draw(self, step: int, micro: int, batch_size: int, device: torch.device) -> None:
        """Draw for the next forward and backward pass, of micro-batch `micro` of a step.

        Args:
            batch_size: B, images of this rank.
        """
        if not self.modules:
            return
        rank, world = distributed.rank(), distributed.world_size()
        noise = torch.rand(
            len(self.modules), batch_size * world,
            generator=generator(self.seed, STREAM_DROP_PATH, step, micro),
        )[:, rank::world]  # fmt: skip
        keep = 1 - torch.tensor([module.drop_prob for module in self.modules])[:, None]
        scale = (noise < keep) / keep  # [paths, B]
        for module, row in zip(self.modules, to_device(scale, device), strict=True):
            module.scale = row
