"""COCO's run lengths and polygons of exact masks, in plain numpy.

A mask is a boolean array [height, width]. Its run lengths (`counts`) are taken down the columns,
one column after the other, and begin with the zeros, be there none. A polygon is a list
[x0, y0, x1, y1, ...] in pixels; the pixel in row y and column x is the square from (x, y) to
(x+1, y+1), and is inside where its centre is.
"""

from collections.abc import Sequence

import numpy as np

# (dy, dx) of a step along an edge: right, down, left, up; the next one is a turn to the right.
_STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))


def encode_rle(mask: np.ndarray) -> dict:
    """COCO's uncompressed RLE: {"size": [height, width], "counts": [int, ...]}."""
    counts = counts_of(changes_in(mask.T, 0, 0, mask.shape[0]), mask.size)
    return {"size": [int(side) for side in mask.shape], "counts": counts.tolist()}


def changes_in(columns: np.ndarray, top: int, left: int, height: int) -> np.ndarray:
    """Where a mask's value changes, as places in the image counted down its columns.

    Args:
        columns: a window of the mask, column by column: [its width, its height]. Around it the
            mask is empty. top, left: where the window lies. height: of the image.
    """
    width, rows = columns.shape
    is_change = np.empty((width, rows + 1), dtype=bool)  # a column begins and ends outside
    is_change[:, 0], is_change[:, -1] = columns[:, 0], columns[:, -1]
    np.not_equal(columns[:, 1:], columns[:, :-1], out=is_change[:, 1:-1])
    column, row = np.divmod(np.flatnonzero(is_change), rows + 1)
    return (left + column) * height + top + row


def counts_of(changes: np.ndarray, num_pixels: int) -> np.ndarray:
    """Run lengths of a mask from the places at which its value changes, in ascending order."""
    # A run that ends with its column where the next column's begins is one with it.
    goes_on = changes[1:-1:2] == changes[2::2]
    is_kept = np.ones(len(changes), dtype=bool)
    is_kept[1:-1:2], is_kept[2::2] = ~goes_on, ~goes_on
    counts = np.diff(changes[is_kept], prepend=0, append=num_pixels)
    return counts[:-1] if counts[-1] == 0 else counts


def decode_rle(rle: dict) -> np.ndarray:
    """The mask of an RLE whose counts are a list, or a compressed string.

    Raises:
        ValueError: not of that form, or counts that do not fill the mask.
    """
    height, width = sides_of(rle)
    counts = rle.get("counts")
    if isinstance(counts, (str, bytes)):
        counts = decompress_counts(counts)
    elif not isinstance(counts, list) or not all(type(count) is int for count in counts):
        raise ValueError("an RLE whose counts are neither whole numbers nor a string")
    if sum(counts) != height * width or min(counts, default=0) < 0:
        raise ValueError(f"an RLE of {sum(counts)} pixels for a mask of {height} x {width}")
    is_inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(is_inside, counts).reshape(width, height).T


def sides_of(rle: dict) -> tuple[int, int]:
    """(height, width) of an RLE. Raises: ValueError: it has no such size."""
    size = rle.get("size")
    if not isinstance(size, list | tuple) or [type(side) for side in size] != [int, int]:
        raise ValueError("an RLE whose size is not two whole numbers")
    return tuple(size)


def compress_counts(counts: Sequence[int] | np.ndarray) -> str:
    """COCO's compressed string: from the fourth on, each count less the one two before it; five
    bits to a character, low ones first, the sixth bit telling that more follow.
    """
    values = np.array(counts, dtype=np.int64)
    values[3:] -= values[1:-2].copy()
    characters, is_open = [], np.ones(len(values), dtype=bool)
    while is_open.any():
        bits, values = values & 31, values >> 5
        # Done where what is left is nothing but the sign of the last five bits.
        has_more = values != -(bits >> 4)
        characters.append(np.where(is_open, 48 + bits + 32 * has_more, 0))
        is_open &= has_more
    text = np.stack(characters, axis=1).astype(np.uint8)
    return text[text > 0].tobytes().decode()


def decompress_counts(text: str | bytes) -> list[int]:
    """Raises: ValueError: characters that it cannot have, or an end within a number."""
    counts: list[int] = []
    value = shift = 0
    for byte in text.encode() if isinstance(text, str) else text:
        bits = byte - 48
        if not 0 <= bits < 64:
            raise ValueError("a compressed RLE with strange characters")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("a compressed RLE that ends within a number")
    return counts


def trace(mask: np.ndarray) -> tuple[list[list[int]], int]:
    """Outlines along the pixels' edges, corners only, and how many holes the mask has.

    The outlines are of the mask's parts (pixels that share an edge); filling them fills the holes.
    """
    edges = _directed_edges(mask)
    polygons, num_holes = [], 0
    while edges:
        corners = _follow(edges, next(iter(edges)))
        x, y = np.array(corners).T
        # Shoelace: an outline runs clockwise as one sees it, a hole's edge the other way.
        if (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() > 0:
            polygons.append([value for corner in corners for value in corner])
        else:
            num_holes += 1
    return polygons, num_holes


def _directed_edges(mask: np.ndarray) -> dict[tuple[int, int, int], None]:
    """(y, x, direction) of all edges between inside and outside, the inside on the right.

    A dict for its order: the same mask has the same polygons.
    """
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    # Neighbour outside, and the pixel's corner in which the edge starts, for each direction.
    sides = (
        (padded[:-2, 1:-1], 0, 0), (padded[1:-1, 2:], 0, 1),
        (padded[2:, 1:-1], 1, 1), (padded[1:-1, :-2], 1, 0),
    )  # fmt: skip
    edges = {}
    for direction, (neighbour, dy, dx) in enumerate(sides):
        ys, xs = np.nonzero(inside & ~neighbour)
        for y, x in zip((ys + dy).tolist(), (xs + dx).tolist(), strict=True):
            edges[y, x, direction] = None
    return edges


def _follow(edges: dict, start: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Take one closed outline out of the edges; its corners (x, y)."""
    y, x, direction = start
    corners = []
    while True:
        y, x = y + _STEPS[direction][0], x + _STEPS[direction][1]
        # Right first: where two pixels touch by a corner only, each keeps its own outline.
        turns = ((direction + turn) % 4 for turn in (1, 0, 3))
        following = next(turned for turned in turns if (y, x, turned) in edges)
        del edges[y, x, following]
        if following != direction:
            corners.append((x, y))
        if (y, x, following) == start:
            return corners
        direction = following


def fill_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """The mask of the pixels whose centre is inside one of the polygons, by the even-odd rule."""
    mask = np.zeros((height, width), dtype=bool)
    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        # Most are small: only the part of the mask that holds the polygon is worked on.
        left, top = np.floor(points.min(0)).clip(0, (width, height)).astype(int)
        right, bottom = np.ceil(points.max(0)).clip((left, top), (width, height)).astype(int)
        mask[top:bottom, left:right] |= _fill(points - (left, top), bottom - top, right - left)
    return mask


def _fill(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """[height, width], of one polygon with the corners [n, 2], (x, y)."""
    ends = np.roll(points, -1, axis=0)
    upper = np.minimum(points[:, 1], ends[:, 1])
    lower = np.maximum(points[:, 1], ends[:, 1])
    # Rows whose centre y + 1/2 an edge passes: the upper end counts, the lower one does not.
    first = np.ceil(upper - 0.5).clip(0, height).astype(int)
    count = np.ceil(lower - 0.5).clip(0, height).astype(int) - first
    edge = np.repeat(np.arange(len(points)), count)  # [crossings]
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    (x0, y0), (x1, y1) = points[edge].T, ends[edge].T
    crossing = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
    column = np.ceil(crossing - 0.5).clip(0, width).astype(int)
    changes = np.zeros((height, width + 1), dtype=np.int64)
    np.add.at(changes, (row, column), 1)
    return np.cumsum(changes, axis=1)[:, :-1] % 2 == 1


def segmentation(mask: np.ndarray, is_crowd: bool = False) -> dict:
    """COCO's `segmentation`, `area`, `bbox` [x, y, width, height] and `iscrowd` of a mask.

    Polygons, which decode to the very mask; uncompressed RLE for crowds and for what has holes,
    which COCO's polygons cannot tell.
    """
    ys, xs = np.nonzero(mask)
    x, y = int(xs.min()), int(ys.min())
    polygons, num_holes = ([], 1) if is_crowd else trace(mask)
    return {
        "segmentation": encode_rle(mask) if num_holes else polygons,
        "area": len(xs),
        "bbox": [x, y, int(xs.max()) + 1 - x, int(ys.max()) + 1 - y],
        "iscrowd": int(is_crowd),
    }


def to_mask(encoded: dict | Sequence, height: int, width: int) -> np.ndarray:
    """The mask [height, width] of any `segmentation` that COCO's JSON may hold."""
    if isinstance(encoded, dict):
        return decode_rle(encoded)
    return fill_polygons(encoded, height, width)
