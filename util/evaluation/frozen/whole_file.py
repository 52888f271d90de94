"""Features of a `FeatureStore` in one file, `.npy` or safetensors, as other programs read them.

The file is written part by part, in no more memory than a part takes, beside its name and then
renamed. Rows are the images of `FeatureStore.ids`, in order.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from util.data.datasets import Images
from util.data.unreadable import made_of
from util.errors import RunError, UsageError
from util.evaluation.frozen.features import FeatureStore, write_aside
from util.weights.checkpoint_file import sync_folder

log = logging.getLogger(__name__)

FORMATS = {".npy": "npy", ".safetensors": "safetensors"}
NAME = "features"  # of the tensor in a safetensors file
DTYPES = {"float16": "F16", "float32": "F32", "int64": "I64"}  # safetensors' names


@dataclass(frozen=True)
class WholeFile:
    """A file of features with what stands beside it: STEM.names.txt, a name a row;
    STEM.labels.npy, where there are labels (in safetensors a tensor); STEM.about.json.

    kind: one of the values of `FORMATS`.
    """

    path: str
    stem: str
    kind: str

    def about(self) -> dict:
        """What STEM.about.json says; nothing where it cannot be read."""
        try:
            with open(f"{self.stem}.about.json") as file:
                found = json.load(file)
            return found if isinstance(found, dict) else {}
        except (OSError, ValueError):
            return {}

    def is_there(self, wanted: dict, images: Images) -> bool:
        """Whether the file is whole, made as `wanted` says, and of these images' files.

        Raises:
            UsageError: it is something else.
        """
        if not os.path.exists(self.path):
            return False
        known, wanted = self.about(), wanted | {"files": made_of(images)}
        other = [key for key in wanted if known.get(key) != wanted[key]]
        if other:
            raise UsageError(
                f"OUT {self.path} is there and is something else ({', '.join(other)} differ): name "
                "another file, or give --overwrite"
            )
        log.info("%s is there: nothing to compute (--overwrite computes it anew)", self.path)
        return True

    def write(self, store: FeatureStore, images: Images, about: dict) -> None:
        """Write what stands beside the file, then the file: where it is, all of it is.

        Raises:
            RunError: a full disk.
        """
        ids, labels = store.ids(), labels_of(store)
        about = about | dict(
            rows=len(ids), classes=images.classes, files=made_of(images), left_out=store.left_out,
            unreadable=[images.relative_name(i) for i in store.left_out],
        )  # fmt: skip
        names = (images.relative_name(int(i)).replace("\n", "\\n") for i in ids)
        text = "".join(f"{name}\n" for name in names).encode(errors="surrogateescape")
        beside = [f"{self.stem}.{end}" for end in ("names.txt", "labels.npy", "about.json")]
        try:
            _remove([self.path, beside[1]])
            write_aside(beside[0], lambda file: file.write(text))
            if self.kind == "npy" and (labels >= 0).any():
                write_aside(beside[1], lambda file: np.save(file, labels))
            write_json(beside[2], about)
            write_whole(store, NAME, self.path, self.kind)
        except OSError as error:
            _remove(beside)
            raise RunError(
                f"{self.path} cannot be written ({error.strerror}): free space there and start "
                "again, which goes on where this stopped"
            ) from None
        shutil.rmtree(store.folder)
        log.info("%s: %d rows, beside it %s", self.path, len(ids), beside[0])


def _remove(paths: Sequence[str]) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def write_json(path: str, content: object) -> None:
    """Write JSON, whole or not at all."""
    write_aside(path, lambda file: file.write(json.dumps(content, indent=1).encode() + b"\n"))


def write_whole(store: FeatureStore, name: str, path: str, kind: str) -> None:
    """Write an output of all images in a store to `path`: [n, ...], with its labels in safetensors.

    Where the disk has no room for the features twice, each part is deleted once it is written; a
    run that is killed then computes those parts anew.

    Args:
        kind: one of the values of `FORMATS`.

    Raises:
        OSError: a full disk; what was computed is kept.
    """
    parts = store.parts(name)
    example = np.load(next(iter(parts.values())), mmap_mode="r")
    shape = (len(store.ids()), *example.shape[1:])
    size = int(np.prod(shape, dtype=np.int64)) * example.itemsize
    is_tight = shutil.disk_usage(store.folder).free < 1.05 * size
    if is_tight:
        log.info("little room on the disk: each part is deleted once it is in %s", path)

    def write(file: BinaryIO) -> None:
        _write_header(file, kind, shape, example.dtype.name)
        for shard, part in parts.items():
            file.write(np.load(part)[store.rows_of(shard)].data)
            if is_tight:
                store.drop_part(name, shard)
        if kind == "safetensors":
            file.write(labels_of(store).data)
        file.flush()
        os.fsync(file.fileno())

    write_aside(path, write)
    sync_folder(os.path.dirname(path))


def labels_of(store: FeatureStore) -> np.ndarray:
    """Labels of the images in `ids`, [n] int64; -1 of those that have none."""
    return np.maximum(store.targets().numpy(), -1)


def _write_header(file: BinaryIO, kind: str, shape: tuple[int, ...], dtype: str) -> None:
    if kind == "npy":
        about = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        return np.lib.format.write_array_header_1_0(file, about)
    entries, start = {}, 0
    for name, of, sides in ((NAME, dtype, shape), ("labels", "int64", shape[:1])):
        end = start + int(np.prod(sides, dtype=np.int64)) * np.dtype(of).itemsize
        entries[name] = {"dtype": DTYPES[of], "shape": sides, "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    file.write(len(text).to_bytes(8, "little") + text)


def map_whole(path: str) -> np.ndarray:
    """The features in a file of `write_whole`, [n, ...], mapped: read where they are looked at."""
    if not path_is_safetensors(path):
        return np.load(path, mmap_mode="c")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[NAME]
    names = {name: dtype for dtype, name in DTYPES.items()}
    start = 8 + length + entry["data_offsets"][0]
    return np.memmap(path, names[entry["dtype"]], "c", start, tuple(entry["shape"]))


def path_is_safetensors(path: str) -> bool:
    """Whether it does not begin as an array of numpy's does."""
    with open(path, "rb") as file:
        return file.read(6) != np.lib.format.MAGIC_PREFIX
