"""The steps of an epoch: which micro-batches make one, which are passed over, how it is seeded."""

import itertools
import json
import logging
import os
from collections.abc import Iterator

import torch

from util.cluster import distributed
from util.data.loader import Batches
from util.randomness import STREAM_STEP, seed_libraries
from util.training.checkpoint import Progress
from util.training.metrics import NonFiniteLoss
from util.training.optim import steps_per_epoch

log = logging.getLogger(__name__)


def epoch_steps(
    batches: Batches, progress: Progress, accum_iter: int, seed: int, device: torch.device
) -> Iterator[tuple[int, Iterator]]:
    """The rest of the epoch in which `progress` stands, a step at a time.

    `progress` is moved by its owner, and here only over steps that it names as skipped.

    Yields:
        the number of the step's micro-batches, and an iterator over them.
    """
    num_steps = steps_per_epoch(len(batches), accum_iter)
    before = progress.total_steps - progress.step
    passed_over = {total - before for total in progress.skipped}
    skip = frozenset(step * accum_iter + m for step in passed_over for m in range(accum_iter))
    stream = batches.epoch(progress.epoch, progress.step * accum_iter, skip)
    while progress.step < num_steps:
        if progress.step in passed_over:
            progress.step += 1
            progress.total_steps += 1
            continue
        num_micro = min(accum_iter, len(batches) - progress.step * accum_iter)
        micro_batches = itertools.islice(stream, num_micro)
        yield num_micro, _seeded(micro_batches, seed, progress.total_steps, device)


def _seeded(micro_batches: Iterator, seed: int, step: int, device: torch.device) -> Iterator:
    """Seed mixup, erasing and drop path for each micro-batch, once its images are loaded."""
    for micro, batch in enumerate(micro_batches):
        seed_libraries(seed, STREAM_STEP, step, micro, distributed.rank(), device=device)
        yield batch


def write_down(
    error: NonFiniteLoss, output_dir: str, batches: Batches, progress: Progress, accum_iter: int
) -> None:
    """Write nonfinite.json: the step's losses and its images, by index and name."""
    if not distributed.is_main():
        return
    step_in_epoch = progress.step - (progress.total_steps - error.total_step)
    first = step_in_epoch * accum_iter
    numbers = range(first, min(first + accum_iter, len(batches)))
    ids = [i for n in numbers for i in batches.global_ids(progress.epoch, n)]
    record = {
        "total_step": error.total_step, "epoch": progress.epoch, "step": step_in_epoch,
        "losses": {name: str(value) for name, value in error.terms.items()},
        "indices": ids, "images": [batches.dataset.images.name(i) for i in ids],
    }  # fmt: skip
    path = os.path.join(output_dir, "nonfinite.json")
    with open(path, "w") as file:
        json.dump(record, file, indent=1)
    log.error("the batch that did it is written down in %s", path)
