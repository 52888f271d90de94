"""A mask that somebody has drawn: a picture, of which what is dark is hidden."""

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from util.data.images import convert, open_picture
from util.errors import UsageError, first_line


def read_mask(path: str, grid: Sequence[int], units: int) -> Tensor:
    """Which patches (mask units) a picture's dark parts hide, [L].

    Raises:
        UsageError: no picture, or one that hides all of them or none.
    """
    across = math.isqrt(grid[0] * grid[1] // units)  # patches that a unit is wide
    try:
        with open(path, "rb") as file:
            picture = convert(open_picture(file.read(), path), 1, path)
    except Exception as error:  # whatever a decoder makes of a damaged file
        raise UsageError(f"--mask {path} cannot be read: {first_line(error)}") from None
    size = (grid[1] // across, grid[0] // across)
    pixels = torch.tensor(list(picture.resize(size, Image.Resampling.BOX).tobytes()))
    is_masked = pixels < 128
    if is_masked.all() or not is_masked.any():
        what = "every patch" if is_masked.all() else "no patch"
        raise UsageError(f"--mask {path} hides {what}: draw what is hidden dark, the rest light")
    return is_masked
