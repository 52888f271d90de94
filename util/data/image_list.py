"""Published lists of images: which images of a data set the lines of a file name."""

import logging
import os
from typing import Protocol

from util.errors import UsageError

log = logging.getLogger(__name__)


class Named(Protocol):
    """Images with names: whole paths, and paths below the folder of the split."""

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def relative_name(self, index: int) -> str: ...


def listed_positions(images: Named, path: str, flag: str) -> list[int]:
    """Positions of the images that a published list names, in its order.

    A line is a path below the folder of the split, of any depth; or the end of an image's path, as
    CLASS/NAME, SPLIT/CLASS/NAME or NAME alone, where no other image's path ends so.

    Raises:
        UsageError: a list that cannot be read or is not of this set; the line names the flag.
    """
    wanted = _lines(path, flag)
    names = set(wanted)
    relative = (images.relative_name(index) for index in range(len(images)))
    exact: dict[str, list[int]] = {}
    for index, name in enumerate(map(_plain, relative)):
        if name in names:
            exact.setdefault(name, []).append(index)
    by_end = _by_end(images, names - exact.keys())
    found, absent = [], []
    for name in wanted:
        ids = exact.get(name) or by_end.get(name, [])
        if len(ids) > 1:
            some = ", ".join(images.relative_name(index) for index in ids[:3])
            raise UsageError(
                f"{flag} {path}: more than one image is called {name} ({some}): write CLASS/NAME, "
                "or the whole path below the split's folder"
            )
        found += ids
        absent += [name] * (not ids)
    if absent:
        raise UsageError(
            f"{flag} {path} names {len(absent)} of {len(wanted)} images that the data set "
            f"lacks ({', '.join(absent[:3])}): use the list of this data set"
        )
    once = list(dict.fromkeys(found))
    if len(once) < len(found):
        log.warning("%s %s names %d images twice", flag, path, len(found) - len(once))
    return once


def _by_end(images: Named, names: set[str]) -> dict[str, list[int]]:
    """The images whose whole paths end with each name."""
    found: dict[str, list[int]] = {}
    depths = {name.count("/") for name in names}
    for index in range(len(images) if names else 0):
        name = _plain(images.name(index))
        if max(depths) > name.count("/"):
            name = _plain(os.path.abspath(name))
        parts = name.rsplit("/", max(depths) + 1)
        for end in {"/".join(parts[-1 - depth :]) for depth in depths} & names:
            found.setdefault(end, []).append(index)
    return found


def _lines(path: str, flag: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            wanted = [_plain(line.strip()) for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{flag} {path} cannot be read ({error})") from None
    if not wanted:
        raise UsageError(f"{flag} {path} is empty: it takes an image's name a line")
    return wanted


def _plain(name: str) -> str:
    """A path with slashes, without `.` and doubled ones."""
    if "\\" not in name and "//" not in name and "./" not in name:
        return name
    return os.path.normpath(name.replace("\\", "/"))
