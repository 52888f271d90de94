"""Files in which many images lie, tars or tables, read at any place by their processes."""

import functools
import os
from collections.abc import Sequence
from typing import BinaryIO

from util.data.kept_index import Index

MOST_OPEN = 128  # files at a time: systems allow 1024 or so


class PackedFiles:
    """Some files as an index knows them; one that changes in a run is not read wrongly.

    Args:
        index: made of them, for their times and sizes.
    """

    def __init__(self, paths: Sequence[str], index: Index):
        self.paths = list(paths)
        folders = [os.path.dirname(path) for path in paths]
        if len({os.path.isabs(folder) for folder in folders}) > 1:
            folders = [os.path.abspath(folder) for folder in folders]
        self.root = os.path.commonpath(folders)
        arrays = index.arrays
        stamps = dict(zip(arrays["made of"].tolist(), arrays["stamps"].tolist(), strict=True))
        of_paths = (stamps[os.fsencode(os.path.realpath(path))] for path in paths)
        self.known = [(modified, size) for modified, _, size, _ in of_paths]

    def part(self, number: int, offset: int, size: int, name: str) -> bytes:
        """Bytes of a file. Args: number: its place in `paths`. name: what errors call them.

        Raises:
            OSError: as reading a file does. ValueError: the file has changed.
        """
        file = opened(self.paths[number], self.known[number])
        data, now = os.pread(file.fileno(), size, offset), os.fstat(file.fileno())
        if (now.st_mtime_ns, now.st_size) != self.known[number]:
            raise ValueError(f"{name}: its file has changed since the run began: start anew")
        return data


@functools.lru_cache(MOST_OPEN)
def opened(path: str, known: tuple[int, int]) -> BinaryIO:
    """An open file; forked processes may share it. It is closed when nobody has it any more.

    Args:
        known: its time and size, by which another file of the name is another one.
    """
    return open(path, "rb")
