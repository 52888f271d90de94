"""The class token's attention against what the blocks compute, and patch features in place."""

import pytest
import torch

from encoders.attention import class_token_attention, patch_grid, patch_map
from encoders.frozen import FrozenEncoder
from encoders.load import build_encoder
from util.data.transforms import Normalize

SIZE = (16, 24)


def frozen(name="vit_tiny_patch4", **known) -> FrozenEncoder:
    torch.manual_seed(0)
    encoder = build_encoder(name, 0, SIZE, 3, False, architecture=known or None)
    return FrozenEncoder(encoder, Normalize([0.5] * 3, [0.5] * 3))


def architecture(**changes) -> dict:
    return dict(
        family="vit", patch_size=4, embed_dim=32, depth=2, num_heads=4, mlp_ratio=4.0, eps=1e-6,
        qkv_bias=True, init_values=None, reg_tokens=0, no_embed_class=False,
    ) | changes  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"reg_tokens": 2}, {"rel_pos_bias": True}])
def test_it_is_the_last_blocks_softmax(changes):
    model, imgs = frozen("vit", **architecture(**changes)), torch.rand(2, 3, *SIZE)
    vit = model.encoder
    if changes.get("rel_pos_bias"):
        for block in vit.blocks:
            torch.nn.init.normal_(block.attn.relative_position_bias_table)
    seen = []
    vit.blocks[-1].attn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    found = class_token_attention(model, imgs)
    attn, x = vit.blocks[-1].attn, seen[0]
    q, k, _ = attn.qkv(x).unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    logits = q @ k.mT / 8**0.5
    if changes.get("rel_pos_bias"):
        logits = logits + attn.relative_position_bias_table[attn.index.long()].permute(2, 0, 1)
    first = vit.num_prefix_tokens
    expected = logits.softmax(-1)[:, :, 0, first:].unflatten(2, (4, 6))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert found.shape == (2, 4, 4, 6) and (found.sum((2, 3)) <= 1 + 1e-5).all()


def test_a_patchs_features_lie_where_the_patch_does():
    model = frozen()
    imgs = torch.zeros(1, 3, *SIZE)
    imgs[:, :, 8:12, 16:20] = 1.0
    changed = (patch_map(model, imgs) - patch_map(model, torch.zeros_like(imgs))).norm(dim=-1)[0]
    assert changed.shape == (4, 6) and divmod(int(changed.argmax()), 6) == (2, 4)


def test_a_swin_has_merged_patches_and_no_class_token():
    torch.manual_seed(0)
    encoder = build_encoder("swin_mini_patch2", 0, 32, 3)
    model = FrozenEncoder(encoder, Normalize([0.5] * 3, [0.5] * 3))
    imgs = torch.rand(1, 3, 32, 32)
    height, width = patch_map(model, imgs).shape[1:3]
    assert height == width == 8 and patch_grid(encoder) == (16, 16)
    assert class_token_attention(model, imgs) is None
