"""The summary of a run that is logged before its first step, with an estimate of its memory."""

import argparse
import logging
import textwrap

import torch
from torch import nn

from util.cluster import distributed
from util.data.images import jpeg_decoder
from util.data.loader import Batches
from util.training.muon import hidden_matrices
from util.training.optim import steps_per_epoch
from util.training.precision import Precision

log = logging.getLogger(__name__)

FROM_FILES = ("image_folder", "flat", "shards", "csv", "hugging_face", "ade20k")

BlockShape = tuple[int, int, int]  # tokens per row, width, depth


def log_plan(
    args: argparse.Namespace, model: nn.Module, batches: Batches, precision: Precision,
    masks: int, shapes: list[BlockShape], device: torch.device,
) -> None:  # fmt: skip
    """Log what a run will do, and the source of each flag that has not the parser's default.

    Args:
        masks: masked samples per image (1 in supervised training).
        shapes: of the blocks whose activations the backward pass needs.
    """
    images = args.accum_iter * batches.global_size
    steps = steps_per_epoch(len(batches), args.accum_iter)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    state, activations = estimate_memory(
        model, shapes, args.batch_size * masks, precision.dtype is not None,
        getattr(args, "grad_checkpointing", False), getattr(args, "opt", "adamw"),
    )  # fmt: skip
    data = batches.dataset.images
    from_files = args.dataset in FROM_FILES
    what = "the encoder's activations" if hasattr(args, "iterations") else "activations"
    base = getattr(args, "blr", None)
    rate = f"{args.lr:.4g}" + (f" (base {base:g})" if base is not None else "")
    lines = {
        "data": f"{args.dataset} {args.data_path} {len(data)} images, {len(data.classes)} classes",
        "JPEG decoder": _decoder_name() if from_files else "",
        "input": f"{args.in_chans} x {' x '.join(map(str, args.input_size))} pixels",
        "model": f"{args.model}, {total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M trained",
        "global batch": f"{images} images ({args.batch_size} x {distributed.world_size()} "
        f"process(es) x {args.accum_iter} micro-batch(es))",
        "masked samples": f"{images * masks} per step ({masks} masks per image)" * (masks > 1),
        "unseen": unseen_patches(model),
        "steps": _length(args, steps, images / len(data)),
        "learning rate": f"{rate}, {_warmup(args, steps)} of warm-up, {_schedule(args)}",
        "precision": f"{precision.name if precision.dtype else 'fp32'} on {_device_name(device)}",
        "memory": f"about {_gib(state + activations)} per process: {_gib(state)} of weights, "
        f"gradients and optimiser, {_gib(activations)} of {what} (estimated)",
        "output": args.output_dir,
    }
    log.info("\n".join(_wrapped(name, text) for name, text in lines.items() if text))
    flags = args.settings.table(args)
    log.info("flags (in brackets: where a value is from, if it is no default):")
    log.info("\n".join(_wrapped(f"  {title}", text) for title, text in flags.items()))


def _length(args: argparse.Namespace, steps: int, passes: float) -> str:
    """Args: steps: of an epoch, or a round. passes: over the data that a step is."""
    if hasattr(args, "iterations"):
        total, after = args.iterations, f"; evaluated and saved every {steps}"
        told = f"{total} in all, {total * passes:.1f} passes over the data"
    else:
        total, after = steps * args.epochs, ""
        told = f"{steps} per epoch, {total} in {args.epochs} epochs"
    ended = f", ended after {args.max_steps}" * bool(args.max_steps and args.max_steps < total)
    return told + ended + after


def _schedule(args: argparse.Namespace) -> str:
    if args.lr_schedule != "multistep":
        return f"to {args.min_lr:g}"
    return f"x {args.lr_gamma:g} at {', '.join(f'{m:g}' for m in args.lr_milestones)}"


def _warmup(args: argparse.Namespace, steps: int) -> str:
    """The length of the warm-up; where it is longer than the run, a warning says what would fit.

    Args:
        steps: of an epoch.
    """
    unit = "iterations" if hasattr(args, "iterations") else "epochs"
    length, warmup = getattr(args, unit), getattr(args, f"warmup_{unit}")
    if args.max_steps:
        length = min(length, args.max_steps if unit == "iterations" else args.max_steps / steps)
    if warmup >= length > 0:
        log.warning(
            "--warmup_%s %g is not shorter than the run of %g: the rate never comes to its height; "
            "--warmup_%s %g, a tenth, would fit",
            unit,
            warmup,
            length,
            unit,
            length // 10 or 0.1 * length,
        )
    return f"{warmup:g} {unit}"


def _wrapped(name: str, text: str, width: int = 100, indent: int = 18) -> str:
    """A line, or several where it is longer than the width, the rest below the text."""
    return textwrap.fill(
        text, width, initial_indent=f"{name + ': ':{indent}s}", subsequent_indent=" " * indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def unseen_patches(model: nn.Module) -> str:
    """How many patches (mask units) of an image no mask reveals; empty where they all are.

    Independent masks leave another number each time.
    """
    masks = getattr(model, "masks", None)
    if masks is None or masks.num_masks == 1 or masks.mask_type != "orthogonal":
        return ""
    unseen = masks.num_patches - masks.num_masks * masks.num_visible
    shown = f"{masks.num_masks} masks x {masks.num_visible} visible"
    return f"{unseen} of {masks.num_patches} patches are in no mask ({shown})" * (unseen > 0)


def _decoder_name() -> str:
    return "torchcodec" if jpeg_decoder() else "Pillow (faster with torchcodec 0.16 or newer)"


def estimate_memory(
    model: nn.Module, shapes: list[BlockShape], rows: int, half: bool, checkpointed: bool,
    opt: str = "adamw",
) -> tuple[int, int]:  # fmt: skip
    """Estimated bytes of the model's state and of what its ViT blocks keep for the backward pass.

    For each feature of each token a block keeps, with fused attention, in fp32: the inputs of two
    norms and their outputs, q, k, v, the attention's output, and the hidden layer of four features
    before and after its activation: 64 bytes. Under autocast the norms' inputs stay in fp32 and
    all else has 2 bytes: 36; on a CPU q, k, v and a second output of attention are in fp32: 46. A
    checkpointed block keeps its input and, one at a time, the rest.

    Args:
        shapes: tokens per row, width and depth of the blocks. rows: of one micro-batch.
        half: computed under autocast. opt: --opt.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    state = total * 4 + trained * (4 + 8)  # weights, gradients, AdamW's two moments
    if opt == "muon":  # which keeps one
        state -= 4 * sum(p.numel() for p in hidden_matrices(model) if p.requires_grad)
    state += 2 * total if half else 0  # autocast keeps its copies
    on_cpu = next(model.parameters()).device.type == "cpu"
    per_block = (46 if on_cpu else 36) if half else 64
    kept = [(rows * tokens * dim, depth) for tokens, dim, depth in shapes]
    if checkpointed:
        largest = max((size * per_block for size, _ in kept), default=0)
        return state, sum(size * depth * 4 for size, depth in kept) + largest
    return state, sum(size * depth * per_block for size, depth in kept)


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
