"""What a log is made of: times where nobody looks on, ranks, and who hears what."""

import io
import logging
import re
import sys

import pytest

from util.cluster import distributed
from util.logging import setup_logging


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("out", "begins"), [(Terminal(), ""), (io.StringIO(), r"[\d-]{10} [\d:]{8} ")]
)
def test_a_log_has_times_and_a_terminal_has_none(monkeypatch, out, begins):
    monkeypatch.setattr(sys, "stdout", out)
    setup_logging()
    logging.getLogger("any").info("said")
    assert re.fullmatch(f"{begins}said\n", out.getvalue())


def test_other_ranks_say_only_what_is_wrong(monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 3)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    setup_logging()
    logging.getLogger("any").info("all is well")
    logging.getLogger("any").warning("it is not")
    assert re.fullmatch(r"\S+ \S+ \[rank 3\] it is not\n", sys.stdout.getvalue())
