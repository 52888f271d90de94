"""UperNet: transformers' logits from the same weights, its levels, and any encoder and size."""

import argparse
import sys

import pytest
import torch
from torch import nn

from encoders.load import build_backbone, build_encoder, layer_lookup
from encoders.vit import Pretrained
from heads.upernet import UperNet, quarter_blocks
from util.errors import UsageError
from util.training.drop_path import GivenDrop
from util.training.optim import layer_decay_groups


def upernet(name="vit_tiny_patch4", size=32, in_chans=3, num_classes=5, any_size=False, **options):
    torch.manual_seed(0)
    encoder = build_encoder(name, 0, size, in_chans, global_pool=False, any_size=any_size)
    encoder.norm = nn.Identity()
    model = UperNet(encoder, num_classes, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that are not those of a new norm
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model.eval()


# ------------------------------------------------------------------------------------------ parity


def transformers_model(channels: int, num_classes: int) -> nn.Module:
    """A BEiT of 12 narrow blocks with the pyramid of its paper, and UperNet's two heads."""
    transformers = pytest.importorskip("transformers")
    backbone = transformers.BeitConfig(
        image_size=64, patch_size=16, hidden_size=32, num_hidden_layers=12, num_attention_heads=2,
        intermediate_size=64, use_absolute_position_embeddings=True, layer_scale_init_value=0.5,
        use_relative_position_bias=True, out_indices=[4, 6, 8, 12], add_fpn=True,
        reshape_hidden_states=True, layer_norm_eps=1e-12,
    )  # fmt: skip
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=channels, num_labels=num_classes,
        auxiliary_channels=channels, auxiliary_in_channels=32,
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.UperNetForSemanticSegmentation(config).eval()
    for name, tensor in model.state_dict().items():  # nothing stays at 0 or 1
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) * 0.2 + (0.9 if "running_var" in name else -0.1))
    return model


def copy(source: nn.Module, target: nn.Module) -> None:
    """Copy weights and statistics that stand in the same order under other names."""
    values = source.state_dict().values()
    target.load_state_dict(dict(zip(target.state_dict(), values, strict=True)))


def copy_heads(theirs: nn.Module, ours: UperNet) -> None:
    """Copy all of their heads into ours, module by module."""
    head, decoder, auxiliary = theirs.decode_head, ours.decoder, theirs.auxiliary_head
    for i in range(4):
        copy(head.psp_modules.blocks[i], decoder.psp.blocks[i])
    for i in range(3):  # ours go from the coarsest level down
        copy(head.lateral_convs[2 - i], decoder.fpn_lateral_blocks[i].conv_norm_relu)
        copy(head.fpn_convs[2 - i], decoder.fpn_conv_blocks[i])
    copy(head.bottleneck, decoder.psp.out_conv)
    copy(head.fpn_bottleneck, decoder.fusion_block)
    copy(head.classifier, ours.classifier)
    copy(auxiliary.convs[0].conv, ours.auxiliary.conv)
    copy(auxiliary.convs[0].batch_norm, ours.auxiliary.norm)
    copy(auxiliary.classifier, ours.auxiliary.classifier)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_heads_give_transformers_logits():
    theirs = transformers_model(channels=24, num_classes=7)
    encoder = build_encoder("vit_tiny_patch4", 0, 16, 3, global_pool=False)
    encoder.embed_dim = 32  # of the levels that come next; the encoder itself is not used
    ours = UperNet(encoder, 7, channels=24).eval()
    copy_heads(theirs, ours)
    levels = [torch.randn(2, 32, 40 // 2**i, 56 // 2**i) for i in range(4)]
    with torch.no_grad():
        found = ours.classifier(ours.decoder([None, None, *levels]))
        assert_close(found, theirs.decode_head(levels))
        assert_close(ours.auxiliary(levels[2]), theirs.auxiliary_head(levels))
    assert found.std() > 1e-3


def test_the_whole_model_is_transformers_with_a_beit(tmp_path):
    """From the file of a BEiT to logits: encoder, pyramid, heads."""
    theirs = transformers_model(channels=24, num_classes=7)
    weights = {f"beit.{k}": v for k, v in theirs.backbone.state_dict().items() if "fpn" not in k}
    torch.save(weights, tmp_path / "beit.pth")
    args = argparse.Namespace(
        model="as_in_file", input_size=[64, 64], in_chans=3, drop_path=0.0, grad_checkpointing=False
    )
    encoder = build_backbone(Pretrained(str(tmp_path / "beit.pth"), num_heads=2), args)
    ours = UperNet(encoder, 7, channels=24).eval()
    copy_heads(theirs, ours)
    copy(theirs.backbone.fpn.fpn1, ours.pyramid.levels[0])
    copy(theirs.backbone.fpn.fpn2, ours.pyramid.levels[1])
    imgs = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = nn.functional.interpolate(ours(imgs), (64, 64), mode="bilinear")
        assert_close(found, theirs(imgs).logits)
    assert found.std() > 1e-3


# ------------------------------------------------------------------------------------------ levels


def test_levels_come_from_the_published_blocks():
    assert quarter_blocks(12) == [3, 5, 7, 11] and quarter_blocks(24) == [7, 11, 15, 23]
    assert quarter_blocks(6) == [1, 2, 3, 5] and quarter_blocks(32) == [9, 15, 20, 31]


@pytest.mark.parametrize("size", [(32, 32), (16, 40)])
@pytest.mark.parametrize("in_chans", [1, 5])
def test_a_vits_levels_halve_and_come_from_ever_deeper_blocks(size, in_chans):
    model = upernet(size=size, in_chans=in_chans, channels=8)
    imgs = torch.randn(2, in_chans, *size)
    levels = model.features(imgs)
    assert [tuple(level.shape[2:]) for level in levels] == [
        (size[0] // d, size[1] // d) for d in (1, 2, 4, 8)
    ]
    with torch.no_grad():
        model.encoder.blocks[model.ids_blocks[2]].mlp.fc2.bias += 1
    changed = [not torch.equal(a, b) for a, b in zip(levels, model.features(imgs), strict=True)]
    assert changed == [False, False, True, True]
    with torch.no_grad():
        assert model(imgs).shape == (2, 5, *levels[0].shape[2:])


@pytest.mark.parametrize(("name", "levels"), [("swin_mini_patch2", 2), ("swin_tiny", 4)])
def test_a_swins_levels_are_its_stages(name, levels):
    model = upernet(name, size=(64, 96), in_chans=2, channels=8)
    imgs = torch.randn(2, 2, 64, 96)
    with torch.no_grad():
        found = model.features(imgs)
        patch = model.encoder.patch_embed.patch_size[0]
        assert [tuple(level.shape[1:]) for level in found] == [
            (stage.blocks[0].dim, 64 // patch // 2**i, 96 // patch // 2**i)
            for i, stage in enumerate(model.encoder.layers)
        ]
        assert len(found) == levels and model.unit == patch * 2 ** (levels - 1)
        mean = found[0].mean(1)  # normed over the channels
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
        assert model(imgs).shape == (2, 5, 64 // patch, 96 // patch)


def test_default_channels_are_the_published_ones():
    assert upernet().channels == 128 and upernet("swin_tiny").channels == 512
    assert upernet("swin_mini_patch2").channels == 128


@pytest.mark.parametrize("name", ["vit_tiny_patch4", "swin_mini_patch2"])
def test_any_size_is_the_same_model_and_takes_more(name):
    fixed, free = (upernet(name, any_size=any_size, channels=8) for any_size in (False, True))
    free.load_state_dict(fixed.state_dict())
    imgs = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(free(imgs), fixed(imgs))
        other = free(torch.randn(1, 3, 48, 24))
    assert other.shape[2:] == tuple(side * fixed(imgs).shape[2] // 32 for side in (48, 24))


# ---------------------------------------------------------------------------------------- training


def test_training_gives_both_heads_and_every_parameter_a_gradient():
    for name in ("vit_tiny_patch4", "swin_mini_patch2"):
        model = upernet(name, channels=8).train()
        for module in model.modules():
            if isinstance(module, GivenDrop):
                module.scale = torch.ones(2, module.width)
        logits, auxiliary = model(torch.randn(2, 3, 32, 32))
        assert auxiliary.shape[1] == 5 and auxiliary.shape[2] <= logits.shape[2]
        (logits.square().mean() + auxiliary.square().mean()).backward()
        idle = [name for name, p in model.named_parameters() if p.grad is None]
        assert idle == []


def test_layers_of_the_encoder_decay_and_heads_do_not():
    model = upernet(channels=8)
    groups = layer_decay_groups(model, 0.05, layer_lookup(model.encoder, "encoder."), 0.5)
    rates = {id(p): g for g in groups for p in g["params"]}
    named = dict(model.named_parameters())
    for name, layer in (
        ("encoder.patch_embed.proj.weight", 7), ("encoder.blocks.0.attn.qkv.weight", 6),
        ("encoder.blocks.5.attn.qkv.weight", 1), ("decoder.fusion_block.0.weight", 0),
        ("pyramid.levels.1.weight", 0), ("auxiliary.conv.weight", 0),
    ):  # fmt: skip
        assert rates[id(named[name])]["lr_scale"] == 0.5**layer, name
        assert rates[id(named[name])]["weight_decay"] == 0.05
    assert rates[id(named["decoder.fusion_block.1.weight"])]["weight_decay"] == 0


def test_a_missing_decoder_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch.decoders.upernet.decoder", None)
    with pytest.raises(UsageError, match="pip install segmentation-models-pytorch"):
        upernet()
