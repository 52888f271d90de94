"""timm computes what the checkpoint's model does, from the folder alone and to 1e-5."""

import json

import exported
import pytest
import timm
import torch

from exports.source import Source

NANO, TINY, MINI = "vit_nano_patch2", "vit_tiny_patch2", "swin_mini_patch2"
REGISTERS = dict(
    family="vit", patch_size=2, embed_dim=64, depth=2, num_heads=2, mlp_ratio=2.0, eps=1e-6,
    qkv_bias=True, init_values=1.0, reg_tokens=3, no_embed_class=True,
)  # fmt: skip
BEIT = dict(
    family="beit", patch_size=2, embed_dim=64, depth=2, num_heads=2, mlp_ratio=4.0, eps=1e-6,
    qkv_bias=True, use_abs_pos_emb=True, use_rel_pos_bias=True, init_values=1.0,
)  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pth"


@torch.no_grad()
def agrees(checkpoint, out, num_classes, *flags) -> None:
    """What timm makes of the export has the features and logits of this project's model."""
    outcome = exported.export(checkpoint, out, "timm", *flags)
    assert outcome.status == 0, outcome.err
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    source = Source(checkpoint, "--encoder_only" in flags)
    images, own = source.images(3, seed=5), source.model()
    found, expected = model.forward_features(images), own.forward_features(images)
    assert found.shape == expected.shape
    scale = max(1.0, expected.abs().max().item())
    assert (found - expected).abs().max() <= 1e-5 * scale
    assert model.num_classes == num_classes
    if num_classes:
        assert (model(images) - own(images)).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("name", ["mae_vit_nano_patch2", "mimae_vit_tiny_patch2"])
@pytest.mark.parametrize("size, in_chans", [(8, 3), ((6, 10), 1), ((10, 4), 5)])
def test_pre_trained_vit_of_any_grid_and_channels(path, tmp_path, name, size, in_chans):
    checkpoint = exported.pretrained(path, name, size, in_chans)
    agrees(checkpoint, tmp_path / "out", 0)


@pytest.mark.parametrize("pool", [True, False], ids=["mean", "class token"])
@pytest.mark.parametrize(
    "architecture", [None, REGISTERS, BEIT], ids=["plain", "registers", "beit"]
)
def test_fine_tuned(path, tmp_path, pool, architecture):
    name = NANO if architecture is None else f"{architecture['family']}_64_patch2"
    checkpoint = exported.classifier(path, name, 8, 3, pool, architecture)
    agrees(checkpoint, tmp_path / "out", 3)
    assert json.loads((tmp_path / "out/config.json").read_text())["label_names"] == exported.CLASSES


@pytest.mark.parametrize("name, pool", [(NANO, False), (NANO, True), (MINI, True)])
def test_probed_head_takes_in_its_batch_norm(path, tmp_path, name, pool):
    checkpoint = exported.probe(path, name, 16, pool)
    agrees(checkpoint, tmp_path / "out", 3)


def test_the_folded_probe_is_the_probe(path):
    from encoders.load import build_encoder
    from encoders.vit import Features, LinearProbe

    checkpoint = exported.probe(path, NANO, 8)
    own = LinearProbe(Features(build_encoder(NANO, 0, 8, 3, False)), 64, 3)
    own.load_state_dict(torch.load(path, weights_only=True)["model"])
    source = Source(checkpoint)
    images = source.images(4)
    with torch.no_grad():
        expected = own.eval()(images)
        assert torch.allclose(source.classifier()(images), expected, rtol=0, atol=1e-5)


def test_swin(path, tmp_path):
    agrees(exported.pretrained(path, "misimmim_swin_mini_patch2", 16), tmp_path / "pre", 0)
    agrees(exported.classifier(path, MINI, 24, 1), tmp_path / "fine", 3)
    rectangle = exported.classifier(path, MINI, (16, 24))
    outcome = exported.export(rectangle, tmp_path / "no", "timm")
    assert outcome.status == 2 and "square" in outcome.err and not (tmp_path / "no").exists()


@pytest.mark.parametrize("bias, scale", [(True, 0.1), (True, 0.0), (False, 0.1), (False, 0.0)])
def test_a_segmenters_encoder_with_relative_positions_is_a_beit(path, tmp_path, bias, scale):
    checkpoint = exported.segmenter(path, NANO, 16, bias, scale)
    outcome = exported.export(checkpoint, tmp_path / "no", "timm")
    assert outcome.status == 2 and "--encoder_only" in outcome.err
    agrees(checkpoint, tmp_path / "out", 0, "--encoder_only")


def test_another_input_size_resamples_positions(path, tmp_path):
    checkpoint = exported.pretrained(path, "mae_vit_nano_patch2", 8)
    outcome = exported.export(checkpoint, tmp_path / "out", "timm", "--input_size", 12, 6)
    assert outcome.status == 0, outcome.err
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    source = Source(checkpoint, input_size=[12, 6])
    assert model.patch_embed.grid_size == (6, 3)
    with torch.no_grad():
        images = source.images(2)
        own = source.model().forward_features(images)
        assert torch.allclose(model.forward_features(images), own, rtol=0, atol=1e-5)


def test_timms_transform_is_this_projects(path, tmp_path):
    """The configuration that timm resolves makes the tensors of the evaluation transform."""
    from PIL import Image

    from util.data.images import to_tensor
    from util.data.transforms import Normalize, ResizeCenterCrop

    checkpoint = exported.pretrained(path, "mae_vit_nano_patch2", 28)
    assert exported.export(checkpoint, tmp_path / "out", "timm").status == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    config = timm.data.resolve_model_data_config(model)
    assert tuple(config["mean"]) == pytest.approx((0.1, 0.2, 0.3))
    transform = timm.data.create_transform(**config)
    picture = Image.fromarray(torch.randint(0, 256, (60, 64, 3), dtype=torch.uint8).numpy())
    source = Source(checkpoint)
    own = ResizeCenterCrop(source.input_size, source.crop_share)(to_tensor(picture))
    own = Normalize(source.config["mean"], source.config["std"])(own[None])[0]
    # One level of 255 in resizing, by Pillow there and torchvision here.
    assert (transform(picture) - own).abs().max() <= 1.01 / 255 / 0.25
