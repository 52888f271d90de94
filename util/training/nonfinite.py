"""A loss that is not finite: the error, and a record of the batch that did it."""

import json
import logging
import os

from util.cluster import distributed
from util.data.loader import Batches
from util.errors import EXIT_NONFINITE, RunError
from util.training.checkpoint import Progress

log = logging.getLogger(__name__)


class NonFiniteLoss(RunError):
    """A loss became NaN or infinite at `total_step` (optimiser steps done before it)."""

    status = EXIT_NONFINITE

    def __init__(self, total_step: int, terms: dict[str, float]):
        self.total_step, self.terms = total_step, terms
        shown = ", ".join(f"{name} {value:g}" for name, value in terms.items())
        super().__init__(f"the loss is not finite at step {total_step}: {shown}")


def record_nonfinite_step(
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
    try:
        with open(path, "w") as file:
            json.dump(record, file, indent=1)
    except OSError as error:
        return log.error("%s cannot be written (%s): %s", path, error.strerror, record)
    log.error("the batch that did it is written down in %s", path)
