"""Optimisers, parameter groups, the learning-rate schedule and mixed precision."""

import argparse
import contextlib
import functools
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from util import distributed
from util.errors import UsageError

# ------------------------------------------------------------------------------- learning rate


def absolute_lr(
    lr: float | None, blr: float, samples_per_step: int, blr_samples: int = 256
) -> float:
    """`lr` where it is given, else the linear rule: blr · samples per step / blr_samples."""
    return lr if lr is not None else blr * samples_per_step / blr_samples


def scheduled_lr(epoch: float, args: argparse.Namespace) -> float:
    """The learning rate at `epoch`, which may be fractional, by the flags of the schedule."""
    if epoch < args.warmup_epochs:
        return args.warmup_lr + (args.lr - args.warmup_lr) * epoch / args.warmup_epochs
    if args.lr_schedule == "multistep":
        return args.lr * args.lr_gamma ** sum(epoch >= m for m in args.lr_milestones)
    start = args.warmup_epochs if args.lr_schedule == "cosine" else 0.0
    share = (epoch - start) / max(args.epochs - start, 1e-9)
    height = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))  # half a cosine, from 1 down to 0
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
        model: parameters that its `no_weight_decay()` names, where it has one, do not decay
            either; groups of those that begin as its `separate` says have `clip` False.
        layer_of: a parameter's layer, from its name.
    """
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    separate = tuple(getattr(model, "separate", ()))
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    last = max((layer_of(name) for name, _ in named), default=0)
    groups: dict[tuple[int, bool, bool], dict] = {}
    for name, parameter in named:
        decays = parameter.ndim > 1 and name not in exempt
        key = (layer_of(name), decays, not name.startswith(separate))
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


# ----------------------------------------------------------------------------- mixed precision


MAX_LEFT_OUT = 20  # loss scaling starts at 2^16 and halves with each


class Precision:
    """Autocast, loss scaling, clipping and the optimiser's step, for one device.

    Args:
        amp: `auto`, `bf16`, `fp16` or `none`. auto takes bf16 where the device gains by it, fp16
            with loss scaling on other GPUs (V100), and fp32 on other CPUs.
        width: of the blocks that are trained; on a CPU narrow ones gain nothing by bf16.
    """

    def __init__(self, amp: str, device: torch.device, width: int = 0):
        if amp == "auto" and device.type == "cuda":
            # A V100 emulates bf16; compute capability 8 is the first that computes in it.
            amp = "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
        elif amp == "auto":
            gains = torch.tensor(float(width >= 384 and _cpu_gains_by_bf16()))
            # All ranks take the same.
            amp = "bf16" if distributed.reduce_mean(gains) == 1 else "none"
        self.name = amp
        self.device = device
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "none": None}[self.name]
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.name == "fp16")
        self.num_left_out = torch.zeros((), device=device)  # updates in a row

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer, clip_grad: float | None) -> Tensor:
        """Unscale, clip, update and zero the gradients.

        Returns:
            The gradient's norm before clipping, without that of groups whose `clip` is False.
            A norm that is not finite tells which batch did
            it. With loss scaling one now and then is expected: the update is left out and 0 is
            returned; but NaN for each MAX_LEFT_OUT in a row, which no scale explains.
        """
        self.scaler.unscale_(optimizer)
        parameters, others = _parameters(optimizer, True), _parameters(optimizer, False)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        if others:  # theirs counts only where it is not finite
            others_norm = torch.nn.utils.get_total_norm([p.grad for p in others])
            norm = torch.where(others_norm.isfinite(), norm, others_norm)
        if clip_grad is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, clip_grad, norm)
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if self.scaler.is_enabled():
            self.num_left_out = torch.where(norm.isfinite(), 0, self.num_left_out + 1)
            is_stuck = (self.num_left_out > 0) & (self.num_left_out % MAX_LEFT_OUT == 0)
            norm = torch.where(norm.isfinite(), norm, torch.where(is_stuck, math.nan, 0.0))
        return norm


@functools.cache
def _cpu_gains_by_bf16() -> bool:
    """Whether this CPU multiplies matrices at least 1.5 times as fast in bf16 as in fp32.

    Measured, in a moment: some CPUs that have bf16 instructions are slower with them, and twice
    as fast is what others gain, so the answer is the same whatever else the machine does.
    """
    seconds = {torch.float32: math.inf, torch.bfloat16: math.inf}
    for _ in range(4):  # the first is a warm-up
        for dtype in seconds:
            a = torch.ones(512, 512, dtype=dtype)
            started = time.perf_counter()
            a @ a
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - started)
    return 1.5 * seconds[torch.bfloat16] < seconds[torch.float32]


def _parameters(optimizer: torch.optim.Optimizer, clip: bool) -> list[nn.Parameter]:
    """Those with a gradient, of the groups that are clipped or of the others."""
    groups = [group for group in optimizer.param_groups if group.get("clip", True) == clip]
    return [p for group in groups for p in group["params"] if p.grad is not None]


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
