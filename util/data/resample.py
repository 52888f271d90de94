"""A window of an image resized, of which only that window is computed."""

import torch
from torch import Tensor

SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}  # pixels to each side, of the coarser grid


def resized_window(
    image: Tensor, resized: tuple[int, int], top: int, left: int, size: tuple[int, int],
    interpolation: str,
) -> Tensor:  # fmt: skip
    """What `resize(image, resized)[:, top : top + h, left : left + w]` has, within rounding.

    An image of 1 x 4000 pixels that has to cover a square of 256 would be 256 x 1 024 000 first.

    Args:
        image: [C, H, W], uint8 or floats. size: (h, w) of the window.

    Returns:
        [C, h, w], of the image's type.
    """
    rows, row_weights = _weights(image.shape[1], resized[0], top, size[0], interpolation)
    columns, column_weights = _weights(image.shape[2], resized[1], left, size[1], interpolation)
    pixels = image[:, rows, columns].float()  # [C, y, x]
    pixels = row_weights @ (pixels @ column_weights.T)  # [h, y] · [C, y, w]
    if image.dtype == torch.uint8:
        pixels = pixels.round().clamp(0, 255)
    return pixels.to(image.dtype)


def _weights(
    old: int, new: int, start: int, count: int, interpolation: str
) -> tuple[slice, Tensor]:
    """The old pixels that new ones are made of, and their shares [count, pixels]; antialiased."""
    scale = old / new
    stretch = max(scale, 1.0)
    reach = SUPPORT[interpolation] * stretch
    centres = (torch.arange(start, start + count, dtype=torch.float64) + 0.5) * scale
    first = max(0, int(centres[0] - reach))
    last = min(old, int(centres[-1] + reach) + 2)
    places = torch.arange(first, last, dtype=torch.float64) + 0.5
    distance = (places - centres[:, None]).abs() / stretch
    weights = _triangle(distance) if interpolation == "bilinear" else _cubic(distance)
    weights = weights / weights.sum(1, keepdim=True)
    return slice(first, last), weights.float()


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance).clamp_min(0)


def _cubic(distance: Tensor, a: float = -0.5) -> Tensor:
    """Keys's kernel, with the a of PIL's and of torch's antialiased bicubic."""
    d = distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d < 1, near, torch.where(d < 2, far, torch.zeros_like(d)))
