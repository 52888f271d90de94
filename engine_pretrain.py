"""One epoch of pre-training, with or without accumulation, from any step of the epoch on."""

import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from util import distributed
from util.distributed import hold_gradients, unwrap
from util.exact_accumulation import StepMI, share_step
from util.metrics import effective_rank
from util.optim import Precision
from util.randomness import mask_noise
from util.run import Run

LOSSES = ("loss", "rec", "max_mi", "min_mi", "apx", "info_nce_accuracy")


def train_one_epoch(
    model: nn.Module,
    normalize: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    run: Run,
) -> dict[str, float]:
    """Train the rest of the epoch in which `run.progress` stands.

    Args:
        model: (images [B, C, H, W], noise) -> losses, with `noise_shape`; maybe inside DDP.

    Returns:
        The epoch's mean losses over all ranks.
    """
    model.train()
    clock = _Clock()
    for num_micro, micro_batches in run.steps(optimizer):
        losses, latent = _accumulate(model, micro_batches, num_micro, normalize, precision, run)
        unwrap(model).gate.update(losses["rec"])
        losses["grad_norm"] = precision.step(optimizer, run.args.clip_grad)
        clock.count(num_micro * run.batches.global_size)

        def scalars(latent=latent) -> dict[str, float]:
            return dict(rank=effective_rank(latent), images_per_second=clock.rate())

        run.after_step(losses, scalars)
    return run.close_epoch()


def _accumulate(
    model: nn.Module, micro_batches: Iterator, num_micro: int, normalize: nn.Module,
    precision: Precision, run: Run,
) -> tuple[dict[str, Tensor], Tensor]:  # fmt: skip
    """Gradients of one step; returns its mean losses and the last micro-batch's latents."""
    bare = unwrap(model)
    batches = (imgs.to(run.device, non_blocking=True) for imgs, _ in micro_batches)
    step_mi, means, noise = [None] * num_micro, {}, None
    if run.args.exact_accum and num_micro > 1:
        batches = list(batches)
        noise = _own_noise(bare, len(batches[0]), num_micro, run)
        step_mi = _share_step(bare, [normalize(imgs) for imgs in batches], noise, precision)
    for micro, imgs in enumerate(batches):
        if noise is None:
            noise = _own_noise(bare, len(imgs), num_micro, run)
        with hold_gradients(model, micro < num_micro - 1):
            with precision.autocast():
                losses = model(normalize(imgs), noise[micro], step_mi[micro])
            precision.backward(losses["loss"] / num_micro)
        for name in LOSSES:
            share = losses[name].detach() / num_micro
            means[name] = means[name] + share if name in means else share
    return means, losses["latent"]


@torch.no_grad()
def _share_step(
    bare: nn.Module, batches: list[Tensor], noise: Tensor, precision: Precision
) -> list[StepMI]:
    """For each micro-batch, the MI losses of the whole step, from a pass without the decoder."""
    parts = []
    for imgs, own_noise in zip(batches, noise, strict=True):
        with precision.autocast():
            parts.append(bare.mi_inputs(imgs, own_noise))
    return share_step(bare.mi_losses, parts)


def _own_noise(model: nn.Module, batch_size: int, num_micro: int, run: Run) -> Tensor:
    """This rank's rows of the step's noise, which is drawn for the global batch.

    Returns:
        [num_micro, B, ...], rows r, r + W, … of each global micro-batch.
    """
    world = distributed.world_size()
    shape = model.noise_shape(batch_size * world * num_micro)
    noise = mask_noise(shape, run.args.seed, run.progress.total_steps).unflatten(0, (num_micro, -1))
    noise = noise[:, distributed.rank() :: world].contiguous()
    if run.device.type == "cuda":
        noise = noise.pin_memory()  # from pageable memory the copy would wait for the last step
    return noise.to(run.device, non_blocking=True)


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
