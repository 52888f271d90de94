"""The report of one run: report.html in its folder, from what lies there."""

import logging
import os
from collections.abc import Mapping
from datetime import datetime, timezone
from html import escape

from util.reporting import numbers, pictures
from util.reporting.chart import interval_rows
from util.reporting.curves import charts, unmoved
from util.reporting.markdown import to_html
from util.reporting.page import Page, bullets, paragraph, table, write_page
from util.reporting.protocols import protocol_of
from util.reporting.run_folder import (
    FINISHED,
    INPUTS,
    REPORT,
    RunFolder,
    Start,
    read_folder,
    read_json,
)
from util.reporting.ticks import shown

log = logging.getLogger(__name__)

TABLES = ("evaluation.md", "robustness.md")
WITH_DIFFERENCES = ("evaluation.json", "robustness.json")


def write_report(folder: str) -> str | None:
    """Write report.html, by what the folder has; a failure is a line in the log, never an end.

    Returns:
        Its path; None where it could not be written.
    """
    path = os.path.join(folder, REPORT)
    try:
        write_page(path, page_of(read_folder(folder)))
    except Exception as error:  # a report is worth no run
        log.warning("no %s (%s: %s): the run is not touched by that", path, _kind(error), error)
        return None
    return path


def page_of(run: RunFolder) -> Page:
    """The report's page."""
    page = Page(f"{run.name}: {_main_of(run)}", _head(run), _foot())
    page.add("Results", results(run))
    page.add("Run", about_table(run), _restarts(run))
    page.add("Warnings", _warnings(run))
    of_group = charts({run.name: run})
    still = unmoved(run)
    curves = [f"<h3>{escape(group)}</h3>{html}" for group, html in of_group.items()]
    page.add("Curves", *curves, paragraph(f"0 throughout: {', '.join(still)}." * bool(still)))
    page.add("Inputs", _inputs(run))
    files = [path for path in pictures.find(run.path) if os.path.basename(path) != INPUTS]
    page.add("Pictures", pictures.gallery(files))
    page.add("Tables", *_tables(run))
    page.add("Arguments", arguments(run))
    return page


# ------------------------------------------------------------------------------------ the parts


def _head(run: RunFolder) -> str:
    state = run.state
    kind = "state" if state == FINISHED else "state bad"
    return f'<p><span class="{kind}">{escape(state)}</span> {escape(os.path.abspath(run.path))}</p>'


def _foot() -> str:
    now = datetime.now(timezone.utc)
    return f"Written {now:%Y-%m-%d %H:%M} UTC. Point at a curve to read its values."


def _main_of(run: RunFolder) -> str:
    words = str(run.about.get("command", "")).split()
    return os.path.basename(words[1]) if len(words) > 1 else "a run"


def results(run: RunFolder) -> str:
    """The final numbers, or the last ones of a run that goes on or was ended."""
    found = numbers.table_of(run)
    if found and not run.results:
        found = paragraph("Not finished: the last line of log.txt.", "bad") + found
    flags = {name: written_flag(value) for name, value in flags_of(run)[0].items()}
    return found + paragraph(protocol_of(run, flags) if found else "", "soft")


def about_table(run: RunFolder) -> str:
    """Command, commit, machine, data and time."""
    about, result = run.about, run.results
    trained = result.get("seconds")
    known = {
        "command": about.get("command"),
        "results of": result.get("command")
        if result.get("command") not in (None, about.get("command")) else None,
        "commit": ", then ".join(result.get("commits") or [str(about.get("commit", ""))]),
        "started": when(_first(run).get("t")),
        "training time": duration(trained) if isinstance(trained, int | float) else None,
        "machine": _machine(about),
        "versions": ", ".join(f"{k} {v}" for k, v in (about.get("versions") or {}).items()),
        "data": about.get("data"),
        "model": about.get("model_size"),
        "batch": about.get("batch"),
    }  # fmt: skip
    write = {"command": command, "results of": command}
    rows = [[key, write.get(key, escape)(str(value))] for key, value in known.items() if value]
    return table(["", ""], rows, is_html=True)


def command(text: str) -> str:
    """A command line that is broken between its words; only long ones are broken inside."""
    words = (f"<span>{escape(w)}</span>" if len(w) < 32 else escape(w) for w in text.split(" "))
    return f"<code>{' '.join(words)}</code>"


def _first(run: RunFolder) -> Mapping:
    """What the first start said of itself."""
    return run.starts[0].about if run.starts else run.about


def _machine(about: Mapping) -> str:
    processes = about.get("processes")
    parts = [about.get("host"), about.get("device")]
    parts += [f"{processes} process(es)"] if processes else []
    return ", ".join(str(part) for part in [*parts, about.get("machine")] if part)


def _restarts(run: RunFolder) -> str:
    """Each start but the first with its reason and its cost, and each return after a NaN."""
    rows = []
    pairs = list(zip(run.starts, run.starts[1:], strict=False))
    for number, (before, start) in enumerate(pairs, 2):
        rows.append([
            f"start {number}", when(start.about.get("t")), before.end or "ended without a word",
            shown(start.about.get("step", 0)), str(start.again), _cost(start), _where(start),
        ])  # fmt: skip
    head = ["", "at", "the one before", "from step", "steps done again", "time it cost", "machine"]
    found = table(head, rows)
    found = f"<h3>Restarts</h3>{found}" if found else ""
    back = [f"step {r.get('step')}: {r.get('reason')}; back to step {r.get('to')}"
            for r in run.rollbacks]  # fmt: skip
    return found + (f"<h3>Returns to a checkpoint</h3>{bullets(back)}" if back else "")


def _cost(start: Start) -> str:
    set_up = max(0.0, start.first - start.about["t"]) if start.first else None
    parts = [f"{duration(start.lost)} of training" * (start.again > 0)]
    parts += [f"{duration(start.waited)} without a process"]
    parts += [f"{duration(set_up)} to the first line of the log" if set_up is not None else ""]
    return "; ".join(part for part in parts if part)


def _where(start: Start) -> str:
    return ", ".join(str(start.about[k]) for k in ("host", "commit") if start.about.get(k))


def _warnings(run: RunFolder) -> str:
    counted: dict[tuple[str, str], list[float]] = {}
    for line in run.warnings:
        counted.setdefault((str(line.get("level")), str(line.get("text"))), []).append(line["t"])
    rows = [
        [when(times[0]), level.lower(), text, f"{len(times)} times" if len(times) > 1 else ""]
        for (level, text), times in counted.items()
    ]
    return table(["first given", "", "", ""], rows)


def _inputs(run: RunFolder) -> str:
    if not os.path.exists(run.file(INPUTS)):
        return ""
    text = run.about.get("inputs") or "the first images of the run's first step"
    return pictures.gallery([run.file(INPUTS)], [str(text)])


def _tables(run: RunFolder) -> list[str]:
    """What an evaluation has written, and its differences drawn."""
    parts = []
    for name in WITH_DIFFERENCES:
        rows = numbers.differences(read_json(run.file(name)))
        if rows:
            parts.append("<h3>Differences, with 95 % intervals over test images</h3>")
            parts.append(interval_rows(rows))
    for name in TABLES:
        if os.path.exists(run.file(name)):
            with open(run.file(name), encoding="utf-8", errors="replace") as file:
                parts.append(to_html(file.read()))
    return parts


def arguments(run: RunFolder) -> str:
    """Every argument with its value and where that is from, by the groups of `--help`."""
    flags, sources, groups = flags_of(run)
    cards = []
    for title, names in groups.items():
        rows = [
            f'<tr><th>{escape(name)}</th><td class="value">{escape(written_flag(flags[name]))}</td>'
            f'<td class="{"soft" if name not in sources else ""}">'
            f"{escape(sources.get(name, 'default'))}</td></tr>"
            for name in names if name in flags
        ]  # fmt: skip
        if rows:
            body = f"<table><tbody>{''.join(rows)}</tbody></table>"
            heading = f"<figcaption>{escape(title)}</figcaption>"
            cards.append(f'<figure>{heading}<div class="wide">{body}</div></figure>')
    return f'<div class="charts">{"".join(cards)}</div>' if cards else ""


def flags_of(run: RunFolder) -> tuple[dict, dict, dict[str, list[str]]]:
    """The values of all flags by name, where those are from, and the names by group."""
    about = run.about
    flags = about.get("flags") or {}
    sources = about.get("flag_sources") or {}
    groups = about.get("groups") or {"": list(flags)}
    return flags, sources, groups


def written_flag(value: object) -> str:
    """A flag's value as one would give it."""
    if isinstance(value, list):
        return " ".join(map(written_flag, value)) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value in (None, "") else str(value)


def when(t: object) -> str:
    """Seconds since 1970 as a date; empty where they are not known."""
    if not isinstance(t, int | float):
        return ""
    return f"{datetime.fromtimestamp(t, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def duration(seconds: float) -> str:
    """A time span with two units at most: 45 s, 12 min 5 s, 3 h 20 min."""
    seconds = round(seconds)
    for unit, name, below, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"),
                                     (60, "min", 1, "s")):  # fmt: skip
        if seconds >= unit:
            rest = seconds % unit // below
            return f"{seconds // unit} {name}" + (f" {rest} {small}" if rest else "")
    return f"{seconds} s"


def _kind(error: Exception) -> str:
    return type(error).__name__
