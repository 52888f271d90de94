"""Train a detector for one round, from one evaluation to the next, and evaluate it."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from util.cluster import distributed
from util.cluster.distributed import without_exchange
from util.data.dense.jitter import Target
from util.data.loader import Batches
from util.evaluation.dense.coco_ap import as_coco, on_original, score
from util.progress import shown
from util.training.background import Background
from util.training.optim import set_lr
from util.training.precision import Precision
from util.training.run import Run

# (images [C, h, w], their targets, step, micro-batch) -> the same, on the device.
Prepare = Callable[[list[Tensor], list[Target], int, int], tuple[list[Tensor], list[Target]]]
Detect = Callable[[list[Tensor]], list[dict[str, Tensor]]]  # as the loader gives them


def train_one_round(
    model: nn.Module, prepare: Prepare, optimizer: torch.optim.Optimizer, precision: Precision,
    run: Run, after_update: Callable[[int], None] = lambda step: None,
) -> dict[str, float]:  # fmt: skip
    """Train the rest of the round in which the run stands.

    Args:
        model: images and targets -> losses by name; maybe inside DDP.
        prepare: copies a micro-batch to the device and draws for drop path and the sampled RoIs.
        after_update: called with a step's number once it has changed the weights.

    Returns:
        The round's means over all ranks, as `train_step` gives them.
    """
    model.train()
    for step in run.steps():
        micro_batches = (
            run.record.seen(prepare(*batch, step, micro))
            for micro, batch in enumerate(run.micro_batches(step))
        )
        set_lr(optimizer, run.learning_rate(step))
        losses = train_step(  # loads, forward, backward, update
            model, micro_batches, run.num_micro_batches(step), optimizer, precision,
            run.args.clip_grad,
        )  # fmt: skip
        after_update(step)
        run.count(step, losses)
        run.log(step)
        run.save_or_stop(step)
    return run.close_epoch()


def train_step(
    model: nn.Module, micro_batches: Iterable[tuple[list[Tensor], list[Target]]], num_micro: int,
    optimizer: torch.optim.Optimizer, precision: Precision, clip_grad: float | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """One optimiser step over `num_micro` micro-batches.

    Returns:
        This rank's means over the step: `loss`, its parts under torchvision's names without
        `loss_`, and the `grad_norm`.
    """
    sums: dict[str, Tensor] = {}
    for micro, (images, targets) in enumerate(micro_batches):
        with without_exchange(model, micro < num_micro - 1):
            with precision.autocast():
                parts = model(images, targets)
            losses = {name.removeprefix("loss_"): value for name, value in parts.items()}
            losses["loss"] = sum(parts.values())
            precision.backward(losses["loss"] / num_micro)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.detach() / num_micro
    return sums | {"grad_norm": precision.step(optimizer, clip_grad)}


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Batches, detect: Detect, truth: dict, output_dir: str
) -> dict[str, float]:
    """COCO's twelve numbers of boxes and of masks over a whole set; each image counts once.

    The predictions are kept in `output_dir`. An image that cannot be read has none.
    """
    model.eval()
    images_of, own, encoding = batches.dataset.images, [], Background()

    def encode(batch: list[tuple]) -> bool:
        for found, sizes, index in batch:
            entries = as_coco(on_original(found, *sizes), images_of.ids[index], category_ids)
            own.extend(entries)
        return True

    category_ids = images_of.categories.ids
    each = batches.epoch(what="without predictions")
    for number, (images, about) in enumerate(shown(each, "test", len(batches))):
        wanted = batches.global_ids(0, number)[distributed.rank() :: distributed.world_size()]
        batch = []
        for image, found, (index, *original), place in zip(
            images, detect(images), about, wanted, strict=True
        ):
            if index == place:  # else it is another image in the place of an unreadable one
                found = {name: values.cpu() for name, values in found.items()}
                batch.append((found, (tuple(image.shape[1:]), tuple(original)), index))
        encoding.start(partial(encode, batch))  # while the device has the next batch
    encoding.wait()
    return score(truth, own, output_dir)
