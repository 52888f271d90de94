"""Augmentation: sizes, crops and what is left alone."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as VF

import main_pretrain
from util.data.images import to_tensor
from util.data.transforms import AutoAugment, CropAndFlip, Normalize, ResizeCenterCrop, resize
from util.errors import UsageError
from util.randomness import seed_libraries

RNG = np.random.default_rng(0)


def picture(width, height, in_chans=3):
    return torch.from_numpy(RNG.integers(0, 256, (in_chans, height, width), dtype=np.uint8))


def assert_within_rounding(actual, expected):
    """Both round twice, after each direction: a level or two apart, and that seldom."""
    difference = (actual.int() - expected.int()).abs()
    assert difference.max() <= 2 and difference.float().mean() < 0.02


def test_normalize_and_its_inverse():
    normalize = Normalize((0.5, 0.2), (0.25, 0.5))
    imgs = torch.randint(0, 256, (2, 2, 3, 3), dtype=torch.uint8)
    out = normalize(imgs)
    expected = (imgs[:, 1].double() / 255 - 0.2) / 0.5
    torch.testing.assert_close(out[:, 1].double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(normalize.inverse(out), imgs.float() / 255)
    torch.testing.assert_close(normalize(imgs.float() / 255), out)  # floats are in 0..1 already
    assert list(normalize.state_dict()) == []


@pytest.mark.parametrize("size", [(224, 224), (96, 160)])
@pytest.mark.parametrize("shape", [(500, 375), (375, 500), (100, 100), (1000, 20), (3, 700)])
def test_the_evaluation_crop_has_its_size_whatever_comes(shape, size):
    assert ResizeCenterCrop(size, 224 / 256)(picture(*shape)).shape == (3, *size)


def test_the_evaluation_resize_has_torchvisions_sizes(monkeypatch):
    """Of photographs of any sides; in floats one in 6000 was a pixel shorter."""
    seen = []
    monkeypatch.setattr(
        "util.data.transforms.resize", lambda image, size, *_: seen.append(size) or image
    )
    monkeypatch.setattr("util.data.transforms.ELONGATED", float("inf"))  # resizes all whole
    view = ResizeCenterCrop((224, 224), 224 / 256)
    shapes = [(h, w) for h in range(60, 1200, 7) for w in range(60, 1200, 3)]
    for height, width in shapes:
        view(torch.empty(1, 1, 1).expand(1, height, width))
        long = int(256 * max(height, width) / min(height, width))  # as torchvision has it
        expected = [256, long] if height < width else [long, 256]
        if (height, width) != tuple(expected):
            assert seen.pop() == expected, (height, width)
    assert not seen


def test_an_image_of_the_right_size_is_left_alone():
    image = picture(28, 28, 1)
    for transform in (ResizeCenterCrop((28, 28), 1.0), CropAndFlip([28, 28], 1.0, False)):
        out = transform(image)
        assert out.dtype == torch.uint8
        assert torch.equal(out, image)
    assert not CropAndFlip([28, 28], 1.0, False).is_random


def test_the_evaluation_crop_takes_the_centre_of_the_resized_image():
    image = picture(200, 100)
    expected = to_tensor(VF.to_pil_image(image).resize((256, 128), Image.BICUBIC))
    left, top = (256 - 112) // 2, (128 - 112) // 2
    expected = expected[:, top : top + 112, left : left + 112]
    actual = ResizeCenterCrop((112, 112), 112 / 128)(image)
    assert_within_rounding(actual, expected)


@pytest.mark.parametrize("size", [(500, 375), (200, 340)])
def test_crops_have_the_pixels_of_pil(size):
    image = VF.gaussian_blur(picture(*size), [9, 9])  # noise, smooth as photographs are
    transform = CropAndFlip((224, 224), 0.2, False)
    for seed in range(5):
        torch.manual_seed(seed)
        actual = transform(image)
        torch.manual_seed(seed)
        expected = transform.crop(VF.to_pil_image(image))
        assert_within_rounding(actual, to_tensor(expected))


def test_each_channel_is_resized_by_itself():
    """Of RGBA too, where PIL would weigh the colours with the opacity."""
    image = torch.zeros(4, 8, 8, dtype=torch.uint8)
    image[0], image[3, :, :4] = 255, 255  # red everywhere, opaque on the left
    out = ResizeCenterCrop((4, 4), 1.0)(image)
    assert (out[0] == 255).all() and (out[3, :, 0] == 255).all() and (out[3, :, 3] == 0).all()


def test_arrays_of_five_channels_go_through_both_transforms():
    for image in (torch.rand(5, 20, 30), torch.randint(0, 256, (5, 20, 30), dtype=torch.uint8)):
        for transform in (ResizeCenterCrop((8, 12), 0.9), CropAndFlip((8, 12), 0.3, True)):
            out = transform(image)
            assert out.shape == (5, 8, 12) and out.dtype == image.dtype


def test_flip_turns_half_the_images():
    torch.manual_seed(0)
    image = picture(8, 8)
    transform = CropAndFlip([8, 8], 1.0, True)
    flips = 0
    for _ in range(400):
        out = transform(image)
        assert torch.equal(out, image) or torch.equal(out, image.flip(2))
        flips += torch.equal(out, image.flip(2))
    assert 150 < flips < 250


@pytest.mark.parametrize("tf_style", [False, True])
def test_crops_lie_inside_and_cover_the_areas_and_ratios(tf_style):
    torch.manual_seed(0)
    transform = CropAndFlip((16, 16), 0.2, False, tf_style)
    image = picture(300, 200)
    shares, ratios = [], []
    for _ in range(500):
        box = transform.crop.make_params([image])
        assert box["top"] >= 0 and box["top"] + box["height"] <= 200
        assert box["left"] >= 0 and box["left"] + box["width"] <= 300
        shares.append(box["height"] * box["width"] / (300 * 200))
        ratios.append(box["width"] / box["height"])
    assert 0.19 < min(shares) < 0.24 and 0.8 < max(shares) <= 1
    assert 3 / 4 * 0.97 < min(ratios) < 0.8
    assert max(ratios) < 4 / 3 * 1.03 if not tf_style else max(ratios) <= 1.55
    # Boxes that do not fit are drawn again, or cut, so large ones are rarer than their share.
    assert 0.4 < sum(shares) / 500 < 0.62
    assert transform(image).shape == (3, 16, 16)


def test_a_tensorflow_crop_of_one_draw_may_be_cut_by_the_border():
    torch.manual_seed(0)
    crop = CropAndFlip((16, 16), 0.9, False, tf_style=True).crop
    boxes = [crop.make_params([picture(40, 400)]) for _ in range(50)]
    assert all(box["width"] == 40 for box in boxes)  # wanted: √(0.9 · 16000) ≈ 120 or more
    heights = [box["height"] for box in boxes]
    assert math.sqrt(0.9 * 16000 * 0.74) < min(heights) < max(heights) < math.sqrt(16000 * 1.34)


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "original"])
@pytest.mark.parametrize("mean", [(0.5,), (0.4, 0.5, 0.6)])
def test_auto_augment_keeps_channels_and_size(policy, mean):
    augment = AutoAugment(policy, (32, 32), mean)
    image = picture(32, 32, len(mean))
    outs = [augment(image) for _ in range(20)]
    assert all(out.shape == image.shape and out.dtype == torch.uint8 for out in outs)
    assert not all(torch.equal(out, image) for out in outs)


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "original", "rand-m10-n4"])
def test_auto_augment_never_fails(policy):
    """Posterize to 0 bits did, on one image in a thousand."""
    augment = AutoAugment(policy, (8, 8), (0.5,))
    image = picture(8, 8, 1)
    for seed in range(1500):
        seed_libraries(seed)
        augment(image)


def test_auto_augment_that_cannot_be(tmp_path):
    with pytest.raises(UsageError, match="--aa"):
        AutoAugment("rand-m9", (32, 32), (0.5,) * 5)
    for policy in ("nonsense", "rand-nonsense9"):
        with pytest.raises(UsageError, match=f"--aa {policy}"):
            AutoAugment(policy, (32, 32), (0.5,))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_crop_is_torchvisions_of_the_same_draw(interpolation):
    """Bicubic as MAE's, bilinear as SimMIM's."""
    image = torch.randint(256, (3, 40, 56), dtype=torch.uint8)
    mode = InterpolationMode(interpolation)
    expected = RandomResizedCrop((16, 24), scale=(0.3, 1.0), interpolation=mode)
    torch.manual_seed(3)
    cut = CropAndFlip((16, 24), 0.3, False, interpolation=interpolation)(image)
    torch.manual_seed(3)
    torch.testing.assert_close(cut, expected(image))
    whole = CropAndFlip((16, 24), 1.0, False, interpolation=interpolation)(image)
    torch.testing.assert_close(whole, resize(image, (16, 24), interpolation))
    assert main_pretrain.parse_args(["--model", "simmim_swin_base"]).interpolation == "bilinear"
    assert main_pretrain.parse_args([]).interpolation == "bicubic"
