"""Labels as files have them, words or numbers, as places in a list of classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from util.data.kept_index import Index
from util.errors import UsageError

MOST = 1_000_000  # classes: more of them are another kind of number


@dataclass(frozen=True)
class Labels:
    """Which of the `words` each image has: `places` [n], -1 where it has none.

    numbered: the words are the classes' numbers. names: of those, where they are known.
    """

    words: Sequence[str]
    places: np.ndarray
    numbered: bool
    names: Mapping[str, str]


def labels_in(index: Index) -> Labels:
    """The labels that an index of images keeps."""
    header = index.header
    return Labels(header["words"], index.arrays["words"], header["numbered"], header["names"])


def one_to_one(pairs: set[tuple[str, str]]) -> dict[str, str]:
    """The pairs (number, name) as a table; empty where a number has two names, or a name two."""
    table = dict(pairs)
    is_good = len(table) == len(set(table.values())) == len(pairs)
    return table if is_good else {}


def classes_of(labels: Labels, where: str) -> list[str]:
    """The classes of a training set, each at the place that is its number.

    Raises:
        UsageError: numbers that are none of classes.
    """
    if not labels.numbered:
        return sorted(labels.words)
    count = max((int(word) for word in labels.words), default=-1) + 1
    if count > MOST:
        raise UsageError(
            f"--data_path {where} has the label {count - 1}: labels are a class's name, or its "
            "number from 0 on"
        )
    return [labels.names.get(str(number), str(number)) for number in range(count)]


def targets_of(labels: Labels, classes: Sequence[str], where: str) -> np.ndarray:
    """The images' classes [n] int64, -1 where they have none.

    Args:
        classes: of the training set.

    Raises:
        UsageError: labels that are none of the classes.
    """
    if labels.numbered:
        number = {word: int(word) for word in labels.words if int(word) < len(classes)}
    else:
        place = {name: number for number, name in enumerate(classes)}
        number = {word: place[word] for word in labels.words if word in place}
    unknown = sorted(set(labels.words) - set(number))
    if unknown:
        raise UsageError(
            f"--data_path {where} has {len(unknown)} labels that the training set lacks "
            f"({', '.join(unknown[:3])}): both need the same classes"
        )
    table = np.array([*(number[word] for word in labels.words), -1], dtype=np.int64)
    return table[labels.places]


def check_labelled(targets: np.ndarray, names, split: str, where: str) -> None:
    """Refuse images without a label where they are needed. Args: names: index -> image's name."""
    absent = np.flatnonzero(targets < 0)
    if len(absent) and split in ("train", "val"):
        raise UsageError(
            f"--data_path {where}: {len(absent)} of {len(targets)} images have no label (the first "
            f"is {names(int(absent[0]))}): they can be pre-trained on alone"
        )
