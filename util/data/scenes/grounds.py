"""The backgrounds of scenes: textures drawn by rule, crops of photographs, or nothing."""

import colorsys
import os

import numpy as np
from PIL import Image

from util.data.file_index import find_images
from util.data.images import read_image, to_bytes
from util.errors import UsageError

VALIDATION_SHARE = 4  # one photograph in so many is kept for validation


def split_files(names: list[str], split: str) -> list[str]:
    """The files of a split: every fourth is for validation, and none is in both."""
    return [n for i, n in enumerate(names) if (i % VALIDATION_SHARE == 3) == (split != "training")]


class Photographs:
    """Backgrounds that are crops of the photographs below a folder."""

    def __init__(self, folder: str):
        self.folder = folder
        names = find_images(folder) if os.path.isdir(folder) else []
        self.names = {split: split_files(names, split) for split in ("training", "validation")}
        if not self.names["validation"]:
            raise UsageError(
                f"--grounds {folder} holds {len(names)} images: name a folder with at least "
                f"{VALIDATION_SHARE}, one of which is kept for validation"
            )

    def draw(self, rng: np.random.Generator, split: str, height: int, width: int) -> np.ndarray:
        """A crop of [height, width, 3] as float32 in 0..255.

        Raises:
            UsageError: a file that is no image.
        """
        path = os.path.join(self.folder, str(rng.choice(self.names[split])))
        try:
            photograph = Image.fromarray(to_bytes(read_image(path)).permute(1, 2, 0).numpy())
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"--grounds: {path} cannot be read ({error}): remove it") from None
        # The largest box of the scene's shape that fits, or one down to a half of it.
        scale = min(photograph.height / height, photograph.width / width) * rng.uniform(0.5, 1)
        top = rng.uniform(0, photograph.height - height * scale)
        left = rng.uniform(0, photograph.width - width * scale)
        box = (left, top, left + width * scale, top + height * scale)
        crop = photograph.resize((width, height), Image.Resampling.BILINEAR, box=box)
        return np.asarray(crop, dtype=np.float32)


class Plain:
    """A black background."""

    def draw(self, rng: np.random.Generator, split: str, height: int, width: int) -> np.ndarray:
        """Zeros, [height, width, 3]."""
        return np.zeros((height, width, 3), dtype=np.float32)


class Textures:
    """Backgrounds of clouds, stripes, rings, tiles or weaves in two related colours."""

    def draw(self, rng: np.random.Generator, split: str, height: int, width: int) -> np.ndarray:
        """A texture of [height, width, 3] as float32 in 0..255."""
        pattern = _PATTERNS[rng.integers(len(_PATTERNS))]
        y, x = np.mgrid[:height, :width].astype(np.float32) / min(height, width)
        angle = rng.uniform(0, np.pi)
        u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        cloud = _cloud(rng, height, width)
        mix = pattern(rng, u, v, cloud)[..., None]  # [H, W, 1], 0 is one colour, 1 the other
        first, second = _related_colours(rng)
        light = 1 + rng.uniform(0.05, 0.15) * (u - u.mean()) + 0.08 * (cloud - 0.5)
        texture = (first + (second - first) * mix) * light[..., None]
        return texture.clip(0, 255).astype(np.float32)


def _related_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two muted colours, dark or bright: middle greys would leave an object no contrast."""
    hue = rng.random()
    lightness = rng.uniform(0.18, 0.32) if rng.random() < 0.5 else rng.uniform(0.68, 0.85)
    saturation = rng.uniform(0.1, 0.45)
    other = (
        hue + rng.uniform(-0.12, 0.12),
        lightness + rng.choice([-1, 1]) * rng.uniform(0.06, 0.13),
    )
    colours = (
        colorsys.hls_to_rgb(hue, lightness, saturation),
        colorsys.hls_to_rgb(other[0] % 1, other[1], saturation),
    )
    return tuple(np.array(colour, dtype=np.float32) * 255 for colour in colours)


def _cloud(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth noise [height, width] of three sizes, about 0..1."""
    cloud = np.zeros((height, width), dtype=np.float32)
    for cells, weight in ((3, 0.55), (7, 0.3), (17, 0.15)):
        grid = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
        cloud += weight * np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
    return cloud


# The patterns: coordinates u, v in shorter sides of the scene, turned, and a cloud -> 0..1.


def _clouds(rng, u, v, cloud):
    return ((cloud - 0.3) / 0.4).clip(0, 1)


def _stripes(rng, u, v, cloud):
    wave = np.sin(2 * np.pi * (rng.uniform(3, 9) * u + rng.uniform(0, 1.2) * cloud))
    return 0.5 + 0.5 * np.tanh(rng.uniform(1, 4) * wave)


def _rings(rng, u, v, cloud):
    """Wood: rings around an axis far from square to the picture."""
    radius = np.hypot(u - rng.uniform(-1, 1), 0.2 * (v - rng.uniform(-1, 1))) + 0.15 * cloud
    return 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(6, 14) * radius)


def _tiles(rng, u, v, cloud):
    """Bricks of uneven shade with joints between them."""
    rows, long = rng.uniform(4, 9), rng.uniform(1, 2.5)
    row = np.floor(v * rows)
    along = u * rows / long + row * rng.choice([0, 0.5])
    shade = rng.random((64, 64), dtype=np.float32)
    mix = 0.6 * shade[row.astype(int) % 64, np.floor(along).astype(int) % 64]
    is_joint = (v * rows - row < 0.1) | (along - np.floor(along) < 0.1 / long)
    return np.where(is_joint, 1, mix)


def _weave(rng, u, v, cloud):
    threads = 2 * np.pi * rng.uniform(8, 14)
    return 0.5 + 0.3 * np.sin(threads * u) * np.sin(threads * v) + 0.4 * (cloud - 0.5)


_PATTERNS = (_clouds, _stripes, _rings, _tiles, _weave)
