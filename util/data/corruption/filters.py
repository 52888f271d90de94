"""The filters that several corruptions use: blurs, zooms, warps, fractal heights.

Shapes: images [H, W, C], float32 in 0..1; lengths in pixels.
"""

import functools
import math

import numpy as np
from scipy import fft, ndimage


def grey(image: np.ndarray) -> np.ndarray:
    """The image's luma: [H, W, 1 or 3] -> [H, W, 1]."""
    if image.shape[2] == 1:
        return image
    red, green, blue = np.moveaxis(image, 2, 0)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[..., None]


@functools.cache
def disc_kernel(radius: float, alias_blur: float) -> np.ndarray:
    """A disc of this radius, its rim softened by a Gaussian of `alias_blur` pixels: [K, K]."""
    reach = 8 if radius <= 8 else int(radius)
    taps = 1 if radius <= 8 else 2  # either side of the softening Gaussian's middle
    across = np.arange(-reach, reach + 1)
    disc = (across[:, None] ** 2 + across**2 <= radius**2).astype(np.float32)
    soft = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * alias_blur**2))
    for axis in (0, 1):
        disc = ndimage.correlate1d(disc, soft / soft.sum(), axis, mode="mirror")
    return disc / (across[:, None] ** 2 + across**2 <= radius**2).sum()


def convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolve with a symmetric kernel [K, K], K odd; beyond the border the image is mirrored."""
    from scipy.signal import fftconvolve  # here: it takes a second to import

    reach = len(kernel) // 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    return fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1))


def gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur, cut off at 4 sigma; beyond the border the nearest pixel goes on."""
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest", truncate=4)


def motion(image: np.ndarray, radius: float, sigma: float, angle: float) -> np.ndarray:
    """ImageMagick's motion blur: the half of a Gaussian that lies ahead, along a line of pixels.

    Args:
        radius: the line has 2 · radius + 1 pixels, the first the pixel itself.
        angle: of the line, in degrees; positive ones go down.
    """
    along = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(along**2) / (2 * sigma**2)) if sigma > 0 else along == 0
    weights = (weights / weights.sum()).astype(np.float32)
    turn = math.radians(angle)
    down = np.ceil(along * math.sin(turn) - 0.5).astype(int)
    right = np.ceil(along * math.cos(turn) - 0.5).astype(int)
    above, left = max(-down.min(), 0), max(-right.min(), 0)
    borders = ((above, max(down.max(), 0)), (left, max(right.max(), 0)), (0, 0))
    padded = np.pad(image, borders, mode="edge")
    height, width = image.shape[:2]
    out = np.zeros_like(image)
    term = np.empty_like(image)
    for weight, y, x in zip(weights, above + down, left + right, strict=True):
        np.multiply(padded[y : y + height, x : x + width], weight, out=term)
        out += term
    return out


@functools.lru_cache(maxsize=1024)  # images may come in any number of sizes
def _zoom_taps(size: int, factor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Along one axis, where each pixel of the zoomed centre lies: two neighbours and a weight."""
    crop = math.ceil(size / factor)
    zoomed = round(crop * factor)
    position = np.arange(size) + (zoomed - size) // 2
    position = position * ((crop - 1) / max(zoomed - 1, 1))
    low = np.floor(position).astype(int).clip(0, crop - 1)
    first = (size - crop) // 2
    weight = (position - low).astype(np.float32)
    return first + low, first + np.minimum(low + 1, crop - 1), weight


def zoom(image: np.ndarray, factor: float) -> np.ndarray:
    """The image's centre enlarged by `factor` (linear, corner on corner), of the image's size."""
    low, high, weight = _zoom_taps(image.shape[0], factor)
    weight = weight[:, None, None]
    image = image[low] * (1 - weight) + image[high] * weight
    low, high, weight = _zoom_taps(image.shape[1], factor)
    weight = weight[:, None]
    return image.take(low, 1) * (1 - weight) + image.take(high, 1) * weight


def _folded(ids: np.ndarray, size: int, repeat_edge: bool) -> np.ndarray:
    """Indices beyond 0..size−1 mirrored back; `repeat_edge`: the border's pixel comes twice."""
    period = 2 * size if repeat_edge else 2 * (size - 1)
    ids = ids % period
    return np.where(ids < size, ids, period - ids - int(repeat_edge))


def sample(image: np.ndarray, y: np.ndarray, x: np.ndarray, repeat_edge: bool) -> np.ndarray:
    """The image at positions y, x [H, W], linear in both; see `_folded` for the border."""
    height, width, channels = image.shape
    top, left = np.floor(y), np.floor(x)
    down = (y - top).astype(np.float32)[..., None]
    right = (x - left).astype(np.float32)[..., None]
    top, left = top.astype(int), left.astype(int)
    rows = [_folded(top + i, height, repeat_edge) * width for i in (0, 1)]
    columns = [_folded(left + i, width, repeat_edge) for i in (0, 1)]
    pixels = image.reshape(-1, channels)
    upper, lower = (
        pixels.take(row + columns[0], 0) * (1 - right) + pixels.take(row + columns[1], 0) * right
        for row in rows
    )
    return upper * (1 - down) + lower * down


@functools.lru_cache(maxsize=1024)
def _gaussian_response(size: int, sigma: float, truncate: float) -> np.ndarray:
    """What a cut-off Gaussian blur leaves of each cosine of the DCT: [size]."""
    reach = int(truncate * sigma + 0.5)
    taps = np.arange(1, reach + 1)
    weights = np.exp(-0.5 * (taps / sigma) ** 2) if sigma > 0 else np.zeros(0)
    waves = np.cos(np.pi / size * np.outer(np.arange(size), taps))
    return (1 + 2 * waves @ weights) / (1 + 2 * weights.sum())


def smooth_field(field: np.ndarray, sigma: float, truncate: float = 3) -> np.ndarray:
    """Gaussian blur of [H, W] mirrored at its border, however wide: by DCT, and exactly.

    Mirrored with the edge repeated, a field is a sum of cosines, which a blur only scales.
    """
    height, width = field.shape
    response = np.outer(
        _gaussian_response(height, sigma, truncate), _gaussian_response(width, sigma, truncate)
    )
    return fft.idctn(fft.dctn(field) * response)


def plasma(side: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Fractal heights in 0..1 by the diamond-square algorithm on a torus: [side, side].

    Args:
        side: a power of two.
        decay: the noise's amplitude falls by decay² from one scale to the next, as published.
    """
    heights = np.zeros((side, side))
    step, amplitude = side, 1.0

    def disturbed(*neighbours: np.ndarray) -> np.ndarray:
        return sum(neighbours) / 4 + amplitude * rng.uniform(-1, 1, neighbours[0].shape)

    while step > 1:
        half = step // 2
        corner = heights[::step, ::step]
        right = np.roll(corner, -1, 1)
        below = np.roll(corner, -1, 0)
        centre = disturbed(corner, right, below, np.roll(right, -1, 0))
        heights[half::step, half::step] = centre
        heights[::step, half::step] = disturbed(corner, right, centre, np.roll(centre, 1, 0))
        heights[half::step, ::step] = disturbed(corner, below, centre, np.roll(centre, 1, 1))
        step, amplitude = half, amplitude / decay**2
    heights -= heights.min()
    return heights / heights.max()
