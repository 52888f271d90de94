"""What a training step costs on any device: FLOPs, and bytes kept for the backward pass.

And what the benchmarks of the steps of main_segmentation.py and main_detection.py share.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.contest import Contestant, compete
from util.flags.parser import number
from util.training import optim
from util.training.drop_path import DropPaths
from util.training.precision import Precision

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
    """Count what one forward and backward pass takes.

    Args:
        loss: makes the forward pass of `model`.

    Returns:
        `flops`; `kept`, the bytes that autograd keeps besides the weights; `parameters`; and
        `state`, the bytes of weights, gradients and AdamW's moments.
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


def in_words(contestant: Contestant, images: int, unit: str) -> str:
    """A line of what was measured of a contestant, per image (or other `unit`) of a step."""
    facts = contestant.facts
    return (
        f"{1 / contestant.rate / images:.2f} s, {facts['flops'] / images / 1e12:.2f} TFLOP and "
        f"{facts['kept'] / images / GIB:.2f} GiB kept per {unit}; {facts['state'] / GIB:.2f} GiB "
        f"of state ({facts['parameters'] / 1e6:.1f} M parameters); peak "
        f"{contestant.peak / GIB:.2f} GiB"
    )


def hours(flops: float, steps: int, gpus: int, peak: float, reached: float) -> float:
    """The hours that a run would take, by calculation.

    Args:
        flops: of a step, over all its images. peak: of one GPU, TFLOP/s.
        reached: the share of the peak that is reached.
    """
    return flops * steps / (gpus * peak * 1e12 * reached) / 3600


# ---------------------------------------------------------------------- of the mains' own steps


def step_parser(description: str) -> argparse.ArgumentParser:
    """Flags of a benchmark of a main's training step; the defaults are a benchmark's own."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, positive = parser.add_argument, number(int, 1)
    # fmt: off
    add("--model", default="vit_base_patch16")
    add("--images", type=positive, help="per step")
    add("--classes", type=positive)
    add("--amp", nargs="+", choices=("bf16", "fp16", "none"), default=["none"])
    add("--gpus", type=positive, default=8, help="of the calculation")
    add("--peak", type=float, default=125.0, help="of one, TFLOP/s; a V100's in fp16: 125")
    add("--reached", type=float, default=0.3, help="share of the peak that is assumed")
    # fmt: on
    add_timing_flags(add, steps=1)
    return parser


def add_timing_flags(add: Callable, steps: int) -> None:
    """How long and on what a step is timed; `steps`: the default of --steps."""
    add("--input_size", type=number(int, 1), default=224, help="pixels")
    add("--grad_checkpointing", action="store_true", help="ours")
    add("--steps", type=number(int, 1), default=steps, help="per turn")
    add("--rounds", type=number(int, 1), default=5)
    add("--threads", type=number(int, 1), default=torch.get_num_threads(), help="of a CPU")


@dataclass
class Trained:
    """A model and what it takes to train it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision
    drop_paths: DropPaths
    device: torch.device


def as_main_trains(main: ModuleType, args: argparse.Namespace, amp: str) -> Trained:
    """The model, from scratch, and its optimiser as a main makes them, with a benchmark's flags.

    Args:
        main: with `parse_args`, and with `build_model` for flags, a checkpoint and classes.
    """
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    flags = ["--data_path", ".", "--model", args.model, "--input_size", str(args.input_size)]
    own = main.parse_args(flags + ["--grad_checkpointing"] * args.grad_checkpointing)
    model = main.build_model(own, None, args.classes).to(device).train()
    optimizer = optim.adamw(optim.decay_groups(model, own.weight_decay))
    return Trained(model, optimizer, Precision(amp, device), DropPaths(model, seed=0), device)


def measure_and_calculate(
    args: argparse.Namespace, build: Callable, unit: str, steps: int, batch: int
) -> None:
    """Print what a step costs in each precision, and how long the published run would take.

    Args:
        build: flags and precision -> what `Contestant` measures, and its `step_facts`. unit: what
            an image of a step is. steps, batch: of the published run.
    """
    for amp in args.amp:
        contestant = Contestant(f"{args.model}, {amp}", build, args, amp)
        contestant.await_ready()
        compete([contestant], args.rounds, args.steps)
        print(
            f"{contestant.name}, {args.input_size} px, {args.images} {unit}(s), {args.threads} "
            f"thread(s){', checkpointed' * args.grad_checkpointing}: "
            f"{in_words(contestant, args.images, unit)}"
        )
        contestant.end()
    flops = contestant.facts["flops"] / args.images
    took = hours(batch * flops, steps, args.gpus, args.peak, args.reached)
    print(
        f"{steps} steps of {batch} {unit}s on {args.gpus} GPUs of {args.peak:g} TFLOP/s, of which "
        f"{args.reached:.0%} are reached: {took:.0f} hours (calculated)"
    )
