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
from util.evaluation.frozen.columns import Columns
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


def with_both(features: ByKind) -> dict[str, Columns]:
    """The features by kind and, where there are several kinds, all side by side as BOTH."""
    kinds = {kind: Columns([value]) for kind, value in features.items()}
    return kinds | ({BOTH: side_by_side(features)} if len(kinds) > 1 else {})


def side_by_side(features: ByKind) -> Columns:
    """All kinds beside each other, without a copy."""
    return Columns([*features.values()])


def knn(
    train: ByKind, targets: Tensor, tests: Mapping[str, TestSet], device: torch.device
) -> dict[str, Probe]:
    """k-NN of each kind of feature in the standard setting, and `k-NN, chosen`.

    The latter has the kind, k and temperature that are best on the held-out tenth; `others` has
    the accuracies of the whole grid.
    """
    is_held, found, best = held_out_tenth(targets), {}, (-1.0, "", KNN)
    for kind, features in train.items():
        rest = (Columns([features]).of(~is_held), targets[~is_held])
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
    targets = targets.to(device)
    kinds = with_both({kind: features.to(device) for kind, features in train.items()})
    views = {name: with_both(test.features) for name, test in tests.items()}
    for kind, features in kinds.items():
        penalty, held[kind] = choose_penalty(features, targets)
        heads = logistic.fit(features, targets, _classes(targets), [penalty])
        probe = Probe(f"{kind}, penalty {penalty:g}")
        for name, test in tests.items():
            probe.right[name] = test.right(heads.predict(views[name][kind])[0])
        found[f"logistic, {kind}"] = probe
    best = max(held, key=held.get)
    return found | {"logistic, chosen": found[f"logistic, {best}"]}


def choose_penalty(features: Columns, targets: Tensor) -> tuple[float, float]:
    """The penalty that is best on the held-out tenth, and its accuracy (percent) there."""
    is_held = held_out_tenth(targets.cpu()).to(targets.device)
    rest = (features.of(~is_held), targets[~is_held])
    heads = logistic.fit(*rest, _classes(targets), PENALTIES)
    predicted = heads.predict(features.of(is_held))
    scores = [_percent(row, targets[is_held].cpu()) for row in predicted]
    # The strongest of equals, so that a tie is no chance.
    best = max(range(len(scores)), key=lambda i: (scores[i], PENALTIES[i]))
    return PENALTIES[best], scores[best]


def few_labels(
    features: Columns, targets: Tensor, test: TestSet, per_class: int | float,
    draws: int, device: torch.device, listed: Tensor | None = None,
) -> np.ndarray:  # fmt: skip
    """Which test images are right after training on few labels, by draw: [draws, n].

    All kinds of feature are used side by side.

    Args:
        features: of the training set. per_class: as the `amount` of `balanced_draw`.
        listed: ids of a published list, instead of draws.
    """
    rows, queries = [], side_by_side(test.features)
    for draw in range(1 if listed is not None else draws):
        drawn = listed if listed is not None else balanced_draw(targets.numpy(), per_class, draw)
        ids = torch.as_tensor(drawn)
        few = (features.of(ids).to(device), targets[ids].to(device))
        heads = logistic.fit(*few, _classes(targets), [FEW_PENALTY])
        rows.append(test.right(heads.predict(queries)[0]))
    return np.stack(rows)


def _classes(targets: Tensor) -> int:
    return int(targets.max()) + 1


def _percent(predicted: Tensor, targets: Tensor) -> float:
    return 100 * (predicted.cpu() == targets).float().mean().item()
