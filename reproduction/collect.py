"""Fill in the tables: as Markdown, CSV and LaTeX, each measured number beside the paper's."""

import csv
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from reproduction.graph import Graph
from reproduction.paper import COLUMNS, Row, Table
from reproduction.state import DONE, JobState, state_of


@dataclass
class Cell:
    """One cell of a table: a number for each seed whose run is done.

    Args:
        values: the number by seed. runs: by seed, the run that it is from.
        why: the reason why the cell is empty or lacks some seeds.
    """

    row: Row
    column: str
    values: dict[int, float] = field(default_factory=dict)
    runs: dict[int, JobState] = field(default_factory=dict)
    why: str = ""

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
    cell.why = "; ".join(reasons)
    return cell


def table_lines(table: Table, cells: Sequence[Sequence[Cell]], scale: str) -> str:
    """The table in Markdown, followed by the reasons why cells are empty."""
    head = [f"{COLUMNS[c]} | paper" for c in table.columns]
    lines = [f"## {table.title}, scale {scale}", "", f"| | epochs | {' | '.join(head)} |"]
    lines += ["|---" * (2 * len(head) + 2) + "|"]
    for row in cells:
        shown = [f"{cell.shown()} | {_paper(cell)}" for cell in row]
        lines.append(f"| {row[0].row.title} | {row[0].row.epochs or ''} | {' | '.join(shown)} |")
    lines += ["", table.note] if table.note else []
    if scale != "imagenet":
        lines += ["", "Epochs and the paper's numbers are of ImageNet; ours are of other images."]
    empty: dict[str, list[str]] = {}
    for cell in _flat(cells):
        if cell.why and cell.column in cell.row.columns:
            empty.setdefault(cell.why, []).append(f"{cell.row.key} {cell.column}")
    if empty:
        lines += ["", "Empty, or without some seed:", ""]
        lines += [f"- {', '.join(names)}: {why}" for why, names in empty.items()]
    return "\n".join([*lines, ""])


def run_lines(cells: Sequence[Sequence[Cell]]) -> str:
    """A Markdown list of the runs behind the numbers: hardware, seconds, commit and command."""
    lines = ["Runs:", ""]
    for cell in _flat(cells):
        for seed, run in cell.runs.items():
            lines.append(
                f"- {cell.row.key} {cell.column}, seed {seed}: {cell.values[seed]:.2f}; "
                f"{hardware(run)}, {run.seconds:.0f} s, commit {run.results['commit']}: "
                f"`{run.results['command']}`"
            )
    return "\n".join([*lines, ""])


def hardware(run: JobState) -> str:
    return f"{run.results['processes']} × {run.results['device']}"


def _paper(cell: Cell) -> str:
    return "" if cell.published is None else str(cell.published)


def _in_brackets(cell: Cell) -> str:
    return f"({_paper(cell)})" if _paper(cell) else ""


def _flat(cells: Sequence[Sequence[Cell]]) -> list[Cell]:
    return [cell for row in cells for cell in row]


def latex(table: Table, cells: Sequence[Sequence[Cell]]) -> str:
    """The table as a `tabular` for LaTeX's package booktabs, the paper's numbers in parentheses."""
    lines = [rf"\begin{{tabular}}{{lr{'r' * len(table.columns)}}}", r"\toprule"]
    names = [_escaped(COLUMNS[column]) for column in table.columns]
    lines += [f" & epochs & {' & '.join(names)} " + r"\\", r"\midrule"]
    for row in cells:
        shown = [
            " ".join(filter(None, [cell.shown(plus_minus=r"\textpm"), _in_brackets(cell)]))
            for cell in row
        ]
        title, epochs = _escaped(row[0].row.title), row[0].row.epochs or ""
        lines.append(f"{title} & {epochs} & {' & '.join(shown)} " + r"\\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _escaped(text: str) -> str:
    for char in "_%&#":
        text = text.replace(char, f"\\{char}")
    return text.replace("λ", r"$\lambda$")


CSV_HEAD = (
    "row", "column", "seed", "value", "paper", "why_empty", "commit", "hardware", "seconds",
    "command",
)  # fmt: skip


def write_csv(path: str, cells: Sequence[Sequence[Cell]]) -> None:
    """Write a line for each cell and seed, and one with the reason for each cell that is empty."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_HEAD)
        for cell in _flat(cells):
            about = [cell.row.key, cell.column]
            for seed, run in cell.runs.items():
                found = [run.results["commit"], hardware(run), run.seconds, run.results["command"]]
                writer.writerow([*about, seed, cell.values[seed], _paper(cell), "", *found])
            if cell.why:
                writer.writerow([*about, "", "", _paper(cell), cell.why, "", "", "", ""])


def write(folder: str, name: str, table: Table, cells: list[list[Cell]], scale: str) -> list[str]:
    """Write the table's NAME.md, NAME.tex and NAME.csv to `folder`, and return their paths."""
    os.makedirs(folder, exist_ok=True)
    texts = {
        "md": f"{table_lines(table, cells, scale)}\n{run_lines(cells)}",
        "tex": latex(table, cells),
    }
    paths = [os.path.join(folder, f"{name}.{kind}") for kind in (*texts, "csv")]
    for path, text in zip(paths, texts.values(), strict=False):
        with open(path, "w") as file:
            file.write(text)
    write_csv(paths[-1], cells)
    return paths
