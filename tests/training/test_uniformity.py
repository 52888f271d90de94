"""U-MAE's term against its double sum, and on ranks."""

import pytest
import torch
import torch.nn.functional as F
from ranks import in_ranks

from util.cluster import distributed
from util.training.uniformity import uniformity


def latents(rows: int = 12) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(rows, 5, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("num_masks", [1, 2, 4])
def test_it_is_the_mean_over_pairs_of_different_images(num_masks):
    rows = latents()
    terms = [
        float(F.cosine_similarity(rows[i], rows[j], 0)) ** 2
        for i in range(12)
        for j in range(12)
        if i // num_masks != j // num_masks
    ]
    assert float(uniformity(rows, num_masks)) == pytest.approx(sum(terms) / len(terms), rel=1e-12)


def test_its_bounds():
    assert float(uniformity(latents()[:1].repeat(8, 1), 2)) == pytest.approx(1)
    assert float(uniformity(torch.eye(4).repeat_interleave(2, 0), 2)) == 0
    assert float(uniformity(latents()[:2], 2)) == 0  # one image alone


def value_and_gradient(own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.eye(5, dtype=torch.float64).add(0.3).requires_grad_()
    value = uniformity(own @ weight, 2)
    return value.detach(), torch.autograd.grad(value, weight)[0]


def on_a_rank(rank: int) -> list[list[float]]:
    value, gradient = value_and_gradient(latents()[6 * rank : 6 * rank + 6])
    return [distributed.reduce_mean(part).flatten().tolist() for part in (value, gradient)]


def test_it_is_that_of_the_global_batch(tmp_path):
    value, gradient = value_and_gradient(latents())
    for found in in_ranks(on_a_rank, 2, tmp_path):
        assert found[0] == pytest.approx(value.flatten().tolist(), rel=1e-12)
        assert found[1] == pytest.approx(gradient.flatten().tolist(), rel=1e-9)
