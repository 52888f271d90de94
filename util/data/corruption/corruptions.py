"""The 15 corruptions of ImageNet-C at 5 severities, for images of any size from 8 pixels on.

After the published definitions (Hendrycks & Dietterich, ICLR 2019, and `make_imagenet_c.py` of its
authors), on numpy, scipy and PIL. `constants.py` has the numbers; images of 8 to 119 pixels take
those published for CIFAR-10-C or Tiny-ImageNet-C. Frost's textures are procedural (`frost.py`), so
a set made here is "-C-like": its errors stand beside others of the same set, not beside those on
the published images.

On the fly: `Corruption("fog", 3)(image, index)`. A folder SRC/CLASS/IMAGE, in ImageNet-C's layout
DST/CORRUPTION/SEVERITY/CLASS/IMAGE.JPEG:

python -m tools.corrupt SRC DST

A corruption is (image uint8 [H, W, C], rng, its constants) -> floats in 0..1, or levels as uint8.
"""

import hashlib
import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from util.data.corruption import filters
from util.data.corruption.constants import PUBLISHED, nearest_published
from util.data.corruption.frost import NUM_TEXTURES, frost_texture

Rng = np.random.Generator

MIN_SIDE = 8  # pixels
RECORD = "corruptions.json"  # in a folder of corrupted images: how it was made
NOTE = (
    "ImageNet-C-like: made after the published definitions; frost's textures are procedural and "
    "the random numbers are others, so errors are not those on the published images"
)
SEVERITIES = (1, 2, 3, 4, 5)


def to_pil(image: np.ndarray) -> Image.Image:
    """Pixels [H, W, 1 or 3] uint8 as Pillow's image."""
    return Image.fromarray(image if image.shape[2] == 3 else image[..., 0])


def _to_unit(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) / 255


def _to_levels(image: np.ndarray) -> np.ndarray:
    """Floats in 0..1 -> uint8, rounded down as published, but not by a rounding error."""
    return (image.clip(0, 1) * 255 + 0.01).astype(np.uint8)


# ------------------------------------------------------------------------------------------- noise


def gaussian_noise(image: np.ndarray, rng: Rng, std: float) -> np.ndarray:
    """Noise of one standard deviation, of pixels in 0..1, on all of them."""
    return _to_unit(image) + std * rng.standard_normal(image.shape, dtype=np.float32)


def shot_noise(image: np.ndarray, rng: Rng, photons: float) -> np.ndarray:
    """Poisson noise of photons, `photons` of which a white pixel counts on average."""
    return rng.poisson(_to_unit(image) * photons) / photons


def impulse_noise(image: np.ndarray, rng: Rng, share: float) -> np.ndarray:
    """Salt and pepper: this share of the values becomes 0 or 255, either as often."""
    draw = rng.random(image.shape, dtype=np.float32)
    noisy = np.where(draw < share / 2, np.uint8(255), image)
    return np.where((draw >= share / 2) & (draw < share), np.uint8(0), noisy)


# -------------------------------------------------------------------------------------------- blur


def defocus_blur(image: np.ndarray, rng: Rng, radius: float, alias_blur: float) -> np.ndarray:
    """A disc of `radius` pixels, itself blurred against aliasing."""
    return filters.convolve(_to_unit(image), filters.disc_kernel(radius, alias_blur))


def glass_blur(
    image: np.ndarray, rng: Rng, sigma: float, max_delta: int, iterations: int
) -> np.ndarray:
    """Blur; each pixel, from the last to the first, takes the value of one nearby; blur again.

    The published loop reads as a swap, but there `a, b = b, a` has views of one array: the second
    assignment finds what the first one wrote. So the published images have copies, as here.
    """
    height, width, channels = image.shape
    image = _to_levels(filters.gaussian(_to_unit(image), sigma)).reshape(-1, channels)  # [H·W, C]
    for _ in range(iterations):
        image = image[_glass_sources(height, width, max_delta, rng)]
    return filters.gaussian(_to_unit(image).reshape(height, width, channels), sigma)


def _glass_sources(height: int, width: int, max_delta: int, rng: Rng) -> np.ndarray:
    """Which pixel's old value each pixel has after a pass of copies one after another: [H·W].

    A copy from a pixel that had its own copy before brings that one's new value. So a pixel points
    to the new or old value of its source; all pointers at once are followed until they end at old
    values, each time twice as far. Pixels near the border get no copy: their new value is the old.
    """
    first, num_pixels = max_delta + 1, height * width
    ids = np.arange(num_pixels).reshape(height, width)
    region = ids[first : height - max_delta + 1, first : width - max_delta + 1]
    down, right = rng.integers(-max_delta, max_delta, (2, *region.shape))
    source = region + down * width + right
    is_done = (down > 0) | ((down == 0) & (right > 0))  # later in the image is earlier in the pass
    # Nodes 0 … H·W − 1: new values; from H·W on: old ones, which point to themselves.
    pointer = np.arange(2 * num_pixels)
    pointer[:num_pixels] += num_pixels
    pointer[region] = np.where(is_done, source, source + num_pixels)
    while (pointer[:num_pixels] < num_pixels).any():
        pointer = pointer[pointer]
    return pointer[:num_pixels] - num_pixels


def motion_blur(image: np.ndarray, rng: Rng, radius: float, sigma: float) -> np.ndarray:
    """A blur along a line of a random direction within 45 degrees of the horizontal."""
    blurred = filters.motion(image.astype(np.float32), radius, sigma, rng.uniform(-45, 45))
    return (blurred + 0.5).clip(0, 255).astype(np.uint8)  # ImageMagick rounds to the nearest


def zoom_blur(image: np.ndarray, rng: Rng, stop: float, step: float) -> np.ndarray:
    """Mean of the image and its zooms by 1, 1 + step, …, below `stop`.

    Sizes are rounded to pixels as published: of 8 pixels, CIFAR-10-C's first severity zooms none.
    """
    image = _to_unit(image)
    factors = np.arange(1, stop, step)
    return (image + sum(filters.zoom(image, factor) for factor in factors)) / (len(factors) + 1)


# ----------------------------------------------------------------------------------------- weather


def snow(
    image: np.ndarray, rng: Rng, mean: float, std: float, flake_size: float, threshold: float,
    radius: float, sigma: float, keep: float,
) -> np.ndarray:  # fmt: skip
    """Flakes (thresholded noise, enlarged) fall aslant in two directions on a paler image."""
    image = _to_unit(image)
    flakes = mean + std * rng.standard_normal((*image.shape[:2], 1), dtype=np.float32)
    flakes = filters.zoom(flakes, flake_size)
    flakes[flakes < threshold] = 0
    flakes = filters.motion(_to_unit(_to_levels(flakes)), radius, sigma, rng.uniform(-135, -45))
    pale = keep * image + (1 - keep) * np.maximum(image, 1.5 * filters.grey(image) + 0.5)
    return pale + flakes + np.rot90(flakes, 2)


def frost(
    image: np.ndarray, rng: Rng, image_share: float, frost_share: float, shrink: float
) -> np.ndarray:
    """A piece of one of five textures is added; ours are procedural, not the published photos."""
    texture = frost_texture(int(rng.integers(NUM_TEXTURES)), shrink)
    top, left = rng.integers(len(texture), size=2)
    texture = texture.take(np.arange(top, top + image.shape[0]), 0, mode="wrap")
    texture = texture.take(np.arange(left, left + image.shape[1]), 1, mode="wrap")
    texture = texture if image.shape[2] == 3 else filters.grey(texture)
    return image_share * _to_unit(image) + frost_share * texture


def fog(image: np.ndarray, rng: Rng, thickness: float, decay: float) -> np.ndarray:
    """A plasma fractal laid over the image, darkened so that the brightest stays."""
    image = _to_unit(image)
    height, width, _ = image.shape
    side = 1 << (max(height, width) - 1).bit_length()
    heights = filters.plasma(side, decay, rng)[:height, :width, None].astype(np.float32)
    brightest = image.max()
    return (image + thickness * heights) * (brightest / (brightest + thickness))


def brightness(image: np.ndarray, rng: Rng, added: float) -> np.ndarray:
    """HSV's value grows, hue and saturation stay: all channels grow in proportion."""
    image = _to_unit(image)
    value = image.max(2, keepdims=True)
    brighter = (value + added).clip(0, 1)
    return np.where(value > 0, image * (brighter / np.maximum(value, 1e-6)), brighter)


# ----------------------------------------------------------------------------------------- digital


def contrast(image: np.ndarray, rng: Rng, factor: float) -> np.ndarray:
    """Pixels drawn to each channel's mean, by `factor`."""
    image = _to_unit(image)
    means = image.mean((0, 1), keepdims=True)
    return (image - means) * factor + means


def elastic_transform(
    image: np.ndarray, rng: Rng, strength: float, smoothness: float, jitter: float
) -> np.ndarray:
    """A random affine map, then a smooth random field of shifts.

    Args:
        strength, smoothness, jitter: factor of the field, its blur's sigma, and by how much the
            affine map moves three points at most; all in units of the shorter side.
    """
    height, width, _ = image.shape
    side = min(height, width)
    reach = side // 3
    before = np.array([[1, 1], [1, -1], [-1, -1]]) * reach + (width // 2, height // 2)  # x, y
    after = before + rng.uniform(-jitter * side, jitter * side, before.shape)
    # Each pixel of the result is looked up where the inverse map leads.
    inverse = np.linalg.lstsq(np.c_[after, np.ones(3)], before, rcond=None)[0]  # [3, 2]
    y, x = np.mgrid[:height, :width]
    from_x, from_y = (x * column[0] + y * column[1] + column[2] for column in inverse.T)
    image = filters.sample(_to_unit(image), from_y, from_x, repeat_edge=False)
    down, right = (
        strength * side * filters.smooth_field(noise, smoothness * side)
        for noise in rng.uniform(-1, 1, (2, height, width))
    )
    return filters.sample(image, y + down, x + right, repeat_edge=True)


def pixelate(image: np.ndarray, rng: Rng, share: float) -> np.ndarray:
    """Reduced to a `share` of its sides and enlarged, by boxes."""
    height, width, _ = image.shape
    small = to_pil(image).resize((int(width * share), int(height * share)), Image.BOX)
    return np.array(small.resize((width, height), Image.BOX)).reshape(image.shape)


def jpeg_compression(image: np.ndarray, rng: Rng, quality: int) -> np.ndarray:
    """Stored as a JPEG of a quality."""
    data = io.BytesIO()
    to_pil(image).save(data, "JPEG", quality=quality)
    return np.array(Image.open(data)).reshape(image.shape)


# ------------------------------------------------------------------------------------------- usage

CORRUPTIONS: dict[str, Callable[..., np.ndarray]] = {
    function.__name__: function
    for function in (
        gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur,
        zoom_blur, snow, frost, fog, brightness, contrast, elastic_transform, pixelate,
        jpeg_compression,
    )
}  # fmt: skip


def corruption_rng(seed: int, image: int | str, name: str, severity: int) -> Rng:
    """The generator of one corrupted image, a function of these four alone.

    Args:
        image: its index in the data set, or its name.
    """
    if isinstance(image, str):
        digest = hashlib.blake2b(image.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        key = [1, int.from_bytes(digest, "little")]
    else:
        key = [0, image]
    return np.random.default_rng([seed, *key, list(CORRUPTIONS).index(name), severity])


def corrupt(
    image: np.ndarray, name: str, severity: int, rng: Rng | int = 0, constants: str = "auto"
) -> np.ndarray:
    """Corrupt an image.

    Args:
        image: uint8 [H, W, C], C being 1 or 3, at least 8 pixels high and wide; it stays as it is.
        name: one of CORRUPTIONS.
        severity: 1 to 5.
        rng: a generator (`corruption_rng`), or a seed.
        constants: whose: imagenet_c, tiny_imagenet_c, cifar10_c; auto: by the image's size.

    Returns:
        uint8 [H, W, C]. The same for the same arguments with the same versions of the libraries.

    Raises:
        ValueError: anything else than that.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"corruption {name} is unknown: use {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity {severity} is unknown: use 1, 2, 3, 4 or 5")
    is_image = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] in (1, 3)
    if not is_image or min(image.shape[:2]) < MIN_SIDE:
        raise ValueError(
            f"an image of {image.shape} {image.dtype}: corruptions take uint8 [H, W, 1 or 3] of "
            f"at least {MIN_SIDE} x {MIN_SIDE} pixels"
        )
    constants = nearest_published(*image.shape[:2]) if constants == "auto" else constants
    if constants not in PUBLISHED:
        raise ValueError(f"constants {constants} are unknown: use auto, {', '.join(PUBLISHED)}")
    numbers = PUBLISHED[constants][1][name][severity - 1]
    out = CORRUPTIONS[name](image, np.random.default_rng(rng), *numbers)
    return np.ascontiguousarray(out if out.dtype == np.uint8 else _to_levels(out))


class Corruption:
    """A corruption as a transform: (uint8 [C, H, W], index or name of the image) -> the same."""

    def __init__(self, name: str, severity: int, seed: int = 0, constants: str = "auto"):
        self.name, self.severity, self.seed, self.constants = name, severity, seed, constants

    def __call__(self, image: torch.Tensor, index: int | str) -> torch.Tensor:
        rng = corruption_rng(self.seed, index, self.name, self.severity)
        pixels = image.permute(1, 2, 0).numpy()
        out = corrupt(pixels, self.name, self.severity, rng, self.constants)
        return torch.from_numpy(out).permute(2, 0, 1).contiguous()
