"""Markdown tables of several models side by side, and what their columns are called."""

import os
from collections.abc import Sequence

from util.errors import UsageError
from util.evaluation.paired import Difference


def row(label: str, cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (label, *cells)) + " |"


def rule(names: Sequence[str]) -> str:
    """The line below a table's head."""
    return "|---" * (len(names) + 1) + "|"


def shown_number(value: float | None) -> str:
    """Two decimals; – where there is none."""
    return "–" if value is None else f"{value:.2f}"


def shown_difference(found: Difference) -> str:
    """A difference with its interval and verdict."""
    return f"{found.difference:+.1f} [{found.low:+.1f}, {found.high:+.1f}] {found.verdict}"


def column_names(given: Sequence[str], checkpoints: Sequence[str]) -> list[str]:
    """The names of the checkpoints in tables: what --names gives, else short ones of their paths.

    Raises:
        UsageError: not a name of its own for each.
    """
    names = list(given or short_names(checkpoints))
    if len(names) != len(checkpoints) or len(set(names)) < len(names):
        raise UsageError(
            f"--names {' '.join(names)}: give each of the {len(checkpoints)} checkpoints a name of "
            "its own"
        )
    return names


def short_names(paths: Sequence[str]) -> list[str]:
    """The paths' last folders and names without what all of them share."""
    names = []
    for path in paths:
        folder, file = os.path.split(path)
        stem = os.path.splitext(file)[0]
        parent = os.path.basename(os.path.abspath(folder)) if folder else ""
        names.append(parent if stem == "checkpoint-last" and parent else stem)
    return names if len(set(names)) == len(names) else list(paths)
