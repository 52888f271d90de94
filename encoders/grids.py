"""Which grid of patches a checkpoint's position embedding is of, and what stands before it.

Shapes: L = h·w patches, P prefix tokens with a position (class token, registers), D the width.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor

from encoders.pos_embed import square_grid

Size = tuple[int, int]  # (height, width)


def told_sizes(config: dict, flags: dict) -> list[Size]:
    """The image sizes, in pixels, that a file's configuration or its training's flags name."""
    timm, model = config.get("pretrained_cfg"), config.get("model_args")
    said = [
        *([model.get("img_size")] if isinstance(model, dict) else []),
        config.get("input_size"), config.get("image_size"),
        flags.get("input_size"), flags.get("img_size"),
        *([timm.get("input_size")] if isinstance(timm, dict) else []),
    ]  # fmt: skip
    return [size for size in map(_size, said) if size is not None]


def _size(value: object) -> Size | None:
    """From one number, (height, width), or (channels, height, width)."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    if len(values) not in (1, 2, 3) or not all(isinstance(v, int) and v > 0 for v in values):
        return None
    return values[-2 if len(values) > 1 else -1], values[-1]


def find_grid(weights: dict[str, Tensor], sizes: Iterable[Size]) -> tuple[int, Size] | None:
    """P and the grid (h, w) of `pos_embed` [1, P + L, D]; None where they cannot be told.

    A size that the file names counts, where its patches are as many as there are positions; else
    the grid is square, as in every published model. A square number of positions has none for the
    class token, unless the first one is fixed at zero, as MAE's is.
    """
    pos_embed, kernel = weights.get("pos_embed"), weights.get("patch_embed.proj.weight")
    if pos_embed is None or pos_embed.ndim != 3 or kernel is None or kernel.ndim != 4:
        return None
    count, patch = pos_embed.shape[1], kernel.shape[2:]
    registers = weights.get("reg_token")
    prefixes = [1, 1 + (registers.shape[1] if registers is not None else 0)]
    if pos_embed[0, 0].any():
        prefixes.insert(0, 0)
    for height, width in sizes:
        grid = height // patch[0], width // patch[1]
        for num_prefix in prefixes:
            if min(grid) > 0 and num_prefix + grid[0] * grid[1] == count:
                return num_prefix, grid
    for num_prefix in prefixes:
        grid = _square(count - num_prefix)
        if grid is not None:
            return num_prefix, grid
    return None


def _square(num_patches: int) -> Size | None:
    try:
        return square_grid(num_patches) if num_patches > 0 else None
    except ValueError:
        return None


def in_words(grid: Sequence[int]) -> str:
    """A grid of patches as people write it: (4, 8) is `4 x 8`."""
    return " x ".join(map(str, grid))
