"""The report of several encoders' frozen evaluations: Markdown, JSON and curves."""

import argparse
from collections.abc import Mapping

import numpy as np
from PIL import Image

from util.evaluation import paired
from util.evaluation.charts import line_chart
from util.evaluation.frozen import patches
from util.evaluation.frozen.evaluations import Frozen
from util.evaluation.frozen.probes import FEW_PENALTY, KS, PENALTIES, TEMPERATURES
from util.evaluation.tables import row, rule, shown_difference, shown_number

# How each part is done; a report has those of its parts.
PICTURES = BLOCKS, FEW_LABELS = "blocks.png", "few_labels.png"
PROTOCOLS = {
    "k-NN": "k-NN: cosine, votes weighted by exp(cosine / temperature), k 20 and temperature 0.07; "
    f"chosen: of k {', '.join(map(str, KS))} x temperature "
    f"{', '.join(f'{t:g}' for t in TEMPERATURES)} and the kinds of feature.",
    "logistic": "Logistic regression: on standardised features, to its optimum by L-BFGS; penalty "
    f"of {', '.join(f'{p:g}' for p in PENALTIES)}.",
    "chosen": "Chosen: on a tenth of each class of the training set, held out; then trained on all "
    "of it.",
    "few": "Few labels: logistic regression on all kinds side by side, penalty "
    f"{FEW_PENALTY:g}, never tuned.",
    "blocks": "Blocks: logistic regression on each block's output before the final norm.",
    "attentive": "Attentive: efficient probing, learned queries on the patch tokens, then MAE's "
    "linear probe; the last epoch's.",
    "dense": "Dense: patches of whole images resized to the encoder's input, each of its pixels' "
    "most frequent class; k-NN as above, logistic regression with the penalty chosen on a tenth of "
    "the training images; scores enlarged to the label maps, mIoU over pixels.",
    "label_free": "Label-free numbers are monitors: they choose nothing.",
}


def protocol(results: Mapping[str, Frozen]) -> str:
    """How what is in the results was measured, a line each."""
    names = " ".join(_union(found.probes for found in results.values()))
    parts = {part for part in ("k-NN", "logistic", "chosen", "attentive") if part in names}
    for found in results.values():
        fields = ("few", "blocks", "label_free", "dense")
        parts |= {field for field in fields if getattr(found, field)}
    parts |= {"k-NN"} if "dense" in parts else set()  # to which that refers
    return "\n".join(line for part, line in PROTOCOLS.items() if part in parts)


def markdown(
    results: Mapping[str, Frozen], args: argparse.Namespace, checksums: Mapping[str, str],
    num_train: int, left_out: Mapping[str, int],
) -> str:  # fmt: skip
    """The tables, with their protocol.

    Args:
        num_train: training images. left_out: by set, how many images could not be read.
    """
    names = list(results)
    lines = [*_head(num_train, _num_test(results), left_out), row("", names), rule(names)]
    first = results[names[0]]
    for evaluation in _union(found.probes for found in results.values()):
        for test in next(
            f.probes[evaluation].right for f in results.values() if evaluation in f.probes
        ):
            label = evaluation if test == "val" else f"{evaluation}, {test}"
            cells = [_accuracy(found, evaluation, test) for found in results.values()]
            lines.append(row(label, cells))
    for amount in first.few:
        cells = [_few(found, amount) for found in results.values()]
        lines.append(row(f"few labels, {amount}", cells))
    for evaluation in _union(found.dense for found in results.values()):
        cells = [
            shown_number(found.dense[evaluation].miou() if evaluation in found.dense else None)
            for found in results.values()
        ]
        lines.append(row(f"{evaluation}, mIoU", cells))
    for monitor in _union(found.label_free for found in results.values()):
        cells = [shown_number(found.label_free.get(monitor)) for found in results.values()]
        lines.append(row(f"{monitor} (monitor)", cells))
    lines.append(row("checksum of the features' inputs", [checksums[name] for name in names]))
    lines += differences(results)
    chosen = [
        f"{name}: {evaluation}: {probe.chosen}"
        for name, found in results.items()
        for evaluation, probe in found.probes.items()
        if "chosen" in evaluation or evaluation == "attentive"
    ]
    chosen += [
        f"{name}: {evaluation}: {one.chosen}"
        for name, found in results.items()
        for evaluation, one in found.dense.items()
    ]
    draws = [f"Few labels: {args.draws} draws, mean ± standard deviation."] * bool(first.few)
    return "\n".join([*lines, "", protocol(results), *draws, *chosen])


def _head(num_train: int, num_test: int, left_out: Mapping[str, int]) -> list[str]:
    lines = []
    if num_test:
        lines.append(f"Top-1 accuracy, %. {num_train} training images, {num_test} test images.")
    if left_out:
        listed = ", ".join(f"{count} of {name}" for name, count in left_out.items())
        lines.append(f"Images that could not be read, and are left out: {listed}.")
    return lines


def differences(results: Mapping[str, Frozen]) -> list[str]:
    """A table, in lines, of each encoder against the first, by paired test images."""
    names = list(results)
    if len(names) < 2:
        return []
    lines = ["", f"Against {names[0]}, in points, with the 95 % interval over test images and "
             "McNemar's p:", "", row("", names[1:]), rule(names[1:])]  # fmt: skip
    for evaluation in _union(found.probes for found in results.values()):
        cells = [_difference(results, name, evaluation) for name in names[1:]]
        lines.append(row(evaluation, cells))
    for amount in results[names[0]].few:
        cells = []
        for name in names[1:]:
            rows = (results[n].few[amount] * 100.0 for n in (name, names[0]))
            cells.append(shown_difference(paired.compare_draws(*rows)))
        lines.append(row(f"few labels, {amount}", cells))
    for evaluation, reference in results[names[0]].dense.items():
        others = [results[name].dense.get(evaluation) for name in names[1:]]
        cells = [
            shown_difference(patches.compare(other, reference)) if other else "–"
            for other in others
        ]
        lines.append(row(f"{evaluation}, mIoU", cells))
    return lines


def _difference(results: Mapping[str, Frozen], name: str, evaluation: str) -> str:
    found = _compared(results, name, evaluation)
    if found is None:
        return "–"
    difference, p = found
    return f"{shown_difference(difference)}, p {p:.2g}"


def _compared(results: Mapping[str, Frozen], name: str, evaluation: str):
    probes = [results[n].probes.get(evaluation) for n in (name, next(iter(results)))]
    if None in probes:
        return None
    one, other = (probe.right["val"] for probe in probes)
    return paired.compare(100.0 * one, 100.0 * other), paired.mcnemar(one, other)


def as_json(
    results: Mapping[str, Frozen], args: argparse.Namespace, checksums: Mapping[str, str],
    left_out: Mapping[str, int],
) -> dict:  # fmt: skip
    """Everything that was measured, and how."""
    encoders, first = {}, next(iter(results))
    for name, found in results.items():
        compared = {e: _compared(results, name, e) for e in found.probes if name != first}
        encoders[name] = {
            "checksum": checksums[name],
            "accuracy": {
                evaluation: {test: probe.accuracy(test) for test in probe.right}
                for evaluation, probe in found.probes.items()
            },
            "chosen": {evaluation: probe.chosen for evaluation, probe in found.probes.items()},
            "grids": {e: probe.others for e, probe in found.probes.items() if probe.others},
            "few_labels": {
                amount: (100 * rows.mean(1)).tolist() for amount, rows in found.few.items()
            },
            "blocks": found.blocks,
            "monitors": found.label_free,
            "mIoU": {evaluation: one.miou() for evaluation, one in found.dense.items()},
            f"against {first}": {
                evaluation: {
                    "difference": pair[0].difference, "low": pair[0].low, "high": pair[0].high,
                    "verdict": pair[0].verdict, "mcnemar_p": pair[1],
                }
                for evaluation, pair in compared.items()
                if pair
            },
        }  # fmt: skip
    return {
        "protocol": protocol(results), "draws": args.draws, "test_images": _num_test(results),
        "unreadable": dict(left_out),
        "checkpoints": dict(zip(args.names, args.checkpoints, strict=True)), "encoders": encoders,
    }  # fmt: skip


def headline(results: Mapping[str, Frozen]) -> dict[str, float]:
    """The numbers of results.json: each encoder's chosen logistic regression and k-NN, mIoU."""
    return {
        f"{name}, {evaluation}, mIoU": one.miou()
        for name, found in results.items()
        for evaluation, one in found.dense.items()
    } | {
        f"{name}, {evaluation}": probe.accuracy("val")
        for name, found in results.items()
        for evaluation, probe in found.probes.items()
        if "chosen" in evaluation or evaluation == "attentive"
    }


def pictures(results: Mapping[str, Frozen]) -> dict[str, Image.Image]:
    """PICTURES, where there is something to show."""
    found = {}
    curves = {
        f"{name}, {kind}": values
        for name, one in results.items()
        for kind, values in one.blocks.items()
    }
    if curves:
        depth = max(map(len, curves.values()))
        padded = {name: [*v, *[None] * (depth - len(v))] for name, v in curves.items()}
        ticks = [str(number + 1) for number in range(depth)]
        title = "Logistic regression on each block's output"
        found[BLOCKS] = line_chart(title, "block", ticks, padded)
    amounts = list(next(iter(results.values())).few)
    if len(amounts) > 1:
        means, spreads = {}, {}
        for name, one in results.items():
            rows = [100 * one.few[amount].mean(1) for amount in amounts]
            means[name] = [float(row.mean()) for row in rows]
            spreads[name] = [float(row.std(ddof=1)) if len(row) > 1 else 0.0 for row in rows]
        title = "Logistic regression on few labels"
        what = "accuracy, %, with standard deviations over draws"
        found[FEW_LABELS] = line_chart(title, "labels", amounts, means, what, spreads)
    return found


def _union(tables) -> list[str]:
    return list(dict.fromkeys(name for table in tables for name in table))


def _num_test(results: Mapping[str, Frozen]) -> int:
    for found in results.values():
        for probe in found.probes.values():
            return len(probe.right["val"])
        for rows in found.few.values():
            return rows.shape[1]
    return 0


def _accuracy(found: Frozen, evaluation: str, test: str) -> str:
    probe = found.probes.get(evaluation)
    return shown_number(probe.accuracy(test) if probe else None)


def _few(found: Frozen, amount: str) -> str:
    scores = 100 * found.few[amount].mean(1)
    spread = f" ± {np.std(scores, ddof=1):.2f}" if len(scores) > 1 else ""
    return f"{scores.mean():.2f}{spread}"
