"""The report of frozen evaluations has what was asked for, and nothing of the rest."""

import argparse

import numpy as np
import pytest

from util.evaluation.frozen import report
from util.evaluation.frozen.evaluations import Frozen
from util.evaluation.frozen.probes import Probe

RIGHT = {"val": np.ones(4, dtype=bool)}
PARTS = {
    "k-NN: cosine": dict(probes={"k-NN, cls": Probe("k 20", RIGHT)}),
    "Logistic regression:": dict(probes={"logistic, cls": Probe("penalty 1", RIGHT)}),
    "Few labels:": dict(few={"1 per class": np.ones((5, 4), dtype=bool)}),
    "Blocks:": dict(blocks={"cls": [50.0]}),
    "Attentive:": dict(probes={"attentive": Probe("rate 1", RIGHT)}),
    "Label-free numbers": dict(label_free={"RankMe": 1.0}),
}


@pytest.mark.parametrize("asked", PARTS)
def test_of_parts_that_were_not_asked_for_nothing_is_said(asked):
    args = argparse.Namespace(draws=5, names=["a"], checkpoints=["a.pth"])
    results = {"a": Frozen(**PARTS[asked])}
    text = report.markdown(results, args, {"a": "abc"}, 10, {})
    assert {part for part in PARTS if f"\n{part}" in text} == {asked}
    assert ("5 draws" in text) == (asked == "Few labels:")
