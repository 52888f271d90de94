"""All image files below a folder; of a large one the list is kept, so that the next start is quick.

A folder's change time and inode tell whether its list still holds: one look-up for each folder,
where listing reads an entry for each image, in every process of every start.
"""

import contextlib
import hashlib
import json
import logging
import os
import time

from util.errors import UsageError

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".npy",
)  # fmt: skip
MIN_IMAGES = 10_000  # shorter lists are not kept
SETTLED_NS = 10 * 10**9  # within a clock's tick of being read, a folder may change unseen

log = logging.getLogger(__name__)

# Path relative to the root -> [change time in ns, inode, sub-folders, image names].
Index = dict[str, list]


def find_images(root: str) -> list[str]:
    """All image files below a folder, sorted, as paths relative to it."""
    path = index_path(root)
    known = _read(path)
    index: Index = {}  # what may be kept
    images: list[str] = []
    settled = time.time_ns() - SETTLED_NS
    pending: list[tuple[str, frozenset]] = [("", frozenset())]
    while pending:
        relative, parents = pending.pop()
        folder = os.path.join(root, relative)
        try:
            status = os.stat(folder)
            entry, may_be_kept = known.get(relative), True
            if entry is None or entry[:2] != [status.st_ctime_ns, status.st_ino]:
                folders, names, has_links = _list(folder)
                entry = [status.st_ctime_ns, status.st_ino, folders, names]
                may_be_kept = status.st_ctime_ns < settled and not has_links
        except OSError as error:
            raise UsageError(f"--data_path: {folder} cannot be read ({error.strerror})") from None
        identity = (status.st_dev, status.st_ino)
        if identity in parents:
            continue  # a link to a folder in which it lies
        if may_be_kept:
            index[relative] = entry
        prefix = f"{relative}{os.sep}" if relative else ""
        pending += [(prefix + name, parents | {identity}) for name in entry[2]]
        images += [prefix + name for name in entry[3]]
    if len(images) >= MIN_IMAGES and index != known:
        _write(path, index)
    return sorted(images)


def index_path(root: str) -> str:
    """Where the list of a folder's images is kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
    return os.path.join(cache, "mimae", f"images-{name}.json")


def _list(folder: str) -> tuple[list[str], list[str], bool]:
    """Names of a folder's sub-folders and images; and whether links lead to other folders.

    What a link leads to can come and go without a trace in the folder.
    """
    folders, images, has_links = [], [], False
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            # The suffix comes first: it spares a network disk one look-up per image.
            if entry.name.lower().endswith(IMAGE_SUFFIXES):
                images.append(entry.name)
                continue
            has_links = has_links or entry.is_symlink()
            if entry.is_dir():
                folders.append(entry.name)
    return folders, images, has_links


def _read(path: str) -> Index:
    """A kept list; empty where there is none yet, or a damaged one."""
    try:
        with open(path) as file:
            index = json.load(file)
        whole = all(list(map(type, entry)) == [int, int, list, list] for entry in index.values())
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
    return index if whole else {}


def _write(path: str, index: Index) -> None:
    temporary = f"{path}.{os.uname().nodename}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(temporary, "w") as file:
            json.dump(index, file)
        os.replace(temporary, path)
    except OSError as error:
        log.info("the list of images is not kept (%s)", error)
        with contextlib.suppress(OSError):
            os.unlink(temporary)
