"""Weighted k-nearest-neighbour classification of frozen features."""

import argparse
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from util.cluster import distributed
from util.data.datasets import DATASETS, TransformedImages, load_images
from util.data.loader import Batches
from util.data.transforms import ResizeCenterCrop
from util.training.precision import Precision


@torch.no_grad()
def extract_features(
    encoder: nn.Module, batches: Batches, normalize: nn.Module, precision: Precision
) -> tuple[Tensor, Tensor]:
    """Features [n, D] (float32, CPU) and targets [n] of a whole set, in its order, on all ranks.

    Args:
        encoder: images [B, C, H, W] -> features [B, D].
        batches: an evaluation loader, each image once over all ranks.
    """
    was_training = encoder.training
    encoder.eval()
    features, targets = [], []
    for imgs, target in batches.epoch():
        imgs = normalize(imgs.to(precision.device, non_blocking=True))
        with precision.autocast():
            found = encoder(imgs)
        features.append(found.float().cpu())
        targets.append(target)
    encoder.train(was_training)
    if not distributed.is_distributed():
        return torch.cat(features), torch.cat(targets)
    own = (torch.cat(features), torch.cat(targets)) if features else None
    parts: list = [None] * distributed.world_size()
    dist.all_gather_object(parts, own, distributed.cpu_group())  # gigabytes, with many images
    size = len(batches.dataset)
    dim = next(part[0].shape[1] for part in parts if part is not None)
    all_features, all_targets = torch.empty(size, dim), torch.empty(size, dtype=torch.long)
    for rank, part in enumerate(parts):
        if part is not None:  # rank r had every W-th image from r on, in each global batch
            all_features[rank :: len(parts)], all_targets[rank :: len(parts)] = part
    return all_features, all_targets


def predict_knn(
    train: tuple[Tensor, Tensor], queries: Tensor, k: int = 20, temperature: float = 0.07,
    device: torch.device | str = "cpu", chunk: int | None = None,
) -> Tensor:  # fmt: skip
    """The class of each query [n, D] -> [n]; each of the k nearest votes with
    exp(cosine / temperature)."""
    return predict_knn_grid(train, queries, (k,), (temperature,), device, chunk)[k, temperature]


@torch.no_grad()
def predict_knn_grid(
    train: tuple[Tensor, Tensor], queries: Tensor, ks: Sequence[int],
    temperatures: Sequence[float], device: torch.device | str = "cpu", chunk: int | None = None,
) -> dict[tuple[int, float], Tensor]:  # fmt: skip
    """The classes of queries [n, D] for each (k, temperature), from one search: [n] each.

    Args:
        train: features [n, D] and targets [n].
        chunk: queries at a time; by default so many that their similarities take half a GiB.
    """
    features, targets = F.normalize(train[0].float(), dim=1).to(device), train[1].to(device)
    num_classes = int(targets.max()) + 1
    chunk = chunk or max(1, 2**27 // len(features))
    found = {(k, t): [targets.new_empty(0)] for k in ks for t in temperatures}
    for start in range(0, len(queries), chunk):
        part = F.normalize(queries[start : start + chunk].float(), dim=1).to(device)
        similarity, ids = (part @ features.T).topk(min(max(ks), len(features)), dim=1)
        for k, temperature in found:
            # Relative to the nearest, whose vote is 1: a low temperature would overflow.
            weights = ((similarity[:, :k] - similarity[:, :1]) / temperature).exp()
            votes = part.new_zeros(len(part), num_classes)
            votes.scatter_add_(1, targets[ids[:, :k]], weights)
            found[k, temperature].append(votes.argmax(1))
    return {setting: torch.cat(parts) for setting, parts in found.items()}


def weighted_knn(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], **options) -> float:
    """Top-1 accuracy in percent of `predict_knn`.

    Args:
        train, test: features [n, D] and targets [n], the same on all ranks, which share the work.
    """
    features, targets = (part[distributed.rank() :: distributed.world_size()] for part in test)
    predicted = predict_knn(train, features, **options)
    correct = (predicted == targets.to(predicted.device)).sum().float()
    return 100 * distributed.reduce_sum(correct).item() / len(test[0])


class KNNMonitor:
    """k-NN accuracy (percent) of a class token in training, from the labelled to the test split.

    Args:
        args: the flags of the data.
    """

    def __init__(self, args: argparse.Namespace, normalize: nn.Module, precision: Precision):
        view = ResizeCenterCrop(tuple(args.input_size), DATASETS[args.dataset].crop_share)
        self.normalize, self.precision = normalize, precision
        self.loaders = [
            Batches(
                TransformedImages(load_images(args, split), view, args.seed), args.batch_size,
                training=False, num_workers=args.num_workers, max_bad_images=args.max_bad_images,
            )
            for split in ("train", "val")
        ]  # fmt: skip

    def __call__(self, model: nn.Module) -> float:
        """Of a model whose `encode` gives [B, 1 + L, D], the class token first."""
        encoder = _ClassToken(model)
        train, test = (
            extract_features(encoder, loader, self.normalize, self.precision)
            for loader in self.loaders
        )
        return weighted_knn(train, test, device=self.precision.device)


class _ClassToken(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, imgs: Tensor) -> Tensor:
        return self.model.encode(imgs)[:, 0]
