"""Which of a run's numbers are drawn together, and in what order."""

from collections.abc import Mapping, Sequence

from util.reporting.chart import line_chart
from util.reporting.columns import POINTS, Columns, Point
from util.reporting.quantities import GROUPS, NO_CURVE, base, quantity
from util.reporting.run_folder import RunFolder

ALL_POINTS = 24_000  # of a page, so that one of many runs stays small
# Drawn in the chart of the first of them, where a page has one run.
TOGETHER = (("rec", "mean_patch"), ("test_acc1", "max_acc1"), ("test_mIoU", "max_mIoU"),
            ("test_box_AP", "max_box_AP"))  # fmt: skip


def charts(runs: Mapping[str, RunFolder]) -> dict[str, str]:
    """The charts of one or several runs as HTML, by the title of their group.

    Of several runs each chart shows one number, and a run has one colour in all of them.
    """
    names = _names(runs.values())
    points = max(40, min(POINTS, ALL_POINTS // max(1, len(names) * len(runs))))
    drawn = {
        name: {run: curve(found, name, points) for run, found in runs.items()} for name in names
    }
    drawn = {name: _without_empty(curves) for name, curves in drawn.items()}
    drawn = {name: curves for name, curves in drawn.items() if curves}
    grouped: dict[str, list[str]] = {group: [] for group in GROUPS}
    if len(runs) == 1:
        for several in _joined(list(drawn)):
            grouped[quantity(several[0]).group].append(_of_one(several, drawn, runs))
    else:
        for name, curves in drawn.items():
            grouped[quantity(name).group].append(_of_several(name, curves, runs))
    return {
        group: f'<div class="charts">{"".join(html)}</div>'
        for group, html in grouped.items() if html
    }  # fmt: skip


def curve(run: RunFolder, name: str, points: int = POINTS) -> list[Point]:
    """A number over steps: of the log's steps where those are known, else of its epochs."""
    fine, coarse = _column(run.steps, name), _column(run.epochs, name)
    if fine and len(run.steps.by_name[fine][0]) >= (_length(run.epochs, coarse)):
        return run.steps.curve(fine, points)
    return run.epochs.curve(coarse, points) if coarse else []


def _length(columns: Columns, name: str) -> int:
    return len(columns.by_name[name][0]) if name else 0


def _column(columns: Columns, name: str) -> str:
    """The name by which columns have a number; empty: they do not."""
    return next((n for n in (name, f"train_{name}") if n in columns.by_name), "")


def _names(runs: Sequence[RunFolder]) -> list[str]:
    """The names of all numbers that a run has, in the order of a page."""
    found: dict[str, None] = {}
    for run in runs:
        for columns in (run.epochs, run.steps):
            found |= dict.fromkeys(base(name) for name in columns.by_name)
    return [name for name in found if name not in NO_CURVE and not quantity(name).is_hidden]


def unmoved(run: RunFolder) -> list[str]:
    """Titles of the numbers that are 0 throughout, of which no curve is drawn."""
    found = {name: curve(run, name) for name in _names([run])}
    return [quantity(name).title for name, points in found.items()
            if points and not _says_anything(points)]  # fmt: skip


def _says_anything(points: Sequence[Point]) -> bool:
    """Whether any value is not finite, or not 0."""
    return any(point.mean is None or point.low or point.high for point in points)


def _without_empty(curves: Mapping[str, list[Point]]) -> dict[str, list[Point]]:
    if not any(_says_anything(points) for points in curves.values()):
        return {}
    return {run: points for run, points in curves.items() if points}


def _joined(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The names, those of `TOGETHER` in one."""
    found, taken = [], set()
    for name in names:
        if name in taken:
            continue
        partners = next((group for group in TOGETHER if name in group), (name,))
        several = tuple(partner for partner in partners if partner in names)
        taken |= set(several)
        found.append(several)
    return found


def _of_one(names: Sequence[str], drawn: Mapping, runs: Mapping[str, RunFolder]) -> str:
    first, (label,) = quantity(names[0]), runs
    curves = {quantity(name).title: drawn[name][label] for name in names}
    return line_chart(
        first.title, curves, first.unit, first.meaning, runs[label].x_label, first.may_be_log
    )


def _of_several(name: str, curves: Mapping, runs: Mapping[str, RunFolder]) -> str:
    about, order = quantity(name), list(runs)
    return line_chart(
        about.title, curves, about.unit, about.meaning, next(iter(runs.values())).x_label,
        about.may_be_log, [order.index(run) for run in curves],
    )  # fmt: skip
