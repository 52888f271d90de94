"""Run all the frozen evaluations of one encoder, from its features on the disk."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from util.data.datasets import Images
from util.data.few_labels import balanced_draw, check_few, held_out
from util.data.image_list import listed_positions
from util.evaluation.frozen import attentive, monitors, probes
from util.evaluation.frozen.features import FeatureStore
from util.evaluation.frozen.patches import Dense
from util.evaluation.frozen.probes import Probe, TestSet
from util.progress import shown

log = logging.getLogger(__name__)

EVALUATIONS = ("knn", "logistic", "few", "blocks", "label_free")
VIEWED = 2048  # images whose masks are compared


@dataclass
class Frozen:
    """The results of one encoder; hits of each image are kept for paired comparisons.

    probes: by evaluation. few: which images of the first test set were right in each draw, by the
    number or share of labels. blocks: accuracies (percent) on the first test set, block by block,
    by kind of feature. label_free: monitors. dense: the evaluations on --dense.
    """

    probes: dict[str, Probe] = field(default_factory=dict)
    few: dict[str, np.ndarray] = field(default_factory=dict)  # [draws, test images]
    blocks: dict[str, list[float]] = field(default_factory=dict)
    label_free: dict[str, float] = field(default_factory=dict)
    dense: dict[str, Dense] = field(default_factory=dict)


def evaluate(
    encoder, args: argparse.Namespace, real: list[frozenset[int]] | None,
    lists: dict[str, Tensor], device: torch.device,
) -> Frozen:  # fmt: skip
    """Run the evaluations of one encoder that --only asks for, and --attentive.

    Args:
        encoder: has `model.kinds`, `model.depth`, the stores `train` and `tests`, `views`, and what
            `attentive.evaluate` asks for.
        real: ReaL's labels of the first test set's images. lists: ids of published lists.
    """
    kinds, found = encoder.model.kinds, Frozen()
    if not args.only and not args.attentive:
        return found
    train, targets = by_kind(encoder.train, kinds), encoder.train.targets()
    tests = {
        name: TestSet(by_kind(store, kinds), store.targets())
        for name, store in encoder.tests.items()
    }
    if real is not None:
        right_ones = [real[index] for index in encoder.tests["val"].ids()]
        tests["ReaL"] = TestSet(tests["val"].features, right_ones)
    lists = {name: _rows_of(encoder.train, ids) for name, ids in lists.items()}
    if "knn" in args.only:
        found.probes |= probes.knn(train, targets, tests, device)
    if "logistic" in args.only:
        found.probes |= probes.regression(train, targets, tests, device)
    if args.attentive and encoder.model.depth:
        found.probes["attentive"] = attentive.evaluate(encoder, tests, args, device)
    if "few" in args.only:
        # Once more: of what could be read.
        check_few(targets.numpy(), encoder.train.images.classes, args.few)
        found.few = few_labels(train, targets, tests["val"], args, lists, device)
    if "blocks" in args.only and encoder.model.depth:
        found.blocks = blocks(encoder, tests["val"], device)
    if "label_free" in args.only:
        found.label_free = monitors.label_free(tests["val"].features[kinds[0]], encoder.views)
    return found


def check_labels(train: Images, args: argparse.Namespace) -> None:
    """Check that a training set has the labels that the evaluations need, before any begins.

    Raises:
        UsageError: a class of too few images for --few, or nothing to hold out.
    """
    if "few" in args.only:
        check_few(train.targets, train.classes, args.few)
    if args.attentive or {"knn", "logistic", "blocks"} & set(args.only):
        held_out(train.targets)


def leave_out_of_all(encoders: Sequence) -> dict[str, int]:
    """Leave what one encoder could not read of a set out of it for all, as they are compared.

    Args:
        encoders: with the stores `train`, `tokens` (or None) of the same images, and `tests`.

    Returns:
        By set, how many images are left out of it, where there are some.
    """
    stores = {"train": [s for e in encoders for s in (e.train, e.tokens) if s is not None]}
    stores |= {name: [e.tests[name] for e in encoders] for name in encoders[0].tests}
    counts = {}
    for part, of_part in stores.items():
        union = sorted({index for store in of_part for index in store.left_out})
        for store in of_part:
            store.left_out = union
        if union:
            counts[part] = len(union)
    return counts


def _rows_of(store: FeatureStore, ids: Tensor) -> Tensor:
    """Of images of a set, by their positions in it, the rows of its features; but of unreadable
    ones."""
    kept, listed = store.ids(), ids.numpy()
    return torch.from_numpy(np.searchsorted(kept, listed[np.isin(listed, kept)]))


def by_kind(store: FeatureStore, kinds: tuple[str, ...]) -> dict[str, Tensor]:
    """A set's features [n, D] by kind."""
    return {kind: store.read(kind) for kind in kinds}


def few_labels(
    train: dict[str, Tensor], targets: Tensor, test: TestSet, args: argparse.Namespace,
    lists: dict[str, Tensor], device: torch.device,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Train on each number of labels of --few, --few_shares, --few_list: hits [draws, n] by name.

    All kinds of feature are used side by side, so that nothing is left to choose.
    """
    features = probes.side_by_side(train)
    wanted: dict[str, int | float] = {f"{n} per class": n for n in args.few}
    wanted |= {f"{100 * share:g} %": float(share) for share in args.few_shares}
    drawn = {name: len(balanced_draw(targets.numpy(), n)) for name, n in wanted.items()}
    wanted = {name: wanted[name] for name in sorted(wanted, key=drawn.get)}  # for the curve
    found = {}
    for name, per_class in shown([*wanted.items()], "amounts of labels", len(wanted)):
        found[name] = probes.few_labels(features, targets, test, per_class, args.draws, device)
    for name, ids in lists.items():
        found[name] = probes.few_labels(features, targets, test, 0, 1, device, ids)
    return found


def blocks(encoder, test: TestSet, device: torch.device) -> dict[str, list[float]]:
    """Logistic regression on each block's output: accuracies (percent) by kind, block by block."""
    found: dict[str, list[float]] = {kind: [] for kind in encoder.model.kinds}
    depth = encoder.model.depth
    for number in shown(range(depth), f"{encoder.name}, blocks", depth):
        for kind in encoder.model.kinds:
            name = f"block {number} {kind}"
            features = encoder.train.read(name, in_detail=True)
            targets = encoder.train.targets(in_detail=True)
            query = TestSet({kind: encoder.tests["val"].read(name, in_detail=True)}, test.truth)
            probe = probes.regression({kind: features}, targets, {"val": query}, device)
            found[kind].append(probe[f"logistic, {kind}"].accuracy("val"))
    return found


def listed_ids(path: str, images: Images) -> Tensor:
    """Positions in a set of the images that a published list names."""
    return torch.tensor(listed_positions(images, path, "--few_list"))
