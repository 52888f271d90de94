"""k-NN and logistic regression of main_evaluate beside DINO's rule and scikit-learn's.

On features that are drawn at random around the mean of their class. DINO's rule runs from a clone
of its code (--dino); scikit-learn gives its neighbours the same votes.
"""

import argparse
import math
import pathlib
import sys
from types import SimpleNamespace

import torch
from torch import Tensor

from benchmarks.peers.pairs import Entry, Pair, importing, repeated
from util.errors import UsageError

K, TEMPERATURE, DINOS_KS = 20, 0.07, (10, 20, 100, 200)
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
FULL = dict(train=20000, test=2000, dim=384, classes=100)
TINY = dict(train=400, test=200, dim=8, classes=8)


def pairs(args: argparse.Namespace) -> list[Pair]:
    """Raises: UsageError: --dino is no clone of DINO's code."""
    work = SimpleNamespace(threads=args.threads, dino=args.dino, **(TINY if args.tiny else FULL))
    if args.dino and not (pathlib.Path(args.dino) / "eval_knn.py").is_file():
        raise UsageError(f"--dino {args.dino} has no eval_knn.py: name a clone of DINO's code")
    no_dino = "" if args.dino else \
        "--dino FOLDER, a clone of https://github.com/facebookresearch/dino"  # fmt: skip
    of = f"{work.train} + {work.test} features of {work.dim}, {work.classes} classes"
    return [
        Pair(f"k-NN, k {K}: {of}", "evaluation", [
            Entry("ours", our_knn, (work, (K,))),
            Entry("DINO's eval_knn", dinos_knn, (work, (K,)), 1.2, missing=no_dino),
            Entry("scikit-learn, cosine", sklearn_knn, (work,), 1.5, needs=("sklearn",)),
        ]),
        Pair(f"k-NN, k {', '.join(map(str, DINOS_KS))}: {of}", "evaluation", [
            Entry("ours, one search", our_knn, (work, DINOS_KS)),
            Entry("DINO's eval_knn", dinos_knn, (work, DINOS_KS), 4.0, missing=no_dino),
        ]),
        Pair(f"logistic regression, one penalty: {of}", "fit and prediction", [
            Entry("ours", our_regression, (work, (1e-3,))),
            Entry("scikit-learn", sklearn_regression, (work, (1e-3,)), 1.5, needs=("sklearn",)),
        ]),
        Pair(f"logistic regression, {len(PENALTIES)} penalties: {of}", "fit and prediction", [
            Entry("ours, together", our_regression, (work, PENALTIES)),
            Entry("scikit-learn, one after the other", sklearn_regression, (work, PENALTIES), 1.5,
                  needs=("sklearn",)),
        ]),
    ]  # fmt: skip


def features(work: SimpleNamespace) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Features [n, D] and classes [n] for training and for testing."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(work.classes, work.dim, generator=draw)
    spread = 0.18 * math.sqrt(work.dim)  # some neighbours are wrong
    parts = []
    for count in (work.train, work.test):
        labels = torch.randint(work.classes, (count,), generator=draw)
        noise = torch.randn(count, work.dim, generator=draw)
        parts.append((centres[labels] + spread * noise + 0.5, labels))
    return tuple(parts)


def percent(predicted: Tensor, truth: Tensor) -> str:
    return f"{100 * (predicted == truth).float().mean().item():.2f}"


# ------------------------------------------------------------------------------------ neighbours


def our_knn(work: SimpleNamespace, ks: tuple[int, ...]):
    with importing() as libraries:
        from util.evaluation.frozen.knn import predict_knn_grid

    torch.set_num_threads(work.threads)
    train, (queries, truth) = features(work)
    ks = tuple(min(k, work.train) for k in ks)

    def accuracies() -> list[str]:
        grid = predict_knn_grid(train, queries, ks, (TEMPERATURE,))
        return [percent(grid[k, TEMPERATURE], truth) for k in ks]

    return repeated(accuracies), libraries | {"right": " ".join(accuracies())}


def dinos_knn(work: SimpleNamespace, ks: tuple[int, ...]):
    """The rule of DINO's eval_knn.py, with the normalisation of features before it."""
    torch.set_num_threads(work.threads)
    sys.path.insert(0, work.dino)
    with importing() as libraries:
        from eval_knn import knn_classifier

    (train, labels), (queries, truth) = features(work)

    def accuracies() -> list[str]:
        known, asked = (
            torch.nn.functional.normalize(part, dim=1, p=2) for part in (train, queries)
        )
        options = dict(T=TEMPERATURE, num_classes=work.classes)
        return [
            f"{knn_classifier(known, labels, asked, truth, min(k, work.train), **options)[0]:.2f}"
            for k in ks
        ]

    return repeated(accuracies), libraries | {"right": " ".join(accuracies())}


def sklearn_knn(work: SimpleNamespace):
    with importing() as libraries:
        import numpy as np
        from sklearn.neighbors import KNeighborsClassifier

    limit_threads(work)
    (train, labels), (queries, truth) = features(work)

    def votes(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / TEMPERATURE)

    def accuracy() -> str:
        model = KNeighborsClassifier(K, weights=votes, metric="cosine", algorithm="brute")
        model.fit(train.numpy(), labels.numpy())
        return percent(torch.from_numpy(model.predict(queries.numpy())), truth)

    return repeated(accuracy), libraries | {"right": accuracy()}


# ------------------------------------------------------------------------------------ regression


def our_regression(work: SimpleNamespace, penalties: tuple[float, ...]):
    with importing() as libraries:
        from util.evaluation.frozen import logistic

    torch.set_num_threads(work.threads)
    train, (queries, truth) = features(work)

    def fitted() -> tuple[list[str], list[float]]:
        heads = logistic.fit(*train, work.classes, penalties)
        scores = [percent(found, truth) for found in heads.predict(queries)]
        objectives = [
            objective(weight, bias, (train[0] - heads.mean) / heads.scale, train[1], penalty)
            for weight, bias, penalty in zip(heads.weight, heads.bias, penalties, strict=True)
        ]
        return scores, objectives

    def fit() -> None:
        heads = logistic.fit(*train, work.classes, penalties)
        heads.predict(queries)

    return repeated(fit), libraries | told(*fitted())


def sklearn_regression(work: SimpleNamespace, penalties: tuple[float, ...]):
    with importing() as libraries:
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

    limit_threads(work)
    (train, labels), (queries, truth) = features(work)

    def fitted(wanted: tuple[float, ...]):
        scaler = StandardScaler()
        inputs = scaler.fit_transform(train.numpy())
        for penalty in wanted:
            model = LogisticRegression(C=1 / (len(inputs) * penalty), max_iter=300)
            model.fit(inputs, labels.numpy())
            predicted = torch.from_numpy(model.predict(scaler.transform(queries.numpy())))
            yield model, predicted, torch.from_numpy(inputs)

    scores, objectives = [], []
    for penalty, (model, predicted, inputs) in zip(penalties, fitted(penalties), strict=True):
        weight, bias = torch.from_numpy(model.coef_).T, torch.from_numpy(model.intercept_)
        scores.append(percent(predicted, truth))
        objectives.append(objective(weight, bias, inputs, labels, penalty))
    return repeated(lambda: list(fitted(penalties))), libraries | told(scores, objectives)


def objective(
    weight: Tensor, bias: Tensor, inputs: Tensor, labels: Tensor, penalty: float
) -> float:
    """Mean cross-entropy + penalty / 2 · ‖W‖², in float64, of weight [D, C] and bias [C]."""
    weight, loss = weight.double(), 0.0
    for part, truth in zip(inputs.split(1000), labels.split(1000), strict=True):  # in little memory
        logits = part.double() @ weight + bias.double()
        loss += torch.nn.functional.cross_entropy(logits, truth, reduction="sum").item()
    return loss / len(inputs) + penalty / 2 * weight.square().sum().item()


def told(scores: list[str], objectives: list[float]) -> dict[str, str]:
    """Shown of each fit: accuracy, and how low its objective has come."""
    return {"right": " ".join(scores), "objective": " ".join(f"{x:.5f}" for x in objectives)}


def limit_threads(work: SimpleNamespace) -> None:
    """scikit-learn and numpy take as many threads as the others."""
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(work.threads)
    threadpool_limits(work.threads)
