"""The attentive probe against its definition, and that it goes on where it stopped."""

import math
import os
import types

import numpy as np
import pytest
import torch

from util.errors import UsageError
from util.evaluation.frozen import attentive
from util.evaluation.frozen.attentive import EfficientProbe


def test_pooling_is_its_definition():
    torch.manual_seed(0)
    probe = EfficientProbe(12, 3, num_queries=4).double()
    tokens = torch.randn(2, 5, 12, dtype=torch.float64)
    values = tokens @ probe.values.T  # of every token, [B, L, D]
    expected = torch.zeros(2, 12, dtype=torch.float64)
    for b in range(2):
        for m in range(4):
            share = torch.stack([probe.queries[m] @ x / math.sqrt(12) for x in tokens[b]]).softmax(
                0
            )
            own = slice(3 * m, 3 * m + 3)
            expected[b, own] = sum(share[i] * values[b, i, own] for i in range(5))
    torch.testing.assert_close(probe.pool(tokens), expected, rtol=1e-12, atol=1e-12)


def test_queries_must_divide_the_width():
    with pytest.raises(UsageError, match=r"--attentive_queries 32 .* width 12: give 4"):
        EfficientProbe(12, 3)


class Planted:
    """Batches of tokens of which one, wherever it is, has the class in it; see `Batches`."""

    def __init__(self, batches: int = 8):
        generator = torch.Generator().manual_seed(0)
        self.data = [self.draw(generator) for _ in range(batches)]

    @staticmethod
    def draw(generator) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.randn(64, 6, 16, generator=generator)
        targets = torch.randint(2, (64,), generator=generator)
        place = torch.randint(6, (64,), generator=generator)
        tokens[torch.arange(64), place] = 0.1 * tokens[torch.arange(64), place]
        tokens[torch.arange(64), place, 0] = 4.0  # what says: look here
        tokens[torch.arange(64), place, 1] = 2.0 * targets - 1
        return tokens, targets

    def __len__(self) -> int:
        return len(self.data)

    def epoch(self, epoch: int):
        return iter(self.data)


def new_probes(count: int = 1) -> torch.nn.ModuleList:
    torch.manual_seed(0)
    return torch.nn.ModuleList(EfficientProbe(16, 2, num_queries=4) for _ in range(count))


def test_it_finds_the_token_that_tells(tmp_path):
    probes = new_probes()
    attentive.train(probes, [30.0], Planted(), lambda x: x, 60, str(tmp_path / "state.pth"))
    tokens, targets = Planted.draw(torch.Generator().manual_seed(1))
    assert (probes[0](tokens).argmax(1) == targets).float().mean() > 0.95
    looked_at = probes[0].attention(tokens).mean(1).argmax(1)  # of the mean query
    assert (looked_at == tokens[:, :, 0].argmax(1)).float().mean() > 0.9


def test_it_goes_on_where_it_stopped_with_the_same_bits(tmp_path):
    whole, parts = new_probes(2), new_probes(2)
    rates = [1.0, 3.0]
    attentive.train(whole, rates, Planted(), lambda x: x, 4, str(tmp_path / "whole.pth"))
    calls = []

    def dies(tokens):
        calls.append(1)
        if len(calls) == 21:  # in the third epoch
            raise KeyboardInterrupt
        return tokens

    path = str(tmp_path / "parts.pth")
    with pytest.raises(KeyboardInterrupt):
        attentive.train(parts, rates, Planted(), dies, 4, path)
    parts = new_probes(2)
    attentive.train(parts, rates, Planted(), lambda x: x, 4, path)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name
    alone = new_probes()
    attentive.train(alone, rates[:1], Planted(), lambda x: x, 4, str(tmp_path / "alone.pth"))
    assert torch.equal(alone[0].queries, whole[0].queries)  # heads do not feel each other


def test_tokens_are_kept_where_half_of_the_disk_holds_those_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr(
        attentive.shutil, "disk_usage", lambda place: types.SimpleNamespace(free=4000)
    )
    one, other = str(tmp_path / "not" / "yet"), str(tmp_path / "there")
    assert attentive.are_kept("auto", {one: 1000})  # 2000 bytes
    assert not attentive.are_kept("auto", {one: 1001})
    assert not attentive.are_kept("auto", {one: 600, other: 600})  # all encoders' or none
    os.mkdir(other)  # an earlier run's: not needed again
    assert attentive.are_kept("auto", {one: 600, other: 600})
    assert not attentive.are_kept("images", {other: 1})
    assert attentive.are_kept("kept", {one: 10**9})


@pytest.mark.parametrize("tokens", ["kept", "images"])
def test_from_the_command_line(run_main_here, checkpoint, tmp_path, tokens):
    flags = ("--only", "knn", "--train_fraction", 0.3, "--attentive", "--tokens", tokens)
    flags += ("--attentive_epochs", 3, "--attentive_queries", 4, "--attentive_blr", 0.1, 30)
    outcome = run_main_here("main_evaluate", checkpoint, "pixels", *flags, folder=tmp_path)
    assert outcome.status == 0, outcome.err
    row = next(line for line in outcome.out.splitlines() if line.startswith("| attentive |"))
    score, pixels = row.split("|")[2:4]
    assert float(score) > 15 and pixels.strip() == "–"
    assert "4 queries, 3 epochs of LARS, batches of 16, " in outcome.out
    assert (tmp_path / "features" / f"{checkpoint.parent.name}-tokens").exists() == (
        tokens == "kept"
    )
    states = sorted(tmp_path.glob("features/*-attentive-*.pth"))
    assert len(states) == 2  # of the choice, and of the probe that is told
    before = [path.stat().st_mtime_ns for path in states]
    again = run_main_here("main_evaluate", checkpoint, "pixels", *flags, folder=tmp_path)
    assert row in again.out and before == [path.stat().st_mtime_ns for path in states]


def test_rows_are_read_one_by_one(tmp_path):
    from util.evaluation.frozen.features import SHARD, Rows

    whole = np.arange(2 * (SHARD + 3), dtype=np.float16).reshape(-1, 2)
    for number, part in enumerate((whole[:SHARD], whole[SHARD:])):
        np.save(tmp_path / f"{number}.npy", part)
    rows = Rows([str(tmp_path / "0.npy"), str(tmp_path / "1.npy")])
    for index in (0, SHARD - 1, SHARD, SHARD + 2):
        assert rows[index].numpy().tolist() == whole[index].tolist()
    open_files = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert not any(str(tmp_path) in name for name in open_files)
