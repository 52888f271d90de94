"""Evaluation: accuracy and loss by hand, whatever the batches are."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine_finetune import evaluate
from util.data.loader import Batches
from util.training.precision import Precision


class Vectors(torch.utils.data.Dataset):
    images = None

    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, item):
        return self.inputs[item[1]], int(self.targets[item[1]]), -1


@pytest.mark.parametrize("classes", [3, 9])
@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_evaluate_counts_by_hand(classes, batch_size, tmp_path):
    torch.manual_seed(0)
    inputs, targets = torch.randn(40, 5), torch.randint(classes, (40,))
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(5, classes)).train()
    logits = model[1](inputs)
    order = logits.argsort(1, descending=True)
    cpu = torch.device("cpu")
    batches = Batches(Vectors(inputs, targets), batch_size, training=False)
    found = evaluate(model, batches, nn.Identity(), Precision("none", cpu), str(tmp_path))
    predictions = np.load(tmp_path / "test_predictions.npy")
    assert np.array_equal(predictions, torch.stack([order[:, 0], targets], 1).numpy())
    top1 = sum(order[i, 0] == targets[i] for i in range(40)).item()
    top5 = sum(targets[i] in order[i, :5] for i in range(40))
    assert found["acc1"] == pytest.approx(100 * top1 / 40)
    assert found["acc5"] == pytest.approx(100 * top5 / 40)
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-5)
