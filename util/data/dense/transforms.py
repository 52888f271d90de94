"""Augmentation of an image with its label map: what moves the one moves the other, to the pixel.

Every transform takes and gives an image [C, H, W], uint8 or floats in 0..1, and a map [H, W] of
integers. They are those of the published recipes of ADE20K (open-mmlab/mmsegmentation).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from util.data.dense.ade20k import NOTHING
from util.data.images import is_off_scale, to_float
from util.data.transforms import resize
from util.errors import UsageError

Pair = tuple[Tensor, Tensor]

LONGEST = 4  # an image's longer side is at most so many times the size's shorter one, as published


def fitted_size(height: int, width: int, short: float) -> tuple[int, int]:
    """The size of an image whose shorter side becomes `short`, the longer at most 4 · short."""
    scale = min(short / min(height, width), LONGEST * short / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_image(image: Tensor, size: Sequence[int], antialias: bool = False) -> Tensor:
    """[..., h, w] -> [..., *size], bilinear.

    Args:
        antialias: the published pipeline (OpenCV's INTER_LINEAR) does not: a pixel is made of the
            four that surround its centre, however much smaller an image becomes.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return resize(image, size, "bilinear", antialias)


def resize_map(labels: Tensor, size: Sequence[int]) -> Tensor:
    """[h, w] -> size: pixel i takes the value at ⌊i · old / new⌋, as published.

    That is OpenCV's INTER_NEAREST, which does not look under a pixel's centre: a map lies on
    average half a pixel of the new grid below its image and to the right, but at whole factors.
    """
    for dim, (old, new) in enumerate(zip(labels.shape, size, strict=True)):
        places = (torch.arange(new, dtype=torch.float64) * (old / new)).long()
        labels = labels.index_select(dim, places.clamp(max=old - 1))
    return labels


def unchanged(image: Tensor, labels: Tensor) -> Pair:
    """The evaluation's view: predictions are made for the image as it is."""
    return image, labels


class RandomResize:
    """Resize so that the shorter side is `size`'s shorter one times a factor, drawn uniformly."""

    def __init__(self, size: tuple[int, int], scales: tuple[float, float]):
        self.short, self.scales = min(size), scales

    def __call__(self, image: Tensor, labels: Tensor) -> Pair:
        scale = torch.empty(()).uniform_(*self.scales).item()
        size = fitted_size(*labels.shape, max(1, int(self.short * scale)))
        return resize_image(image, size), resize_map(labels, size)


class RandomCrop:
    """Cut out `size`, or what there is of it: a crop that is filled by one class is drawn anew.

    Args:
        max_share: of the labelled pixels that a class may have; after ten draws it may have more.
    """

    draws = 10

    def __init__(self, size: tuple[int, int], max_share: float):
        self.size, self.max_share = size, max_share

    def __call__(self, image: Tensor, labels: Tensor) -> Pair:
        for _ in range(self.draws):
            rooms = [max(old - new, 0) for old, new in zip(labels.shape, self.size, strict=True)]
            top, left = (int(torch.randint(room + 1, ())) for room in rooms)
            box = slice(top, top + self.size[0]), slice(left, left + self.size[1])
            if self.max_share >= 1 or self._is_mixed(labels[box]):
                break
        return image[:, box[0], box[1]], labels[box]

    def _is_mixed(self, labels: Tensor) -> bool:
        counts = torch.bincount(labels[labels != NOTHING].long())
        counts = counts[counts > 0]
        return len(counts) > 1 and bool(counts.max() < self.max_share * counts.sum())


class RandomFlip:
    """Half of the images."""

    def __call__(self, image: Tensor, labels: Tensor) -> Pair:
        if torch.rand(()) < 0.5:
            return image.flip(-1), labels.flip(-1)
        return image, labels


class PhotometricDistortion:
    """Brightness, contrast, saturation and hue, each of half the images [SSD, 2016].

    On a scale of 0 to 255: brightness adds −32 to 32, contrast multiplies by 0.5 to 1.5, before
    or after saturation (by 0.5 to 1.5) and hue (−36 to 36 degrees), which only three channels have.
    Values are clipped after each.
    """

    def __call__(self, image: Tensor, labels: Tensor) -> Pair:
        from torchvision.transforms.v2.functional import adjust_hue

        if is_off_scale(image):
            raise UsageError(
                "--photometric changes pixels on a scale of 0 to 1, and there are images of "
                "another: name theirs with --value_range, or use --no-photometric"
            )
        pixels = to_float(image)
        if _coin():
            pixels = (pixels + _between(-32 / 255, 32 / 255)).clamp(0, 1)
        contrast_first = _coin()
        if contrast_first:
            pixels = _contrast(pixels)
        if len(pixels) == 3:
            if _coin():
                pixels = saturated(pixels, _between(0.5, 1.5))
            if _coin():
                pixels = adjust_hue(pixels, _between(-0.1, 0.1))
        if not contrast_first:
            pixels = _contrast(pixels)
        if image.dtype == torch.uint8:
            pixels = (255 * pixels).round().to(torch.uint8)
        return pixels, labels


def _coin() -> bool:
    return bool(torch.rand(()) < 0.5)


def _between(low: float, high: float) -> float:
    return torch.empty(()).uniform_(low, high).item()


def _contrast(pixels: Tensor) -> Tensor:
    return (pixels * _between(0.5, 1.5)).clamp(0, 1) if _coin() else pixels


def saturated(pixels: Tensor, factor: float) -> Tensor:
    """Multiply the saturation of HSV, at most to 1; hue and value stay. RGB in 0..1 [3, H, W].

    S = (V − min) / V with V the largest channel, so a channel's distance from V grows as S does.
    """
    value, low = pixels.amax(0), pixels.amin(0)
    most = value / (value - low).clamp(min=1e-12)  # 1 / S
    return value - (value - pixels) * most.clamp(max=factor)


class Pad:
    """Fill up to `size` on the right and below: the image with `fill`, the map with NOTHING.

    Args:
        fill: per channel, in 0..1; the mean, which is 0 once normalised.
    """

    def __init__(self, size: tuple[int, int], fill: Sequence[float]):
        self.size, self.fill = size, fill

    def __call__(self, image: Tensor, labels: Tensor) -> Pair:
        missing = [new - old for new, old in zip(self.size, labels.shape, strict=True)]
        if max(missing) <= 0:
            return image, labels
        fill = torch.tensor(self.fill)
        if image.dtype == torch.uint8:
            fill = (255 * fill).round()
        padded = fill.to(image.dtype)[:, None, None].repeat(1, *self.size)
        padded[:, : image.shape[1], : image.shape[2]] = image
        return padded, F.pad(labels, (0, missing[1], 0, missing[0]), value=NOTHING)
