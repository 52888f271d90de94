"""Windows of resized images, and elongated pictures: the same pixels from bounded memory."""

import pytest
import torch

from util.data import transforms
from util.data.resample import resized_window
from util.data.transforms import ResizeCenterCrop, resize


def smooth(height, width, dtype=torch.uint8, channels=3):
    """Noise that is smooth over some pixels, as photographs are."""
    torch.manual_seed(0)
    coarse = torch.rand(1, channels, height // 4 + 2, width // 4 + 2)
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    return (image * 255).round().to(torch.uint8) if dtype == torch.uint8 else image.to(dtype)


def assert_within_rounding(found, expected):
    """torch rounds its weights for bytes, and after each direction."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    difference = (found.double() - expected.double()).abs()
    if found.dtype == torch.uint8:
        assert difference.max() <= 3 and difference.mean() < 0.35
    else:
        assert difference.max() < 1e-4


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    ("shape", "resized"),
    [((40, 60), (80, 120)), ((90, 70), (32, 30)), ((3, 50), (64, 1066)), ((200, 5), (700, 20)),
     ((31, 17), (31, 17)), ((1, 9), (8, 72))],
)  # fmt: skip
def test_a_window_is_cut_from_the_resized_image(interpolation, dtype, shape, resized):
    image = smooth(*shape, dtype)
    whole = resize(image, resized, interpolation)
    height, width = min(resized[0], 13), min(resized[1], 17)
    for top in {0, (resized[0] - height) // 2, resized[0] - height}:
        for left in {0, (resized[1] - width) // 2, resized[1] - width}:
            found = resized_window(image, resized, top, left, (height, width), interpolation)
            expected = whole[:, top : top + height, left : left + width]
            assert_within_rounding(found, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("size", [(224, 224), (96, 160)])
@pytest.mark.parametrize(
    "shape", [(500, 375), (64, 64), (300, 2900), (2900, 300), (20, 190), (9, 1), (1, 12)]
)
def test_both_ways_show_the_same_centre(monkeypatch, dtype, size, shape):
    image, view = smooth(*shape, dtype), ResizeCenterCrop(size, 224 / 256)
    monkeypatch.setattr(transforms, "ELONGATED", 1e9)
    whole = view(image)
    monkeypatch.setattr(transforms, "ELONGATED", 0)
    assert_within_rounding(view(image), whole)


def test_ordinary_pictures_are_resized_as_before(monkeypatch):
    monkeypatch.setattr(transforms, "resized_window", None)
    for shape in ((500, 375), (375, 500), (100, 100), (480, 1920), (224, 1700)):
        assert ResizeCenterCrop((224, 224), 224 / 256)(smooth(*shape)).shape == (3, 224, 224)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", [(1, 4000), (9000, 1), (30000, 10), (10, 30000), (1, 1_000_000)])
def test_elongated_pictures_show_what_their_middle_alone_would(monkeypatch, shape, dtype):
    image, view = smooth(*shape, dtype), ResizeCenterCrop((224, 224), 224 / 256)
    half = 20 * min(shape)
    middle = [slice(max(0, side // 2 - half), side // 2 + half) for side in shape]
    short = image[:, middle[0], middle[1]]
    with monkeypatch.context() as patch:
        patch.setattr(transforms, "ELONGATED", 1e9)
        expected = view(short)
    monkeypatch.setattr(transforms, "resize", None)  # which would make all of it
    assert_within_rounding(view(image), expected)


def test_weights_of_a_window_touch_only_its_surroundings(monkeypatch):
    sizes = []
    matmul = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor, "__matmul__",
        lambda a, b: sizes.extend([a.numel(), b.numel()]) or matmul(a, b),
    )  # fmt: skip
    for shape in ((1, 4000), (9000, 1), (30000, 10), (1, 1_000_000)):
        ResizeCenterCrop((224, 224), 224 / 256)(torch.zeros(3, *shape, dtype=torch.uint8))
    assert len(sizes) == 16 and max(sizes) <= 3 * 224 * 224
