"""Evaluation: accuracy and loss by hand, whatever the batches are."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine_finetune import evaluate
from util.data.datasets import Images
from util.data.loader import Batches
from util.errors import RunError
from util.training.precision import Precision


class Vectors(torch.utils.data.Dataset, Images):
    """Those at `bad` cannot be read: the loader gets another one in their place."""

    def __init__(self, inputs, targets, bad=(), published=""):
        self.inputs, self.targets, self.bad = inputs, targets.numpy(), bad
        self.images, self.published = self, published

    def __len__(self):
        return len(self.inputs)

    def name(self, index):
        return f"vector-{index}"

    problem = name

    def __getitem__(self, item):
        index = item[1]
        if index in self.bad:
            return self.inputs[0], int(self.targets[0]), index
        return self.inputs[index], int(self.targets[index]), -1


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


def test_what_cannot_be_read_is_in_no_score(tmp_path, caplog):
    """The scores are those of the others, on any batch; predictions tell who is missing."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(40, 5), torch.randint(3, (40,))
    model, precision = nn.Linear(5, 3), Precision("none", torch.device("cpu"))
    bad = (0, 7, 8, 9, 10, 11, 12, 13, 39)  # a whole batch of 7 among them
    rest = [i for i in range(40) if i not in bad]
    whole = Batches(Vectors(inputs[rest], targets[rest]), 100, training=False)
    expected = evaluate(model, whole, nn.Identity(), precision)
    assert "unreadable" not in expected
    for batch_size in (1, 7, 100):
        batches = Batches(Vectors(inputs, targets, bad), batch_size, training=False)
        found = evaluate(model, batches, nn.Identity(), precision, str(tmp_path))
        assert found.pop("unreadable") == 9 and found == pytest.approx(expected)
    predictions = np.load(tmp_path / "test_predictions.npy")
    assert np.flatnonzero(predictions[:, 0] == -1).tolist() == list(bad)
    assert np.array_equal(predictions[:, 1], targets.numpy())
    about = json.loads((tmp_path / "test_predictions.json").read_text())
    assert about["unreadable"] == [f"vector-{i}" for i in bad]
    assert "9 of 40 images cannot be read and are left out" in caplog.text
    assert "left out: vector-39" in caplog.text and "replaced" not in caplog.text


def test_a_published_set_is_whole_or_has_no_score():
    data = Vectors(torch.randn(8, 5), torch.zeros(8, dtype=torch.long), (2, 3), "Set-A")
    precision = Precision("none", torch.device("cpu"))
    with pytest.raises(RunError, match=r"Set-A: 2 of 8 images cannot be read \(vector-2, ve") as e:
        evaluate(nn.Linear(5, 3), Batches(data, 4, training=False), nn.Identity(), precision)
    assert e.value.status == 4 and "\n" not in str(e.value)
