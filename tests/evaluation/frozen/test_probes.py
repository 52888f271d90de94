"""Frozen evaluations against scikit-learn, and that nothing is chosen on a test set."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

import main_evaluate
from util.data.datasets import load_images
from util.errors import UsageError
from util.evaluation import paired
from util.evaluation.frozen import logistic, probes
from util.evaluation.frozen.columns import Columns
from util.evaluation.frozen.knn import predict_knn_grid
from util.evaluation.frozen.probes import TestSet

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    """Training and test features [n, 64] and labels, by other writers."""
    data = load_digits()
    features, targets = torch.tensor(data.data).float(), torch.tensor(data.target)
    return features[:1415], targets[:1415], features[1415:], targets[1415:]


@pytest.mark.parametrize("penalty", [1e-3, 1e-2, 1e-1])
def test_logistic_regression_is_scikit_learns(digits, penalty):
    train, targets, test, _ = digits
    heads = logistic.fit(train, targets, 10, [penalty, 1.0], max_iter=300, tolerance=1e-5)
    scale = StandardScaler().fit(train)
    model = LogisticRegression(C=1 / (len(train) * penalty), max_iter=5000, tol=1e-8)
    model.fit(scale.transform(train), targets)
    # Weights are unique up to what is common to all classes.
    weight = heads.weight[0].T.numpy()
    difference = (weight - weight.mean(0)) - (model.coef_ - model.coef_.mean(0))
    assert np.abs(difference).max() < 2e-2 * np.abs(model.coef_).max()
    expected = model.predict(scale.transform(test))
    assert (heads.predict(test)[0].numpy() == expected).mean() > 0.997  # ties by rounding


def test_heads_trained_together_are_those_trained_alone(digits):
    train, targets, test, _ = digits
    together = logistic.fit(train, targets, 10, [1e-3, 1e-1])
    for i, penalty in enumerate([1e-3, 1e-1]):
        alone = logistic.fit(train, targets, 10, [penalty])
        torch.testing.assert_close(together.weight[i], alone.weight[0], rtol=0.05, atol=5e-3)
        agree = (together.predict(test)[i] == alone.predict(test)[0]).float().mean()
        assert agree > 0.99


def test_constant_features_do_no_harm(digits):
    train, targets, test, _ = digits
    padded = torch.cat([train, torch.full((len(train), 2), 7.0)], 1)
    heads = logistic.fit(padded, targets, 10, [1e-2])
    same = logistic.fit(train, targets, 10, [1e-2])
    padded_test = torch.cat([test, torch.full((len(test), 2), 7.0)], 1)
    assert (heads.predict(padded_test) == same.predict(test)).float().mean() > 0.99


def test_one_search_serves_the_whole_grid(digits):
    train, targets, test, _ = digits
    grid = predict_knn_grid((train, targets), test, (1, 5, 5000), (0.07, 1e6))
    nearest = KNeighborsClassifier(1, metric="cosine").fit(train, targets).predict(test)
    assert (grid[1, 0.07].numpy() == nearest).all()
    # An endless temperature counts votes; as many neighbours as images elect the largest class.
    votes = KNeighborsClassifier(5, metric="cosine").fit(train, targets).predict(test)
    assert (grid[5, 1e6].numpy() == votes).mean() > 0.98  # ties are broken otherwise
    assert (grid[5000, 1e6] == targets.bincount().argmax()).all()


def test_nothing_is_chosen_on_the_test_set():
    """One kind is right in training and wrong in the test set, the other the reverse."""
    torch.manual_seed(0)
    targets = torch.randint(3, (300,))
    truth = torch.randint(3, (90,))
    clean, noise = torch.eye(3)[targets], torch.randn(300, 3)
    train = {"a": clean + 0.05 * torch.randn(300, 3), "b": noise}
    test = TestSet(
        {"a": torch.randn(90, 3), "b": torch.eye(3)[truth] + 0.05 * torch.randn(90, 3)}, truth
    )
    for found in (
        probes.regression(train, targets, {"val": test}, CPU),
        probes.knn(train, targets, {"val": test}, CPU),
    ):
        name, chosen = next((n, p) for n, p in found.items() if "chosen" in n)
        assert chosen.chosen.startswith(("a", "both")), name
        assert chosen.accuracy("val") < 60


def test_the_strongest_of_equal_penalties_is_taken():
    targets = torch.arange(2).repeat(100)
    features = torch.eye(2)[targets]
    assert probes.choose_penalty(Columns([features]), targets) == (max(probes.PENALTIES), 100.0)


def test_any_of_an_images_labels_is_right_and_images_without_do_not_count():
    labels = [frozenset({1, 2}), frozenset(), frozenset({0}), frozenset({2})]
    test = TestSet({}, labels)
    assert test.right(torch.tensor([2, 0, 0, 1])).tolist() == [True, True, False]


# ------------------------------------------------------------------------------------- differences


def test_mcnemar_by_hand():
    first = np.array([1] * 9 + [0] * 1 + [1] * 50, bool)
    second = np.array([0] * 9 + [1] * 1 + [1] * 50, bool)
    assert paired.mcnemar(first, second) == pytest.approx(2 * (1 + 10) / 2**10)
    assert paired.mcnemar(first, first) == 1.0


def test_planted_duplicates_differ_by_nothing():
    right = 100.0 * (np.random.default_rng(0).random(500) < 0.8)
    same = paired.compare(right, right)
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    assert same.verdict == "no difference (within ±1)"


def test_the_interval_covers_the_truth():
    """Of pairs of encoders that are equally good, or 3 points apart, in 95 % of 400 test sets."""
    rng, hits = np.random.default_rng(1), 0
    for trial in range(400):
        easy = rng.random(400)
        shift = 0.03 * (trial % 2)
        one, other = (rng.random(400) < np.clip(easy + s, 0, 1) for s in (shift, 0.0))
        truth = 100 * (np.clip(np.linspace(0, 1, 10001) + shift, 0, 1).mean() - 0.5)
        found = paired.compare(100.0 * one, 100.0 * other, num_boots=100)
        hits += found.low <= truth <= found.high
    assert 0.91 < hits / 400 < 0.98


def test_the_interval_of_few_labels_covers_the_draws_too():
    """Two encoders that are equally good in the mean over draws, but not in each."""
    rng, hits, of_images = np.random.default_rng(1), 0, 0
    for _ in range(200):
        chance = 0.5 + 0.05 * rng.standard_normal((2, 5, 1))  # by encoder and draw
        one, other = 100.0 * (rng.random((2, 5, 400)) < chance)
        found = paired.compare_draws(one, other, num_boots=100)
        hits += found.low <= 0 <= found.high
        alone = paired.compare(one.mean(0), other.mean(0), num_boots=100)
        of_images += alone.low <= 0 <= alone.high
    assert hits / 200 > 0.93 and of_images / 200 < 0.85
    one_draw = paired.compare_draws(one[:1], other[:1])
    same = paired.compare(one[0], other[0])
    assert (one_draw.low, one_draw.high) == (same.low, same.high)


def test_fashion_mnist_is_scikit_learns_to_a_tenth_of_a_point():
    """Pixels pooled to 7 x 7, 4000 training and 10 000 test images."""
    args = main_evaluate.parse_args(["pixels", "--dataset", "fashion_mnist"])
    try:
        sets = [load_images(args, split) for split in ("train", "val")]
    except UsageError:
        pytest.skip("Fashion-MNIST is not on this machine")
    (train, targets), (test, truth) = (
        (F.avg_pool2d(torch.stack([s.read(i) for i in range(n)]).float(), 4).flatten(1),
         torch.from_numpy(s.targets[:n]).long())
        for s, n in zip(sets, (4000, 10000), strict=True)
    )  # fmt: skip
    heads = logistic.fit(train, targets, 10, [1e-2])
    scale = StandardScaler().fit(train)
    model = LogisticRegression(C=1 / 40, max_iter=3000, tol=1e-6)
    model.fit(scale.transform(train), targets)
    ours = (heads.predict(test)[0] == truth).float().mean()
    assert abs(ours - (model.predict(scale.transform(test)) == truth.numpy()).mean()) <= 1e-3
    near = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    near.fit(train, targets)
    ours = (predict_knn_grid((train, targets), test, (20,), (0.07,))[20, 0.07] == truth).float()
    assert abs(ours.mean() - near.score(test, truth)) <= 1e-3
