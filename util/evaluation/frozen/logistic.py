"""Logistic regressions on frozen features: many at once, each to its optimum.

H heads differ in their regularisation and see the same features, so one pass over the features
serves them all; the objective is convex, so L-BFGS needs no learning rate and no seed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from util.evaluation.frozen.columns import Columns, as_columns, mean_and_deviation

HISTORY = 10  # steps that L-BFGS remembers
CHUNK_BYTES = 2**27  # of the logits, and of the features, that are held at once


@dataclass
class Heads:
    """H trained heads (linear classifiers) on standardised features.

    weight: [H, D, C]. bias: [H, C]. mean, scale: [D], by which features are standardised.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor

    def predict(self, features: Tensor | Columns) -> Tensor:
        """Classes of features [n, D], by head: [H, n]."""
        heads, dim, num_classes = self.weight.shape
        rows = _rows_at_once(heads * num_classes, dim)
        parts = [self.logits(part).argmax(2) for part in as_columns(features).split(rows)]
        empty = self.weight.new_empty((heads, 0), dtype=torch.long)
        return torch.cat([empty, *parts], dim=1)

    def logits(self, features: Tensor) -> Tensor:
        """The logits of features [n, D], by head: [H, n, C]."""
        inputs = (features.to(self.mean) - self.mean).div_(self.scale)
        return inputs @ self.weight + self.bias[:, None]


def fit(
    features: Tensor | Columns, targets: Tensor, num_classes: int, penalties: Sequence[float],
    max_iter: int = 300, tolerance: float = 1e-3, like: Tensor | Columns | None = None,
) -> Heads:  # fmt: skip
    """Minimise mean cross-entropy + penalty / 2 · ‖W‖² for each penalty.

    scikit-learn's `C` is 1 / (n · penalty). The bias is not penalised; features are standardised
    by their own mean and standard deviation first. They are computed with in float32, some images
    at a time, so that ImageNet's take no more memory than they have.

    Args:
        features: [n, D], of any floating type.
        targets: [n] in 0 … C − 1. penalties: H numbers above 0.
        tolerance: stop when the gradient's largest entry is below this share of that at the start.
        like: features [m, D] by whose mean and deviation they are standardised, in place of theirs.
    """
    features = as_columns(features)
    heads, dim = len(penalties), features.dim
    rows = _rows_at_once(heads * num_classes, dim)
    mean, scale = mean_and_deviation(features if like is None else as_columns(like), rows)
    shape = (heads, dim + 1, num_classes)  # the last row is the bias
    penalty = mean.new_tensor(penalties)[:, None, None].expand(heads, dim + 1, 1).clone()
    penalty[:, -1] = 0

    standardised = _standardised(features, mean, scale, rows)

    def objective(flat: Tensor) -> tuple[Tensor, Tensor]:
        """Values [H] and gradients [H, P] at weights [H, P]."""
        weight = flat.view(shape)
        value = (penalty * weight.square()).sum((1, 2)) / 2
        gradient = penalty * weight
        for inputs, labels in zip(standardised(), targets.split(rows), strict=True):
            log_p = (inputs @ weight[:, :-1] + weight[:, -1:]).log_softmax(2)  # [H, m, C]
            value -= log_p.gather(2, labels.expand(heads, -1)[..., None]).sum((1, 2)) / len(
                features
            )
            error = log_p.exp_()
            error.scatter_add_(
                2, labels.expand(heads, -1)[..., None], -error.new_ones(heads, len(inputs), 1)
            )
            error /= len(features)
            gradient[:, :-1] += inputs.T @ error
            gradient[:, -1] += error.sum(1)
        return value, gradient.flatten(1)

    start = mean.new_zeros(heads, shape[1] * shape[2])
    best = minimise(objective, start, max_iter, tolerance).view(shape)
    return Heads(best[:, :-1], best[:, -1], mean, scale)


def _standardised(
    features: Columns, mean: Tensor, scale: Tensor, rows: int
) -> Callable[[], Iterable[Tensor]]:
    """Makes passes over the features, `rows` at a time: [m, D] each.

    A single part is standardised once and kept; of several, each anew in each pass, in its memory.
    """

    def parts() -> Iterator[Tensor]:
        return ((part - mean).div_(scale) for part in features.split(rows))

    if len(features) > rows:
        return parts
    kept = list(parts())
    return lambda: kept


def minimise(objective, x: Tensor, max_iter: int, tolerance: float) -> Tensor:
    """L-BFGS [Nocedal 1980] of H independent smooth convex functions, each with steps of its own.

    Args:
        objective: x [H, P] -> values [H] and gradients [H, P]. x: where to start.
    """
    value, gradient = objective(x)
    target = tolerance * gradient.abs().amax(1).clamp_min(1e-12)
    memory: list[
        tuple[Tensor, Tensor, Tensor]
    ] = []  # steps, changes of the gradient, 1 / their product
    for _ in range(max_iter):
        is_open = gradient.abs().amax(1) > target  # [H]
        if not is_open.any():
            break
        direction = -_inverse_hessian(memory, gradient)
        slope = (direction * gradient).sum(1)
        direction = torch.where((slope < 0)[:, None], direction, -gradient)
        slope = torch.where(slope < 0, slope, -gradient.square().sum(1))
        length = torch.where(is_open, 1.0, 0.0)
        if not memory:
            length = length / gradient.abs().sum(1).clamp_min(1)
        for _ in range(30):  # Armijo: halve the step of each head that does not descend
            new_x = x + length[:, None] * direction
            new_value, new_gradient = objective(new_x)
            fails = (new_value > value + 1e-4 * length * slope + 1e-7 * value.abs()) & is_open
            if not fails.any():
                break
            length = torch.where(fails, length / 2, length)
        step, change = new_x - x, new_gradient - gradient
        product = (step * change).sum(1)
        # A head without curvature in this step keeps its estimate: its entry counts nothing.
        inverse = torch.where(product > 1e-10, 1 / product.clamp_min(1e-10), 0.0)
        memory = [*memory[-HISTORY + 1 :], (step, change, inverse)]
        x, value, gradient = new_x, new_value, new_gradient
    return x


def _inverse_hessian(memory: list[tuple[Tensor, Tensor, Tensor]], gradient: Tensor) -> Tensor:
    """The two-loop recursion: L-BFGS's estimate times the gradients [H, P]."""
    result, factors = gradient.clone(), []
    for step, change, inverse in reversed(memory):
        factor = inverse * (step * result).sum(1)
        result -= factor[:, None] * change
        factors.append(factor)
    if memory:
        step, change, inverse = memory[-1]
        scale = (step * change).sum(1) / change.square().sum(1).clamp_min(1e-20)
        result *= torch.where(inverse > 0, scale, 1.0)[:, None]
    for (step, change, inverse), factor in zip(memory, reversed(factors), strict=True):
        back = inverse * (change * result).sum(1)
        result += (factor - back)[:, None] * step
    return result


def _rows_at_once(num_logits: int, dim: int) -> int:
    """Images whose logits, and features, fit into CHUNK_BYTES."""
    return max(1, CHUNK_BYTES // (4 * max(num_logits, dim)))
