"""Debian's Open Clip Art drawings as small images, split so that no series is on both sides.

The package has 6900 drawings in 22 folders; a link lists a drawing in a second folder. Many are of
a series (stars of n points, playing cards, flags, icons of one theme): a random draw would test on
what was trained on. So drawings that look alike or whose names differ by a number alone form a
group, and a group lies on one side.
"""

import hashlib
import logging
import os
import re
import tempfile
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from util.data.file_index import find_images
from util.data.images import convert
from util.errors import UsageError

log = logging.getLogger(__name__)

DEBIAN_FOLDER = "/usr/share/openclipart/png"
SIZE = 32  # pixels, of the square into which a drawing is fitted
MAX_PIXELS = 2**24  # larger ones, 17 of the package's, are left out: they take gigabytes to decode
MIN_LISTED = 140  # drawings, links included, of a folder that is a class
MIN_FINE = 10  # drawings on each side of a folder within such a one that is a finer class
NO_CLASSES = ("unsorted", f"computer{os.sep}icons")  # the latter are of a style, not of a thing
# Of grey images at half the size: correlation, and a difference of grey values (0 to 255) for the
# nearly uniform ones.
MIN_CORRELATION, MAX_DIFFERENCE = 0.9, 5.0
MAX_TESTED_GROUP = 8  # larger groups are for training
MAX_OF_GROUP = 32  # drawings for training; there are 1378 stars
TEST_SHARE = 0.65  # of the groups that are small enough


@dataclass
class Drawings:
    """images [n, 32, 32, 3] uint8, names [n] below the folder, the folders [n] that hold all
    listings of a drawing, targets [n] (−1: none or several), and classes, the folders' names."""

    images: np.ndarray
    names: np.ndarray
    folders: np.ndarray
    targets: np.ndarray
    classes: list[str]

    def at(self, ids: np.ndarray) -> "Drawings":
        arrays = (self.images, self.names, self.folders, self.targets)
        return Drawings(*(array[ids] for array in arrays), self.classes)


def load_drawings(split: str, data_path: str, is_fine: bool = False) -> Drawings:
    """The drawings of a split: `pretrain` is `train` and what has no class or several.

    Args:
        data_path: a folder CLASS/.../DRAWING; empty: where Debian's package has it.
        is_fine: with the folders within those of the classes as classes, of the same split.

    Raises:
        UsageError: a folder without drawings, in which none can be read, or without finer classes.
    """
    folder = data_path or DEBIAN_FOLDER
    if not os.path.isdir(folder):
        raise UsageError(
            f"--dataset openclipart: no folder {folder}: apt install openclipart-png, or name one "
            "that has its folders of drawings with --data_path"
        )
    listed = [name for name in find_images(folder, is_told=False) if os.sep in name]
    if not listed:
        raise UsageError(
            f"--data_path {folder} has no CLASS/DRAWING: name the folder `png` of Debian's "
            "openclipart-png"
        )
    images, names = _small_images(folder, listed)
    drawings = _labelled(images, names, listed)
    part = split_of(drawings, series(drawings))
    if is_fine:
        drawings = _finer(drawings, part)
    if split == "pretrain":
        return drawings.at(part == "train")
    return drawings.at((part == split) & (drawings.targets >= 0))


# ------------------------------------------------------------------------------- decoding, kept


def _small_images(folder: str, listed: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """What can be read of the listed files, [n, 32, 32, 3], and their names.

    Decoding takes a minute, so it is kept in the user's cache folder, under the listing's digest.
    """
    digest = hashlib.sha256(repr((SIZE, MAX_PIXELS)).encode())
    for name in listed:
        found = os.stat(os.path.join(folder, name))
        digest.update(f"{name}\0{found.st_size}\0{found.st_mtime_ns}\0".encode(errors="replace"))
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = os.path.join(cache, "mimae", f"openclipart-{digest.hexdigest()[:16]}.npz")
    try:
        with np.load(path, allow_pickle=False) as kept:
            return kept["images"], kept["names"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        pass  # none, or a damaged one
    log.info("decoding %d drawings below %s, once: they are kept in %s", len(listed), folder, path)
    images, names = _decode(folder, listed)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(path), delete=False) as file:
            np.savez_compressed(file, images=images, names=names)
        os.replace(file.name, path)
    except OSError as error:
        log.warning("%s cannot be kept (%s): the next run decodes again", path, error.strerror)
    return images, names


def _decode(folder: str, listed: list[str]) -> tuple[np.ndarray, np.ndarray]:
    of_file: dict[str, np.ndarray | None] = {}  # a link costs nothing
    for name in listed:
        real = os.path.realpath(os.path.join(folder, name))
        if real not in of_file:
            of_file[real] = fitted(real)
        if of_file[real] is None:
            log.info("left out: %s", name)
    found = [(of_file[os.path.realpath(os.path.join(folder, name))], name) for name in listed]
    found = [(image, name) for image, name in found if image is not None]
    if not found:
        raise UsageError(f"--data_path {folder}: none of {len(listed)} drawings can be read")
    return np.stack([image for image, _ in found]), np.array([name for _, name in found])


def fitted(path: str) -> np.ndarray | None:
    """A drawing on white, padded to a square with white and resized: [32, 32, 3] uint8; None for
    one that is too large or cannot be read."""
    try:
        with Image.open(path) as file:
            if file.width * file.height > MAX_PIXELS:
                return None
            image = convert(file, 3, path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    side = max(image.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((SIZE, SIZE), Image.Resampling.LANCZOS, reducing_gap=3.0))


# ------------------------------------------------------------------------------ labels and series


def _labelled(images: np.ndarray, names: np.ndarray, listed: list[str]) -> Drawings:
    """Each drawing once, under its first name, with the class of its folder.

    A class is a folder that lists MIN_LISTED drawings; a drawing that several folders list has
    none.
    """
    tops, counts = np.unique([name.split(os.sep)[0] for name in listed], return_counts=True)
    classes = [
        str(top)
        for top, count in zip(tops, counts, strict=True)
        if count >= MIN_LISTED and top not in NO_CLASSES
    ]
    same: dict[bytes, list[int]] = {}
    for index, image in enumerate(images):
        same.setdefault(image.tobytes(), []).append(index)
    ids = np.array([first for first, *_ in same.values()])
    folders = np.array(
        [os.path.commonpath([os.path.dirname(names[i]) for i in found]) for found in same.values()]
    )
    return Drawings(images[ids], names[ids], folders, _targets(folders, 1, classes), classes)


def _targets(folders: np.ndarray, depth: int, classes: list[str]) -> np.ndarray:
    """Which of the classes, folders of that depth, each drawing lies in, [n]; −1: in none."""
    numbers = {label: number for number, label in enumerate(classes)}
    return np.array([numbers.get(_top(folder, depth), -1) for folder in folders])


def _top(folder: str, depth: int) -> str:
    return os.sep.join(str(folder).split(os.sep)[:depth])


def _finer(drawings: Drawings, part: np.ndarray) -> Drawings:
    """The same drawings; a class is a folder within a class that has MIN_FINE of either side."""
    tops = np.array([_top(folder, 2) for folder in drawings.folders])
    counts = [Counter(tops[part == side]) for side in ("train", "val")]
    classes = [
        str(top)
        for top in np.unique(tops)
        if os.sep in top and top not in NO_CLASSES and min(c[top] for c in counts) >= MIN_FINE
    ]
    if not classes:
        raise UsageError(
            f"--dataset openclipart_fine: no folder within a class has {MIN_FINE} drawings on each "
            "side of the split: use --dataset openclipart"
        )
    return replace(drawings, targets=_targets(tops, 2, classes), classes=classes)


def series(drawings: Drawings) -> np.ndarray:
    """The group of each drawing, [n]: those that a chain of likenesses joins.

    Two are alike if their grey images nearly are, up to contrast, brightness and a flip, or if
    their names in one folder are the same but for numbers.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    grey = drawings.images @ np.array([0.299, 0.587, 0.114], np.float32)  # [n, 32, 32]
    count, half = len(grey), SIZE // 2
    grey = grey.reshape(count, half, 2, half, 2).mean((2, 4)).reshape(count, -1)
    centred = grey - grey.mean(1, keepdims=True)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-3)
    mirrored = centred.reshape(count, half, half)[:, :, ::-1].reshape(count, -1)
    squares = (grey**2).sum(1)
    pairs = []
    for start in range(0, count, 1024):
        rows = slice(start, start + 1024)
        distance = squares[rows, None] + squares - 2 * grey[rows] @ grey.T
        alike = np.maximum(centred[rows] @ centred.T, mirrored[rows] @ centred.T) > MIN_CORRELATION
        alike |= distance < MAX_DIFFERENCE**2 * grey.shape[1]
        pairs.append(np.argwhere(alike) + np.array([start, 0]))
    of_stem: dict[str, int] = {}
    stems = [of_stem.setdefault(_stem(str(name)), i) for i, name in enumerate(drawings.names)]
    pairs.append(np.stack([np.arange(count), stems], 1))
    rows, columns = np.concatenate(pairs).T
    graph = coo_matrix((np.ones(len(rows), bool), (rows, columns)), (count, count))
    return connected_components(graph, directed=False)[1]


def _stem(name: str) -> str:
    """A drawing's path without its numbers."""
    return re.sub(r"[\d_\-]+", "#", os.path.splitext(name)[0])


def split_of(drawings: Drawings, groups: np.ndarray) -> np.ndarray:
    """`train`, `val` or nothing (left out) for each drawing, [n].

    A group's side is a function of its first name; of one that is tested a single drawing is kept,
    of one for training MAX_OF_GROUP, so that no series counts for more.
    """
    part = np.full(len(groups), "", dtype="<U5")
    for group in range(int(groups.max()) + 1):
        ids = np.flatnonzero(groups == group)
        ids = ids[np.argsort([_draw(str(drawings.names[i])) for i in ids], kind="stable")]
        first = min(str(drawings.names[i]) for i in ids)
        labelled = ids[drawings.targets[ids] >= 0]
        is_small = len(labelled) > 0 and len(ids) <= MAX_TESTED_GROUP
        if is_small and _draw("split of " + first) < TEST_SHARE:
            part[labelled[:1]] = "val"
        else:
            part[ids[:MAX_OF_GROUP]] = "train"
    return part


def _draw(text: str) -> float:
    """A number in 0 … 1 that follows from a text alone."""
    return int.from_bytes(hashlib.sha256(text.encode(errors="replace")).digest()[:6], "big") / 2**48
