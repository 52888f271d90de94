"""run.jsonl: what a run keeps of its clock and its machine, which log.txt leaves out.

Each start adds to it, so that `util.reporting` can tell what a run was, warned of and lost. The
format is described in `util.reporting.run_folder`, which reads it.
"""

import argparse
import json
import logging
import math
import os
import resource
import shlex
import socket
import sys
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from util.cluster import distributed
from util.data.loader import Batches
from util.errors import first_line
from util.provenance import versions
from util.reporting.run_folder import FINISHED, RECORD
from util.reporting.single import write_report
from util.training import inputs
from util.training.checkpoint import Progress
from util.training.history import History

log = logging.getLogger(__name__)


class Record(logging.Handler):
    """Appends to run.jsonl, on rank 0, and writes the report; warnings that come before it is open
    are kept for it.

    Nothing that goes wrong with these files ends the run; the log says it once.
    """

    def __init__(self, args: argparse.Namespace, device: torch.device):
        super().__init__(logging.WARNING)
        self.args, self.device, self.file = args, device, None
        self.waiting: list[dict] = []
        self.is_lost = self.has_begun = self.has_ended = self.has_inputs = False
        self.is_hurried = False
        if distributed.is_main():
            logging.getLogger().addHandler(self)

    def begin(
        self, history: History, progress: Progress, batches: Batches | None = None,
        images_per_step: int = 0, model: nn.Module | None = None,
    ) -> None:  # fmt: skip
        """Open the file, and say what begins.

        Args:
            batches, model: of training; None: an evaluation.
        """
        if not distributed.is_main() or self.has_begun:
            return
        step = progress.total_steps
        args, settings = self.args, self.args.settings
        self.has_begun, self.has_inputs = True, step > 0
        follows = {"lr": "--blr"} if getattr(args, "blr", None) is not None else {}
        about = _machine(self.device) | {
            "step": step, "commit": history.commits[-1], "flags": settings.every(args),
            "flag_sources": settings.sources | follows, "groups": dict(settings.groups),
            "is_evaluation": model is None,
        }  # fmt: skip
        if model is not None:
            weights = sum(p.numel() for p in model.parameters())
            name, images = f"{args.dataset} {args.data_path}".rstrip(), len(batches.dataset)
            about |= {
                "data": f"{name}, {images} training images",
                "model_size": f"{args.model}, {weights / 1e6:.2f} M parameters",
                "batch": f"{images_per_step} images a step", "inputs": inputs.ABOUT,
            }  # fmt: skip
        path = os.path.join(args.output_dir, RECORD)
        try:
            self.file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - see close
            if not _ends_in_a_line(path):  # a crash, or a full disk, cut the last one short
                self.file.write("\n")
        except OSError as error:
            return self._lose(error)
        self.event("start", **about)
        waiting, self.waiting = self.waiting, []
        for line in waiting:
            self._write(line)

    def emit(self, record: logging.LogRecord) -> None:
        self.event("warning", level=record.levelname, text=record.getMessage())

    def event(self, name: str, **about: object) -> None:
        """Something that happened, now."""
        self._write({"event": name, "t": round(time.time(), 3)} | about)

    def seen(self, batch):
        """Pass on a micro-batch on its way to the model, images alone or before their targets; the
        run's first one is drawn to inputs.png."""
        if self.has_begun and not self.has_inputs:
            self.has_inputs = True
            images = batch[0] if isinstance(batch, tuple) else batch
            if not isinstance(images, Tensor) or images.ndim == 4:  # else features
                inputs.write_inputs(self.args.output_dir, images, self.args.mean, self.args.std)
        return batch

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of a step: of a log step, or of what looked at the model after it; and with them
        the peak of the memory."""
        numbers = {"memory_gib": _memory_gib(self.device)} | numbers
        rounded = {name: _rounded(value) for name, value in numbers.items()}
        self._write({"t": round(time.time(), 3), "step": step} | rounded)

    def end(self, step: int, error: BaseException | None = None) -> None:
        """The end of this start, at its last step: finished, or by what ended it."""
        if self.has_begun and not self.has_ended:
            reason = FINISHED if error is None else f"{_kind_of(error)}{first_line(error)}"
            self.event("end", step=step, reason=reason)
        self.has_ended, self.is_hurried = True, type(error) is KeyboardInterrupt

    def close(self) -> None:
        """Hear no more warnings, and write the report of what has begun."""
        if self.file is not None:
            self.file.close()
            self.file = None
            if not self.is_hurried:  # a second Ctrl-C waits for nothing
                write_report(self.args.output_dir)
        self.has_ended = True
        logging.getLogger().removeHandler(self)
        super().close()

    def _write(self, line: dict) -> None:
        if not distributed.is_main() or self.is_lost or self.has_ended:
            return
        if self.file is None:
            self.waiting.append(line)
            return
        try:
            self.file.write(json.dumps(line) + "\n")
        except (OSError, ValueError) as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        self.is_lost = True  # first: the line below is a warning, too
        log.warning("%s cannot be written (%s): the run is not touched by that", RECORD, error)


def _kind_of(error: BaseException) -> str:
    """What stands before an error that is none of the project's own."""
    is_own = type(error).__module__.startswith("util.")
    return "" if is_own else f"{type(error).__name__}: "


def _ends_in_a_line(path: str) -> bool:
    """Whether a text file is empty, or its last line is whole."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        return file.read() in (b"", b"\n")


def _machine(device: torch.device) -> dict[str, object]:
    """The command, and what it runs on."""
    is_gpu = device.type == "cuda"
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    return {
        "command": shlex.join(["python", *sys.argv]),
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name(device) if is_gpu else "CPU",
        "machine": f"{cores} cores, {torch.get_num_threads()} thread(s) a process",
        "processes": distributed.world_size(),
        "versions": {"python": sys.version.split()[0]} | versions(),
    }


def _memory_gib(device: torch.device) -> float:
    """The peak so far of this process, in GiB: of its GPU, or of its resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _rounded(value: float) -> float | None:
    """Six digits; JSON has no NaN."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
