"""A study's records, kept as JSON lines, and what they say: paired differences and a verdict.

A record is one run: the setting that it shares with others, its variant's flags, its seed, its
scores, and which test images it got right, so that runs can be compared image by image.
"""

import base64
import json
import math
import os
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from util.errors import UsageError
from util.evaluation import paired
from util.evaluation.over_seeds import Comparison, compare_seeds, correct
from util.evaluation.paired import Difference

Record = dict


def pack(shares: np.ndarray) -> str:
    """Counts (uint8, [images]) of the draws in which each test image was right, as a short text."""
    return base64.b64encode(zlib.compress(shares.astype(np.uint8).tobytes(), 9)).decode()


def unpack(text: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)


def percentages(record: Record, score: str) -> np.ndarray:
    """100 where a test image was right, else 0, mean over draws: [images]."""
    correct, draws = record["correct"][score]
    return unpack(correct) * (100 / draws) * record.get("weights", 1)


def balanced(records: Iterable[Record], targets: np.ndarray) -> list[Record]:
    """The records with scores that are means over the classes' accuracies.

    Args:
        targets: classes of the test images, [images].
    """
    counts = np.bincount(targets)
    weights = len(targets) / ((counts > 0).sum() * counts[targets])  # [images], of mean 1
    found = [record | {"weights": weights} for record in records]
    for record in found:
        record["scores"] = {s: float(percentages(record, s).mean()) for s in record["scores"]}
    return found


def read(path: str) -> list[Record]:
    """The records of a file, none if there is none.

    Raises:
        UsageError: a line that a full disk, say, cut off.
    """
    if not os.path.exists(path):
        return []
    records = []
    with open(path) as file:
        for number, line in enumerate(file, 1):
            try:
                records += [json.loads(line)] if line.strip() else []
            except ValueError:
                raise UsageError(f"{path}: line {number} is no whole record: delete it") from None
    return records


def append(path: str, record: Record) -> None:
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "a+b") as file:
        is_cut = file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read() != b"\n"
        line = ("\n" if is_cut else "") + json.dumps(record, ensure_ascii=False) + "\n"
        file.write(line.encode())


def compare(
    variants: dict[str, list[Record]], reference: list[Record], score: str, num_boots: int = 1000
) -> dict[str, Comparison]:
    """Compare each variant with the reference, over the seeds that both have."""
    by_seed = {record["seed"]: record for record in reference}
    compared: dict[str, np.ndarray] = {}  # [seeds, images]
    for name, records in variants.items():
        rows = [
            percentages(record, score) - percentages(by_seed[record["seed"]], score)
            for record in records
            if record["seed"] in by_seed
        ]
        if rows:
            compared[name] = np.stack(rows)
    return compare_seeds(compared, num_boots)


def by_variant(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records grouped by their variant, in the order of first runs; each group by seed, of which
    it has one record, the first. Where variants of other flags have the first one's name, their
    flags stand beside it."""
    rows_of: dict[tuple[str, str], dict[int, Record]] = {}
    for record in records:
        rows = rows_of.setdefault((record["variant"], record["flags"]), {})
        rows.setdefault(record["seed"], record)
    named: dict[str, list[Record]] = {}
    for (name, flags), rows in rows_of.items():
        title = f"{name}: {flags}" if name in named else name
        named[title] = [rows[seed] for seed in sorted(rows)]
    return named


def report(records: list[Record], references: Sequence[str]) -> str:
    """A Markdown table: means over seeds, and differences to each reference with intervals; and
    the commits, where runs are of several.

    An interval leaves out the draw of a few labels, which all runs share: it is too narrow.
    """
    variants = by_variant(records)
    scores = list(records[0]["scores"])
    lines = [f"| | seeds | {' | '.join(scores)} | L_rec | L_max | L_min | InfoNCE accuracy |"]
    lines += ["|---" * (len(scores) + 6) + "|"]
    for name, rows in variants.items():
        cells = [_mean([row["scores"][score] for row in rows], 1) for score in scores]
        for loss, digits in (("rec", 3), ("max_mi", 2), ("min_mi", 4), ("info_nce_accuracy", 2)):
            computed = [row["losses"].get(loss) or None for row in rows]  # others are 0
            cells.append(_mean(computed, digits))
        seeds = ", ".join(str(row["seed"]) for row in rows)
        lines.append(f"| {name} | {seeds} | {' | '.join(cells)} |")
    lines += differences(variants, [name for name in references if name in variants], scores)
    commits = {one for rows in variants.values() for row in rows for one in commits_of(row)}
    if len(commits) > 1:
        lines += ["", f"Runs are of {len(commits)} commits: {', '.join(sorted(commits))}"]
    return "\n".join(lines)


def differences(
    variants: dict[str, list[Record]], references: Sequence[str], scores: Sequence[str]
) -> list[str]:
    """The lines of a table for each reference: the other variants against it. Intervals are each
    difference's own; verdicts are corrected over all tables together."""
    against = {
        (reference, score): compare(
            {name: rows for name, rows in variants.items() if name != reference},
            variants[reference],
            score,
        )
        for reference in references
        for score in scores
    }
    correct([one for of_score in against.values() for one in of_score.values()])
    lines = []
    for reference in references:
        lines += ["", f"| against {reference} | {' | '.join(scores)} |"]
        lines += ["|---" * (len(scores) + 1) + "|"]
        for name in (name for name in variants if name != reference):
            cells = [
                _shown(
                    against[reference, score].get(name),
                    images_alone(variants[name], variants[reference], score),
                )
                for score in scores
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def commits_of(record: Record) -> list[str]:
    """Of the code of each start of a run."""
    return record.get("commits") or [record["commit"]] if "commit" in record else []


def images_alone(records: list[Record], reference: list[Record], score: str) -> Difference | None:
    """The first common seed's difference, with the interval over test images: of these two
    encoders, not of two ways of training."""
    by_seed = {record["seed"]: record for record in reference}
    for record in records:
        if record["seed"] in by_seed:
            other = by_seed[record["seed"]]
            return paired.compare(percentages(record, score), percentages(other, score))
    return None


def _mean(values: list, digits: int) -> str:
    known = [value for value in values if value is not None]
    spread = f" ± {np.std(known, ddof=1):.{digits}f}" if len(known) > 1 else ""
    return f"{np.mean(known):.{digits}f}{spread}" if known else "–"


def _shown(comparison: Comparison | None, of_images: Difference | None) -> str:
    if comparison is None:
        return "–"
    if not math.isfinite(comparison.low):
        interval = f"[{of_images.low:+.1f}, {of_images.high:+.1f}]"
        return f"{comparison.difference:+.1f} (one seed; over images alone {interval})"
    interval = f"[{comparison.low:+.1f}, {comparison.high:+.1f}]"
    return f"{comparison.difference:+.1f} {interval} {comparison.verdict}"
