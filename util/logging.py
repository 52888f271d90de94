"""Messages: rank 0 says all, other ranks only what is wrong. And a progress line on a terminal."""

import logging
import shutil
import sys
import time

from util.cluster import distributed


def setup_logging() -> None:
    """Log to stdout: rank 0 everything, other ranks only warnings and errors."""
    rank = distributed.rank()
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format="%(message)s" if rank == 0 else f"[rank {rank}] %(message)s",
        stream=sys.stdout,
        force=True,
    )


class ProgressLine:
    """A bar on a terminal; elsewhere a plain line every `log_every` steps."""

    def __init__(self, label: str, total: int, log_every: int):
        self.label, self.total, self.log_every = label, total, log_every
        self.is_terminal = sys.stdout.isatty() and distributed.is_main()
        self.started, self.first = time.monotonic(), None
        self.drawn = 0.0
        self.text = ""

    def update(self, step: int, text: str | None = None) -> None:
        """Show that `step` steps are done; `text` (at log steps) is what is known of them."""
        if text is not None:
            self.text = text
        if not self.is_terminal:
            if text is not None:
                logging.getLogger(__name__).info("%s %d/%d  %s", self.label, step, self.total, text)
            return
        now = time.monotonic()
        if self.first is None:  # a resumed run does not begin at 0
            self.started, self.first = now, step
        if now - self.drawn > 0.2 or step == self.total:
            filled = 24 * step // max(self.total, 1)
            bar = "█" * filled + "·" * (24 - filled)
            done = max(step - self.first, 1)
            left = (now - self.started) * (self.total - step) / done
            line = f"{self.label} {bar} {step}/{self.total}  {_duration(left)} left  {self.text}"
            # A line that the terminal wraps could not be drawn over.
            line = line[: shutil.get_terminal_size().columns - 1]
            sys.stdout.write(f"\r{line}\033[K")
            sys.stdout.flush()
            self.drawn = now

    def close(self) -> None:
        if self.is_terminal:
            sys.stdout.write("\r\033[K")
            sys.stdout.flush()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
