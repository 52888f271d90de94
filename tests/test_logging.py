"""The progress line."""

import re
import sys

import pytest

from util.logging import ProgressLine


@pytest.mark.parametrize("columns", [40, 80, 400])
def test_the_bar_stays_on_one_line_of_the_terminal(monkeypatch, capsys, columns):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    line = ProgressLine("epoch 3", 10, 1)
    line.update(10, "  ".join(f"term_{i} {i / 7:.4g}" for i in range(20)))
    shown = re.split(r"\r", capsys.readouterr().out)[-1].removesuffix("\033[K")
    assert shown.startswith("epoch 3 ") and len(shown) < columns
    assert ("term_19" in shown) == (columns == 400)
