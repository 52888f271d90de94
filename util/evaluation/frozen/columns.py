"""Features side by side, of some images, without a copy of what can take gigabytes."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class Columns:
    """Features [n, D] of several kinds side by side; only what is read is copied, in float32.

    Args:
        kinds: [N, D_k] each, of any floating type; D is the sum of the D_k.
        ids: of the n images that count, in their order (default: all N).
    """

    def __init__(self, kinds: Sequence[Tensor], ids: Tensor | None = None):
        self.kinds, self.ids = tuple(kinds), ids

    def __len__(self) -> int:
        return len(self.kinds[0] if self.ids is None else self.ids)

    @property
    def dim(self) -> int:
        return sum(kind.shape[1] for kind in self.kinds)

    @property
    def device(self) -> torch.device:
        return self.kinds[0].device

    def to(self, device: torch.device) -> "Columns":
        ids = None if self.ids is None else self.ids.to(device)
        return Columns([kind.to(device) for kind in self.kinds], ids)

    def of(self, which: Tensor) -> "Columns":
        """Some of the images: ids, or True for those that count [n]."""
        which = (which.nonzero()[:, 0] if which.dtype == torch.bool else which).to(self.device)
        return Columns(self.kinds, which if self.ids is None else self.ids[which])

    def split(self, size: int) -> Iterator[Tensor]:
        """The features of `size` images after the other, [m, D]."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            rows = rows if self.ids is None else self.ids[rows]
            parts = [kind[rows].float() for kind in self.kinds]
            yield torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def as_columns(features: Tensor | Columns) -> Columns:
    """Features [n, D] as `Columns`, which stay as they are."""
    return features if isinstance(features, Columns) else Columns([features])


def mean_and_deviation(features: Columns, rows: int) -> tuple[Tensor, Tensor]:
    """Of each column, [D] each, from `rows` images at a time; a constant one has the deviation 1.

    In float64, but where the device has none (Apple's).
    """
    wide = torch.float32 if features.device.type == "mps" else torch.float64
    total = torch.zeros(features.dim, dtype=wide, device=features.device)
    for part in features.split(rows):
        total += part.sum(0, dtype=wide)
    mean, squares = total / len(features), torch.zeros_like(total)
    for part in features.split(rows):
        squares += (part - mean.to(part)).square_().sum(0, dtype=wide)
    deviation = (squares / len(features)).sqrt()
    is_constant = deviation <= 1e-6 * deviation.max()
    return mean.float(), deviation.masked_fill(is_constant, 1.0).float()
