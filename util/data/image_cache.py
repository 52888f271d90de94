"""--cache_images: images decoded and reduced once, in a file of raw pixels that all processes map.

An image that is larger than its views need is reduced until it just covers a box; its shape stays,
and a smaller one stays as it is. The box is the evaluation's own, so that an evaluation has the
same pixels as without a cache. For random crops it is so large that the smallest of them still has
as many pixels as the network sees, or as the original has: they are the originals' crops, but for
being resized twice. A file is found by the names, times and sizes of what it was made of, and has
its name when it is whole.
"""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import logging
import math
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from util.checks import image_size
from util.cluster import agreement
from util.data.image_sets import Images
from util.data.kept_index import kept_in, stamp
from util.data.transforms import ELONGATED, covering, resize
from util.errors import UsageError
from util.progress import ProgressLine

log = logging.getLogger(__name__)

MAGIC = b"MI-MAE pixels 1\n"
TRAILER = struct.Struct("<QQI16s")  # images, bytes of their pixels, checksum of their places
LOOKED_AT = 64  # images, of whose sizes the room is estimated
RATIO = 4 / 3  # of a random crop's sides, at most
CHUNK = 16  # images of a thread at a time: what a signal waits for
NUM_THREADS, PART = 8, 1024  # that look at files, so many at a time

Box = tuple[int, int]  # height and width that an image covers


class CachedImages(Images):
    """The images of another set from a file of their pixels; what it lacks is read from the set."""

    def __init__(self, images: Images, path: str):
        self.images, self.targets, self.classes = images, images.targets, images.classes
        self.published = images.published
        self.places = _places(path)
        self.pixels = np.memmap(path, np.uint8, "r")

    def read(self, index: int) -> Tensor:
        offset, channels, height, width, itemsize = self.places[index].tolist()
        if not channels:  # it could not be read
            return self.images.read(index)
        dtype = np.uint8 if itemsize == 1 else np.float32
        raw = np.array(self.pixels[offset : offset + channels * height * width * itemsize])
        return torch.from_numpy(raw.view(dtype).reshape(channels, height, width))

    def name(self, index: int) -> str:
        return self.images.name(index)

    def relative_name(self, index: int) -> str:
        return self.images.relative_name(index)

    def files(self, index: int) -> tuple[str, ...]:
        return self.images.files(index)


def cached(images: Images, args, crop_share: float, min_crop: float = 1.0) -> Images:
    """The images from a cache, which each node makes where it has none; for all ranks.

    Args:
        images: of files; they stay what they are without --cache_images.
        args: with cache_images, cache_dir, in_chans, input_size and num_workers.
        crop_share: of the evaluation's view. min_crop: the smallest area of random crops; 1: none.

    Raises:
        UsageError: on all ranks: no room, a folder that cannot be written, too small a size.
    """
    if getattr(args, "cache_images", None) is None:
        return images
    path, box = agreement.main_does(lambda: _place(images, args, crop_share, min_crop))
    agreement.main_first(lambda: _make_if_absent(images, path, box, max(1, args.num_workers)))
    log.info("%d images cached to cover %d x %d pixels: %s", len(images), *box, path)
    return CachedImages(images, path)


def _place(images: Images, args, crop_share: float, min_crop: float) -> tuple[str, Box]:
    """The path of the images' cache, and what they cover there."""
    if not images.files(0):
        raise UsageError("--cache_images: these images are in memory already: leave it away")
    box = cached_box(args, crop_share, min_crop)
    read_as = [box, args.in_chans, args.value_range]
    read_as += [args.image_column] if getattr(args, "image_column", "") else []  # seldom given
    names = hashlib.sha256(json.dumps(read_as).encode())
    here = "" if os.path.isabs(images.name(0)) else os.getcwd()
    for start in range(0, len(images), PART):
        part = range(start, min(start + PART, len(images)))
        names.update(os.fsencode("\0".join([here, *map(images.name, part)])))
    folder = args.cache_dir or os.path.join(os.path.dirname(kept_in()[0]), "images")
    name = f"{names.hexdigest()[:24]}-{_state(images)}.pixels"
    return os.path.join(folder, name), box


def _make_if_absent(images: Images, path: str, box: Box, num_threads: int) -> None:
    folder = os.path.dirname(path)
    if _places(path) is not None:
        return
    try:
        before = _state(images)
        with _locked(folder):
            if _places(path) is None:  # another run has not made it meanwhile
                _make(images, path, box, num_threads)
        if _state(images) != before:
            os.unlink(path)
            raise UsageError("--cache_images: files changed while they were cached: start anew")
    except OSError as error:
        raise UsageError(
            f"--cache_dir {folder} cannot be used ({error.strerror}): name a folder on a disk of "
            "this machine"
        ) from None


def cached_box(args, crop_share: float, min_crop: float) -> Box:
    """The height and width that cached images cover.

    Raises:
        UsageError: --cache_images is smaller than what the evaluation resizes to.
    """
    size = image_size(args.input_size, 1)
    box = tuple(int(side / crop_share) for side in size)
    if min_crop >= 1:
        return box
    if args.cache_images:
        if args.cache_images < max(box):
            raise UsageError(
                f"--cache_images {args.cache_images} is less than the {max(box)} pixels to which "
                "an evaluation resizes: use at least those"
            )
        return args.cache_images, args.cache_images
    needed = [math.ceil(side * math.sqrt(RATIO / min_crop)) for side in size]
    return max(box[0], needed[0]), max(box[1], needed[1])


def reduced(image: Tensor, box: Box) -> Tensor:
    """An image [C, H, W] as it is cached: resized as an evaluation does, but never enlarged."""
    height, width = image.shape[1:]
    size = covering(height, width, box)
    is_larger = size[0] < height and size[1] < width
    # Of an elongated one an evaluation resizes a part only: it stays as it is.
    is_elongated = size[0] * size[1] > ELONGATED * box[0] * box[1]
    return resize(image, size) if is_larger and not is_elongated else image


def _state(images: Images) -> str:
    """A digest of the times and sizes of the images' files."""
    paths = list(dict.fromkeys(p for i in range(len(images)) for p in images.files(i)))
    parts = [paths[start : start + PART] for start in range(0, len(paths), PART)]
    digest = hashlib.sha256()
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        for found in threads.map(lambda part: [stamp(path) for path in part], parts):
            digest.update(json.dumps([(modified, size) for modified, _, size, _ in found]).encode())
    return digest.hexdigest()[:16]


# --------------------------------------------------------------------------------------- the file


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """One run at a time makes a cache in a folder; the others wait for it."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for part in glob.glob(os.path.join(glob.escape(folder), "*.part")):
            os.unlink(part)  # of a run that was killed
        yield


def _make(images: Images, path: str, box: Box, num_threads: int) -> None:
    """Write a cache; those of the same images as they were before are removed."""
    folder, name = os.path.split(path)
    for old in glob.glob(os.path.join(glob.escape(folder), f"{name.split('-')[0]}-*.pixels")):
        os.unlink(old)  # who has mapped it goes on with it
    _check_room(images, folder, box)
    part = f"{path}.part"
    try:
        with open(part, "wb") as file:
            _write(file, images, box, num_threads)
        os.replace(part, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(
                images, folder, f"its disk, or your quota, is full: {error.strerror}"
            ) from None
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


def _write(file, images: Images, box: Box, num_threads: int) -> None:
    places, place = np.zeros((len(images), 5), np.int64), 0
    line = ProgressLine("caching images", len(images))
    with ThreadPoolExecutor(num_threads) as threads:
        step = CHUNK * num_threads
        for start in range(0, len(images), step):
            ids = range(start, min(start + step, len(images)))
            for index, image in zip(ids, threads.map(_read(images, box), ids), strict=True):
                if image is not None:
                    places[index] = place, *image.shape, image.itemsize
                    file.write(image.numpy())
                    place += image.nbytes
            is_told = start // step % 100 == 0
            line.update(ids.stop, f"{place / 2**30:.2f} GiB" if is_told else None)
    line.close()
    file.write(places.tobytes())
    file.write(TRAILER.pack(len(images), place, zlib.crc32(places.tobytes()), MAGIC))
    file.flush()
    os.fsync(file.fileno())


def _read(images: Images, box: Box):
    """index -> the image as it is cached; None where it cannot be read: the loader will say so."""

    def read(index: int) -> Tensor | None:
        try:
            return reduced(images.read(index), box).contiguous()
        except UsageError:
            raise
        except Exception:  # whatever a decoder makes of a damaged file
            return None

    return read


def _places(path: str) -> np.ndarray | None:
    """Where the images of a cache lie, [n, 5]: offset, channels, height, width, bytes of a number.

    None where there is no whole one.
    """
    try:
        with open(path, "rb") as file:
            end = file.seek(-TRAILER.size, os.SEEK_END)
            count, size, sum_, magic = TRAILER.unpack(file.read())
            if magic != MAGIC or end != size + count * 40:
                return None
            file.seek(size)
            raw = file.read(count * 40)
    except (OSError, struct.error):
        return None
    return np.frombuffer(raw, np.int64).reshape(-1, 5) if zlib.crc32(raw) == sum_ else None


def _check_room(images: Images, folder: str, box: Box) -> None:
    """Estimate the room for all by some; raises UsageError where the disk has less."""
    ids = np.unique(np.linspace(0, len(images) - 1, LOOKED_AT).astype(int)).tolist()
    found = [image.nbytes for image in map(_read(images, box), ids) if image is not None]
    needed = sum(found) / max(1, len(found)) * len(images)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise _no_room(images, folder, f"{free / 2**30:.2f} GiB are free, {needed / 2**30:.2f} "
                       "are needed")  # fmt: skip


def _no_room(images: Images, folder: str, why: str) -> UsageError:
    return UsageError(
        f"--cache_images: no room for {len(images)} images in {folder} ({why}): name another disk "
        "with --cache_dir, or fewer pixels, --cache_images PX"
    )
