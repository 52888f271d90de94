"""k-NN against a brute-force reference."""

import numpy as np
import pytest
import torch
from torch import nn

from util.data.loader import Batches
from util.evaluation.knn import extract_features, weighted_knn
from util.training.precision import Precision


def knn_by_loops(train, test, k, temperature):
    """Accuracy in percent: one query at a time, neighbours by sorting, votes in a dictionary."""
    features, targets = (t.double().numpy() for t in train)
    hits = 0
    for query, target in zip(test[0].double().numpy(), test[1].numpy(), strict=True):
        norms = np.linalg.norm(features, axis=1) * np.linalg.norm(query)
        similarity = features @ query / norms
        votes = {}
        for i in np.argsort(-similarity)[:k]:
            votes[targets[i]] = votes.get(targets[i], 0) + np.exp(similarity[i] / temperature)
        hits += max(votes, key=votes.get) == target
    return 100 * hits / len(test[0])


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (1000, 0.07)])
def test_weighted_knn_is_brute_force(k, temperature):
    torch.manual_seed(0)
    centres = torch.randn(4, 6)
    sets = []
    for count in (150, 80):
        targets = torch.randint(4, (count,))
        sets.append((centres[targets] + 1.5 * torch.randn(count, 6), targets))
    expected = knn_by_loops(*sets, k, temperature)
    assert 30 < expected < 100
    assert weighted_knn(*sets, k=k, temperature=temperature, chunk=32) == pytest.approx(expected)


def test_a_low_temperature_is_the_nearest_neighbour():
    torch.manual_seed(0)
    train = (torch.randn(60, 4), torch.randint(3, (60,)))
    test = (torch.randn(40, 4), torch.randint(3, (40,)))
    nearest = weighted_knn(train, test, k=1)
    assert weighted_knn(train, test, k=20, temperature=1e-3) == pytest.approx(nearest)


def test_features_come_in_the_order_of_the_set():
    class Numbers(torch.utils.data.Dataset):
        images = None

        def __len__(self):
            return 10

        def __getitem__(self, item):
            return torch.full((1, 2, 2), item[1], dtype=torch.uint8), item[1] * 3, -1

    encoder = nn.Flatten().train()
    batches = Batches(Numbers(), 4, training=False)
    precision = Precision("none", torch.device("cpu"))
    features, targets = extract_features(encoder, batches, nn.Identity(), precision)
    assert features.shape == (10, 4) and features.dtype == torch.float32
    assert features[:, 0].tolist() == list(range(10))
    assert targets.tolist() == [3 * i for i in range(10)]
    assert encoder.training
