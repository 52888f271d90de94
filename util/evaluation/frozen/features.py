"""Features of an image set on disk, in shards: computed once, resumable, always the same bytes.

A shard holds the features of `SHARD` consecutive images and is computed batch by batch in their
order, whichever process does it; so the number of processes and workers changes nothing, and what
an interrupted run left is gone on with.

A shard knows the files that it was made of, and which of them could not be read: these are left
out of everything that is read here. Where a file has changed since, or there was such a one, the
shard is computed anew.
"""

import hashlib
import itertools
import json
import logging
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from util.cluster import agreement, distributed
from util.data.datasets import Images, Subset
from util.data.loader import Batches
from util.data.transformed import TransformedImages
from util.data.unreadable import LEFT_OUT, leave_out, made_of
from util.errors import RunError, UsageError
from util.progress import Pace, ProgressLine

log = logging.getLogger(__name__)

SHARD = 1024  # images
ABOUT = "about.json"
DETAILED = "detailed"  # the labels once more, in shards that were encoded in detail
UNLABELLED = -2  # in place of a label, of an image that has none
MADE_OF = "made_of"  # a digest of a shard's files
Outputs = dict[str, Tensor]  # by name, [B, ...] each

DTYPES = {"fp16": np.float16, "fp32": np.float32}


def check_batch_size(batch_size: int) -> None:
    """Raise UsageError where the batch size does not divide a shard."""
    if SHARD % batch_size:
        raise UsageError(f"--batch_size {batch_size} does not divide {SHARD}: use 32, 64, 128 …")


def checksum(*parts: object) -> str:
    """A digest of plain values, arrays and state dicts, in order."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, nn.Module):
            for name, tensor in part.state_dict().items():
                digest.update(name.encode())
                digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        elif isinstance(part, np.ndarray):
            digest.update(part.tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()


def images_checksum(images: Images) -> str:
    """A checksum of the images' names (their last two parts) and labels, not of their pixels."""
    digest = hashlib.sha256(images.targets.tobytes())
    for index in range(len(images)):
        digest.update(
            "/".join(images.name(index).split(os.sep)[-2:]).encode(errors="surrogateescape") + b"\0"
        )
    return digest.hexdigest()


def how_encoded(flags, view, precision) -> dict[str, object]:
    """What an image's features depend on besides the encoder, as plain values for `about`.

    Args:
        flags: the encoder's own. view: a `ResizeCenterCrop`. precision: a `Precision`.
    """
    about = dict(
        precision=precision.name, input_size=list(view.size), crop_share=view.crop_share,
        batch_size=flags.batch_size, mean=flags.mean, std=flags.std,
    )  # fmt: skip
    return about | where_given(flags)


def where_given(flags) -> dict[str, object]:
    """What else it depends on, of seldom given flags: files kept without them stay good."""
    names = ("value_range", "num_heads", "image_column")
    return {name: value for name in names if (value := getattr(flags, name, None))}


class FeatureStore:
    """The features of one image set by one encoder, in a folder.

    Args:
        folder: of these features alone.
        about: plain values that the features depend on; a folder with other values is refused.
        images: the set. dtype: `fp16` or `fp32`, in which features are kept.
        detailed: how many images, the first ones, are encoded in detail (block by block), rounded
            up to whole shards; a later run may ask for more.
        flag: the flag that errors name, whose value is the folder's parent.

    Raises:
        UsageError: a folder that holds other features, or that cannot be written.
    """

    def __init__(
        self, folder: str, about: dict, images: Images, dtype: str, detailed: int = 0,
        flag: str = "--features",
    ):  # fmt: skip
        self.folder, self.images, self.dtype, self.flag = folder, images, DTYPES[dtype], flag
        self.detailed = min(-(-detailed // SHARD) * SHARD, len(images))
        self.about = about | {"images": len(images), "dtype": dtype, "shard": SHARD}
        self.left_out: list[int] = []  # positions of images that could not be read, sorted
        agreement.main_does(self._claim)

    def _claim(self) -> None:
        path = os.path.join(self.folder, ABOUT)
        try:
            os.makedirs(self.folder, exist_ok=True)
            if os.path.exists(path):
                with open(path) as file:
                    known = json.load(file)
                if known != self.about:
                    keys = sorted({*known, *self.about})
                    other = [key for key in keys if known.get(key) != self.about.get(key)]
                    raise UsageError(
                        f"{self.flag} {self.folder} holds other "
                        f"{'predictions' if self.flag == '--predictions' else 'features'} "
                        f"({', '.join(other)} differ): name another one, or remove it"
                    )
            else:
                write_aside(
                    path, lambda file: file.write(json.dumps(self.about, indent=1).encode())
                )
        except (OSError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"{self.flag} {self.folder} cannot be used ({error})") from None

    def num_shards(self) -> int:
        return -(-len(self.images) // SHARD)

    def _path(self, name: str, shard: int) -> str:
        return os.path.join(self.folder, f"{name}-{shard:05d}.npy")

    def _to_do(self) -> dict[int, str]:
        """The shards that are to be computed, each with the digest of its files."""
        digests = {shard: made_of(self.images, self._ids(shard)) for shard in self._shards()}
        todo = {shard: d for shard, d in digests.items() if not self._is_done(shard, d)}
        anew = [shard for shard in todo if os.path.exists(self._path(MADE_OF, shard))]
        if anew:
            log.info(
                "%s: %d of %d parts have files that have changed or could not be read, or lack "
                "details: computed anew", self.folder, len(anew), len(digests),
            )  # fmt: skip
        return todo

    def _is_done(self, shard: int, digest: str) -> bool:
        if not all(os.path.exists(self._path(name, shard)) for name in self._marks(shard)):
            return False
        is_of_these = np.load(self._path(MADE_OF, shard)).tobytes().hex() == digest
        return is_of_these and LEFT_OUT not in np.load(self._path("targets", shard))

    def _marks(self, shard: int) -> tuple[str, ...]:
        """What a shard has written last, in this order."""
        details = (DETAILED,) if shard * SHARD < self.detailed else ()
        return ("targets", *details, MADE_OF)

    def _shards(self) -> range:
        return range(self.num_shards())

    def extract(
        self, encode: Callable[[Tensor, bool], Outputs], transform: Callable,
        device: torch.device, label: str = "", whole: Pace | None = None, **loading,
    ) -> None:  # fmt: skip
        """Compute the shards that are missing, every W-th on each of the W ranks.

        Args:
            encode: images [B, C, H, W], whether in detail -> what is kept, [B, ...] by name.
            whole: of several sets' images, these among them.
            loading: arguments of `Batches`, batch_size among them: a divisor of SHARD.

        Raises:
            RunError: too many unreadable images, or one of a published set.
        """
        todo = agreement.main_does(self._to_do)
        own = dict([*todo.items()][distributed.rank() :: distributed.world_size()])
        ids = np.concatenate([np.arange(0), *map(self._ids, own)])
        if whole is not None:
            whole.pass_over(len(self.images) - len(ids))
        if len(ids):
            data = TransformedImages(Subset(self.images, ids), transform, 0)
            batches = Batches(data, training=False, alone=True, **loading)
            self._fill(
                own, ids, batches, encode, device, ProgressLine(label, len(ids), whole=whole)
            )
        distributed.barrier()
        self.left_out = agreement.main_does(self._find_left_out)

    def _find_left_out(self) -> list[int]:
        shards = [np.load(self._path("targets", shard)) for shard in self._shards()]
        return leave_out(self.images, np.flatnonzero(np.concatenate(shards) == LEFT_OUT).tolist())

    def _ids(self, shard: int) -> np.ndarray:
        return np.arange(shard * SHARD, min((shard + 1) * SHARD, len(self.images)))

    def _fill(
        self, digests: dict[int, str], ids: np.ndarray, batches: Batches, encode, device,
        line: ProgressLine,
    ) -> None:  # fmt: skip
        """Compute shards of which the digests are given, and whose images `ids` are."""
        arrays: dict[str, np.ndarray] = {}
        done, waiting = 0, list(digests)
        for positions, imgs, targets in batches.each_once():
            own_ids = ids[positions.numpy()]
            shard = own_ids[0] // SHARD  # a batch is of one
            while waiting[0] != shard:
                whole = waiting.pop(0)
                self._write_shard(whole, arrays, digests[whole])
                arrays = {}
            rows, count = own_ids - shard * SHARD, len(self._ids(shard))
            is_detailed = shard * SHARD < self.detailed
            found = encode(imgs.to(device, non_blocking=True), is_detailed)
            if not arrays:
                one = sum(values[0].numel() for values in found.values()) * self.dtype().itemsize
                images = count if is_detailed else len(ids) - done
                self._check_space(one * images * distributed.world_size(), found, waiting)
            for name, value in found.items():
                values = value.float().cpu().numpy().astype(self.dtype)
                if name not in arrays:
                    arrays[name] = np.zeros((count, *values.shape[1:]), self.dtype)
                arrays[name][rows] = values
            labels = arrays.setdefault("targets", np.full(count, LEFT_OUT, dtype=np.int64))
            labels[rows] = np.where(targets < 0, UNLABELLED, targets)
            done += len(imgs)
            line.update(done)
        for shard in waiting:
            self._write_shard(shard, arrays, digests[shard])
            arrays = {}
        line.close()

    def _check_space(self, needed: int, names: Iterable[str], shards: Sequence[int]) -> None:
        """Raise RunError before a shard where the disk has no room for what is due on all ranks;
        what is made anew takes the place of what was there."""
        old = (self._path(name, shard) for shard in shards for name in names)
        needed -= sum(os.path.getsize(path) for path in old if os.path.exists(path))
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise RunError(
                f"{self.folder} would take {needed / 1e9:.1f} GB of {free / 1e9:.1f} GB that are "
                f"free: name a folder with more, {self.flag}, or ask for less"
            )

    def _write_shard(self, shard: int, arrays: dict[str, np.ndarray], digest: str) -> None:
        """Args: arrays: by name; empty where no image of it could be read."""
        labels = arrays.pop("targets", np.full(len(self._ids(shard)), LEFT_OUT, dtype=np.int64))
        marks = dict.fromkeys(self._marks(shard), labels)
        marks[MADE_OF] = np.frombuffer(bytes.fromhex(digest), dtype=np.uint8)
        try:
            for name, array in (arrays | marks).items():
                write_aside(self._path(name, shard), lambda file, a=array: np.save(file, a))
        except OSError as error:
            raise RunError(
                f"{self.folder} cannot be written ({error.strerror}): free space "
                "there and start again, which goes on where this stopped"
            ) from None

    def ids(self, in_detail: bool = False) -> np.ndarray:
        """Positions in the set of the images that features are of: of all but `left_out`."""
        count = self.detailed if in_detail else len(self.images)
        return np.setdiff1d(np.arange(count), self.left_out)

    def targets(self, in_detail: bool = False) -> Tensor:
        """Labels of the images in `ids`, [n]; UNLABELLED of those that have none."""
        return self.read("targets", in_detail)

    def read(self, name: str, in_detail: bool = False) -> Tensor:
        """An output of the images in `ids`, of all or of those that are encoded in detail:
        [n, ...]."""
        ids, whole = self.ids(in_detail), None
        places = np.searchsorted(ids, SHARD * np.arange(self.num_shards() + 1))
        for shard, (start, end) in enumerate(itertools.pairwise(places)):
            if start < end:
                array = np.load(self._path(name, shard))
                if whole is None:  # filled part by part: together they take half the memory
                    whole = np.empty((len(ids), *array.shape[1:]), array.dtype)
                whole[start:end] = array[ids[start:end] - shard * SHARD]
        return torch.from_numpy(whole)

    def parts(self, name: str) -> dict[int, str]:
        """The files of an output, by shard; of a shard without a readable image there is none."""
        paths = {shard: self._path(name, shard) for shard in self._shards()}
        return {shard: path for shard, path in paths.items() if os.path.exists(path)}

    def drop_part(self, name: str, shard: int) -> None:
        """Delete an output's file of a shard, which is then computed anew where it is needed."""
        for path in (self._path(MADE_OF, shard), self._path(name, shard)):
            os.unlink(path)

    def rows_of(self, shard: int) -> np.ndarray:
        """Rows of a shard's file that are of images in `ids`."""
        ids = self._ids(shard)
        return np.setdiff1d(ids, self.left_out) - ids[0]

    def rows(self, name: str) -> "Rows":
        """An output that is too large to be read whole."""
        return Rows([self._path(name, shard) for shard in self._shards()])

    def digest(self) -> str:
        """A checksum of everything that the features follow from, wherever their files lie."""
        return checksum(self.about, *([self.left_out] if self.left_out else []))[:12]

    def made_of(self) -> str:
        """A digest of the files that they were made of."""
        return checksum(*(np.load(self._path(MADE_OF, shard)) for shard in self._shards()))


class Rows:
    """An output of an image set on disk: `rows[i]` is image i's, [...], read when it is asked for.

    A file is open only while it is read: ImageNet has more shards than a process may have files.

    Args:
        paths: of its shards.
    """

    def __init__(self, paths: list[str]):
        # A shard of which no image could be read has none.
        first = np.load(next(filter(os.path.exists, paths)), mmap_mode="r")
        self.paths, self.shape, self.dtype = paths, first.shape[1:], first.dtype
        self.starts: dict[int, int] = {}  # bytes before the numbers of a shard

    def __getitem__(self, index: int) -> Tensor:
        number, row = divmod(index, SHARD)
        if number not in self.starts:
            self.starts[number] = np.load(self.paths[number], mmap_mode="r").offset
        count = math.prod(self.shape)
        start = self.starts[number] + row * count * self.dtype.itemsize
        values = np.fromfile(self.paths[number], self.dtype, count, offset=start)
        return torch.from_numpy(values.reshape(self.shape))


def write_aside(path: str, write: Callable) -> None:
    """Write a file whole or not at all: to a temporary one that is renamed."""
    temporary = f"{path}.{platform.node()}-{os.getpid()}.tmp"  # others may write it, too
    try:
        with open(temporary, "wb") as file:
            write(file)
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
