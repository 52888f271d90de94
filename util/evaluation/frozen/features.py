"""Features of an image set on disk, in shards: computed once, resumable, always the same bytes.

A shard holds the features of `SHARD` consecutive images and is computed batch by batch in their
order, whichever process does it; so the number of processes and workers changes nothing, and what
an interrupted run left is gone on with.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from util.cluster import agreement, distributed
from util.data.datasets import Images, Subset
from util.data.loader import Batches
from util.data.transformed import TransformedImages
from util.errors import RunError, UsageError
from util.logging import ProgressLine

log = logging.getLogger(__name__)

SHARD = 1024  # images
ABOUT = "about.json"
DETAILED = "detailed"  # the labels once more, in shards that were encoded in detail
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
        digest.update("/".join(images.name(index).split(os.sep)[-2:]).encode() + b"\0")
    return digest.hexdigest()


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
                        f"{self.flag} {self.folder} holds other {self.flag[2:]} "
                        f"({', '.join(other)} differ): name another folder, or remove it"
                    )
            else:
                _write(path, lambda file: file.write(json.dumps(self.about, indent=1).encode()))
        except (OSError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"{self.flag} {self.folder} cannot be used ({error})") from None

    def num_shards(self) -> int:
        return -(-len(self.images) // SHARD)

    def _path(self, name: str, shard: int) -> str:
        return os.path.join(self.folder, f"{name}-{shard:05d}.npy")

    def _is_done(self, shard: int) -> bool:
        return all(os.path.exists(self._path(name, shard)) for name in self._marks(shard))

    def _marks(self, shard: int) -> tuple[str, ...]:
        """The names of the files that are written last, by which a shard is known to be done."""
        return ("targets", DETAILED) if shard * SHARD < self.detailed else ("targets",)

    def extract(
        self, encode: Callable[[Tensor, bool], Outputs], transform: Callable,
        device: torch.device, batch_size: int = 128, num_workers: int = 0,
        max_bad_images: int = 0, label: str = "",
    ) -> None:  # fmt: skip
        """Compute the shards that are missing, every W-th on each of the W ranks.

        Args:
            encode: (images [B, C, H, W], whether in detail) -> what is kept, [B, ...] by name.
            transform: of an image [C, H, W]. batch_size: a divisor of SHARD.
            label: what the progress line calls it.
        """
        todo = agreement.main_does(
            lambda: [shard for shard in range(self.num_shards()) if not self._is_done(shard)]
        )
        own = todo[distributed.rank() :: distributed.world_size()]
        ids = np.concatenate([np.arange(0), *map(self._ids, own)])
        if len(ids):
            data = TransformedImages(Subset(self.images, ids), transform, 0)
            batches = Batches(
                data, batch_size, training=False, num_workers=num_workers, alone=True,
                pin_memory=device.type == "cuda", max_bad_images=max_bad_images,
            )  # fmt: skip
            self._fill(own, iter(batches.epoch()), encode, device, ProgressLine(label, len(ids), 0))
        distributed.barrier()

    def _ids(self, shard: int) -> np.ndarray:
        return np.arange(shard * SHARD, min((shard + 1) * SHARD, len(self.images)))

    def _fill(self, shards, batches: Iterator, encode, device, line: ProgressLine) -> None:
        done = 0
        for shard in shards:
            parts: dict[str, list[np.ndarray]] = {}
            labels, count = [], 0
            while count < len(self._ids(shard)):
                imgs, targets = next(batches)
                imgs = imgs.to(device, non_blocking=True)
                for name, value in encode(imgs, shard * SHARD < self.detailed).items():
                    parts.setdefault(name, []).append(
                        value.float().cpu().numpy().astype(self.dtype)
                    )
                labels.append(targets.numpy())
                count += len(imgs)
                done += len(imgs)
                line.update(done)
            arrays = {name: np.concatenate(values) for name, values in parts.items()}
            try:
                for name in self._marks(shard):
                    arrays[name] = np.concatenate(labels)
                for name, array in arrays.items():
                    _write(self._path(name, shard), lambda file, a=array: np.save(file, a))
            except OSError as error:
                raise RunError(
                    f"{self.folder} cannot be written ({error.strerror}): free space "
                    "there and start again, which goes on where this stopped"
                ) from None
        line.close()

    def targets(self) -> Tensor:
        """The images' labels [n]."""
        return self.read("targets")

    def read(self, name: str, in_detail: bool = False) -> Tensor:
        """An output of all images, or of those that are encoded in detail: [n, ...], in the set's
        order."""
        count = self.detailed if in_detail else len(self.images)
        paths = [self._path(name, shard) for shard in range(-(-count // SHARD))]
        return torch.from_numpy(np.concatenate([np.load(path) for path in paths]))

    def rows(self, name: str) -> "Rows":
        """An output of all images that is too large to be read whole, image by image."""
        return Rows([self._path(name, shard) for shard in range(self.num_shards())])

    def digest(self) -> str:
        """A checksum of everything that the features follow from."""
        return checksum(self.about)[:12]


class Rows:
    """An output of an image set on disk: `rows[i]` is image i's, [...], read when it is asked for.

    A file is open only while it is read: ImageNet has more shards than a process may have files.

    Args:
        paths: of its shards.
    """

    def __init__(self, paths: list[str]):
        first = np.load(paths[0], mmap_mode="r")
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


def _write(path: str, write: Callable) -> None:
    """Write a file whole or not at all: to a temporary one that is renamed."""
    temporary = f"{path}.{distributed.rank()}.tmp"
    try:
        with open(temporary, "wb") as file:
            write(file)
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
