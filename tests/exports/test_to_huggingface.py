"""transformers computes what the checkpoint's model does, by from_pretrained from the folder.

With OTHER_TRANSFORMERS=FOLDER[:FOLDER] a slow test runs this file again with other releases, which
`pip install --target FOLDER` has put there.
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import exported
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image

from exports.source import Source
from util.data.images import to_tensor
from util.data.transforms import Normalize, ResizeCenterCrop

NANO, MINI = "vit_nano_patch2", "swin_mini_patch2"
SCALED = dict(
    family="vit", patch_size=2, embed_dim=64, depth=3, num_heads=2, mlp_ratio=2.0, eps=1e-6,
    qkv_bias=True, init_values=1.0, reg_tokens=0, no_embed_class=False,
)  # fmt: skip
BEIT = dict(
    family="beit", patch_size=2, embed_dim=64, depth=3, num_heads=2, mlp_ratio=4.0, eps=1e-12,
    qkv_bias=True, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=1.0,
)  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pth"


def load(out, name, **options):
    """A model of transformers from the folder; nothing is missing, nothing is left over."""
    found, info = getattr(transformers, name).from_pretrained(
        out, output_loading_info=True, **options
    )
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return found.eval()


def write(checkpoint, out, *flags) -> Source:
    outcome = exported.export(checkpoint, out, "huggingface", *flags)
    assert outcome.status == 0, outcome.err
    encoder_only = "--encoder_only" in flags
    return Source(checkpoint, encoder_only)


def close(found, expected) -> None:
    scale = max(1.0, expected.abs().max().item())
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 2e-5 * scale


@torch.no_grad()
@pytest.mark.parametrize("name, size, in_chans, ratio, norm_pix_loss", [
    ("mae_vit_nano_patch2", 8, 3, 0.75, False), ("mimae_vit_tiny_patch2", 20, 1, 0.9, True),
    ("mimae_vit_nano_patch7", 28, 5, 0.6, True),
])  # fmt: skip
def test_mae_has_the_loss_under_the_same_noise(
    path, tmp_path, name, size, in_chans, ratio, norm_pix_loss
):
    options = dict(mask_ratio=ratio, norm_pix_loss=norm_pix_loss)
    if name.startswith("mimae"):
        options |= dict(num_masks=1, lambda_max=0.0, lambda_min=0.0)
    checkpoint = exported.pretrained(path, name, size, in_chans, **options)
    source = write(checkpoint, tmp_path / "out")
    model = load(tmp_path / "out", "ViTMAEForPreTraining")
    own = source.masked()
    images = source.images(4, seed=3)
    noise = torch.rand(4, own.masks.num_patches)
    found = model(images, noise=noise)
    assert found.mask.sum(1).tolist() == [own.masks.num_patches - own.masks.num_visible] * 4
    expected = own(images, noise)["loss"]
    assert abs(found.loss - expected) <= 1e-5 * max(1.0, expected.item())


@torch.no_grad()
def test_mi_mae_of_four_masks_is_its_first_mask(path, tmp_path):
    checkpoint = exported.pretrained(path, "mimae_vit_nano_patch2", 8)
    source = write(checkpoint, tmp_path / "out")
    model = load(tmp_path / "out", "ViTMAEForPreTraining")
    from models_mimae import MODELS

    own = MODELS["mimae_vit_nano_patch2"](img_size=8)
    own.load_state_dict(torch.load(path, weights_only=True)["model"])
    images, noise = source.images(3), torch.rand(3, 16)
    ids = own.draw_masks(images, noise)[:, :1]  # [B, 1, L]
    z, _ = own.forward_encoder(images, ids)
    close(model(images, noise=noise).loss, own.decoded_loss(z, own.targets(images), ids))
    assert "approximation" in (tmp_path / "out/README.md").read_text()


@torch.no_grad()
def test_plain_encoder_of_any_grid(path, tmp_path):
    checkpoint = exported.pretrained(path, "mae_vit_nano_patch2", (8, 12), 2)
    outcome = exported.export(checkpoint, tmp_path / "no", "huggingface")
    assert outcome.status == 2 and "--encoder_only" in outcome.err
    source = write(checkpoint, tmp_path / "out", "--encoder_only")
    model = load(tmp_path / "out", "ViTModel", add_pooling_layer=False)
    images = source.images(2)
    close(model(images).last_hidden_state, source.encoder().forward_features(images))


@torch.no_grad()
@pytest.mark.parametrize("pool", [True, False], ids=["mean", "class token"])
@pytest.mark.parametrize("architecture", [None, SCALED, BEIT], ids=["plain", "scaled", "beit"])
def test_fine_tuned(path, tmp_path, pool, architecture):
    name = NANO if architecture is None else f"{architecture['family']}_64_patch2"
    checkpoint = exported.classifier(path, name, 8, 3, pool, architecture)
    source = write(checkpoint, tmp_path / "out")
    kind = "ViT" if architecture is None and not pool else "Beit"
    model = load(tmp_path / "out", f"{kind}ForImageClassification")
    images = source.images(3)
    close(model(images).logits, source.classifier()(images))
    assert [model.config.id2label[i] for i in range(3)] == exported.CLASSES


@torch.no_grad()
@pytest.mark.parametrize("name, pool", [(NANO, False), (NANO, True), (MINI, True)])
def test_probed(path, tmp_path, name, pool):
    source = write(exported.probe(path, name, 16, pool), tmp_path / "out")
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    images = source.images(3)
    close(model(images).logits, source.classifier()(images))


@torch.no_grad()
@pytest.mark.parametrize("name", ["misimmim_swin_mini_patch2", "simmim_vit_nano_patch2"])
def test_simmim_has_the_loss_under_the_same_mask(path, tmp_path, monkeypatch, name):
    import models_simmim
    from encoders.vit import SIZES

    options = dict(num_masks=1, lambda_max=0.0, lambda_min=0.0)
    # The ViT that this project has a name for is a base one.
    small = partial(models_simmim.SimMIMViT, **SIZES[NANO], **options)
    monkeypatch.setitem(models_simmim.MODELS, "simmim_vit_nano_patch2", small)
    size = 24 if "swin" in name else 64
    checkpoint = exported.pretrained(path, name, size, 3, mask_ratio=0.5)
    source = write(checkpoint, tmp_path / "out")
    kind = "Swin" if "swin" in name else "ViT"
    model, own = load(tmp_path / "out", f"{kind}ForMaskedImageModeling"), source.masked()
    images = source.images(3, seed=3)
    noise = torch.rand(own.masks.noise_shape(3))
    ids_masked = own.split(own.draw_masks(images, noise))[1][:, 0]  # [B, M]
    is_masked = torch.zeros(3, own.grid[0] * own.grid[1]).scatter(1, ids_masked, 1.0)
    is_masked = is_masked.unflatten(1, (1, *own.grid))
    across = own.patch_size // model.config.patch_size
    is_masked = F.interpolate(is_masked, scale_factor=across).flatten(1).bool()
    found = model(images, bool_masked_pos=is_masked)
    assert abs(found.loss - own(images, noise)["rec"]) <= 1e-5


@torch.no_grad()
def test_swin(path, tmp_path):
    checkpoint = exported.pretrained(path, "misimmim_swin_mini_patch2", 32, 1)
    source = write(checkpoint, tmp_path / "out", "--encoder_only")
    images = source.images(2)
    expected = source.encoder().forward_features(images).flatten(1, 2)
    close(load(tmp_path / "out", "SwinModel")(images).last_hidden_state, expected)
    source = write(exported.classifier(path, MINI, 24), tmp_path / "fine")
    model = load(tmp_path / "fine", "SwinForImageClassification")
    images = source.images(2)
    close(model(images).logits, source.classifier()(images))


@torch.no_grad()
@pytest.mark.parametrize("name, size, bias, scale", [
    (NANO, 16, True, 0.1), (NANO, 16, False, 0.0), (NANO, 24, False, 0.1),
])  # fmt: skip
def test_upernet(path, tmp_path, name, size, bias, scale):
    source = write(exported.segmenter(path, name, size, bias, scale), tmp_path / "out")
    model = load(tmp_path / "out", "UperNetForSemanticSegmentation")
    images = source.images(1)
    expected = F.interpolate(source.segmenter()(images), size, mode="bilinear")
    close(model(images).logits, expected)


def test_swins_that_it_computes_otherwise_are_refused_in_a_line(path, tmp_path):
    cases = {
        "shifts": exported.segmenter(path, MINI, 16),
        "48 pixels": exported.pretrained(tmp_path / "2.pth", "simmim_swin_mini_patch2", 64),
    }
    for word, checkpoint in cases.items():
        outcome = exported.export(checkpoint, tmp_path / "out", "huggingface")
        assert outcome.status == 2 and word in outcome.err and "--to" in outcome.err


def test_registers_and_rectangles_are_refused_in_a_line(path, tmp_path):
    registers = dict(SCALED, reg_tokens=2, no_embed_class=True)
    cases = {
        "registers": exported.classifier(path, "vit_64_patch2", 8, 3, True, registers),
        "square": exported.classifier(tmp_path / "2.pth", NANO, (8, 12)),
        "square ": exported.classifier(tmp_path / "3.pth", MINI, (16, 24)),
    }
    for word, checkpoint in cases.items():
        outcome = exported.export(checkpoint, tmp_path / "out", "huggingface")
        assert outcome.status == 2 and len(outcome.err.splitlines()) == 1
        assert word in outcome.err and "--to" in outcome.err and not (tmp_path / "out").exists()


def test_the_image_processor_makes_this_projects_tensors(path, tmp_path):
    """To a level of 255; where the crop's rounding differs, one pixel beside."""
    source = write(exported.pretrained(path, "mae_vit_nano_patch2", 28), tmp_path / "out")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    normalize = Normalize(source.config["mean"], source.config["std"])
    for sides in ((60, 64), (64, 60), (40, 40), (100, 41)):
        pixels = torch.randint(0, 256, (3, *sides)).float()
        pixels = F.avg_pool2d(pixels, 5, 1, 2).byte().permute(1, 2, 0)
        picture = Image.fromarray(pixels.contiguous().numpy())
        found = processor(picture, return_tensors="pt")["pixel_values"][0]
        own = ResizeCenterCrop(source.input_size, source.crop_share)(to_tensor(picture))
        own = normalize(own[None])[0]
        assert (found - own).abs().max() <= 1.01 / 255 / 0.25


def test_a_pixel_beside_where_the_crop_is_rounded_otherwise(path, tmp_path):
    source = write(exported.pretrained(path, "mae_vit_nano_patch2", 28), tmp_path / "out")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    pixels = torch.randint(0, 256, (32, 35, 3), dtype=torch.uint8)  # no resizing; 7 are cut off
    found = processor(Image.fromarray(pixels.numpy()), return_tensors="pt")["pixel_values"]
    own = ResizeCenterCrop(source.input_size, source.crop_share)
    normalize = Normalize(source.config["mean"], source.config["std"])
    pixels = pixels.permute(2, 0, 1)
    assert torch.allclose(found, normalize(own(pixels[:, :, :-1])[None]), rtol=0, atol=1e-5)
    assert not torch.allclose(found, normalize(own(pixels)[None]), rtol=0, atol=1e-2)


def test_grey_pictures_and_arrays_of_five_channels(path, tmp_path):
    # Before 5.0 its processors make pictures of arrays, which have no five channels.
    for in_chans in (1, 5) if int(transformers.__version__.split(".")[0]) >= 5 else (1,):
        out = tmp_path / f"out{in_chans}"
        source = write(exported.pretrained(path, "mae_vit_nano_patch2", 8, in_chans), out)
        processor = transformers.AutoImageProcessor.from_pretrained(out)
        pixels = torch.randint(0, 256, (in_chans, 8, 8), dtype=torch.uint8)
        options = dict(return_tensors="pt", input_data_format="channels_first")
        found = processor(pixels.numpy(), **options)["pixel_values"]
        own = ResizeCenterCrop(source.input_size, source.crop_share)(pixels)
        own = Normalize(source.config["mean"], source.config["std"])(own[None])
        assert (found - own).abs().max() <= 1.01 / 255 / 0.25


@pytest.mark.slow
def test_the_card_has_lines_that_run(path, tmp_path):
    write(exported.classifier(path, NANO, 8), tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    lines = text.split("```python\n")[1].split("\n```")[0].replace("OUT", str(tmp_path / "out"))
    program = f"from PIL import Image; images = [Image.new('RGB', (9, 9))]\n{lines}"
    found = subprocess.run(
        [sys.executable, "-c", f"{program}\nprint(tuple(logits.shape))"], text=True,
        capture_output=True, cwd=tmp_path,
    )  # fmt: skip
    assert found.stdout.strip() == "(1, 3)", found.stderr


@pytest.mark.slow
def test_other_releases_of_transformers():
    folders = [folder for folder in os.environ.get("OTHER_TRANSFORMERS", "").split(":") if folder]
    if not folders:
        pytest.skip("OTHER_TRANSFORMERS names no folders")
    for folder in folders:
        environment = os.environ | {"PYTHONPATH": folder}
        words = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", __file__]
        found = subprocess.run(
            words, env=environment, capture_output=True, text=True,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert found.returncode == 0, f"{folder}: {found.stdout[-3000:]}"
