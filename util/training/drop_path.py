"""Drop path and dropout of channels, drawn by the position in the global batch, so that the world
size changes nothing.

W ranks, G = W·B images in a global micro-batch; rank r has positions r, r + W, …
"""

import torch
from torch import Tensor, nn

from util.cluster import distributed
from util.randomness import STREAM_DROP_PATH, generator, to_device


class GivenDrop(nn.Module):
    """Drop path or dropout whose draw is given: x [B, C, ...] -> x · scale, in evaluation x.

    scale: [B, `width`], 0 where something is dropped, else 1 / (1 − `drop_prob`); of width 1 it is
    timm's DropPath, of width C torch's Dropout2d.
    """

    def __init__(self, drop_prob: float, width: int = 1):
        super().__init__()
        self.drop_prob, self.width = drop_prob, width
        self.scale: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * self.scale.to(x.dtype).view(*self.scale.shape, *[1] * (x.ndim - 2))


class DropPaths:
    """Takes the place of all of timm's DropPath modules of a model, and draws for them and for the
    GivenDrop modules that it has.

    Args:
        model: changed in place; its state dict stays as it is. Compile it afterwards.
    """

    def __init__(self, model: nn.Module, seed: int):
        from timm.layers import DropPath

        self.seed, self.modules = seed, []
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, DropPath):
                    child = GivenDrop(child.drop_prob)
                    setattr(parent, name, child)
                if isinstance(child, GivenDrop):
                    self.modules.append(child)

    def draw(self, step: int, micro: int, batch_size: int, device: torch.device) -> None:
        """Draw for the next forward and backward pass, of micro-batch `micro` of a step.

        Args:
            batch_size: B, images of this rank.
        """
        if not self.modules:
            return
        rank, world = distributed.rank(), distributed.world_size()
        widths = [module.width for module in self.modules]
        noise = torch.rand(
            sum(widths),
            batch_size * world,
            generator=generator(self.seed, STREAM_DROP_PATH, step, micro),
        )[:, rank::world]
        rates = [module.drop_prob for module in self.modules for _ in range(module.width)]
        keep = 1 - torch.tensor(rates)[:, None]
        scale = to_device((noise < keep) / keep, device)  # [widths, B]
        for module, rows in zip(self.modules, scale.split(widths), strict=True):
            module.scale = rows.T  # [B, width]
