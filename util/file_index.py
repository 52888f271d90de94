"""All image files below a folder; of a large one the list is kept, so that the next start is quick.

ImageNet on a network disk takes a minute to list, in every process of every start. A folder's
modification time tells whether its list has changed, which is one look-up for each folder instead
of one entry for each image.
"""

import hashlib
import json
import logging
import os
import time

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".npy",
)  # fmt: skip
MIN_IMAGES = 10_000  # shorter lists are not kept
SETTLED_NS = 10 * 10**9  # a folder that changed less than this before it was read may change again

log = logging.getLogger(__name__)

# Path relative to the root -> [modification time in ns, sub-folders, image names].
Index = dict[str, list]


def find_images(root: str) -> list[str]:
    """All image files below a folder, sorted, as paths relative to it."""
    path = index_path(root)
    known = _read(path)
    index: Index = {}
    pending = [""]
    while pending:
        relative = pending.pop()
        folder = os.path.join(root, relative)
        changed = os.stat(folder).st_mtime_ns
        if relative not in known or known[relative][0] != changed:
            index[relative] = [changed, *_list(folder)]
        else:
            index[relative] = known[relative]
        pending += [os.path.join(relative, name) for name in index[relative][1]]
    images = [
        os.path.join(folder, name) for folder, (_, _, names) in index.items() for name in names
    ]
    if len(images) >= MIN_IMAGES and index != known:
        _write(path, {k: v for k, v in index.items() if v[0] < time.time_ns() - SETTLED_NS})
    return sorted(images)


def index_path(root: str) -> str:
    """Where the list of a folder's images is kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
    return os.path.join(cache, "mimae", f"images-{name}.json")


def _list(folder: str) -> tuple[list[str], list[str]]:
    """Names of a folder's sub-folders and images."""
    folders, images = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            # The suffix comes first: it spares a network disk one look-up per image.
            if entry.name.lower().endswith(IMAGE_SUFFIXES):
                images.append(entry.name)
            elif entry.is_dir():
                folders.append(entry.name)
    return folders, images


def _read(path: str) -> Index:
    try:
        with open(path) as file:
            index = json.load(file)
        return index if all(len(entry) == 3 for entry in index.values()) else {}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # none yet, or damaged


def _write(path: str, index: Index) -> None:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{os.uname().nodename}.{os.getpid()}"
        with open(temporary, "w") as file:
            json.dump(index, file)
        os.replace(temporary, path)
    except OSError as error:
        log.info("the list of images is not kept (%s)", error)
