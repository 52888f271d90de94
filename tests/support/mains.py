"""A main run inside the test process, and what it left."""

import contextlib
import importlib
import io
import json
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


def run_in_process(name: str, *argv, folder: Path | None = None) -> Outcome:
    """Run a main on the CPU as its script would, without the seconds that importing torch takes."""
    main = importlib.import_module(name)
    words = [str(word) for word in argv] + ["--device", "cpu"]
    words += ["--output_dir", str(folder)] if folder else []
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_main(main.main, lambda: main.parse_args(words))
        except SystemExit as end:
            status = end.code or 0
    return Outcome(status, out.getvalue(), err.getvalue(), folder)
