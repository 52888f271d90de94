"""Features side by side: what torch makes of them whole, in parts, and in what memory."""

import subprocess
import sys

import pytest
import torch

from util.evaluation.frozen import logistic
from util.evaluation.frozen.columns import Columns, mean_and_deviation


@pytest.fixture
def kinds():
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(50, 3, generator=draw), torch.randn(50, 4, generator=draw).half()]


@pytest.mark.parametrize("size", [1, 7, 50, 100])
def test_parts_are_those_of_the_whole(kinds, size):
    whole = torch.cat([kind.float() for kind in kinds], 1)
    columns = Columns(kinds)
    assert (len(columns), columns.dim) == (50, 7)
    assert torch.equal(torch.cat([*columns.split(size)]), whole)
    is_held = torch.arange(50) % 3 == 0
    some = columns.of(is_held)
    assert torch.equal(torch.cat([*some.split(size)]), whole[is_held])
    ids = torch.tensor([4, 1, 1])
    assert torch.equal(torch.cat([*some.of(ids).split(size)]), whole[is_held][ids])


def test_mean_and_deviation_are_exact_far_from_zero():
    """In float32 the sum of a million numbers near 1000 would be wrong in the fourth digit."""
    draw = torch.Generator().manual_seed(1)
    values = 1000 + torch.randn(100_000, 2, generator=draw)
    values[:, 1] = 7.0  # constant
    mean, deviation = mean_and_deviation(Columns([values]), rows=333)
    exact = values.double()
    torch.testing.assert_close(mean.double(), exact.mean(0), rtol=1e-7, atol=0)
    assert deviation[0].item() == pytest.approx(exact[:, 0].std(correction=0).item(), rel=1e-6)
    assert deviation[1] == 1


def test_a_fit_of_parts_is_that_of_the_whole(kinds, monkeypatch):
    """However many rows are computed with at once."""
    targets = torch.arange(50) % 3
    whole = logistic.fit(torch.cat([k.float() for k in kinds], 1), targets, 3, [0.1, 1.0])
    monkeypatch.setattr(logistic, "CHUNK_BYTES", 4 * 8 * 7)  # eight rows
    parts = logistic.fit(Columns(kinds), targets, 3, [0.1, 1.0])
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-3, atol=1e-4)
    assert torch.equal(parts.predict(Columns(kinds)), whole.predict(Columns(kinds)))


MEASURE = """
import resource, torch
from util.evaluation.frozen import logistic, probes
logistic.CHUNK_BYTES //= 64  # as the data are that much smaller than ImageNet's
minimise = logistic.minimise
logistic.minimise = lambda objective, x, *rest: minimise(objective, x, 2, 0.0)
targets = torch.arange(30_000) % 10
logistic.fit(torch.randn(100, 4), targets[:100], 10, [0.1])  # what a first call loads
train = {kind: torch.ones(30_000, 512).normal_() for kind in ("cls", "mean")}
queries = {kind: rows[:50] for kind, rows in train.items()}
test = probes.TestSet(queries, targets[:50])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = CALL
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024 / sum(rows.nbytes for rows in train.values()))
"""
CALLS = {
    "regression": "probes.regression(train, targets, {'val': test}, torch.device('cpu'))",
    "few_labels": "probes.few_labels(probes.side_by_side(train), targets, test, 5, 2, "
    "torch.device('cpu'))",
}


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
@pytest.mark.parametrize("call", CALLS)
def test_regressions_take_little_memory_beside_the_features(call):
    """At most 1.3 times the features in all: 0.3 beside them. They were copied twice before."""
    code = MEASURE.replace("CALL", CALLS[call])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.3
