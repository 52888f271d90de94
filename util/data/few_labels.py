"""Few labels: which images keep theirs, and which of those are held out for choosing a setting.

Draws are balanced: each class gives its share. Draw d of an amount is always the same, whatever the
seed of the run that trains on it, and what is drawn for a smaller amount is part of a larger one.
"""

from collections.abc import Sequence

import numpy as np
import torch

from util.errors import UsageError
from util.randomness import STREAM_SUBSET, generator


def balanced_draw(targets: np.ndarray, amount: int | float, draw: int = 0) -> np.ndarray:
    """Draw the same number or share of images from every class; their ids, sorted.

    Args:
        targets: labels [n].
        amount: images of each class (an int), or a share of them (a float; one at least).
        draw: the draw's number; each draws other images.

    Raises:
        UsageError: a class with fewer images than asked for.
    """
    drawn = []
    for target, ids in _by_class(targets):
        count = max(1, round(amount * len(ids))) if isinstance(amount, float) else amount
        if count > len(ids):
            raise UsageError(
                f"class {target} has {len(ids)} images, fewer than {count}: lower --few"
            )
        counters = (int(target), draw) if draw else (int(target),)
        order = torch.randperm(len(ids), generator=generator(STREAM_SUBSET, *counters)).numpy()
        drawn.append(ids[order[:count]])
    return np.sort(np.concatenate(drawn))


def _by_class(targets: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Each class of labels [n] with the ids of its images, sorted; one sort for all of them."""
    order = np.argsort(targets, kind="stable")
    classes, starts = np.unique(targets[order], return_index=True)
    parts = np.split(order, starts[1:])
    return list(zip(classes.tolist(), parts, strict=True)) if len(targets) else []


def check_few(targets: np.ndarray, classes: Sequence[str], amounts: Sequence[int]) -> None:
    """Check before anything is computed that each class has as many images as --few asks for.

    Args:
        targets: labels [n]. classes: their names. amounts: images of each class.

    Raises:
        UsageError: one has fewer; the line names it.
    """
    counts = np.bincount(targets, minlength=len(classes))
    for amount in sorted(amounts):
        short = [number for number, count in enumerate(counts) if 0 < count < amount]
        if short:
            count = int(counts[short[0]])
            others = f" (and {len(short) - 1} more)" if len(short) > 1 else ""
            raise UsageError(
                f"class {classes[short[0]]} has {count} image{'s' * (count != 1)}{others}, fewer "
                f"than {amount}: lower --few, or leave few out of --only"
            )


def held_out(targets: np.ndarray, share: float = 0.1) -> np.ndarray:
    """Hold out a share of each class: True for its images, [n]; the same ones every time.

    At least one image of a class is held out, unless it has one only.

    Raises:
        UsageError: no class has two images.
    """
    is_held = np.zeros(len(targets), dtype=bool)
    order_of = torch.Generator().manual_seed(0)
    for _, ids in _by_class(targets):
        count = min(max(1, int(share * len(ids) + 1e-6)), len(ids) - 1)  # 0.1 · 290 is 28.99…
        is_held[ids[torch.randperm(len(ids), generator=order_of).numpy()[:count]]] = True
    if not is_held.any():
        raise UsageError("no class has two labelled images: one to hold out, one to train on")
    return is_held
