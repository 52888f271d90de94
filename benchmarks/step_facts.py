"""What a training step costs wherever it runs: FLOPs, and bytes kept for the backward pass."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from benchmarks.contest import Contestant

GIB = 2**30
# torch counts a GPU's fused attention, not a CPU's.
ATTENTION_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


def step_facts(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, int]:
    """Of one forward and backward pass.

    Args:
        loss: makes the forward pass of `model`.

    Returns:
        `flops` counted; `kept`, the bytes that autograd keeps besides the weights; `parameters`;
        and `state`, the bytes of weights, gradients and AdamW's moments.
    """
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU)
    with counter, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss().backward()
    model.zero_grad(set_to_none=True)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    parameters = sum(p.numel() for p in model.parameters())
    return dict(
        flops=counter.get_total_flops(), state=16 * parameters, parameters=parameters,
        kept=sum(size for place, size in kept.items() if place not in weights),
    )  # fmt: skip


def in_words(contestant: Contestant, images: int, unit: str = "image") -> str:
    """What was measured of a contestant whose facts are these, per image of a step."""
    facts = contestant.facts
    return (
        f"{1 / contestant.rate / images:.2f} s, {facts['flops'] / images / 1e12:.2f} TFLOP and "
        f"{facts['kept'] / images / GIB:.2f} GiB kept per {unit}; {facts['state'] / GIB:.2f} GiB "
        f"of state ({facts['parameters'] / 1e6:.1f} M parameters); peak "
        f"{contestant.peak / GIB:.2f} GiB"
    )


def hours(flops: float, steps: int, gpus: int, peak: float, reached: float) -> float:
    """Of a run, by calculation.

    Args:
        flops: of a step, over all its images. peak: of one GPU, TFLOP/s. reached: share of it.
    """
    return flops * steps / (gpus * peak * 1e12 * reached) / 3600
