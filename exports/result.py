"""What an export tells of itself: how it is loaded, and how near it is to its checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from util.errors import UsageError

# What rounding alone may do, as a share of the largest output where that is above 1.
LIMITS = {"timm": 1e-5, "huggingface": 1e-4, "onnx": 1e-4, "torch": 1e-4, "safetensors": 0.0}


@dataclass
class Written:
    """What a target has to tell of what it wrote.

    library: whose layout it is. load: lines of Python that load it from the folder `OUT`.
    differences: from the checkpoint's model, by the outputs' names; empty: not checked. notes:
    what the target has otherwise than the checkpoint.
    """

    library: str
    load: list[str]
    differences: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest absolute difference, as a share of the largest value where that is above 1.

    Raises:
        UsageError: another shape, or a number that is not finite.
    """
    if found.shape != expected.shape:
        raise UsageError(
            f"the export gives {list(found.shape)} where the checkpoint's model gives "
            f"{list(expected.shape)}: it is not written"
        )
    found, expected = found.detach().double(), expected.detach().double()
    value = ((found - expected).abs().max() / expected.abs().max().clamp(min=1.0)).item()
    if not torch.isfinite(torch.tensor(value)):
        raise UsageError("the model's outputs are not finite numbers: its weights are damaged")
    return value


def check(to: str, found: Mapping[str, float], slack: float = 1.0) -> None:
    """Refuse an export that is not the checkpoint's model.

    Args:
        found: differences by the outputs' names. slack: by what the limit is multiplied.

    Raises:
        UsageError: a difference above the limit.
    """
    for name, value in found.items():
        if value > LIMITS[to] * slack:
            raise UsageError(
                f"--to {to}: the {name} differs by {value:.2g} from the checkpoint's, more than "
                f"{LIMITS[to] * slack:g}: it is not written"
            )
