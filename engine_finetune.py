"""Train for one epoch with labels, for fine-tuning and linear probing, and evaluate."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from util.cluster import distributed
from util.cluster.distributed import without_exchange
from util.data.loader import Batches
from util.data.unreadable import beside
from util.evaluation import predictions
from util.progress import shown
from util.training.optim import set_lr
from util.training.precision import Precision
from util.training.run import Run

# (images [B, C, H, W], targets [B], step, micro-batch) -> images and targets, augmented; targets
# may become [B, classes].
Prepare = Callable[[Tensor, Tensor, int, int], tuple[Tensor, Tensor]]


def train_one_epoch(
    model: nn.Module,
    prepare: Prepare,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    run: Run,
    smoothing: float = 0.0,
    after_update: Callable[[int], None] = lambda step: None,
) -> dict[str, float]:
    """Train the rest of the epoch in which the run stands.

    Args:
        model: inputs -> logits [B, classes]; maybe inside DDP.
        prepare: normalises a micro-batch on the device, erases or mixes, draws for drop path. It is
            called just before the micro-batch's forward pass.
        smoothing: label smoothing of hard targets.
        after_update: called with a step's number once it has changed the weights.

    Returns:
        The epoch's mean `loss` and `grad_norm` over all ranks.
    """
    model.train()
    for step in run.steps():
        micro_batches = (
            run.record.seen(prepare(
                inputs.to(run.device, non_blocking=True),
                targets.to(run.device, non_blocking=True), step, micro,
            ))
            for micro, (inputs, targets) in enumerate(run.micro_batches(step))
        )  # fmt: skip
        set_lr(optimizer, run.learning_rate(step))
        losses = train_step(  # loads, forward, backward, update
            model, micro_batches, run.num_micro_batches(step), optimizer, precision,
            run.args.clip_grad, smoothing,
        )  # fmt: skip
        after_update(step)
        run.count(step, losses)
        run.log(step)
        run.save_or_stop(step)
    return run.close_epoch()


def train_step(
    model: nn.Module, micro_batches: Iterable[tuple[Tensor, Tensor]], num_micro: int,
    optimizer: torch.optim.Optimizer, precision: Precision, clip_grad: float | None = None,
    smoothing: float = 0.0,
) -> dict[str, Tensor]:  # fmt: skip
    """One optimiser step over `num_micro` micro-batches.

    Args:
        micro_batches: inputs and targets, each taken just before its forward pass.

    Returns:
        The step's mean `loss` on this rank and the `grad_norm`.
    """
    loss = torch.zeros((), device=precision.device)
    for micro, (inputs, targets) in enumerate(micro_batches):
        with without_exchange(model, micro < num_micro - 1):
            with precision.autocast():
                logits = model(inputs)
            # In full precision; float64, in tests, stays as it is.
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            part = F.cross_entropy(logits, targets, label_smoothing=smoothing)
            precision.backward(part / num_micro)
        loss = loss + part.detach() / num_micro
    return {"loss": loss, "grad_norm": precision.step(optimizer, clip_grad)}


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Batches, normalize: nn.Module, precision: Precision,
    output_dir: str = "",
) -> dict[str, float]:  # fmt: skip
    """Top-1 and top-5 accuracy (percent) and loss over a whole set, for any number of ranks.

    Each image counts once, whatever the world size; what cannot be read is left out, and counted
    as `unreadable`. All ranks take rank 0's buffers, which are those that a checkpoint keeps:
    BatchNorm's statistics differ since the last step.

    Args:
        output_dir: gets each image's predicted class, as `util.evaluation.predictions` keeps them.

    Raises:
        RunError: an unreadable image of a published set.
    """
    device = precision.device
    distributed.share_buffers(model)
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # correct, in top 5, loss, images
    classes = torch.zeros(len(batches.dataset), 2, device=device)  # float32 adds up on any backend
    for ids, inputs, targets in shown(batches.each_once(), "test", len(batches)):
        inputs = normalize(inputs.to(device, non_blocking=True))
        targets = targets.to(device, non_blocking=True)
        with precision.autocast():
            logits = model(inputs)
        logits = logits.float()
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
        classes[ids] = torch.stack([ranked[:, 0], targets], 1).float()
        hits = ranked == targets[:, None]
        loss = F.cross_entropy(logits, targets, reduction="sum")
        sums += torch.stack(
            [hits[:, 0].sum(), hits.sum(), loss, torch.tensor(len(targets), device=device)]
        ).double()
    left_out = batches.left_out()
    if output_dir:
        classes = distributed.reduce_sum(classes).int().cpu().numpy()
        if distributed.is_main():
            predictions.keep(output_dir, classes, batches.dataset.images, left_out)
    correct, in_top5, loss, images = distributed.reduce_sum(sums).tolist()
    found = {"acc1": 100 * correct / images, "acc5": 100 * in_top5 / images, "loss": loss / images}
    return found | beside(len(left_out))
