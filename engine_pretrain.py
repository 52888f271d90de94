"""Pre-train for one epoch, from any step of it on, with or without gradient accumulation."""

import time
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from util.cluster import distributed
from util.cluster.distributed import unwrap, without_exchange
from util.randomness import mask_noise, to_device
from util.training.effective_rank import effective_rank
from util.training.exact_accumulation import Share, share_step
from util.training.optim import set_lr
from util.training.precision import Precision
from util.training.run import Run

RANK_EVERY = 10  # log steps: eigenvalues take a GPU longer than a small model's step


def train_one_epoch(
    model: nn.Module, normalize: nn.Module, optimizer: torch.optim.Optimizer,
    precision: Precision, run: Run,
) -> dict[str, float]:  # fmt: skip
    """Train the rest of the epoch in which the run stands.

    Args:
        model: (images [B, C, H, W], noise) -> losses, with `masks`; maybe inside DDP.

    Returns:
        The epoch's mean losses over all ranks.
    """
    model.train()
    bare, args, clock = unwrap(model), run.args, _Clock()
    for step in run.steps():
        num_images = run.num_micro_batches(step) * run.batches.global_size
        shape = bare.masks.noise_shape(num_images)
        noise = step_noise(shape, run.num_micro_batches(step), args.seed, step, run.device)
        micro_batches = (
            normalize(imgs.to(run.device, non_blocking=True)) for imgs, _ in run.micro_batches(step)
        )
        set_lr(optimizer, run.learning_rate(step))
        losses, latent = train_step(  # loads, forward, backward, update
            model, micro_batches, noise, optimizer, precision, args.clip_grad, args.exact_accum
        )
        run.count(step, losses)
        clock.count(num_images)
        run.log(step, partial(_monitors, bare, latent, clock, (step + 1) // args.log_every))
        run.save_or_stop(step)
    return run.close_epoch()


def train_step(
    model: nn.Module, micro_batches: Iterable[Tensor], noise: Tensor,
    optimizer: torch.optim.Optimizer, precision: Precision, clip_grad: float | None = None,
    exact_accum: bool = False,
) -> tuple[dict[str, Tensor], Tensor | None]:  # fmt: skip
    """One optimiser step: accumulate gradients, move the gate, update.

    Args:
        micro_batches: normalised images [B, C, H, W], as many as there are rows of noise.
        noise: [micro-batches, B, ...], from which the masks follow.

    Returns:
        The step's mean losses on this rank, and the last micro-batch's latents, if any.
    """
    losses, latent = accumulate(model, micro_batches, noise, precision, exact_accum)
    gate = getattr(unwrap(model), "gate", None)  # MAE alone has none
    if gate is not None:
        gate.update(losses["rec"])
    losses["grad_norm"] = precision.step(optimizer, clip_grad)
    return losses, latent


def accumulate(
    model: nn.Module, micro_batches: Iterable[Tensor], noise: Tensor, precision: Precision,
    exact: bool = False,
) -> tuple[dict[str, Tensor], Tensor | None]:  # fmt: skip
    """Add up the gradients of a step's micro-batches; arguments and results as in `train_step`."""
    num_micro, means, rows, shares = len(noise), {}, None, []
    if exact and num_micro > 1:
        micro_batches = list(micro_batches)
        shares = _share_step(unwrap(model), micro_batches, noise, precision)
    for micro, imgs in enumerate(micro_batches):
        with without_exchange(model, micro < num_micro - 1):
            with precision.autocast():
                losses = model(imgs, noise[micro])
                if shares:
                    losses = shares[micro].put_into(losses, unwrap(model).mi.total)
            precision.backward(losses["loss"] / num_micro)
        rows = losses.pop("rows", None)
        for name, loss in losses.items():
            share = loss.detach() / num_micro
            means[name] = means[name] + share if name in means else share
    return means, rows and rows.g.detach()


@torch.no_grad()
def _share_step(
    model: nn.Module, micro_batches: list[Tensor], noise: Tensor, precision: Precision
) -> list[Share]:
    """For each micro-batch, the MI losses of the whole step, from a pass without the decoder."""
    parts = []
    for imgs, micro_noise in zip(micro_batches, noise, strict=True):
        with precision.autocast():
            parts.append(model.mi_rows(imgs, micro_noise))
    return share_step(model.mi.losses, parts)


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


def _monitors(
    model: nn.Module, latent: Tensor | None, clock: "_Clock", number: int
) -> dict[str, float]:
    """What log step `number` shows besides the losses; this waits for the device."""
    found = {"images_per_second": clock.rate()}
    if latent is not None:
        model.gate.stop_watching_once_open()
        if number % RANK_EVERY == 1 and distributed.is_main():
            found["rank"] = effective_rank(latent)
    return found


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
