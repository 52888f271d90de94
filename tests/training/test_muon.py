"""--opt muon: which parameters are Muon's, what a step is, and what it has in common with AdamW."""

import math

import pytest
import torch
from torch import nn

import models_mae
import models_mimae
import models_simmim
from encoders.load import layer_lookup
from encoders.vit import build_vit
from util.errors import UsageError
from util.training.muon import hidden_matrices, new_optimizer
from util.training.optim import decay_groups, layer_decay_groups, set_lr
from util.training.precision import Precision
from util.training.preflight import estimate_memory

CPU = torch.device("cpu")
BETAS = (0.9, 0.95)
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch 2.9")


def small_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return models_mimae.MaskedAutoencoderViT(
        8, 2, 1, embed_dim=16, depth=2, num_heads=2, decoder_embed_dim=8, decoder_depth=1,
        decoder_num_heads=2,
    )  # fmt: skip


def optimizer_of(model: nn.Module, opt: str = "muon", lr: float = 0.01) -> torch.optim.Optimizer:
    optimizer = new_optimizer(opt, model, decay_groups(model, 0.1), BETAS)
    set_lr(optimizer, lr)
    return optimizer


def give_gradients(model: nn.Module, step: int) -> None:
    draw = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=draw)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@needs_muon
@pytest.mark.parametrize(
    ("build", "count"),
    [
        (small_model, (2 + 1) * 4),
        (models_mae.mae_vit_nano_patch2, (6 + 2) * 4),
        (models_simmim.MODELS["misimmim_swin_mini_patch2"], None),
        (lambda: build_vit("vit_nano_patch2", 10, 8, 1), 6 * 4),
    ],
    ids=["MI-MAE", "MAE", "Swin", "classifier"],
)
def test_each_trained_parameter_is_in_one_group_and_the_blocks_matrices_are_muons(build, count):
    model = build()
    optimizer = optimizer_of(model)
    names = {p: name for name, p in model.named_parameters()}
    hidden, others = [], []
    for group in optimizer.param_groups:
        found = hidden if "momentum" in group else others
        found += [names[p] for p in group["params"]]
        assert set(group) >= {"lr", "lr_scale", "weight_decay", "clip"}
        assert group["clip"] == (not names[group["params"][0]].startswith("approximation."))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert sorted(hidden + others) == sorted(trained)
    ends = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "downsample.reduction")
    assert all("blocks." in n or "downsample" in n for n in hidden)
    assert all(name.removesuffix(".weight").endswith(ends) for name in hidden)
    assert not [n for n in others if "blocks." in n and n.endswith(("fc1.weight", "proj.weight"))]
    assert count is None or len(hidden) == count


@needs_muon
def test_steps_are_those_of_torchs_muon_and_adamw_with_q_k_and_v_apart():
    model, other = small_model(), small_model()
    optimizer = optimizer_of(model)
    hidden, pieces, rest = [], [], []
    for name, parameter in other.named_parameters():
        is_muons = "blocks." in name and parameter.ndim == 2
        if is_muons and name.endswith("qkv.weight"):
            thirds = [nn.Parameter(third.clone()) for third in parameter.detach().chunk(3)]
            hidden, pieces = hidden + thirds, [*pieces, (parameter, thirds)]
        elif is_muons:
            hidden.append(parameter)
        elif parameter.requires_grad:
            rest.append(parameter)
    options = dict(lr=0.01, weight_decay=0.1)
    muon = torch.optim.Muon(hidden, adjust_lr_fn="match_rms_adamw", **options)
    groups = [dict(params=[p for p in rest if p.ndim > 1], weight_decay=0.1)]
    groups += [dict(params=[p for p in rest if p.ndim == 1], weight_decay=0.0)]
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=BETAS)
    for step in range(3):
        for one in (model, other):
            give_gradients(one, step)
        for whole, thirds in pieces:
            for third, grad in zip(thirds, whole.grad.chunk(3), strict=True):
                third.grad = grad.clone()
        for one in (optimizer, muon, adamw):
            one.step()
        for whole, thirds in pieces:
            whole.detach().copy_(torch.cat([third.detach() for third in thirds]))
        for found, expected in zip(weights(model), weights(other), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@needs_muon
@needs_muon
def test_no_view_of_a_gradient_outlives_its_step():
    """Which would hold its memory through the next forward pass."""
    model = small_model()
    optimizer = optimizer_of(model)
    for step in range(2):
        give_gradients(model, step)
        optimizer.step()
        assert not optimizer.muon.state and not optimizer.muon.param_groups
        optimizer.zero_grad(set_to_none=True)


def test_an_update_is_as_large_as_one_of_adamw():
    """0.2 in the root mean square, within the factor to which five iterations orthogonalise."""
    model = models_mae.mae_vit_nano_patch2()
    before, optimizer = weights(model), optimizer_of(model, lr=1.0)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    give_gradients(model, 0)
    optimizer.step()
    hidden = hidden_matrices(model)
    for old, parameter in zip(before, model.parameters(), strict=True):
        if parameter in hidden:
            assert 0.1 < float((old - parameter.detach()).square().mean().sqrt()) < 0.3


@needs_muon
def test_a_rate_of_a_layer_scales_update_and_decay():
    steps = []
    for decay in (1.0, 0.5):
        torch.manual_seed(0)
        model = build_vit("vit_nano_patch2", 10, 8, 1)
        groups = layer_decay_groups(model, 0.1, layer_lookup(model), decay)
        optimizer = new_optimizer("muon", model, groups)
        set_lr(optimizer, 1e-3)
        before = model.blocks[4].attn.qkv.weight.detach().double()
        give_gradients(model, 0)
        optimizer.step()
        steps.append(model.blocks[4].attn.qkv.weight.detach().double() - before)
    torch.testing.assert_close(steps[0] * 0.5**2, steps[1], rtol=1e-3, atol=1e-6)


@needs_muon
def test_a_restored_optimiser_goes_on_with_the_same_bits(tmp_path):
    model = small_model()
    optimizer = optimizer_of(model)
    for step in range(3):
        give_gradients(model, step)
        optimizer.step()
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "saved.pth")
    again = small_model(seed=1)
    restored = optimizer_of(again)
    state = torch.load(tmp_path / "saved.pth", weights_only=True)
    again.load_state_dict(state[0])
    restored.load_state_dict(state[1])
    for step in range(3, 6):
        for one, its in ((model, optimizer), (again, restored)):
            set_lr(its, 1e-3)
            give_gradients(one, step)
            its.step()
    assert all(map(torch.equal, weights(model), weights(again)))
    states = optimizer.state_dict()["state"], restored.state_dict()["state"]
    for i, state in states[0].items():
        assert all(torch.equal(state[key], states[1][i][key]) for key in state)


@needs_muon
def test_clipping_and_loss_scaling_reach_both():
    model = small_model()
    optimizer, precision = optimizer_of(model), Precision("fp16", CPU)
    before = weights(model)
    seen = []  # the gradients' norm, of what is clipped

    def look(*_) -> None:
        named = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
        clipped = [g.square().sum() for name, g in named if not name.startswith("approximation.")]
        seen.append(float(sum(clipped)) ** 0.5)

    optimizer.register_step_pre_hook(look)

    def step(factor: float) -> float:
        precision.backward(factor * sum(p.sum() for p in model.parameters() if p.requires_grad))
        return float(precision.step(optimizer, 0.5))

    assert step(math.inf) == 0.0  # nothing moves, nor is it remembered
    assert all(map(torch.equal, before, weights(model))) and not optimizer.state and not seen
    assert step(1.0) > 0.5
    assert seen == [pytest.approx(0.5, rel=1e-4)]
    moved = [not torch.equal(a, b) for a, b in zip(before, weights(model), strict=True)]
    assert moved == [p.requires_grad for p in model.parameters()]


@needs_muon
@pytest.mark.parametrize("opt", ["adamw", "muon"])
def test_the_memory_estimate_has_what_the_optimiser_keeps(opt):
    model = models_mimae.mimae_vit_small_patch16(img_size=32)
    optimizer = optimizer_of(model, opt)
    give_gradients(model, 0)
    optimizer.step()
    state, _ = estimate_memory(model, model.block_shapes(), 4, False, False, opt)
    own = sum(p.numel() * (2 if p.requires_grad else 1) for p in model.parameters())
    own += sum(v.numel() for of in optimizer.state.values() for v in of.values() if v.ndim)
    assert state == 4 * own


def test_an_older_torch_is_told_to_update(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    model = small_model()
    with pytest.raises(UsageError, match=r"--opt muon needs torch 2\.9 or newer, here 2\.\d+"):
        new_optimizer("muon", model, decay_groups(model, 0.1))
    assert type(new_optimizer("adamw", model, decay_groups(model, 0.1))) is torch.optim.AdamW
