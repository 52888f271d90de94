"""Pre-train for one epoch, from any step of it on, with or without gradient accumulation."""

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from util.cluster import distributed
from util.cluster.distributed import unwrap, without_exchange
from util.randomness import mask_noise, to_device
from util.training.effective_rank import effective_rank, image_share
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
    bare, args = unwrap(model), run.args
    for step in run.steps():
        num_images = run.num_micro_batches(step) * run.batches.global_size
        shape = bare.masks.noise_shape(num_images)
        noise = step_noise(shape, run.num_micro_batches(step), args.seed, step, run.device)
        micro_batches = (
            run.record.seen(normalize(imgs.to(run.device, non_blocking=True)))
            for imgs, _ in run.micro_batches(step)
        )
        set_lr(optimizer, run.learning_rate(step))
        losses, latent = train_step(  # loads, forward, backward, update
            model, micro_batches, noise, optimizer, precision, args.clip_grad, args.exact_accum
        )
        run.count(step, losses)
        run.log(step, partial(_monitors, bare, latent, (step + 1) // args.log_every))
        run.save_or_stop(step)
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
        The step's mean losses on this rank, and the last micro-batch's latents [B·N, ·].
    """
    losses, latent = accumulate(model, micro_batches, noise, precision, exact_accum)
    bare = unwrap(model)
    bare.mean_patch.update()
    if hasattr(bare, "gate"):  # MAE alone has none
        bare.gate.update(losses["rec"], losses["mean_patch"])
    losses["grad_norm"] = precision.step(optimizer, clip_grad)
    return losses, latent


def accumulate(
    model: nn.Module, micro_batches: Iterable[Tensor], noise: Tensor, precision: Precision,
    exact: bool = False,
) -> tuple[dict[str, Tensor], Tensor]:  # fmt: skip
    """Add up the gradients of a step's micro-batches; arguments and results as in `train_step`."""
    num_micro, means, shares = len(noise), {}, []
    if exact and num_micro > 1 and hasattr(unwrap(model), "mi_rows"):  # MAE alone has none
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
        latent = rows.g.detach() if rows else losses.pop("latent")
        for name, loss in losses.items():
            share = loss.detach() / num_micro
            means[name] = means[name] + share if name in means else share
    return means, latent


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
    model: nn.Module, latent: Tensor, number: int, losses: dict[str, float]
) -> dict[str, float]:
    """What log step `number` shows besides the mean losses; this waits for the device."""
    found = {"explained": explained(losses)}
    model.mean_patch.settle()
    if hasattr(model, "gate"):
        model.gate.settle()
    if distributed.is_main():
        found["image_share"] = image_share(latent, model.masks.num_masks)
        if number % RANK_EVERY == 1:
            found["rank"] = effective_rank(latent)
    return found


def explained(losses: Mapping[str, float]) -> float:
    """The share of what the data's mean patch leaves that is predicted: 1 − L_rec / its L_rec."""
    return 1 - losses["rec"] / max(losses["mean_patch"], 1e-12)
