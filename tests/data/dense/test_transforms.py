"""An image and its map move together; the published definitions of crops and colours."""

import colorsys

import numpy as np
import pytest
import torch

from util.data.dense import transforms as dense
from util.data.dense.ade20k import NOTHING
from util.randomness import seed_libraries

HEIGHT, WIDTH = 37, 53


def coordinates():
    """Each tells where a pixel came from: an image [row, column] in 0..1, a map of numbers."""
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    image = torch.stack([(rows + 0.5) / HEIGHT, (columns + 0.5) / WIDTH])
    return image, (rows * WIDTH + columns).to(torch.int16)


def apart(image, labels):
    """How far what image and map say of a pixel's origin is apart, in pixels of the original."""
    is_inside = labels != NOTHING
    rows, columns = labels.long() // WIDTH, labels.long() % WIDTH
    off = torch.stack([image[0] * HEIGHT - 0.5 - rows, image[1] * WIDTH - 0.5 - columns])
    return off[:, is_inside].abs().max().item()


@pytest.mark.parametrize(
    "transform",
    [
        dense.RandomCrop((20, 30), 1.0), dense.RandomCrop((50, 30), 0.75), dense.RandomFlip(),
        dense.Pad((40, 70), (0.5, 0.5)), dense.unchanged,
    ],
    ids=lambda t: getattr(t, "__name__", type(t).__name__),
)  # fmt: skip
def test_image_and_map_stay_aligned_to_the_pixel(transform):
    for seed in range(8):
        torch.manual_seed(seed)
        image, labels = transform(*coordinates())
        assert image.shape[1:] == labels.shape
        assert apart(image, labels) < 1e-4


@pytest.mark.parametrize("scales", [(0.3, 0.9), (1.1, 3.0), (1.0, 1.0)])
def test_resizing_keeps_them_within_a_pixel(scales):
    """At most half a pixel of the old grid and half of the new one, as the published pipeline."""
    resize = dense.RandomResize((HEIGHT, HEIGHT), scales)
    for seed in range(8):
        torch.manual_seed(seed)
        image, labels = resize(*coordinates())
        assert image.shape[1:] == labels.shape
        assert scales[0] * HEIGHT - 1 <= labels.shape[0] <= scales[1] * HEIGHT + 1
        inner = (slice(2, -2), slice(2, -2))  # at the border an image has no neighbours to average
        allowed = 0.51 + 0.5 * HEIGHT / labels.shape[0] if scales != (1.0, 1.0) else 1e-4
        assert apart(image[(slice(None), *inner)], labels[inner]) < allowed


def as_opencv(values, size):
    """INTER_LINEAR pixel by pixel: of the four pixels around a centre, those inside the image."""
    height, width = values.shape
    found = np.empty(size)
    for y in range(size[0]):
        for x in range(size[1]):
            row, column = (
                (i + 0.5) * old / new - 0.5
                for i, old, new in zip((y, x), values.shape, size, strict=True)
            )
            top, left = int(np.floor(row)), int(np.floor(column))
            total = 0.0
            for i, share in ((top, 1 - row + top), (top + 1, row - top)):
                for j, part in ((left, 1 - column + left), (left + 1, column - left)):
                    pixel = values[min(max(i, 0), height - 1), min(max(j, 0), width - 1)]
                    total += share * part * pixel
            found[y, x] = total
    return found


@pytest.mark.parametrize("size", [(22, 32), (19, 90), (74, 31), (37, 53)])
def test_resizing_is_opencvs(size):
    """Images without antialias, of bytes to the rounding; maps by the floor of the place."""
    torch.manual_seed(0)
    pixels = torch.randint(256, (2, HEIGHT, WIDTH), dtype=torch.uint8)
    expected = np.stack([as_opencv(p.numpy().astype(float), size) for p in pixels])
    assert np.abs(dense.resize_image(pixels, size).numpy() - expected).max() <= 1
    found = dense.resize_image(pixels.float() / 255, size)
    torch.testing.assert_close(255 * found.double(), torch.tensor(expected), rtol=0, atol=1e-3)
    labels = coordinates()[1]
    rows = [int(i * HEIGHT / size[0]) for i in range(size[0])]
    columns = [int(i * WIDTH / size[1]) for i in range(size[1])]
    assert torch.equal(dense.resize_map(labels, size), labels[rows][:, columns])


def test_noise_stays_noise_when_an_image_shrinks():
    """At x 0.6 the shares of two pixels in turn are 1/3, 0 and 2/3 of the second: per side the
    variance is 5/9, 1 and 5/9 of the noise's. An antialiased image would lose more."""
    torch.manual_seed(0)
    noise = (128 + 60 * torch.randn(1, 500, 500)).clamp(0, 255).to(torch.uint8)
    plain, smooth = (dense.resize_image(noise, (300, 300), antialias=a) for a in (False, True))
    assert plain.float().std() / noise.float().std() == pytest.approx(19 / 27, abs=0.01)
    assert smooth.float().std() / noise.float().std() == pytest.approx(0.4, abs=0.03)


def test_a_whole_chain_keeps_them_aligned_and_is_what_its_seed_says():
    chain = [dense.RandomResize((32, 48), (0.5, 2.0)), dense.RandomCrop((32, 48), 0.75),
             dense.RandomFlip(), dense.Pad((32, 48), (0.5, 0.5))]  # fmt: skip

    def once(seed):
        seed_libraries(seed)
        pair = coordinates()
        for transform in chain:
            pair = transform(*pair)
        return pair

    seen = set()
    for seed in range(20):
        image, labels = once(seed)
        assert image.shape == (2, 32, 48) and labels.shape == (32, 48)
        is_inner = torch.zeros(32, 48, dtype=torch.bool)
        is_inner[3:-3, 3:-3] = True
        for place, side in ((labels.long() // WIDTH, HEIGHT), (labels.long() % WIDTH, WIDTH)):
            is_inner &= (place > 2) & (place < side - 3) & (labels != NOTHING)
        assert apart(image, torch.where(is_inner, labels, NOTHING)) < 0.51 + 0.5 / (
            0.5 * 32 / HEIGHT
        )
        assert torch.equal(image, once(seed)[0])
        seen.add(tuple(labels[8, :5].tolist()))
    assert len(seen) > 15


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [((683, 512), 512, (683, 512)), ((100, 200), 512, (512, 1024)), ((100, 1000), 50, (20, 200))],
)
def test_sizes_are_the_published_ones(size, short, expected):
    """The shorter side is `short`, unless the longer one would be more than four times that."""
    assert dense.fitted_size(*size, short) == expected


def test_a_crop_that_one_class_fills_is_drawn_anew():
    """The 75 % rule, over many draws: mixed crops where there are some, any crop where not."""
    labels = torch.zeros(40, 40, dtype=torch.int16)
    labels[:, 20:] = 1
    labels[:10] = NOTHING  # counts for nobody
    image = labels[None].float()
    crop = dense.RandomCrop((20, 20), 0.75)
    shares, plain = [], []
    for seed in range(200):
        for found, rule in ((shares, crop), (plain, dense.RandomCrop((20, 20), 1.0))):
            torch.manual_seed(seed)
            part = rule(image, labels)[1]
            counts = torch.bincount(part[part >= 0].long(), minlength=2)
            found.append(float(counts.max() / counts.sum()))
    is_allowed = torch.tensor(shares) < 0.75
    assert is_allowed.float().mean() > 0.97  # ten draws of which half are allowed
    assert 0.3 < (torch.tensor(plain) < 0.75).float().mean() < 0.7
    same = dense.RandomCrop((20, 20), 0.75)(image * 0, torch.zeros_like(labels))
    assert same[1].shape == (20, 20)


def test_padding_is_the_mean_and_nothing():
    image = torch.full((3, 4, 5), 200, dtype=torch.uint8)
    padded, labels = dense.Pad((6, 7), (0.5, 0.25, 1.0))(image, torch.ones(4, 5, dtype=torch.int16))
    assert padded[:, 5, 6].tolist() == [128, 64, 255] and (padded[:, :4, :5] == 200).all()
    assert (labels[:4, :5] == 1).all() and int((labels == NOTHING).sum()) == 42 - 20
    assert labels.dtype == torch.int16


def distorted(image, choices, monkeypatch):
    """The distortion with given coins and factors, in the order in which they are drawn."""
    coins, factors = (iter(values) for values in choices)
    monkeypatch.setattr(dense, "_coin", lambda: next(coins))
    monkeypatch.setattr(dense, "_between", lambda low, high: next(factors))
    labels = torch.zeros(image.shape[1:], dtype=torch.int16)
    return dense.PhotometricDistortion()(image, labels)[0]


def by_definition(pixel, brightness=0.0, contrast=1.0, saturation=1.0, hue=0.0, first=True):
    """One RGB pixel in 0..1, by colorsys, clipped after each step."""

    def clip(values):
        return [min(max(v, 0.0), 1.0) for v in values]

    pixel = clip(v + brightness for v in pixel)
    pixel = clip(v * contrast for v in pixel) if first else pixel
    h, s, v = colorsys.rgb_to_hsv(*pixel)
    pixel = colorsys.hsv_to_rgb((h + hue) % 1, min(s * saturation, 1.0), v)
    return pixel if first else clip(v * contrast for v in pixel)


@pytest.mark.parametrize("first", [True, False])
def test_photometric_distortion_is_ssds(first, monkeypatch):
    torch.manual_seed(1)
    image = torch.rand(3, 6, 5, dtype=torch.float32)
    image[:, 0, 0], image[:, 0, 1] = 0.4, torch.tensor([0.9, 0.1, 0.1])  # grey; saturated
    values = dict(brightness=-0.1, contrast=1.4, saturation=1.5, hue=0.07)
    coins = [True, first, True, True, True]  # the second says when contrast is drawn
    order = ["brightness", *(["contrast"] if first else []), "saturation", "hue"]
    order += [] if first else ["contrast"]
    found = distorted(image, (coins, [values[name] for name in order]), monkeypatch)
    for y in range(6):
        for x in range(5):
            expected = by_definition(image[:, y, x].tolist(), first=first, **values)
            assert found[:, y, x].tolist() == pytest.approx(expected, abs=1e-5)


def test_each_distortion_is_drawn_for_half_the_images_within_its_range():
    image = torch.full((3, 1, 1), 0.5)
    image[0] = 0.75
    labels = torch.zeros(1, 1, dtype=torch.int16)
    distort, unchanged, ratios = dense.PhotometricDistortion(), 0, []
    for seed in range(400):
        torch.manual_seed(seed)
        found = distort(image, labels)[0]
        unchanged += torch.equal(found, image)
        grey = distort(torch.full((1, 1, 1), 0.5), labels)[0].item()  # brightness and contrast
        ratios.append(grey)
    assert 10 <= unchanged <= 45  # a sixteenth
    assert min(ratios) >= (0.5 - 32 / 255) * 0.5 and max(ratios) <= (0.5 + 32 / 255) * 1.5
    assert min(ratios) < 0.3 and max(ratios) > 0.8
    assert 60 <= sum(abs(r - 0.5) < 1e-6 for r in ratios) <= 140  # a quarter


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_distortion_takes_any_channels_and_bytes(channels):
    torch.manual_seed(3)
    image = torch.randint(256, (channels, 4, 4), dtype=torch.uint8)
    found, _ = dense.PhotometricDistortion()(image, torch.zeros(4, 4))
    assert found.dtype == torch.uint8 and found.shape == image.shape
