"""Ranks that must agree: on outcomes, on data, on precision; and what rank 0 does for all."""

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import in_ranks
from slurm_cluster import wait_for

import main_finetune
from util.cluster import agreement
from util.data import image_cache, image_folders, kept_index
from util.data.datasets import load_images
from util.data.file_index import list_folder
from util.data.same_data import check_same
from util.errors import EXIT_DATA, RunError, UsageError
from util.training import precision


def fails(rank: int, kind: str) -> object:
    def action() -> int:
        if kind == "everywhere" or rank == 1 == len(kind.split()):
            raise UsageError("no such file: name another")
        if kind == "a bug" and rank == 1:
            raise KeyError("x")
        if kind == "two ways" and rank:
            raise RunError(f"trouble {rank % 2}", EXIT_DATA)
        return 10 + rank

    return agreement.all_or_none(action)


@pytest.mark.parametrize(
    ("kind", "status", "line"),
    [
        ("once", 2, "rank 1: no such file: name another"),
        ("everywhere", 2, "no such file: name another"),
        ("a bug", -1, "rank 1: KeyError: 'x'"),
        ("two ways", EXIT_DATA, "rank 1: trouble 1; rank 2: trouble 0"),
    ],
)
def test_a_failure_on_one_rank_ends_all_with_one_line(tmp_path, kind, status, line):
    answers = in_ranks(fails, 3, tmp_path, kind)
    if kind == "a bug":  # its own rank shows the traceback
        assert answers.pop(1)["kind"] == "KeyError"
        status = 1
    assert all(answer["status"] == status for answer in answers)
    assert {answer["error"] for answer in answers} == {line}


def test_without_a_failure_each_rank_has_its_own_result(tmp_path):
    assert in_ranks(fails, 2, tmp_path, "not at all") == [10, 11]
    assert agreement.all_or_none(lambda: 7) == agreement.main_does(lambda: 7) == 7
    assert agreement.gather(3) == [3]


def test_many_ranks_are_counted_and_not_listed():
    assert agreement.groups([5, 6, 5]) == {5: "ranks 0, 2", 6: "rank 1"}
    assert agreement.groups([0] * 9) == {0: "ranks 0, 1, 2, 3 and 5 more"}


# ------------------------------------------------------------------------------- rank 0 for all


def waits(rank: int, folder: str, seconds: float, ending: str) -> object:
    def action() -> list[int]:
        assert rank == 0
        (Path(folder) / "begun").touch()
        time.sleep(seconds)
        (Path(folder) / "done").touch()
        if ending == "error":
            raise UsageError("it is too late")
        if ending == "bug":
            raise KeyError("x")
        return [1, 2]

    if rank == 1 and ending == "killed":
        wait_for((Path(folder) / "begun").exists, "the action", 60)
        os.kill(os.getpid(), signal.SIGKILL)
    return agreement.main_does(action)


def test_all_ranks_wait_for_rank_0_longer_than_the_timeout(tmp_path):
    assert in_ranks(waits, 2, tmp_path, str(tmp_path), 9, "", minutes=0.1) == [[1, 2]] * 2


def leads(rank: int, seconds: float) -> object:
    """Rank 1 is the first of another node, where the action takes long."""
    agreement.node_memory.node_leaders = lambda: [0, 1, 1]
    done = []

    def action() -> float:
        time.sleep(seconds if rank == 1 and not done else 0)
        done.append(time.monotonic())
        return done[0]

    return agreement.main_first(action)


@pytest.mark.slow
def test_the_first_of_each_node_may_take_longer_than_the_timeout_too(tmp_path):
    first, second, third = in_ranks(leads, 3, tmp_path, 9, minutes=0.1)
    assert first + 8 < second < third


def test_what_stops_rank_0_stops_all(tmp_path):
    answers = in_ranks(waits, 2, tmp_path, str(tmp_path), 0, "error")
    assert [a["status"] for a in answers] == [2, 2]
    assert {a["error"] for a in answers} == {"it is too late"}
    own, other = in_ranks(waits, 2, tmp_path, str(tmp_path), 0, "bug")
    assert own["kind"] == "KeyError"
    assert (other["status"], other["error"]) == (1, "rank 0: KeyError: 'x'")


def test_rank_0_finishes_where_a_peer_dies_and_ends_with_69(tmp_path):
    answers = in_ranks(waits, 2, tmp_path, str(tmp_path), 3, "killed", minutes=0.5)
    assert answers[0]["status"] == 69 and answers[1] is None
    assert (tmp_path / "done").exists()


# ------------------------------------------------------------------------------------------ data


def sees(rank: int, targets: list[list[int]], classes: list[list[str]]) -> None:
    check_same(np.array(targets[rank]), classes[rank], "train images")


AB = ["ant", "bee"]


@pytest.mark.parametrize(
    ("targets", "classes", "says"),
    [
        ([[0, 1, 1]] * 3, [AB] * 3, None),
        ([[0, 1, 1], [0, 1], [0, 1, 1]], [AB] * 3, "3 images on ranks 0, 2, 2 images on rank 1"),
        ([[0, 1, 1]] * 3, [AB, AB, [*AB, "cat"]],
         "2 classes on ranks 0, 1, 3 classes on rank 2 "
         "(class 2 is 'none' on rank 0 and 'cat' on rank 2)"),
        ([[0, 1, 1]] * 3, [AB, ["ant", "bat"], AB],
         "other classes: class 1 is 'bee' on rank 0 and 'bat' on rank 1"),
        ([[0, 1, 1], [0, 1, 1], [1, 0, 1]], [AB] * 3, "other labels, or another order: "),
    ],
)  # fmt: skip
def test_ranks_that_see_different_data_stop_and_say_which(tmp_path, targets, classes, says):
    answers = in_ranks(sees, 3, tmp_path, targets, classes)
    if says is None:
        assert answers == [None] * 3
        return
    assert {a["status"] for a in answers} == {2}
    assert len({a["error"] for a in answers}) == 1
    assert answers[0]["error"].startswith(f"the ranks see different train images: {says}")
    assert "--data_path" in answers[0]["error"]


def loads(rank: int, folders: list[str]) -> int:
    flags = [
        "--dataset",
        "image_folder",
        "--data_path",
        folders[rank],
        "--model",
        "vit_tiny_patch4",
    ]
    return len(load_images(main_finetune.parse_args(flags), "train"))


def test_a_node_without_the_data_stops_all(tmp_path, image_tree):
    assert in_ranks(loads, 2, tmp_path, [str(image_tree)] * 2) == [12, 12]
    answers = in_ranks(loads, 2, tmp_path, [str(image_tree), str(tmp_path / "absent")])
    assert {a["status"] for a in answers} == {2}
    assert len({a["error"] for a in answers}) == 1
    assert answers[0]["error"].startswith("rank 1: --data_path")


def comes(rank: int, folder: str, failing: list[int]) -> bool:
    made = Path(folder) / "made"

    def action() -> bool:
        was_there = made.exists()
        time.sleep(0.3)
        made.touch()
        if rank in failing:
            raise UsageError("no such file: name another")
        return was_there

    return agreement.main_first(action)


@pytest.mark.parametrize(
    ("failing", "line"),
    [([], None), ([0], "rank 0: no such"), ([2], "rank 2: no such"), ([0, 1, 2], "no such")],
)
def test_rank_0_comes_first_and_a_failure_ends_all(tmp_path, failing, line):
    answers = in_ranks(comes, 3, tmp_path, str(tmp_path), failing)
    if line is None:
        assert answers == [False, True, True]
    else:
        assert all(a["status"] == 2 and a["error"].startswith(line) for a in answers)


def lists(rank: int, folder: str) -> list[str]:
    """The names that a rank has; but for rank 0, none may list the folder."""
    kept_index.SETTLED = 0
    done = []
    image_folders.list_folder = lambda root: done.append(rank) or list_folder(root)
    loads(rank, [folder] * 2)
    return done


def test_one_rank_lists_a_folder_for_all(tmp_path, image_tree):
    shutil.copytree(image_tree, tmp_path / "images")
    assert in_ranks(lists, 2, tmp_path, str(tmp_path / "images")) == [[0], []]
    assert in_ranks(lists, 2, tmp_path, str(tmp_path / "images")) == [[], []]


def caches(rank: int, folder: str, data: str) -> list:
    """Which rank made the cache, and what this one reads of it."""
    made, make = [], image_cache._make
    image_cache._make = lambda *about: made.append(rank) or make(*about)
    flags = ["--data_path", data, "--input_size", "16", "--num_workers", "0", "--cache_images"]
    args = main_finetune.parse_args([*flags, "--cache_dir", f"{folder}/cache"])
    images = load_images(args, "train", min_crop=args.min_crop)
    return [made, int(images.read(0).sum()), len(images)]


def test_one_rank_caches_images_for_all(tmp_path, image_tree):
    first, second = in_ranks(caches, 2, tmp_path, str(tmp_path), str(image_tree))
    assert first[0] == [0] and second[0] == [] and first[1:] == second[1:] and first[2] == 12


# ------------------------------------------------------------------------------------- precision


def takes(rank: int, device: str, abilities: list) -> str:
    said = []
    precision.log.info = lambda line, *words: said.append(line % words)
    torch.cuda.get_device_capability = lambda device: abilities[rank]
    precision._cpu_gains_by_bf16 = lambda: abilities[rank]
    return [precision.agreed_amp(torch.device(device), 768), *said]


@pytest.mark.parametrize(
    ("device", "abilities", "amp", "says"),
    [
        ("cuda:0", [(8, 0), (9, 0)], "bf16", []),
        ("cuda:0", [(8, 0), (7, 0)], "fp16",
         ["rank 0: compute capability 8.0: bf16", "rank 1: compute capability 7.0: fp16"]),
        ("cuda:0", [(7, 0), (8, 6)], "fp16", ["rank 0: compute capability 7.0: fp16"]),
        ("cpu", [True, True], "bf16", []),
        ("cpu", [True, False], "none", ["rank 1: CPU: none"]),
    ],
)  # fmt: skip
def test_amp_auto_takes_what_all_ranks_have(tmp_path, device, abilities, amp, says):
    answers = in_ranks(takes, 2, tmp_path, device, abilities)
    assert [answer[0] for answer in answers] == [amp, amp]
    line = " ".join(answers[0][1:])
    assert line.startswith(f"--amp auto takes {amp}, which all ranks have") if says else not line
    assert all(words in line for words in says)


def test_the_lowest_precision_is_taken():
    assert precision.lowest_amp(["bf16", "fp16", "bf16"]) == "fp16"
    assert precision.lowest_amp(["bf16", "none"]) == "none"
