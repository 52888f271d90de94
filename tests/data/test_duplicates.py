"""Duplicates: pictures that are stored anew are found, others are not, and all pairs are."""

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from util.data import duplicates
from util.data.duplicates import ALIKE, BITS, alike, looks, same_pixels
from util.data.images import to_tensor


def photograph(seed: int, height: int = 180, width: int = 240) -> Image.Image:
    """Smooth shapes in colours: noise of few frequencies."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.BICUBIC)


def stored_anew(picture: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file)


SAME = {
    "jpeg": lambda p: stored_anew(p, 50), "half": lambda p: p.resize((120, 90)),
    "double": lambda p: p.resize((480, 360), Image.BICUBIC),
    "small jpeg": lambda p: stored_anew(p.resize((150, 112)), 75),
    "brighter": lambda p: ImageEnhance.Brightness(p).enhance(1.03),
}  # fmt: skip
OTHER = {
    "mirrored": lambda p: p.transpose(Image.FLIP_LEFT_RIGHT),
    "cropped": lambda p: p.crop((40, 30, 200, 150)),
    "channels": lambda p: Image.merge("RGB", p.split()[::-1]),
}


def groups_of(pictures: list[Image.Image]) -> list[list[int]]:
    seen = [looks(to_tensor(picture)) for picture in pictures]
    hashes = np.array([one.hash for one in seen], dtype=np.uint64)
    small = np.stack([one.small.ravel() for one in seen])
    return [group.tolist() for group in alike(hashes, small)]


@pytest.mark.parametrize("seed", range(5))
def test_a_picture_stored_anew_is_alike(seed):
    pictures = [photograph(seed), *(change(photograph(seed)) for change in SAME.values())]
    assert groups_of([*pictures, photograph(seed + 100)]) == [list(range(len(pictures)))]


@pytest.mark.parametrize("change", OTHER)
def test_what_augmentation_may_make_is_not(change):
    for seed in range(5):
        assert groups_of([photograph(seed), OTHER[change](photograph(seed))]) == []


def test_a_hundred_pictures_are_a_hundred():
    assert groups_of([photograph(seed) for seed in range(100)]) == []


def test_blank_pages_are_alike_where_their_colours_are():
    colours = ("white", "black", "red", "white", "#010101", "blue", "white")
    pictures = [Image.new("RGB", (50, 40), colour) for colour in colours]
    assert groups_of(pictures) == [[0, 3, 6], [1, 4]]


def test_float_images_and_any_channels():
    image = to_tensor(photograph(0)).float()
    first = looks(image[:2])
    assert first.hash == looks(image[:2] * 7 - 1000).hash and first.small.shape == (2, 8, 8)
    assert looks(torch.full((1, 5, 5), 3.0)).hash == 0


@pytest.mark.parametrize("seed", range(3))
def test_all_pairs_are_found_without_comparing_all(seed, monkeypatch):
    """Against comparing all: hashes that differ in few bits, in any of them."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, 60, dtype=np.uint64)
    flipped = hashes.copy()
    for i, bits in enumerate(rng.integers(0, 7, 60)):
        for bit in rng.choice(64, bits, replace=False):
            flipped[i] ^= np.uint64(1 << int(bit))
    hashes = np.concatenate([hashes, flipped, hashes[:5]])
    small = np.zeros((len(hashes), 64), np.uint8)
    small[rng.random(len(hashes)) < 0.2] = 200
    expected = {
        (a, b) for a, b in itertools.combinations(range(len(hashes)), 2)
        if bin(int(hashes[a] ^ hashes[b])).count("1") <= BITS
        and abs(small[a].astype(float) - small[b]).mean() <= ALIKE
    }  # fmt: skip
    found = alike(hashes, small)
    pairs = {pair for group in found for pair in itertools.combinations(group.tolist(), 2)}
    assert expected <= pairs and len(expected) > 10
    of = {i: number for number, group in enumerate(found) for i in group.tolist()}
    linked = {of[a] for a, b in expected}
    assert linked == set(range(len(found)))  # none without a pair
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert [group.tolist() for group in alike(hashes, small)] == [g.tolist() for g in found]


def test_a_million_are_compared_in_parts(monkeypatch):
    """Of 50 000 hashes each is compared with a few: 1.25e9 pairs would be all of them."""
    compared = [0]
    num_bits = duplicates._num_bits

    def counted(values):
        compared[0] += values.size
        return num_bits(values)

    monkeypatch.setattr(duplicates, "_num_bits", counted)
    hashes = np.random.default_rng(0).integers(0, 2**64, 50_000, dtype=np.uint64)
    assert alike(hashes, np.zeros((50_000, 64), np.uint8)) == []
    assert compared[0] < 5e6


def test_groups_of_the_same_pixels():
    digests = np.array([5, 3, 5, 2**64 - 1, 3, 5, 1], dtype=np.uint64)
    assert [group.tolist() for group in same_pixels(digests)] == [[0, 2, 5], [1, 4]]
    assert same_pixels(digests[:0]) == [] and alike(digests[:0], np.zeros((0, 64), np.uint8)) == []
