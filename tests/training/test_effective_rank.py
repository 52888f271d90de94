"""Singular values by the Gram matrix, and what follows from them."""

import math

import pytest
import torch

from util.evaluation.frozen.monitors import rank_me
from util.training.effective_rank import effective_rank, singular_values


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (12, 12), (1, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_singular_values_are_those_of_a_decomposition(shape, dtype):
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    features[:, -1] *= 1e-3  # a small one, whose square is a millionth
    expected = torch.linalg.svdvals(features.double())
    torch.testing.assert_close(singular_values(features), expected, rtol=1e-6, atol=1e-7)


def test_effective_rank_closed_forms():
    axes = torch.eye(4)
    cross = torch.cat([axes, -axes])  # centred, four equal singular values
    assert effective_rank(cross) == pytest.approx(4.0, rel=1e-5)
    assert effective_rank(torch.outer(torch.arange(9.0), torch.ones(5))) == pytest.approx(1.0)
    collapsed = torch.ones(8, 5)
    assert effective_rank(collapsed) == pytest.approx(1.0)
    # Singular values in proportion 3 : 1.
    features = torch.tensor([[3.0, 0], [-3, 0], [0, 1], [0, -1]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(features) == pytest.approx(math.exp(entropy), rel=1e-5)


def test_rank_me_is_of_features_that_are_not_centred():
    features = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).repeat(5, 1)
    assert rank_me(features) == pytest.approx(2, abs=1e-3)
    assert effective_rank(features) == pytest.approx(1, abs=1e-3)
