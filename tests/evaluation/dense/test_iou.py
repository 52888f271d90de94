"""IoU by a double loop over classes, and by hand."""

import math

import pytest
import torch

from util.evaluation.dense.iou import ConfusionMatrix, scores


def by_double_loop(predicted, target, num_classes):
    """IoU and accuracy of each class, from sets of pixels; those without a label are left out."""
    is_labelled = target >= 0
    ious, accuracies = [], []
    for k in range(num_classes):
        truth = {i for i, t in enumerate(target.flatten().tolist()) if t == k}
        found = {
            i for i, (p, known) in enumerate(
                zip(predicted.flatten().tolist(), is_labelled.flatten().tolist(), strict=True)
            ) if p == k and known
        }  # fmt: skip
        both, either = len(truth & found), len(truth | found)
        ious.append(100 * both / either if either else math.nan)
        accuracies.append(100 * both / len(truth) if truth else math.nan)
    return ious, accuracies


def test_scores_are_those_of_a_double_loop():
    torch.manual_seed(0)
    num = 6
    target = torch.randint(-1, num - 1, (4, 9, 7), dtype=torch.int16)  # class 5 is never there
    target[target == 2] = -1  # nor class 2, which is predicted
    predicted = torch.randint(num - 1, (4, 9, 7))
    matrix = ConfusionMatrix(num)
    for p, t in zip(predicted, target, strict=True):  # image by image
        matrix.add(p, t)
    means, ious = scores(matrix.over_ranks())
    expected, accuracies = by_double_loop(predicted, target, num)
    assert ious == pytest.approx(expected, nan_ok=True)
    assert math.isnan(ious[5]) and ious[2] == 0
    assert means["mIoU"] == pytest.approx(sum(expected[:5]) / 5)
    known = [a for a in accuracies if not math.isnan(a)]
    assert means["mAcc"] == pytest.approx(sum(known) / len(known)) and len(known) == 4
    right = ((predicted == target) & (target >= 0)).sum() / (target >= 0).sum()
    assert means["aAcc"] == pytest.approx(100 * float(right))


def test_counts_are_exact_beyond_what_floats_hold():
    matrix = ConfusionMatrix(2)
    matrix.counts[0, 0] = 2**53
    matrix.add(torch.tensor([[0]]), torch.tensor([[0]]))
    assert int(matrix.counts[0, 0]) == 2**53 + 1
