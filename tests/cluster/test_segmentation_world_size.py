"""Segmentation: the same steps and the same mIoU for 1, 2 and 4 processes."""

import torch
from ranks import in_ranks
from torch import nn

from encoders.load import build_encoder, segmenter_architecture
from engine_segmentation import evaluate, train_step
from heads.upernet import UperNet
from util.cluster import distributed
from util.cluster.sync_batch_norm import SyncBatchNorm2d
from util.data.loader import Batches
from util.training.drop_path import DropPaths
from util.training.optim import adamw, decay_groups, set_lr
from util.training.precision import Precision

CPU = torch.device("cpu")
STEPS, GLOBAL_BATCH, SIZE = 4, 8, 16


def normed(rank: int, path: str) -> None:
    """BatchNorm of this rank's rows of a batch, and gradients as DDP would average them."""
    world = distributed.world_size()
    torch.manual_seed(0)
    x, weights = torch.randn(2, 8, 3, 5, 4, dtype=torch.float64).unbind()
    norm = SyncBatchNorm2d(3).double()
    nn.init.normal_(norm.weight)
    own = (3 + 2 * x[rank::world]).requires_grad_()
    y = norm(own)
    # A mean over the rows, of which each rank has as many, so ranks' losses are averaged.
    (y.tanh() * weights[rank::world]).mean().backward()
    parameters = [distributed.reduce_mean(p.grad) for p in norm.parameters()]
    ordered = [
        distributed.gather_with_grad(t).unflatten(0, (world, -1)).transpose(0, 1).flatten(0, 1)
        for t in (y.detach(), own.grad / world)
    ]
    if rank == 0:
        torch.save([*ordered, *parameters, norm.running_mean, norm.running_var], path)


def test_batch_norm_is_that_of_the_global_batch(tmp_path):
    results = []
    for world in (1, 2, 4):
        path = tmp_path / f"{world}.pth"
        assert in_ranks(normed, world, tmp_path, str(path)) == [None] * world
        results.append(torch.load(path, weights_only=True))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-12, atol=1e-12)


class Pairs(torch.utils.data.Dataset):
    """Random images with maps, a quarter of which is nothing; item (pass, index)."""

    classes = ("a", "b", "c")

    def __init__(self, num: int):
        draw = torch.Generator().manual_seed(5)
        self.imgs = torch.rand(num, 2, SIZE, SIZE, generator=draw, dtype=torch.float64)
        self.maps = torch.randint(-1, 3, (num, SIZE, SIZE), generator=draw)
        self.images = self

    def __len__(self) -> int:
        return len(self.imgs)

    def __getitem__(self, item):
        return self.imgs[item[1]], self.maps[item[1]], -1


def train_and_evaluate(rank: int, path: str, num_micro: int) -> None:
    torch.manual_seed(0)
    known = segmenter_architecture(None, "vit_tiny_patch4", rel_pos_bias=True, layer_scale=1.0)
    encoder = build_encoder("vit_tiny_patch4", 0, SIZE, 2, False, 0.4, architecture=known)
    encoder.norm = nn.Identity()
    bare = UperNet(encoder, 3, channels=8).double()
    drop_paths = DropPaths(bare, seed=1)
    model = distributed.wrap(bare, CPU, sync_buffers=False).train()
    optimizer, precision = adamw(decay_groups(bare, 0.05)), Precision("none", CPU)
    set_lr(optimizer, 1e-3)
    batches = Batches(
        Pairs(20), GLOBAL_BATCH // distributed.world_size(), True, seed=2, length=STEPS * num_micro
    )
    stream, history = batches.epoch(1), []

    def prepared(step: int):
        for micro in range(num_micro):
            imgs, maps = next(stream)
            drop_paths.draw(step, micro, len(imgs), CPU)
            yield imgs, maps

    for step in range(STEPS):
        losses = train_step(model, prepared(step), num_micro, optimizer, precision, 1.0)
        values = torch.stack([losses["loss"].double(), losses["grad_norm"].double()])
        history.append(distributed.reduce_mean(values))
    test = Batches(Pairs(5), 1, training=False)
    scores, ious = evaluate(bare, test, lambda imgs: bare(imgs).argmax(1), CPU)
    if rank == 0:
        state = {"history": torch.stack(history), "model": bare.state_dict()}
        torch.save(state | {"scores": [*scores.values(), *ious.values()]}, path)


def test_world_size_changes_nothing(tmp_path):
    """Drop path, dropout of channels, BatchNorm, accumulation, clipping: float64 steps of AdamW."""
    for num_micro in (1, 2):
        results = []
        for world in (1, 2, 4):
            path = tmp_path / f"{world}.pth"
            args = (train_and_evaluate, world, tmp_path, str(path), num_micro)
            assert in_ranks(*args) == [None] * world
            results.append(torch.load(path, weights_only=True))
        assert results[0]["history"][:, 0].unique().numel() == STEPS
        for result in results[1:]:
            torch.testing.assert_close(result["model"], results[0]["model"], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(result["history"], results[0]["history"])
            assert result["scores"] == results[0]["scores"]
