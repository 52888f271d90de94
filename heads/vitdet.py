"""ViTDet's backbone [Li et al., 2022], https://arxiv.org/abs/2203.16527: a plain ViT with windows,
and the pyramid of maps that detection needs, made from its last one; or from the stages of a Swin.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import FeaturePyramidNetwork

NORM = partial(LayerNorm2d, eps=1e-6)

WINDOW = 14  # tokens
EVEN = 8  # what fast attention in half precision wants a head's channels to be a multiple of


# ---------------------------------------------------------------------------------------- backbone


class GridAttention(nn.Module):
    """A block's attention over a grid of tokens, all of it or within windows: [B, L, D] -> same.

    differs from ViTDet: windows that hang over the border are cut there, where ViTDet fills them
    with zeros that are attended to. Nothing but tokens of the image is attended to here.

    Args:
        attention: the block's own, whose weights are taken over.
        window: tokens that a window is wide; None: the whole grid is one.
        relative: add a bias for the offset of two tokens, as in MViTv2; it is zero at the start.
    """

    def __init__(
        self, attention: nn.Module, grid: tuple[int, int], window: int | None, relative: bool
    ):
        super().__init__()
        self.num_heads, self.grid = attention.num_heads, tuple(grid)
        self.head_dim = attention.qkv.out_features // 3 // attention.num_heads
        self.window = self.grid if window is None else (window, window)
        self.qkv, self.proj = attention.qkv, attention.proj
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.rel_pos_h = self.rel_pos_w = None
        if relative:
            sizes = [(2 * side - 1, self.head_dim) for side in self.window]
            self.rel_pos_h, self.rel_pos_w = (nn.Parameter(torch.zeros(size)) for size in sizes)

    def forward(self, x: Tensor, **_) -> Tensor:
        qkv = self.qkv(x).unflatten(1, self.grid)  # [B, h, w, 3·D]
        rows, columns = (
            _spans(side, size) for side, size in zip(self.grid, self.window, strict=True)
        )
        parts = [
            torch.cat([self._in_windows(qkv[:, top, left]) for left in columns], dim=2)
            for top in rows
        ]
        return self.proj(torch.cat(parts, dim=1).flatten(1, 2))

    def _in_windows(self, qkv: Tensor) -> Tensor:
        """[B, h, w, 3·D], of whole windows or narrower than one -> [B, h, w, D]."""
        batch, *sides, _ = qkv.shape
        height, width = (min(n, size) for n, size in zip(sides, self.window, strict=True))
        x = qkv.unflatten(1, (-1, height)).unflatten(3, (-1, width))
        x = x.transpose(2, 3).reshape(-1, height * width, 3, self.num_heads, self.head_dim)
        q, k, v = x.permute(2, 0, 3, 1, 4).unbind(0)  # each [B·windows, heads, h·w, d]
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rel_pos_h is None:
            x = _attend(q * self.head_dim**-0.5, k, v)
        else:
            x = self._with_offsets(q, k, v, height, width)
        x = x.transpose(1, 2).flatten(2)  # [B·windows, h·w, D]
        x = x.view(batch, -1, sides[1] // width, height, width, x.shape[2])
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def _with_offsets(self, q: Tensor, k: Tensor, v: Tensor, height: int, width: int) -> Tensor:
        """Attention with the bias q·Rh[row − row'] + q·Rw[column − column'] of each pair of tokens.

        As more channels of queries and keys: a query has its bias for each row and each column, a
        key a one where it lies. So no matrix of all pairs is kept, and fused attention serves.
        """
        by_place = q.unflatten(2, (height, width))
        rows, columns = _offsets(self.rel_pos_h, height), _offsets(self.rel_pos_w, width)
        bias = [
            torch.einsum("bnhwd,hkd->bnhwk", by_place, rows.to(q.dtype)).flatten(2, 3),
            torch.einsum("bnhwd,wkd->bnhwk", by_place, columns.to(q.dtype)).flatten(2, 3),
        ]
        place = torch.arange(height * width, device=q.device)
        ones = torch.cat([F.one_hot(place // width, height), F.one_hot(place % width, width)], 1)
        query = torch.cat([q * self.head_dim**-0.5, *bias], dim=-1)
        key = torch.cat([k, ones.to(k.dtype).expand(*k.shape[:2], -1, -1)], dim=-1)
        return _attend(query, key, v)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query·keyᵀ)·value [B·windows, heads, h·w, width of value], by fused attention.

    It wants all three of one width, in half precision a multiple of EVEN: zeros fill them up.
    """
    width = -(-query.shape[-1] // EVEN) * EVEN
    full = [_widened(x, width) for x in (query, key, value)]
    return F.scaled_dot_product_attention(*full, scale=1.0)[..., : value.shape[-1]]


def _widened(x: Tensor, width: int) -> Tensor:
    return F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x  # F.pad copies


def _spans(side: int, window: int) -> list[slice]:
    """Of the tokens of a side: those in whole windows, and the rest, either if there are any."""
    whole = side - side % window
    return [span for span in (slice(0, whole), slice(whole, side)) if span.start < span.stop]


def _offsets(table: Tensor, side: int) -> Tensor:
    """The rows of [2·window − 1, d] for each pair of `side` ≤ window places: [side, side, d]."""
    place = torch.arange(side, device=table.device)
    return table[place[:, None] - place + len(table) // 2]


class ViTMaps(nn.Module):
    """A ViT as ViTDet uses it: images [B, C, H, W] -> its last, unnormed tokens [B, D, h, w].

    Parameters keep the ViT's names. There is no class token.

    Args:
        global_blocks: indices of the blocks without windows.
    """

    def __init__(
        self, vit: VisionTransformer, window: int | None, global_blocks: Sequence[int],
        relative: bool,
    ):  # fmt: skip
        super().__init__()
        self.grid, self.embed_dim = tuple(vit.patch_embed.grid_size), vit.embed_dim
        self.num_prefix_tokens = 0
        self.architecture = getattr(vit, "architecture", None)  # encoders.load.describe asks
        self.patch_embed, self.norm_pre, self.blocks = vit.patch_embed, vit.norm_pre, vit.blocks
        self.pos_embed = nn.Parameter(vit.pos_embed.detach()[:, -vit.patch_embed.num_patches :])
        self.grad_checkpointing = vit.grad_checkpointing
        for number, block in enumerate(self.blocks):
            own_window = None if number in global_blocks else window
            block.attn = GridAttention(block.attn, self.grid, own_window, relative)

    def forward(self, imgs: Tensor) -> Tensor:
        x = self.norm_pre(self.patch_embed(imgs) + self.pos_embed)
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x.transpose(1, 2).unflatten(2, self.grid)


def global_blocks(depth: int) -> tuple[int, ...]:
    """The last block of each quarter: 2, 5, 8 and 11 of twelve."""
    return tuple(depth * quarter // 4 - 1 for quarter in range(1, 5))


class SimplePyramid(nn.Module):
    """ViTDet's: maps of several scales, all from one map [B, D, h, w].

    Args:
        scales: of the maps' sides, powers of two; each map is made by up- or downsampling by
            itself, a 1 x 1 and a 3 x 3 convolution to `width` channels.
    """

    def __init__(self, dim: int, width: int, scales: Sequence[float]):
        super().__init__()
        self.levels = nn.ModuleList(_level(dim, width, scale) for scale in scales)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [level(x) for level in self.levels]


def _level(dim: int, width: int, scale: float) -> nn.Sequential:
    resize: list[nn.Module] = []
    if scale < 1:
        resize.append(nn.MaxPool2d(round(1 / scale)))
    while scale > 1:
        resize += [NORM(dim), nn.GELU()] if resize else []
        resize.append(nn.ConvTranspose2d(dim, dim // 2, 2, stride=2))
        dim, scale = dim // 2, scale / 2
    return nn.Sequential(
        *resize,
        nn.Conv2d(dim, width, 1, bias=False), NORM(width),
        nn.Conv2d(width, width, 3, padding=1, bias=False), NORM(width),
    )  # fmt: skip


class ViTPyramid(nn.Module):
    """Images -> maps by name, the finest first, and at last the coarsest one's half."""

    def __init__(self, maps: ViTMaps, patch: int, width: int):
        super().__init__()
        # Our choice: no map is four times finer than very small patches are.
        scales = (4, 2, 1, 0.5) if patch >= 7 else (2, 1, 0.5, 0.25)
        self.encoder, self.out_channels = maps, width
        self.strides = [patch / scale for scale in scales]
        self.pyramid = SimplePyramid(maps.embed_dim, width, scales)

    def forward(self, imgs: Tensor) -> OrderedDict[str, Tensor]:
        return _named(self.pyramid(self.encoder(imgs)))


class SwinPyramid(nn.Module):
    """The same from a Swin's stages by a standard feature pyramid network; each stage is normed."""

    def __init__(self, swin: SwinTransformer, width: int):
        super().__init__()
        self.encoder, self.out_channels = swin, width
        swin.norm, swin.head = nn.Identity(), nn.Identity()
        dims = [stage.blocks[0].dim for stage in swin.layers]
        self.strides = [swin.patch_embed.patch_size[0] * 2**i for i in range(len(dims))]
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)
        self.fpn = FeaturePyramidNetwork(dims, width)

    def forward(self, imgs: Tensor) -> OrderedDict[str, Tensor]:
        x, maps = self.encoder.patch_embed(imgs), []
        for stage, norm in zip(self.encoder.layers, self.norms, strict=True):
            x = stage(x)  # [B, h, w, D]
            maps.append(norm(x).permute(0, 3, 1, 2))
        return _named(list(self.fpn(_by_number(maps)).values()))


def _by_number(maps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
    return OrderedDict((str(number), x) for number, x in enumerate(maps))


def _named(maps: list[Tensor]) -> OrderedDict[str, Tensor]:
    """Maps by their number, and `pool`, every other cell of the last, for the RPN alone."""
    return _by_number(maps) | {"pool": F.max_pool2d(maps[-1], 1, stride=2)}
