"""Exact accumulation: the MI losses of a step that is computed in parts.

A first pass of the encoder gives every micro-batch's latents, from which L_max and L_min of the
whole step and their gradients follow; in the second pass each micro-batch takes its share.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Share(NamedTuple):
    """The MI losses of a whole step, and their gradients for one of its micro-batches.

    g_grad: the gradient of L_max with respect to g. z_grad: that of L_min with respect to z. Both
    are scaled for a mean over the micro-batches.
    """

    values: dict[str, Tensor]
    g_grad: Tensor
    z_grad: Tensor

    def put_into(self, losses: dict[str, Any], total: Callable[..., Tensor]) -> dict[str, Any]:
        """A micro-batch's losses, with L_max and L_min those of the step.

        Args:
            losses: as a model's `forward` gives them. total: (rec, losses) -> their sum.
        """
        g, _, z = losses["rows"]
        losses = losses | self.values
        losses["max_mi"] = _with_gradient(losses["max_mi"], g, self.g_grad)
        losses["min_mi"] = _with_gradient(losses["min_mi"], z, self.z_grad)
        return losses | {"loss": total(losses["rec"], losses)}


def _with_gradient(value: Tensor, leaf: Tensor, grad: Tensor) -> Tensor:
    """`value`, whose gradient with respect to `leaf` is `grad`."""
    product = (leaf * grad).sum()
    return value + product - product.detach()


def share_step(mi_losses: Callable[..., dict[str, Tensor]], parts: list[tuple]) -> list[Share]:
    """The MI losses over all micro-batches of a step, as each of them takes part in it.

    Args:
        mi_losses: of a model's objective, (g, x, z) -> losses.
        parts: each micro-batch's g, x and z.
    """
    g, x, z = (torch.cat(rows).detach() for rows in zip(*parts, strict=True))
    g.requires_grad_()
    z.requires_grad_()
    with torch.enable_grad():
        mi = mi_losses((g, x, z))
        g_grad = _gradient(mi["max_mi"], g)
        z_grad = _gradient(mi["min_mi"], z)
    names = ("max_mi", "min_mi", "info_nce_accuracy", "min_mi_followed")
    values, count = {name: mi[name].detach() for name in names}, len(parts)
    grads = zip((g_grad * count).chunk(count), (z_grad * count).chunk(count), strict=True)
    return [Share(values, *gradients) for gradients in grads]


def _gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    """The gradient, which is 0 where a term is switched off."""
    if not loss.requires_grad:
        return torch.zeros_like(leaf)
    return torch.autograd.grad(loss, leaf, retain_graph=True)[0]
