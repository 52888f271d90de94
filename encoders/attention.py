"""What a frozen encoder attends to, and its patch features as maps, for pictures.

Shapes: B images, C channels, h × w patches, D encoder width.
"""

import torch
from torch import Tensor, nn

from encoders.frozen import FrozenEncoder
from util.evaluation.first_row import FirstRow


@torch.no_grad()
def class_token_attention(frozen: FrozenEncoder, imgs: Tensor) -> Tensor | None:
    """How much the class token attends to each patch in the last block, by head: [B, heads, h, w].

    What it gives to itself and to registers is left out, so a head's map adds up to at most 1. None
    where there is no class token (Swin, pixels).

    Args:
        imgs: [B, C, H, W] as a loader gives them.
    """
    vit = frozen.encoder
    if vit is None or not hasattr(vit, "blocks") or not vit.num_prefix_tokens:
        return None
    with FirstRow() as watched:
        vit.forward_features(frozen.normalize(imgs))
    if watched.weights is None:
        return None
    return watched.weights[..., vit.num_prefix_tokens :].unflatten(2, patch_grid(vit))


@torch.no_grad()
def patch_map(frozen: FrozenEncoder, imgs: Tensor) -> Tensor:
    """The final, normed patch features where they belong: [B, h, w, D]."""
    tokens = frozen.patch_tokens(imgs)  # [B, h·w, D]
    return tokens.unflatten(1, patch_grid(frozen.encoder, tokens.shape[1]))


def patch_grid(encoder: nn.Module, num_patches: int | None = None) -> tuple[int, int]:
    """(h, w) of an encoder's final patches; a Swin has merged its first ones to `num_patches`."""
    height, width = encoder.patch_embed.grid_size
    count = num_patches or height * width
    merged = round((height * width / count) ** 0.5)
    return height // merged, width // merged
