"""A training step of detection and of segmentation, as their own benchmarks build it."""

import argparse

import torch

from benchmarks import detection_step, segmentation_step
from benchmarks.gpu.record import Record, Rows
from benchmarks.gpu.sizes import GIB, peak_gib, peak_of_products, seconds_per_step, start_peak

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "none": torch.float32}
TINY = ["--model", "vit_tiny_patch4", "--input_size", "32", "--classes", "3"]


def run(record: Record, args: argparse.Namespace) -> None:
    sizes = {detection_step: (1, 4, 8), segmentation_step: (2, 16)}
    for module, batches in sizes.items():
        name = module.__name__.rpartition(".")[2].removesuffix("_step")
        plans = [("none", 2)] if args.tiny else [("bf16", n) for n in batches]
        plans += [] if args.tiny else [("fp16", batches[0]), ("none", batches[0])]
        for amp, images in plans:
            title = f"{name}, {images} images, {amp.replace('none', 'fp32')}"
            record.part(title, 20, lambda m=module, a=amp, n=images: step(m, a, n, args.tiny))


def step(module, amp: str, images: int, is_tiny: bool) -> Rows:
    """Args: module: a benchmark with `build` and `parse_args`."""
    args = module.parse_args([*(TINY if is_tiny else []), "--images", str(images)])
    start_peak()
    train, facts = module.build(args, amp)
    start_peak()
    seconds = seconds_per_step(train, is_tiny)
    peak = peak_of_products(DTYPES[amp], is_tiny)
    return [
        {"model": args.model, "pixels": args.input_size, "images": images, "ms": 1000 * seconds,
         "ms per image": 1000 * seconds / images, "TFLOP": facts["flops"] / 1e12,
         "% of peak": 100 * facts["flops"] / seconds / peak, "GiB": peak_gib(),
         "GiB kept": facts["kept"] / GIB}
    ]  # fmt: skip
