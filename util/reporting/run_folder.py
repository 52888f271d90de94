"""What a run's folder tells, finished or not: log.txt, run.jsonl, results.json, predictions.

`run.jsonl` is written by `util.training.record`, an object a line:

    {"event": "start", "t": seconds since 1970, "step": where it begins, "command": …, "flags": …}
    {"t": …, "step": …, "loss": …, "images_per_second": …, …}     at log steps
    {"event": "warning", "t": …, "level": …, "text": …}
    {"event": "rollback", "t": …, "step": of the NaN, "to": …, "reason": …}
    {"event": "end", "t": …, "step": …, "reason": "finished", or what ended it}
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from util.reporting.columns import Columns

LOG, RECORD, RESULTS, INPUTS = "log.txt", "run.jsonl", "results.json", "inputs.png"
REPORT = "report.html"
FINISHED = "finished"


@dataclass
class Start:
    """One start of a run, and how it went.

    Args:
        about: the line that it began with. again: steps that an earlier start had done and this one
            did again. lost: seconds those had taken. waited: seconds without a process before it.
        first: when its first line of numbers came. last: its last sign of life. end: what ended it,
            empty where nothing is known: it was killed, or goes on.
    """

    about: dict
    again: int = 0
    lost: float = 0.0
    waited: float = 0.0
    first: float | None = None
    last: float = 0.0
    last_step: int = 0
    end: str = ""


@dataclass
class RunFolder:
    """A run as its folder tells it."""

    path: str
    epochs: Columns = field(default_factory=Columns)
    steps: Columns = field(default_factory=Columns)
    starts: list[Start] = field(default_factory=list)
    evaluations: list[Start] = field(default_factory=list)
    rollbacks: list[dict] = field(default_factory=list)
    warnings: list[dict] = field(default_factory=list)
    results: dict = field(default_factory=dict)
    x_label: str = "step"

    @property
    def name(self) -> str:
        return os.path.basename(os.path.abspath(self.path))

    @property
    def about(self) -> dict:
        """What the last start said of itself, or what results.json says."""
        told = [*self.starts, *self.evaluations]
        return told[-1].about if told else self.results

    @property
    def state(self) -> str:
        """Finished, what ended it, or that nothing is known of an end."""
        last = (self.starts or self.evaluations or [None])[-1]
        if last is None:
            return FINISHED if self.results else "no end is known"
        return last.end or "running, or killed without a word"

    def file(self, name: str) -> str:
        return os.path.join(self.path, name)


def read_folder(path: str) -> RunFolder:
    """Read what there is; what is missing or cut short is left out."""
    found = RunFolder(path)
    _read_log(found)
    _read_record(found)
    found.results = read_json(found.file(RESULTS))
    return found


def is_run(path: str) -> bool:
    """Whether a folder has anything that a report could tell."""
    return any(os.path.exists(os.path.join(path, name)) for name in (LOG, RECORD, RESULTS))


def read_json(path: str) -> dict:
    """A JSON object; empty where there is none that can be read."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _lines(path: str) -> Iterator[dict]:
    """The objects of a file with one on each line; lines that a crash cut short are left out."""
    try:
        file = open(path, encoding="utf-8", errors="replace")  # noqa: SIM115 - closed below
    except OSError:
        return
    with file:
        for line in file:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value


def _read_log(found: RunFolder) -> None:
    for number, line in enumerate(_lines(found.file(LOG))):
        step = line.get("steps")
        if not isinstance(step, int | float) or isinstance(step, bool):
            step, found.x_label = number, "epoch"
        found.epochs.add(step, line)


def _read_record(found: RunFolder) -> None:
    current: Start | None = None
    for line in _lines(found.file(RECORD)):
        event, t = line.get("event"), line.get("t")
        if not isinstance(t, int | float):
            continue
        if event == "start":
            current = _begun(found, line)
        elif event == "warning":
            found.warnings.append(line)
        elif event == "rollback":
            found.rollbacks.append(line)
            found.steps.cut(line.get("to", 0))
        elif current is not None and event == "end":
            current.end = str(line.get("reason", FINISHED))
        elif current is not None and "step" in line:
            found.steps.add(line["step"], line)
            current.first = current.first or t
            current.last_step = line["step"]
        if current is not None:
            current.last = t


def _begun(found: RunFolder, line: dict) -> Start:
    """A new start, with what is done again and lost by it."""
    start = Start(line, last=line["t"], last_step=line.get("step", 0))
    if line.get("is_evaluation"):
        found.evaluations.append(start)
        return start
    before = found.starts[-1] if found.starts else None
    if before is not None:
        step = line.get("step", 0)
        start.waited = max(0.0, line["t"] - before.last)
        start.again = max(0, before.last_step - step)
        if start.again:
            done_at = found.steps.at("t", step) or before.first or before.last
            start.lost = max(0.0, before.last - done_at)
        found.steps.cut(step)
    found.starts.append(start)
    return start
