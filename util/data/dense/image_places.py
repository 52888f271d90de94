"""Where the images of an annotation file lie: below a folder, or in tar shards."""

import os

import numpy as np

from util.data.file_index import is_named_as_image
from util.data.kept_index import Stamp, stamp
from util.data.packed_files import PackedFiles
from util.data.shards import SHARD, shard_index
from util.data.split_files import named_files
from util.errors import UsageError


class FolderPlace:
    """Images by their paths below a folder."""

    def __init__(self, folder: str):
        self.folder, self.of = folder, [folder]
        self.listed: dict[str, set[str]] = {}
        self.looked_into: list[tuple[str, Stamp]] = []

    def find(self, name: str) -> str | None:
        """The name under which an image is there; a Windows path gets its slashes turned."""
        return next((one for one in (name, name.replace("\\", "/")) if self._has(one)), None)

    def _has(self, path: str) -> bool:
        inner, name = os.path.split(path)
        if inner not in self.listed:
            place = os.path.join(os.path.realpath(self.folder), inner)
            self.looked_into.append((place, stamp(place)))
            self.listed[inner] = set(os.listdir(place)) if os.path.isdir(place) else set()
        return name in self.listed[inner]

    def name(self, path: str) -> str:
        return os.path.join(self.folder, path)

    def content(self, path: str) -> bytes:
        with open(self.name(path), "rb") as file:
            return file.read()

    def files(self, path: str) -> tuple[str, ...]:
        return (self.name(path),)


class ShardPlace:
    """Images by their members' names in shards. Args: pattern: of the shards."""

    def __init__(self, pattern: str):
        self.folder, self.of = pattern, named_files(pattern, (SHARD,), deep=True)
        index = shard_index(self.of)
        self.packed, self.arrays = PackedFiles(self.of, index), index.arrays
        self.order = np.argsort(self.arrays["members"], kind="stable")
        self.sorted = self.arrays["members"][self.order]
        self.looked_into = [(real, stamp(real)) for real in map(os.path.realpath, self.of)]

    def find(self, name: str) -> str | None:
        """The member that an image is; a dot in its name may be an underscore there."""
        name = name.replace("\\", "/")
        folder, base = os.path.split(name)
        stem, suffix = os.path.splitext(base)
        as_key = os.path.join(folder, stem.replace(".", "_") + suffix)
        return next((one for one in (name, as_key) if self._row(one) is not None), None)

    def _row(self, name: str) -> int | None:
        place = int(np.searchsorted(self.sorted, os.fsencode(name)))
        is_there = place < len(self.sorted) and self.sorted[place] == os.fsencode(name)
        return int(self.order[place]) if is_there else None

    def name(self, path: str) -> str:
        return os.path.join(self.files(path)[0], path)

    def content(self, path: str) -> bytes:
        row = self._row(path)
        offset, size = self.arrays["places"][row].tolist()
        return self.packed.part(int(self.arrays["shards"][row]), offset, size, self.name(path))

    def files(self, path: str) -> tuple[str, ...]:
        return (self.of[int(self.arrays["shards"][self._row(path)])],)


def place_of(where: str, flag: str) -> FolderPlace | ShardPlace:
    """Raises UsageError where there is neither a folder nor a shard."""
    if os.path.isdir(where):
        names = os.listdir(where)
        if any(map(is_named_as_image, names)) or not any(name.endswith(SHARD) for name in names):
            return FolderPlace(where)
    elif SHARD not in where:
        raise UsageError(f"{where} is not a folder: name that of the images, {flag}")
    try:
        return ShardPlace(where)
    except UsageError as error:
        raise UsageError(str(error).replace("--data_path", flag)) from None
