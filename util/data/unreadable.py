"""Images of a test set that cannot be read, and what a set's files are.

In training another image takes the place of an unreadable one. In an evaluation nothing does: it
is named, counted and left out, and the count stands beside the score. A published set is whole, or
its score is another set's: there one unreadable image ends the run.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from util.data.datasets import Images
from util.errors import EXIT_DATA, RunError

log = logging.getLogger(__name__)

LEFT_OUT = -1  # in place of a label, or a predicted class, of an image that could not be read
NUM_THREADS, CHUNK = 16, 256  # most of the time is a network disk's


def leave_out(images: Images, ids: Sequence[int], is_score: bool = True) -> list[int]:
    """Say how many of a set's images are left out of its scores; their ids, as given.

    Args:
        is_score: not a mere monitor of a training run.

    Raises:
        RunError: of a published set.
    """
    if ids and images.published and is_score:
        names = ", ".join(images.name(index) for index in ids[:3])
        raise RunError(
            f"{images.published}: {len(ids)} of {len(images)} images cannot be read ({names}): "
            "repair them, a part of this set has no score",
            EXIT_DATA,
        )
    if ids:
        log.warning("%d of %d images cannot be read and are left out", len(ids), len(images))
    return list(ids)


def beside(num_left_out: int) -> dict[str, int]:
    """What stands beside a score: `unreadable`, where images are left out of it."""
    return {"unreadable": num_left_out} if num_left_out else {}


def made_of(images: Images, ids: Iterable[int] | None = None) -> str:
    """A digest of the files that images are made of: their sizes, and their times in seconds.

    A file that is repaired has another one. So does a copy of the data without its times.

    Args:
        ids: of the images; by default all of them.
    """
    ids = range(len(images)) if ids is None else ids
    paths = [path for index in ids for path in images.files(index)]
    parts = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    digest = hashlib.sha256()
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        for stamps in threads.map(_stamps, parts):
            digest.update(stamps.encode())
    return digest.hexdigest()


def _stamps(paths: Sequence[str]) -> str:
    return "".join(map(_stamp, paths))


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return "absent;"
    return f"{status.st_size} {int(status.st_mtime)};"
