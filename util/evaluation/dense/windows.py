"""Class probabilities of whole images of any size: by windows, several scales, and mirrored.

B images, K classes, H x W pixels.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from util.data.dense.transforms import fitted_size, resize_image

Segmenter = Callable[[Tensor], Tensor]  # images [B, ·, H, W] -> logits [B, K, h, w]


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side: every `stride`, the last one at the end of the side."""
    last = max(length - window, 0)
    return [min(i * stride, last) for i in range(-(-last // stride) + 1)]


def by_windows(
    model: Segmenter, imgs: Tensor, window: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """Logits [B, K, H, W]: each pixel's mean over the windows that see it.

    Args:
        imgs: normalised; what is smaller than a window is filled up with 0, the mean.
    """
    height, width = imgs.shape[-2:]
    imgs = _filled(imgs, max(height, window[0]), max(width, window[1]))
    total, seen = None, imgs.new_zeros(imgs.shape[-2:])
    for top in starts(imgs.shape[-2], window[0], stride[0]):
        for left in starts(imgs.shape[-1], window[1], stride[1]):
            box = ..., slice(top, top + window[0]), slice(left, left + window[1])
            logits = enlarged(model(imgs[box]), window)
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], *imgs.shape[-2:])
            total[box] += logits
            seen[box] += 1
    return (total / seen)[..., :height, :width]


def whole(model: Segmenter, imgs: Tensor, unit: int) -> Tensor:
    """Logits [B, K, H, W] of images that the model takes as they are, filled up to `unit`s.

    To two at least: the coarsest level of a ViT's pyramid halves the cells.
    """
    height, width = imgs.shape[-2:]
    filled = _filled(imgs, *(unit * max(2, -(-side // unit)) for side in (height, width)))
    return enlarged(model(filled), filled.shape[-2:])[..., :height, :width]


def _filled(imgs: Tensor, height: int, width: int) -> Tensor:
    return F.pad(imgs, (0, width - imgs.shape[-1], 0, height - imgs.shape[-2]))


def enlarged(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits as floats at another size, bilinear."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def predict(
    segment: Segmenter, imgs: Tensor, normalize: Callable[[Tensor], Tensor],
    short: int, scales: Sequence[float] = (1.0,), flip: bool = False,
) -> Tensor:  # fmt: skip
    """Classes [B, H, W] of images [B, ·, H, W] as the loader gives them, at their own size.

    Args:
        segment: normalised images -> logits of the same size.
        short: the shorter side at scale 1, in pixels.
        scales, flip: with more than one view the mean of their probabilities decides, else logits.
    """
    base = fitted_size(*imgs.shape[-2:], short)
    views = [(scale, mirrored) for scale in scales for mirrored in (False, True)[: 1 + flip]]
    total: Tensor | float = 0.0
    for scale, mirrored in views:
        size = fitted_size(*imgs.shape[-2:], max(1, int(short * scale)))
        view = normalize(resize_image(imgs, size))
        logits = segment(view.flip(-1)).flip(-1) if mirrored else segment(view)
        logits = enlarged(logits, base)
        total = total + (logits.softmax(1) if len(views) > 1 else logits)
    return largest(total, imgs.shape[-2:])


def largest(values: Tensor, size: Sequence[int], at_once: int = 16) -> Tensor:
    """The class [B, H, W] whose value [B, K, h, w] is the largest, once enlarged to `size`.

    Some classes at a time: all of them of a large photograph would take gigabytes.
    """
    best, classes = None, None
    for first in range(0, values.shape[1], at_once):
        top = enlarged(values[:, first : first + at_once], size).max(1)
        if best is None:
            best, classes = top.values, top.indices
        else:
            is_better = top.values > best
            best = torch.where(is_better, top.values, best)
            classes = torch.where(is_better, top.indices + first, classes)
    return classes
