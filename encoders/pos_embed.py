"""Fixed sine-cosine position embeddings, and their interpolation to another grid."""

import math

import torch
import torch.nn.functional as F


def sincos_pos_embed(dim: int, grid: tuple[int, int]) -> torch.Tensor:
    """2-D sine-cosine position embedding with a zero row for the class token.

    The first half of the channels encodes the column, the second half the row, each as sines
    followed by cosines of frequencies 10000^(-i / (dim/4)), as in MAE.

    Args:
        dim: embedding width, divisible by 4.
        grid: patches in (height, width).

    Returns:
        [1, 1 + height·width, dim], float32.

    Raises:
        ValueError: if `dim` is not divisible by 4.
    """
    if dim % 4:
        raise ValueError(f"the embedding width {dim} is not divisible by 4")
    height, width = grid
    frequency = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))

    def encode(position: torch.Tensor) -> torch.Tensor:
        angle = position.reshape(-1, 1) * frequency  # [L, dim/4]
        return torch.cat([angle.sin(), angle.cos()], dim=1)  # [L, dim/2]

    row, column = torch.meshgrid(
        torch.arange(height, dtype=torch.float64),
        torch.arange(width, dtype=torch.float64),
        indexing="ij",
    )
    patches = torch.cat([encode(column), encode(row)], dim=1)  # [L, dim]
    return torch.cat([torch.zeros(1, dim), patches.float()]).unsqueeze(0)


def square_grid(num_patches: int) -> tuple[int, int]:
    """The square grid of `num_patches` patches; raises ValueError where there is none."""
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise ValueError(f"{num_patches} patches do not form a square grid")
    return side, side


def interpolate_pos_embed(
    pos_embed: torch.Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> torch.Tensor:
    """Resize a position embedding bicubically; prefix (class) tokens stay as they are.

    Args:
        pos_embed: [1, P + old_h·old_w, D] with P prefix tokens.
        old_grid, new_grid: patches in (height, width).

    Returns:
        [1, P + new_h·new_w, D].
    """
    if tuple(old_grid) == tuple(new_grid):
        return pos_embed
    num_prefix = pos_embed.shape[1] - old_grid[0] * old_grid[1]
    prefix, patches = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    patches = patches.transpose(1, 2).unflatten(2, old_grid)  # [1, D, old_h, old_w]
    patches = F.interpolate(patches.float(), size=new_grid, mode="bicubic", align_corners=False)
    patches = patches.flatten(2).transpose(1, 2).to(prefix.dtype)  # [1, new_h·new_w, D]
    return torch.cat([prefix, patches], dim=1)
