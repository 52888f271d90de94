"""Mixed precision: what is taken, clipping, and steps that loss scaling skips."""

import math

import pytest
import torch
from torch import nn

from util.training import precision as precision_module
from util.training.optim import adamw, decay_groups
from util.training.precision import MAX_SKIPPED, Precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("amp", "name", "dtype"),
    [("auto", "none", None), ("none", "none", None), ("bf16", "bf16", torch.bfloat16),
     ("fp16", "fp16", torch.float16)],
)  # fmt: skip
def test_precision_on_a_cpu(amp, name, dtype):
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    precision = Precision(amp, CPU)
    assert (precision.name, precision.dtype) == (name, dtype)
    assert precision.scaler.is_enabled() == (amp == "fp16")
    x = torch.randn(4, 8)
    expected = torch.autograd.grad(layer(x).square().mean(), list(layer.parameters()))
    before = layer.weight.detach().clone()
    with precision.autocast():
        out = layer(x)
    assert out.dtype == (dtype or torch.float32)
    precision.backward(out.float().square().mean())
    norm = precision.step(optimizer, None)
    exact = torch.stack([g.norm() for g in expected]).norm()
    torch.testing.assert_close(norm, exact, rtol=2e-2, atol=0)
    torch.testing.assert_close(before - layer.weight, 0.1 * expected[0], rtol=0.05, atol=1e-3)
    assert layer.weight.grad is None


@pytest.mark.parametrize(
    ("width", "gains", "name"), [(384, True, "bf16"), (384, False, "none"), (128, True, "none")]
)
def test_auto_takes_bf16_for_wide_models_on_cpus_that_gain_by_it(monkeypatch, width, gains, name):
    monkeypatch.setattr(precision_module, "_cpu_gains_by_bf16", lambda: gains)
    assert Precision("auto", CPU, width).name == name
    assert Precision("none", CPU, width).name == "none"


def test_the_gain_by_bf16_is_measured_once():
    assert precision_module._cpu_gains_by_bf16() is precision_module._cpu_gains_by_bf16()
    assert precision_module._cpu_gains_by_bf16.cache_info().misses == 1


def test_clipping_scales_the_step_and_reports_the_norm_before():
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    precision = Precision("none", CPU)
    precision.backward((parameter * torch.tensor([3.0, 4.0])).sum())
    assert float(precision.step(optimizer, 0.5)) == pytest.approx(5.0)
    torch.testing.assert_close(parameter.detach(), torch.tensor([-0.3, -0.4]), rtol=1e-4, atol=0)


def test_fp16_passes_over_an_overflow_and_lowers_its_scale():
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    precision = Precision("fp16", CPU)
    scale = precision.scaler.get_scale()
    precision.backward((parameter * math.inf).sum())
    assert float(precision.step(optimizer, 1.0)) == 0.0
    assert torch.equal(parameter.detach(), torch.zeros(2))
    assert precision.scaler.get_scale() < scale


def test_fp16_tells_of_gradients_that_no_scale_repairs():
    parameter = nn.Parameter(torch.zeros(2))
    precision, optimizer = Precision("fp16", CPU), torch.optim.SGD([parameter], lr=1.0)

    def norms(factor: float, steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            precision.backward((parameter * factor).sum())
            found.append(float(precision.step(optimizer, None)))
        return found

    assert norms(math.nan, MAX_SKIPPED - 1) == [0.0] * (MAX_SKIPPED - 1)
    assert norms(1.0, 1) == [pytest.approx(math.sqrt(2))]
    stuck = norms(math.nan, MAX_SKIPPED)
    assert stuck[:-1] == [0.0] * (MAX_SKIPPED - 1) and math.isnan(stuck[-1])
    assert precision.scaler.get_scale() > 0


def test_without_scaling_a_bad_gradient_is_reported():
    parameter = nn.Parameter(torch.zeros(2))
    precision = Precision("none", CPU)
    precision.backward((parameter * math.inf).sum())
    assert not precision.step(torch.optim.SGD([parameter], lr=0.0), None).isfinite()


def test_what_its_own_loss_moves_is_neither_clipped_nor_counted():
    """A huge gradient of φ leaves the encoder's step as it is; one that is not finite is told."""
    model = nn.ModuleDict({"blocks": nn.Linear(2, 2), "approximation": nn.Linear(2, 2)})
    model.outside_gradient_norm = ("approximation.",)
    optimizer = adamw(decay_groups(model, 0.1))
    assert sorted((g["clip"], g["weight_decay"]) for g in optimizer.param_groups) == [
        (False, 0.0), (False, 0.1), (True, 0.0), (True, 0.1)
    ]  # fmt: skip
    seen = {}

    def norm_of(phi_gradient: float) -> float:
        for name, parameter in model.named_parameters():
            is_phi = name.startswith("approximation.")
            parameter.grad = torch.full_like(parameter, phi_gradient if is_phi else 1.0)
            parameter.register_hook(lambda grad: grad)
        optimizer.register_step_post_hook(
            lambda *_: seen.update({n: p.grad.clone() for n, p in model.named_parameters()})
        )
        return float(Precision("none", CPU).step(optimizer, clip_grad=0.1))

    assert norm_of(1e6) == pytest.approx(math.sqrt(6))
    assert seen["blocks.weight"].norm() < 0.1
    assert (seen["approximation.weight"] == 1e6).all()
    assert math.isinf(norm_of(math.inf)) and math.isnan(norm_of(math.nan))
