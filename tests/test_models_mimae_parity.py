"""With one mask and no MI loss the model is MAE: against a plain MAE written here, step by step."""

import pytest
import torch
import torch.nn.functional as F


def mae_loss(weights, imgs, noise, num_visible, patch, heads, norm_pix_loss):
    """MAE's loss from its paper: shuffle, encode what is visible, unshuffle, decode, compare.

    Args:
        weights: parameters by MAE's names. heads: of the encoder and of the decoder.
    """

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attention(x, name, num_heads):
        rows, tokens, dim = x.shape
        q, k, v = linear(x, f"{name}.qkv").chunk(3, dim=-1)
        q, k, v = (t.view(rows, tokens, num_heads, -1).transpose(1, 2) for t in (q, k, v))
        scores = (q @ k.transpose(2, 3) / (dim // num_heads) ** 0.5).softmax(-1)
        return linear((scores @ v).transpose(1, 2).reshape(rows, tokens, dim), f"{name}.proj")

    def transformer(x, name, num_heads):
        count = len({key.split(".")[1] for key in weights if key.startswith(f"{name}.")})
        for i in range(count):
            x = x + attention(norm(x, f"{name}.{i}.norm1"), f"{name}.{i}.attn", num_heads)
            hidden = F.gelu(linear(norm(x, f"{name}.{i}.norm2"), f"{name}.{i}.mlp.fc1"))
            x = x + linear(hidden, f"{name}.{i}.mlp.fc2")
        return x

    batch, _, height, width = imgs.shape
    pieces = [
        imgs[:, :, top : top + patch, left : left + patch]
        for top in range(0, height, patch)
        for left in range(0, width, patch)
    ]
    num_patches = len(pieces)
    stacked = torch.stack([piece.flatten(1) for piece in pieces], 1)  # (channel, row, column)
    embedding = weights["patch_embed.proj.weight"].flatten(1)
    x = stacked @ embedding.T + weights["patch_embed.proj.bias"] + weights["pos_embed"][:, 1:]

    order = noise.argsort(1)
    restore = order.argsort(1)
    every = torch.arange(batch)[:, None]
    x = x[every, order[:, :num_visible]]
    cls_token = (weights["cls_token"] + weights["pos_embed"][:, :1]).expand(batch, -1, -1)
    x = norm(transformer(torch.cat([cls_token, x], 1), "blocks", heads[0]), "norm")

    x = linear(x, "decoder_embed")
    hidden = weights["mask_token"].expand(batch, num_patches - num_visible, -1)
    tokens = torch.cat([x[:, 1:], hidden], 1)[every, restore]
    x = torch.cat([x[:, :1], tokens], 1) + weights["decoder_pos_embed"]
    x = transformer(x, "decoder_blocks", heads[1])
    prediction = linear(norm(x, "decoder_norm"), "decoder_pred")[:, 1:]

    target = torch.stack([piece.permute(0, 2, 3, 1).flatten(1) for piece in pieces], 1)
    if norm_pix_loss:
        mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        target = (target - mean) / (var + 1e-6) ** 0.5
    is_masked = torch.ones(batch, num_patches, dtype=imgs.dtype)
    is_masked[:, :num_visible] = 0
    is_masked = is_masked[every, restore]
    per_patch = ((prediction - target) ** 2).mean(-1)
    return (per_patch * is_masked).sum() / is_masked.sum()


def weights_of(model):
    named = {name: p.detach().clone() for name, p in model.named_parameters()}
    return {name: p.requires_grad_() for name, p in named.items()}


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (6, 12)])
@pytest.mark.parametrize("in_chans", [1, 5])
def test_loss_and_gradients_are_maes(tiny, in_chans, size, norm_pix_loss):
    model = tiny(
        img_size=size, in_chans=in_chans, norm_pix_loss=norm_pix_loss,
        num_masks=1, lambda_max=0.0, lambda_min=0.0,
    )  # fmt: skip
    imgs, noise = torch.randn(3, in_chans, *size).double(), torch.rand(3, model.masks.num_patches)
    weights = weights_of(model)
    expected = mae_loss(weights, imgs, noise, model.masks.num_visible, 2, (2, 2), norm_pix_loss)
    loss = model(imgs, noise)["loss"]
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    loss.backward()
    expected.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(
                parameter.grad, weights[name].grad, rtol=1e-7, atol=1e-10, msg=name
            )


def test_the_tiny_model_in_float32_is_mae_to_a_relative_1e_5():
    from models_mimae import mimae_vit_tiny_patch4

    model = mimae_vit_tiny_patch4(
        img_size=(28, 20), in_chans=3, num_masks=1, lambda_max=0.0, lambda_min=0.0
    )
    imgs, noise = torch.randn(4, 3, 28, 20), torch.rand(4, 35)
    expected = mae_loss(weights_of(model), imgs, noise, 8, 4, (4, 4), False)
    torch.testing.assert_close(model(imgs, noise)["loss"], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("size", "num_masks"), [(8, 4), ((6, 10), 4), (8, 6)])
def test_the_reconstruction_of_n_masks_is_the_mean_of_n_maes(tiny, size, num_masks):
    """Also where the 15 patches of 6 x 10 are no multiple of N, and where masks overlap."""
    model = tiny(img_size=size, num_masks=num_masks, norm_pix_loss=True)
    imgs = torch.randn(3, 1, *model.patch_embed.img_size).double()
    noise = torch.rand(3, model.masks.num_patches)
    losses = []
    for mask in range(num_masks):
        # Rank of each patch in the permutation that starts with this mask's visible ones.
        num_patches = model.masks.num_patches
        start = min(mask * model.masks.num_visible, mask * num_patches // num_masks)
        rank = (noise.argsort(1).argsort(1) - start) % num_patches
        losses.append(
            mae_loss(weights_of(model), imgs, rank, model.masks.num_visible, 2, (2, 2), True)
        )
    rec = model(imgs, noise)["rec"]
    torch.testing.assert_close(rec, torch.stack(losses).mean(), rtol=1e-10, atol=0)
