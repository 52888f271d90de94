"""BatchNorm over the global batch, on any device; torch's own knows GPUs only."""

import torch
from torch import Tensor, nn

from util.cluster import distributed


class SyncBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d whose statistics in training are those of all ranks' batches, equally large.

    With one process it is nn.BatchNorm2d; parameters, buffers and their names are the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> the same shape."""
        world = distributed.world_size()
        if not self.training or world == 1:
            return super().forward(x)
        dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        # [W, 2, C]; with gradients, since every rank's output depends on every rank's input.
        means, variances = distributed.gather_with_grad(torch.stack([mean, var])[None]).unbind(1)
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        self._follow(mean.detach(), var.detach(), world * x.numel() // x.shape[1])
        scale = self.weight * (var + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, None, None], x, scale[:, None, None]).to(dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the running statistics; their variance is the unbiased one, as in nn.BatchNorm2d."""
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        unbiased = var * (count / max(count - 1, 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)


def synchronise_batch_norms(module: nn.Module) -> None:
    """Put a new SyncBatchNorm2d in the place of every nn.BatchNorm2d inside a module."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                norm = SyncBatchNorm2d(child.num_features, child.eps, child.momentum)
                setattr(parent, name, norm)
