"""What a stage has measured: a JSON that grows part by part, and its Markdown.

A part that is in the JSON is not measured again; so a stage that was cut short goes on where it
stopped. Nothing is begun for which the budget's time has run out.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from datetime import datetime, timezone

import torch

from util.errors import UsageError, first_line
from util.provenance import commit, versions

Rows = list[dict[str, object]]  # of a table: values by the names of its columns
GRACE = 10  # seconds beyond the budget, after which a part is stopped
BEGAN = "it ended the process, or somebody did"


class Unfinished(Exception):
    """A part that has got so far, in `rows`, and goes on when it is called again."""

    def __init__(self, message: str, rows: Rows):
        super().__init__(message)
        self.rows = rows


class TimeIsUp(BaseException):
    """Budget and grace are over; raised by an alarm, it must pass every `except Exception`."""


class Record:
    """The parts of a stage, measured and yet to come.

    Args:
        folder: gets STAGE.json and STAGE.md. seconds: the budget of this call.
        about: what the numbers depend on, besides code and libraries; as JSON keeps it.
        retry: measure again what failed.

    Raises:
        UsageError: a folder that cannot be written to, or that has another machine's numbers.
    """

    def __init__(
        self, stage: str, folder: str, seconds: float, about: dict[str, object], retry: bool = False
    ):
        self.stage, self.folder, self.about, self.retry = stage, folder, about, retry
        self.ends = time.monotonic() + seconds
        self.parts: dict[str, dict] = self._read()
        self._write()

    def _path(self, kind: str) -> str:
        return os.path.join(self.folder, f"{self.stage}.{kind}")

    def _read(self) -> dict[str, dict]:
        path = self._path("json")
        if not os.path.exists(path):
            return {}
        try:
            with open(path) as file:
                kept = json.load(file)
            about, parts = dict(kept["about"]), dict(kept["parts"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(
                f"--out: {path} is no record of a stage: name another folder"
            ) from None
        for name, value in self.about.items():
            if about.get(name) != value:
                raise UsageError(
                    f"--out: {path} is of {name} {about.get(name)}, this is {value}: name another "
                    "folder"
                )
        return parts

    def left(self) -> float:
        """Seconds until the end of the budget."""
        return self.ends - time.monotonic()

    def part(self, name: str, needs: float, measure: Callable[[], Rows]) -> None:
        """Measure a part, unless it is known or takes more than the seconds that are left.

        Args:
            needs: about how many seconds it takes.
        """
        kept = self.parts.get(name, {"unfinished": ""})
        if "unfinished" not in kept and not ("failed" in kept and self.retry):
            print(f"{name}: known", flush=True)
            return
        if self.left() < needs:
            print(f"{name}: about {needs:g} s, {max(self.left(), 0):.0f} s left: next time")
            return
        self.parts[name] = {"failed": BEGAN}
        self._write()
        started = time.monotonic()
        self.parts[name] = self._measured(name, measure) | {
            "seconds": round(time.monotonic() - started, 1), "commit": commit(),
            "versions": versions(), "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }  # fmt: skip
        self._write()
        found = self.parts[name]
        told = found.get("failed") or found.get("unfinished") or f"{found['seconds']} s"
        print(f"{name}: {told}", flush=True)

    def _measured(self, name: str, measure: Callable[[], Rows]) -> dict:
        before, seconds = signal.signal(signal.SIGALRM, _end), self.left() + GRACE
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            return {"rows": measure()}
        except Unfinished as error:
            return {"rows": error.rows, "unfinished": str(error)}
        except TimeIsUp:
            return {"failed": f"stopped after {seconds:.0f} s; --retry begins it again"}
        except torch.OutOfMemoryError:
            return {"failed": "out of memory"}
        except Exception as error:  # the other parts go on
            return {"failed": f"{type(error).__name__}: {first_line(error)}"}
        except BaseException:  # interrupted: as if it had not begun
            del self.parts[name]
            self._write()
            raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def rows(self, name: str) -> Rows:
        """What a part has measured; empty where it has not."""
        return self.parts.get(name, {}).get("rows", [])

    def _write(self) -> None:
        record = dict(stage=self.stage, about=self.about, parts=self.parts)
        try:
            os.makedirs(self.folder, exist_ok=True)
            for kind, text in (("json", json.dumps(record, indent=1)), ("md", self.markdown())):
                with open(self._path(kind) + ".new", "w") as file:
                    file.write(text + "\n")
                os.replace(self._path(kind) + ".new", self._path(kind))
        except OSError as error:
            raise UsageError(f"--out {self.folder}: {error.strerror}: name another one") from None

    def markdown(self) -> str:
        """All parts as tables."""
        what = ", ".join(f"{name} {value}" for name, value in self.about.items())
        sections = [f"## {self.stage}\n\n{what}; `python benchmarks/gpu_hour.py {self.stage}`"]
        for name, part in self.parts.items():
            body = f"failed: {part['failed']}" if "failed" in part else table(part["rows"])
            body += f"\n\nUnfinished: {part['unfinished']}" if "unfinished" in part else ""
            took = f" ({part['seconds']} s, {part['commit']})" if "seconds" in part else ""
            sections.append(f"### {name}{took}\n\n{body}")
        return "\n\n".join(sections)


def _end(*_) -> None:
    raise TimeIsUp


def table(rows: Rows) -> str:
    """Markdown of rows; a value that a row lacks is empty."""
    if not rows:
        return "nothing"
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [[shown(row.get(name, "")) for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [names, ["---"] * len(names), *lines])


def shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
