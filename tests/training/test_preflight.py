"""The memory estimate, against the bytes that autograd keeps."""

import pytest
import torch

import models_mimae
from util.training.precision import Precision
from util.training.preflight import estimate_memory, unseen_patches


def kept_for_backward(model, imgs, half):
    """Bytes of all storages that a forward pass saves, parameters apart."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage
        return x

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
        Precision("bf16" if half else "none", torch.device("cpu")).autocast(),
    ):
        loss = model(imgs)["loss"]
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("images", [2, 6])
def test_activations_are_what_autograd_keeps(half, images):
    model = models_mimae.mimae_vit_small_patch16(mi_start_loss=float("inf"))
    kept = kept_for_backward(model, torch.randn(images, 3, 224, 224), half)
    state, activations = estimate_memory(model, model.block_shapes(), 4 * images, half, False)
    count = sum(p.numel() for p in model.parameters())
    if half:
        activations += 2 * count  # the copies of the weights are kept, too
    assert 0.85 < activations / kept < 1.1
    assert 15 * count < state < (18.1 if half else 16.1) * count


def test_checkpointed_blocks_keep_their_inputs():
    model = models_mimae.mimae_vit_small_patch16(grad_checkpointing=True)
    kept = kept_for_backward(model, torch.randn(4, 3, 224, 224), False)
    shapes = model.block_shapes()
    _, activations = estimate_memory(model, shapes, 16, False, True)
    one_block = max(16 * tokens * dim * 64 for tokens, dim, _ in shapes)
    assert 0.6 < (activations - one_block) / kept < 1.0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "1 of 49 patches are in no mask (4 masks x 12 visible)"),
        ({"num_masks": 0, "mask_ratio": 0.6}, "11 of 49 patches are in no mask"),
        ({"num_masks": 5}, ""),
        ({"mask_type": "independent"}, ""),
        ({"num_masks": 1, "lambda_max": 0, "lambda_min": 0}, ""),  # MAE
    ],
)
def test_patches_in_no_mask(options, says):
    model = models_mimae.mimae_vit_tiny_patch4(img_size=28, in_chans=1, **options)
    assert unseen_patches(model).startswith(says) and bool(unseen_patches(model)) == bool(says)


def test_what_has_no_masks_leaves_none_unseen():
    assert unseen_patches(torch.nn.Linear(1, 1)) == ""
