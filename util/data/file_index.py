"""All image files below a folder, listed by several threads: most of the time is the disk's."""

import logging
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from util.data.kept_index import Stamp, stamp
from util.errors import UsageError

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".webp", ".jp2", ".j2k", ".npy",
)  # fmt: skip
# Folders that archives, file servers and systems leave beside the data; hidden ones are, too.
JUNK_FOLDERS = {
    "__macosx", "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "lost+found",
    "$recycle.bin", "recycler", "system volume information", "thumbs", "thumbnails",
    "thumbs.db", "__pycache__", "network trash folder", "temporary items",
}  # fmt: skip
# How files begin that may have no suffix.
STARTS = (
    b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\x93NUMPY", b"P4", b"P5",
    b"P6", b"\0\0\0\x0cjP",
)  # fmt: skip
NUM_THREADS = 8
SHOWN = 4  # names, or suffixes, in a line

Identity = tuple[int, int]  # device and inode: the folder, by whatever path
Place = tuple[str, frozenset[Identity]]  # a folder, and those in which it lies


@dataclass
class Listing:
    """What lies below a folder, by paths relative to it.

    images: sorted. folders: those right below it, but for junk. junk: by name, how many folders
    are passed over. skipped: by suffix, how many files; `hidden` is one, too. made_of: the folders,
    and those files that may become images or folders without a change of theirs.
    """

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    junk: Counter = field(default_factory=Counter)
    skipped: Counter = field(default_factory=Counter)
    made_of: list[tuple[str, Stamp]] = field(default_factory=list)

    def empty(self) -> list[str]:
        """The folders right below it that hold no image."""
        return sorted(set(self.folders) - {path.split(os.sep)[0] for path in self.images})

    def passed_over(self) -> str:
        """What is not taken, in one line; empty: all is taken."""
        empty, parts = self.empty(), []
        if self.junk:
            parts.append(f"{count_of(self.junk.total(), 'junk folder')} ({_named(self.junk)})")
        if empty:
            names = ", ".join(empty[:SHOWN]) + ", …" * (len(empty) > SHOWN)
            parts.append(f"{count_of(len(empty), 'folder')} without an image ({names})")
        if self.skipped:
            parts.append(f"{count_of(self.skipped.total(), 'file')} ({_named(self.skipped)})")
        return ", ".join(parts)


def count_of(number: int, what: str) -> str:
    """A number of things: `1 image`, `2 images`."""
    return f"{number} {what}{'s' * (number != 1)}"


def _named(counts: Counter) -> str:
    shown = [f"{number} {name}" for name, number in counts.most_common(SHOWN)]
    return ", ".join(shown) + ", …" * (len(counts) > SHOWN)


def find_images(root: str, is_told: bool = True) -> list[str]:
    """All image files below a folder, sorted, as paths relative to it.

    Args:
        is_told: log in one line what is passed over.

    Raises:
        UsageError: a folder that cannot be read.
    """
    listing = list_folder(root)
    if is_told and (rest := listing.passed_over()):
        log.info("%s: %s; passed over: %s", root, count_of(len(listing.images), "image"), rest)
    return listing.images


def list_folder(root: str) -> Listing:
    """List what lies below a folder; raises UsageError for one that cannot be read."""
    found = Listing()
    level: list[Place] = [("", frozenset())]
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        while level:
            listed = list(threads.map(lambda folder: _list(root, *folder), level))
            level = [place for places, _ in listed for place in places]
            for _, part in listed:
                found.images += part.images
                found.junk += part.junk
                found.skipped += part.skipped
                found.made_of += part.made_of
            found.folders += [path for path, _ in level if os.sep not in path]
    found.images.sort()
    found.folders.sort()
    return found


def folders_with_images(root: str) -> list[str]:
    """The folders right below one that hold an image at any depth, sorted: its classes."""
    places, _ = _list(root, "", frozenset())
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        have = threads.map(lambda place: _holds_image(root, place), places)
        return sorted(path for (path, _), has in zip(places, have, strict=True) if has)


def _holds_image(root: str, place: Place) -> bool:
    """Whether a folder holds an image; ends at the first one."""
    folder = os.path.join(root, place[0])
    try:
        with os.scandir(folder) as entries:
            if any(map(_is_named_image, entries)):
                return True
    except OSError as error:
        raise _unreadable(folder, error) from None
    places, part = _list(root, *place)
    return bool(part.images) or any(_holds_image(root, inner) for inner in places)


def is_named_as_image(name: str) -> bool:
    """Whether a file's name ends as an image's does, and is not hidden."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _unreadable(folder: str, error: OSError) -> UsageError:
    return UsageError(
        f"the folder {folder} cannot be read ({error.strerror}): make it readable, or name one "
        "without it"
    )


def _list(root: str, relative: str, parents: frozenset[Identity]) -> tuple[list[Place], Listing]:
    """A folder's sub-folders, each with the folders in which it lies, and what else it holds.

    Empty for a link to a folder in which it lies.
    """
    folder = os.path.join(root, relative)
    prefix = f"{relative}{os.sep}" if relative else ""
    places: list[Place] = []
    found = Listing()
    try:
        found.made_of.append((relative, stamp(folder)))
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in parents:
            return [], found
        inside = parents | {identity}
        with os.scandir(folder) as entries:
            for entry in entries:
                kind = _kind(entry)
                # It may be filled, or lead somewhere else, while its folder stays as it is.
                if kind == "file" and ("." not in entry.name or entry.is_symlink()):
                    found.made_of.append((prefix + entry.name, stamp(entry.path)))
                if kind == "image":
                    found.images.append(prefix + entry.name)
                elif kind == "folder":
                    places.append((prefix + entry.name, inside))
                elif kind == "junk":
                    found.junk[entry.name] += 1
                else:
                    found.skipped[_suffix(entry.name)] += 1
    except OSError as error:
        raise _unreadable(folder, error) from None
    return places, found


def _kind(entry: os.DirEntry) -> str:
    """`image`, `folder`, `junk` (a folder to pass over) or `file`."""
    if _is_named_image(entry):
        return "image"
    try:
        is_folder = entry.is_dir()
    except OSError:  # a link to itself, or into a folder that is closed
        return "file"
    if is_folder:
        is_junk = entry.name.startswith(".") or entry.name.lower() in JUNK_FOLDERS
        return "junk" if is_junk else "folder"
    return "image" if _is_image_without_suffix(entry) else "file"


def _is_named_image(entry: os.DirEntry) -> bool:
    """Whether it ends as an image does, and is no folder; a link is not looked up, which spares a
    network disk a call for each image."""
    return is_named_as_image(entry.name) and not entry.is_dir(follow_symlinks=False)


def _suffix(name: str) -> str:
    if name.startswith("."):
        return "hidden"
    return os.path.splitext(name)[1].lower() or "without suffix"


def _is_image_without_suffix(entry: os.DirEntry) -> bool:
    """By its first bytes: many data sets name images by a number or a checksum alone."""
    if "." in entry.name or not entry.is_file():
        return False
    try:
        with open(entry.path, "rb") as file:
            start = file.read(12)
    except OSError:  # who may not read it will not miss it
        return False
    return start.startswith(STARTS) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")
