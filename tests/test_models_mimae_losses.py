"""InfoNCE and CLUB against closed forms and plain double loops in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from models_mae import draw_weights
from models_mimae import (
    ApproximationNetwork,
    club_upper_bound,
    follow_above,
    gaussian_nll,
    info_nce,
    info_nce_accuracy,
)


def normal(*shape, seed=0, grad=False):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=grad)


# ---------------------------------------------------------------------------------------- InfoNCE


def info_nce_by_loops(latents, num_masks, temperature):
    """Eq. 7 and 8, term by term."""
    rows = len(latents)
    similar = [[F.cosine_similarity(a, b, 0) / temperature for b in latents] for a in latents]
    terms = []
    for i in range(rows):
        denominator = sum(math.exp(similar[i][j]) for j in range(rows) if j != i)
        for k in range(rows):
            if k != i and k // num_masks == i // num_masks:
                terms.append(-math.log(math.exp(similar[i][k]) / denominator))
    assert len(terms) == rows * (num_masks - 1)
    return sum(terms) / len(terms)


@pytest.mark.parametrize("num_masks", [2, 3, 4])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_info_nce_is_the_papers_sum(num_masks, temperature):
    latents = normal(5 * num_masks, 7)
    expected = info_nce_by_loops(latents, num_masks, temperature)
    assert float(info_nce(latents, num_masks, temperature)) == pytest.approx(expected, rel=1e-12)


def test_two_masks_are_nt_xent():
    """SimCLR's way to write it: two stacked views, the positive on the far diagonal."""
    first, second = normal(6, 5, seed=1), normal(6, 5, seed=2)
    views = F.normalize(torch.cat([first, second]), dim=1)
    logits = (views @ views.T / 0.2).masked_fill(torch.eye(12, dtype=torch.bool), -1e30)
    expected = F.cross_entropy(logits, (torch.arange(12) + 6) % 12)
    latents = torch.stack([first, second], 1).flatten(0, 1)
    torch.testing.assert_close(info_nce(latents, 2, 0.2), expected, rtol=1e-12, atol=0)


def test_info_nce_closed_forms():
    same = torch.ones(12, 5, dtype=torch.float64)
    assert float(info_nce(same, 3, 0.1)) == pytest.approx(math.log(11))
    # One direction per image, all orthogonal: s = 1/τ for positives, 0 for the rest.
    apart = torch.eye(4, dtype=torch.float64).repeat_interleave(3, 0)
    expected = math.log(2 + 9 * math.exp(-1 / 0.5))
    assert float(info_nce(apart, 3, 0.5)) == pytest.approx(expected)


def test_info_nce_knows_no_scale_and_no_order_of_images():
    latents = normal(12, 6)
    loss = info_nce(latents, 4, 0.1)
    torch.testing.assert_close(info_nce(latents * 7, 4, 0.1), loss)
    shuffled = latents.view(3, 4, 6)[[2, 0, 1]][:, [3, 1, 0, 2]].flatten(0, 1)
    torch.testing.assert_close(info_nce(shuffled, 4, 0.1), loss)


def test_info_nce_gradient():
    assert gradcheck(lambda g: info_nce(g, 3, 0.3), (normal(9, 4, grad=True),))


def test_info_nce_accuracy():
    apart = torch.eye(4).repeat_interleave(3, 0)
    assert info_nce_accuracy(apart, 3, 0.1) == 1
    # Neighbours that belong to other images: rows 0|1, 2|3 are images, 1≈2 and 3≈0.
    crossed = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [1.0, 0.1]])
    assert info_nce_accuracy(crossed, 2, 0.1) == 0


# --------------------------------------------------------------------------- correlated Gaussians


def correlated(rho, rows, dim, seed):
    x = normal(rows, dim, seed=seed)
    return x, rho * x + math.sqrt(1 - rho**2) * normal(rows, dim, seed=seed + 1)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, 0.9])
def test_club_with_the_true_conditional_has_its_known_value(rho):
    """With q = p, CLUB is E[(z' − ρx)²]/(2σ²) − 1/2 = ρ²/(1 − ρ²), above the true MI."""
    x, z = correlated(rho, 100_000, 8, seed=10)
    logvar = torch.full_like(z, math.log(1 - rho**2))
    bound = float(club_upper_bound(z, rho * x, logvar, None))
    assert bound == pytest.approx(rho**2 / (1 - rho**2), rel=0.02, abs=2e-3)
    assert bound >= -0.5 * math.log(1 - rho**2) - 2e-3


def test_info_nce_estimates_grow_with_the_mi_and_stay_below_the_log_of_the_batch():
    estimates = []
    for rho in (0.0, 0.5, 0.9, 0.999):
        pair = torch.stack(correlated(rho, 256, 16, seed=20), 1).flatten(0, 1)  # [2B, D]
        estimates.append(math.log(2 * 256 - 1) - float(info_nce(pair, 2, 0.1)))
    assert estimates == sorted(estimates)
    assert estimates[0] <= 0 and estimates[-1] < math.log(511)
    true_mi = -0.5 * 16 * math.log(1 - 0.999**2)
    assert estimates[-1] < true_mi


# ------------------------------------------------------------------------------- CLUB and its net


def club_by_loops(z, mean, logvar, group):
    """Eq. 10, every pair of rows of a group, in nats per dimension."""

    def log_q(i, j):
        squared = (z[j] - mean[i]) ** 2 / logvar[i].exp()
        return -0.5 * (squared + logvar[i] + math.log(2 * math.pi)).mean()

    size = group or len(z)
    terms = []
    for j in range(len(z)):
        others = range(j // size * size, j // size * size + size)
        terms.append(log_q(j, j) - sum(log_q(j, k) for k in others) / size)
    return sum(terms) / len(z)


@pytest.mark.parametrize("group", [None, 1, 2, 4, 8, 40])
def test_club_by_moments_is_the_quadratic_sum(group):
    z, mean, logvar = normal(40, 6), normal(40, 6, seed=1), normal(40, 6, seed=2)
    expected = float(club_by_loops(z, mean, logvar, group))
    assert float(club_upper_bound(z, mean, logvar, group)) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("group", [None, 4])
def test_club_by_moments_has_the_quadratic_sums_gradient(group):
    z, mean, logvar = normal(8, 3, grad=True), normal(8, 3, seed=1), normal(8, 3, seed=2)
    (expected,) = torch.autograd.grad(club_by_loops(z, mean, logvar, group), z)
    (found,) = torch.autograd.grad(club_upper_bound(z, mean, logvar, group), z)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert gradcheck(lambda z: club_upper_bound(z, mean, logvar, group), (z,))


@pytest.mark.parametrize("group", [None, 5])
def test_club_is_zero_where_q_knows_nothing_and_does_not_depend_on_a_shift(group):
    z = normal(50, 4)
    constant = torch.full_like(z, 0.3)
    assert float(club_upper_bound(z, constant, constant, group)) == pytest.approx(0, abs=1e-12)
    mean, logvar = normal(50, 4, seed=1), normal(50, 4, seed=2).relu()
    bound = club_upper_bound(z, mean, logvar, group)
    # The variance form keeps its digits where E[z²] − 2μE[z] + μ² would lose them.
    torch.testing.assert_close(club_upper_bound(z + 1e4, mean + 1e4, logvar, group), bound)


def test_within_an_image_club_is_zero_for_mask_invariant_latents_whatever_q_says():
    z = normal(6, 5).repeat_interleave(4, 0)  # one latent for the four masks of an image
    mean, logvar = normal(24, 5, seed=1), normal(24, 5, seed=2)
    assert float(club_upper_bound(z, mean, logvar, 4)) == pytest.approx(0, abs=1e-12)
    assert abs(float(club_upper_bound(z, mean, logvar, None))) > 0.05


def test_within_an_image_and_with_one_precision_the_images_mean_latent_is_not_moved():
    """What tells images apart stays; over the batch it is pulled to the batch's mean."""
    z, mean, logvar = normal(24, 5, grad=True), normal(24, 5, seed=1), torch.full((24, 5), 0.7)
    moved = []
    for group in (4, None):
        (grad,) = torch.autograd.grad(club_upper_bound(z, mean, logvar, group), z)
        assert grad.abs().max() > 1e-3
        moved.append(grad.unflatten(0, (6, 4)).sum(1).abs().max())
    assert moved[0] < 1e-15 and moved[1] > 1e-3


@pytest.mark.parametrize("club_level", ["image", "token"])
@pytest.mark.parametrize("club_negatives", ["image", "batch"])
def test_the_model_asks_for_the_rows_of_an_image_or_of_the_batch(tiny, club_level, club_negatives):
    model = tiny(club_level=club_level, club_negatives=club_negatives)
    imgs, noise = normal(3, 1, 8, 8), torch.rand(3, 16)
    _, x, z = model.mi_rows(imgs, noise)
    per_image = 4 if club_level == "image" else 4 * 4
    expected = club_by_loops(
        z, *model.approximation(x), per_image if club_negatives == "image" else None
    )
    torch.testing.assert_close(model(imgs, noise)["min_mi"], expected, rtol=1e-10, atol=0)


def test_gaussian_nll_is_minus_the_log_density():
    z, mean, logvar = normal(9, 5), normal(9, 5, seed=1), normal(9, 5, seed=2)
    q = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    torch.testing.assert_close(gaussian_nll(z, mean, logvar), -q.log_prob(z).mean())
    mean.requires_grad_()
    logvar.requires_grad_()
    assert gradcheck(lambda m, v: gaussian_nll(z, m, v), (mean, logvar))


def test_the_approximation_network_has_the_papers_layers():
    network = ApproximationNetwork(6).double()
    x = normal(5, 6)
    mean, logvar = network(x)
    assert mean.shape == logvar.shape == (5, 6)
    assert (logvar >= 0).all()
    for branch, output, slope in ((network.mean, mean, 0.01), (network.logvar, logvar, 0.0)):
        first, second, third = (m for m in branch if isinstance(m, torch.nn.Linear))
        h = F.linear(F.gelu(F.linear(x, first.weight, first.bias)), second.weight, second.bias)
        h = F.linear(h, third.weight, third.bias)
        torch.testing.assert_close(output, torch.where(h > 0, h, slope * h))


def test_a_trained_network_finds_the_known_bound():
    """Eq. 9 and 10 together: q learns p(z | x), and CLUB then is that of the true conditional."""
    torch.manual_seed(0)
    x, z = (t.float() for t in correlated(0.8, 4096, 8, seed=30))
    z = 3 * z + 10  # σ² = 9·0.36 ≥ 1 and a positive mean, which the two activations can express
    network = ApproximationNetwork(8)
    network.mean[3].bias.data.fill_(10.0)  # start where neither activation is cut off
    network.logvar[3].bias.data.fill_(1.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(500):
        loss = gaussian_nll(z, *network(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        learnt = float(club_upper_bound(z, *network(x), None))
    assert learnt == pytest.approx(0.64 / 0.36, rel=0.1)


def latents_moved_by_club(follow):
    """Latents of 16 images' 4 masks after 300 steps of λ = (0, 10) with q learning beside them.

    The inputs say nothing of them, so there is no information to take out: all that q knows is
    what it has learnt by heart of where a latent was.
    """
    torch.manual_seed(0)
    latents = (torch.randn(16, 1, 8) + 0.3 * torch.randn(16, 4, 8)).flatten(0, 1)
    z, x = latents.clone().requires_grad_(), torch.randn(64, 8)
    network = ApproximationNetwork(8)
    draw_weights(network)
    optimizers = torch.optim.SGD([z], lr=0.3), torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(300):
        mean, logvar = network(x)
        bound = follow(club_upper_bound(z, mean.detach(), logvar.detach(), 4))
        (10 * bound + gaussian_nll(z.detach(), mean, logvar)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return latents.unflatten(0, (16, 4)), z.detach().unflatten(0, (16, 4)), float(bound.detach())


def test_min_mi_alone_does_not_turn_the_latents_of_an_image_from_each_other():
    before, followed, bound = latents_moved_by_club(lambda bound: bound)
    assert bound < -0.01  # no mutual information is negative: q lags behind
    assert followed.var(1).mean() > 1.5 * before.var(1).mean()
    before, left, bound = latents_moved_by_club(lambda bound: follow_above(bound, "batch")[0])
    assert abs(bound) < 1e-3
    assert left.var(1).mean() < 1.02 * before.var(1).mean()
    similar = [
        F.cosine_similarity(z[:, :1], z[:, 1:], dim=2).mean() for z in (before, left, followed)
    ]
    assert similar[1] > similar[0] - 0.005 and similar[2] < similar[0] - 0.03
