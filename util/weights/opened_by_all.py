"""A file of weights that every rank reads for itself, and that must be the same on all."""

import os
from collections.abc import Callable
from typing import TypeVar

from util.cluster import agreement, distributed
from util.errors import UsageError
from util.weights.checkpoint_file import fingerprint

Content = TypeVar("Content")


def opened_by_all(path: str, read: Callable[[], Content]) -> Content:
    """What `read`, which must not wait for other ranks, makes of the file or folder at `path`.

    Raises:
        UsageError: on all ranks, where any of them cannot read it, or reads another one.
    """
    if not distributed.is_distributed():
        return read()
    content, own = agreement.all_or_none(lambda: (read(), _fingerprint(path)))
    found = agreement.groups(agreement.gather(own))
    if len(found) > 1:
        said = "; ".join(f"{who}: checksum {checksum}" for checksum, who in found.items())
        raise UsageError(
            f"{path} is not the same on all ranks ({said}): they must read the same file, on a "
            "disk that their nodes share"
        )
    return content


def _fingerprint(path: str) -> str:
    """The checksum of a file, or those of the files of a folder in the order of their names."""
    if not os.path.isdir(path):
        return fingerprint(path)
    files = (os.path.join(path, name) for name in sorted(os.listdir(path)))
    return " ".join(fingerprint(file) for file in files if os.path.isfile(file))
