"""Position embeddings against the formula, and their interpolation."""

import math

import numpy as np
import pytest
import torch

from encoders.pos_embed import interpolate_pos_embed, sincos_pos_embed, square_grid


@pytest.mark.parametrize("grid", [(4, 4), (2, 5), (7, 3), (1, 1)])
def test_values_follow_the_formula(grid):
    dim, quarter = 16, 4
    embedding = sincos_pos_embed(dim, grid)
    assert embedding.shape == (1, 1 + grid[0] * grid[1], dim) and embedding.dtype == torch.float32
    assert (embedding[0, 0] == 0).all()
    for row in range(grid[0]):
        for column in range(grid[1]):
            token = embedding[0, 1 + row * grid[1] + column]
            for i in range(quarter):
                frequency = 1 / 10000 ** (i / quarter)
                for half, position in ((0, column), (8, row)):
                    sine, cosine = token[half + i], token[half + quarter + i]
                    assert sine.item() == pytest.approx(math.sin(position * frequency), abs=1e-6)
                    assert cosine.item() == pytest.approx(math.cos(position * frequency), abs=1e-6)


def test_a_width_that_4_does_not_divide():
    with pytest.raises(ValueError, match="18"):
        sincos_pos_embed(18, (4, 4))


def test_all_positions_differ():
    patches = sincos_pos_embed(64, (14, 9))[0, 1:]
    assert torch.cdist(patches, patches).fill_diagonal_(1.0).min() > 0.1


def test_square_grid():
    assert square_grid(196) == (14, 14)
    with pytest.raises(ValueError, match="35"):
        square_grid(35)


def test_the_same_grid_is_left_alone():
    embedding = torch.randn(1, 13, 8)
    assert torch.equal(interpolate_pos_embed(embedding, (3, 4), (3, 4)), embedding)


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_interpolation_keeps_prefix_constants_and_linear_ramps(prefix):
    old, new = (6, 8), (12, 4)
    rows, columns = np.mgrid[: old[0], : old[1]]
    ramps = np.stack([np.full(old, 3.0), rows + 0.5, columns + 0.5], -1).reshape(1, -1, 3)
    head = torch.randn(1, prefix, 3)
    resized = interpolate_pos_embed(torch.cat([head, torch.tensor(ramps).float()], 1), old, new)
    assert resized.shape == (1, prefix + 48, 3)
    assert torch.equal(resized[:, :prefix], head)
    patches = resized[0, prefix:].view(*new, 3)
    torch.testing.assert_close(patches[..., 0], torch.full(new, 3.0))
    # Half-pixel centres: a ramp stays a ramp, but for the border and torch's cubic (a = −0.75).
    expected = (torch.arange(12) + 0.5) / 2
    torch.testing.assert_close(patches[4:-4, 1, 1], expected[4:-4], atol=0.06, rtol=0)
    expected = (torch.arange(4) + 0.5) * 2
    torch.testing.assert_close(patches[5, 1:-1, 2], expected[1:-1], atol=0.1, rtol=0)
