"""One epoch of pre-training, with or without accumulation, from any step of the epoch on."""

import argparse
import contextlib
import time

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from util import distributed
from util.loader import Batches
from util.logging import ProgressLine
from util.metrics import effective_rank
from util.optim import Precision, cosine_lr, set_lr, steps_per_epoch
from util.randomness import STREAM_STEP, mask_noise, seed_libraries
from util.run import Run

LOSSES = ("loss", "rec", "max_mi", "min_mi", "apx", "info_nce_accuracy")


def train_one_epoch(
    model: nn.Module,
    batches: Batches,
    normalize: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    run: Run,
    args: argparse.Namespace,
) -> dict[str, float]:
    """Train the rest of the epoch in which `run.progress` stands.

    Args:
        model: (images [B, C, H, W], noise) -> losses, with `noise_shape`; maybe inside DDP.
        args: `accum_iter`, `lr` (absolute), `min_lr`, `warmup_epochs`, `epochs`, `clip_grad`,
            `seed`, `log_every`.

    Returns:
        The epoch's mean losses over all ranks.
    """
    model.train()
    progress = run.progress
    num_steps = steps_per_epoch(len(batches), args.accum_iter)
    offset = progress.total_steps - progress.step  # total steps before this epoch
    skipped_steps = [total - offset for total in progress.skipped]
    skip = frozenset(s * args.accum_iter + m for s in skipped_steps for m in range(args.accum_iter))
    stream = batches.epoch(progress.epoch, progress.step * args.accum_iter, skip)
    line = ProgressLine(f"epoch {progress.epoch}", num_steps, args.log_every)
    clock = _Clock()

    while progress.step < num_steps:
        if progress.step in skipped_steps:
            progress.step += 1
            progress.total_steps += 1
            continue
        lr = cosine_lr(
            progress.epoch + progress.step / num_steps,
            args.lr, args.min_lr, args.warmup_epochs, args.epochs,
        )  # fmt: skip
        set_lr(optimizer, lr)
        seed_libraries(
            args.seed, STREAM_STEP, progress.total_steps, distributed.rank(), device=run.device
        )
        num_micro = min(args.accum_iter, len(batches) - progress.step * args.accum_iter)
        losses, latent = _accumulate(model, stream, num_micro, normalize, precision, run, args)
        losses["grad_norm"] = precision.step(optimizer, args.clip_grad)
        clock.count(num_micro * batches.global_size)
        seen = run.after_step(
            losses, line, lambda lr=lr, latent=latent: dict(
                lr=lr, rank=effective_rank(latent), images_per_second=clock.rate()
            ),
        )  # fmt: skip
        if seen:
            break
    line.close()
    return run.close_epoch()


def _accumulate(
    model: nn.Module, stream, num_micro: int, normalize: nn.Module, precision: Precision,
    run: Run, args: argparse.Namespace,
) -> tuple[dict[str, Tensor], Tensor]:  # fmt: skip
    """Gradients of one step; returns its mean losses and the last micro-batch's latents."""
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    noise = None
    means: dict[str, Tensor] = {}
    for micro in range(num_micro):
        _, imgs, _ = next(stream)
        if noise is None:
            noise = _own_noise(bare, len(imgs), num_micro, args.seed, run.progress.total_steps)
        imgs = normalize(imgs.to(run.device, non_blocking=True))
        is_last = micro == num_micro - 1
        wait = model is bare or is_last
        with contextlib.nullcontext() if wait else model.no_sync():
            with precision.autocast():
                losses = model(imgs, noise[micro].to(run.device, non_blocking=True))
            precision.backward(losses["loss"] / num_micro)
        for name in LOSSES:
            share = losses[name].detach() / num_micro
            means[name] = means[name] + share if name in means else share
    return means, losses["latent"]


def _own_noise(model, batch_size: int, num_micro: int, seed: int, step: int) -> Tensor:
    """This rank's rows of the step's noise, which is drawn for the global batch.

    Returns:
        [num_micro, B, ...], rows r, r + W, … of each global micro-batch.
    """
    world = distributed.world_size()
    shape = model.noise_shape(batch_size * world * num_micro)
    noise = mask_noise(shape, seed, step).unflatten(0, (num_micro, -1))
    return noise[:, distributed.rank() :: world]


class _Clock:
    """Images per second of training, over all ranks, since it was last asked."""

    def __init__(self) -> None:
        self.started, self.images = time.perf_counter(), 0

    def count(self, images: int) -> None:
        self.images += images

    def rate(self) -> float:
        now = time.perf_counter()
        rate = self.images / max(now - self.started, 1e-9)
        self.started, self.images = now, 0
        return rate
