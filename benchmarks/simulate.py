"""How pre-training would scale over 1 to 512 GPUs, by calculation.

python benchmarks/simulate.py --model base --gpus V100 H100

Counted: the FLOPs and kernels of a step and the bytes of its gradients. Assumed, and flags: what a
GPU reaches, how fast kernels are launched, its network, its cores. Gradients are summed in buckets
while the backward pass goes on, by a ring or, where that is faster, a tree; latents are gathered
and their gradients summed while the step waits; images are loaded beside the step. Not modelled:
autocast's casts, nodes that are slower than others, file systems, NCCL's choice of algorithms.
--check sets it beside published hours.
"""

import argparse
import math
import pathlib
import sys
from dataclasses import dataclass, replace

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from util.flags.parser import number

ASSUMED = ("teraflops", "nvlink", "network", "hop_in", "hop_out", "launch")  # flags
CHANGES = {"mask_ratio": 0.75, "decoder_depth": 8}  # flags, with what MAE has
IMAGENET = 1_281_167  # training images
BUCKET = 25 * 2**20  # bytes, DistributedDataParallel's
BACKWARD = 2 / 3  # of the compute; gradients come evenly over it
MODELS = {"small": "vit_small_patch16", "base": "vit_base_patch16", "large": "vit_large_patch16"}


@dataclass(frozen=True)
class Machine:
    """A GPU, its node of eight, and the network between nodes.

    teraflops: reached in a step, TFLOP/s. fp32: reached by fp32 products. nvlink, network: GB/s of
    a large sum inside a node, and of all of a node's adapters. hop_in, hop_out, launch: of a
    message and of a kernel's launch, microseconds.
    """

    teraflops: float
    fp32: float
    nvlink: float
    network: float
    hop_in: float = 3.0
    hop_out: float = 8.0
    launch: float = 6.0
    node: int = 8


# teraflops: a V100's 13.1 is what MAE's 42 hours on 64 amount to (recipes/README.md), of a peak of
# 125; for the others 30 % of the peak of 312 and 989, which nobody has measured with this code.
# fp32: 70 % of 15.7, 19.5 and 67. nvlink: of eight A100 and H100 by guides to nccl-tests, 230
# to 250 and 460 to 480; a V100's is assumed. network: 80 % of 4 x 100, 8 x 200, 8 x 400 Gb/s.
MACHINES = {
    "V100": Machine(13.1, 11.0, 130, 40),
    "A100": Machine(94, 13.6, 235, 160),
    "H100": Machine(297, 47, 470, 320),
}
# Model, epochs, masked samples per image, GPUs; hours as published.
PUBLISHED = {
    "MAE ViT-L, 800 epochs, 64 V100 (its PRETRAIN.md; 13.1 follows from it)":
        ("large", 800, 1, "V100", 64, 42.0),
    "MAE ViT-B, 800 epochs, 8 A100, small images first (DailyMAE, arXiv 2404.00509)":
        ("base", 800, 1, "A100", 8, 18.0),
}  # fmt: skip
TABLE1 = {  # pre-trainings: epochs, masks per image
    "MAE, 800 epochs": (800, 1), "MAE, 1600 epochs": (1600, 1),
    "MI-MAE, 200 epochs": (200, 4), "MI-MAE, 400 epochs": (400, 4),
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """A step's: FLOPs of a masked sample, parameters with gradients, width D of the latents, and
    kernels, however many samples there are."""

    flops: float
    parameters: int
    width: int
    kernels: int


def count(model: str, **options) -> Work:
    """Count a forward and a backward pass of MI-MAE at 224 pixels, on tensors without values.

    Args:
        options: the model's own, as `mask_ratio` and `decoder_depth`.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    import models_mimae
    from benchmarks.step_facts import ATTENTION_ON_CPU

    class Kernels(TorchDispatchMode):
        """How many operations were more than another view of a tensor."""

        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            returned = [found.alias_info for found in func._schema.returns]
            is_view = any(alias and not alias.is_write for alias in returned)
            self.count += func.namespace == "aten" and not is_view
            return func(*args, **kwargs or {})

    with FakeTensorMode():
        net = models_mimae.MODELS[f"mimae_{MODELS[model]}"](**options)
        counter = FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU)
        with counter, Kernels() as kernels:
            net(torch.empty(1, 3, 224, 224))["loss"].backward()
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    flops = counter.get_total_flops() / net.masks.num_masks
    return Work(flops, trained, net.pos_embed.shape[2], kernels.count)


# ----------------------------------------------------------------------------------------- seconds


def sum_over(size: float, gpus: int, on: Machine) -> float:
    """Seconds of an all-reduce of `size` bytes: a ring's or a tree's, whichever is faster."""
    if gpus == 1:
        return 0.0
    nodes = math.ceil(gpus / on.node)
    bandwidth = 1e9 * (on.nvlink if nodes == 1 else min(on.nvlink, on.network))
    share = 2 * (gpus - 1) / gpus * size / bandwidth
    ring = 2e-6 * ((gpus - nodes) * on.hop_in + (nodes > 1) * nodes * on.hop_out)
    inside = (min(gpus, on.node) - 1) * on.hop_in
    tree = 2e-6 * (inside + math.ceil(math.log2(nodes)) * on.hop_out)
    return share + min(ring, tree)


def gather_over(size: float, gpus: int, on: Machine) -> float:
    """Seconds in which every GPU gets all `size` bytes: half of a sum's."""
    return sum_over(size, gpus, on) / 2


def not_hidden(size: float, backward: float, gpus: int, on: Machine) -> float:
    """Seconds by which the sums of the gradients outlast the backward pass.

    A bucket is sent when its gradients are there and the bucket before it is through.
    """
    buckets = math.ceil(size / BUCKET)
    end = 0.0
    for number_ in range(1, buckets + 1):
        end = max(end, backward * number_ / buckets) + sum_over(size / buckets, gpus, on)
    return end - backward if gpus > 1 else 0.0


def step(
    work: Work, on: Machine, gpus: int, images: float, masks: int, loaded: float = math.inf
) -> dict[str, float]:
    """Seconds of a step's parts.

    Args:
        images: of the global batch. masks: N; with one there are no MI losses. loaded: images per
            second that the cores of a GPU load.
    """
    own = images / gpus
    compute = work.flops * own * masks / (1e12 * on.teraflops)
    compute = max(compute, 1e-6 * on.launch * work.kernels)
    exposed = not_hidden(4.0 * work.parameters, BACKWARD * compute, gpus, on)
    mi = 0.0
    if masks > 1:
        rows = images * masks
        # s = z·zᵀ, for the loss and for its accuracy, and its two products in the backward pass.
        mi = 4 * 2 * (rows / gpus) * rows * work.width / (1e12 * on.fp32)
        latents = 4.0 * rows * work.width
        mi += 2 * gather_over(latents, gpus, on) + sum_over(latents, gpus, on)
        mi += 2 * sum_over(8, gpus, on)  # CLUB's floor, the gate
    busy = compute + exposed + mi
    waits = max(own / loaded - busy, 0.0)
    return dict(step=busy + waits, compute=compute, exposed=exposed, mi=mi, waits=waits)


def hours(seconds: float, images: float, epochs: int) -> float:
    return seconds * math.floor(IMAGENET / images) * epochs / 3600


# ----------------------------------------------------------------------------------------- reports


def curve(work: Work, name: str, args: argparse.Namespace) -> str:
    """Markdown of one global batch on more and more GPUs."""
    on = machine(name, args)
    lines = [
        f"| {name} | images each | step, ms | compute | gradients | MI losses | loading | "
        "efficiency | hours |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    one = step(work, on, 1, args.images, args.num_masks)["step"]
    for gpus in (2**k for k in range(10)):
        found = step(work, on, gpus, args.images, args.num_masks, args.loaded)
        total = found["step"]
        shares = " | ".join(
            f"{found[k] / total:.1%}" for k in ("compute", "exposed", "mi", "waits")
        )
        lines.append(
            f"| {gpus} | {args.images / gpus:g} | {1000 * total:.4g} | {shares} | "
            f"{one / gpus / total:.0%} | {hours(total, args.images, args.epochs):.3g} |"
        )
    return "\n".join(lines)


def table1(work: Work, args: argparse.Namespace) -> str:
    """Markdown of the hours of Table 1's pre-trainings; 4096 masked samples a step."""
    sizes = (8, 64, 256)
    lines = [f"| hours on | {' | '.join(f'{n} {g}' for g in args.gpus for n in sizes)} |"]
    lines.append("|---" * (1 + len(sizes) * len(args.gpus)) + "|")
    for row, (epochs, masks) in TABLE1.items():
        images, cells = 4096 / masks, []
        for name in args.gpus:
            for gpus in sizes:
                found = step(work, machine(name, args), gpus, images, masks, args.loaded)
                cells.append(f"{hours(found['step'], images, epochs):.3g}")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def check(works: dict[str, Work]) -> str:
    """Markdown of published hours beside what is calculated, loading left out."""
    lines = ["| published | hours | calculated |", "|---|---|---|"]
    for what, (model, epochs, masks, name, gpus, published) in PUBLISHED.items():
        found = step(works[model], MACHINES[name], gpus, 4096 / masks, masks)
        took = hours(found["step"], 4096 / masks, epochs)
        lines.append(f"| {what} | {published:g} | {took:.3g} |")
    return "\n".join(lines)


def machine(name: str, args: argparse.Namespace) -> Machine:
    changes = {k: getattr(args, k) for k in ASSUMED}
    return replace(MACHINES[name], **{k: v for k, v in changes.items() if v is not None})


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, positive = parser.add_argument, number(float, 1e-9)
    # fmt: off
    add("--model", choices=MODELS, default="base")
    add("--gpus", nargs="+", choices=MACHINES, default=["V100", "H100"])
    add("--images", type=number(int, 1), default=1024, help="of the global batch")
    add("--num_masks", type=number(int, 1), default=4)
    add("--mask_ratio", type=number(float, 0.01, 0.99), default=0.75)
    add("--decoder_depth", type=number(int, 1), default=8)
    add("--epochs", type=number(int, 1), default=200, help="of ImageNet, of the hours")
    add("--loaded", type=positive, default=1500.0,
        help="images per second that a GPU's share of the cores loads; `gpu_hour.py loading`")
    add("--teraflops", type=positive, help="a GPU's in a step (default: 13.1, 94, 297)")
    add("--nvlink", type=positive, help="GB/s of a sum inside a node (130, 235, 470)")
    add("--network", type=positive, help="GB/s of all adapters of a node (40, 160, 320)")
    add("--hop_in", type=positive, help="microseconds of a message inside a node (3)")
    add("--hop_out", type=positive, help="microseconds of a message between nodes (8)")
    add("--launch", type=positive, help="microseconds of a kernel's launch (6)")
    add("--check", action="store_true", help="published hours beside those calculated")
    # fmt: on
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    changed = {n: getattr(args, n) for n in CHANGES if getattr(args, n) != CHANGES[n]}
    work = count(args.model, **changed)
    print(
        f"ViT-{args.model}: {work.flops / 1e9:.1f} GFLOP a masked sample, "
        f"{work.parameters / 1e6:.1f} M parameters, {work.kernels} kernels; "
        f"{args.images} images x {args.num_masks} masks "
        f"a step, {args.epochs} epochs\n"
    )
    for name in args.gpus:
        print(curve(work, name, args) + "\n")
    if not changed:
        print(table1(work, args))
    if args.check:
        print("\n" + check({model: count(model) for model in ("base", "large")}))


if __name__ == "__main__":
    main()
