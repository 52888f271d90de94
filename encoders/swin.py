"""Swin for pre-training and downstream use, as timm builds it; checkpoints of SimMIM fit in.

A cell is an element of the final feature map: 32 pixels wide but for the mini model (4 pixels).
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from util.checks import image_size
from util.errors import UsageError

log = logging.getLogger(__name__)

SIZES = {
    # Our choice: for images of 16 to 64 pixels, on a CPU too.
    "swin_mini_patch2": dict(patch_size=2, embed_dim=64, depths=(2, 2), num_heads=(2, 4)),
    "swin_tiny": dict(patch_size=4, embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    "swin_small": dict(patch_size=4, embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    "swin_base": dict(patch_size=4, embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
}

MAX_WINDOW = 12


def cell_size(name: str) -> int:
    """Pixels that a cell of the final feature map is wide."""
    return SIZES[name]["patch_size"] * 2 ** (len(SIZES[name]["depths"]) - 1)


def window_size(grid: Sequence[int]) -> tuple[int, int]:
    """The attention windows of a Swin, in tokens, by its final map's grid in (height, width).

    As wide as the final map (6 at 192 px, 7 at 224, as in SimMIM), so that windows divide every
    stage's map; at most 12, above which timm pads the maps.
    """
    return min(grid[0], MAX_WINDOW), min(grid[1], MAX_WINDOW)


def build_swin(
    name: str,
    num_classes: int,
    img_size: int | Sequence[int],
    in_chans: int = 3,
    drop_path: float = 0.0,
    grad_checkpointing: bool = False,
    architecture: dict | None = None,
    any_size: bool = False,
) -> nn.Module:
    """A Swin classifier of the pooled final map, images [B, C, H, W] -> logits [B, num_classes].

    Args:
        drop_path: the last block's rate of dropped residuals, rising linearly over the blocks.
        architecture: of a model that `SIZES` does not have, as `encoders.layouts` describes it.
        any_size: take images of other sizes, too, with the windows of this one.

    Raises:
        UsageError: sizes that are no multiples of the cell.
    """
    from timm.models.swin_transformer import SwinTransformer

    size = {k: v for k, v in (architecture or SIZES[name]).items() if k != "family"}
    cell = size["patch_size"] * 2 ** (len(size["depths"]) - 1)
    height, width = image_size(img_size, cell, "what a cell of the final feature map covers")
    model = SwinTransformer(
        img_size=(height, width), in_chans=in_chans, num_classes=num_classes,
        window_size=window_size((height // cell, width // cell)), drop_path_rate=drop_path,
        strict_img_size=not any_size, **size,
    )  # fmt: skip
    model.set_grad_checkpointing(grad_checkpointing)
    model.family = "swin"
    return model


def is_swin(encoder: nn.Module) -> bool:
    """Whether `build_swin` made the encoder: it has no class token, and stages hold its blocks."""
    return getattr(encoder, "family", "") == "swin"


def layer_of(name: str, depths: Sequence[int]) -> int:
    """The layer of a parameter for layer decay: 0 patch embedding, i + 1 block i (counted over the
    stages), last the rest. A stage's downsampling goes with the last block before it, as in SimMIM.
    """
    if name.startswith("patch_embed.") or name == "mask_token":
        return 0
    if not name.startswith("layers."):
        return sum(depths) + 1
    stage, kind, block = name.split(".")[1:4]
    before = sum(depths[: int(stage)])
    return before if kind == "downsample" else before + int(block) + 1


def block_shapes(patch_embed, layers) -> list[tuple[int, int, int]]:
    """(tokens per image, width, depth) of each stage, to estimate memory."""
    tokens = patch_embed.num_patches
    return [
        (tokens // 4**i, stage.blocks[0].dim, len(stage.blocks)) for i, stage in enumerate(layers)
    ]


# ------------------------------------------------------------------------------ other checkpoints


def convert_simmim(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights of SimMIM's Swin, pre-trained or fine-tuned, to this project's names.

    SimMIM downsamples at the end of a stage, timm at the start of the next; its head predicts
    pixels in the order (channel, row, column), as PixelShuffle reads them, this project's in the
    order (row, column, channel). Weights that are not SimMIM's Swin come back as they are.
    """
    prefix = "encoder." if "encoder.patch_embed.proj.weight" in weights else ""
    if f"{prefix}layers.0.downsample.reduction.weight" not in weights:
        return weights
    in_chans = weights[f"{prefix}patch_embed.proj.weight"].shape[1]
    converted = {}
    for key, value in weights.items():
        key = key.removeprefix("encoder.")
        parts = key.split(".")
        if parts[-1] in ("relative_position_index", "attn_mask"):
            continue  # follow from the window
        if parts[0] == "layers" and parts[2] == "downsample":
            key = ".".join(["layers", str(int(parts[1]) + 1), *parts[2:]])
        elif parts[0] == "head":
            key = f"head.fc.{parts[1]}"
        elif parts[:2] == ["decoder", "0"]:
            key = f"decoder_pred.{parts[2]}"
            value = value.flatten(1) if value.ndim > 1 else value  # [C·c·c, D, 1, 1] -> [C·c·c, D]
            value = value.unflatten(0, (in_chans, -1)).transpose(0, 1).flatten(0, 1)
        converted[key] = value
    return converted


def resize_position_bias(
    table: Tensor, old_window: tuple[int, int], new_window: tuple[int, int]
) -> Tensor:
    """A relative position bias table for another window, as SimMIM resizes it.

    The old offsets 0, ±1, ±2, … are placed at 0, ±1, ±(1 + q), ±(1 + q + q²), … so that the
    farthest of both windows meet: near offsets keep their values, and far ones are stretched. A
    cubic spline through them is read at the new offsets.

    Args:
        table: [(2·h − 1)·(2·w − 1), heads] for a window of (h, w) tokens.

    Returns:
        [(2·h' − 1)·(2·w' − 1), heads].
    """
    if tuple(old_window) == tuple(new_window):
        return table
    from scipy.interpolate import RectBivariateSpline

    places = [_stretched(old, new) for old, new in zip(old_window, new_window, strict=True)]
    reads = [np.arange(1 - new, new) for new in new_window]
    degrees = [min(3, len(place) - 1) for place in places]
    maps = table.detach().float().T.unflatten(1, [len(place) for place in places])  # [heads, ·, ·]
    resized = [
        RectBivariateSpline(*places, values, kx=degrees[0], ky=degrees[1])(*reads)
        for values in maps.cpu().numpy()
    ]
    return torch.from_numpy(np.stack(resized)).to(table).flatten(1).T.contiguous()


def _stretched(old: int, new: int) -> np.ndarray:
    """Places of the offsets 1 − old … old − 1, at steps of 1, q, q², …; q within 1.01 and 1.5."""
    from scipy.optimize import brentq

    powers = np.arange(old - 1)

    def excess(q: float) -> float:
        return (q**powers).sum() - (new - 1)

    low, high = 1.01, 1.5
    if old == new:
        q = 1.0
    elif excess(low) >= 0:
        q = low
    else:
        q = brentq(excess, low, high) if excess(high) > 0 else high
    places = (q**powers).cumsum()
    return np.concatenate([-places[::-1], [0.0], places])


def fit_weights(
    weights: dict[str, Tensor], config: dict, model: nn.Module, named: str = "--finetune"
) -> dict:
    """Weights of a pre-trained Swin with names and position biases as `model` has them.

    Args:
        config: of the checkpoint; its `input_size` tells the old window. named: it, for errors.

    Raises:
        UsageError: tables of position biases whose window is not known.
    """
    weights, changed = convert_simmim(weights), []
    cell = model.patch_embed.patch_size[0] * 2 ** (len(model.layers) - 1)
    for name, module in model.named_modules():
        key = f"{name}.relative_position_bias_table"
        if key not in weights or not hasattr(module, "relative_position_bias_table"):
            continue
        old = _window_of(weights[key], config, cell, named)
        if old != module.window_size:
            (a, b), (c, d) = old, module.window_size
            changed.append(f"window {a} x {b} -> {c} x {d}")
        weights = weights | {key: resize_position_bias(weights[key], old, module.window_size)}
    for change in dict.fromkeys(changed):
        log.info("position biases: %s", change)
    return weights


def size_of_tables(weights: dict[str, Tensor]) -> int | None:
    """The side of the images, in pixels, whose final map the last stage's window covers; None:
    there is no table of position biases."""
    tables = [v for k, v in weights.items() if k.endswith(".relative_position_bias_table")]
    if not tables or "layers.0.blocks.0.norm1.weight" not in weights:
        return None
    stages = {key.split(".")[1] for key in weights if key.startswith("layers.")}
    window = (round(len(tables[-1]) ** 0.5) + 1) // 2
    return window * weights["patch_embed.proj.weight"].shape[-1] * 2 ** (len(stages) - 1)


def _window_of(table: Tensor, config: dict, cell: int, named: str) -> tuple[int, int]:
    if config.get("input_size"):
        window = window_size([side // cell for side in config["input_size"]])
    else:
        side = round(len(table) ** 0.5)
        window = ((side + 1) // 2, (side + 1) // 2)
    if (2 * window[0] - 1) * (2 * window[1] - 1) != len(table):
        raise UsageError(
            f"{named}: {len(table)} position biases do not belong to a window of "
            f"{window[0]} x {window[1]}: name a checkpoint of this project or of SimMIM"
        )
    return window
