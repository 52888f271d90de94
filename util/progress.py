"""How far long work is: a bar on a terminal, elsewhere a line a minute; with the time left."""

import logging
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from util.cluster import distributed

log = logging.getLogger(__name__)

Item = TypeVar("Item")

# What a narrow terminal need not have room for.
LAST_SHOWN = (
    "mean_patch", "apx", "info_nce_accuracy", "min_mi_followed", "grad_norm", "image_share",
)  # fmt: skip
CELLS = 8  # of a bar: 80 columns hold a loss, too
FIRST_PAUSE = 5.0  # seconds between the first two lines; each pause is twice the one before


def short(value: object) -> str:
    """A number with four significant digits, without an exponent where it has more before the
    point (12 346 has all of them); anything else as it is."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def in_a_line(numbers: Mapping[str, object]) -> str:
    """Numbers by their names, those of LAST_SHOWN at the end."""
    order = sorted(numbers, key=LAST_SHOWN.__contains__)
    return "  ".join(f"{name} {short(numbers[name])}" for name in order)


def duration(seconds: float) -> str:
    """Seconds as minutes and seconds, and hours where there are any: 1:05, 26:01:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Pace:
    """How long work has left, by what was done of it in this process.

    Args:
        total: all of the work, in any unit. done: what of it had been done before, by others.
    """

    def __init__(self, total: float, done: float = 0):
        self.total, self.done, self.before = total, done, done
        self.started: float | None = None

    def count(self, parts: float) -> None:
        """Count parts that are done now. The first ones tell no time: starting is a part of it."""
        self.done += parts
        if self.started is None:
            self.started, self.before = time.monotonic(), self.done

    def pass_over(self, parts: float) -> None:
        """Count parts that cost nothing, as those that an earlier run has left."""
        self.done, self.before = self.done + parts, self.before + parts

    def left(self) -> float | None:
        """Seconds; None before anything is known."""
        if self.started is None or self.done <= self.before:
            return None
        passed = time.monotonic() - self.started
        return passed * max(self.total - self.done, 0) / (self.done - self.before)


class ProgressLine:
    """A bar on a terminal, with throughput and losses; elsewhere lines of the log, the first one at
    once, then after 5, 10, 20 seconds, … and so on to one in `pause` seconds, whatever the steps
    take. The clock of these is the process's: each of many short works has no line of its own.

    Args:
        total: steps. done: those that had been done before. whole: of which this is a part; its
            time left is shown, too, and it is moved on by what is done here.
    """

    pause = 60.0  # seconds between lines at most; `set_pause` changes it
    due, next_pause = 0.0, 0.0

    def __init__(self, label: str, total: int, done: int = 0, whole: Pace | None = None):
        self.label, self.whole, self.own = label, whole, Pace(total, done)
        self.is_terminal = sys.stdout.isatty() and distributed.is_main()
        self.drawn = 0.0
        self.text = ""

    @classmethod
    def set_pause(cls, seconds: float) -> None:
        """Begin the process's lines anew, and let at most so many seconds be between them."""
        cls.pause, cls.due, cls.next_pause = seconds, 0.0, min(FIRST_PAUSE, seconds)

    def update(self, step: int, text: str | None = None) -> None:
        """Show that `step` steps are done; `text` is what is known of them, until the next one."""
        if text is not None:
            self.text = text
        for pace in filter(None, (self.whole, self.own)):
            pace.count(step - self.own.done)
        now = time.monotonic()
        if self.is_terminal:
            if now - self.drawn > 0.2 or step == self.own.total:
                self._draw()
                self.drawn = now
        elif now >= ProgressLine.due:
            ProgressLine.due = now + ProgressLine.next_pause
            ProgressLine.next_pause = min(2 * ProgressLine.next_pause, ProgressLine.pause)
            log.info("%s", self._line(""))

    def _line(self, bar: str) -> str:
        parts = [f"{self.label} {bar}{self.own.done}/{self.own.total}", self._left(), self.text]
        return "  ".join(filter(None, parts))

    def _left(self) -> str:
        own, whole = self.own.left(), self.whole.left() if self.whole else None
        shown = [] if own is None else [f"{duration(own)} left"]
        return ", ".join(shown + ([] if whole is None else [f"{duration(whole)} in all"]))

    def _draw(self) -> None:
        filled = CELLS * self.own.done // max(self.own.total, 1)
        line = self._line("█" * filled + "·" * (CELLS - filled) + " ")
        # A line that the terminal wraps could not be drawn over; half a number tells nothing.
        width = shutil.get_terminal_size().columns - 1
        if len(line) > width:
            line = line[:width].rpartition("  ")[0] or line[:width]
        sys.stdout.write(f"\r{line}\033[K")
        sys.stdout.flush()

    def close(self) -> None:
        """Take the bar away."""
        if self.is_terminal:
            sys.stdout.write("\r\033[K")
            sys.stdout.flush()


def shown(
    items: Iterable[Item], label: str, total: int, whole: Pace | None = None
) -> Iterator[Item]:
    """The items, with a `ProgressLine` that tells how many of `total` have been worked on."""
    line = ProgressLine(label, total, whole=whole)
    for done, item in enumerate(items, 1):
        yield item
        line.update(done)
    line.close()
