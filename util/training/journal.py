"""What a run writes about itself: log.txt, TensorBoard files and results.json."""

import json
import logging
import math
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from util.cluster import distributed
from util.errors import RunError
from util.progress import short
from util.provenance import commit, versions
from util.training.checkpoint import Progress
from util.training.tracker import Tracker

log = logging.getLogger(__name__)


class Journal:
    """`log.txt` (one JSON object per epoch) and TensorBoard scalars.

    log.txt holds nothing that depends on the clock: an interrupted and resumed run writes the
    same file as an undisturbed one.
    """

    def __init__(self, output_dir: str, progress: Progress, is_finished: bool = False):
        self.output_dir = output_dir
        self.path = os.path.join(output_dir, "log.txt")
        self.tensorboard = None
        self.tracker: Tracker | None = None  # --log_to
        if not distributed.is_main():
            return
        # A finished run's last epoch may have been cut short, and then does not count as one.
        self.forget_after(progress.epoch + is_finished)
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
        """Drop the lines of epochs from number `epochs` on, which a resumed run does again."""
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
        try:
            with open(self.path + ".tmp", "w") as file:
                file.writelines(kept)
            os.replace(self.path + ".tmp", self.path)
        except OSError as error:
            log.error("log.txt keeps epochs that are done again (%s): training goes on", error)

    def epoch(self, numbers: Mapping[str, float | int]) -> None:
        """Append a line to log.txt."""
        if not distributed.is_main():
            return
        log.info("  ".join(f"{name} {short(value)}" for name, value in numbers.items()))
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps(finite(dict(numbers))) + "\n")
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
        """Write numbers to TensorBoard, and where --log_to says, by their names."""
        if self.tracker is not None:
            self.tracker.log(numbers, step)

        def add(writer) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)

        self._to_tensorboard(add)

    def _to_tensorboard(self, act: Callable[[object], None]) -> None:
        if self.tensorboard is None:
            return
        try:
            act(self.tensorboard)
        except OSError as error:
            # A writer whose thread has died raises for ever: drop it and begin a new file.
            log.error("TensorBoard file lost (%s): training goes on", error)
            self.tensorboard = self._open()

    def text(self, name: str, lines: Mapping[str, str]) -> None:
        """Write a text of titles and what stands under them to TensorBoard."""
        text = "\n\n".join(f"**{title}**: {line}" for title, line in lines.items())
        self._to_tensorboard(lambda writer: writer.add_text(name, text))

    def image(self, name: str, image: Tensor, step: int) -> None:
        """Write an image [3, H, W], uint8 or in 0..1, to TensorBoard."""
        self._to_tensorboard(lambda writer: writer.add_image(name, image, step))

    def close(self) -> None:
        try:
            if self.tensorboard is not None:
                self.tensorboard.close()
        except OSError as error:
            log.error("TensorBoard file lost (%s)", error)
        if self.tracker is not None:
            self.tracker.close()


def write_results(
    path: str, numbers: Mapping[str, float | int | str], seconds: float | None,
    device: torch.device, flags: Mapping[str, object] | None = None,
    sources: Mapping[str, str] | None = None, commits: Sequence[str] = (),
) -> None:  # fmt: skip
    """Write a run's final numbers with what is needed to repeat them, as JSON.

    Args:
        seconds: of training; None, not known, becomes null.
        flags: the values of flags that can change the numbers.
        sources: where each flag is from that has not the parser's default.
        commits: of the code of all starts, the last one being this one's (default: the code's as
            it is); all of them are written where there were several.

    Raises:
        RunError: the disk is full, say.
    """
    record = finite(dict(numbers)) | {
        "seconds": None if seconds is None else round(seconds, 1),
        "command": shlex.join(["python", *sys.argv]),
        "commit": commits[-1] if commits else commit(),
        "versions": {"python": sys.version.split()[0]} | versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processes": distributed.world_size(),
        "flags": dict(flags or {}),
        "flag_sources": {name: source for name, source in (sources or {}).items() if name in flags},
    }
    if len(commits) > 1:
        record["commits"] = list(commits)
    try:
        with open(path + ".tmp", "w") as file:
            json.dump(record, file, indent=2)
        os.replace(path + ".tmp", path)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({error.strerror}): free space there, and start again as "
            "you did; --resume auto goes on from the end of a training"
        ) from None


def finite(value: object) -> object:
    """A value, or dicts and lists of values, as JSON can have them: null stands for NaN."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
