"""What a run is about to do, said before its first step."""

import argparse
import logging

import torch
from torch import nn

from util import distributed
from util.images import jpeg_decoder
from util.loader import Batches
from util.optim import Precision, steps_per_epoch

log = logging.getLogger(__name__)


def report(
    args: argparse.Namespace, model: nn.Module, batches: Batches, precision: Precision,
    masks: int, activations: int, device: torch.device,
) -> None:  # fmt: skip
    """Log global batch, samples per step, steps, lr, data, parameters and estimated memory.

    Args:
        masks: masked samples per image (1 in supervised training).
        activations: estimated bytes that the backward pass keeps, per GPU.
    """
    images = args.accum_iter * batches.global_size
    steps = steps_per_epoch(len(batches), args.accum_iter)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    state = total * 4 + trained * (4 + 8)  # weights, gradients, AdamW's two moments
    data = batches.dataset.images
    decoder = "torchcodec" if jpeg_decoder() else "Pillow (pip install torchcodec: faster)"
    rate = f"{args.lr:.4g}" + (f" (base {args.blr:g})" if args.blr is not None else "")
    lines = {
        "data": f"{args.dataset} {args.data_path} {len(data)} images, {len(data.classes)} classes",
        "JPEG decoder": decoder,
        "input": f"{args.in_chans} x {' x '.join(map(str, args.input_size))} pixels",
        "model": f"{args.model}, {total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M trained",
        "global batch": f"{images} images ({args.batch_size} x {distributed.world_size()} "
        f"process(es) x {args.accum_iter} micro-batch(es))",
        "masked samples": f"{images * masks} per step ({masks} masks per image)",
        "steps": f"{steps} per epoch, {steps * args.epochs} in {args.epochs} epochs",
        "learning rate": f"{rate}, {args.warmup_epochs:g} epochs of warm-up, to {args.min_lr:g}",
        "precision": f"{precision.name if precision.dtype else 'fp32'} on {_device_name(device)}",
        "memory": f"about {_gib(state + activations)} per process: {_gib(state)} of weights, "
        f"gradients and optimiser, {_gib(activations)} of activations (estimated)",
        "output": args.output_dir,
    }
    if masks == 1:
        del lines["masked samples"]
    if args.dataset not in ("image_folder", "flat"):
        del lines["JPEG decoder"]
    log.info("\n".join(f"{name + ':':16s}{text}" for name, text in lines.items()))


def block_activations(
    rows: int, tokens: int, dim: int, depth: int, half: bool, checkpointed: bool
) -> int:
    """Estimated bytes that `depth` ViT blocks keep for the backward pass, fused attention.

    A block keeps about 17 activations of [rows, tokens, dim] (two norms' inputs and outputs, q,
    k, v, the attention's output, the residual, and the hidden layer of 4·dim twice); a
    checkpointed one keeps its input.
    """
    kept = depth + 17 if checkpointed else 17 * depth
    return rows * tokens * dim * kept * (2 if half else 4)


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
