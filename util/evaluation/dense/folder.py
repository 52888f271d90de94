"""Any folder of images under a trained model: --predict."""

import argparse
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from util.cluster import distributed
from util.data.file_index import find_images
from util.data.images import read_image
from util.errors import EXIT_DATA, RunError, UsageError, first_line
from util.progress import ProgressLine

log = logging.getLogger(__name__)


def for_each_image(
    args: argparse.Namespace, device: torch.device, act: Callable[[str, str, Tensor], None]
) -> dict[str, int]:
    """Call `act` for each image of --predict: its path in there, its results' name, its pixels.

    Each rank takes its share. An image that cannot be read is left out.

    Args:
        act: the results' name is a path without suffix; pixels are [C, H, W] as they are.

    Returns:
        How many images there are, and how many of them are unreadable.

    Raises:
        UsageError: no image. RunError: more unreadable ones than --max_bad_images.
    """
    paths = find_images(args.predict)
    if not paths:
        raise UsageError(f"--predict {args.predict} holds no image: name a folder with images")
    names = output_names(paths)
    own = range(distributed.rank(), len(paths), distributed.world_size())
    line, bad = ProgressLine("images", len(own)), 0
    for done, index in enumerate(own, 1):
        path = os.path.join(args.predict, paths[index])
        try:
            image = read_image(path, args.in_chans, args.value_range)
        except Exception as error:  # whatever a decoder makes of a damaged file
            bad += 1
            log.warning("unreadable, left out: %s (%s)", paths[index], first_line(error))
        else:
            act(paths[index], names[index], image)
        line.update(done, f"{bad} unreadable" if bad else None)
    line.close()
    bad = int(distributed.reduce_sum(torch.tensor(bad, device=device)))
    if bad > args.max_bad_images:
        raise RunError(f"{bad} of {len(paths)} images cannot be read: see above", EXIT_DATA)
    return {"images": len(paths), "unreadable": bad}


def output_names(paths: Sequence[str]) -> list[str]:
    """NAME for NAME.jpg; NAME.jpg where there is a NAME of another suffix, too."""
    stems = [os.path.splitext(path)[0] for path in paths]
    count = Counter(stems)
    return [stem if count[stem] == 1 else path for path, stem in zip(paths, stems, strict=True)]
