"""The files that --data_path names by a pattern, a list or a folder, and those of a split."""

import glob
import logging
import os
import re

from util.data.file_index import JUNK_FOLDERS
from util.errors import UsageError

log = logging.getLogger(__name__)

JOINED = "::"  # between patterns, as WebDataset has it
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
SPLITS = {"train": r"train(ing)?", "val": r"val(id|idation)?", "test": r"test(ing)?"}


def split_files(data_path: str, split: str, suffix: tuple[str, ...], deep: bool) -> list[str]:
    """The files of a split, in the order of a pattern, or sorted; none where there are none.

    A file is of the split that its name says (`train-0001.tar`, `imagenet1k-validation-07.tar`),
    or else the nearest folder's. Files that say nothing are of the training split where none says
    so, else of no split. Those of a test split are `val` where there is no validation split: many
    sets publish it without labels.

    Args:
        data_path: files with {0000..0099}, {a,b} or wildcards, or folders, joined by `::`.
        split: `pretrain`, `train`, `val`, or `any`: all of them. suffix: of a folder's files. deep:
            those of folders in it, too.

    Raises:
        UsageError: files that there are not.
    """
    wanted = ("val", "test") if split == "val" else ("train",)
    roots = _named(data_path, suffix, deep)
    named = list(roots)
    if split == "any":
        return named
    of = [_split_of(path, root) for path, root in roots.items()]
    unsaid = [path for path, own in zip(named, of, strict=True) if not own]
    if "train" not in of:
        of = [own or "train" for own in of]
    elif unsaid and split != "val":
        log.warning(
            "--data_path: %d files are of no split by their names, and left out, as %s",
            len(unsaid), unsaid[0],
        )  # fmt: skip
    found = next((one for one in wanted if one in of), None)
    return [path for path, own in zip(named, of, strict=True) if own and own == found]


def needed_files(
    data_path: str, split: str, suffix: tuple[str, ...], deep: bool = True
) -> list[str]:
    """`split_files`, of which there has to be one."""
    found = split_files(data_path, split, suffix, deep)
    if not found:
        word = "val" if split == "val" else "train"
        raise UsageError(
            f"--data_path {data_path} names no {' or '.join(suffix)} file of the {word} split: its "
            f"name should say {word}, as {word}-0000{suffix[0]}; join several patterns by "
            f"{JOINED}"
        )
    return found


def named_files(data_path: str, suffix: tuple[str, ...], deep: bool) -> list[str]:
    """All files that a pattern or folders name; as `split_files`, of whichever split."""
    return list(_named(data_path, suffix, deep))


def _named(data_path: str, suffix: tuple[str, ...], deep: bool) -> dict[str, str]:
    """Those files, each once, with the folder below which their paths may say a split."""
    if not data_path:
        raise UsageError(f"--data_path is missing: name {' or '.join(suffix)} files, or a folder")
    if os.path.isdir(data_path):
        below = sorted(_below(data_path, suffix, deep, frozenset()))
        if not below:
            raise UsageError(f"--data_path {data_path} has no {' or '.join(suffix)} file")
        return dict.fromkeys(below, data_path)
    found: dict[str, str] = {}
    absent = []
    for pattern in data_path.split(JOINED):
        for path in _expanded(os.path.expanduser(pattern)):
            if os.path.isdir(path):
                roots = dict.fromkeys(_named(path, suffix, deep), os.path.join(path, ".."))
            else:
                matches = [path] if os.path.isfile(path) else sorted(glob.glob(path))
                roots = {one: os.path.join(os.path.dirname(one), "..") for one in matches}
            absent += [] if roots else [path]
            for one, root in roots.items():  # patterns may overlap
                found.setdefault(one, root)
    if absent:
        raise UsageError(
            f"--data_path {data_path}: there is no {absent[0]} ({len(absent)} of "
            f"{len(absent) + len(found)} files are missing): name files on a disk"
        )
    common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in found])
    if all(_split_of(path, common) for path in found):  # {train,val}/as/deep/as/they/lie
        return dict.fromkeys(found, common)
    return found


def _below(
    folder: str, suffix: tuple[str, ...], deep: bool, parents: frozenset[tuple[int, int]]
) -> list[str]:
    """A folder's files, and those of folders in it, but of a link to one in which it lies.

    Args:
        parents: device and number of the folders in which it lies.
    """
    found: list[str] = []
    try:
        status = os.stat(folder)
        inside = parents | {(status.st_dev, status.st_ino)}
        with os.scandir(folder) as entries:
            listed = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        if parents:
            log.warning("%s cannot be read (%s): passed over", folder, error.strerror)
            return []
        raise UsageError(f"--data_path: {folder} cannot be read ({error.strerror})") from None
    if len(inside) == len(parents):
        return []
    for entry in listed:
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link to itself
            is_folder = False
        if not is_folder:
            found += [entry.path] * entry.name.lower().endswith(suffix)
        elif deep and entry.name.lower() not in JUNK_FOLDERS:
            found += _below(entry.path, suffix, deep, inside)
    return found


def _expanded(pattern: str) -> list[str]:
    """`a{0..2}` -> a0, a1, a2; `{x,y}` -> x, y."""
    braces = BRACES.search(pattern)
    if braces is None:
        return [pattern]
    ends = RANGE.fullmatch(braces[1])
    if ends:
        first, last = int(ends[1]), int(ends[2])
        words = [f"{n:0{len(ends[1])}d}" for n in range(first, last + 1)]
    else:
        words = braces[1].split(",")
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [path for word in words for path in _expanded(before + word + after)]


def _split_of(path: str, root: str) -> str:
    """The split that a file's name says, or else the nearest folder's, below a root; empty: none
    does."""
    *folders, name = os.path.relpath(path, root).lower().split(os.sep)
    said = [s for s, words in SPLITS.items() if re.search(rf"(?<![a-z])({words})(?![a-z])", name)]
    if said and (len(said) == 1 or "train" not in said):
        return said[0]
    for folder in reversed(folders):
        for split, words in SPLITS.items():
            if re.fullmatch(words, folder):
                return split
    return ""
