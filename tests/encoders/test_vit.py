"""The downstream encoder: the same features as in pre-training, and what fits into it."""

import copy

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from encoders.pos_embed import interpolate_pos_embed
from encoders.vit import SIZES, Features, LinearProbe, Pretrained, build_vit, encoder_name, layer_of
from models_mimae import mimae_vit_tiny_patch2, mimae_vit_tiny_patch4
from util.errors import UsageError
from util.training.optim import layer_decay_groups


@pytest.fixture
def saved(tmp_path):
    """(model, changes …) -> the path of its checkpoint."""

    def save(model, **state):
        path = tmp_path / "pretrained.pth"
        torch.save({"model": model.state_dict()} | state, path)
        return str(path)

    return save


def test_features_are_those_of_pretraining(saved):
    torch.manual_seed(0)
    model = mimae_vit_tiny_patch2(img_size=(8, 12), in_chans=3).eval()
    vit = build_vit("vit_tiny_patch2", 10, (8, 12), 3, global_pool=False).eval()
    config = dict(grid=list(model.grid))
    Pretrained(saved(model, config=config)).load_into(vit)
    imgs = torch.randn(2, 3, 8, 12)
    tokens = model.encode(imgs)
    torch.testing.assert_close(vit.forward_features(imgs), tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(Features(vit)(imgs), tokens[:, 0], rtol=1e-4, atol=1e-5)


def test_global_pool_is_the_mean_patch_token_then_a_norm(saved):
    model = mimae_vit_tiny_patch2(img_size=8, in_chans=1).eval()
    vit = build_vit("vit_tiny_patch2", 10, 8, 1, global_pool=True).eval()
    Pretrained(saved(model)).load_into(vit)
    model.norm = torch.nn.Identity()
    imgs = torch.randn(2, 1, 8, 8)
    pooled = model.encode(imgs)[:, 1:].mean(1)
    expected = torch.nn.functional.layer_norm(pooled, (128,), eps=1e-6)
    torch.testing.assert_close(Features(vit)(imgs), expected, rtol=1e-4, atol=1e-5)
    assert vit(imgs).shape == (2, 10)


@pytest.mark.parametrize("with_config", [True, False])
def test_another_input_size_interpolates_the_positions(saved, with_config):
    model = mimae_vit_tiny_patch4(img_size=16, in_chans=1)
    path = saved(model, **(dict(config=dict(grid=[4, 4])) if with_config else {}))
    vit = build_vit("vit_tiny_patch4", 10, (24, 16), 1)
    Pretrained(path).load_into(vit)
    expected = interpolate_pos_embed(model.pos_embed, (4, 4), (6, 4))
    torch.testing.assert_close(vit.pos_embed.detach(), expected.detach())


def test_a_bare_state_dict_and_an_encoder_alone_load(tmp_path):
    model = mimae_vit_tiny_patch2(img_size=8, in_chans=1)
    encoder = {
        k: v
        for k, v in model.state_dict().items()
        if not k.startswith(("decoder", "mask_token", "approximation"))
    }
    torch.save(encoder, tmp_path / "encoder.pth")
    vit = build_vit("vit_tiny_patch2", 10, 8, 1)
    Pretrained(str(tmp_path / "encoder.pth")).load_into(vit)
    assert torch.equal(vit.blocks[5].mlp.fc2.weight, model.blocks[5].mlp.fc2.weight)


@pytest.mark.parametrize(
    ("name", "size", "chans", "message"),
    [
        ("vit_tiny_patch4", 8, 1, "patch_embed.proj.weight [128, 1, 2, 2] instead of"),
        ("vit_tiny_patch2", 8, 3, "patch_embed.proj.weight [128, 1, 2, 2] instead of"),
        ("vit_small_patch16", 32, 1, "differences"),
    ],
)
def test_another_architecture_names_keys_and_shapes(saved, name, size, chans, message):
    path = saved(mimae_vit_tiny_patch2(img_size=8, in_chans=1))
    with pytest.raises(UsageError) as caught:
        Pretrained(path).load_into(build_vit(name, 10, size, chans))
    assert message in str(caught.value) and path in str(caught.value)


def test_what_holds_no_weights(tmp_path):
    for content in ({}, {"model": {}}, {"epoch": 3}, [torch.ones(2)]):
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(UsageError, match=r"x\.pth"):
            Pretrained(str(tmp_path / "x.pth"))


def test_names_and_layers():
    assert encoder_name("mimae_vit_base_patch16") == "vit_base_patch16" in SIZES
    assert [layer_of(n, 12) for n in ("cls_token", "blocks.0.norm1.bias", "norm.weight")] == [
        0, 1, 13,
    ]  # fmt: skip


def test_a_probe_trains_its_head_alone_and_keeps_the_encoder_in_eval_mode():
    encoder = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
    probe = LinearProbe(encoder, 4, 3).train()
    assert not encoder.training and not encoder[1].training and probe.head.training
    probe(torch.randn(8, 4)).sum().backward()
    moved = {name for name, p in probe.named_parameters() if p.grad is not None}
    assert moved == {"head.1.weight", "head.1.bias"}
    assert probe.head[0].running_mean.abs().max() > 0


@pytest.mark.parametrize("known", [None, {"pos_embed", "cls_token", "dist_token"}])
def test_no_token_decays_whichever_timm(monkeypatch, known):
    """Of registers its version 1.0.16, the oldest that the requirements allow, says nothing."""
    if known is not None:
        monkeypatch.setattr(VisionTransformer, "no_weight_decay", lambda self: known)
    size = dict(patch_size=4, embed_dim=32, depth=1, num_heads=2, reg_tokens=3)
    model = build_vit("x", 5, 8, 1, architecture=size)
    groups = layer_decay_groups(copy.deepcopy(model), 0.05, lambda name: layer_of(name, 1), 0.5)
    tokens = [p for g in groups if not g["weight_decay"] for p in g["params"] if p.ndim > 1]
    assert sorted(p.shape[1] for p in tokens) == [
        1,
        3,
        8,
    ]  # class token, registers, positions of all
    decays = [p.shape for g in groups if g["weight_decay"] for p in g["params"]]
    assert all(len(shape) in (2, 4) for shape in decays)  # matrices and the patches' kernel
