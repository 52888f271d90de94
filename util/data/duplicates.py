"""Images that are there twice: the same pixels, or the same picture resized or stored anew.

A picture's hash has a bit for each of 64 low frequencies (pHash, Zauner 2010): whether its cosine
transform is above their median. Near duplicates differ in few bits, and in a small picture of them
by few levels, which tells pictures of one shape but other colours apart. Pairs are found by parts
of the hash: of 5 parts, hashes that differ in 4 bits have one in common. So a million images are
not compared with one another, but with those of the same part.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from util.data.images import to_float

BITS = 4  # in which the hashes of near duplicates may differ
PARTS = (0, 13, 26, 39, 52)  # the first bits of the hash's parts, one more than may differ
WIDTH = 13
SIDE, LOW, SMALL = 32, 8, 8  # pixels that are transformed, frequencies, pixels of the small picture
ALIKE = 6.0  # levels of 255 by which small pictures may differ on average
NEXT = 4  # of one hash, that each is compared with at first
BLOCK = 1024  # hashes that are compared with all of their part at a time


class Looks(NamedTuple):
    """What a picture looks like: a hash, and its pixels [C, 8, 8], uint8."""

    hash: int
    small: np.ndarray


def looks(image: Tensor) -> Looks:
    """Args: image: [C, H, W], uint8, or floats, whose own range becomes that of the pixels."""
    from scipy.fft import dctn

    pixels = to_float(image)
    if image.dtype != torch.uint8:
        low, high = pixels.min(), pixels.max()
        pixels = (pixels - low) / (high - low).clamp_min(1e-12)
    mean = torch.nn.functional.adaptive_avg_pool2d
    grey = mean(pixels.mean(0, keepdim=True), (SIDE, SIDE))[0].double().numpy()
    # Without the first row and column, the means, which say more of the light than of the shapes.
    low = dctn(grey, norm="ortho")[1 : LOW + 1, 1 : LOW + 1].ravel()
    bits = low > np.median(low)
    small = (mean(pixels, (SMALL, SMALL)) * 255).round().to(torch.uint8).numpy()
    return Looks(int(np.packbits(bits).view(">u8")[0]), small)


def same_pixels(digests: np.ndarray) -> list[np.ndarray]:
    """Groups of ids whose digests [n] are the same, each in order."""
    order = np.argsort(digests, kind="stable")
    cuts = np.flatnonzero(np.diff(digests[order])) + 1
    groups = [np.sort(group) for group in np.split(order, cuts) if len(group) > 1]
    return sorted(groups, key=lambda group: group[0])


def alike(hashes: np.ndarray, small: np.ndarray) -> list[np.ndarray]:
    """Groups of ids that are near duplicates of one another, or of a third one.

    Args:
        hashes: [n] uint64. small: [n, values] uint8, the small pictures.
    """
    parents = np.arange(len(hashes))

    def join(first: np.ndarray, second: np.ndarray) -> None:
        levels = np.abs(small[first].astype(np.int16) - small[second]).mean(1)
        for a, b in zip(first[levels <= ALIKE], second[levels <= ALIKE], strict=True):
            _join(parents, a, b)

    # Of one hash may be a hundred thousand: the next ones in brightness are enough to join them,
    # and the first of those that are joined then stands for all.
    order = np.lexsort((small.mean(1), hashes))
    for step in range(1, NEXT + 1):
        first, second = order[:-step], order[step:]
        is_one = hashes[first] == hashes[second]
        join(first[is_one], second[is_one])
    roots = np.unique(np.array([_root(parents, i) for i in range(len(parents))], np.int64))
    for first_bit in PARTS:
        keys = (hashes[roots] >> np.uint64(first_bit)) & np.uint64(2**WIDTH - 1)
        by_key = np.argsort(keys, kind="stable")
        cuts = np.flatnonzero(np.diff(keys[by_key])) + 1
        for places in np.split(by_key, cuts):
            for first, second in _close_pairs(hashes[roots[places]], roots[places]):
                join(first, second)
    return same_pixels(np.array([_root(parents, i) for i in range(len(parents))], np.int64))


def _close_pairs(hashes: np.ndarray, ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of hashes that have a part in common."""
    for start in range(0, len(hashes) - 1, BLOCK):
        block = hashes[start : start + BLOCK, None] ^ hashes[None, start:]
        rows, columns = np.nonzero(_num_bits(block) <= BITS)
        is_new = columns > rows
        if is_new.any():
            yield ids[start + rows[is_new]], ids[start + columns[is_new]]


def _num_bits(values: np.ndarray) -> np.ndarray:
    """The number of ones in each uint64."""
    if hasattr(np, "bitwise_count"):  # from numpy 2 on
        return np.bitwise_count(values)
    octets = values[..., None].view(np.uint8)
    return np.unpackbits(octets, axis=-1).sum(-1)


def _root(parents: np.ndarray, i: int) -> int:
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return int(i)


def _join(parents: np.ndarray, a: int, b: int) -> None:
    """The smaller one becomes the root of both."""
    a, b = sorted((_root(parents, a), _root(parents, b)))
    parents[b] = a
