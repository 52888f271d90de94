"""A main run inside the test process, and what it left."""

import contextlib
import importlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from util.entry import run_main


@dataclass
class Outcome:
    """What a main left: exit status, what it printed, and its output folder's records."""

    status: int
    out: str
    err: str
    folder: Path | None = None

    def log(self) -> list[dict]:
        """The lines of log.txt, one per epoch."""
        return [json.loads(line) for line in (self.folder / "log.txt").read_text().splitlines()]

    def results(self) -> dict:
        return json.loads((self.folder / "results.json").read_text())


def captured(call: Callable[[], None], folder: Path | None = None) -> Outcome:
    """What a call prints, and the exit status with which it ends."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            call()
        except SystemExit as end:
            status = end.code or 0
    return Outcome(status, out.getvalue(), err.getvalue(), folder)


def run_program(name: str, *argv, folder: Path | None = None) -> Outcome:
    """Run a program in this process, without the seconds that importing torch takes."""
    program = importlib.import_module(name)
    words = [str(word) for word in argv]
    return captured(lambda: run_main(program.main, lambda: program.parse_args(words)), folder)


def run_in_process(name: str, *argv, folder: Path | None = None) -> Outcome:
    """Run a main on the CPU as its script would."""
    place = ["--output_dir", folder] if folder else []
    return run_program(name, *argv, "--device", "cpu", *place, folder=folder)
