"""The paths that reproduce.py is given: each is looked at before anything starts.

A run of days would else end, or not begin, hours later and with a line of another program's.
"""

import os
from collections.abc import Callable, Mapping

from util.data.dense.coco import LAYOUTS
from util.errors import UsageError

ADE20K = tuple(
    f"{kind}/{split}" for kind in ("images", "annotations") for split in ("training", "validation")
)
COCO = tuple(name for names in LAYOUTS[0].values() for name in names)


def check(places: Mapping[str, str]) -> None:
    """Check the paths of flags; an empty one was not given.

    Args:
        places: by the flag's name, without dashes.

    Raises:
        UsageError: the line names the flag, and what is not there.
    """
    for name, path in places.items():
        lacks = CHECKS[name](path) if path else ""
        if lacks:
            raise UsageError(f"--{name} {path}: {lacks}")


def _holds(*names: str) -> Callable[[str], str]:
    def check_one(path: str) -> str:
        if not os.path.isdir(path):
            return "there is no such folder"
        absent = [name for name in names if not os.path.exists(os.path.join(path, name))]
        return f"it has no {' and no '.join(absent)}" if absent else ""

    return check_one


def _levels(depth: int, layout: str) -> Callable[[str], str]:
    """A check for folders in folders, `depth` deep; one that goes so deep stands for all."""

    def is_deep(path: str, levels: int) -> bool:
        if not levels:
            return True
        with os.scandir(path) as entries:
            inner = [entry.path for entry in entries if entry.is_dir()]
        return any(is_deep(one, levels - 1) for one in inner)

    def check_one(path: str) -> str:
        if not os.path.isdir(path):
            return "there is no such folder"
        return "" if is_deep(path, depth) else f"its layout is not {layout}"

    return check_one


def _is_list(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return "" if any(line.strip() for line in file) else "the file is empty"
    except (OSError, UnicodeDecodeError) as error:
        return f"no readable text file ({getattr(error, 'strerror', None) or 'not UTF-8'})"


def _can_be_written(path: str) -> str:
    """Look at the folder, or at the nearest one above it that exists; nothing is made."""
    there = os.path.abspath(path)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        return f"{there} is no folder"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written"


CHECKS = {
    "out": _can_be_written,
    "checkpoints": _holds(),
    "imagenet": _holds("train", "val"),
    "one_percent_list": _is_list,
    "imagenet_a": _levels(1, "CLASS/IMAGE"),
    "imagenet_c": _levels(3, "CORRUPTION/SEVERITY/CLASS/IMAGE"),
    "coco": _holds(*COCO),
    "ade20k": _holds(*ADE20K),
}
