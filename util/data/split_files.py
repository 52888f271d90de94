"""The files that --data_path names by a pattern, a list or a folder, and those of a split."""

import glob
import itertools
import os
import re

from util.errors import UsageError

JOINED = "::"  # between patterns, as WebDataset has it
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
SPLITS = {"train": r"train(ing)?", "val": r"val(id|idation)?", "test": r"test(ing)?"}


def split_files(data_path: str, split: str, suffix: tuple[str, ...], deep: bool) -> list[str]:
    """The files of a split, in the order of a pattern, or sorted; none where there are none.

    A file is of the split that its name says (`train-0001.tar`, `imagenet1k-validation-07.tar`),
    or else the nearest folder's. Files that say nothing are of the training split. Those of a test
    split are `val` where there is no validation split: many sets publish it without labels.

    Args:
        data_path: files with {0000..0099}, {a,b} or wildcards, or folders, joined by `::`.
        split: `pretrain`, `train`, `val`, or `any`: all of them. suffix: of a folder's files. deep:
            those of folders in it, too.

    Raises:
        UsageError: files that there are not.
    """
    wanted = ("val", "test") if split == "val" else ("train",)
    named = named_files(data_path, suffix, deep)
    if split == "any":
        return named
    is_folder = os.path.isdir(data_path)
    roots = (data_path if is_folder else os.path.join(os.path.dirname(p), "..") for p in named)
    of = [_split_of(path, root) for path, root in zip(named, roots, strict=True)]
    found = next((one for one in wanted if one in of), None)
    return [path for path, own in zip(named, of, strict=True) if own == found]


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
    if not data_path:
        raise UsageError(f"--data_path is missing: name {' or '.join(suffix)} files, or a folder")
    if os.path.isdir(data_path):
        levels = os.walk(data_path, followlinks=True)
        levels = levels if deep else itertools.islice(levels, 1)
        found = [os.path.join(folder, name) for folder, _, names in levels for name in names
                 if name.lower().endswith(suffix) and not name.startswith(".")]  # fmt: skip
        if not found:
            raise UsageError(f"--data_path {data_path} has no {' or '.join(suffix)} file")
        return sorted(found)
    found, absent = [], []
    for pattern in data_path.split(JOINED):
        for path in _expanded(os.path.expanduser(pattern)):
            if os.path.isfile(path):
                found.append(path)
            elif os.path.isdir(path):
                found += named_files(path, suffix, deep)
            elif matches := sorted(glob.glob(path)):
                found += matches
            else:
                absent.append(path)
    if absent:
        raise UsageError(
            f"--data_path {data_path}: there is no {absent[0]} ({len(absent)} of "
            f"{len(absent) + len(found)} files are missing): name files on a disk"
        )
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
    """The split that a file's name says, or else the nearest folder's, below a root."""
    *folders, name = os.path.relpath(path, root).lower().split(os.sep)
    said = [s for s, words in SPLITS.items() if re.search(rf"(?<![a-z])({words})(?![a-z])", name)]
    if said and (len(said) == 1 or "train" not in said):
        return said[0]
    for folder in reversed(folders):
        for split, words in SPLITS.items():
            if re.fullmatch(words, folder):
                return split
    return "train"
