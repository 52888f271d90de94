"""Learning rates, parameter groups and LARS."""

import argparse
import math

import numpy as np
import pytest
import torch
from torch import nn

from encoders.vit import build_vit, layer_of
from util.errors import UsageError
from util.training import optim


def test_absolute_lr():
    assert optim.absolute_lr(None, 1.5e-4, 4096) == pytest.approx(2.4e-3)  # the paper's
    assert optim.absolute_lr(3e-4, None, 4096) == 3e-4


def lr_at(epoch: float, **schedule) -> float:
    """A cosine schedule whose highest rate is 1."""
    flags = dict(lr=1.0, warmup_lr=0.0, lr_schedule="cosine") | schedule
    return optim.scheduled_lr(epoch, argparse.Namespace(**flags))


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 0.0), (5, 0.5), (9.99, 0.999), (10, 1.0), (55, 0.55), (100, 0.1), (130, 0.1)],
)
def test_cosine_values(epoch, expected):
    assert lr_at(epoch, min_lr=0.1, warmup_epochs=10, epochs=100) == pytest.approx(expected)


def test_cosine_is_half_a_cosine_and_needs_no_warmup():
    for epoch in range(0, 21):
        expected = 0.5 * (1 + math.cos(math.pi * epoch / 20))
        assert lr_at(epoch, min_lr=0.0, warmup_epochs=0, epochs=20) == pytest.approx(expected)
    nothing_but_warmup = lr_at(3, min_lr=0.0, warmup_epochs=5, epochs=5)
    assert nothing_but_warmup == pytest.approx(0.6)


def test_poly_is_a_line_over_all_iterations_and_takes_other_powers():
    published = dict(iterations=160_000, warmup_iterations=1500, lr_schedule="poly", min_lr=0.0)
    for done, expected in ((0, 0), (750, 0.5), (1500, 1 - 1500 / 160_000), (80_000, 0.5)):
        assert lr_at(done, lr_power=1.0, **published) == pytest.approx(expected), done
    assert lr_at(160_000, lr_power=1.0, **published | {"min_lr": 0.1}) == pytest.approx(0.1)
    assert lr_at(80_000, lr_power=0.9, **published) == pytest.approx(0.5**0.9)


def test_milestones_are_iterations_where_the_run_is_counted_in_them():
    flags = dict(
        iterations=100, warmup_iterations=10, lr_schedule="multistep", lr_milestones=[60, 80],
        lr_gamma=0.1, min_lr=0.0,
    )  # fmt: skip
    found = [lr_at(done, **flags) for done in (5, 59, 60, 80)]
    assert found == pytest.approx([0.5, 1, 0.1, 0.01])


def test_layer_decay_scales_and_no_decay_on_1d():
    depth = 6
    model = build_vit("vit_tiny_patch2", 10, 8, 1)
    groups = optim.layer_decay_groups(model, 0.05, lambda name: layer_of(name, depth), 0.65)
    settings = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    named = {name: settings[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    assert len(named) == sum(len(g["params"]) for g in groups)
    lowest = 0.65**7
    assert named["patch_embed.proj.weight"] == (pytest.approx(lowest), 0.05)
    assert named["patch_embed.proj.bias"] == (pytest.approx(lowest), 0.0)
    assert named["cls_token"][0] == named["pos_embed"][0] == pytest.approx(lowest)
    for block in range(6):
        scale = pytest.approx(0.65 ** (6 - block))
        assert named[f"blocks.{block}.attn.qkv.weight"] == (scale, 0.05)
        assert named[f"blocks.{block}.norm1.weight"] == (scale, 0.0)
        assert named[f"blocks.{block}.mlp.fc2.bias"] == (scale, 0.0)
    assert named["head.weight"] == (1.0, 0.05) and named["fc_norm.weight"] == (1.0, 0.0)


def test_frozen_parameters_are_in_no_group():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    groups = optim.decay_groups(model, 0.1)
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.0), (1, 0.1)]


def test_set_lr_respects_the_scales():
    groups = [dict(params=[nn.Parameter(torch.ones(1))], lr_scale=s) for s in (0.5, 1.0)]
    optimizer = optim.adamw(groups)
    optim.set_lr(optimizer, 0.2)
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.2]


def test_lars_against_a_step_by_hand():
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(3, 4)), rng.normal(size=3)
    parameters = [nn.Parameter(torch.tensor(w)) for w in (weight, bias, np.zeros((2, 2)))]
    optimizer = optim.LARS(parameters, lr=0.5, weight_decay=0.1, momentum=0.9)
    velocity = [np.zeros_like(weight), np.zeros_like(bias), np.zeros((2, 2))]
    arrays = [weight.copy(), bias.copy(), np.zeros((2, 2))]
    for _ in range(3):
        grads = [rng.normal(size=a.shape) for a in arrays]
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = torch.tensor(grad)
        optimizer.step()
        for i, grad in enumerate(grads):
            update = grad
            if arrays[i].ndim > 1:
                update = grad + 0.1 * arrays[i]
                norm = np.linalg.norm(arrays[i])
                if norm > 0:
                    update = update * 0.001 * norm / np.linalg.norm(update)
            velocity[i] = 0.9 * velocity[i] + update
            arrays[i] = arrays[i] - 0.5 * velocity[i]
        for parameter, array in zip(parameters, arrays, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), array, rtol=1e-10)


def test_lars_survives_a_zero_gradient():
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = optim.LARS([parameter], lr=1.0)
    parameter.grad = torch.zeros(2, 2)
    optimizer.step()
    assert torch.equal(parameter, torch.ones(2, 2))


def test_steps_per_epoch():
    assert [optim.steps_per_epoch(10, n) for n in (1, 3, 5, 10)] == [10, 4, 2, 1]
    with pytest.raises(UsageError, match="--accum_iter 11"):
        optim.steps_per_epoch(10, 11)
