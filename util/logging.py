"""Messages: rank 0 says all, other ranks only what is wrong."""

import logging
import sys

from util.cluster import distributed
from util.progress import ProgressLine

PAUSE = 60.0  # seconds between lines that only tell how far the program is


def setup_logging(pause: float = PAUSE) -> None:
    """Log to stdout: rank 0 everything, other ranks only warnings and errors.

    What is no terminal, and so is looked at later, gets the time before each message.

    Args:
        pause: seconds between lines that only tell how far the program is.
    """
    rank = distributed.rank()
    if hasattr(sys.stdout, "reconfigure"):  # names of files that are no UTF-8
        sys.stdout.reconfigure(errors="surrogateescape")
    when = "" if sys.stdout.isatty() else "%(asctime)s "
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format=when + ("%(message)s" if rank == 0 else f"[rank {rank}] %(message)s"),
        datefmt="%Y-%m-%d %H:%M:%S",
        stream=sys.stdout,
        force=True,
    )
    logging.getLogger("timm").setLevel(logging.WARNING)  # what is loaded is told here
    ProgressLine.set_pause(pause)
