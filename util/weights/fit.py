"""Whether a state dict fits a model, in words, and loading one that must fit."""

from collections.abc import Mapping

import torch
from torch import nn

from util.errors import UsageError


def differences(
    expected: dict[str, torch.Tensor], state: dict[str, torch.Tensor]
) -> tuple[list[str], list[str], list[str]]:
    """Keys of `expected` that a state dict lacks, its keys that are not expected, and the shapes
    that differ, in words."""
    missing = [key for key in expected if key not in state]
    unknown = [key for key in state if key not in expected]
    shapes = [
        f"{key} {list(state[key].shape)} instead of {list(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    return missing, unknown, shapes


def in_words(found: tuple[list[str], list[str], list[str]]) -> str:
    """What `differences` found, on one line; empty where nothing differs."""
    parts = zip(("missing", "unknown", "other shapes:"), found, strict=True)
    return "; ".join(
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for what, keys in parts
        if keys
    )


def require_finite(state: Mapping[str, torch.Tensor], named: str) -> None:
    """Raise UsageError where a checkpoint has a weight that is not finite."""
    for key, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UsageError(
                f"{named} has weights that are not finite, such as {key}: take an earlier "
                "checkpoint"
            )


def load_weights(
    model: nn.Module, state: dict[str, torch.Tensor], path: str, may_miss: tuple[str, ...] = (),
    check: str = "--model and --input_size",
) -> None:  # fmt: skip
    """Load a state dict whose every key and shape must fit, but for prefixes that may be missing.

    Args:
        check: what the error tells the user to check.

    Raises:
        UsageError: the checkpoint is of another architecture, and the line says which keys and
            shapes; or it has a weight that is not finite.
    """
    missing, unknown, shapes = differences(model.state_dict(), state)
    missing = [key for key in missing if not key.startswith(may_miss)]
    found = in_words((missing, unknown, shapes))
    if found:
        raise UsageError(f"{path} is of another architecture: {found}. Check {check}")
    require_finite(state, path)
    model.load_state_dict(state, strict=False)
