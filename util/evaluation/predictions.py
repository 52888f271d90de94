"""Each test image's predicted class, kept with what the predictions were made of."""

import functools
import json
import logging
import os
from collections.abc import Sequence

import numpy as np

from util.cluster import agreement
from util.data.datasets import Images
from util.data.unreadable import LEFT_OUT, made_of
from util.evaluation.frozen.features import write_aside
from util.training.output import PREDICTED_OF, PREDICTIONS
from util.training.run import Run

log = logging.getLogger(__name__)


def keep(folder: str, classes: np.ndarray, images: Images, left_out: Sequence[int]) -> None:
    """Write PREDICTIONS, int32 [images, 2]: the predicted class, or LEFT_OUT, and the true one.

    PREDICTED_OF beside it names the images that could not be read, and has a digest of the files.

    Args:
        classes: the same, but of images that were left out.
    """
    for index in left_out:
        classes[index] = LEFT_OUT, images.targets[index]
    about = {
        "images": len(classes), "unreadable": [images.name(index) for index in left_out],
        "made_of": _made_of_once(images),
    }  # fmt: skip
    told = json.dumps(about, indent=1).encode()
    try:
        write_aside(os.path.join(folder, PREDICTIONS), lambda file: np.save(file, classes))
        write_aside(os.path.join(folder, PREDICTED_OF), lambda file: file.write(told))
    except OSError as error:  # a full disk costs no training
        log.error("THE PREDICTIONS COULD NOT BE KEPT in %s (%s)", folder, error.strerror)


@functools.lru_cache(maxsize=2)
def _made_of_once(images: Images) -> str:
    """Of the first evaluation: what changes later in the run is noticed by the next one."""
    return made_of(images)


def are_outdated(run: Run, images: Images) -> bool:
    """Whether a run that had finished before kept predictions of files that were repaired or
    changed since, or left some out, which may be readable now. For all ranks, by rank 0's disk."""
    folder = run.args.output_dir
    return run.was_finished and agreement.main_does(lambda: _are_outdated(folder, images))


def _are_outdated(folder: str, images: Images) -> bool:
    try:
        with open(os.path.join(folder, PREDICTED_OF)) as file:
            about = json.load(file)
    except (OSError, ValueError):
        return False  # none were kept, or by an older version: nothing is known of them
    if not about["unreadable"] and about["made_of"] == made_of(images):
        return False
    log.info("the test images have changed since they were predicted: they are predicted anew")
    return True
