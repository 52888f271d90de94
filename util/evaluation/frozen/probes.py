"""The evaluations of frozen features: k-NN, logistic regression, few labels.

Everything that is chosen (a regularisation, a kind of feature, k and its temperature) is chosen on
a tenth of the training set that is held out, never on a test set. Features are given by kind, each
[n, D] in the order of its image set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from util.data.few_labels import balanced_draw, held_out
from util.evaluation.frozen import logistic
from util.evaluation.frozen.knn import predict_knn_grid

KS, TEMPERATURES = (5, 10, 20, 50, 100, 200), (0.07, 0.1, 0.2)
KNN = (20, 0.07)  # the setting that is compared between papers
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
FEW_PENALTY = 0.1  # fixed: few labels leave none to choose it by
BOTH = "both"

ByKind = Mapping[str, Tensor]


@dataclass
class TestSet:
    """A test set's features by kind, and its truth: labels [n], or each image's right labels."""

    features: ByKind
    truth: Tensor | Sequence[frozenset[int]]

    def right(self, predicted: Tensor) -> np.ndarray:
        """True where a prediction [n] is right; images without any label are left out."""
        if isinstance(self.truth, Tensor):
            return (predicted.cpu() == self.truth).numpy()
        pairs = zip(predicted.tolist(), self.truth, strict=True)
        return np.array([label in labels for label, labels in pairs if labels], dtype=bool)


@dataclass
class Probe:
    """One evaluation: its setting in words, and for each test set which images were right."""

    chosen: str
    right: dict[str, np.ndarray] = field(default_factory=dict)  # by test set, [n]
    others: dict[str, float] = field(default_factory=dict)  # percentages on the first test set

    def accuracy(self, name: str) -> float:
        """Accuracy on a test set, percent."""
        return 100 * float(np.mean(self.right[name]))


def held_out_tenth(targets: Tensor) -> Tensor:
    """True for the tenth of each class that is held out to choose settings on, [n]."""
    return torch.from_numpy(held_out(targets.numpy()))


def with_both(features: ByKind) -> dict[str, Tensor]:
    """The features by kind and, where there are several kinds, all side by side as BOTH."""
    kinds = dict(features)
    if len(kinds) > 1:
        kinds[BOTH] = torch.cat([value.float() for value in features.values()], dim=1)
    return kinds


def knn(
    train: ByKind, targets: Tensor, tests: Mapping[str, TestSet], device: torch.device
) -> dict[str, Probe]:
    """k-NN of each kind of feature in the standard setting, and `k-NN, chosen`.

    The latter has the kind, k and temperature that are best on the held-out tenth; `others` has
    the accuracies of the whole grid.
    """
    is_held, found, best = held_out_tenth(targets), {}, (-1.0, "", KNN)
    for kind, features in train.items():
        rest = (features[~is_held], targets[~is_held])
        grid = predict_knn_grid(rest, features[is_held], KS, TEMPERATURES, device)
        scores = {s: _percent(p, targets[is_held]) for s, p in grid.items()}
        setting = max(scores, key=scores.get)
        best = max(best, (scores[setting], kind, setting), key=lambda entry: entry[0])
        probe = Probe(f"{kind}, k {KNN[0]}, temperature {KNN[1]:g}")
        for name, test in tests.items():
            grid = predict_knn_grid(
                (features, targets), test.features[kind], KS, TEMPERATURES, device
            )
            probe.right[name] = test.right(grid[KNN])
            if not probe.others:
                probe.others = {
                    f"k {k}, temperature {t:g}": 100 * float(test.right(p).mean())
                    for (k, t), p in grid.items()
                }
        found[f"k-NN, {kind}"] = probe
    _, kind, (k, temperature) = best
    probe = Probe(f"{kind}, k {k}, temperature {temperature:g}")
    for name, test in tests.items():
        grid = predict_knn_grid(
            (train[kind], targets), test.features[kind], (k,), (temperature,), device
        )
        probe.right[name] = test.right(grid[k, temperature])
    return found | {"k-NN, chosen": probe}


def regression(
    train: ByKind, targets: Tensor, tests: Mapping[str, TestSet], device: torch.device
) -> dict[str, Probe]:
    """Logistic regression on each kind and on both; `logistic, chosen`: the kind best held out."""
    found, held = {}, {}
    kinds = with_both(train)
    views = {name: with_both(test.features) for name, test in tests.items()}
    for kind, features in kinds.items():
        penalty, held[kind] = choose_penalty(features, targets, device)
        heads = _fit(features, targets, [penalty], device)
        probe = Probe(f"{kind}, penalty {penalty:g}")
        for name, test in tests.items():
            probe.right[name] = test.right(heads.predict(views[name][kind].to(device))[0])
        found[f"logistic, {kind}"] = probe
    best = max(held, key=held.get)
    return found | {"logistic, chosen": found[f"logistic, {best}"]}


def choose_penalty(features: Tensor, targets: Tensor, device: torch.device) -> tuple[float, float]:
    """The penalty that is best on the held-out tenth, and its accuracy (percent) there."""
    is_held = held_out_tenth(targets)
    heads = _fit(features[~is_held], targets[~is_held], PENALTIES, device, _classes(targets))
    predicted = heads.predict(features[is_held].to(device)).cpu()
    scores = [_percent(row, targets[is_held]) for row in predicted]
    # The strongest of equals, so that a tie is no chance.
    best = max(range(len(scores)), key=lambda i: (scores[i], PENALTIES[i]))
    return PENALTIES[best], scores[best]


def few_labels(
    features: Tensor, targets: Tensor, test: Tensor, truth: TestSet, per_class: int | float,
    draws: int, device: torch.device, listed: Tensor | None = None,
) -> np.ndarray:  # fmt: skip
    """Which test images are right after training on few labels, by draw: [draws, n].

    Args:
        features, test: of one kind. truth: knows which are right. per_class: as the `amount` of
            `balanced_draw`. listed: ids of a published list, instead of draws.
    """
    rows = []
    for draw in range(1 if listed is not None else draws):
        drawn = listed if listed is not None else balanced_draw(targets.numpy(), per_class, draw)
        ids = torch.as_tensor(drawn)
        heads = _fit(features[ids], targets[ids], [FEW_PENALTY], device, _classes(targets))
        rows.append(truth.right(heads.predict(test.to(device))[0]))
    return np.stack(rows)


def _classes(targets: Tensor) -> int:
    return int(targets.max()) + 1


def _fit(
    features: Tensor, targets: Tensor, penalties: Sequence[float], device: torch.device,
    num_classes: int | None = None,
) -> logistic.Heads:  # fmt: skip
    classes = num_classes or _classes(targets)
    return logistic.fit(features.to(device), targets.to(device), classes, penalties)


def _percent(predicted: Tensor, targets: Tensor) -> float:
    return 100 * (predicted.cpu() == targets).float().mean().item()
