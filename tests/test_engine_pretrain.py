"""The engine: accumulation, exact or not, and what a step returns."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from engine_pretrain import accumulate, step_noise
from models_mae import mae_vit_tiny_patch2
from models_mimae import MaskedAutoencoderViT
from util.training.precision import Precision

CPU = torch.device("cpu")


def gradients(num_micro: int, exact: bool, compiled_by=None, **options) -> tuple[dict, dict]:
    """Losses and gradients (float64) of one step over the same 12 images."""
    torch.manual_seed(0)
    model = MaskedAutoencoderViT(
        8, 2, 1, embed_dim=16, depth=2, num_heads=2, decoder_embed_dim=16, decoder_depth=1,
        decoder_num_heads=2, **options,
    ).double()  # fmt: skip
    with torch.no_grad():  # away from the first step, where all latents are alike
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    if compiled_by:
        model.compile(backend=compiled_by)
    imgs = torch.randn(12, 1, 8, 8, dtype=torch.float64)
    noise = step_noise(model.masks.noise_shape(12), num_micro, 3, 5, CPU)
    losses, _ = accumulate(model, imgs.chunk(num_micro), noise, Precision("none", CPU), exact)
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return losses, grads


@pytest.mark.parametrize("club_negatives", ["image", "batch"])
@pytest.mark.parametrize("club_level", ["image", "token"])
@pytest.mark.parametrize("latent_pool", ["cls", "mean"])
def test_exact_accumulation_is_the_unaccumulated_step(club_negatives, club_level, latent_pool):
    options = dict(club_level=club_level, club_negatives=club_negatives, latent_pool=latent_pool)
    whole, expected = gradients(1, False, **options)
    losses, grads = gradients(3, True, **options)
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-9, atol=1e-11, msg=name)
    for name in ("loss", "rec", "max_mi", "min_mi", "apx"):
        torch.testing.assert_close(losses[name], whole[name], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(losses["info_nce_accuracy"], whole["info_nce_accuracy"])


def test_plain_accumulation_is_exact_for_reconstruction_only():
    mae = dict(num_masks=1, lambda_max=0.0, lambda_min=0.0)
    whole, expected = gradients(1, False, **mae)
    losses, grads = gradients(4, False, **mae)
    torch.testing.assert_close(losses["rec"], whole["rec"])
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name])
    assert (gradients(4, False)[0]["max_mi"] - gradients(1, False)[0]["max_mi"]).abs() > 0.1


def test_exact_accumulation_leaves_mae_alone_as_it_is():
    """It has no loss that sees several images."""
    torch.manual_seed(0)
    model = mae_vit_tiny_patch2(img_size=8, in_chans=1)
    imgs, found = torch.randn(4, 1, 8, 8), []
    noise = step_noise(model.masks.noise_shape(4), 2, 3, 5, CPU)
    for exact in (True, False):
        losses, _ = accumulate(model, imgs.chunk(2), noise, Precision("none", CPU), exact)
        found.append(losses["rec"])
    assert torch.equal(*found)


def test_within_an_image_min_mi_does_not_depend_on_accumulation():
    expected, _ = gradients(1, False)
    losses, _ = gradients(4, False)
    torch.testing.assert_close(losses["min_mi"], expected["min_mi"], rtol=1e-10, atol=1e-12)


def test_exact_accumulation_goes_through_the_projection_of_a_head():
    _, expected = gradients(1, False, lambda_min=0.0, mi_head="mlp")
    _, grads = gradients(2, True, lambda_min=0.0, mi_head="mlp")
    for name, grad in expected.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("off", ["lambda_max", "lambda_min"])
def test_exact_accumulation_with_one_mi_term(off):
    _, expected = gradients(1, False, **{off: 0.0})
    _, grads = gradients(2, True, **{off: 0.0})
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-9, atol=1e-11, msg=name)


def test_exact_accumulation_compiles_once_for_all_micro_batches():
    counter = CompileCounter()
    gradients(6, True, compiled_by=counter)
    assert counter.frame_count == 1
