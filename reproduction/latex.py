"""A table as LaTeX, to be pasted: every number stands in a column that says whose it is."""

from collections.abc import Sequence

from reproduction.cells import NONE, Cell, flat
from reproduction.paper import COLUMNS, Table
from reproduction.scales import Scale

MIXED = r"$^\dagger$"
HEAD = "% needs \\usepackage{booktabs}\n"


def latex(table: Table, cells: Sequence[Sequence[Cell]], scale: Scale) -> str:
    """The table as a `table` for LaTeX's package booktabs.

    Each column of the paper's table is two: ours, with a dash where nothing was run, and the
    paper's. The caption names scale and data, so that neither is taken for the other.
    """
    count = len(table.columns)
    about = _escaped(caption(table, cells, scale))
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{about}}}"]
    lines += [rf"\begin{{tabular}}{{lr{'rr' * count}}}", r"\toprule"]
    names = [rf"\multicolumn{{2}}{{c}}{{{_escaped(COLUMNS[column])}}}" for column in table.columns]
    lines.append(f" & & {' & '.join(names)} " + r"\\")
    lines.append(" ".join(rf"\cmidrule(lr){{{3 + 2 * i}-{4 + 2 * i}}}" for i in range(count)))
    lines += [f" & epochs{' & ours & paper' * count} " + r"\\", r"\midrule"]
    for row in cells:
        shown = [f"{_ours(cell)} & {_escaped(cell.shown_published() or '--')}" for cell in row]
        title, epochs = _escaped(row[0].row.title), row[0].row.epochs or ""
        lines.append(f"{title} & {epochs} & {' & '.join(shown)} " + r"\\")
    return HEAD + "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def caption(table: Table, cells: Sequence[Sequence[Cell]], scale: Scale) -> str:
    """What a reader of the table alone has to know."""
    seeds = sorted({seed for cell in flat(cells) for seed in cell.values})
    ours = f"Ours: scale {scale.name}, of {scale.data}"
    if seeds:
        plural = "s" * (len(seeds) > 1)
        ours += f"; seed{plural} {', '.join(map(str, seeds))}"
        ours += ", mean ± standard deviation" * (len(seeds) > 1)
    text = f"{table.title}. {ours}; {NONE}: not run. "
    text += "Paper: what it reports, not measured by us"
    if scale.name != "imagenet":
        text += ", on other data than ours, as are the epochs"
    text += f". {scale.note.rstrip('.')}" if scale.note else ""
    if any(cell.mixed for cell in flat(cells)):
        text += f". {MIXED}: with code of several commits"
    return f"{text}."


def _ours(cell: Cell) -> str:
    shown = cell.shown(plus_minus=r"\textpm")
    return shown + MIXED * bool(cell.mixed) if shown else NONE


def _escaped(text: str) -> str:
    for char in "_%&#":
        text = text.replace(char, f"\\{char}")
    return text.replace("λ", r"$\lambda$").replace("±", r"\textpm{}")
