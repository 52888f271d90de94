"""Which rows of a table run: those that were asked for by name, or those that the scale has."""

from collections.abc import Collection, Iterable

from reproduction import paper
from reproduction.scales import Scale


def chosen(scale: Scale, table: str, keys: Collection[str]) -> list[paper.Row]:
    """The rows of a table, a key of `paper.TABLES`, in its order.

    Args:
        keys: of the rows that --rows names; empty: all that the scale does not leave out.
    """
    left_out = scale.left_out.get(table, ())
    rows = paper.TABLES[table].rows
    return [row for row in rows if (row.key in keys if keys else row.key not in left_out)]


def told_left_out(scale: Scale, tables: Iterable[str], keys: Collection[str]) -> str:
    """Which rows of the tables, by name, a scale leaves out, and how to get them.

    Empty if there is none, or `keys` name the rows.
    """
    listed = [f"{name}: {' '.join(scale.left_out[name])}" for name in tables
              if name in scale.left_out and not keys]  # fmt: skip
    told = f"Rows that scale {scale.name} leaves out, and --rows adds: {'; '.join(listed)}\n"
    return told if listed else ""
