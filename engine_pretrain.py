"""One epoch of pre-training, with or without accumulation, from any step of the epoch on."""

import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from util.cluster import distributed
from util.cluster.distributed import unwrap, without_exchange
from util.randomness import mask_noise, to_device
from util.training.exact_accumulation import StepMI, share_step
from util.training.metrics import effective_rank
from util.training.precision import Precision
from util.training.run import Run

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
    args, clock = run.args, _Clock()
    for num_micro, micro_batches in run.steps(optimizer):
        shape = unwrap(model).noise_shape(num_micro * run.batches.global_size)
        noise = step_noise(shape, num_micro, args.seed, run.progress.total_steps, run.device)
        imgs = (normalize(imgs.to(run.device, non_blocking=True)) for imgs, _ in micro_batches)
        losses, latent = train_step(
            model, imgs, noise, optimizer, precision, args.clip_grad, args.exact_accum
        )
        clock.count(num_micro * run.batches.global_size)

        def scalars(latent=latent) -> dict[str, float]:
            unwrap(model).gate.settle()
            return dict(rank=effective_rank(latent), images_per_second=clock.rate())

        run.after_step(losses, scalars)
    return run.close_epoch()


def train_step(
    model: nn.Module, micro_batches: Iterable[Tensor], noise: Tensor,
    optimizer: torch.optim.Optimizer, precision: Precision, clip_grad: float | None = None,
    exact_accum: bool = False,
) -> tuple[dict[str, Tensor], Tensor]:  # fmt: skip
    """One optimiser step: accumulate gradients, move the gate, update.

    Args:
        micro_batches: normalised images [B, C, H, W], as many as there are rows of noise.
        noise: [micro-batches, B, ...], from which the masks follow.

    Returns:
        The step's mean losses on this rank, and the last micro-batch's latents.
    """
    losses, latent = accumulate(model, micro_batches, noise, precision, exact_accum)
    unwrap(model).gate.update(losses["rec"])
    losses["grad_norm"] = precision.step(optimizer, clip_grad)
    return losses, latent


def accumulate(
    model: nn.Module, micro_batches: Iterable[Tensor], noise: Tensor, precision: Precision,
    exact: bool = False,
) -> tuple[dict[str, Tensor], Tensor]:  # fmt: skip
    """Gradients of one step; see `train_step`."""
    num_micro, means = len(noise), {}
    step_mi = [None] * num_micro
    if exact and num_micro > 1:
        micro_batches = list(micro_batches)
        step_mi = _share_step(unwrap(model), micro_batches, noise, precision)
    for micro, imgs in enumerate(micro_batches):
        with without_exchange(model, micro < num_micro - 1):
            with precision.autocast():
                losses = model(imgs, noise[micro], step_mi[micro])
            precision.backward(losses["loss"] / num_micro)
        for name in LOSSES:
            share = losses[name].detach() / num_micro
            means[name] = means[name] + share if name in means else share
    return means, losses["latent"]


@torch.no_grad()
def _share_step(
    model: nn.Module, micro_batches: list[Tensor], noise: Tensor, precision: Precision
) -> list[StepMI]:
    """For each micro-batch, the MI losses of the whole step, from a pass without the decoder."""
    parts = []
    for imgs, micro_noise in zip(micro_batches, noise, strict=True):
        with precision.autocast():
            parts.append(model.mi_inputs(imgs, micro_noise))
    return share_step(model.mi_losses, parts)


def step_noise(
    shape: tuple[int, ...], num_micro: int, seed: int, step: int, device: torch.device
) -> Tensor:
    """This rank's rows of a step's noise, which is drawn for the global batch.

    Args:
        shape: of the noise of all micro-batches of all ranks.

    Returns:
        [num_micro, B, ...], rows r, r + W, … of each global micro-batch.
    """
    noise = mask_noise(shape, seed, step).unflatten(0, (num_micro, -1))
    noise = noise[:, distributed.rank() :: distributed.world_size()].contiguous()
    return to_device(noise, device)


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
