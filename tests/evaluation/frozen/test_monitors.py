"""Label-free numbers in closed form."""

import math

import pytest
import torch

from util.evaluation.frozen import monitors


def test_rank_me_counts_equal_singular_values():
    assert monitors.rank_me(torch.eye(6)) == pytest.approx(6, rel=1e-4)
    assert monitors.rank_me(torch.ones(9, 5)) == pytest.approx(1, rel=1e-4)


def test_alignment_and_nearest_of_equal_and_of_opposite_masks():
    images = torch.randn(20, 1, 8)
    same = images.expand(-1, 4, -1)
    assert monitors.alignment(same) == pytest.approx(0, abs=1e-5)
    assert monitors.nearest_is_same_image(same + 1e-3 * torch.randn(20, 4, 8)) == 100
    opposite = torch.cat([images, -images], 1)
    assert monitors.alignment(opposite) == pytest.approx(4, rel=1e-5)
    assert monitors.nearest_is_same_image(opposite) == 0


def test_alignment_is_the_mean_over_pairs():
    views = torch.randn(5, 3, 4)
    unit = torch.nn.functional.normalize(views, dim=2)
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = sum((unit[:, a] - unit[:, b]).square().sum(1).mean() for a, b in pairs) / 3
    assert monitors.alignment(views) == pytest.approx(float(expected), rel=1e-5)


def test_uniformity_of_two_opposite_points():
    points = torch.tensor([[1.0, 0], [-1, 0]])
    assert monitors.uniformity(points) == pytest.approx(math.log(math.exp(-8)))
