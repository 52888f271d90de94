"""A job is done, running, failed or missing by what lies in its folder."""

import json
import os
import time

import pytest
from planted import plant

from reproduction import paper, run_slurm
from reproduction.graph import Graph
from reproduction.scales import SMALL_SCALES
from reproduction.state import (
    BEGUN,
    DONE,
    FAILED,
    MISSING,
    OTHER_COMMIT,
    OTHER_FLAGS,
    OTHER_NEEDS,
    RUNNING,
    Folder,
    seconds_left,
    status_lines,
    words_of,
)
from util.errors import RunError


@pytest.fixture
def graph(tmp_path):
    made = Graph(SMALL_SCALES["demo"], str(tmp_path))
    for row in paper.TABLE3A.rows:
        made.cell(row, "FT", 0)
    return made


PRETRAIN, FINETUNE = "seed-0/pretrain/mae_vit_base_800ep", "seed-0/finetune/mae_vit_base_800ep"


def test_a_job_from_its_start_to_its_end(graph):
    folder = Folder(graph, graph.jobs[PRETRAIN])
    assert folder.state("abc").state == MISSING
    folder.begin()
    assert folder.state("abc", is_alive=True).state == RUNNING
    assert folder.state("abc").state == MISSING  # who started it is gone
    folder.end(0)
    plant(graph, PRETRAIN)
    assert folder.state("abc").state == folder.state(None).state == DONE


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [(2, FAILED, "bad input: error: --lr"), (3, FAILED, "the loss became NaN: error: --lr"),
     (5, FAILED, "out of memory"), (69, FAILED, "ranks were lost"), (99, FAILED, "exit status 99"),
     (75, MISSING, "interrupted after a checkpoint"), (-9, MISSING, "ended by signal 9")],
)  # fmt: skip
def test_a_failure_is_said_in_words_with_the_logs_last_line(graph, status, state, words):
    folder = Folder(graph, graph.jobs[PRETRAIN])
    folder.begin()
    with open(folder.log(), "w") as log:
        log.write("starts\nhalf a bar\rwhole bar\nerror: --lr is NaN\nsrun: ends\n\n")
    folder.end(status)
    found = folder.state("abc")
    assert found.state == state and words in found.detail
    assert words_of(143) == "ended by signal 15"


def test_a_slurm_job_that_left_the_queue_without_results_failed(graph):
    folder = Folder(graph, graph.jobs[FINETUNE])
    folder.begin(slurm_job="17")
    assert folder.state("abc", is_alive=True).state == RUNNING
    assert "what it needs failed" in folder.state("abc").detail
    os.makedirs(f"{folder.path}/slurm")
    with open(folder.log(), "w") as file:
        file.write("error: no images\n")
    found = folder.state("abc")
    assert (found.state, found.detail) == (FAILED, "error: no images")


def test_other_flags_and_commits_are_told_apart(graph):
    folder = plant(graph, PRETRAIN)
    found = folder.state("other")
    assert (found.state, found.detail) == (OTHER_COMMIT, "abc")
    folder.write(command=["main_pretrain", "--epochs", "1"])
    found = folder.state("abc")
    assert (found.state, found.detail) == (OTHER_FLAGS, "main_pretrain --epochs 1")


def test_results_of_an_encoder_that_is_there_no_more_do_not_count(graph, tmp_path):
    """Pre-trained by other flags, or begun anew since."""
    plant(graph, PRETRAIN)
    folder = plant(graph, FINETUNE)
    assert folder.state("abc").state == DONE
    other = Graph(SMALL_SCALES["demo"], str(tmp_path), flags={"main_pretrain": "--mask_ratio 0.9"})
    for row in paper.TABLE3A.rows:
        other.cell(row, "FT", 0)
    found = Folder(other, other.jobs[FINETUNE]).state("abc")
    assert (found.state, found.detail) == (OTHER_NEEDS, PRETRAIN)
    again = Folder(graph, graph.jobs[PRETRAIN])
    again.begin()  # after it was removed, for example
    assert folder.state("abc").state == OTHER_NEEDS
    os.remove(f"{folder.path}/results.json")
    assert folder.state("abc").state == MISSING  # nothing was made of it
    folder.begin()
    plant(graph, FINETUNE).write(attempts=[{"start": time.time(), "end": time.time(), "status": 0}])
    assert folder.state("abc").state == DONE


def test_a_record_is_whole_or_not_there(graph):
    folder = plant(graph, PRETRAIN)
    with open(f"{folder.path}/job.json") as file:
        assert json.load(file)["attempts"][0]["status"] == 0
    with open(f"{folder.path}/results.json", "w") as file:
        file.write('{"commit": "ab')  # as a full disk leaves it
    assert folder.state("abc").state == MISSING


def test_time_left_is_what_runs_of_the_kind_took(graph):
    """12 passes took 60 s; seven pre-trainings of 12 are missing, on two places."""
    plant(graph, PRETRAIN, seconds=60)
    states = [Folder(graph, job).state("abc") for job in graph.in_order()]
    left, unknown = seconds_left(states, 2)
    assert left == pytest.approx(7 * 60 / 2) and unknown == ["finetune"]
    lines = status_lines(states, 2)
    assert lines[-1].startswith("16 jobs: 1 done, 15 missing; about 4 minutes left; no finetune")
    assert lines[0].startswith("done") and lines[0].endswith(PRETRAIN)


@pytest.mark.parametrize(
    ("answer", "found"),
    [("echo RUNNING", True), ("echo PENDING", True), ("true", False),
     ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; false", False),
     ("echo 'Socket timed out' >&2; false", None), (None, None)],
)  # fmt: skip
def test_a_slurm_that_does_not_answer_ends_nothing(tmp_path, monkeypatch, answer, found):
    """Else a job would be taken for ended, and started twice."""
    monkeypatch.setenv("PATH", str(tmp_path))
    if answer:
        (tmp_path / "squeue").write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / "squeue").chmod(0o755)
    record = {"attempts": [{"slurm_job": "17"}]}
    if found is None:
        with pytest.raises(RunError, match="squeue"):
            run_slurm.alive(record)
    else:
        assert run_slurm.alive(record) is found


def test_what_another_commit_began_is_not_gone_on_with(graph, monkeypatch):
    """Where something lies there to go on from; else the job starts anew, and of one commit."""
    folder = Folder(graph, graph.jobs[PRETRAIN])
    monkeypatch.setenv("MIMAE_COMMIT", "abc-dirty-1")
    folder.begin()
    folder.end(75)
    monkeypatch.setenv("MIMAE_COMMIT", "abc-dirty-2")
    assert folder.state("abc-dirty-2").state == MISSING
    with open(f"{folder.path}/checkpoint-last.pth", "w"):
        pass
    found = folder.state("abc-dirty-2")
    assert (found.state, found.detail.split(":")[0]) == (BEGUN, "abc-dirty-1")
    assert "interrupted" in found.detail and folder.state(None).state == MISSING
    folder.begin()  # as --any_commit does
    assert folder.record()["commits"] == ["abc-dirty-1", "abc-dirty-2"]
    assert folder.runs_otherwise() == "runs by another commit" and not folder.runs_otherwise(True)
    folder.end(2)
    assert folder.state("abc-dirty-2").state == BEGUN
    os.unlink(f"{folder.path}/checkpoint-last.pth")
    assert folder.state("abc-dirty-2").state == FAILED
    folder.begin()
    assert folder.record()["commits"] == ["abc-dirty-2"] and not folder.runs_otherwise()
    monkeypatch.setenv("MIMAE_COMMIT", "abc-dirty-1")
    assert folder.runs_otherwise() == "runs by another commit"


def test_results_of_several_commits_are_none_of_the_wanted_one(graph):
    plant(graph, PRETRAIN, commit="abc", commits=["old", "abc"])
    found = Folder(graph, graph.jobs[PRETRAIN]).state("abc")
    assert (found.state, found.detail) == (OTHER_COMMIT, "old, then abc")
    assert Folder(graph, graph.jobs[PRETRAIN]).state(None).state == DONE


@pytest.mark.parametrize("below", ["", "draw-1/", "draw-0/blr-0.001/"])
def test_of_several_draws_each_has_its_own_beginning(graph, monkeypatch, below):
    folder = Folder(graph, graph.jobs[FINETUNE])
    monkeypatch.setenv("MIMAE_COMMIT", "abc")
    folder.begin()
    os.makedirs(f"{folder.path}/{below}", exist_ok=True)
    with open(f"{folder.path}/{below}checkpoint-last.pth", "w"):
        pass
    assert folder.begun_by() == ["abc"]


def test_time_left_is_told_before_the_first_run_is_done(graph):
    """By what a running job says of itself; and before that by runs elsewhere."""
    states = [Folder(graph, job).state("abc") for job in graph.in_order()]
    line = status_lines(states, 2, elsewhere=60)[-1]
    assert line == (
        "16 jobs: 16 missing; about 8 minutes left (finetune, pretrain: by runs on another machine)"
    )
    folder = Folder(graph, graph.jobs[PRETRAIN])
    folder.begin()
    attempts = folder.record()["attempts"]
    attempts[-1]["start"] -= 30
    folder.write(attempts=attempts)
    with open(folder.log(), "w") as log:
        log.write(
            "epoch 1 3/9  0:10 left, 1:30 in all  loss 1\nepoch 1: done, step 3 (12 in all)\n"
        )
    states = [
        Folder(graph, job).state("abc", is_alive=job.name == PRETRAIN) for job in graph.in_order()
    ]
    assert states[0].left == 90 and states[0].seconds == pytest.approx(30, abs=5)
    left, unknown = seconds_left(states, 1)
    assert left == pytest.approx(90 + 7 * 120, abs=20) and unknown == ["finetune"]
