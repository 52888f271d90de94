"""Masks in their boxes on the image: torch's own sampling, the mirror, and COCO's run lengths."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from util.data.dense.rle import compress_counts, decode_rle, encode_rle
from util.evaluation.dense import pasting
from util.evaluation.dense.pasting import encode_mask, paste_mask

SIZE = (61, 83)


def examples(count=60) -> list[tuple[np.ndarray, list[float]]]:
    """Smooth masks in boxes inside, across the border, around the image, thin and beside it."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        rough = torch.rand(1, 1, 4, 4, generator=draw)
        mask = F.interpolate(rough, (28, 28), mode="bicubic")[0, 0].clamp(0, 1)
        corner = torch.rand(2, generator=draw) * torch.tensor([83.0, 61.0]) - 5
        sides = 1 + 40 * torch.rand(2, generator=draw) ** 2
        box = [*corner.tolist(), *(corner + sides).tolist()]
        if number % 10 == 9:  # all columns of the image and more, or its very border
            box = [-3.2, -8.1, 90.3, 75.5] if number % 20 == 9 else [0.0, 0.0, 83.0, 61.0]
            mask = torch.full((28, 28), 0.9)
        found.append((mask.numpy(), box))
    return [*found, (np.ones((28, 28)), [90.0, 3, 99, 9]), (np.ones((28, 28)), [5.2, 5, 5.4, 9])]


def by_grid_sample(mask: np.ndarray, box: list[float]) -> np.ndarray:
    """The whole image's pixels by torch, in double precision."""
    y, x = (torch.arange(side, dtype=torch.float64) + 0.5 for side in SIZE)
    x0, y0, x1, y1 = box
    x, y = 2 * (x - x0) / (x1 - x0) - 1, 2 * (y - y0) / (y1 - y0) - 1
    grid = torch.stack([x.expand(SIZE), y[:, None].expand(SIZE)], dim=-1)
    values = torch.from_numpy(mask).double()[None, None]
    return F.grid_sample(values, grid[None], align_corners=False)[0, 0].numpy()


def test_it_is_grid_sample_at_the_pixels_centres():
    for mask, box in examples():
        values = by_grid_sample(mask, box)
        is_clear = abs(values - 0.5) > 1e-5
        assert np.array_equal(paste_mask(mask, box, SIZE)[is_clear], (values >= 0.5)[is_clear])


@pytest.mark.parametrize("strip", [1, 100, 2**18])
def test_run_lengths_are_those_of_the_pasted_mask(monkeypatch, strip):
    monkeypatch.setattr(pasting, "STRIP", strip)
    for mask, box in examples():
        pasted = paste_mask(mask, box, SIZE)
        expected = encode_rle(pasted)
        found = encode_mask(mask, box, SIZE)
        assert found == expected | {"counts": compress_counts(expected["counts"])}
        assert np.array_equal(decode_rle(found), pasted)


def test_it_turns_with_the_mask():
    width = SIZE[1]
    for mask, (x0, y0, x1, y1) in examples():
        pasted = paste_mask(mask, (x0, y0, x1, y1), SIZE)
        mirrored = paste_mask(mask[:, ::-1], (width - x1, y0, width - x0, y1), SIZE)
        assert (pasted != mirrored[:, ::-1]).sum() <= 2  # a centre that lies on the edge
        across = paste_mask(mask.T, (y0, x0, y1, x1), SIZE[::-1])
        assert (pasted != across.T).sum() <= 2


def test_a_full_mask_is_its_box_to_the_pixel():
    """Every pixel whose centre is inside, but for the corners, where bilinear weights multiply."""
    pasted = paste_mask(np.ones((28, 28)), (10.2, 7.7, 30.6, 41.4), SIZE)
    expected = np.zeros(SIZE, dtype=bool)
    expected[8:41, 10:31] = True
    assert (pasted != expected).sum() <= 4 and pasted.sum() >= expected.sum() - 4
