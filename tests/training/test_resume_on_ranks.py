"""Which checkpoint several ranks resume from: rank 0's, the very same file, or none."""

import argparse
import os
from pathlib import Path

import pytest
import torch
from ranks import in_ranks
from torch import nn

from util.flags.settings import Settings
from util.training.checkpoint import Checkpointer, Progress
from util.weights.checkpoint_file import fingerprint


def checkpointer(weight: float = 0.0, steps: int = 0) -> Checkpointer:
    """Of a run in the folder `out` of the working directory."""
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    settings = Settings({}, {})
    args = argparse.Namespace(keep_checkpoints=2, amp="none", settings=settings)
    progress = Progress(total_steps=steps)
    objects = {"model": model, "optimizer": optimizer}
    return Checkpointer("out", objects, progress, {"model": "linear"}, args)


def resume_on_own_node(rank: int, folders: list[str]) -> list:
    """Each rank in its folder: the same path names another disk, as with node-local folders."""
    os.chdir(folders[rank])
    mine = checkpointer()
    found = mine.resume("auto")
    return [found, mine.progress.total_steps, float(mine.objects["model"].weight[0, 0])]


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """(list of [(weight, steps), …] saved on each node) -> the nodes' folders."""

    def make(*saved: list[tuple[float, int]]) -> list[str]:
        folders = []
        for number, states in enumerate(saved):
            folder = tmp_path / f"node{number}"
            folder.mkdir()
            monkeypatch.chdir(folder)
            for state in states:
                assert checkpointer(*state).save(wait=True)
            folders.append(str(folder))
        return folders

    return make


def test_one_disk_for_all(nodes, tmp_path):
    folder = nodes([(1.0, 5), (2.0, 6)])[0]
    assert in_ranks(resume_on_own_node, 2, tmp_path, [folder] * 2) == [[True, 6, 2.0]] * 2


def test_rank_0_passes_over_a_damaged_one_and_the_others_follow(nodes, tmp_path):
    folder = nodes([(1.0, 5), (2.0, 6)])[0]
    Path(folder, "out", "checkpoint-last.pth").write_bytes(b"junk")
    assert in_ranks(resume_on_own_node, 2, tmp_path, [folder] * 2) == [[True, 5, 1.0]] * 2


def stopped(answers: list, *words: str) -> None:
    """All ranks ended with status 2 and one and the same line, which has the words."""
    assert [answer["status"] for answer in answers] == [2] * len(answers)
    assert len({answer["error"] for answer in answers}) == 1
    for word in (*words, "on a disk that their nodes share"):
        assert word in answers[0]["error"]


def test_another_state_on_another_node_stops_all(nodes, tmp_path):
    """Of another step; or of the same step with other weights, which only the checksum tells."""
    older, newer, other = nodes([(1.0, 5)], [(2.0, 6)], [(3.0, 5)])
    answers = in_ranks(resume_on_own_node, 3, tmp_path, [older, older, newer])
    stopped(answers, "rank 2: out/checkpoint-last.pth has step 6", "rank 0's has step 5")
    stopped(in_ranks(resume_on_own_node, 2, tmp_path, [older, other]), "rank 1", "checksum")


@pytest.mark.parametrize("damage", ["absent", "unreadable"])
def test_one_failed_read_stops_all(nodes, tmp_path, damage):
    """The rank that cannot read does not leave the others in a collective."""
    folders = nodes([(1.0, 5)], [(1.0, 5)])
    last = Path(folders[1], "out", "checkpoint-last.pth")
    if damage == "absent":
        last.unlink()
    else:
        last.write_bytes(last.read_bytes()[:-100])
    answers = in_ranks(resume_on_own_node, 2, tmp_path, folders)
    stopped(answers, "rank 1: out/checkpoint-last.pth is")


def test_where_rank_0_has_none_all_start_anew(nodes, tmp_path):
    folders = nodes([], [(1.0, 5)])
    assert in_ranks(resume_on_own_node, 2, tmp_path, folders) == [[False, 0, 0.0]] * 2


def test_what_rank_0_finds_wanting_stops_all(nodes, tmp_path):
    folder = nodes([(1.0, 5)])[0]
    for file in Path(folder, "out").iterdir():
        file.write_bytes(b"junk")
    answers = in_ranks(resume_on_own_node, 2, tmp_path, [folder] * 2)
    assert [answer["status"] for answer in answers] == [2, 2]
    assert "--resume auto: no checkpoint in out is whole" in answers[1]["error"]


def test_the_fingerprint_tells_contents_apart_in_any_container(tmp_path):
    a, b, old = tmp_path / "a.pth", tmp_path / "b.pth", tmp_path / "old.pth"
    torch.save({"x": torch.zeros(3)}, a)
    torch.save({"x": torch.ones(3)}, b)
    torch.save({"x": torch.zeros(3)}, old, _use_new_zipfile_serialization=False)
    sums = [fingerprint(str(path)) for path in (a, b, old)]
    assert len(set(sums)) == 3
    (tmp_path / "copy.pth").write_bytes(a.read_bytes())
    assert fingerprint(str(tmp_path / "copy.pth")) == sums[0]
