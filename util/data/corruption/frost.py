"""Frost on a window pane, procedural: feathers of needles in patches on a dark, bluish glass.

The published frost lays five photographs of the web over the images; they are not ours to give
away. These five textures play their part, so frosted images are ImageNet-C-like, not ImageNet-C's.
"""

import functools

import numpy as np
from PIL import Image
from scipy import fft, ndimage

NUM_TEXTURES = 5
SIDE = 512  # pixels; a texture is a torus, so any image finds room on it
_GLASS, _ICE = np.array([0.16, 0.24, 0.36]), np.array([0.93, 0.97, 1.0])
_NUM_DIRECTIONS = 6


@functools.cache
def frost_texture(number: int, shrink: float = 1.0) -> np.ndarray:
    """Texture 0 to 4, made smaller by the factor `shrink`: float32 [S, S, 3] in 0..1."""
    if shrink == 1:
        ice = _ice(np.random.default_rng([0xF057, number]))[..., None]
        return (_GLASS + (_ICE - _GLASS) * ice).astype(np.float32)
    side = round(SIDE * shrink)
    image = Image.fromarray((frost_texture(number) * 255).astype(np.uint8))
    return np.asarray(image.resize((side, side), Image.BOX), dtype=np.float32) / 255


def _ice(rng: np.random.Generator) -> np.ndarray:
    """How thick the ice is, 0 (glass) to 1: [S, S]."""
    y, x = np.meshgrid(fft.fftfreq(SIDE), fft.rfftfreq(SIDE), indexing="ij")
    y, x = y.astype(np.float32), x.astype(np.float32)
    distance = np.sqrt(y**2 + x**2)
    cover = _noise(rng, 1 / (distance + 2 / SIDE) ** 1.6)
    patches, needles = [], []
    first = rng.uniform(0, np.pi)
    for number in range(_NUM_DIRECTIONS):
        angle = first + np.pi * number / _NUM_DIRECTIONS
        along = x * np.cos(angle) + y * np.sin(angle)
        across = y * np.cos(angle) - x * np.sin(angle)
        patches.append(_noise(rng, np.exp(-((distance * 90) ** 2))))
        # Needles of two sizes, about 40 pixels by 4 and 14 by 2.
        long = _noise(rng, np.exp(-((along * 80) ** 2) - (across * 10) ** 2) * np.abs(across))
        short = _noise(rng, np.exp(-((along * 28) ** 2) - (across * 5) ** 2) * np.abs(across))
        needles.append(np.maximum(0, long) + 0.8 * np.maximum(0, short))
    share = np.exp(2.5 * np.array(patches))  # where a direction rules
    share /= share.sum(0)
    feathers = _bent((share * np.array(needles)).sum(0), rng, distance)
    crystals = np.maximum(0, _noise(rng, np.exp(-((distance * 6) ** 2)) * distance))
    thick = 1 / (1 + np.exp(-2 * cover))  # feathers grow where there is much ice
    return (0.1 + thick * (0.3 + 0.4 * feathers + 0.1 * crystals)).clip(0, 1)


def _bent(field: np.ndarray, rng: np.random.Generator, distance: np.ndarray) -> np.ndarray:
    """The field with its straight lines bent by a smooth noise of shifts."""
    shifts = [
        4 * _noise(rng, np.exp(-((distance * 60) ** 2)))
        + 0.7 * _noise(rng, np.exp(-((distance * 12) ** 2)))
        for _ in range(2)
    ]
    grid = np.mgrid[:SIDE, :SIDE] + np.array(shifts)
    return ndimage.map_coordinates(field, grid, order=1, mode="grid-wrap")


def _noise(rng: np.random.Generator, amplitude: np.ndarray) -> np.ndarray:
    """Periodic noise of mean 0 and variance 1 with this amplitude spectrum: [S, S]."""
    white = rng.standard_normal((SIDE, SIDE), dtype=np.float32)
    spectrum = fft.rfft2(white) * amplitude
    spectrum[0, 0] = 0
    noise = fft.irfft2(spectrum, s=(SIDE, SIDE))
    return noise / noise.std()
