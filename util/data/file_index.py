"""All image files below a folder, listed by several threads: most of the time is the disk's."""

import os
from concurrent.futures import ThreadPoolExecutor

from util.errors import UsageError

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".npy",
)  # fmt: skip
NUM_THREADS = 8

Identity = tuple[int, int]  # device and inode: the folder, by whatever path


def find_images(root: str) -> list[str]:
    """All image files below a folder, sorted, as paths relative to it.

    Raises:
        UsageError: a folder that cannot be read.
    """
    images: list[str] = []
    level: list[tuple[str, frozenset[Identity]]] = [("", frozenset())]
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        while level:
            listed = threads.map(lambda folder: _list(root, *folder), level)
            level = []
            for folders, names in listed:
                level += folders
                images += names
    return sorted(images)


def _list(
    root: str, relative: str, parents: frozenset[Identity]
) -> tuple[list[tuple[str, frozenset[Identity]]], list[str]]:
    """A folder's sub-folders, each with the folders in which it lies, and its images.

    Empty for a link to a folder in which it lies.
    """
    folder = os.path.join(root, relative)
    prefix = f"{relative}{os.sep}" if relative else ""
    folders, images = [], []
    try:
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in parents:
            return [], []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                # The suffix comes first: it spares a network disk one look-up per image.
                if entry.name.lower().endswith(IMAGE_SUFFIXES):
                    images.append(prefix + entry.name)
                elif entry.is_dir():
                    folders.append((prefix + entry.name, parents | {identity}))
    except OSError as error:
        raise UsageError(f"--data_path: {folder} cannot be read ({error.strerror})") from None
    return folders, images
