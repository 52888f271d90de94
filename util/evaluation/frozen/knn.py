"""Weighted k-nearest-neighbour classification of frozen features."""

import itertools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from util.cluster import distributed
from util.cluster.node_memory import node_tensor, share_rows
from util.data.loader import Batches
from util.data.unreadable import LEFT_OUT
from util.evaluation.frozen.columns import Columns
from util.progress import shown
from util.training.precision import Precision


@torch.no_grad()
def extract_features(
    encoder: nn.Module, batches: Batches, normalize: nn.Module, precision: Precision,
    to_train: bool = False, is_score: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Features [n, D] (float32, CPU) and targets [n] of a whole set, in its order, on all ranks.

    The ranks of a node share one copy. An image that cannot be read has the target LEFT_OUT.

    Args:
        encoder: images [B, C, H, W] -> features [B, D].
        batches: an evaluation loader, each image once over all ranks.
        to_train: as in training another image takes the place of one that cannot be read.
        is_score: as in `Batches.left_out`.

    Raises:
        RunError: an unreadable image of a published set, for a score.
    """
    was_training = encoder.training
    encoder.eval()
    parts = _encoded(encoder, batches, normalize, precision, to_train)
    first = list(itertools.islice(parts, 1))  # none on a rank that has no image
    dim = distributed.reduce_max(first[0][1].shape[1] if first else 0)
    whole = (
        node_tensor((len(batches.dataset), dim), torch.float32),
        node_tensor((len(batches.dataset),), torch.long),
    )
    for ids, *part in itertools.chain(first, parts):
        for rows, values in zip(whole, part, strict=True):
            rows[ids] = values
    for rows in whole:
        share_rows(rows)
    left_out = batches.left_out(is_score)
    whole[0][left_out], whole[1][left_out] = 0.0, LEFT_OUT
    encoder.train(was_training)
    return whole


@torch.no_grad()
def _encoded(
    encoder: nn.Module, batches: Batches, normalize: nn.Module, precision: Precision,
    to_train: bool,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:  # fmt: skip
    """Ids [B], features [B, D] and targets [B] of this rank's batches."""
    for ids, imgs, targets in shown(batches.each_once(to_train), "features", len(batches)):
        imgs = normalize(imgs.to(precision.device, non_blocking=True))
        with precision.autocast():
            features = encoder(imgs)
        yield ids, features.float().cpu(), targets


def readable(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Those of images that could be read, of what `extract_features` gives."""
    is_read = targets != LEFT_OUT
    return (features, targets) if is_read.all() else (features[is_read], targets[is_read])


def predict_knn(
    train: tuple[Tensor, Tensor], queries: Tensor, k: int = 20, temperature: float = 0.07,
    device: torch.device | str = "cpu", **sizes: int,
) -> Tensor:  # fmt: skip
    """The class of each query [n, D] -> [n]; each of the k nearest votes with
    exp(cosine / temperature)."""
    return predict_knn_grid(train, queries, (k,), (temperature,), device, **sizes)[k, temperature]


@torch.no_grad()
def predict_knn_grid(
    train: tuple[Tensor | Columns, Tensor], queries: Tensor, ks: Sequence[int],
    temperatures: Sequence[float], device: torch.device | str = "cpu", **sizes: int,
) -> dict[tuple[int, float], Tensor]:  # fmt: skip
    """The classes of queries [n, D] for each (k, temperature), from one search: [n] each.

    Args:
        train: features [n, D] and targets [n].
        sizes: see `nearest_neighbours`.
    """
    num_classes = int(train[1].max()) + 1
    similarity, labels = nearest_neighbours(train, queries, max(ks), device, **sizes)
    predicted = {}
    for k in ks:
        for temperature in temperatures:
            votes = _votes(similarity[:, :k], labels[:, :k], temperature, num_classes)
            predicted[k, temperature] = votes.argmax(1)
    return predicted


@torch.no_grad()
def knn_votes(
    train: tuple[Tensor, Tensor], queries: Tensor, k: int, temperature: float, num_classes: int,
    device: torch.device | str = "cpu",
) -> Tensor:  # fmt: skip
    """The share of each class in the votes for each query: [n, C]."""
    similarity, labels = nearest_neighbours(train, queries, k, device)
    votes = _votes(similarity, labels, temperature, num_classes)
    return votes / votes.sum(1, keepdim=True)


def _votes(similarity: Tensor, labels: Tensor, temperature: float, num_classes: int) -> Tensor:
    """Sums of exp(cosine / temperature) by class, [n, C], of neighbours [n, k]."""
    # Relative to the nearest, whose vote is 1: a low temperature would overflow.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    votes = weights.new_zeros(len(weights), num_classes)
    return votes.scatter_add_(1, labels, weights)


@torch.no_grad()
def nearest_neighbours(
    train: tuple[Tensor | Columns, Tensor], queries: Tensor, k: int,
    device: torch.device | str = "cpu", chunk: int | None = None, block: int = 2**15,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Cosines and targets of each query's k nearest, the nearest first: [n, k] each.

    Args:
        train: features [n, D] and targets [n], of which no more than a block is copied.
        chunk, block: queries and training images at a time. By default their similarities take half
            a GiB; on a CPU, which is no faster with more, 32 MiB.
    """
    chunk = chunk or (256 if torch.device(device).type == "cpu" else 4096)
    parts = [F.normalize(part.float(), dim=1).to(device) for part in queries.split(chunk)]
    nearest = [(part[:, :0], torch.empty(len(part), 0).long().to(device)) for part in parts]
    for features, targets in zip(train[0].split(block), train[1].split(block), strict=True):
        features, targets = F.normalize(features.float(), dim=1).to(device), targets.to(device)
        for i, part in enumerate(parts):
            similarity, ids = (part @ features.T).topk(min(k, len(features)), dim=1)
            similarity = torch.cat([nearest[i][0], similarity], dim=1)
            labels = torch.cat([nearest[i][1], targets[ids]], dim=1)  # [chunk, 2k at most]
            similarity, ids = similarity.topk(min(k, similarity.shape[1]), dim=1)
            nearest[i] = similarity, labels.gather(1, ids)
    return torch.cat([s for s, _ in nearest]), torch.cat([labels for _, labels in nearest])


def weighted_knn(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], k: int = 20,
    temperature: float = 0.07, device: torch.device | str = "cpu", **sizes: int,
) -> float:  # fmt: skip
    """Top-1 accuracy in percent of `predict_knn`.

    Args:
        train, test: features [n, D] and targets [n], the same on all ranks, which share the work.
    """
    features, targets = (part[distributed.rank() :: distributed.world_size()] for part in test)
    predicted = predict_knn(train, features, k, temperature, device, **sizes)
    correct = (predicted == targets.to(predicted.device)).sum().float()
    return 100 * distributed.reduce_sum(correct).item() / len(test[0])


class KNNMonitor:
    """k-NN accuracy of a class token in training, from one labelled set to another.

    A monitor: an image that cannot be read is left out and counted, of a published set, too.

    Between its runs it keeps no features.

    Args:
        train, val: evaluation loaders.
    """

    def __init__(self, train: Batches, val: Batches, normalize: nn.Module, precision: Precision):
        self.loaders, self.normalize, self.precision = (train, val), normalize, precision

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """`knn_acc1` (percent), and `knn_unreadable`, the test images that were left out, if any.

        Args:
            model: its `encode` gives [B, 1 + L, D], the class token first.
        """
        encoder = _ClassToken(model)
        train, test = (
            extract_features(encoder, loader, self.normalize, self.precision, is_score=False)
            for loader in self.loaders
        )
        train, queries = readable(*train), readable(*test)
        accuracy = weighted_knn(train, queries, device=self.precision.device)
        left_out = len(test[0]) - len(queries[0])
        return {"knn_acc1": accuracy} | ({"knn_unreadable": left_out} if left_out else {})


class _ClassToken(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, imgs: Tensor) -> Tensor:
        return self.model.encode(imgs)[:, 0]
