"""Mixed precision: autocast, loss scaling, clipping and the optimiser's step."""

import contextlib
import functools
import logging
import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from util.cluster import agreement
from util.training.cpu_attention import use_fp32_attention

log = logging.getLogger(__name__)

AMPS = ("none", "fp16", "bf16")  # from the lowest
MAX_SKIPPED = 20  # loss scaling starts at 2^16 and halves with each


class Precision:
    """Autocast, loss scaling, clipping and the optimiser's step, for one device.

    A checkpoint keeps its state: what `auto` took is decided once for a run, and stays when the
    run is resumed on other hardware.

    Args:
        amp: `auto`, `bf16`, `fp16` or `none`. auto takes bf16 where the device gains by it, fp16
            with loss scaling on other GPUs (V100), and fp32 on other CPUs.
        width: of the blocks that are trained; on a CPU narrow ones gain nothing by bf16.
    """

    def __init__(self, amp: str, device: torch.device, width: int = 0):
        self.device, self.is_auto = device, amp == "auto"
        self._take(agreed_amp(device, width) if self.is_auto else amp)
        self.num_skipped = torch.zeros((), device=device)  # steps in a row

    def _take(self, name: str) -> None:
        self.name = name
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "none": None}[name]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=name == "fp16")
        if self.dtype is not None and self.device.type == "cpu":
            use_fp32_attention()

    def state_dict(self) -> dict:
        return {"amp": self.name} | self.scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Restore the loss scale, and with `auto` the precision that the run began with."""
        scale = dict(state)
        name = scale.pop("amp", "fp16")  # older files have the state of a scaler alone
        if self.is_auto and name != self.name:
            log.info("--amp auto stays %s, as the run began, where it would take %s now",
                     name, self.name)  # fmt: skip
            self._take(name)
        if scale:
            self.scaler.load_state_dict(scale)

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer, clip_grad: float | None) -> Tensor:
        """Unscale, clip, update and zero the gradients.

        Returns:
            The gradient's norm before clipping, without that of groups whose `clip` is False. If it
            is not finite, this step's batch did it. With loss scaling that is normal now and then:
            the step is skipped and 0 is returned, but NaN for each MAX_SKIPPED in a row, which no
            scale explains.
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
            self.num_skipped = torch.where(norm.isfinite(), 0, self.num_skipped + 1)
            is_stuck = (self.num_skipped > 0) & (self.num_skipped % MAX_SKIPPED == 0)
            norm = torch.where(norm.isfinite(), norm, torch.where(is_stuck, math.nan, 0.0))
        return norm


def agreed_amp(device: torch.device, width: int) -> str:
    """The precision that `auto` takes: the same on all ranks, whose gradients are summed."""
    offers = agreement.gather(_own_amp(device, width))
    lowest = lowest_amp([amp for amp, _ in offers])
    if len({amp for amp, _ in offers}) > 1:
        listed = agreement.groups([f"{what}: {amp}" for amp, what in offers])
        said = "; ".join(f"{who}: {offer}" for offer, who in listed.items())
        log.info("--amp auto takes %s, which all ranks have (%s)", lowest, said)
    return lowest


def lowest_amp(amps: Sequence[str]) -> str:
    """The precision that all ranks can compute in, from what each would take by itself."""
    return min(amps, key=AMPS.index)


def _own_amp(device: torch.device, width: int) -> tuple[str, str]:
    """What this rank would take by itself, and the hardware that is the reason."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        # A V100 emulates bf16; compute capability 8 is the first that computes in it.
        return "bf16" if major >= 8 else "fp16", f"compute capability {major}.{minor}"
    gains = width >= 384 and _cpu_gains_by_bf16()
    return "bf16" if gains else "none", "CPU"


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
