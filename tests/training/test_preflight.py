"""The memory estimate, against the bytes that autograd keeps."""

import pytest
import torch

import models_mimae
from util.training.preflight import estimate_memory


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
        torch.autocast("cpu", torch.bfloat16, enabled=half),
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
