"""Whether the numbers in float images are on the scale of --mean and --std, told at the start."""

import argparse
from typing import Any

import torch

from util.errors import UsageError

LOOKED_AT = 8  # images
FAR = 20.0  # standard deviations
SHARE = 0.05  # of the pixels that have to be so far off: single ones decide nothing


def check_scale(images: Any, args: argparse.Namespace) -> None:
    """Compare some images of more than 8 bits with --mean and --std.

    Args:
        images: `util.data.datasets.Images`.

    Raises:
        UsageError: a network would see values in the hundreds.
    """
    values, name = [], ""
    count = min(LOOKED_AT, len(images))
    for index in sorted({i * len(images) // count for i in range(count)}):
        try:
            found = images.read(index)
        except Exception:  # who needs the image will say so
            continue
        image = found[0] if isinstance(found, tuple) else found
        if image.dtype != torch.uint8:
            values.append(image.flatten(1)[:, :: max(1, image[0].numel() // 4096)])
            name = name or images.name(index)
    if not values:
        return
    pixels = torch.cat(values, dim=1)  # [C, n]
    mean, std = (torch.tensor(numbers)[:, None] for numbers in (args.mean, args.std))
    if (((pixels - mean) / std).abs() > FAR).float().mean() > SHARE:
        low, high = pixels.flatten().quantile(torch.tensor([0.01, 0.99])).tolist()
        raise UsageError(
            f"{name} and others have numbers of about {low:.4g} to {high:.4g}, far from --mean and "
            "--std: name those that become 0 and 1 with --value_range LOW HIGH, or give --mean and "
            "--std as python -m tools.statistics finds them"
        )
