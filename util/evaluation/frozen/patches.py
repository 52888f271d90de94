"""Dense evaluation of frozen encoders: the class of each patch, by k-NN and logistic regression.

Whole images are resized to the encoder's input. A training patch has the class that most of its
labelled pixels have; scores of a test image's patches are enlarged to its map (bilinear), so that
the mIoU is over pixels. B images, h x w patches of D channels, K classes.
"""

import argparse
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from util.data.dense.ade20k import MappedImages, load_mapped_images, read_labels
from util.data.dense.transforms import resize_image
from util.data.images import to_float
from util.data.unreadable import leave_out
from util.errors import EXIT_DATA, RunError, UsageError, first_line
from util.evaluation import paired
from util.evaluation.dense import iou, windows
from util.evaluation.frozen import logistic
from util.evaluation.frozen.columns import Columns
from util.evaluation.frozen.knn import knn_votes
from util.evaluation.frozen.probes import KNN, PENALTIES
from util.progress import ProgressLine

log = logging.getLogger(__name__)

KNN_NAME, LOGISTIC_NAME = "dense k-NN", "dense logistic"


@dataclass
class Dense:
    """An evaluation of the validation images: what was chosen, and of each image and class the
    pixels that were found, that have it and that were predicted to, int64 [n, 3, K]; none of the
    images in `left_out`, which could not be read."""

    chosen: str
    counts: np.ndarray
    left_out: tuple[int, ...] = ()

    def miou(self) -> float:
        return mean_iou(self.counts.sum(0))


def mean_iou(counts: np.ndarray) -> float:
    """mIoU, percent, from the sums [3, K] of `Dense.counts`; absent classes do not count."""
    found, truth, predicted = counts.astype(float)
    union = truth + predicted - found
    return 100 * float(np.mean(found[union > 0] / union[union > 0]))


def compare(first: Dense, second: Dense) -> paired.Difference:
    """mIoU of first − second, with an interval over the test images that both have read."""
    is_read = np.isin(np.arange(len(first.counts)), first.left_out + second.left_out, invert=True)
    return paired.compare_statistic(first.counts[is_read], second.counts[is_read], mean_iou)


def load(flags: argparse.Namespace) -> tuple[MappedImages, MappedImages]:
    """The training and validation images of --dense, a folder in ADE20K's layout."""
    folder = flags.dense
    try:
        labels = read_labels(folder, flags.classes, flags.first_class, flags.palette)
        train, val = (
            load_mapped_images(folder, split, labels, flags.in_chans, flags.value_range)
            for split in ("training", "validation")
        )
    except UsageError as error:
        raise UsageError(str(error).replace("--data_path", "--dense")) from None
    return train, val


def patch_classes(labels: Tensor, grid: tuple[int, int], num_classes: int) -> Tensor:
    """The class that most of the labelled pixels of each patch have: [h · w], −1 where none has.

    Args:
        labels: int [H, W], −1 is no class; patches need not be whole pixels.
    """
    rows = torch.arange(labels.shape[0]) * grid[0] // labels.shape[0]
    columns = torch.arange(labels.shape[1]) * grid[1] // labels.shape[1]
    patch = rows[:, None] * grid[1] + columns  # [H, W]
    known = labels >= 0
    votes = torch.bincount(
        patch[known] * num_classes + labels[known].long(), minlength=grid[0] * grid[1] * num_classes
    ).view(-1, num_classes)
    return torch.where(votes.sum(1) > 0, votes.argmax(1), -1)


def evaluate(
    encoder, train: MappedImages, val: MappedImages, args: argparse.Namespace, device: torch.device
) -> dict[str, Dense]:
    """Dense k-NN and logistic regression of an encoder with `encode_tokens`, `view` and `name`.

    Raises:
        RunError: more unreadable pairs than --max_bad_images, or one of a published set.
    """
    num_classes = len(train.classes)
    features, targets, image = _bank(encoder, train, args, device)
    is_held = image % 10 == 9  # a tenth of the images
    bank = Columns([features])
    rest = (bank.of(~is_held), targets[~is_held])
    heads = logistic.fit(*rest, num_classes, PENALTIES, max_iter=100)
    right = [(row == targets[is_held]).sum().item() for row in heads.predict(bank.of(is_held))]
    # The strongest of equals, so that a tie is no chance.
    penalty = max(zip(right, PENALTIES, strict=True))[1]
    heads = logistic.fit(features, targets, num_classes, [penalty], max_iter=100)
    k, temperature = KNN
    scorers = {
        KNN_NAME: lambda x: knn_votes((features, targets), x, k, temperature, num_classes, device),
        LOGISTIC_NAME: lambda x: heads.logits(x)[0].softmax(1),
    }
    counts = {name: np.zeros((len(val), 3, num_classes), dtype=np.int64) for name in scorers}
    pairs = _Readable(encoder, val, args, device, "dense")
    for index, tokens, labels, grid in pairs:
        for name, scorer in scorers.items():
            scores = scorer(tokens).T.reshape(1, num_classes, *grid)
            predicted = windows.largest(scores, labels.shape)[0].cpu()
            counts[name][index] = _counts(predicted, labels, num_classes)
    left_out = tuple(leave_out(val, pairs.left_out))
    if not counts[KNN_NAME].any():
        raise UsageError("--dense: no pixel of the validation maps is of a class: check the maps")
    seen = f"{len(features)} patches of {len(image.unique())} images"
    words = (f"{seen}, k {k}, temperature {temperature:g}", f"{seen}, penalty {penalty:g}")
    return {
        name: Dense(chosen, counts[name], left_out)
        for name, chosen in zip(scorers, words, strict=True)
    }


def _bank(encoder, images: MappedImages, args: argparse.Namespace, device: torch.device):
    """Features [n, D], classes [n] and image numbers [n] of labelled patches, as many of each
    image, --dense_patches at most."""
    per_image = max(1, args.dense_patches // len(images))
    generator = torch.Generator().manual_seed(args.seed)
    parts = []
    for index, tokens, labels, grid in _Readable(encoder, images, args, device, "patches"):
        classes = patch_classes(labels, grid, len(images.classes))
        ids = (classes >= 0).nonzero()[:, 0]
        ids = ids[torch.randperm(len(ids), generator=generator)[:per_image]]
        parts.append((tokens[ids.to(device)], classes[ids], torch.full_like(ids, index)))
    if not any(len(classes) for _, classes, _ in parts):
        raise UsageError("--dense: no patch of a training image is labelled: check the maps")
    features, targets, image = (torch.cat(part) for part in zip(*parts, strict=True))
    return features, targets.to(device), image.to(device)


class _Readable:
    """Each pair that can be read: its index, its image's tokens [h · w, D], its label map [H, W]
    and (h, w). `left_out` then has the indices of the others, which are named in the log."""

    def __init__(
        self,
        encoder,
        images: MappedImages,
        args: argparse.Namespace,
        device: torch.device,
        label: str,
    ):
        self.encoder, self.images, self.device = encoder, images, device
        self.most, self.left_out = args.max_bad_images, []
        self.line = ProgressLine(f"{encoder.name}, {label}", len(images))

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor, tuple[int, ...]]]:
        view = self.encoder.view
        for index in range(len(self.images)):
            pair = self._read(index)
            if pair is not None:
                image = to_float(resize_image(pair[0], view.size, antialias=True))
                with torch.no_grad():
                    tokens = self.encoder.encode_tokens(image[None].to(self.device))[0]
                cell = (view.size[0] * view.size[1] / len(tokens)) ** 0.5  # pixels of a side
                yield index, tokens, pair[1], tuple(round(side / cell) for side in view.size)
            self.line.update(index + 1)
        self.line.close()

    def _read(self, index: int) -> tuple[Tensor, Tensor] | None:
        try:
            return self.images.read(index)
        except UsageError:
            raise
        except Exception as error:  # whatever a decoder makes of a damaged file
            self.left_out.append(index)
            name = self.images.name(index)
            log.warning("unreadable, left out: %s (%s)", name, first_line(error))
        if len(self.left_out) > self.most:
            raise RunError(
                f"--dense: {len(self.left_out)} pairs cannot be read, more than --max_bad_images "
                f"{self.most}: fix the files named above, or raise the limit",
                EXIT_DATA,
            )
        return None


def _counts(predicted: Tensor, labels: Tensor, num_classes: int) -> np.ndarray:
    matrix = iou.ConfusionMatrix(num_classes)
    matrix.add(predicted, labels)
    counts = matrix.counts
    return torch.stack([counts.diagonal(), counts.sum(1), counts.sum(0)]).numpy()
