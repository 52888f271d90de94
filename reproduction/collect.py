"""Fill in the tables: as Markdown, CSV and LaTeX, each measured number beside the paper's."""

import csv
import os
from collections.abc import Sequence

from reproduction.cells import NONE, Cell, flat
from reproduction.latex import latex
from reproduction.paper import COLUMNS, Table
from reproduction.scales import Scale
from reproduction.state import JobState

MIXED = "†"


def table_lines(table: Table, cells: Sequence[Sequence[Cell]], scale: Scale) -> str:
    """The table in Markdown, followed by the reasons why cells are empty."""
    head = [f"{COLUMNS[c]}: ours | the paper's" for c in table.columns]
    lines = [f"## {table.title}, scale {scale.name} ({scale.data})", ""]
    lines += [f"| | epochs | {' | '.join(head)} |"]
    lines += ["|---" * (2 * len(head) + 2) + "|"]
    for row in cells:
        shown = [f"{_ours(cell)} | {cell.shown_published()}" for cell in row]
        lines.append(f"| {row[0].row.title} | {row[0].row.epochs or ''} | {' | '.join(shown)} |")
    lines += ["", table.note] if table.note else []
    if scale.name != "imagenet":
        lines += ["", "Epochs and the paper's numbers are of ImageNet; ours are of other images."]
    lines += ["", scale.note] if scale.note else []
    mixed = dict.fromkeys(", then ".join(cell.mixed) for cell in flat(cells) if cell.mixed)
    if mixed:
        lines += ["", f"{MIXED}: with code of several commits: {'; '.join(mixed)}."]
    empty: dict[str, list[str]] = {}
    for cell in flat(cells):
        if cell.why and cell.column in cell.row.columns:
            empty.setdefault(cell.why, []).append(f"{cell.row.key} {cell.column}")
    if empty:
        lines += ["", "Empty, or without some seed:", ""]
        lines += [f"- {', '.join(names)}: {why}" for why, names in empty.items()]
    return "\n".join([*lines, ""])


def run_lines(cells: Sequence[Sequence[Cell]]) -> str:
    """A Markdown list of the runs behind the numbers: hardware, seconds, commit and command."""
    lines = ["Runs:", ""]
    for cell in flat(cells):
        for seed, run in cell.runs.items():
            lines.append(
                f"- {cell.row.key} {cell.column}, seed {seed}: {cell.values[seed]:.2f}; "
                f"{hardware(run)}, {seconds(run)} s, commit {', then '.join(run.commits)}: "
                f"`{run.results['command']}`"
            )
    return "\n".join([*lines, ""])


def _ours(cell: Cell) -> str:
    return cell.shown() + MIXED * bool(cell.mixed) if cell.values else NONE


def seconds(run: JobState) -> str:
    """A run's seconds as text; the checkpoint of an older version does not tell them."""
    return "unknown" if run.trained is None else f"{run.trained:.0f}"


def hardware(run: JobState) -> str:
    """On what a run was made: `8 × NVIDIA V100`."""
    return f"{run.results['processes']} × {run.results['device']}"


CSV_HEAD = (
    "row", "column", "seed", "value", "paper", "why_empty", "commit", "hardware", "seconds",
    "command",
)  # fmt: skip


def write_csv(path: str, cells: Sequence[Sequence[Cell]]) -> None:
    """Write a line for each cell and seed, and one with the reason for each cell that is empty."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_HEAD)
        for cell in flat(cells):
            about = [cell.row.key, cell.column]
            for seed, run in cell.runs.items():
                found = [", then ".join(cell.mixed or run.commits), hardware(run)]
                found += [seconds(run), run.results["command"]]
                numbers = [seed, cell.values[seed], cell.shown_published()]
                writer.writerow([*about, *numbers, "", *found])
            if cell.why:
                writer.writerow([*about, "", "", cell.shown_published(), cell.why, "", "", "", ""])


def write(
    folder: str, name: str, table: Table, cells: list[list[Cell]], scale: Scale, below: str = ""
) -> list[str]:
    """Write the table's NAME.md, NAME.tex and NAME.csv to `folder`, and return their paths.

    Args:
        below: text for the Markdown file, between the table and its runs.
    """
    os.makedirs(folder, exist_ok=True)
    texts = {
        "md": f"{table_lines(table, cells, scale)}{below}\n{run_lines(cells)}",
        "tex": latex(table, cells, scale),
    }
    paths = [os.path.join(folder, f"{name}.{kind}") for kind in (*texts, "csv")]
    for path, text in zip(paths, texts.values(), strict=False):
        with open(path, "w") as file:
            file.write(text)
    write_csv(paths[-1], cells)
    return paths
