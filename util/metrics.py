"""Running means of the losses, the check that they are finite, and what is written about them."""

import contextlib
import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata

import torch
from torch import Tensor

from util import distributed
from util.checkpoint import Progress
from util.errors import EXIT_NONFINITE, RunError

log = logging.getLogger(__name__)


class NonFiniteLoss(RunError):
    """A loss became NaN or infinite at `total_step` (optimiser steps done before it)."""

    status = EXIT_NONFINITE

    def __init__(self, total_step: int, terms: dict[str, float]):
        self.total_step, self.terms = total_step, terms
        shown = ", ".join(f"{name} {value:g}" for name, value in terms.items())
        super().__init__(f"the loss is not finite at step {total_step}: {shown}")


class Meters:
    """Means of an epoch's losses, kept on the device: nothing here waits for the GPU but `check`.

    The sums are float64 and part of the checkpoint, so a resumed epoch logs the same means.
    """

    def __init__(self, progress: Progress, device: torch.device):
        self.progress, self.device = progress, device
        self.names = list(progress.sums)
        self.sums = torch.tensor(list(progress.sums.values()), dtype=torch.float64, device=device)
        self.unchecked: list[tuple[int, Tensor]] = []

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Count one step's losses, scalars on the device."""
        if not self.names:
            self.names = list(losses)
            self.sums = torch.zeros(len(losses), dtype=torch.float64, device=self.device)
        values = torch.stack([losses[name].detach().double() for name in self.names])
        self.sums += values
        self.progress.count += 1
        self.unchecked.append((self.progress.total_steps, values))

    def check(self) -> dict[str, float]:
        """Agree over the ranks that every loss since the last check is finite.

        Returns:
            The means over those steps.

        Raises:
            NonFiniteLoss: on all ranks, for the first step that is not.
        """
        if not self.unchecked:
            return {}
        steps = [step for step, _ in self.unchecked]
        values = distributed.reduce_mean(torch.stack([v for _, v in self.unchecked])).cpu()
        self.unchecked.clear()
        for step, row in zip(steps, values, strict=True):
            if not row.isfinite().all():
                raise NonFiniteLoss(step, dict(zip(self.names, row.tolist(), strict=True)))
        return dict(zip(self.names, values.mean(0).tolist(), strict=True))

    def store(self) -> None:
        """Put the sums into the progress, for a checkpoint."""
        sums = distributed.reduce_mean(self.sums).tolist()
        self.progress.sums = dict(zip(self.names, sums, strict=True))

    def means(self) -> dict[str, float]:
        """The epoch's means so far, over all ranks."""
        self.store()
        return {name: total / self.progress.count for name, total in self.progress.sums.items()}

    def reset(self) -> None:
        """Start the next epoch's means."""
        self.progress.sums, self.progress.count = {}, 0
        self.names, self.sums = [], self.sums[:0]


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the normalised singular values of features [rows, D] (RankMe)."""
    features = features.float()
    singular = torch.linalg.svdvals(features - features.mean(0))
    share = singular / singular.sum().clamp_min(1e-12)
    return float(torch.exp(-(share * share.clamp_min(1e-12).log()).sum()))


class Journal:
    """`log.txt` (one JSON object per epoch) and TensorBoard scalars.

    log.txt holds nothing that depends on the clock: an interrupted and resumed run writes the
    same file as an undisturbed one.
    """

    def __init__(self, output_dir: str, progress: Progress):
        self.output_dir = output_dir
        self.path = os.path.join(output_dir, "log.txt")
        self.tensorboard = None
        if not distributed.is_main():
            return
        self.forget_after(progress.epoch)
        self.tensorboard = self._open(progress.total_steps or None)

    def _open(self, purge_step: int | None = None):
        """A TensorBoard writer; None, with a line in the log, where there can be none."""
        try:
            from torch.utils.tensorboard import SummaryWriter

            return SummaryWriter(self.output_dir, purge_step=purge_step)
        except ImportError:
            log.warning("no TensorBoard files: pip install tensorboard")
        except OSError as error:
            log.error("no TensorBoard files (%s): training goes on", error)
        return None

    def forget_after(self, epochs: int) -> None:
        """Drop lines of epochs that a resumed run will do again."""
        if not (distributed.is_main() and os.path.exists(self.path)):
            return
        kept = []
        with open(self.path) as file:
            for line in file:
                try:
                    if json.loads(line)["epoch"] < epochs:
                        kept.append(line)
                except (ValueError, KeyError, TypeError):
                    continue  # a line that a crash cut short
        with open(self.path + ".tmp", "w") as file:
            file.writelines(kept)
        os.replace(self.path + ".tmp", self.path)

    def epoch(self, numbers: Mapping[str, float | int]) -> None:
        """Append a line to log.txt."""
        if not distributed.is_main():
            return
        log.info("  ".join(f"{name} {_short(value)}" for name, value in numbers.items()))
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps(_finite(numbers)) + "\n")
        except OSError as error:
            log.error("log.txt could not be written (%s): training goes on", error)

    def last_line(self) -> dict:
        """The numbers of the last epoch in log.txt; empty where there is none."""
        try:
            with open(self.path) as file:
                lines = file.read().splitlines()
            return json.loads(lines[-1])
        except (OSError, IndexError, ValueError):
            return {}

    def scalars(self, numbers: Mapping[str, float], step: int) -> None:
        if self.tensorboard is None:
            return
        try:
            for name, value in numbers.items():
                self.tensorboard.add_scalar(name, value, step)
        except OSError as error:
            # A writer whose thread has died raises for ever: drop it and begin a new file.
            log.error("TensorBoard file lost (%s): training goes on", error)
            self.tensorboard = self._open()

    def image(self, name: str, image: Tensor, step: int) -> None:
        """An image [3, H, W], uint8 or in 0..1."""
        if self.tensorboard is not None:
            self.tensorboard.add_image(name, image, step)

    def close(self) -> None:
        if self.tensorboard is not None:
            self.tensorboard.close()


def write_results(
    path: str, numbers: Mapping[str, float | int | str], seconds: float, device: torch.device
) -> None:
    """Write a run's final numbers with what is needed to repeat them, as JSON."""
    record = _finite(numbers) | {
        "seconds": round(seconds, 1),
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "versions": {"python": sys.version.split()[0]} | _versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processes": distributed.world_size(),
    }
    with open(path + ".tmp", "w") as file:
        json.dump(record, file, indent=2)
    os.replace(path + ".tmp", path)


def _versions() -> dict[str, str]:
    """Versions of what a run's numbers and pixels come from, as far as it is installed."""
    found = {}
    for name in ("torch", "torchvision", "timm", "numpy", "pillow", "torchcodec"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _finite(numbers: Mapping) -> dict:
    """JSON has no NaN: null stands for it."""
    bad = {k: None for k, v in numbers.items() if isinstance(v, float) and not math.isfinite(v)}
    return dict(numbers) | bad


def _short(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def commit() -> str:
    """The code's commit; a job runs a copy outside git and gets it from its launcher."""
    if "MIMAE_COMMIT" in os.environ:
        return os.environ["MIMAE_COMMIT"]
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    try:
        command = ["git", "-C", folder, "describe", "--always", "--dirty", "--exclude", "*"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
        return found.stdout.strip() or "unknown"
    except (OSError, subprocess.SubprocessError):
        return "unknown"
