"""The 15 corruptions: published constants and definitions, strength, limits, and the folder."""

import colorsys
import functools
import io
import itertools
import json
import math
import os
import re
import runpy
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits, load_sample_images

from tools import corrupt as corrupt_folder
from util.data.corruption import corruptions, filters
from util.data.corruption.constants import PUBLISHED, nearest_published
from util.data.corruption.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    Corruption,
    corrupt,
    corruption_rng,
)
from util.data.corruption.frost import NUM_TEXTURES, frost_texture
from util.data.images import read_image
from util.entry import run_main

# As the authors' make_imagenet_c.py has them (zoom_blur: the second and third argument of its
# arange; elastic_transform: in units of 244 pixels for an image of 224).
IMAGENET_C = {
    "gaussian_noise": [0.08, 0.12, 0.18, 0.26, 0.38],
    "shot_noise": [60, 25, 12, 5, 3],
    "impulse_noise": [0.03, 0.06, 0.09, 0.17, 0.27],
    "defocus_blur": [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
    "glass_blur": [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    "motion_blur": [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
    "zoom_blur": [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)],
    "snow": [
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ],
    "frost": [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
    "fog": [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
    "brightness": [0.1, 0.2, 0.3, 0.4, 0.5],
    "contrast": [0.4, 0.3, 0.2, 0.1, 0.05],
    "elastic_transform": [
        (244 * 2, 244 * 0.7, 244 * 0.1),
        (244 * 2, 244 * 0.08, 244 * 0.2),
        (244 * 0.05, 244 * 0.01, 244 * 0.02),
        (244 * 0.07, 244 * 0.01, 244 * 0.02),
        (244 * 0.12, 244 * 0.01, 244 * 0.02),
    ],
    "pixelate": [0.6, 0.5, 0.4, 0.3, 0.25],
    "jpeg_compression": [25, 18, 15, 10, 7],
}
# First and last severity in make_tinyimagenet_c.py and make_cifar_c.py.
SMALL = {
    "gaussian_noise": [(0.04, 0.18), (0.04, 0.10)],
    "shot_noise": [(250, 15), (500, 50)],
    "impulse_noise": [(0.01, 0.14), (0.01, 0.07)],
    "defocus_blur": [((0.5, 0.6), (3, 0.1)), ((0.3, 0.4), (1.5, 0.1))],
    "glass_blur": [((0.1, 1, 1), (0.9, 2, 2)), ((0.05, 1, 1), (0.4, 1, 2))],
    "motion_blur": [((10, 1), (12, 3)), ((6, 1), (9, 2.5))],
    "zoom_blur": [((1.06, 0.01), (1.26, 0.01)), ((1.06, 0.01), (1.26, 0.01))],
    "snow": [
        ((0.1, 0.2, 1, 0.6, 8, 3, 0.8), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6)),
        ((0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)),
    ],
    "frost": [((1, 0.3, 0.3), (0.7, 0.55, 0.3)), ((1, 0.2, 0.2), (0.75, 0.45, 0.2))],
    "fog": [((0.4, 3), (2, 1.75)), ((0.2, 3), (1.5, 1.75))],
    "brightness": [(0.1, 0.5), (0.05, 0.3)],
    "contrast": [(0.4, 0.05), (0.75, 0.15)],
    "elastic_transform": [((0, 0, 0.08), (0.16, 0.03, 0.02)), ((0, 0, 0.08), (0.1, 0.03, 0.03))],
    "pixelate": [(0.9, 0.5), (0.95, 0.65)],
    "jpeg_compression": [(65, 25), (80, 40)],
}
RANDOM = set(IMAGENET_C) - {
    "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression",
}  # fmt: skip
# No zero gives the image back: snow pales, JPEG rounds, pixelate has none but its share of 1.
IDENTITY = {
    "gaussian_noise": (0,),
    "shot_noise": (1e12,),
    "impulse_noise": (0,),
    "defocus_blur": (0, 0.1),
    "glass_blur": (0.05, 1, 0),
    "motion_blur": (0, 0),
    "zoom_blur": (1.005, 0.01),
    "snow": (-9, 0.1, 2, 0.5, 3, 1, 1),
    "frost": (1, 0, 1),
    "fog": (0, 2),
    "brightness": (0,),
    "contrast": (1,),
    "elastic_transform": (0, 0, 0),
    "pixelate": (1,),
}


@functools.cache
def photographs(side):
    """Two crops of each of two photographs: uint8 [side, side, 3]."""
    crops = []
    for image in load_sample_images().images:
        for box in ((40, 0, 467, 427), (250, 150, 474, 374)):
            crops.append(np.asarray(Image.fromarray(image).resize((side, side), Image.BOX, box)))
    return crops


def noise_image(height, width, channels, seed=0):
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, channels))
    return levels.astype(np.uint8)


def strength(images, name, severity, repeats):
    """Mean squared change of values in 0..1 over images and draws."""
    changes = [
        np.mean((corrupt(image, name, severity, seed) / 255 - image / 255) ** 2)
        for image in images
        for seed in range(repeats)
    ]
    return np.mean(changes)


# --------------------------------------------------------------------------------------- constants


def test_the_fifteen_stand_in_the_published_order():
    assert list(CORRUPTIONS) == list(IMAGENET_C) and len(CORRUPTIONS) == 15
    assert all(list(table) == list(CORRUPTIONS) for _, table in PUBLISHED.values())


@pytest.mark.parametrize("name", list(IMAGENET_C))
def test_the_constants_are_the_published_ones(name):
    rows = [row if isinstance(row, tuple) else (row,) for row in IMAGENET_C[name]]
    found = PUBLISHED["imagenet_c"][1][name]
    if name == "elastic_transform":
        found = [tuple(224 * value for value in row) for row in found]
    if name == "frost":
        found = [row[:2] for row in found]
    np.testing.assert_allclose(found, rows, rtol=1e-12)


@pytest.mark.parametrize("name", list(SMALL))
def test_the_constants_of_small_images_are_the_published_ones(name):
    for table, (first, last) in zip(("tiny_imagenet_c", "cifar10_c"), SMALL[name], strict=True):
        rows = PUBLISHED[table][1][name]
        assert len(rows) == 5
        np.testing.assert_allclose(rows[0], np.atleast_1d(first), rtol=1e-12)
        np.testing.assert_allclose(rows[4], np.atleast_1d(last), rtol=1e-12)


def test_an_image_takes_the_constants_of_the_nearest_published_size():
    sizes = {8: "cifar10_c", 28: "cifar10_c", 32: "cifar10_c", 64: "tiny_imagenet_c",
             96: "tiny_imagenet_c", 224: "imagenet_c", 500: "imagenet_c"}  # fmt: skip
    for side, name in sizes.items():
        assert nearest_published(side, 3 * side) == nearest_published(3 * side, side) == name
    image = photographs(64)[0]
    auto = corrupt(image, "fog", 3, 5)
    assert np.array_equal(auto, corrupt(image, "fog", 3, 5, "tiny_imagenet_c"))
    assert not np.array_equal(auto, corrupt(image, "fog", 3, 5, "imagenet_c"))


# -------------------------------------------------------------------------------- every corruption


@pytest.mark.parametrize("name", list(CORRUPTIONS))
@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (9, 50), (70, 41), (224, 130)])
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_dtype_stay_and_so_does_the_given_image(name, shape, channels):
    image = noise_image(*shape, channels)
    before = image.copy()
    for severity in (1, 5):
        out = corrupt(image, name, severity, 3)
        assert out.shape == image.shape and out.dtype == np.uint8
        assert out.flags.c_contiguous and not np.shares_memory(out, image)
        # Zooms of 8 pixels by up to 1.06 round to none.
        changes_nothing = name == "zoom_blur" and shape == (8, 8) and severity == 1
        assert np.array_equal(out, image) == changes_nothing
    assert np.array_equal(image, before)


@pytest.mark.parametrize("constants", list(PUBLISHED))
@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_all_constants_work_on_the_smallest_images_black_and_white_ones_too(name, constants):
    for image in (np.zeros((8, 11, 1), np.uint8), np.full((11, 8, 3), 255, np.uint8)):
        for severity in SEVERITIES:
            assert corrupt(image, name, severity, 0, constants).shape == image.shape


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_a_corrupted_image_is_a_function_of_seed_image_corruption_and_severity(name):
    image = photographs(32)[0]

    def make(seed=0, which=7, severity=3):
        rng = corruption_rng(seed, which, name, severity)
        return corrupt(image, name, severity, rng)

    assert np.array_equal(make(), make())
    assert np.array_equal(make(which="n01/a.JPEG"), make(which="n01/a.JPEG"))
    for other in (make(seed=1), make(which=8), make(which="7")):
        assert np.array_equal(make(), other) != (name in RANDOM)


def test_corruptions_and_severities_draw_independently():
    draws = {
        corruption_rng(0, 0, name, severity).integers(2**62)
        for name in CORRUPTIONS
        for severity in SEVERITIES
    }
    assert len(draws) == 75


@pytest.mark.parametrize("name", list(IDENTITY))
@pytest.mark.parametrize("channels", [1, 3])
def test_without_strength_the_image_comes_back(name, channels):
    image = noise_image(20, 30, channels)
    out = CORRUPTIONS[name](image, np.random.default_rng(0), *IDENTITY[name])
    out = out if out.dtype == np.uint8 else corruptions._to_levels(out)
    assert np.array_equal(out, image)


@pytest.mark.parametrize("side", [32, 64, 224])
@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_strength_grows_with_severity(name, side):
    """Mean squared change; some published definitions are not monotone in it.

    Elastic goes from one wide warp to fine wobbles, which change fewer pixels; glass trades reach
    for passes; frost dims the image as it adds ice; snow of ImageNet-C's severities 2 and 3 differs
    less than its draws; motion blur of CIFAR-10-C's 3 and 4 differs in the Gaussian's cut tail.
    """
    images = photographs(side)
    severities = SEVERITIES
    if name == "frost":
        severities = (1, 2)
    elif name == "glass_blur":
        severities = (1, 3) if side == 224 else (1, 5)
    elif name == "elastic_transform":
        severities = (4, 5) if side == 224 else (5, 1)
    elif (name, side) == ("snow", 224):
        severities = (1, 2, 4, 5)
    elif (name, side) == ("motion_blur", 32):
        severities = (1, 2, 3, 5)
    repeats = 1 if name not in RANDOM else 2 if side == 224 else 8
    found = [strength(images, name, severity, repeats) for severity in severities]
    assert all(low < high for low, high in itertools.pairwise(found)), found


def test_elastic_wobbles_grow_where_only_their_strength_does():
    """Severities 3 to 5 have one smoothness and one jitter: without the jitter it is monotone."""
    image = photographs(224)[1]
    found = []
    for strength_, smoothness, _ in PUBLISHED["imagenet_c"][1]["elastic_transform"][2:]:
        out = corruptions.elastic_transform(
            image, np.random.default_rng(0), strength_, smoothness, 0
        )
        found.append(np.mean((out - image / 255) ** 2))
    assert found == sorted(found)


# ----------------------------------------------------------------- definitions, one after another


def test_noise_has_the_published_moments():
    grey = np.full((224, 224, 3), 128, np.uint8)
    x = 128 / 255
    noisy = corrupt(grey, "gaussian_noise", 1, 0) / 255
    assert abs(noisy.mean() - x) < 0.004 and abs(noisy.std() - 0.08) < 0.001
    shot = corrupt(grey, "shot_noise", 1, 0) / 255
    assert abs(shot.mean() - x) < 0.004 and abs(shot.std() - math.sqrt(x / 60)) < 0.002
    impulse = corrupt(grey, "impulse_noise", 5, 0)
    assert abs((impulse == 255).mean() - 0.135) < 0.004
    assert abs((impulse == 0).mean() - 0.135) < 0.004
    assert set(np.unique(impulse)) == {0, 128, 255}
    assert not (impulse[..., 0] == impulse[..., 1]).all()  # each channel by itself


def test_defocus_is_a_disc():
    kernel = filters.disc_kernel(3, 0.1)
    assert kernel.shape == (17, 17) and abs(kernel.sum() - 1) < 1e-6
    assert (kernel > 1e-6).sum() == 29  # pixels within 3 of the middle
    assert filters.disc_kernel(10, 0.5).shape == (21, 21)
    image = noise_image(30, 40, 3) / np.float32(255)
    found = filters.convolve(image, filters.disc_kernel(4, 0.5))
    expected = ndimage.correlate(image, filters.disc_kernel(4, 0.5)[..., None], mode="mirror")
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("max_delta", [1, 2, 4])
def test_glass_copies_pixels_in_the_published_order(max_delta):
    """Against a loop over pixels, as published: there the swap of two views is a copy."""
    height, width = 23, 31
    found = corruptions._glass_sources(height, width, max_delta, np.random.default_rng(5))
    rows = range(max_delta + 1, height - max_delta + 1)
    columns = range(max_delta + 1, width - max_delta + 1)
    down, right = np.random.default_rng(5).integers(
        -max_delta, max_delta, (2, len(rows), len(columns))
    )
    values = np.arange(height * width).reshape(height, width, 1)
    for y in reversed(rows):
        for x in reversed(columns):
            i, j = y - rows[0], x - columns[0]
            here, there = values[y, x], values[y + down[i, j], x + right[i, j]]
            here[:], there[:] = there, here
    assert np.array_equal(found, values.ravel())


def test_motion_goes_one_way_along_a_line():
    point = np.zeros((41, 41, 1), np.float32)
    point[20, 20] = 1
    weights = np.exp(-(np.arange(21) ** 2) / 18)
    weights /= weights.sum()
    flat = filters.motion(point, 10, 3, 0)[20, ::-1, 0]  # each pixel looks ahead, to the right
    np.testing.assert_allclose(flat[20:], weights, atol=1e-6)
    steep = filters.motion(point, 10, 3, -90)[:, 20, 0]
    np.testing.assert_allclose(steep[20:], weights, atol=1e-6)
    slanted = filters.motion(point, 10, 3, 45)[..., 0]
    diagonal = np.diag(slanted)  # 21 steps of 45 degrees on 15 pixels
    assert np.count_nonzero(slanted) == np.count_nonzero(diagonal) == 15
    assert abs(diagonal.sum() - 1) < 1e-5
    even = np.full((30, 20, 3), 0.5, np.float32)
    np.testing.assert_allclose(filters.motion(even, 20, 15, -30), even, atol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 1.01, 1.1, 1.27, 2.0, 4.5])
def test_zoom_is_scipys(factor):
    image = noise_image(37, 60, 3) / np.float32(255)
    crops, slices = [math.ceil(side / factor) for side in (37, 60)], []
    for side, crop in zip((37, 60), crops, strict=True):
        slices.append(slice((side - crop) // 2, (side - crop) // 2 + crop))
    zoomed = ndimage.zoom(image[tuple(slices)], (factor, factor, 1), order=1)
    top, left = (zoomed.shape[0] - 37) // 2, (zoomed.shape[1] - 60) // 2
    expected = zoomed[top : top + 37, left : left + 60]
    np.testing.assert_allclose(filters.zoom(image, factor), expected, atol=1e-5)


def test_snow_falls_on_a_paler_image():
    image = photographs(32)[0]
    x = image / np.float32(255)
    out = corruptions.snow(image, np.random.default_rng(0), -9, 0.1, 2, 0.5, 3, 1, 0.7)
    grey = np.asarray(Image.fromarray(image).convert("L"))[..., None] / 255
    np.testing.assert_allclose(out, 0.7 * x + 0.3 * np.maximum(x, 1.5 * grey + 0.5), atol=2e-3)
    flakes = corruptions.snow(image, np.random.default_rng(0), 0.3, 0.3, 2, 0.5, 3, 1, 1) - x
    assert flakes.min() > -1e-6 and flakes.max() > 0.3
    np.testing.assert_allclose(flakes, np.rot90(flakes, 2), atol=1e-6)  # falls both ways


def test_frost_adds_one_of_five_textures():
    black = np.zeros((40, 600, 3), np.uint8)  # wider than a texture
    out = corruptions.frost(black, np.random.default_rng(0), 0.6, 0.75, 1)
    assert out.min() > 0 and out.max() <= 0.75 and out.std() > 0.05
    np.testing.assert_array_equal(out[:, :88], out[:, 512:])  # a torus
    textures = [frost_texture(number, 0.2) for number in range(NUM_TEXTURES)]
    assert all(texture.shape == (102, 102, 3) for texture in textures)
    for texture in textures:
        assert 0.35 < texture[..., 0].mean() < texture[..., 2].mean() < 0.75  # bluish
    assert all(not np.array_equal(textures[0], other) for other in textures[1:])


def test_fog_is_a_fractal_on_a_torus():
    heights = filters.plasma(64, 2, np.random.default_rng(0))
    assert heights.shape == (64, 64) and heights.min() == 0 and heights.max() == 1
    step, seam = np.abs(np.diff(heights, axis=0)).mean(), np.abs(heights[0] - heights[-1]).mean()
    assert 0.3 < step / seam < 3  # no edge where it begins anew
    rough = filters.plasma(64, 1.3, np.random.default_rng(0))
    assert np.abs(np.diff(rough)).mean() > 2 * np.abs(np.diff(heights)).mean()
    image = photographs(32)[1]
    x = image / np.float32(255)
    heights = filters.plasma(32, 2, np.random.default_rng(3))[..., None]
    expected = (x + 1.5 * heights) * x.max() / (x.max() + 1.5)
    found = corruptions.fog(image, np.random.default_rng(3), 1.5, 2)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_brightness_raises_the_value_of_hsv():
    image = noise_image(9, 9, 3)
    image[0] = 0
    found = corruptions.brightness(image, None, 0.3)
    for pixel, brighter in zip(image.reshape(-1, 3) / 255, found.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.3, 1))
        np.testing.assert_allclose(brighter, expected, atol=1e-5)


def test_contrast_shrinks_towards_each_channels_mean():
    image = noise_image(20, 30, 3)
    image[..., 2] //= 4
    x = image / 255
    expected = (x - x.mean((0, 1))) * 0.3 + x.mean((0, 1))
    np.testing.assert_allclose(corruptions.contrast(image, None, 0.3), expected, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.4, 2.24, 20.0, 170.8])
def test_a_smooth_field_is_scipys_gaussian(sigma):
    field = np.random.default_rng(0).uniform(-1, 1, (56, 40))
    expected = ndimage.gaussian_filter(field, sigma, mode="reflect", truncate=3)
    np.testing.assert_allclose(filters.smooth_field(field, sigma), expected, atol=1e-10)


@pytest.mark.parametrize("repeat_edge", [False, True])
def test_sampling_is_scipys(repeat_edge):
    image = noise_image(20, 30, 3) / np.float32(255)
    y, x = np.random.default_rng(1).uniform(-70, 70, (2, 20, 30))
    found = filters.sample(image, y, x, repeat_edge)
    mode = "reflect" if repeat_edge else "mirror"
    for channel in range(3):
        expected = ndimage.map_coordinates(image[..., channel], [y, x], order=1, mode=mode)
        np.testing.assert_allclose(found[..., channel], expected, atol=1e-5)


def test_pixelate_and_jpeg_are_pils():
    image = photographs(64)[0]
    blocks = corruptions.pixelate(image, None, 0.25)
    assert all(len(np.unique(blocks[:4, :4, c])) == 1 for c in range(3))
    mean = image[:4, :4].mean((0, 1))
    assert np.abs(blocks[0, 0] - mean).max() <= 1
    rough = corruptions.jpeg_compression(image, None, 7)
    assert 0.001 < np.mean((rough / 255 - image / 255) ** 2) < 0.05


# ------------------------------------------------------------------------------- on tensors; errors


@pytest.mark.parametrize("channels", [1, 3])
def test_the_transform_corrupts_tensors_by_index(channels):
    image = torch.from_numpy(noise_image(28, 20, channels)).permute(2, 0, 1)
    transform = Corruption("glass_blur", 4, seed=3)
    out = transform(image, 12)
    assert out.shape == image.shape and out.dtype == torch.uint8 and out.is_contiguous()
    assert torch.equal(out, transform(image, 12)) and not torch.equal(out, transform(image, 13))
    rng = corruption_rng(3, 12, "glass_blur", 4)
    expected = corrupt(image.permute(1, 2, 0).numpy(), "glass_blur", 4, rng)
    assert np.array_equal(out.permute(1, 2, 0).numpy(), expected)


def test_digits_can_be_corrupted():
    digits = (load_digits().images[:20] * (255 / 16)).round().astype(np.uint8)[..., None]
    for name in CORRUPTIONS:
        assert strength(digits, name, 5, 1) > 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(name="foggy"), "foggy.*gaussian_noise"),
        (dict(severity=0), "severity 0"),
        (dict(severity=6), "severity 6"),
        (dict(constants="mnist_c"), "mnist_c"),
        (dict(image=np.zeros((8, 7, 3), np.uint8)), "8 x 8"),
        (dict(image=np.zeros((8, 8, 4), np.uint8)), r"\(8, 8, 4\)"),
        (dict(image=np.zeros((8, 8), np.uint8)), r"\(8, 8\)"),
        (dict(image=np.zeros((8, 8, 3), np.float32)), "float32"),
    ],
)
def test_what_cannot_be_corrupted(change, named):
    arguments = dict(image=np.zeros((8, 8, 3), np.uint8), name="fog", severity=1) | change
    with pytest.raises(ValueError, match=named):
        corrupt(**arguments)


# -------------------------------------------------------------------------------------- the folder


@pytest.fixture
def src(tmp_path):
    """Two classes of two images of different size, mode and suffix."""
    folder = tmp_path / "src"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        Image.fromarray(photographs(48)[0]).save(folder / name / "a.png")
        Image.fromarray(photographs(48)[1][:30, :, 0]).save(folder / name / "b.jpg")
    return folder


def write(src, dst, *flags):
    run = [src, dst, "--num_workers", 0, "--corruptions", "fog", "contrast", "--severities", 1, 4]
    run_main(
        corrupt_folder.main, lambda: corrupt_folder.parse_args([str(f) for f in [*run, *flags]])
    )


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refused(capsys, *words):
    """The one line of an error, whose status is 2."""
    with pytest.raises(SystemExit) as end:
        write(*words)
    lines = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2 and len(lines) == 1
    return lines[0]


def test_a_folder_gets_the_published_layout(src, tmp_path, capsys):
    dst = tmp_path / "dst"
    write(src, dst)
    expected = {
        f"{name}/{severity}/{label}/{image}.JPEG"
        for name in ("fog", "contrast")
        for severity in (1, 4)
        for label in ("cat", "dog")
        for image in "ab"
    }
    assert contents(dst).keys() == expected | {"corruptions.json"}
    with Image.open(dst / "fog/4/cat/b.JPEG") as image:
        assert image.size == (224, 224) and image.mode == "RGB"
        pixels = np.asarray(image)
        tables = image.quantization
    as_published = tmp_path / "q85.jpg"
    Image.fromarray(pixels).save(as_published, quality=85)
    with Image.open(as_published) as image:
        assert image.quantization == tables
    record = json.loads((dst / "corruptions.json").read_text())
    assert record["size"] == "resize 256, centre crop 224" and "procedural" in record["note"]
    assert "16 images made" in capsys.readouterr().out


def test_the_protocol_is_the_published_one(src):
    path = str(src / "cat" / "b.jpg")  # 48 x 30
    found = corrupt_folder.load(path, 3, keep_size=False)
    with Image.open(path) as image:
        expected = image.convert("RGB").resize((409, 256), Image.BILINEAR)
    expected = expected.crop((92, 16, 92 + 224, 16 + 224))
    assert np.array_equal(found, np.asarray(expected))
    assert corrupt_folder.load(path, 1, keep_size=True).shape == (30, 48, 1)


def test_images_keep_their_size_if_wanted(src, tmp_path):
    write(src, tmp_path / "dst", "--keep_size", "--in_chans", 1)
    with Image.open(tmp_path / "dst/fog/1/dog/b.JPEG") as image:
        assert image.size == (48, 30) and image.mode == "L"


def test_any_number_of_workers_writes_the_same_bytes(src, tmp_path):
    flags = ["--keep_size", "--corruptions", "glass_blur", "frost", "snow"]
    for workers in (0, 1, 3):
        write(src, tmp_path / str(workers), *flags, "--num_workers", workers)
    assert len(contents(tmp_path / "0")) == 25
    assert contents(tmp_path / "0") == contents(tmp_path / "1") == contents(tmp_path / "3")
    write(src, tmp_path / "seed", *flags, "--seed", 1)
    assert (
        contents(tmp_path / "0")["snow/1/cat/a.JPEG"]
        != (contents(tmp_path / "seed")["snow/1/cat/a.JPEG"])
    )


def test_what_is_there_is_not_made_again(src, tmp_path, capsys):
    dst = tmp_path / "dst"
    write(src, dst)
    before = contents(dst)
    kept, cut, lost, empty = (dst / f"fog/{s}/cat/{i}.JPEG" for s in (1, 4) for i in "ab")
    kept.write_bytes(b"another image\xff\xd9")
    cut.write_bytes(cut.read_bytes()[:-40])
    lost.unlink()
    empty.write_bytes(b"")
    capsys.readouterr()
    write(src, dst)
    assert "3 images made, 13 were there already" in capsys.readouterr().out
    assert kept.read_bytes() == b"another image\xff\xd9"
    kept.write_bytes(before["fog/1/cat/a.JPEG"])
    assert contents(dst) == before
    write(src, dst, "--severities", 1, 2)  # more of the same
    assert len(contents(dst)) == len(before) + 8


def test_images_that_have_changed_are_made_again_and_other_ones_refused(src, tmp_path, capsys):
    dst = tmp_path / "dst"
    write(src, dst)
    before = contents(dst)
    Image.fromarray(photographs(48)[0][:30]).save(src / "cat" / "b.jpg")
    os.utime(src / "cat" / "b.jpg", (time.time() + 60,) * 2)  # after what was made of it
    capsys.readouterr()
    write(src, dst)
    assert "4 images made, 12 were there already" in capsys.readouterr().out
    changed = {name for name, data in contents(dst).items() if data != before[name]}
    assert changed == {f"{n}/{s}/cat/b.JPEG" for n in ("fog", "contrast") for s in (1, 4)}
    (src / "cat").rename(src / "cow")
    line = refused(capsys, src, dst)
    assert "made of other images" in line and f"has cat{os.sep}a.JPEG, which SRC lacks" in line


def test_an_interrupted_image_leaves_nothing_half_written(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(corrupt_folder.os, "replace", fail)
    with pytest.raises(ValueError, match="No space left"):
        corrupt_folder._save(str(tmp_path / "a" / "x.JPEG"), np.zeros((8, 8, 3), np.uint8))
    assert list((tmp_path / "a").iterdir()) == []


def test_other_settings_need_another_folder(src, tmp_path, capsys):
    write(src, tmp_path / "dst", "--keep_size")
    assert "size" in refused(capsys, src, tmp_path / "dst")
    assert "seed: 0, not 5" in refused(capsys, src, tmp_path / "dst", "--keep_size", "--seed", 5)
    (tmp_path / "dst" / "corruptions.json").write_text("{")
    assert "corruptions.json is damaged" in refused(capsys, src, tmp_path / "dst", "--keep_size")


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_named_and_counted(src, tmp_path, capsys, workers):
    (src / "cat" / "broken.jpg").write_bytes(b"no image")
    (src / "dog" / "empty.png").write_bytes(b"")
    line = refused(capsys, src, tmp_path / "dst", "--num_workers", workers)
    assert "2 of 6 images" in line and f"cat{os.sep}broken.jpg" in line and "empty.png" in line
    assert len(contents(tmp_path / "dst")) == 17  # the others are done
    Image.new("RGB", (7, 50)).save(src / "cat" / "broken.jpg")
    (src / "dog" / "empty.png").unlink()
    line = refused(capsys, src, tmp_path / "dst2", "--keep_size")
    assert "1 of 5 images" in line and "8 x 8" in line


def test_sources_and_targets_that_will_not_do(src, tmp_path, capsys):
    dst = tmp_path / "dst"
    assert "SRC" in refused(capsys, tmp_path / "nowhere", dst)
    (tmp_path / "nothing").mkdir()
    assert "no image" in refused(capsys, tmp_path / "nothing", dst)
    for inside in (src, src / "dst"):
        assert "inside SRC" in refused(capsys, src, inside)
    (tmp_path / "file").write_text("")
    assert "DST" in refused(capsys, src, tmp_path / "file")
    Image.new("RGB", (9, 9)).save(src / "loose.png")
    assert "loose.png" in refused(capsys, src, dst)
    (src / "loose.png").rename(src / "cat" / "a.jpeg")
    assert "one name" in refused(capsys, src, dst)
    assert not dst.exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--corruptions", "fogg"], "--corruptions.*fogg.*gaussian_noise"),
        (["--severities", "6"], "--severities.*6"),
        (["--num_workers", "-1"], "--num_workers"),
        (["--seed", "-1"], "--seed"),
        (["--constants", "mnist"], "--constants.*imagenet_c"),
    ],
)
def test_flags_that_will_not_do(src, tmp_path, capsys, flags, named):
    line = refused(capsys, src, tmp_path / "dst", *flags)
    assert re.search(named, line)


def test_the_command_shows_a_bar_on_a_terminal(src, tmp_path, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    flags = ["--corruptions", "contrast", "--num_workers", "1"]
    monkeypatch.setattr(sys, "argv", ["corrupt", str(src), str(tmp_path / "dst"), *flags])
    monkeypatch.delitem(sys.modules, "tools.corrupt")  # as python -m finds it
    runpy.run_module("tools.corrupt", run_name="__main__", alter_sys=True)
    shown = terminal.getvalue()
    assert "█" in shown and "4/4" in shown and "20 images made" in shown
    assert read_image(str(tmp_path / "dst/contrast/5/cat/a.JPEG")).shape == (3, 224, 224)
