"""Relative position biases, as BEiT has them: in each block's attention a table of its own.

A bias is added to the attention's logits for the offset of a query's patch from a key's. A grid of
h x w patches has (2·h − 1)·(2·w − 1) offsets; three rows follow them in a table: class token to
patch, patch to class token, class token to itself. Registers, where there are any, share the class
token's rows. MAE's ViT gets such tables, zero at first, for segmentation.
"""

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.pos_embed import square_grid
from encoders.swin import resize_position_bias
from util.errors import UsageError

log = logging.getLogger(__name__)

NUM_CLASS_ROWS = 3
TABLE = "attn.relative_position_bias_table"


class BiasedAttention(nn.Module):
    """A ViT block's attention with a position bias, zero at the start: [B, N, D] -> same.

    Parameters keep the attention's names; `relative_position_bias_table` is [rows, heads].

    Args:
        attention: timm's, whose weights are taken over.
        index: of each query and key a table's row, [N, N], as `position_index` gives it.
        num_rows: of the table.
    """

    def __init__(self, attention: nn.Module, index: Tensor, num_rows: int):
        super().__init__()
        self.num_heads = attention.num_heads
        self.qkv, self.proj = attention.qkv, attention.proj
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_rows, self.num_heads))
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: Tensor, **_) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1))  # [B, N, 3, heads, d]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, N, d]
        # By `embedding`, whose gradient adds up in the same order each time.
        bias = F.embedding(self.index, self.relative_position_bias_table)  # [N, N, heads]
        bias = bias.permute(2, 0, 1)[None].to(v.dtype)
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, attn_mask=bias)
        return self.proj(x.transpose(1, 2).flatten(2))


def position_index(grid: Sequence[int], num_prefix: int) -> Tensor:
    """The table's row of each pair (query, key) of tokens, prefix tokens first: int32 [N, N]."""
    height, width = grid
    place = torch.arange(height * width)
    row, column = place // width, place % width
    down = row[:, None] - row + height - 1  # from 0 to 2·h − 2
    right = column[:, None] - column + width - 1
    to_patch = (2 * height - 1) * (2 * width - 1)
    to_class, to_itself = to_patch + 1, to_patch + 2
    index = F.pad(down * (2 * width - 1) + right, (num_prefix, 0, num_prefix, 0), value=to_itself)
    index[:num_prefix, num_prefix:] = to_patch
    index[num_prefix:, :num_prefix] = to_class
    return index.int()


def add_position_biases(vit: nn.Module) -> None:
    """Give each block of a timm ViT a table of its own, of zeros: it computes what it did."""
    height, width = vit.patch_embed.grid_size
    index = position_index((height, width), vit.num_prefix_tokens)
    num_rows = (2 * height - 1) * (2 * width - 1) + NUM_CLASS_ROWS
    for block in vit.blocks:
        block.attn = BiasedAttention(block.attn, index, num_rows)


def has_position_biases(model: nn.Module) -> bool:
    """Whether a model is a ViT that `add_position_biases` has changed."""
    blocks = getattr(model, "blocks", None)
    return bool(blocks) and isinstance(getattr(blocks[0], "attn", None), BiasedAttention)


def fit_weights(
    weights: dict[str, Tensor], config: dict, new: Sequence[int], named: str = "--finetune"
) -> dict[str, Tensor]:
    """Weights with position biases stretched to a grid, as BEiT and SimMIM resize them.

    Args:
        config: of the checkpoint; its `grid` tells the old one where it is not square.
        new: the model's grid. named: the checkpoint, for errors.

    Raises:
        UsageError: tables whose grid is not known.
    """
    resized = {}
    for key, table in weights.items():
        if not key.endswith(TABLE):
            continue
        old = _grid_of(len(table) - NUM_CLASS_ROWS, config, named)
        if tuple(old) != tuple(new) and key.startswith("blocks.0."):
            log.info("position biases: %d x %d -> %d x %d patches", *old, *new)
        offsets = resize_position_bias(table[:-NUM_CLASS_ROWS], old, tuple(new))
        resized[key] = torch.cat([offsets, table[-NUM_CLASS_ROWS:]])
    return weights | resized


def _grid_of(num_offsets: int, config: dict, named: str) -> tuple[int, int]:
    """The grid whose patches have `num_offsets` offsets between them."""
    try:
        side = (square_grid(num_offsets)[0] + 1) // 2
        grid = tuple(config.get("grid") or (side, side))
    except ValueError:
        grid = tuple(config.get("grid") or (0, 0))
    if (2 * grid[0] - 1) * (2 * grid[1] - 1) != num_offsets:
        raise UsageError(
            f"{named}: {num_offsets} position biases belong to no grid of patches that is known"
        )
    return grid
