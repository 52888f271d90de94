"""BEiT's encoder for downstream use, as timm builds it; weights of SimMIM's ViT fit in, too.

Tables of position biases have, after those of the (2·h − 1)·(2·w − 1) offsets between patches,
three rows: class token to patch, patch to class token, class token to itself.
"""

import logging
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from encoders.pos_embed import square_grid
from encoders.swin import resize_position_bias
from util.checks import image_size
from util.errors import UsageError

log = logging.getLogger(__name__)

NUM_CLASS_ROWS = 3
TABLE = "attn.relative_position_bias_table"


def build_beit(
    architecture: dict,
    num_classes: int,
    img_size: int | Sequence[int],
    in_chans: int = 3,
    global_pool: bool = True,
    drop_path: float = 0.0,
    grad_checkpointing: bool = False,
) -> nn.Module:
    """A classifier, images [B, C, H, W] -> logits [B, num_classes], as `encoders.vit.build_vit`.

    Args:
        architecture: the arguments of timm's `Beit`, and `eps` of the layer norms.
    """
    from timm.models.beit import Beit

    options = {k: v for k, v in architecture.items() if k not in ("family", "eps")}
    model = Beit(
        img_size=image_size(img_size, options["patch_size"]), in_chans=in_chans,
        num_classes=num_classes, global_pool="avg" if global_pool else "token",
        drop_path_rate=drop_path, norm_layer=partial(nn.LayerNorm, eps=architecture["eps"]),
        **options,
    )  # fmt: skip
    model.set_grad_checkpointing(grad_checkpointing)
    model.family = "beit"
    return model


def fit_weights(weights: dict[str, Tensor], config: dict, model: nn.Module) -> dict[str, Tensor]:
    """Weights with position biases stretched to the model's grid, as BEiT and SimMIM resize them.

    Args:
        config: of the checkpoint; its `grid` tells the old one where it is not square.

    Raises:
        UsageError: tables whose grid is not known.
    """
    new = model.patch_embed.grid_size
    resized = {}
    for key, table in weights.items():
        if not key.endswith(TABLE):
            continue
        old = _grid_of(len(table) - NUM_CLASS_ROWS, config)
        if tuple(old) != tuple(new) and key.startswith("blocks.0."):
            log.info("position biases: %d x %d -> %d x %d patches", *old, *new)
        offsets = resize_position_bias(table[:-NUM_CLASS_ROWS], old, new)
        resized[key] = torch.cat([offsets, table[-NUM_CLASS_ROWS:]])
    return weights | resized


def _grid_of(num_offsets: int, config: dict) -> tuple[int, int]:
    """The grid whose patches have `num_offsets` offsets between them."""
    try:
        side = (square_grid(num_offsets)[0] + 1) // 2
        grid = tuple(config.get("grid") or (side, side))
    except ValueError:
        grid = tuple(config.get("grid") or (0, 0))
    if (2 * grid[0] - 1) * (2 * grid[1] - 1) != num_offsets:
        raise UsageError(
            f"--finetune: {num_offsets} position biases belong to no grid of patches that is known"
        )
    return grid
