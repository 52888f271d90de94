"""How the models' weights are drawn."""

import pytest
import torch

import models_simmim
from models_mimae import MODELS


@pytest.mark.parametrize("name", [name for name in MODELS if "tiny" in name or "nano" in name])
def test_small_models_embed_unit_pixels_at_unit_variance(name):
    """The positions' variance is 1/2 (sines and cosines); MAE's draw would leave far less."""
    model = MODELS[name](img_size=28, in_chans=3)
    embedded = model.embed_patches(torch.randn(200, 3, 28, 28)) - model.pos_embed[:, 1:]
    assert embedded.std().item() == pytest.approx(1, abs=0.05)


def test_at_vit_base_both_draws_are_maes():
    """There a patch has as many pixels as the encoder is wide."""
    for unit_patches in (False, True):
        torch.manual_seed(0)
        model = MODELS["mimae_vit_base_patch16"](
            img_size=32, depth=1, decoder_depth=1, unit_patches=unit_patches
        )
        torch.manual_seed(0)
        other = MODELS["mimae_vit_base_patch16"](img_size=32, depth=1, decoder_depth=1)
        for one, two in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=0)


def test_the_mini_swin_norms_its_embedded_patches():
    """So the embedding's initial scale is nothing to it."""
    model = models_simmim.MODELS["misimmim_swin_mini_patch2"](img_size=32, in_chans=3)
    assert model.embed(torch.randn(8, 3, 32, 32)).std().item() == pytest.approx(1, abs=0.02)
