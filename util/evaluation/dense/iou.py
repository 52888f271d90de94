"""Intersection over union from one confusion matrix, summed over all images and ranks.

K classes. Each pixel of each image counts once; pixels without a label count nowhere.
"""

import torch
from torch import Tensor

from util.cluster import distributed


class ConfusionMatrix:
    """counts[t, p]: pixels of class t that were predicted as p; int64 [K, K]."""

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def add(self, predicted: Tensor, target: Tensor) -> None:
        """Count maps of one shape; a target outside 0 … K − 1 has no label."""
        num = len(self.counts)
        is_labelled = (target >= 0) & (target < num)
        pairs = num * target[is_labelled].long() + predicted[is_labelled].long()
        self.counts += torch.bincount(pairs, minlength=num * num).view(num, num)

    def over_ranks(self) -> Tensor:
        return distributed.reduce_sum(self.counts)


def scores(counts: Tensor) -> tuple[dict[str, float], list[float]]:
    """(mIoU, mAcc, aAcc; the IoU of each class), all in percent, from a confusion matrix.

    A class's IoU is its pixels that were found, over those that have it or were predicted to; its
    accuracy is those found over those that have it. A class for which that would be 0/0 is NaN and
    not in the mean. aAcc is the share of all pixels.
    """
    counts = counts.double().cpu()
    found, truth, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    iou = 100 * found / (truth + predicted - found)
    accuracy = 100 * found / truth
    means = {
        "mIoU": float(iou.nanmean()),
        "mAcc": float(accuracy.nanmean()),
        "aAcc": float(100 * found.sum() / counts.sum()),
    }
    return means, iou.tolist()
