"""All ranks must see the same data: they take positions in one order of the images."""

import zlib

import numpy as np

from util.cluster import agreement, distributed
from util.errors import UsageError


def check_same(
    targets: np.ndarray, classes: list[str], what: str, given: str = "--data_path"
) -> None:
    """Check that all ranks have the same number of images, class list and labels.

    Args:
        targets: [images]. what: what the error calls the data.
        given: the flags, or what else, that the error tells the user to make the same.

    Raises:
        UsageError: on all ranks; the line says what differs, and on which ranks.
    """
    if not distributed.is_distributed():
        return
    sums = (
        zlib.crc32("\0".join(classes).encode(errors="surrogateescape")),
        zlib.crc32(np.ascontiguousarray(targets)),
    )
    facts = agreement.gather((len(targets), len(classes), *sums))
    counts, class_counts, class_sums, label_sums = zip(*facts, strict=True)
    if len(set(counts)) > 1:
        found = _listed(counts, "images")
    elif len(set(class_counts)) > 1:
        found = f"{_listed(class_counts, 'classes')} ({_first_difference(classes)})"
    elif len(set(class_sums)) > 1:
        found = f"other classes: {_first_difference(classes)}"
    elif len(set(label_sums)) > 1:
        found = f"other labels, or another order: {_listed([f'{s:08x}' for s in label_sums], '')}"
    else:
        return
    raise UsageError(f"the ranks see different {what}: {found}; give all of them the same {given}")


def _listed(values, noun: str) -> str:
    return ", ".join(
        f"{value} {noun}".strip() + f" on {who}" for value, who in agreement.groups(values).items()
    )


def _first_difference(classes: list[str]) -> str:
    """For all ranks: the first class that another list than rank 0's has in its place."""
    lists = agreement.gather(classes)
    rank = next(r for r, other in enumerate(lists) if other != lists[0])
    pairs = zip([*lists[0], "none"], [*lists[rank], "none"], strict=False)
    number, (own, other) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    return f"class {number} is {own!r} on rank 0 and {other!r} on rank {rank}"
