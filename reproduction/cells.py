"""The cells of a table: a number for each seed whose run is done, or why there is none."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from reproduction.graph import Graph
from reproduction.paper import Row, Table
from reproduction.state import DONE, JobState, mixed_commits, state_of

NONE = "--"  # in place of a number of ours where nothing was run


@dataclass
class Cell:
    """One cell of a table: a number for each seed whose run is done.

    Args:
        values: the number by seed. runs: by seed, the run that it is from.
        why: the reason why the cell is empty or lacks some seeds.
        mixed: the commits, where those of a run and of what it needs are several.
    """

    row: Row
    column: str
    values: dict[int, float] = field(default_factory=dict)
    runs: dict[int, JobState] = field(default_factory=dict)
    why: str = ""
    mixed: list[str] = field(default_factory=list)

    @property
    def published(self) -> float | str | None:
        """The paper's number, or a word in place of it; None where the row has neither."""
        return self.row.published.get(self.column)

    def shown(self, plus_minus: str = "±") -> str:
        """Mean ± standard deviation over the seeds as text; empty if no run is done."""
        values = list(self.values.values())
        if not values:
            return ""
        spread = ""
        if len(values) > 1:
            spread = f" {plus_minus} {statistics.stdev(values):.1f}"
        return f"{statistics.mean(values):.1f}{spread}"

    def shown_published(self) -> str:
        """The paper's number or word as text; empty where it has none."""
        return "" if self.published is None else str(self.published)


def fill(
    graph: Graph, table: Table, rows: Sequence[Row], seeds: Sequence[int], wanted: str | None
) -> list[list[Cell]]:
    """The cells of a table, by rows and columns, filled with what is in the runs' results.json.

    Args:
        wanted: the commit whose results count; None counts any.
    """
    return [[_cell(graph, row, column, seeds, wanted) for column in table.columns] for row in rows]


def _cell(graph: Graph, row: Row, column: str, seeds: Sequence[int], wanted: str | None) -> Cell:
    cell, reasons = Cell(row, column), []
    for seed in seeds:
        source = graph.cell(row, column, seed)
        if isinstance(source, str):
            cell.why = source  # the same for each seed
            return cell
        found = state_of(graph, source.job, wanted)
        value = (found.results or {}).get(source.key)
        if found.state != DONE:
            words = [f"seed {seed}: {found.state}", *([found.detail] if found.detail else [])]
            reasons.append(": ".join(words))
        elif value is None:
            reasons.append(f"seed {seed}: {found.job.name} has no {source.key}")
        else:
            cell.values[seed], cell.runs[seed] = float(value), found
            cell.mixed = list(dict.fromkeys(cell.mixed + mixed_commits(graph, source.job)))
    cell.why = "; ".join(reasons)
    return cell


def flat(cells: Sequence[Sequence[Cell]]) -> list[Cell]:
    """The cells of all rows in one list."""
    return [cell for row in cells for cell in row]
