"""CKA: against its published forms, and what it does not see."""

import pytest
import torch

from util.evaluation.frozen.alignment import Alignment, u_centred


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cka(left, right, batch=64):
    """Of features [n, D] of one layer each, from mini-batches."""
    alignment = Alignment(1, 1)
    for x, y in zip(left.split(batch), right.split(batch), strict=True):
        alignment.add([x], [y])
    return alignment.values().item()


def song_hsic(x, y):
    """HSIC₁ by its printed formula [Song et al., 2012, Eq. 5]."""
    n, (k, m) = len(x), (z @ z.T for z in (x, y))
    k, m = (gram - torch.diag(gram.diagonal()) for gram in (k, m))
    ones = torch.ones(n, dtype=x.dtype)
    parts = (k @ m).trace() + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return (parts - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))


@pytest.mark.parametrize("n", [4, 5, 33])
def test_the_inner_product_is_hsic_by_its_formula(n):
    x, y = drawn(n, 7) + 3, drawn(n, 2, seed=1)
    y = y + x[:, :2]
    found = (u_centred(x) @ u_centred(y)) / (n * (n - 3))
    torch.testing.assert_close(found, song_hsic(x, y), rtol=1e-9, atol=1e-9)


def test_hsic_is_unbiased():
    """Its mean over many small batches is the covariance's square norm, which linear HSIC is."""
    x = drawn(24_000, 1)
    y = 0.5 * x + drawn(24_000, 1, seed=1)
    products = [
        u_centred(a) @ u_centred(b) / 40 for a, b in zip(x.split(8), y.split(8), strict=True)
    ]
    assert torch.stack(products).mean().item() == pytest.approx(0.25, abs=0.03)


def test_the_same_turned_scaled_and_moved_is_one():
    x = drawn(256, 12) * torch.arange(1, 13)
    turn, _ = torch.linalg.qr(drawn(12, 12, seed=1))
    for same in (x, x @ turn, 1e-4 * x, 1e5 * x + 300, (-3 * x @ turn).float()):
        assert cka(x, same) == pytest.approx(1, abs=1e-5)
    stretched = x @ torch.diag(torch.tensor([9.0] + 11 * [0.1], dtype=torch.float64))
    assert cka(x, stretched) < 0.9  # it sees what is no rotation


def test_independent_features_are_near_nothing_also_where_they_are_wide():
    """A biased estimate of 64 images and 2048 features would be above 0.9."""
    x, y = drawn(512, 2048), drawn(512, 2048, seed=1)
    assert abs(cka(x, y)) < 0.02
    biased = [(z - z.mean(0)) @ (z - z.mean(0)).T for z in (x[:64], y[:64])]
    k, m = (gram.flatten() for gram in biased)
    assert (k @ m) / (k.norm() * m.norm()) > 0.9


def test_mini_batches_estimate_what_all_images_give():
    """Of gaussian features it is a ratio of covariances' norms."""
    x = drawn(2048, 6) * torch.tensor([3, 2, 1, 1, 1, 1])
    y = torch.cat([x[:, :2], drawn(2048, 3, seed=1)], 1)
    a, b = torch.diag(x.T.cov()), torch.diag(y.T.cov())
    expected = (x[:, :2].T.cov().diagonal().square().sum()) / (a.norm() * b.norm())
    for batch in (16, 1024):
        assert cka(x, y, batch) == pytest.approx(expected.item(), abs=0.02)


def test_all_layers_at_once_and_layers_without_spread():
    layers = [drawn(40, 5, seed=seed) for seed in range(3)]
    alignment = Alignment(3, 2)
    alignment.add(layers, [layers[1], torch.ones(40, 5)])
    found = alignment.values()
    assert found.shape == (3, 2) and found[:, 1].isnan().all()
    for row, layer in enumerate(layers):
        assert found[row, 0].item() == pytest.approx(cka(layer, layers[1]), abs=1e-12)
