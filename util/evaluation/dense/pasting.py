"""Masks of m x m probabilities in their boxes -> the image's pixels, and their run lengths.

A pixel takes the bilinear value at its centre: cell i of a mask has its centre at (i + 1/2) / m of
the box, and beyond the outermost centres the value falls to zero, as `grid_sample` without aligned
corners has it. So nothing outside of a box reaches 1/2, and only the pixels inside are computed.
A mask's memory is that of a strip of its box, however large the image is.
"""

from collections.abc import Iterator

import numpy as np

from util.data.dense.rle import changes_in, compress_counts, counts_of

THRESHOLD = 0.5
STRIP = 2**18  # pixels that are worked on at a time: what fits into a core's cache


def paste_mask(
    mask: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]
) -> np.ndarray:
    """A mask [m, m] in a box x0, y0, x1, y1 -> a boolean mask of `size`, (height, width)."""
    pasted = np.zeros(size, dtype=bool)
    for top, left, columns in _strips(mask, box, size):
        width, height = columns.shape
        pasted[top : top + height, left : left + width] = columns.T
    return pasted


def encode_mask(
    mask: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]
) -> dict:
    """COCO's compressed RLE of what `paste_mask` gives."""
    changes = [np.zeros(0, dtype=np.int64)]
    for top, left, columns in _strips(mask, box, size):
        changes.append(changes_in(columns, top, left, size[0]))
    counts = counts_of(np.concatenate(changes), size[0] * size[1])
    return {"size": [int(side) for side in size], "counts": compress_counts(counts)}


def _strips(mask: np.ndarray, box, size: tuple[int, int]) -> Iterator[tuple[int, int, np.ndarray]]:
    """The pixels that a box holds: top, left and which are inside the mask, column by column."""
    x0, y0, x1, y1 = map(float, box)
    top, by_row = _weights(y0, y1, size[0], mask.shape[0])
    left, by_column = _weights(x0, x1, size[1], mask.shape[1])
    if not len(by_row) or not len(by_column):
        return
    along_rows = mask.T.astype(np.float32) @ by_row.T  # [m, rows]
    step = max(1, STRIP // len(by_row))
    for start in range(0, len(by_column), step):
        values = by_column[start : start + step] @ along_rows  # [columns, rows]
        yield top, left + start, values >= THRESHOLD


def _weights(low: float, high: float, side: int, cells: int) -> tuple[int, np.ndarray]:
    """The first pixel whose centre is in low … high, and the weight of each cell: [pixels, cells].

    Two cells of a pixel have a weight, and one of them at the border.
    """
    first, last = max(np.ceil(low - 0.5), 0), min(np.floor(high - 0.5), side - 1)
    if not high > low or last < first:
        return 0, np.zeros((0, cells), dtype=np.float32)
    centres = np.arange(int(first), int(last) + 1) + 0.5
    places = (centres - low) * (cells / (high - low)) - 0.5  # in cells, from the first one's centre
    distance = np.abs(places[:, None] - np.arange(cells))
    return int(first), np.clip(1 - distance, 0, None).astype(np.float32)
