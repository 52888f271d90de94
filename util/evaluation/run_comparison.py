"""A page of several runs side by side: what they were told otherwise, and how they differ."""

import os
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from util.evaluation import paired
from util.reporting import numbers
from util.reporting.chart import interval_rows, legend_item
from util.reporting.curves import charts
from util.reporting.page import Page, folded, paragraph, table
from util.reporting.quantities import quantity
from util.reporting.run_folder import RunFolder, read_json
from util.reporting.single import command, duration, flags_of, written_flag

Runs = Mapping[str, RunFolder]
WITHOUT_EFFECT = ("output_dir", "resume", "job_dir")  # of course they differ
NONE, NOT_TOLD = "–", "not told"


def comparison(runs: Runs) -> Page:
    """The page of runs by their names: differing arguments, results, differences, curves."""
    page = Page(f"{len(runs)} runs", f'<ul class="legend">{_legend(runs)}</ul>')
    page.add("Arguments that differ", differing_arguments(runs))
    page.add("Results", results(runs))
    page.add("Paired differences", paired_differences(runs))
    of_group = charts(runs)
    page.add("Curves", *[f"<h3>{escape(group)}</h3>{html}" for group, html in of_group.items()])
    page.add("Runs", _about(runs))
    return page


def distinct_names(paths: Sequence[str]) -> list[str]:
    """The last parts of paths, as many as tell them apart."""
    parts = [os.path.abspath(path).split(os.sep) for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _legend(runs: Runs) -> str:
    return "".join(legend_item(name, number) for number, name in enumerate(runs))


def differing_arguments(runs: Runs) -> str:
    """A row for each argument that has not the same value in all runs that tell it; those that
    only some tell, as of several mains or versions, are named."""
    told = {name: flags_of(run)[0] for name, run in runs.items()}
    unknown = [name for name, flags in told.items() if not flags]
    known = {name: flags for name, flags in told.items() if flags}
    order = dict.fromkeys(flag for flags in known.values() for flag in flags)
    rows, of_some = [], []
    for flag in order:
        values = [written_flag(f[flag]) if flag in f else NOT_TOLD for f in known.values()]
        if len({*values} - {NOT_TOLD}) > 1 and flag not in WITHOUT_EFFECT:
            rows.append([flag, *values])
        elif NOT_TOLD in values:
            of_some.append(flag)
    some = paragraph(f"{', '.join(of_some)}.") if of_some else ""
    said = folded(f"{len(of_some)} arguments that only some runs tell", some)
    said += paragraph(f"Arguments are not known of: {', '.join(unknown)}." if unknown else "")
    if known and not rows and not of_some:
        said += paragraph("None but output folders.")
    return table(["", *known], rows) + said


def results(runs: Runs) -> str:
    """A row for each final number that a run has."""
    found = {name: numbers.final_numbers(run) for name, run in runs.items()}
    order = dict.fromkeys(key for values in found.values() for key in values)
    rows = [
        [_title(key), *(numbers.written(f[key]) if key in f else NONE for f in found.values())]
        for key in order
    ]
    unfinished = [name for name, run in runs.items() if not run.results]
    said = f"Not finished, so by the last line of their logs: {', '.join(unfinished)}."
    return table(["", *runs], rows) + (paragraph(said, "bad") if unfinished else "")


def _title(key: str) -> str:
    about = quantity(key)
    unit = f", {about.unit}" if about.unit else ""
    return f"{about.title if about.title != key else key}{unit}"


def paired_differences(runs: Runs) -> str:
    """Each run against the first by the same test images, where both kept their predictions."""
    names, rows, said = list(runs), [], []
    for name in names[1:]:
        pair = same_images(runs[name], runs[names[0]])
        if isinstance(pair, str):
            said.append(f"{name}: {pair}")
            continue
        first, second = pair
        found = paired.compare(100.0 * first, 100.0 * second)
        p = paired.mcnemar(first, second)
        verdict = f"{found.verdict}, McNemar's p {p:.2g}, {len(first)} images"
        rows.append((name, found.difference, found.low, found.high, verdict))
    head = (
        f"Top-1 accuracy against {names[0]}, in points, with the 95 % interval over test images (a "
        "paired bootstrap): of these runs, not of ways of training, for which several seeds are "
        "needed."
    )
    drawn = paragraph(head) + interval_rows(rows) if rows else ""
    return drawn + paragraph(f"Not compared: {'; '.join(said)}." if said else "")


def same_images(first: RunFolder, second: RunFolder) -> tuple[np.ndarray, np.ndarray] | str:
    """Which of the test images that both could read each has right, [n]; or why this is not known.

    The images are the same where their files' digest is, or, where a run has none, their labels.
    """
    tables = [numbers.predictions_of(run) for run in (first, second)]
    if any(found is None for found in tables):
        return "no predictions of test images are kept"
    digests = {
        read_json(run.file("test_predictions.json")).get("made_of") for run in (first, second)
    }
    if len(tables[0]) != len(tables[1]) or (tables[0][:, 1] != tables[1][:, 1]).any():
        return "its test images are others"
    if len(digests) > 1 and None not in digests:
        return "its test images are other files"
    is_read = (tables[0][:, 0] >= 0) & (tables[1][:, 0] >= 0)
    if not is_read.any():
        return "no test image could be read by both"
    return tuple((found[:, 0] == found[:, 1])[is_read] for found in tables)


def _about(runs: Runs) -> str:
    """Folder, state, command, commit and time of each run."""
    rows = []
    for name, run in runs.items():
        seconds, about = run.results.get("seconds"), run.about
        known = isinstance(seconds, int | float)
        cells = [name, run.state, duration(seconds) if known else "", str(about.get("commit", ""))]
        rows.append([*map(escape, cells), command(str(about.get("command", "")))])
    return table(["", "state", "training time", "commit", "command"], rows, is_html=True)
