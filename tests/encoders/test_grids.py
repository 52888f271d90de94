"""Positions of other people's encoders lie where their patches do, whatever the new grid is."""

import argparse

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from encoders.grids import find_grid, told_sizes
from encoders.load import architecture, build_encoder, load_pretrained, model_name
from encoders.pos_embed import interpolate_pos_embed, sincos_pos_embed
from encoders.vit import NORM, Pretrained
from util.errors import UsageError

PATCH, WIDTH = 8, 48


def vit(height, width, **changes):
    options = dict(
        img_size=(height, width), patch_size=PATCH, embed_dim=WIDTH, depth=1, num_heads=3,
        num_classes=0, norm_layer=NORM,
    )  # fmt: skip
    torch.manual_seed(0)
    return VisionTransformer(**options | changes)


def with_places(model):
    """The first channels of its positions are a patch's row and column, in shares of the image."""
    height, width = model.patch_embed.grid_size
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    places = torch.cartesian_prod(rows, columns)
    with torch.no_grad():
        model.pos_embed[0, -height * width :, :2] = places
    return model


def save(tmp_path, model, **more):
    torch.save({"model": model.state_dict()} | more, tmp_path / "file.pth")
    return str(tmp_path / "file.pth")


def load(path, height, width):
    pretrained = Pretrained(path, 3)
    name = model_name(pretrained)
    known = architecture(pretrained, name)
    model = build_encoder(name, 0, (height, width), 3, False, architecture=known)
    load_pretrained(pretrained, model)
    return model


PREFIXES = {
    "class token": {}, "registers without positions": dict(reg_tokens=4, no_embed_class=True),
    "registers with positions": dict(reg_tokens=4),
}  # fmt: skip


@pytest.mark.parametrize("kind", PREFIXES)
@pytest.mark.parametrize(
    ("old", "new"),
    [((32, 32), (16, 64)), ((32, 32), (64, 16)), ((64, 64), (128, 32)), ((64, 64), (32, 128)),
     ((48, 48), (24, 96)), ((32, 32), (64, 64)), ((64, 64), (128, 128)), ((64, 64), (16, 32))],
)  # fmt: skip
def test_a_change_of_grid_is_interpolated_and_said(tmp_path, caplog, kind, old, new):
    """Of an equal number of patches, too."""
    caplog.set_level("INFO")
    source = with_places(vit(*old, **PREFIXES[kind]))
    model = load(save(tmp_path, source), *new)
    grids = [tuple(side // PATCH for side in size) for size in (old, new)]
    assert model.patch_embed.grid_size == grids[1]
    expected = interpolate_pos_embed(source.pos_embed, *grids)
    torch.testing.assert_close(model.pos_embed, expected)
    said = "position embedding: {} x {} -> {} x {} patches".format(*grids[0], *grids[1])
    assert said in caplog.messages
    # Where a patch is, its position says; the bicubic stretches a ramp's ends a little.
    places = with_places(vit(*new, **PREFIXES[kind])).pos_embed
    num = grids[1][0] * grids[1][1]
    assert (model.pos_embed - places)[0, -num:, :2].abs().max() < 0.6 / min(grids[0])


@pytest.mark.parametrize("kind", PREFIXES)
def test_the_same_grid_keeps_its_positions(tmp_path, caplog, kind):
    caplog.set_level("INFO")
    source = vit(32, 32, **PREFIXES[kind])
    model = load(save(tmp_path, source), 32, 32)
    assert torch.equal(model.pos_embed, source.pos_embed)
    assert not any("position embedding" in message for message in caplog.messages)


TOLD = {
    "a training's flags": dict(args=argparse.Namespace(input_size=[16, 64])),
    "flags in a dict": dict(args=dict(img_size=(16, 64))),
    "timm's": dict(config=dict(pretrained_cfg=dict(input_size=[3, 16, 64]))),
    "timm's arguments": dict(config=dict(model_args=dict(img_size=[16, 64]))),
    "transformers'": dict(config=dict(image_size=[16, 64])),
}


@pytest.mark.parametrize("told", TOLD)
def test_a_size_that_the_file_tells_is_its_grid(tmp_path, told):
    """2 x 8 patches are not taken for 4 x 4."""
    source = vit(16, 64)
    path = save(tmp_path, source, **TOLD[told])
    assert torch.equal(load(path, 16, 64).pos_embed, source.pos_embed)
    expected = interpolate_pos_embed(source.pos_embed, (2, 8), (4, 4))
    torch.testing.assert_close(load(path, 32, 32).pos_embed, expected)
    assert Pretrained(path, 3).encoder_config()["input_size"] == [16, 64]


def test_a_rectangle_that_no_file_tells_is_taken_at_its_own_number_alone(tmp_path, caplog):
    caplog.set_level("INFO")
    source = vit(16, 40)  # 10 patches
    path = save(tmp_path, source)
    assert torch.equal(load(path, 16, 40).pos_embed, source.pos_embed)
    assert any("taken as 2 x 5 patches" in message for message in caplog.messages)
    with pytest.raises(UsageError, match="10 patches have positions and do not form a square"):
        load(path, 32, 32)


def test_a_told_size_of_another_model_is_not_believed(tmp_path):
    path = save(tmp_path, vit(32, 32), config=dict(image_size=224))
    assert Pretrained(path, 3).foreign.grid() == (1, (4, 4))


@pytest.mark.parametrize("kind", PREFIXES)
def test_the_input_size_is_the_positions(tmp_path, kind):
    path = save(tmp_path, vit(64, 64, **PREFIXES[kind]))
    assert Pretrained(path, 3).encoder_config()["input_size"] == [64, 64]


def test_a_class_token_at_zero_is_no_patch():
    """12 x 4 patches and a class token are 49, and not 7 x 7."""
    kernel = torch.zeros(48, 3, 16, 16)
    fixed = {"pos_embed": sincos_pos_embed(48, (12, 4)), "patch_embed.proj.weight": kernel}
    assert find_grid(fixed, [(192, 64)]) == (1, (12, 4)) and find_grid(fixed, []) is None
    fixed["pos_embed"] = sincos_pos_embed(48, (7, 7))
    assert find_grid(fixed, []) == (1, (7, 7))
    assert find_grid(fixed | {"pos_embed": torch.ones(1, 49, 48)}, []) == (0, (7, 7))
    assert find_grid({}, []) is None


def test_sizes_in_all_their_forms():
    config = dict(image_size=224, input_size="big", pretrained_cfg=dict(input_size=(3, 32, 64)))
    assert told_sizes(config, dict(input_size=96)) == [(224, 224), (96, 96), (32, 64)]
    assert told_sizes({}, dict(img_size=[0, 4], input_size=[1, 2, 3, 4])) == []
