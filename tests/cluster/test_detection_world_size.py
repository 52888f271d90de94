"""Detection: the same steps and the same AP for one process and two."""

import json

import pytest
import torch
from ranks import in_ranks

from encoders.load import build_encoder
from engine_detection import evaluate, train_step
from heads.maskrcnn import build_detector
from util.cluster import distributed
from util.data.dense.coco import Categories
from util.data.dense.jitter import collate
from util.data.loader import Batches
from util.randomness import seed_libraries
from util.training.drop_path import DropPaths
from util.training.optim import adamw, decay_groups, set_lr
from util.training.precision import Precision
from util.training.roi_sampling import RoISampling

CPU, STEPS, SIZE = torch.device("cpu"), 3, 32


class Boxes(torch.utils.data.Dataset):
    """Images with a bright box each; item (pass, index)."""

    classes = ("a", "b")

    def __init__(self, num: int, training: bool):
        draw = torch.Generator().manual_seed(5)
        self.images, self.training = self, training
        self.categories = Categories([4, 7], ["a", "b"])
        self.ids = list(range(10, 10 + num))
        self.imgs = 0.3 * torch.rand(num, 3, SIZE, SIZE, generator=draw)
        self.boxes = torch.tensor([[4, 3, 20, 18]]).repeat(num, 1) + torch.arange(num)[:, None]
        for img, (x0, y0, x1, y1) in zip(self.imgs, self.boxes.tolist(), strict=True):
            img[:, y0:y1, x0:x1] += 0.7

    def __len__(self) -> int:
        return len(self.imgs)

    def __getitem__(self, item):
        index = item[1]
        if not self.training:
            return self.imgs[index], (index, SIZE, SIZE), -1
        (x0, y0, x1, y1), masks = self.boxes[index].tolist(), torch.zeros(1, SIZE, SIZE)
        masks[0, y0:y1, x0:x1] = 1
        labels = torch.tensor([1 + index % 2])
        return self.imgs[index], dict(boxes=self.boxes[index][None].float(), labels=labels,
                                      masks=masks.byte()), -1  # fmt: skip


def train(rank: int, path: str, num_micro: int) -> None:
    """Steps of two images, in two micro-batches or on two ranks."""
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny_patch4", 0, SIZE, 3)
    bare = build_detector(encoder, 2, [0.5] * 3, [0.25] * 3)
    DropPaths(bare, 1)
    sampling = RoISampling(bare, seed=1)
    model = distributed.wrap(bare, CPU, sync_buffers=False).train()
    optimizer, precision = adamw(decay_groups(bare, 0.1)), Precision("none", CPU)
    set_lr(optimizer, 1e-4)
    batches = Batches(Boxes(6, True), 1, True, seed=2, length=STEPS * num_micro, collate=collate)
    stream, history = batches.epoch(), []

    def prepared(step: int):
        for micro in range(num_micro):
            seed_libraries(rank, micro, step)  # nothing follows from what else is drawn
            sampling.draw(step, micro, 1)
            yield next(stream)

    for step in range(STEPS):
        losses = train_step(model, prepared(step), num_micro, optimizer, precision)
        history.append(distributed.reduce_mean(losses["loss"]))
    if rank == 0:
        torch.save({"history": torch.stack(history), "model": bare.state_dict()}, path)


def test_two_ranks_sample_and_learn_as_two_micro_batches(tmp_path):
    results = []
    for world in (1, 2):
        path = tmp_path / f"{world}.pth"
        assert in_ranks(train, world, tmp_path, str(path), 2 // world) == [None] * world
        results.append(torch.load(path, weights_only=True))
    assert results[0]["history"].unique().numel() == STEPS
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4)


def evaluated(rank: int, folder: str) -> dict:
    data = Boxes(5, False)
    annotations = [
        {"id": i + 1, "image_id": 10 + i, "category_id": 4, "bbox": [x0, y0, x1 - x0, y1 - y0],
         "area": 240, "iscrowd": 0, "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}
        for i, (x0, y0, x1, y1) in enumerate(data.boxes.tolist())
    ]  # fmt: skip
    truth = {
        "images": [{"id": 10 + i, "height": SIZE, "width": SIZE} for i in range(5)],
        "categories": [{"id": 4, "name": "a"}, {"id": 7, "name": "b"}],
        "annotations": annotations,
    }

    def detect(images):
        found = []
        for image in images:
            rows, columns = (image.mean(0) > 0.65).nonzero().unbind(1)
            ends = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            score = float(image.mean())  # another one in each image
            found.append({
                "boxes": torch.tensor([ends]).float(), "labels": torch.tensor([1]),
                "scores": torch.tensor([score]), "masks": torch.ones(1, 1, 28, 28),
            })  # fmt: skip
        return found

    batches = Batches(data, 2, False, collate=collate)
    return evaluate(torch.nn.Identity(), batches, detect, truth, folder)


def test_each_image_counts_once_on_any_number_of_ranks(tmp_path):
    alone = evaluated(0, str(tmp_path))
    kept = json.loads((tmp_path / "predictions.json").read_text())
    assert [entry["image_id"] for entry in kept] == [10, 11, 12, 13, 14]
    assert alone["box_AP"] > 90
    for found in in_ranks(evaluated, 2, tmp_path, str(tmp_path)):
        assert found == pytest.approx(alone, nan_ok=True)
    assert json.loads((tmp_path / "predictions.json").read_text()) == kept
