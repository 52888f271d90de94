"""A run's final numbers: what they are of, and how sure they are."""

import math
from collections.abc import Mapping
from html import escape

from util.reporting.page import table
from util.reporting.quantities import quantity
from util.reporting.run_folder import RunFolder

ABOUT_THE_RUN = {
    "seconds", "command", "commit", "commits", "versions", "device", "processes", "flags",
    "flag_sources",
}  # fmt: skip
UNITS = ("%", "nats", "GiB", "s", "images/s", "images")  # that stand behind a number
PREDICTIONS = "test_predictions.npy"
Z = 1.959964  # standard errors on either side of a 95 % interval


def final_numbers(run: RunFolder) -> dict[str, object]:
    """The numbers of results.json; of a run without one, those of the last line of its log."""
    if run.results:
        return {k: v for k, v in run.results.items() if k not in ABOUT_THE_RUN}
    found = run.epochs.by_name
    last = max((xs[-1] for xs, _ in found.values()), default=None)
    return {name: ys[-1] for name, (xs, ys) in found.items() if xs[-1] == last}


def table_of(run: RunFolder) -> str:
    """Each final number with its 95 % interval, where that is known, and what it is."""
    found = []
    for name, value in final_numbers(run).items():
        about = quantity(name)
        unit = f" {about.unit}" if about.unit in UNITS else ""
        meaning = f"<small>{escape(about.meaning)}</small>" if about.meaning else ""
        interval = interval_of(run, name, value)
        found.append(
            [escape(about.title) + meaning, escape(written(value) + unit), escape(interval)]
        )
    if not any(row[2] for row in found):
        return table(["", ""], [row[:2] for row in found], is_html=True)
    return table(["", "", "95 % interval"], found, is_html=True)


def written(value: object) -> str:
    """A result as text: percents and losses with as many digits as are meant."""
    if value is None:
        return "not finite"
    if isinstance(value, float):
        if value.is_integer() and abs(value) < 1e15:
            return str(int(value))
        return "not finite" if not math.isfinite(value) else f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(written, value))
    return str(value)


def interval_of(run: RunFolder, name: str, value: object) -> str:
    """The 95 % interval of an accuracy, where the folder has what it follows from; else empty."""
    if name != "test_acc1" or not isinstance(value, float):
        return ""
    draws = final_numbers(run).get("test_acc1_of_draws")
    if isinstance(draws, list) and len(draws) > 1:
        return f"± {half_interval(draws):.2f} over {len(draws)} draws"
    found = right_of(run)
    if found is None or abs(100 * sum(found) / len(found) - value) > 0.02:
        return ""  # of other images, or of another evaluation
    low, high = wilson(int(sum(found)), len(found))
    return f"{100 * low:.2f} to {100 * high:.2f} over {len(found)} test images"


def right_of(run: RunFolder):
    """Whether each readable test image was predicted right, [n]; None without predictions."""
    table = predictions_of(run)
    if table is None:
        return None
    read = table[table[:, 0] >= 0]
    return read[:, 0] == read[:, 1] if len(read) else None


def predictions_of(run: RunFolder):
    """The predicted and the true class of each test image [n, 2]; None where they are not kept."""
    import numpy as np

    try:
        table = np.load(run.file(PREDICTIONS), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return table if table.ndim == 2 and table.shape[1] == 2 else None


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, of which `right` of `count` were seen."""
    share, square = right / count, Z * Z / count
    middle = (share + square / 2) / (1 + square)
    half = Z / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def half_interval(scores: list[float]) -> float:
    """Half the 95 % interval of the mean of two or more numbers, by Student's t."""
    import statistics

    from scipy.stats import t

    error = statistics.stdev(scores) / math.sqrt(len(scores))
    return float(t.ppf(0.975, len(scores) - 1)) * error


def differences(numbers: Mapping) -> list[tuple[str, float, float, float, str]]:
    """The paired differences of evaluation.json or robustness.json, as rows of a chart."""
    found = []
    for group in ("encoders", "classifiers"):
        for name, values in (numbers.get(group) or {}).items():
            for key, compared in values.items():
                if key.startswith("against ") and isinstance(compared, dict):
                    found += [_row(f"{name} {key}: {k}", v) for k, v in compared.items()]
    return [row for row in found if row is not None]


def _row(name: str, value: object) -> tuple[str, float, float, float, str] | None:
    if not isinstance(value, dict) or "difference" not in value:
        return None
    numbers = (value["difference"], value.get("low"), value.get("high"))
    if not all(isinstance(number, int | float) for number in numbers):
        return None
    p = value.get("mcnemar_p")
    said = str(value.get("verdict", "")) + (f", McNemar's p {p:.2g}" if p is not None else "")
    return name, *numbers, said
