"""Optimisers, parameter groups and the learning-rate schedule."""

import argparse
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from util.errors import UsageError

# ------------------------------------------------------------------------------- learning rate


def absolute_lr(
    lr: float | None, blr: float, samples_per_step: int, blr_samples: int = 256
) -> float:
    """`lr` where it is given, else the linear rule: blr · samples per step / blr_samples."""
    return lr if lr is not None else blr * samples_per_step / blr_samples


def scheduled_lr(done: float, args: argparse.Namespace) -> float:
    """The learning rate by the flags of the schedule.

    Args:
        done: iterations where the flags count those, else epochs, which may be fractional.
    """
    unit = "iterations" if hasattr(args, "iterations") else "epochs"
    total, warmup = getattr(args, unit), getattr(args, f"warmup_{unit}")
    if done < warmup:
        return args.warmup_lr + (args.lr - args.warmup_lr) * done / warmup
    if args.lr_schedule == "multistep":
        return args.lr * args.lr_gamma ** sum(done >= m for m in args.lr_milestones)
    start = warmup if args.lr_schedule == "cosine" else 0.0
    share = min((done - start) / max(total - start, 1e-9), 1.0)
    if args.lr_schedule == "poly":
        height = (1 - share) ** args.lr_power
    else:
        height = 0.5 * (1 + math.cos(math.pi * share))  # half a cosine, from 1 down to 0
    return args.min_lr + (args.lr - args.min_lr) * height


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's rate; a group's `lr_scale` (layer decay) multiplies it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


# ---------------------------------------------------------------------------- parameter groups


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay on all but 1-D parameters (norms and biases)."""
    return layer_decay_groups(model, weight_decay, lambda name: 0, 1.0)


def layer_decay_groups(
    model: nn.Module, weight_decay: float, layer_of: Callable[[str], int], layer_decay: float
) -> list[dict]:
    """Layer-wise learning rates: layer i of 0 … n has `lr_scale` = layer_decay^(n − i).

    Args:
        model: its 1-D parameters do not decay, nor do those that its `no_weight_decay()` names, if
            it has one; where it has `with_weight_decay()`, those decay and no others. A parameter
            whose name begins as its `outside_gradient_norm` says is in a group whose `clip` is
            False.
        layer_of: a parameter's layer, from its name.
    """
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    chosen = model.with_weight_decay() if hasattr(model, "with_weight_decay") else None
    outside = tuple(getattr(model, "outside_gradient_norm", ()))
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    last = max((layer_of(name) for name, _ in named), default=0)
    groups: dict[tuple[int, bool, bool], dict] = {}
    for name, parameter in named:
        decays = parameter.ndim > 1 and name not in exempt if chosen is None else name in chosen
        key = (layer_of(name), decays, not name.startswith(outside))
        group = groups.setdefault(
            key,
            dict(
                params=[],
                lr_scale=layer_decay ** (last - key[0]),
                weight_decay=weight_decay if decays else 0.0,
                clip=key[2],
            ),
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def adamw(groups: list[dict], betas: tuple[float, float] = (0.9, 0.999)) -> torch.optim.AdamW:
    """Fused AdamW; `set_lr` sets its learning rate before each step."""
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


class LARS(torch.optim.Optimizer):
    """LARS [You et al., 2017]: layer-wise adaptive rates; 1-D parameters neither decay nor adapt.

    v ← momentum·v + η·(g + wd·w), w ← w − lr·v, with η = trust·‖w‖ / ‖g + wd·w‖ (1 where a norm
    is zero, and for 1-D parameters).
    """

    def __init__(self, params, lr=0.0, weight_decay=0.0, momentum=0.9, trust_coefficient=0.001):
        super().__init__(
            params,
            dict(
                lr=lr, weight_decay=weight_decay, momentum=momentum,
                trust_coefficient=trust_coefficient,
            ),
        )  # fmt: skip

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict) -> None:
        update = parameter.grad
        if parameter.ndim > 1:
            update = update.add(parameter, alpha=group["weight_decay"])
            weight_norm, update_norm = parameter.norm(), update.norm()
            adapted = group["trust_coefficient"] * weight_norm / update_norm
            usable = (weight_norm > 0) & (update_norm > 0)
            update = update * torch.where(usable, adapted, torch.ones_like(adapted))
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        state["velocity"].mul_(group["momentum"]).add_(update)
        parameter.sub_(state["velocity"], alpha=group["lr"])


def steps_per_epoch(num_micro_batches: int, accum_iter: int) -> int:
    """Optimiser steps of an epoch; the last may accumulate fewer micro-batches.

    Raises:
        UsageError: where one step would need more micro-batches than an epoch has.
    """
    if accum_iter > num_micro_batches:
        raise UsageError(
            f"--accum_iter {accum_iter} is longer than an epoch of {num_micro_batches} "
            "micro-batches: lower it or --batch_size"
        )
    return -(-num_micro_batches // accum_iter)
