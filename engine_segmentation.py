"""Train a segmenter for one round, from one evaluation to the next, and evaluate it."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from util.cluster import distributed
from util.cluster.distributed import without_exchange
from util.data.dense.ade20k import NOTHING
from util.data.loader import Batches
from util.data.unreadable import beside
from util.errors import UsageError
from util.evaluation.dense.iou import ConfusionMatrix, scores
from util.evaluation.dense.windows import enlarged
from util.progress import shown
from util.training.optim import set_lr
from util.training.precision import Precision
from util.training.run import Run

# (images [B, C, H, W], label maps [B, H, W], step, micro-batch) -> the same, ready for the model.
Prepare = Callable[[Tensor, Tensor, int, int], tuple[Tensor, Tensor]]
Predict = Callable[[Tensor], Tensor]  # images as the loader gives them -> classes [B, H, W]


def train_one_round(
    model: nn.Module, prepare: Prepare, optimizer: torch.optim.Optimizer, precision: Precision,
    run: Run, auxiliary_weight: float,
) -> dict[str, float]:  # fmt: skip
    """Train the rest of the round in which the run stands.

    Args:
        model: images -> logits and the auxiliary head's; maybe inside DDP.
        prepare: normalises a micro-batch on the device and draws for what is dropped.

    Returns:
        The round's means over all ranks, as `train_step` gives them, with the percentage `acc` of
        labelled pixels that were right.
    """
    model.train()
    for step in run.steps():
        micro_batches = (
            run.record.seen(prepare(
                imgs.to(run.device, non_blocking=True), maps.to(run.device, non_blocking=True),
                step, micro,
            ))
            for micro, (imgs, maps) in enumerate(run.micro_batches(step))
        )  # fmt: skip
        set_lr(optimizer, run.learning_rate(step))
        losses = train_step(  # loads, forward, backward, update
            model, micro_batches, run.num_micro_batches(step), optimizer, precision,
            run.args.clip_grad, auxiliary_weight,
        )  # fmt: skip
        run.count(step, losses)
        run.log(step, pixel_accuracy)
        run.save_or_stop(step)
    means = run.close_epoch()
    return means | pixel_accuracy(means)


def train_step(
    model: nn.Module, micro_batches: Iterable[tuple[Tensor, Tensor]], num_micro: int,
    optimizer: torch.optim.Optimizer, precision: Precision, clip_grad: float | None = None,
    auxiliary_weight: float = 0.4,
) -> dict[str, Tensor]:  # fmt: skip
    """One optimiser step over `num_micro` micro-batches.

    Returns:
        On this rank the step's mean `loss`, its parts `main` and `auxiliary`, the shares of pixels
        that are `labelled` and of those that are right, `hits`, and the `grad_norm`.
    """
    sums = torch.zeros(5, device=precision.device)
    for micro, (imgs, maps) in enumerate(micro_batches):
        with without_exchange(model, micro < num_micro - 1):
            with precision.autocast():
                logits, auxiliary = model(imgs)
            logits = enlarged(logits, maps.shape[-2:])
            main = pixel_loss(logits, maps)
            auxiliary = pixel_loss(enlarged(auxiliary, maps.shape[-2:]), maps)
            loss = main + auxiliary_weight * auxiliary
            precision.backward(loss / num_micro)
        parts = (loss.detach(), main.detach(), auxiliary.detach(), *pixel_hits(logits, maps))
        sums += torch.stack(parts) / num_micro
    norm = precision.step(optimizer, clip_grad)
    names = ("loss", "main", "auxiliary", "hits", "labelled")
    return dict(zip(names, sums, strict=True)) | {"grad_norm": norm}


def pixel_loss(logits: Tensor, maps: Tensor) -> Tensor:
    """Cross-entropy of logits [B, K, H, W] and label maps [B, H, W], its mean over all pixels.

    Pixels without a label count as 0, as in the published recipes: so each image has one weight,
    and the mean over ranks is that of the global batch.
    """
    total = F.cross_entropy(logits, maps, ignore_index=NOTHING, reduction="sum")
    return total / maps.numel()


def pixel_accuracy(means: dict[str, float]) -> dict[str, float]:
    """`acc`, the percentage of labelled pixels that are right, in place of its two shares; nothing
    where there are none: all steps were skipped, or an older checkpoint has `acc` itself."""
    if "hits" not in means:
        return {}
    return {"acc": 100 * means.pop("hits") / max(means.pop("labelled"), 1e-9)}


@torch.no_grad()
def pixel_hits(logits: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the pixels (maps [B, H, W]) whose largest logit [B, K, H, W] is right, and of those
    that have a label: their means over micro-batches and ranks are those of all pixels."""
    is_labelled = maps != NOTHING
    # Each pixel's own logit beside the largest: argmax over strided classes takes 8 times as long.
    own = logits.gather(1, maps.masked_fill(~is_labelled, 0)[:, None])[:, 0]
    hits = (own >= logits.amax(1)) & is_labelled
    return hits.float().mean(), is_labelled.float().mean()


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Batches, predict: Predict, device: torch.device
) -> tuple[dict[str, float], dict[str, float]]:
    """mIoU, mAcc and aAcc over a whole set, each image once; and `IoU NAME` of each class.

    All in percent. A pair that cannot be read is left out, and counted as `unreadable`. All ranks
    take rank 0's buffers, which are those that a checkpoint keeps.

    Raises:
        UsageError: no pixel of the set is labelled. RunError: a published set with an
            unreadable pair.
    """
    distributed.share_buffers(model)
    model.eval()
    classes = batches.dataset.images.classes
    matrix = ConfusionMatrix(len(classes), device)
    for _, imgs, maps in shown(batches.each_once(), "test", len(batches)):
        predicted = predict(imgs.to(device, non_blocking=True))
        matrix.add(predicted, maps.to(device, non_blocking=True))
    left_out, counts = batches.left_out(), matrix.over_ranks()
    if not counts.any():
        raise UsageError(
            "--data_path: no pixel of the validation maps is of a class: check --first_class, "
            "--classes and the maps"
        )
    means, ious = scores(counts)
    means |= beside(len(left_out))
    return means, {f"IoU {name}": iou for name, iou in zip(classes, ious, strict=True)}
