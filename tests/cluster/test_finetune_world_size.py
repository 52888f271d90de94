"""Fine-tuning with all augmentation: the same steps for 1, 2 and 4 processes."""

import pytest
import torch
from ranks import in_ranks
from timm.data.random_erasing import RandomErasing
from torch import nn

from encoders.load import build_encoder
from engine_finetune import train_step
from util.cluster import distributed
from util.data.batch_augmentation import BatchAugmentation, PositionalMixup
from util.training.drop_path import DropPaths
from util.training.optim import adamw, decay_groups, set_lr
from util.training.precision import Precision

STEPS, GLOBAL_BATCH = 6, 16


def train(rank: int, path: str, options: dict, num_micro: int) -> None:
    """Steps on this rank's rows of fixed global batches; rank 0 writes losses and weights."""
    device, world = torch.device("cpu"), distributed.world_size()
    torch.manual_seed(0)
    bare = build_encoder("vit_tiny_patch4", 5, 16, 2, drop_path=0.4).double()
    drop_paths = DropPaths(bare, seed=1)
    model = distributed.wrap(bare, device, sync_buffers=False).train()
    optimizer, precision = adamw(decay_groups(bare, 0.05)), Precision("none", device)
    set_lr(optimizer, 1e-3)
    mix = PositionalMixup(0.8, 1.0, num_classes=5, **options)
    erase = RandomErasing(0.5, mode="pixel", max_count=2)
    augmentation = BatchAugmentation(nn.Identity(), erase, mix, seed=1)
    history = []

    def prepared(step: int):
        draw = torch.Generator().manual_seed(step)
        imgs = torch.rand(num_micro, GLOBAL_BATCH, 2, 16, 16, generator=draw, dtype=torch.float64)
        targets = torch.randint(5, (num_micro, GLOBAL_BATCH), generator=draw)
        for micro in range(num_micro):
            own = imgs[micro, rank::world].clone(), targets[micro, rank::world]
            drop_paths.draw(step, micro, len(own[0]), device)
            yield augmentation(*own, step, micro)

    for step in range(STEPS):
        losses = train_step(model, prepared(step), num_micro, optimizer, precision, 1.0)
        values = torch.stack([losses["loss"].double(), losses["grad_norm"].double()])
        history.append(distributed.reduce_mean(values))
    if rank == 0:
        torch.save({"history": torch.stack(history), "model": bare.state_dict()}, path)


@pytest.mark.parametrize(
    ("options", "num_micro"),
    [
        ({"mode": "batch"}, 1),
        ({"mode": "pair"}, 2),
        ({"mode": "elem", "cutmix_minmax": (0.2, 0.8)}, 1),
    ],
    ids=["batch", "pair", "elem"],
)
def test_world_size_changes_nothing(tmp_path, options, num_micro):
    """Mixup, cutmix, erased pixels, drop path; clipped steps of AdamW in float64."""
    results = []
    for world in (1, 2, 4):
        path = tmp_path / f"{world}.pth"
        assert in_ranks(train, world, tmp_path, str(path), options, num_micro) == [None] * world
        results.append(torch.load(path, weights_only=True))
    assert results[0]["history"][:, 0].unique().numel() == STEPS
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-10, atol=1e-10)
