"""One page of a reproduction: the claims first, then the tables, figures and runs."""

import logging
import os
from collections.abc import Mapping, Sequence
from html import escape

from reproduction.judge import Verdict, Z
from reproduction.state import JobState
from util.reporting import pictures
from util.reporting.chart import interval_rows
from util.reporting.markdown import to_html
from util.reporting.page import Page, folded, paragraph, table, write_page
from util.reporting.run_folder import REPORT

log = logging.getLogger(__name__)

ONE_SEED = (
    "Of claims with one seed the interval is over test images alone: of these two runs, not of the "
    "two ways of training."
)


def write(
    folder: str, title: str, verdicts: Sequence[Verdict], texts: Mapping[str, str],
    drawn: Sequence[str], states: Sequence[JobState],
) -> list[str]:  # fmt: skip
    """Write report.html to a folder; a failure is a line in the log.

    Args:
        verdicts: on the claims; none where they were not asked for.
        texts: of claims and tables in Markdown, by their titles, the claims first.
        drawn: paths of figures.

    Returns:
        The page's path, alone; nothing where it could not be written.
    """
    path = os.path.join(folder, REPORT)
    page = Page(title, paragraph(_progress(states), "soft"))
    page.add("Claims at a glance", _claims(verdicts))
    for name, text in texts.items():
        lines = text.strip().splitlines()
        heading, rest = lines[0].lstrip("# "), "\n".join(lines[1:])
        page.add(name, f"<p>{escape(heading)}</p>" if heading != name else "", to_html(rest))
    page.add("Figures", pictures.gallery(drawn))
    page.add("Runs", folded(f"{len(states)} runs", _runs(states)))
    try:
        write_page(path, page)
    except OSError as error:
        log.warning("no %s (%s)", path, error.strerror)
        return []
    return [path]


def _progress(states: Sequence[JobState]) -> str:
    counted: dict[str, int] = {}
    for found in states:
        counted[found.state] = counted.get(found.state, 0) + 1
    return ", ".join(f"{count} runs {state}" for state, count in counted.items())


def _claims(verdicts: Sequence[Verdict]) -> str:
    rows, has_one = [], False
    for verdict in verdicts:
        found = verdict.found
        if found is None:
            continue
        low, high = found.low, found.high
        if found.num_seeds < 2:
            has_one, half = True, Z * found.of_images
            low, high = found.difference - half, found.difference + half
        rows.append((verdict.text, found.difference, low, high, verdict.word))
    drawn = interval_rows(rows) if rows else ""
    return drawn + paragraph(ONE_SEED if has_one else "")


def _runs(states: Sequence[JobState]) -> str:
    rows = [[s.job.name, s.state, s.detail, (s.results or {}).get("command", "")] for s in states]
    return table(["run", "state", "", "command"], rows)
