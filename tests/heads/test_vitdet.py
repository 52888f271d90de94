"""ViTDet's backbone: the plain ViT, timm's SAM backbone, windows that end at the border, scales."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM, get_decomposed_rel_pos_bias
from torch import nn

from encoders.load import build_encoder
from heads.vitdet import (
    EVEN,
    GridAttention,
    SimplePyramid,
    SwinPyramid,
    ViTMaps,
    ViTPyramid,
    global_blocks,
)


def build_vit(size=(48, 32), patch=4, depth=4, **options) -> VisionTransformer:
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=size, patch_size=patch, embed_dim=32, depth=depth, num_heads=2, num_classes=0,
        global_pool="", **options,
    )  # fmt: skip
    nn.init.normal_(vit.pos_embed)
    return vit.double().eval()


def attention(grid, window, relative=True, dim=12, heads=2) -> GridAttention:
    vit = VisionTransformer(embed_dim=dim, depth=1, num_heads=heads)
    torch.manual_seed(0)
    made = GridAttention(vit.blocks[0].attn, grid, window, relative)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made.double()


def test_without_windows_and_offsets_it_is_the_plain_vit():
    vit = build_vit(class_token=False, reg_tokens=0)
    imgs = torch.rand(2, 3, 48, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = vit.blocks(vit._pos_embed(vit.patch_embed(imgs)))  # without the final norm
        maps = ViTMaps(vit, None, (), relative=False)(imgs)
    torch.testing.assert_close(maps.flatten(2).transpose(1, 2), expected, rtol=1e-9, atol=1e-9)


def test_relative_positions_change_nothing_at_the_start():
    imgs = torch.rand(2, 3, 48, 32, dtype=torch.float64)
    with torch.no_grad():
        outputs = [
            ViTMaps(build_vit(), 3, (1,), relative).double()(imgs) for relative in (False, True)
        ]
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)


def test_it_is_timms_vitdet_backbone_where_windows_divide_the_map():
    torch.manual_seed(0)
    sam = VisionTransformerSAM(
        img_size=48, patch_size=4, embed_dim=32, depth=4, num_heads=2, neck_chans=0, num_classes=0,
        use_rel_pos=True, window_size=4, global_attn_indexes=(1, 3),
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    ).double().eval()  # fmt: skip
    for parameter in sam.parameters():
        nn.init.normal_(parameter, std=0.1)
    ours = ViTMaps(build_vit((48, 48), class_token=False), 4, (1, 3), relative=True).double()
    weights = {k: v for k, v in sam.state_dict().items() if not k.startswith(("neck", "head"))}
    weights["pos_embed"] = weights["pos_embed"].flatten(1, 2)
    ours.load_state_dict(weights)
    imgs = torch.rand(2, 3, 48, 48, dtype=torch.float64)
    with torch.no_grad():
        expected = sam.forward_intermediates(imgs, indices=[3], intermediates_only=True)[0]
        torch.testing.assert_close(ours(imgs), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("relative", [False, True])
def test_one_window_that_covers_the_map_is_global_attention(relative):
    whole, windowed = attention((5, 7), None, relative), attention((5, 7), 14, relative)
    state = whole.state_dict()
    if relative:  # the same offsets lie in the middle of a larger table
        for name, side in (("rel_pos_h", 5), ("rel_pos_w", 7)):
            table = torch.randn(27, 6, dtype=torch.float64)
            table[14 - side : 13 + side] = state[name]
            state[name] = table
    windowed.load_state_dict(state)
    x = torch.randn(3, 35, 12, dtype=torch.float64)
    torch.testing.assert_close(windowed(x), whole(x), rtol=1e-10, atol=1e-10)


def test_windows_attend_to_their_own_tokens_and_to_nothing_beyond_the_border():
    """Against a loop over cut-out windows with the bias of all pairs, whole and cut ones."""
    grid, window = (7, 5), 3
    made = attention(grid, window)
    x = torch.randn(2, 35, 12, dtype=torch.float64)
    expected = torch.zeros_like(x).unflatten(1, grid)
    qkv = made.qkv(x).unflatten(1, grid).unflatten(3, (3, 2, 6))
    for top in range(0, 7, window):
        for left in range(0, 5, window):
            part = qkv[:, top : top + window, left : left + window]
            h, w = part.shape[1:3]
            q, k, v = part.flatten(1, 2).permute(2, 0, 3, 1, 4).flatten(1, 2)  # [B·heads, h·w, d]
            tables = [
                table[len(table) // 2 - side + 1 : len(table) // 2 + side]
                for table, side in ((made.rel_pos_h, h), (made.rel_pos_w, w))
            ]
            # timm's bias of one row of queries and keys at a time wants tables of their own length.
            bias = get_decomposed_rel_pos_bias(q, *tables, (h, w), (h, w))
            weights = (q @ k.transpose(1, 2) / 6**0.5 + bias).softmax(-1)
            out = (weights @ v).unflatten(0, (2, 2)).permute(0, 2, 1, 3).flatten(2)
            expected[:, top : top + window, left : left + window] = out.unflatten(1, (h, w))
    expected = made.proj(expected.flatten(1, 2))
    torch.testing.assert_close(made(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("relative", "dim"), [(True, 12), (False, 12), (True, 32), (False, 32)])
def test_heads_are_widened_to_what_fast_attention_takes_and_give_the_same(
    monkeypatch, relative, dim
):
    """14 x 14 and cut windows of 64 channels would be 92 and 86 wide."""
    made, widths = attention((7, 5), 3, relative, dim), []
    x = torch.randn(2, 35, dim, dtype=torch.float64)
    fused = F.scaled_dot_product_attention

    def by_hand(q, k, v, scale):
        widths.append([t.shape[-1] for t in (q, k, v)])
        torch.testing.assert_close(fused(q, k, v, scale=scale), (q @ k.mT * scale).softmax(-1) @ v)
        used = (q.abs() + k.abs()).amax((0, 1, 2)).nonzero().max() + 1  # without the zeros
        return (q[..., :used] @ k[..., :used].mT * scale).softmax(-1) @ v

    expected = made(x)
    monkeypatch.setattr(F, "scaled_dot_product_attention", by_hand)
    torch.testing.assert_close(made(x), expected, rtol=1e-10, atol=1e-10)
    assert len(widths) == 4  # whole windows, and those cut on the right, below, and both
    for query, key, value in widths:
        assert query == key == value and query % EVEN == 0 and query - dim // 2 < 6 + 8


def test_checkpointed_blocks_give_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        vit = build_vit()
        vit.set_grad_checkpointing(checkpointing)
        maps = ViTMaps(vit, 3, (1,), relative=True).double().train()
        maps(torch.ones(1, 3, 48, 32, dtype=torch.float64)).square().mean().backward()
        gradients.append([p.grad for p in maps.parameters()])
        assert all(g is not None for g in gradients[-1])
    torch.testing.assert_close(*gradients)


def test_global_blocks_end_the_quarters():
    assert global_blocks(12) == (2, 5, 8, 11) and global_blocks(24) == (5, 11, 17, 23)


@pytest.mark.parametrize(
    ("patch", "strides"),
    [(16, [4, 8, 16, 32]), (14, [3.5, 7, 14, 28]), (4, [2, 4, 8, 16])],
    ids=["16", "14", "4"],
)
def test_the_pyramids_maps_have_the_strides_they_say(patch, strides):
    height, width = 12 * patch, 8 * patch
    maps = ViTMaps(build_vit((height, width), patch, 1), 14, (0,), relative=True)
    pyramid = ViTPyramid(maps, patch, 8).double()
    assert pyramid.strides == strides
    outputs = pyramid(torch.rand(1, 3, height, width, dtype=torch.float64))
    assert list(outputs) == ["0", "1", "2", "3", "pool"]
    for stride, x in zip([*strides, 2 * strides[-1]], outputs.values(), strict=True):
        assert x.shape == (1, 8, math.ceil(height / stride), math.ceil(width / stride))


def test_a_cell_of_every_level_sees_its_own_place():
    pyramid = SimplePyramid(8, 4, (4, 2, 1, 0.5)).double()
    x = torch.zeros(1, 8, 8, 8, dtype=torch.float64)
    before = pyramid(x)
    x[:, :, 4, 6] = 1
    for scale, old, new in zip((4, 2, 1, 0.5), before, pyramid(x), strict=True):
        rows, columns = ((new - old)[0].abs().sum(0) > 1e-9).nonzero().unbind(1)
        reach = max(scale, 1)  # the 3 x 3 convolution adds a cell on each side
        assert rows.min() == 4 * scale - 1 and rows.max() == 4 * scale + reach
        assert columns.min() == 6 * scale - 1
        assert columns.max() == min(6 * scale + reach, 8 * scale - 1)


def test_a_swin_gives_its_stages():
    swin = build_encoder("swin_mini_patch2", 0, (32, 64), 3).eval()
    pyramid = SwinPyramid(swin, 8)
    assert pyramid.strides == [2, 4]
    outputs = pyramid(torch.rand(1, 3, 32, 64))
    assert [tuple(x.shape[1:]) for x in outputs.values()] == [(8, 16, 32), (8, 8, 16), (8, 4, 8)]
