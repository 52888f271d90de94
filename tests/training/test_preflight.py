"""The memory estimate, against the bytes that autograd keeps."""

from argparse import Namespace

import pytest
import torch

import models_mimae
from util.training import preflight
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


@pytest.mark.parametrize(
    ("length", "warns"),
    [
        (dict(epochs=20, warmup_epochs=2.0, max_steps=None), False),
        (dict(epochs=20, warmup_epochs=2.0, max_steps=8), True),  # 2 epochs of 4 steps
        (dict(epochs=20, warmup_epochs=2.0, max_steps=9), False),
        (dict(epochs=2, warmup_epochs=2.0, max_steps=None), True),
        (dict(epochs=0, warmup_epochs=0.0, max_steps=None), False),  # an initialisation
        (dict(iterations=20, warmup_iterations=5, max_steps=20), False),
        (dict(iterations=20, warmup_iterations=5, max_steps=5), True),
    ],
)
def test_a_warm_up_that_does_not_end_is_told(length, warns, caplog):
    preflight._warmup(Namespace(**length), 4)
    assert ("never comes to its height" in caplog.text) == warns


def test_the_plan_says_how_the_rate_falls_and_what_ends_the_run():
    args = Namespace(lr_schedule="multistep", lr_gamma=0.1, lr_milestones=[8.0, 11.0], min_lr=1.0)
    assert preflight._schedule(args) == "x 0.1 at 8, 11"
    args = Namespace(lr_schedule="cosine", min_lr=1e-6, epochs=3, max_steps=None)
    assert preflight._schedule(args) == "to 1e-06"
    assert preflight._length(args, 5, 0.2) == "5 per epoch, 15 in 3 epochs"
    args.max_steps = 7
    assert preflight._length(args, 5, 0.2) == "5 per epoch, 15 in 3 epochs, ended after 7"
