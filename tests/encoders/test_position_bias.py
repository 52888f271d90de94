"""A ViT with position biases and layer scale: BEiT's formula, transformers' blocks, files."""

import argparse
import logging

import pytest
import torch
from torch import nn

from encoders.frozen import FrozenEncoder
from encoders.load import (
    architecture,
    build_backbone,
    build_encoder,
    describe,
    layer_lookup,
    segmenter_architecture,
)
from encoders.position_bias import TABLE, fit_weights, has_position_biases, position_index
from encoders.vit import Pretrained
from heads.upernet import UperNet
from models_mimae import mimae_vit_tiny_patch2
from util.errors import UsageError
from util.training.optim import layer_decay_groups

NAME = "vit_tiny_patch4"


def biased(name=NAME, size=(24, 32), filled=True, **options):
    """A ViT as segmentation trains it; `filled`: tables and scales are not those of the start."""
    known = segmenter_architecture(None, name, True, 1.0)
    torch.manual_seed(0)
    model = build_encoder(name, 0, size, 3, global_pool=False, architecture=known, **options).eval()
    for key, parameter in model.named_parameters():
        if filled and key.endswith((TABLE, "gamma")):
            nn.init.uniform_(parameter, 0.3, 1.2)
    return model


def plain(model):
    """The same without biases and scales, with the weights that it has in common."""
    other = build_encoder(NAME, 0, model.patch_embed.img_size, 3, global_pool=False).eval()
    own = model.state_dict()
    other.load_state_dict({key: own[key] for key in other.state_dict()})
    return other


def test_at_the_start_it_computes_what_the_plain_vit_does():
    model = biased(filled=False)
    assert not model.blocks[3].attn.relative_position_bias_table.any()
    assert (model.blocks[3].ls2.gamma == 1).all()
    imgs = torch.randn(2, 3, 24, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            model.forward_features(imgs), plain(model).forward_features(imgs), rtol=1e-5, atol=1e-5
        )


def test_a_pair_of_tokens_has_the_row_of_its_offset():
    """By the definition, pair by pair; the class token's rows are the last three."""
    height, width = 3, 4
    index = position_index((height, width), 1)
    rows = (2 * height - 1) * (2 * width - 1)
    for query in range(height * width):
        for key in range(height * width):
            down = query // width - key // width
            right = query % width - key % width
            expected = (down + height - 1) * (2 * width - 1) + right + width - 1
            assert index[1 + query, 1 + key] == expected
    assert (index[0, 1:] == rows).all() and (index[1:, 0] == rows + 1).all()
    assert index[0, 0] == rows + 2 and index.unique().numel() == rows + 3
    with_registers = position_index((height, width), 3)
    assert torch.equal(with_registers[2:, 2:], index)
    assert (with_registers[:3, :3] == rows + 2).all()


def transformers_beit(model) -> nn.Module:
    """A BEiT of transformers with the weights of our ViT, whose keys have no bias."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BeitConfig(
        image_size=model.patch_embed.img_size, patch_size=4, hidden_size=128, num_hidden_layers=6,
        num_attention_heads=4, intermediate_size=512, use_absolute_position_embeddings=True,
        use_relative_position_bias=True, layer_scale_init_value=0.5, layer_norm_eps=1e-6,
    )  # fmt: skip
    theirs, own = transformers.BeitModel(config, add_pooling_layer=False).eval(), model.state_dict()
    weights = {
        "embeddings.cls_token": own["cls_token"],
        "embeddings.position_embeddings": own["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": own["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": own["patch_embed.proj.bias"],
    }
    for i in range(6):
        ours, names = f"blocks.{i}.", [key for key in theirs.state_dict() if f"layer.{i}." in key]
        names = names or [key for key in theirs.state_dict() if f"layers.{i}." in key]
        for name in names:
            weights[name] = _ours(own, ours, name.split(f".{i}.", 1)[1])
    theirs.load_state_dict(weights)
    return theirs


def _ours(own, block, name):
    """Our tensor of a block for transformers' name."""
    for number, letter in enumerate(("query", "key", "value")):
        if letter in name or f".{letter[0]}_proj" in name:
            return own[f"{block}attn.qkv.{name.rpartition('.')[2]}"].chunk(3)[number]
    for part, ending in (
        ("relative_position_bias_table", TABLE), ("lambda_1", "ls1.gamma"),
        ("lambda_2", "ls2.gamma"), ("layernorm_before", "norm1"), ("layernorm_after", "norm2"),
        ("intermediate", "mlp.fc1"), ("fc1", "mlp.fc1"), ("fc2", "mlp.fc2"),
        ("attention", "attn.proj"), ("output", "mlp.fc2"),
    ):  # fmt: skip
        if part in name:
            whole = ending in (TABLE, "ls1.gamma", "ls2.gamma")
            return own[f"{block}{ending}{'' if whole else '.' + name.rpartition('.')[2]}"]
    raise KeyError(name)


def test_its_blocks_are_transformers_beits():
    model = biased(size=32)  # theirs has square grids only
    with torch.no_grad():
        for block in model.blocks:  # BEiT's keys have no bias, and it changes no attention
            nn.init.uniform_(block.attn.qkv.bias, -0.3, 0.3)
            block.attn.qkv.bias[128:256] = 0
        imgs = torch.randn(2, 3, 32, 32)
        theirs = transformers_beit(model)(imgs, output_hidden_states=True).hidden_states
        outputs = []
        for block in model.blocks:
            block.register_forward_hook(lambda *call: outputs.append(call[2]))
        model.forward_features(imgs)
        changed = plain(model).forward_features(imgs)
    for found, expected in zip(outputs, theirs[1:], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model.norm(outputs[-1]), changed, atol=1e-2)


def test_a_bias_of_keys_changes_nothing():
    """BEiT's keys have none: the same is added to all logits of a query."""
    model, imgs = biased(), torch.randn(1, 3, 24, 32)
    with torch.no_grad():
        before = model.forward_features(imgs)
        model.blocks[2].attn.qkv.bias[128:256] = 1.5
        torch.testing.assert_close(model.forward_features(imgs), before, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------- files


def flags(**changes) -> argparse.Namespace:
    values = dict(
        model="vit_tiny_patch2", input_size=[8, 12], in_chans=1, drop_path=0.0, mean=[0.5],
        std=[0.5], dataset="digits", grad_checkpointing=False,
    )  # fmt: skip
    return argparse.Namespace(**values | changes)


@pytest.fixture
def mae(tmp_path):
    torch.manual_seed(3)
    model = mimae_vit_tiny_patch2(img_size=8, in_chans=1)
    config = dict(model="mimae_vit_tiny_patch2", grid=[4, 4], in_chans=1)
    torch.save(dict(model=model.state_dict(), config=config), tmp_path / "mae.pth")
    return Pretrained(str(tmp_path / "mae.pth"))


def segmenter(pretrained, args):
    known = segmenter_architecture(pretrained, args.model, True, 1.0)
    return build_backbone(pretrained, args, known=known)


def test_a_plain_file_loads_and_the_log_says_what_is_new(mae, caplog):
    caplog.set_level(logging.INFO)
    model = segmenter(mae, flags())
    assert has_position_biases(model)
    assert torch.equal(model.blocks[5].mlp.fc2.weight, mae.weights["blocks.5.mlp.fc2.weight"])
    for name in ("attn.relative_position_bias_table", "ls1.gamma", "ls2.gamma"):
        assert f"blocks.*.{name}" in caplog.text


def test_what_was_segmented_is_an_encoder_again(mae, tmp_path):
    """For a segmenter of another size with its tables stretched, for a classifier with them as
    they are, for detection not at all; and it has no latents of masked images."""
    args = flags()
    model = segmenter(mae, args)
    with torch.no_grad():
        for block in model.blocks:
            nn.init.uniform_(block.attn.relative_position_bias_table)
            nn.init.uniform_(block.ls1.gamma)
    config = describe(args, model, grid=list(model.patch_embed.grid_size))
    weights = {f"encoder.{key}": value for key, value in model.state_dict().items()}
    torch.save(dict(model=weights, config=config), tmp_path / "segmenter.pth")
    again, third = (Pretrained(str(tmp_path / "segmenter.pth")) for _ in range(2))
    same = build_backbone(again, args, known=architecture(again, args.model))
    imgs = torch.randn(2, 1, 8, 12)
    with torch.no_grad():
        expected = model.eval().forward_features(imgs)
        torch.testing.assert_close(same.eval().forward_features(imgs), expected)
    larger = segmenter(again, flags(input_size=[16, 12]))
    own = fit_weights(third.weights, third.config, (8, 6))
    for i in (0, 5):
        table = f"blocks.{i}.{TABLE}"
        assert torch.equal(larger.state_dict()[table], own[table])
        assert torch.equal(own[table][-3:], third.weights[table][-3:])
        assert torch.equal(larger.blocks[i].ls1.gamma, third.weights[f"blocks.{i}.ls1.gamma"])
    with pytest.raises(UsageError, match=r"segmenter\.pth has a segmenter's position biases"):
        build_backbone(again, args)
    frozen = FrozenEncoder(same, nn.Identity())
    assert frozen.masked_views(imgs, torch.zeros(2, 1, 1, dtype=torch.long)) is None


def test_a_beit_and_a_swin_stay_what_they_are():
    for name in ("swin_tiny", "swin_mini_patch2"):
        assert segmenter_architecture(None, name, True, 1.0) is None
    assert segmenter_architecture(None, NAME, False, 0.0) is None
    own = dict(family="beit", patch_size=4, use_rel_pos_bias=False, init_values=None)
    config = {"architecture": own, "model": "beit"}
    pretrained = argparse.Namespace(config=config, architecture=lambda: own, is_ours=True)
    assert segmenter_architecture(pretrained, "beit", True, 1.0) == own


def test_dinov2s_scales_stay_its_own():
    found = dict(family="vit", patch_size=14, init_values=1.0, reg_tokens=4)
    pretrained = argparse.Namespace(config={"architecture": found}, architecture=lambda: found)
    pretrained.is_ours = True
    pretrained.config["model"] = "vit_huge_patch14_as_in_file"
    args = (pretrained, "vit_huge_patch14_as_in_file", True)
    assert segmenter_architecture(*args, 0.5) == found | {"rel_pos_bias": True}
    assert found.get("rel_pos_bias") is None  # the checkpoint's own is not changed


def test_one_size_only():
    with pytest.raises(UsageError, match=r"--test_mode whole.*slide.*--no-rel_pos_bias"):
        biased(any_size=True)


# ---------------------------------------------------------------------------------------- training


def test_tables_and_scales_are_of_their_blocks_layer_and_decay_as_published():
    """Of everything, only 1-D parameters do not decay: tables and positions do."""
    encoder = biased()
    encoder.norm = nn.Identity()
    model = UperNet(encoder, 5, channels=8)
    groups = layer_decay_groups(model, 0.05, layer_lookup(encoder, "encoder."), 0.5)
    group_of = {id(p): group for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        group = group_of[id(parameter)]
        assert group["weight_decay"] == (0.05 if parameter.ndim > 1 else 0), name
        if name.startswith("encoder.blocks."):
            assert group["lr_scale"] == 0.5 ** (6 - int(name.split(".")[2])), name


def test_every_table_learns():
    model = biased(filled=False).train()
    model(torch.randn(2, 3, 24, 32)).square().sum().backward()
    for block in model.blocks:
        assert block.attn.relative_position_bias_table.grad.abs().sum() > 0
        assert block.ls1.gamma.grad.abs().sum() > 0


def test_a_swins_tables_do_not_decay():
    encoder = build_encoder("swin_mini_patch2", 0, 16, 3)
    encoder.norm = nn.Identity()
    exempt = UperNet(encoder, 5, channels=8).no_weight_decay()
    assert any("relative_position_bias_table" in name for name in exempt)
