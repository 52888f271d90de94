"""`--mask_jitter` against images that were changed by hand."""

import pytest
import torch

from models_mimae import MODELS
from util.errors import UsageError

OPTIONS = dict(img_size=16, patch_size=4, in_chans=3, mask_ratio=0.75)


def model(num_masks=2, mask_type="orthogonal", **more):
    torch.manual_seed(0)
    options = {k: v for k, v in OPTIONS.items() if k != "patch_size"}
    made = MODELS["mimae_vit_tiny_patch4"](
        num_masks=num_masks, mask_type=mask_type, lambda_min=0, **options, **more
    )
    return made.double()


def inputs(net, images=3):
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(net.masks.noise_shape(images), generator=generator)
    return torch.randn(images, 3, 16, 16, generator=generator, dtype=torch.float64), noise


@pytest.mark.parametrize("mask_type", ["orthogonal", "independent"])
def test_each_mask_sees_an_image_that_was_changed_by_its_draws(mask_type):
    net = model(mask_type=mask_type, mask_jitter=0.4)
    imgs, noise = inputs(net)
    ids = net.draw_masks(imgs, noise)
    z, x = net.forward_encoder(imgs, ids, net.jitter.change(noise))
    draws = 0.4 * net.jitter.draws(noise).double()  # [B, N, 2, C]
    for mask in range(2):
        gain, shift = draws[:, mask, :, :, None, None].unbind(1)  # [B, C, 1, 1]
        alone = net.forward_encoder((1 + gain) * imgs + shift, ids[:, mask : mask + 1])
        torch.testing.assert_close(z.unflatten(0, (3, 2))[:, mask], alone[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(x.unflatten(0, (3, 2))[:, mask], alone[1], rtol=1e-5, atol=1e-5)


def test_masks_and_targets_are_those_without_it():
    plain, changed = model(), model(mask_jitter=0.5)
    imgs, noise = inputs(plain)
    assert torch.equal(plain.draw_masks(imgs, noise), changed.draw_masks(imgs, noise))
    assert torch.equal(plain(imgs, noise)["mean_patch"], changed(imgs, noise)["mean_patch"])
    assert not torch.equal(plain(imgs, noise)["rec"], changed(imgs, noise)["rec"])
    assert torch.equal(plain(imgs, noise)["rec"], model(mask_jitter=0.0)(imgs, noise)["rec"])
    rows = changed(imgs, noise)["rows"]  # accumulation computes them alone
    assert all(map(torch.equal, rows, changed.mi_rows(imgs, noise)))


@pytest.mark.parametrize("mask_type", ["orthogonal", "independent"])
def test_draws_are_uniform_and_independent_of_the_order(mask_type):
    net = model(mask_type=mask_type, mask_jitter=1.0)
    noise = torch.rand(net.masks.noise_shape(20000))
    draws = net.jitter.draws(noise).flatten(1)  # [B, 12]
    assert draws.min() >= -1 and draws.max() < 1
    assert draws.mean(0).abs().max() < 0.03  # 7 standard errors
    assert (draws.var(0) - 1 / 3).abs().max() < 0.015
    ranks = net.masks.order(noise).flatten(1).double()
    both = torch.corrcoef(torch.cat([draws.double(), ranks], 1).T)
    assert both[:12, 12:].abs().max() < 0.04
    assert (both[:12, :12] - torch.eye(12)).abs().max() < 0.04


def test_gradients_are_those_of_finite_differences():
    net = model(mask_jitter=0.3)
    imgs, noise = inputs(net, 2)
    weight = net.patch_embed.proj.weight
    loss = net(imgs, noise)["loss"]
    (gradient,) = torch.autograd.grad(loss, weight)
    step = torch.zeros_like(weight)
    step[0, 1, 2, 3] = 1e-5
    with torch.no_grad():
        above, below = (
            torch.func.functional_call(
                net, {"patch_embed.proj.weight": weight + sign * step}, (imgs, noise)
            )["loss"]
            for sign in (1, -1)
        )
    assert gradient[0, 1, 2, 3].item() == pytest.approx((above - below).item() / 2e-5, rel=1e-4)


def test_too_few_patches_for_its_draws():
    with pytest.raises(UsageError, match=r"--mask_jitter .* 8 masks x 3 channels .* 16 patches"):
        model(num_masks=8, mask_jitter=0.1)


@pytest.mark.parametrize("name", ["mae_vit_tiny_patch2", "misimmim_swin_mini_patch2"])
def test_other_models_have_none(refuses, name):
    refuses("main_pretrain", "--model", name, "--mask_jitter", 0.2, names=("--mask_jitter", name))
