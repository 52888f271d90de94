"""Drop path by position: timm's rates and scale, the same for any number of processes."""

import pytest
import torch
from timm.layers import DropPath
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from encoders.load import build_encoder
from util.cluster import distributed
from util.training.drop_path import DropPaths, GivenDrop

CPU = torch.device("cpu")


@pytest.fixture
def as_rank(monkeypatch):
    def set_rank(rank, world):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: world)

    return set_rank


def encoder(name: str = "vit_tiny_patch2", rate: float = 0.4) -> nn.Module:
    torch.manual_seed(0)
    return build_encoder(name, 3, 8 if "vit" in name else 16, 1, drop_path=rate)


@pytest.mark.parametrize("name", ["vit_tiny_patch2", "swin_mini_patch2"])
def test_all_of_timms_are_replaced_with_their_rates(name):
    model, before = encoder(name), encoder(name)
    rates = [m.drop_prob for m in before.modules() if isinstance(m, DropPath)]
    drop_paths = DropPaths(model, seed=0)
    assert [m.drop_prob for m in drop_paths.modules] == rates and len(rates) > 2
    assert not any(isinstance(m, DropPath) for m in model.modules())
    assert model.state_dict().keys() == before.state_dict().keys()
    side = 8 if "vit" in name else 16
    imgs = torch.rand(4, 1, side, side)
    model.eval(), before.eval()
    torch.testing.assert_close(model(imgs), before(imgs), rtol=0, atol=0)
    model.train()
    drop_paths.draw(0, 0, 4, CPU)
    assert torch.equal(model(imgs), model(imgs))  # as often as it is asked: recomputed blocks
    first = model(imgs)
    drop_paths.draw(1, 0, 4, CPU)
    assert not torch.equal(model(imgs), first)


def test_what_is_kept_is_scaled_and_how_much_is_dropped():
    model = nn.ModuleList([nn.Sequential(DropPath(rate)) for rate in (0.1, 0.5)])
    drop_paths = DropPaths(model, seed=3)
    drop_paths.draw(0, 0, 20_000, CPU)
    x = torch.ones(20_000, 2, 3, dtype=torch.bfloat16)
    for (module,), rate in zip(model, (0.1, 0.5), strict=True):
        y = module.train()(x)
        assert y.dtype == x.dtype and (y == y[:, :1, :1]).all()  # a whole image
        kept = y[:, 0, 0] != 0
        torch.testing.assert_close(y[kept], (x / (1 - rate))[kept])
        assert float(kept.float().mean()) == pytest.approx(1 - rate, abs=0.015)
    scales = torch.stack([m.scale[:, 0] for m in drop_paths.modules])
    assert abs(float(torch.corrcoef((scales > 0).float())[0, 1])) < 0.03


def test_the_number_of_processes_changes_nothing(as_rank):
    def scales(rank: int, world: int, step: int, micro: int) -> torch.Tensor:
        as_rank(rank, world)
        drop_paths = DropPaths(encoder(), seed=1)
        drop_paths.draw(step, micro, 24 // world, CPU)
        return torch.stack([m.scale for m in drop_paths.modules])

    expected = scales(0, 1, 5, 0)
    for world in (2, 3, 4):
        for rank in range(world):
            assert torch.equal(scales(rank, world, 5, 0), expected[:, rank::world])
    assert not torch.equal(scales(0, 1, 5, 1), expected)
    assert not torch.equal(scales(0, 1, 6, 0), expected)


def test_a_compiled_model_is_compiled_once():
    model = encoder()
    drop_paths = DropPaths(model, seed=0)
    counter = CompileCounterWithBackend("eager")
    model.train().compile(backend=counter)
    outputs = []
    for step in range(4):
        drop_paths.draw(step, 0, 6, CPU)
        imgs = torch.ones(6, 1, 8, 8)
        outputs.append(model(imgs).detach())
        torch.testing.assert_close(outputs[-1], model._call_impl(imgs).detach())
    assert counter.frame_count == 1
    assert not torch.equal(outputs[0], outputs[1])


def test_a_model_without_drop_path_needs_no_draws():
    drop_paths = DropPaths(encoder(rate=0.0), seed=0)
    drop_paths.draw(0, 0, 4, CPU)
    assert drop_paths.modules == [] and GivenDrop(0.5).eval()(torch.ones(2)).sum() == 2
