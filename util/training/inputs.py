"""inputs.png: the first images of a run, as they entered the model."""

import logging
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from util.reporting.run_folder import INPUTS

log = logging.getLogger(__name__)

MOST, COLUMNS, CELL, GAP = 16, 8, 112, 4  # images, in a row; pixels of a cell, between cells
ABOUT = (
    "The first images of the first step as they entered the model: cropped, flipped, distorted and "
    "mixed as the flags say; normalisation is undone."
)


def write_inputs(
    folder: str, imgs: Tensor | Sequence[Tensor], mean: Sequence[float], std: Sequence[float]
) -> None:
    """Write a sheet of the first images; a failure is a line in the log.

    Args:
        imgs: [B, C, H, W], normalised by mean and std; or a list of images [C, H, W] of any sizes,
            which are not.
    """
    try:
        _sheet(_as_colours(imgs, mean, std)).save(os.path.join(folder, INPUTS))
    except (OSError, ValueError, RuntimeError) as error:
        log.warning("no %s (%s): training goes on", INPUTS, error)


def _as_colours(
    imgs: Tensor | Sequence[Tensor], mean: Sequence[float], std: Sequence[float]
) -> list[Tensor]:
    """The first images in 0..1, [3, H, W]; those on another scale by their own least and most."""
    is_normalised = isinstance(imgs, Tensor)
    found = []
    for image in imgs[:MOST]:
        image = image.detach().cpu()
        image = image / 255 if image.dtype == torch.uint8 else image.float()
        if is_normalised:
            image = image * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
        found.append(image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1))
    low, high = (min(i.min() for i in found), max(i.max() for i in found))
    if low < -0.5 or high > 1.5:
        found = [(image - low) / (high - low) for image in found]
    return [image.clamp(0, 1) for image in found]


def _sheet(images: Sequence[Tensor]):
    """The images in rows, small ones enlarged pixel by pixel, large ones made smaller."""
    from PIL import Image

    columns, rows = min(COLUMNS, len(images)), -(-len(images) // COLUMNS)
    step = CELL + GAP
    sheet = Image.new("RGB", (columns * step + GAP, rows * step + GAP), "white")
    for number, image in enumerate(images):
        picture = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
        longest = max(picture.size)
        how = Image.Resampling.NEAREST if longest < CELL else Image.Resampling.LANCZOS
        picture = picture.resize([max(1, CELL * side // longest) for side in picture.size], how)
        row, column = divmod(number, COLUMNS)
        sheet.paste(picture, (GAP + column * step, GAP + row * step))
    return sheet
